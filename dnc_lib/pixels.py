"""Which pixels move the sub-centroids: a few of each class and image, as even over the classes as they come."""

import torch
from torch import Tensor

from .metrics import IGNORED
from .sinkhorn import check_labels


def labels_at(
    labels: Tensor, size: tuple[int, int], multiple: int = 1, image_size: tuple[int, int] | None = None
) -> Tensor:
    """Labels at the resolution of an embedding: each place gets the label at its middle.

    Args:
        labels: (B, H, W), 255 for no class.
        size: (h, w), the places.
        multiple: images are padded to it, at the right and below, see ``Segmenter.multiple``, and
            the places cover the padding too; those in it get 255.
        image_size: of the images, in pixels, before the padding; the labels' if None.

    Returns:
        (B, h, w) long.
    """
    for dim, (places, side) in enumerate(zip(size, image_size or labels.shape[1:], strict=True), start=1):
        own, padded = labels.shape[dim], side + -side % multiple
        if (places, padded) == (own, side):
            continue
        middles = (2 * torch.arange(places, device=labels.device) + 1) * (own * padded) // (2 * places * side)
        found = labels.index_select(dim, middles.clamp_max(own - 1))
        beyond = (middles >= own).unsqueeze(-1) if dim == 1 else middles >= own  # whole rows, whole columns
        labels = found.masked_fill(beyond, IGNORED)
    return labels.long()


@torch.no_grad()
def draw_pixels(
    features: Tensor, labels: Tensor, limit: int, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """At most ``limit`` pixels of each class and image, drawn at random.

    The same places come first in every image of a batch, whatever its place in the batch: so processes that share a
    batch draw what one alone would have drawn.

    Args:
        features: (B, D, h, w).
        labels: (B, h, w), integers, 255 for no class; see :func:`labels_at`.
        limit: pixels of a class and image.
        num_classes: C, how many classes there are.
        seed: of the drawing.

    Returns:
        features (B, P, D) and labels (B, P) long, P = min(limit * C, h * w); rows that no pixel fills have the label
        255. P does not depend on the labels, so all processes have as many rows.

    Raises:
        ValueError: for labels of another shape or out of range, or a limit below 1.
    """
    _check(features, labels, limit, num_classes)
    batch, width = features.shape[:2]
    labels = labels.flatten(1).long()  # (B, N)
    places = labels.shape[1]
    rows = min(limit * num_classes, places)
    order = torch.randperm(places, generator=torch.Generator().manual_seed(seed))
    order = order.to(labels.device, non_blocking=True)
    labels = labels[:, order]
    group = torch.where(labels == IGNORED, num_classes, labels)
    group, by_class = group.sort(dim=1, stable=True)  # the classes one after another, each in the drawn order
    counts = group.new_zeros(batch, num_classes + 1).scatter_add_(1, group, torch.ones_like(group))
    first = counts.cumsum(1) - counts
    turn = torch.arange(places, device=labels.device) - first.gather(1, group)
    taken = (turn < limit) & (group < num_classes)
    places_first = taken.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :rows]
    chosen = torch.where(taken.gather(1, places_first), group.gather(1, places_first), IGNORED)
    index = order[by_class.gather(1, places_first)]  # (B, P) into h * w
    flat = features.flatten(2)  # (B, D, N)
    return flat.gather(2, index.unsqueeze(1).expand(-1, width, -1)).transpose(1, 2), chosen


def _check(features: Tensor, labels: Tensor, limit: int, num_classes: int) -> None:
    if features.dim() != 4 or labels.shape != (len(features), *features.shape[2:]):
        raise ValueError(
            f"labels must be (B, h, w) for features (B, D, h, w), got {tuple(labels.shape)} for "
            f"{tuple(features.shape)}: labels_at brings them to that resolution"
        )
    if limit < 1:
        raise ValueError(f"limit must be 1 or more pixels of a class and image, got {limit}")
    check_labels(torch.where(labels == IGNORED, 0, labels), num_classes)  # a mask as index would wait for a GPU too
