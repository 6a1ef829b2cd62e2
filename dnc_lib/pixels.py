"""Which pixels move the sub-centroids: a few of each class and image, as even over the classes as they come."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import IGNORED


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at another resolution: (B, h, w), each the label at the middle of its place."""
    if labels.shape[1:] == tuple(size):
        return labels
    return F.interpolate(labels.unsqueeze(1).to(torch.float32), size, mode="nearest-exact").squeeze(1).long()


@torch.no_grad()
def draw_pixels(
    features: Tensor, labels: Tensor, limit: int, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """At most ``limit`` pixels of each class and image, drawn at random.

    The same places come first in every image of a batch, whatever its place in the batch: so processes that share a
    batch draw what one alone would have drawn.

    Args:
        features: (B, D, h, w).
        labels: (B, h, w), 255 for no class.
        limit: pixels of a class and image.
        num_classes: C, how many classes there are.
        seed: of the drawing.

    Returns:
        features (B, P, D) and labels (B, P), P = min(limit * C, h * w); rows that no pixel fills have the label 255.
        P does not depend on the labels, so all processes have as many rows.
    """
    batch, width = features.shape[:2]
    labels = labels.flatten(1)  # (B, N)
    places = labels.shape[1]
    rows = min(limit * num_classes, places)
    order = torch.randperm(places, generator=torch.Generator().manual_seed(seed)).to(labels.device)
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
