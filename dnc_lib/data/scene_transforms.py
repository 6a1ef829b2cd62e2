"""How training scenes are varied: image and mask are scaled, cut and mirrored together, the image is recoloured."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..metrics import IGNORED

#: Crops that are drawn before one is taken in which a class has more than its share.
TRIES = 10

#: RGB to brightness and the two coordinates of colour, as NTSC has them.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class SceneAugmentation:
    """A crop of fixed size from the scene at a random scale, perhaps mirrored, recoloured.

    Every number is drawn from torch's global generator; a loader lends it one (:func:`dnc_lib.randomness.seeded`).

    Attributes:
        crop_size: (height, width) of the result.
        scale: least and largest factor by which both sides of the scene are multiplied.
        class_share: a crop in which one class has this share of the labelled pixels, or more, is drawn again, ten
            times at most; 1 takes any crop.
        flip: mirror half of the scenes.
        color_jitter: how much brightness, contrast and saturation vary, and a tenth of it how far the hue turns.
        shorter_side: first bring the scene's shorter side to this length; 0 takes the scene as it is.

    Raises:
        ValueError: for settings out of range.
    """

    crop_size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    class_share: float = 0.75
    flip: bool = True
    color_jitter: float = 0.5
    shorter_side: int = 0

    def __post_init__(self):
        if len(self.crop_size) != 2 or min(self.crop_size) < 1:
            raise ValueError(f"crop_size must be (height, width), 1 or more each, got {self.crop_size}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two factors, 0 < least <= largest, got {self.scale}")
        if not 0 < self.class_share <= 1:
            raise ValueError(f"class_share must be a share, above 0 and up to 1, got {self.class_share}")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter must be 0 to 1, got {self.color_jitter}")
        if self.shorter_side < 0:
            raise ValueError(f"shorter_side must be 0 or more, got {self.shorter_side}")

    def __call__(
        self, image: Image.Image, mask: np.ndarray, fill: tuple[int, int, int] = (124, 116, 104)
    ) -> tuple[Tensor, Tensor]:
        """One random view of a scene.

        Args:
            image: (H, W) RGB.
            mask: (H, W) uint8, 255 for no class.
            fill: the colour right of and below a scene that is smaller than the crop; a loader gives the mean.

        Returns:
            image (3, h, w) uint8 and mask (h, w) uint8, 255 where the image is filled.
        """
        size = self._scaled(mask.shape)
        box, mask = self._crop(mask, size)
        image = resized_crop(image, size, box)
        if self.flip and torch.rand(()) < 0.5:
            image, mask = F.horizontal_flip(image), mask[:, ::-1]
        if self.color_jitter:
            image = self._recoloured(image)
        pixels, labels = F.pil_to_tensor(image), torch.from_numpy(np.ascontiguousarray(mask))
        below, right = (whole - part for whole, part in zip(self.crop_size, labels.shape, strict=True))
        if below or right:
            filled = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, *self.crop_size)
            filled[:, : labels.shape[0], : labels.shape[1]] = pixels
            pixels, labels = filled, F.pad(labels[None], [0, 0, right, below], fill=IGNORED)[0]
        return pixels, labels

    def _recoloured(self, image: Image.Image) -> Image.Image:
        by = self.color_jitter
        return rotate_hue(v2.ColorJitter(by, by, by)(image), _uniform(-by / 10, by / 10))

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which a scene of this ``size`` is brought."""
        factor = _uniform(*self.scale)
        if self.shorter_side:
            factor *= self.shorter_side / min(size)
        return tuple(max(1, round(side * factor)) for side in size)

    def _crop(self, mask: np.ndarray, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """A box (top, left, height, width) in the scaled scene, and the mask there."""
        height, width = (min(whole, part) for whole, part in zip(size, self.crop_size, strict=True))
        for _ in range(TRIES):
            top, left = (int(torch.randint(0, room + 1, ())) for room in (size[0] - height, size[1] - width))
            box = top, left, height, width
            part = nearest_crop(mask, size, box)
            if self.class_share == 1 or largest_share(part) < self.class_share:
                break
            if (height, width) == size:  # there is no other crop
                break
        return box, part


def resized_crop(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """What ``box`` (top, left, height, width) shows of an image brought to ``size`` (height, width), bilinear with
    antialiasing. Only what the box needs is computed."""
    top, left, height, width = box
    if size == (image.height, image.width):
        return image.crop((left, top, left + width, top + height))
    rows, columns = image.height / size[0], image.width / size[1]
    # Pillow's filter looks beyond the box, so nothing shows where it ends.
    source = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
    source = tuple(min(edge, side) for edge, side in zip(source, 2 * (image.width, image.height), strict=True))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=source)


def nearest_crop(mask: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """What ``box`` (top, left, height, width) shows of a mask brought to ``size`` (height, width): each pixel has the
    label at its middle."""
    rows, columns = (
        ((start + np.arange(length) + 0.5) * (old / new)).astype(np.intp)
        for start, length, old, new in zip(box[:2], box[2:], mask.shape, size, strict=True)
    )
    return mask[rows][:, columns]


def largest_share(mask: np.ndarray) -> float:
    """The share of the labelled pixels that the largest class has; 1 where none is labelled."""
    counts = Image.fromarray(mask).histogram()[:IGNORED]
    return max(counts) / labelled if (labelled := sum(counts)) else 1.0


def rotate_hue(image: Image.Image, turn: float) -> Image.Image:
    """An RGB image whose colours are turned about the grey axis; what is grey stays, and so does the brightness.

    One matrix for all pixels: the turn of the colour plane of YIQ. The way over HSV takes ten times as long.

    Args:
        image: RGB.
        turn: as a share of a full turn, -0.5 to 0.5; above 0 red goes towards green.
    """
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    plane = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    matrix = np.linalg.inv(_YIQ) @ plane @ _YIQ
    return image.convert("RGB", tuple(np.pad(matrix, ((0, 0), (0, 1))).ravel()))


def _uniform(least: float, largest: float) -> float:
    return least + (largest - least) * float(torch.rand(()))
