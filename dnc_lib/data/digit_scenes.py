"""Scenes that need no download: scikit-learn's digits, large and small, before textured grounds."""

import hashlib
import itertools
import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .arrays import Drawn, LabelledImages
from .embedded import TEST_EVERY, load_digits

#: The number of the book's running example among scikit-learn's digits.
EXAMPLE = 1485
#: The test scene in which it stands, first of the scene's digits, which do not overlap there.
EXAMPLE_SCENE = 0
EXAMPLE_SIDE = 40

CLASSES = (*map(str, range(10)), "background")
BACKGROUND = 10
#: One colour a class, far apart; the background is dark.
COLOURS = np.array(
    [
        (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
        (227, 119, 194), (188, 189, 34), (23, 190, 207), (245, 215, 110), (40, 40, 40),
    ],
    dtype=np.uint8,
)  # fmt: skip

DIGITS_A_SCENE = (3, 6)
SIDES = (24, 54)  # of a digit with a margin of one cell around its 8 x 8, in pixels
CONTRAST = (60, 120)  # between a digit and the ground's mean, in grey levels
INK = 0.45  # a pixel shows a digit where its ink is at least so dense
OVER = 0.15  # at most this share of a digit may lie over other digits


class Digit(NamedTuple):
    """One of scikit-learn's digits."""

    number: int
    label: int
    ink: np.ndarray  # (10, 10) uint8: with a margin, so that strokes do not end at the edge


class Placed(NamedTuple):
    """A digit in a scene."""

    number: int  # among scikit-learn's digits
    label: int
    top: int
    left: int
    side: int


@dataclass(frozen=True, eq=False)
class DigitScenes(Drawn):
    """N scenes in memory, with the same methods as :class:`~dnc_lib.data.scenes.Scenes`.

    Attributes:
        images: (N, S, S) uint8, grey.
        masks: (N, S, S) uint8, the digit that a pixel shows, 10 for the background.
        digits: the digits of each scene, in the order in which they were laid down.
        name: of the part.
        classes: the 11 class names.
        colours: (11, 3) uint8.
    """

    images: np.ndarray
    masks: np.ndarray
    digits: tuple[tuple[Placed, ...], ...]
    name: str
    classes: tuple[str, ...] = CLASSES
    colours: np.ndarray = field(default_factory=COLOURS.copy)

    #: Any scene can be read at any time.
    indexable = True

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor, name: str = "") -> "DigitScenes":
        """The scenes at ``index`` (M,)."""
        index = torch.as_tensor(index).numpy()
        digits = tuple(self.digits[i] for i in index)
        return replace(
            self, images=self.images[index], masks=self.masks[index], digits=digits, name=name or self.name
        )

    def path(self, i: int) -> str:
        """What to call scene ``i``; it has no file."""
        return f"scene {i} of {self.name}"

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """Scene ``i`` as RGB, and its mask (S, S) uint8."""
        return Image.fromarray(self.images[i]).convert("RGB"), self.masks[i].copy()

    def channel_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (3,) each, on the scale 0..1."""
        images = torch.from_numpy(self.images)[..., None].expand(-1, -1, -1, 3)
        labels = torch.zeros(len(self), dtype=torch.long)
        return LabelledImages(images, labels, self.classes, self.name).channel_stats()

    def digest(self) -> str:
        """SHA-256 of images and masks, the first 16 digits: names the data in a manifest."""
        sha = hashlib.sha256(str(self.images.shape).encode())
        for part in (self.images, self.masks):
            sha.update(np.ascontiguousarray(part))
        return sha.hexdigest()[:16]


def make_digit_scenes(train: int = 500, test: int = 100, size: int = 96, seed: int = 0) -> dict[str, DigitScenes]:
    """The parts ``train`` and ``test``, of training and of test digits (``dnc_lib.data.embedded.load_digits``).

    The running example is kept from the training scenes, and is in test scene ``EXAMPLE_SCENE``.

    Args:
        train: training scenes.
        test: test scenes.
        size: S, the side of a scene, in pixels.
        seed: of everything; a scene depends on (seed, part, its number) alone.

    Raises:
        ValueError: for no scenes, or such as are too small for the digits.
    """
    if min(train, test) < 1:
        raise ValueError(f"digit_scenes: each part needs a scene or more, got {train} and {test}")
    if size < SIDES[1]:
        raise ValueError(f"digit_scenes: size must be {SIDES[1]} or more, the side of the largest digit, got {size}")
    training, held_out = _digits()
    example = next(digit for digit in training if digit.number == EXAMPLE)
    training = [digit for digit in training if digit.number != EXAMPLE]
    made = {}
    for which, (part, count, pool) in enumerate((("train", train, training), ("test", test, held_out))):
        scenes = []
        for i in range(count):
            rng = np.random.default_rng((seed, which, i))
            drawn = rng.choice(len(pool), rng.integers(*DIGITS_A_SCENE, endpoint=True), replace=False)
            digits = [pool[n] for n in drawn]
            # Twice as large is as likely as half as large.
            sides = [round(math.exp(rng.uniform(*map(math.log, SIDES)))) for _ in digits]
            if special := (part, i) == ("test", EXAMPLE_SCENE):
                digits, sides = [example, *digits], [EXAMPLE_SIDE, *sides]
            scenes.append(_compose(rng, size, digits, sides, 0.0 if special else OVER))
        images, masks, digits = zip(*scenes, strict=True)
        name = f"digit_scenes, {'training' if part == 'train' else part}"
        made[part] = DigitScenes(np.stack(images), np.stack(masks), digits, name)
    return made


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """(S, S) float32, mean 0 and deviation 1: noise of coarse and fine grains, in shares that chance decides."""
    whole = np.zeros((size, size), dtype=np.float32)
    for cells in (2, 5, 12, 30):
        noise = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        whole += np.float32(rng.uniform(0.2, 1)) * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    return (whole - whole.mean()) / whole.std()


def _digits() -> tuple[list[Digit], list[Digit]]:
    """The training and the test digits."""
    parts = []
    for is_test, part in enumerate(load_digits()):
        numbers = (n for n in itertools.count() if (n % TEST_EVERY == 1) == is_test)
        ink = np.pad(part.images[..., 0].numpy(), ((0, 0), (1, 1), (1, 1)))
        parts.append([Digit(*each) for each in zip(numbers, part.labels.tolist(), ink, strict=False)])
    return tuple(parts)


def _compose(
    rng: np.random.Generator, size: int, digits: list[Digit], sides: list[int], over: float
) -> tuple[np.ndarray, np.ndarray, tuple[Placed, ...]]:
    """A scene (S, S) uint8, its mask, and where the digits stand, as far as there was room for them."""
    middle = rng.uniform(90, 165)
    scene = np.float32(middle) + np.float32(rng.uniform(6, 18)) * texture(rng, size)
    mask = np.full((size, size), BACKGROUND, dtype=np.uint8)
    placed = []
    for digit, side in zip(digits, sides, strict=True):
        grown = Image.fromarray(digit.ink).resize((side, side), Image.Resampling.BICUBIC)
        density = np.asarray(grown, dtype=np.float32) / 255
        shown = density >= INK
        place = _free_place(rng, mask, shown, over)
        if place is None:
            continue
        top, left = place
        window = np.s_[top : top + side, left : left + side]
        level = np.float32(middle + rng.choice((-1, 1)) * rng.uniform(*CONTRAST))
        scene[window] += density * (level - scene[window])
        mask[window][shown] = digit.label
        placed.append(Placed(digit.number, digit.label, top, left, side))
    scene += 3 * rng.standard_normal(scene.shape, dtype=np.float32)  # a camera's noise
    return scene.round().clip(0, 255).astype(np.uint8), mask, tuple(placed)


def _free_place(rng: np.random.Generator, mask: np.ndarray, shown: np.ndarray, over: float) -> tuple[int, int] | None:
    """Where at most a share ``over`` of a digit lies over others; None where twenty tries found no such place."""
    side, free = len(shown), mask == BACKGROUND
    allowed = over * np.count_nonzero(shown)
    for top, left in rng.integers(0, len(mask) - side, (20, 2), endpoint=True).tolist():
        if np.count_nonzero(shown & ~free[top : top + side, left : left + side]) <= allowed:
            return top, left
    return None
