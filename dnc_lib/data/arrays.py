"""A labelled set of images of one size, held in memory as uint8."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


def balanced_order(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """The indices of ``labels`` (N,) at random, the classes taking turns: any beginning is as even as it goes."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = torch.sort(labels[order], stable=True)
    counts = torch.bincount(labels, minlength=num_classes)
    first = counts.cumsum(0) - counts
    turn = torch.arange(len(labels)) - first[by_class.values]
    return order[by_class.indices[torch.sort(turn, stable=True).indices]]


class Drawn:
    """What data sets share that have a length, ``classes``, a ``name`` and ``subset(index, name)``: parts of them,
    drawn at random."""

    def _order(self, seed: int) -> Tensor:
        """The N indices at random."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    def sample(self, size: int, seed: int = 0) -> Self:
        """``size`` images drawn at random; where each has one label, the classes as even as they go."""
        if not 0 < size <= len(self):
            raise ValueError(f"{self.name}: cannot draw {size} of {len(self)} images")
        return self.subset(self._order(seed)[:size].sort().values)

    def split(self, held_out: int, seed: int = 0) -> tuple[Self, Self]:
        """The rest, and ``held_out`` images drawn as :meth:`sample` draws."""
        if not 0 < held_out < len(self):
            raise ValueError(f"{self.name}: cannot hold out {held_out} of {len(self)} images")
        order = self._order(seed)
        rest, held = order[held_out:].sort().values, order[:held_out].sort().values
        return self.subset(rest), self.subset(held, f"{self.name}, held out")


class Labelled(Drawn):
    """What data sets share whose images have one label each, ``labels`` (N,)."""

    def __len__(self) -> int:
        return len(self.labels)

    def _order(self, seed: int) -> Tensor:
        return balanced_order(self.labels, self.num_classes, seed)

    def without(self, left_out: Sequence[int]) -> Self:
        """The images of the other classes, which close ranks: their labels count from 0 again.

        Args:
            left_out: class numbers.

        Raises:
            ValueError: for a class that does not exist, or where none would be left.
        """
        if wrong := [c for c in left_out if not 0 <= c < self.num_classes]:
            raise ValueError(f"{self.name}: there is no class {wrong[0]} to leave out of {self.num_classes}")
        stays = torch.ones(self.num_classes, dtype=torch.bool)
        stays[list(left_out)] = False
        index = stays[self.labels].nonzero().squeeze(1)
        if len(index) == 0:
            raise ValueError(f"{self.name}: no image is left without the classes {', '.join(map(str, left_out))}")
        rest = self.subset(index)
        ranks = stays.cumsum(0) - 1
        classes = tuple(name for name, kept in zip(self.classes, stays.tolist(), strict=True) if kept)
        return replace(rest, labels=ranks[rest.labels], classes=classes)


@dataclass(frozen=True, eq=False)
class LabelledImages(Labelled):
    """Images of one size with their labels.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) long, in [0, C).
        classes: the C class names.
        name: of the data set and split.

    Raises:
        ValueError: for images of another type or shape, or labels that do not fit them or the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str = ""

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[3] != 3:
            shape = tuple(self.images.shape)
            raise ValueError(f"{self.name}: images must be uint8 (N, H, W, 3), got {self.images.dtype} {shape}")
        if self.labels.dtype != torch.long or self.labels.dim() != 1:
            shape = tuple(self.labels.shape)
            raise ValueError(f"{self.name}: labels must be int64 (N,), got {self.labels.dtype} {shape}")
        if len(self.labels) != len(self.images):
            raise ValueError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels")
        if len(self.images) == 0:
            raise ValueError(f"{self.name}: no images")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            wrong = low if low < 0 else high
            raise ValueError(f"{self.name}: label {wrong} is out of range for {len(self.classes)} classes")

    def subset(self, index: Tensor, name: str = "") -> "LabelledImages":
        """The images at ``index`` (M,)."""
        return replace(self, images=self.images[index], labels=self.labels[index], name=name or self.name)

    def channel_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (3,) each, on the scale 0..1."""
        total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for part in self.images.split(1024):
            values = part.reshape(-1, 3).T.float() / 255  # (3, pixels): one long row a channel sums fast
            total += values.sum(1)
            squares += values.square().sum(1)
        count = self.images.numel() / 3
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp_min(1e-6).sqrt().float()

    def digest(self) -> str:
        """SHA-256 of images and labels, the first 16 digits: names the data in a manifest."""
        return self._digest

    @cached_property
    def _digest(self) -> str:  # of 50,000 images it takes half a second, and anchoring asks again and again
        sha = hashlib.sha256(str(tuple(self.images.shape)).encode())
        sha.update(self.images.contiguous().numpy())
        sha.update(self.labels.contiguous().numpy())
        return sha.hexdigest()[:16]
