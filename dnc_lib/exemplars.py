"""Real training images as sub-centroids: which image lies nearest to each."""

import torch
from torch import Tensor

from .grouping import ClassTiles
from .sinkhorn import check_labels


@torch.no_grad()
def nearest_exemplars(embeddings: Tensor, labels: Tensor, subcentroids: Tensor) -> tuple[Tensor, Tensor]:
    """The training image of its class that lies nearest to each sub-centroid, no image twice.

    Sub-centroids of a class choose in turn, the one with the closest image first; an image taken is gone.

    Args:
        embeddings: (N, D) unit embeddings.
        labels: (N,) in [0, C).
        subcentroids: (C, K, D), unit length.

    Returns:
        index (C, K) into the N, -1 where a class has fewer images than sub-centroids; similarity (C, K), NaN there.

    Raises:
        ValueError: for shapes that do not fit, or labels out of range.
    """
    if (
        embeddings.dim() != 2
        or labels.shape != embeddings.shape[:1]
        or subcentroids.shape[2:] != embeddings.shape[1:]
    ):
        shapes = ", ".join(str(tuple(each.shape)) for each in (embeddings, labels, subcentroids))
        raise ValueError(f"embeddings must be (N, D), labels (N,) and subcentroids (C, K, D), got {shapes}")
    check_labels(labels, subcentroids.shape[0])
    num_classes, num_subcentroids, _ = subcentroids.shape
    scores = ClassTiles(embeddings, labels, num_classes).own_scores(subcentroids)  # (N, K)
    index = torch.full((num_classes, num_subcentroids), -1, dtype=torch.long, device=labels.device)
    similarity = torch.full((num_classes, num_subcentroids), torch.nan, device=labels.device)
    for c in range(num_classes):
        members = (labels == c).nonzero().squeeze(1)
        own = scores[members].clone()  # (N_c, K)
        for _ in range(min(num_subcentroids, len(members))):
            place, k = divmod(int(own.argmax()), num_subcentroids)
            index[c, k], similarity[c, k] = members[place], own[place, k]
            own[place], own[:, k] = -torch.inf, -torch.inf
    return index, similarity
