"""Samples and the vectors of their class: the two products that clustering needs, for all classes at once.

Many samples are grouped by class into equal tiles, so that per-class work becomes batched matrix products. Tiles are
gathered a block at a time: on a CPU a block stays in the cache, and nowhere is a copy of all rows made, nor a tensor
with N, C and K in its shape. Few samples are not worth the sorting: there each operation costs its call more than its
arithmetic, and :class:`ClassRows` makes do with a handful.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers in a block: what stays in a core's cache; on any other device what keeps it busy (256 MB of float32).
CPU_BLOCK, DEVICE_BLOCK = 1 << 19, 1 << 26

#: Multiplications up to which few rows meet the vectors of all classes, to spare the grouping.
CPU_PRODUCTS, DEVICE_PRODUCTS = 1 << 26, 1 << 32

#: Classes up to which that is cheaper than giving each row a copy of the vectors of its own class.
FEW_CLASSES = 16

#: Rows of the highest tile: a class of any size comes in pieces that fit a block.
HIGHEST = 64


def block_size(device: torch.device) -> int:
    """Numbers in a block on this device."""
    return CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK


def block_length(numbers_each: int, device: torch.device) -> int:
    """How many items of so many numbers make a block; at least 1."""
    return max(1, block_size(device) // max(numbers_each, 1))


class ClassRows:
    """Rows of an (N, D) matrix and their classes, as they lie: for few rows.

    Two products are all that clustering needs: each row with the K vectors of its class (:meth:`own_scores`), and
    the sum of the rows given to each of them (:meth:`add_sums`).

    Args:
        x: (N, D) in any floating type.
        labels: (N,) integers in [0, C).
    """

    def __init__(self, x: Tensor, labels: Tensor):
        self.x, self.labels = x, labels.long()

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
        x, vectors = self.x.to(dtype), vectors.to(dtype)
        num_classes, num_each, _ = vectors.shape
        if _one_product(len(x), vectors.shape, x.device):  # with all, then those of the own class picked out
            products = F.linear(x, vectors.flatten(0, 1)).unflatten(1, (num_classes, num_each))
            return products.gather(1, self.labels.view(-1, 1, 1).expand(-1, 1, num_each)).squeeze(1)
        return (vectors.index_select(0, self.labels) * x.unsqueeze(1)).sum(2)

    def add_sums(self, assignment: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Add up the rows given to each sub-centroid, in place.

        Args:
            assignment: (N,) in [0, K).
            sums: (C, K, D), contiguous, to which the sums of the rows are added.
            counts: (C, K), contiguous, to which their numbers are added.
        """
        place = self.labels * sums.shape[1] + assignment  # (N,) in [0, C K)
        counts.view(-1).index_add_(0, place, torch.ones_like(place, dtype=counts.dtype))
        flat = sums.view(-1, sums.shape[2])
        if self.x.device.type != "cpu" and _one_product(len(self), sums.shape, self.x.device):
            # One product with zeros and ones: an accelerator adds in a fixed order so, and not by atomic additions.
            chosen = sums.new_zeros(len(self), len(flat)).scatter_(1, place.unsqueeze(1), 1.0)
            flat.addmm_(chosen.T, self.x.to(sums.dtype))
        else:
            _add_rows(self.x, place, flat)


def _add_rows(x: Tensor, place: Tensor, sums: Tensor) -> None:
    """Add each row (N, D), in any floating type, to the row of ``sums`` (S, D) at its place (N,)."""
    # What must be converted is converted a block at a time.
    length = max(len(x), 1) if x.dtype == sums.dtype else block_length(x.shape[1], x.device)
    for rows, places in zip(x.split(length), place.split(length), strict=True):
        sums.index_add_(0, places, rows.to(sums.dtype))


def _one_product(num_rows: int, shape: tuple[int, int, int], device: torch.device) -> bool:
    """Whether N rows may well meet the vectors (C, K, D) of all classes: memory and time are small, and a copy of the
    vectors for each row would not be smaller."""
    num_classes, num_each, dim = shape
    block, products = block_size(device), CPU_PRODUCTS if device.type == "cpu" else DEVICE_PRODUCTS
    if num_classes > FEW_CLASSES and num_rows * num_each * dim <= block:
        return False
    all_scores = num_rows * num_classes * num_each
    return all_scores <= block and num_rows * dim <= 2 * block and all_scores * dim <= products


def group_rows(x: Tensor, labels: Tensor, shape: tuple[int, int, int]) -> "ClassRows | ClassTiles":
    """The rows for products with vectors (C, K, D), in the way that suits how many there are.

    Args:
        x: (N, D) in any floating type.
        labels: (N,) integers in [0, C).
        shape: C, K and D.
    """
    return ClassRows(x, labels) if few_rows(len(labels), shape, x.device) else ClassTiles(x, labels, shape[0])


def few_rows(num_rows: int, shape: tuple[int, int, int], device: torch.device) -> bool:
    """Whether N rows are so few, for vectors (C, K, D), that grouping them by class costs more than it spares."""
    _, num_each, dim = shape
    return num_rows * num_each * dim <= block_size(device) or _one_product(num_rows, shape, device)


class ClassTiles:
    """Rows of an (N, D) matrix, read by class: T tiles of R rows, each with rows of one class.

    The two products of :class:`ClassRows`, for many rows. A tile is half as high as an average class, so the padding
    stays near a quarter of the rows however unequal the classes are.

    Args:
        x: (N, D) in any floating type; half precision is converted a block at a time.
        labels: (N,) integers in [0, C).
        num_classes: C, how many classes there are.
    """

    def __init__(self, x: Tensor, labels: Tensor, num_classes: int):
        self.x, self.labels = x, labels.long()
        num_rows, device = labels.shape[0], labels.device
        sorted_labels, order = torch.sort(self.labels, stable=True)
        counts = torch.zeros(num_classes, dtype=torch.long, device=device)
        counts.scatter_add_(0, sorted_labels, torch.ones_like(sorted_labels))  # bincount would wait for the device
        present = (counts > 0).sum().clamp_min(1)
        height = (-(-num_rows // (2 * present))).clamp(1, HIGHEST)
        tiles_of = -(-counts // height)  # tiles a class takes; none without samples
        self.height, self.num_tiles = torch.stack([height, tiles_of.sum()]).tolist()  # R and T
        first_tile = tiles_of.cumsum(0) - tiles_of
        first_row = counts.cumsum(0) - counts
        rank = torch.arange(num_rows, device=device) - first_row[sorted_labels]  # place within the class
        place = first_tile[sorted_labels] * self.height + rank
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
        """As :meth:`ClassRows.own_scores`: vectors (C, K, D) -> (N, K)."""
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        products = vectors.new_empty(self.num_tiles, self.height, vectors.shape[1], dtype=dtype)  # (T, R, K)
        for block, rows in self._blocks(dtype):
            own = vectors.index_select(0, self.classes[block]).to(dtype)  # (tiles, K, D)
            products[block] = torch.bmm(rows, own.transpose(1, 2))
        return products.flatten(0, 1).index_select(0, self.place)

    def add_sums(self, assignment: Tensor, sums: Tensor, counts: Tensor) -> None:
        """As :meth:`ClassRows.add_sums`: assignment (N,), added to sums (C, K, D) and counts (C, K)."""
        if self.x.device.type == "cpu":  # a core adds row after row at the speed of its memory
            ClassRows(self.x, self.labels).add_sums(assignment, sums, counts)
            return
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
