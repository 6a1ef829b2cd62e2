"""Mixup and CutMix: timm's, with randomness that depends on the step alone."""

import numpy as np
from timm.data import Mixup
from torch import Tensor

from .randomness import seeded


class Mixer:
    """Mix some batches, leave the others as they are.

    Which batches are mixed, and how, depends on (seed, step, rank) alone, so a resumed run mixes the same ones. All
    ranks mix the same steps, each with a share of its own.

    Args:
        num_classes: C, how many classes there are.
        mixup: strength (alpha) of Mixup, 0 for none.
        cutmix: strength of CutMix, 0 for none; where both are on, each gets half of the mixed batches.
        probability: share of batches that are mixed.
        label_smoothing: share of each label spread over all classes.
        seed: of everything here.
        rank: of this process.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float,
        cutmix: float,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
        seed: int = 0,
        rank: int = 0,
    ):
        self.probability, self.seed, self.rank = probability, seed, rank
        self._mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    def mixes(self, step: int) -> bool:
        """Whether the batch of this step is mixed; the same on every rank."""
        return float(np.random.default_rng((self.seed, step)).random()) < self.probability

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixed images (B, 3, H, W) and their soft labels (B, C); B must be even.

        Raises:
            ValueError: for an odd batch: images are mixed in pairs.
        """
        if len(images) % 2:
            raise ValueError(f"Mixup and CutMix need an even number of images a process and pass, got {len(images)}")
        with seeded(self.seed, step, self.rank):  # timm draws from numpy's global numbers
            return self._mixup(images.clone(), labels)
