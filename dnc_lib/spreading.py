"""Keep sub-centroids apart: what is tried against their running into one another. Pure functions."""

import torch
import torch.nn.functional as F
from torch import Tensor

SPREADS = ("none", "centred", "frame")

#: Unit vectors that lie no farther from their mean than this are alike, but for rounding.
SAME = 1e-5


@torch.no_grad()
def spread_out(subcentroids: Tensor, how: str) -> Tensor:
    """Sub-centroids moved as little as it takes to lie apart.

    ``"centred"`` takes the mean of all away from each, so that none is left which all share: C K directions that
    sum to nothing lie at a mean cosine of -1 / (C K - 1), the best there is. ``"frame"`` goes to the nearest
    orthonormal frame, the orthogonal factor of the polar decomposition (Higham 1986), so that any two are at a
    right angle.

    Args:
        subcentroids: (C, K, D), unit length.
        how: ``"none"``, ``"centred"`` or ``"frame"``.

    Returns:
        (C, K, D), unit length.

    Raises:
        ValueError: for an unknown way, or a frame of more than D sub-centroids.
    """
    check_spread(how, *subcentroids.shape)
    flat = subcentroids.flatten(0, 1)
    if how == "centred" and len(flat) > 1:
        moved = flat - flat.mean(0)
        length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        flat = torch.where(length > SAME, F.normalize(moved, dim=-1), flat)  # all alike: there is no way apart
    elif how == "frame":
        left, _, right = torch.linalg.svd(flat, full_matrices=False)
        flat = left @ right
    return flat.view_as(subcentroids)


def check_spread(how: str, num_classes: int, num_subcentroids: int, dim: int) -> None:
    """Raise ``ValueError`` for an unknown way, or a frame that has no room."""
    if how not in SPREADS:
        raise ValueError(f"spread must be one of {', '.join(SPREADS)}, got {how!r}")
    if how == "frame" and num_classes * num_subcentroids > dim:
        raise ValueError(
            f"{num_classes} x {num_subcentroids} sub-centroids cannot all be at right angles in {dim} dimensions: "
            f"spread='frame' needs C * K <= D"
        )
