"""Samples grouped by class into equal tiles, so that per-class work becomes batched matrix products.

Tiles are gathered a block at a time: on a CPU a block stays in the cache, and nowhere is a copy of all rows made,
nor a tensor with N, C and K in its shape.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Numbers in a block: what stays in a core's cache; on any other device what keeps it busy (256 MB of float32).
CPU_BLOCK, DEVICE_BLOCK = 1 << 19, 1 << 26

#: Rows of the highest tile: a class of any size comes in pieces that fit a block.
HIGHEST = 64


def block_length(numbers_each: int, device: torch.device) -> int:
    """How many items of so many numbers make a block; at least 1."""
    block = CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // max(numbers_each, 1))


class ClassTiles:
    """Rows of an (N, D) matrix, read by class: T tiles of R rows, each with rows of one class.

    Two products are all that clustering needs: each row with the K vectors of its class (:meth:`own_scores`), and
    the sum of the rows given to each of them (:meth:`add_sums`). A tile is half as high as an average class, so the
    padding stays near a quarter of the rows however unequal the classes are.

    Args:
        x: (N, D) in any floating type; half precision is converted a block at a time.
        labels: (N,) integers in [0, C).
        num_classes: C, how many classes there are.
    """

    def __init__(self, x: Tensor, labels: Tensor, num_classes: int):
        self.x, self.labels = x, labels.long()
        num_rows, device = labels.shape[0], labels.device
        sorted_labels, order = torch.sort(self.labels, stable=True)
        counts = torch.bincount(sorted_labels, minlength=num_classes)
        present = max(int((counts > 0).sum()), 1)
        self.height = min(max(1, -(-num_rows // (2 * present))), HIGHEST)  # R
        tiles_of = -(-counts // self.height)  # tiles a class takes; none without samples
        first_tile = tiles_of.cumsum(0) - tiles_of
        first_row = counts.cumsum(0) - counts
        rank = torch.arange(num_rows, device=device) - first_row[sorted_labels]  # place within the class
        place = first_tile[sorted_labels] * self.height + rank
        self.num_tiles = int(tiles_of.sum())  # T
        self.classes = torch.repeat_interleave(
            torch.arange(num_classes, device=device), tiles_of, output_size=self.num_tiles
        )  # (T,)
        # Padding repeats row 0; nobody reads its scores, and its weight in every sum is zero.
        self.source = torch.zeros(self.num_tiles * self.height, dtype=torch.long, device=device)
        self.source[place] = order
        self.place = torch.empty_like(order)
        self.place[order] = place

    def __len__(self) -> int:
        return len(self.labels)

    def own_scores(self, vectors: Tensor) -> Tensor:
        """Inner products of each row with the K vectors of its class, in float32 (float64 if the vectors are).

        Args:
            vectors: (C, K, D).

        Returns:
            (N, K), in the order of the labels.
        """
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        products = vectors.new_empty(self.num_tiles, self.height, vectors.shape[1], dtype=dtype)  # (T, R, K)
        for block, rows in self._blocks(dtype):
            own = vectors.index_select(0, self.classes[block]).to(dtype)  # (tiles, K, D)
            products[block] = torch.bmm(rows, own.transpose(1, 2))
        return products.flatten(0, 1).index_select(0, self.place)

    def add_sums(self, assignment: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Add up the rows given to each sub-centroid, in place.

        Args:
            assignment: (N,) in [0, K).
            sums: (C, K, D), to which the sums of the rows are added.
            counts: (C, K), to which their numbers are added.
        """
        chosen = sums.new_zeros(self.num_tiles, self.height, sums.shape[1])  # one-hot (T, R, K), zero for padding
        chosen.flatten(0, 1)[self.place, assignment] = 1.0
        for block, rows in self._blocks(sums.dtype):
            sums.index_add_(0, self.classes[block], torch.bmm(chosen[block].transpose(1, 2), rows))
        counts.index_add_(0, self.classes, chosen.sum(1).to(counts.dtype))

    def _blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some tiles at a time, and their rows (tiles, R, D)."""
        width = self.x.shape[1]
        length = block_length(self.height * width, self.x.device)
        for first in range(0, self.num_tiles, length):
            source = self.source[first * self.height : (first + length) * self.height]
            rows = self.x.index_select(0, source).to(dtype)
            yield slice(first, first + length), rows.view(-1, self.height, width)
