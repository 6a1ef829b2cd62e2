"""The similarity of each sample to the nearest sub-centroid of each class, without keeping what the others said.

Written out, (N, C, K) similarities are kept from the forward to the backward pass. For pixels that is the largest
tensor of a training step: 16,384 of them, C = 150 and K = 10 make 98 MB. Only the winner of each class has a say
in the gradient, so which one it was is all that must be kept: (N, C) bytes, 2.5 MB. What lies between is made and
dropped a block of rows at a time, and is faster for it: on a CPU a block stays in the cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Similarities, N C K, up to which they are written out: as many as 256 images have of 1000 classes at K = 4.
WRITTEN_OUT = 1 << 20

#: Similarities in a block of rows: on a CPU what stays in a core's cache, on any other device 64 MB of float32.
CPU_BLOCK, DEVICE_BLOCK = 1 << 19, 1 << 24


def nearest_scores(x: Tensor, vectors: Tensor) -> Tensor:
    """Largest inner product of each row with the K vectors of each class.

    The same numbers as ``(x @ vectors.flatten(0, 1).T).unflatten(-1, (C, K)).amax(-1)``, and the same gradient for
    x. Where two vectors of a class tie the first has all of the gradient; where everything is written out (few
    rows) they share it. Rows have no gradient of second order, unless it is written out.

    Args:
        x: (..., D).
        vectors: (C, K, D), in the type of x. They may be changed in place before the backward pass.

    Returns:
        (..., C).
    """
    num_classes, num_each, dim = vectors.shape
    learns = torch.is_grad_enabled() and x.requires_grad
    if x.numel() // dim * num_classes * num_each <= WRITTEN_OUT or vectors.requires_grad:
        flat = vectors.flatten(0, 1)
        scores = F.linear(x, flat.clone() if learns else flat)
        return scores.unflatten(-1, (num_classes, num_each)).amax(-1)
    rows = x.reshape(-1, dim)
    scores = _NearestScores.apply(rows, vectors) if learns else _largest(rows, vectors)
    return scores.view(*x.shape[:-1], num_classes)


def _block_rows(vectors: Tensor) -> int:
    """How many rows have so many similarities that they make a block."""
    block = CPU_BLOCK if vectors.device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // (vectors.shape[0] * vectors.shape[1]))


def _largest(x: Tensor, vectors: Tensor, winners: Tensor | None = None) -> Tensor:
    """(N, C) largest products of rows (N, D); if given, ``winners`` (N, C) is filled with whose they are."""
    largest = x.new_empty(len(x), len(vectors))
    flat, length = vectors.flatten(0, 1), _block_rows(vectors)
    for first in range(0, len(x), length):
        part = slice(first, first + length)
        products = (x[part] @ flat.T).unflatten(1, vectors.shape[:2])  # (rows, C, K)
        if winners is None:
            torch.amax(products, -1, out=largest[part])
        else:
            largest[part], winners[part] = products.max(-1)
    return largest


class _NearestScores(torch.autograd.Function):
    """:func:`_largest` with a gradient: each row gets the winners, weighted by the gradient of their class."""

    @staticmethod
    def forward(ctx, x: Tensor, vectors: Tensor) -> Tensor:
        few = vectors.shape[1] <= 256
        winners = torch.empty(len(x), len(vectors), dtype=torch.uint8 if few else torch.int32, device=x.device)
        largest = _largest(x, vectors, winners)
        # A copy: an update before the backward pass moves the sub-centroids, and must not reach into this graph.
        ctx.save_for_backward(winners, vectors.clone())
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        winners, vectors = ctx.saved_tensors
        rows = gradient.new_empty(len(gradient), vectors.shape[2])
        weigh = _gathered if rows.device.type == "cpu" else _multiplied
        with torch.autocast(rows.device.type, enabled=False):
            for parts in zip(*(each.split(_block_rows(vectors)) for each in (rows, gradient, winners)), strict=True):
                rows_part, gradient_part, winners_part = parts
                rows_part.copy_(weigh(gradient_part, winners_part, vectors))
        return rows, None


def _gathered(gradient: Tensor, winners: Tensor, vectors: Tensor) -> Tensor:
    """The winners (rows, C) weighted by their gradient (rows, C) and added up: (rows, D). K times fewer products than
    :func:`_multiplied`, and no larger tensor."""
    num_classes, num_each, _ = vectors.shape
    first = torch.arange(0, num_classes * num_each, num_each, device=winners.device)
    return F.embedding_bag(first + winners, vectors.flatten(0, 1), per_sample_weights=gradient, mode="sum")


def _multiplied(gradient: Tensor, winners: Tensor, vectors: Tensor) -> Tensor:
    """The same as one matrix product with the gradient at the winners' places and zeros elsewhere: what accelerators
    are built for."""
    spread = gradient.new_zeros(*gradient.shape, vectors.shape[1])  # (rows, C, K)
    spread.scatter_(2, winners.long().unsqueeze(2), gradient.unsqueeze(2))
    return spread.flatten(1) @ vectors.flatten(0, 1)
