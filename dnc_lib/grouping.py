"""Samples grouped by class into equal tiles, so that per-class work becomes one batched matrix product.

A class with many samples takes several tiles, so the padding stays bounded however unequal the classes are.
"""

import torch
from torch import Tensor


class ClassTiles:
    """Rows of an (N, D) matrix, gathered by class into T tiles of R rows.

    Two products are all that clustering needs: each row with the K vectors of its class
    (:meth:`own_scores`), and the sum of the rows given to each of them (:meth:`sums`).

    Args:
        labels: (N,) integers in [0, C).
        num_classes: C.
    """

    def __init__(self, labels: Tensor, num_classes: int):
        self.num_classes = num_classes
        self.num_rows = labels.shape[0]
        device = labels.device
        sorted_labels, order = torch.sort(labels.long(), stable=True)
        counts = torch.bincount(sorted_labels, minlength=num_classes)
        present = max(int((counts > 0).sum()), 1)
        # About one and a half tiles a class: few enough to keep the products large, small enough to pad little.
        rows = max(1, -(-self.num_rows // present))
        self.rows = rows
        tiles_of = -(-counts // rows)  # tiles a class takes; none without samples
        first_tile = tiles_of.cumsum(0) - tiles_of
        first_row = counts.cumsum(0) - counts
        rank = torch.arange(self.num_rows, device=device) - first_row[sorted_labels]  # place within the class
        place = first_tile[sorted_labels] * rows + rank
        self.num_tiles = int(tiles_of.sum())
        self.classes = torch.repeat_interleave(
            torch.arange(num_classes, device=device), tiles_of, output_size=self.num_tiles
        )  # (T,)
        # Padding repeats row 0; nobody reads its scores, and its weight in every sum is zero.
        self.source = torch.zeros(self.num_tiles * rows, dtype=torch.long, device=device)
        self.source[place] = order
        self.place = torch.empty_like(order)
        self.place[order] = place

    def gather(self, x: Tensor) -> Tensor:
        """(N, D) -> (T, R, D)."""
        return x.index_select(0, self.source).view(self.num_tiles, self.rows, -1)

    def own_scores(self, tiles: Tensor, vectors: Tensor) -> Tensor:
        """Inner products of each row with the K vectors of its class.

        Args:
            tiles: (T, R, D) from :meth:`gather`.
            vectors: (C, K, D).

        Returns:
            (N, K), in the order of the labels.
        """
        products = torch.bmm(tiles, vectors[self.classes].transpose(1, 2))  # (T, R, K)
        return products.flatten(0, 1).index_select(0, self.place)

    def sums(self, tiles: Tensor, assignment: Tensor, num_subcentroids: int) -> tuple[Tensor, Tensor]:
        """Sum and number of the rows given to each sub-centroid.

        Args:
            tiles: (T, R, D).
            assignment: (N,) in [0, K).
            num_subcentroids: K.

        Returns:
            sums (C, K, D) and counts (C, K).
        """
        chosen = tiles.new_zeros(self.num_tiles * self.rows, num_subcentroids)
        chosen[self.place, assignment] = 1.0
        chosen = chosen.view(self.num_tiles, self.rows, num_subcentroids)
        parts = torch.bmm(chosen.transpose(1, 2), tiles)  # (T, K, D)
        shape = (self.num_classes, num_subcentroids)
        sums = tiles.new_zeros(*shape, tiles.shape[2]).index_add_(0, self.classes, parts)
        counts = tiles.new_zeros(shape).index_add_(0, self.classes, chosen.sum(1))
        return sums, counts
