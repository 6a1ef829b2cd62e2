"""Images with a label for every pixel: file names in memory, images and masks read when they are asked for."""

import difflib
import hashlib
import io
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..metrics import IGNORED
from .arrays import Drawn, LabelledImages
from .digit_scenes import DigitScenes, make_digit_scenes
from .folders import to_rgb
from .scene_layouts import LAYOUTS, SCRIPTS, UNKNOWN, find_folders


@dataclass(frozen=True, eq=False)
class Scenes(Drawn):
    """N images with their masks; few bytes a file, and nothing open, so that workers can share it.

    Attributes:
        images: the N image files.
        masks: the N mask files, 8-bit grey or palette, one number a pixel.
        classes: the C class names.
        name: of the data set and split.
        table: (256,) int16, what a number in a mask stands for: a class, 0 to C - 1, or 255 for none; -1 for numbers
            that must not occur.
        colours: (C, 3) uint8, the colours that the data set paints its classes in; None where it has none.

    Raises:
        ValueError: for no images, or another number of masks.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    name: str
    table: np.ndarray = field(repr=False)
    colours: np.ndarray | None = field(default=None, repr=False)

    #: Any image can be read at any time.
    indexable = True

    def __post_init__(self):
        if len(self.images) != len(self.masks):
            raise ValueError(f"{self.name}: {len(self.images)} images but {len(self.masks)} masks")
        if not self.images:
            raise ValueError(f"{self.name}: no images")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor, name: str = "") -> "Scenes":
        """The scenes at ``index`` (M,)."""
        index = torch.as_tensor(index).tolist()
        images, masks = (tuple(files[i] for i in index) for files in (self.images, self.masks))
        return replace(self, images=images, masks=masks, name=name or self.name)

    def path(self, i: int) -> str:
        """Where image ``i`` is."""
        return str(self.images[i])

    def read(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """Image ``i``, as RGB of whatever size it has (H, W), and its mask (H, W) uint8: classes, 255 for none.

        Raises:
            ValueError: for a file that cannot be read, a mask that is none, or another size than its image, or has
                numbers that stand for nothing; each names the file.
        """
        image = read_image(self.images[i])
        mask = self._translated(read_mask(self.masks[i]), self.masks[i])
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"{self.masks[i]} is {mask.shape[1]}x{mask.shape[0]} but its image {self.images[i]} is "
                f"{image.width}x{image.height}: bring both to one size"
            )
        return image, mask

    def _translated(self, numbers: np.ndarray, path: Path) -> np.ndarray:
        labels = self.table[numbers]
        if labels.size and labels.min() == UNKNOWN:
            values, counts = np.unique(numbers[labels == UNKNOWN], return_counts=True)
            strange = ", ".join(f"{value} ({count} pixels)" for value, count in zip(values[:5], counts, strict=False))
            raise ValueError(
                f"{path} has numbers that stand for nothing in {self.name}: {strange}{', ...' * (len(values) > 5)}; "
                f"classes are {self._numbers(classes=True)}, no class is {self._numbers(classes=False)}"
            )
        return labels.astype(np.uint8)

    def _numbers(self, classes: bool) -> str:
        """The numbers in a mask that stand for classes, or else for no class, as words."""
        numbers = np.flatnonzero((self.table != UNKNOWN) & ((self.table != IGNORED) == classes)).tolist()
        in_a_row = len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1
        return f"{numbers[0]} to {numbers[-1]}" if in_a_row else ", ".join(map(str, numbers))

    def channel_stats(self, size: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (3,) each, on the scale 0..1: an estimate from at most ``size``
        images, 64 x 64 points of each."""
        some = self.sample(min(size, len(self)))
        points = [read_image(path).resize((64, 64), Image.Resampling.NEAREST) for path in some.images]
        images = torch.from_numpy(np.stack([np.asarray(image) for image in points]))
        labels = torch.zeros(len(some), dtype=torch.long)
        return LabelledImages(images, labels, self.classes, self.name).channel_stats()

    def digest(self) -> str:
        """SHA-256 of classes, names and sizes, the first 16 digits: names data in a manifest, unread."""
        sha = hashlib.sha256("\n".join(self.classes).encode())
        for files in (self.images, self.masks):
            root = os.path.commonpath([path.parent for path in files])
            for path in sorted(files):
                sha.update(repr((os.path.relpath(path, root), path.stat().st_size)).encode())
        return sha.hexdigest()[:16]


def open_scenes(dataset: str, root: str | Path | None = None) -> dict[str, Scenes] | dict[str, DigitScenes]:
    """The parts of a data set: ``train``, ``test``, and ``validation`` where it has one of its own.

    Args:
        dataset: ``digit_scenes`` (embedded), ``camvid``, ``ade20k``, ``cityscapes``, ``coco_stuff10k``, or the name
            of a folder under the root with images/{train,test}, masks/{train,test} and classes.txt (see
            :func:`~dnc_lib.data.scene_layouts.find_folders`).
        root: see :func:`dnc_lib.data.data_root`.

    Raises:
        FileNotFoundError: where the data is not at hand, or an image or mask lacks its partner.
        ValueError: for a name that is neither known nor a folder, with the nearest known one; or classes that are
            not named as they should.
    """
    from . import data_root

    if dataset == "digit_scenes":
        return make_digit_scenes()
    where = data_root(root) / dataset
    if not dataset or not where.is_dir():
        _not_there(dataset, where)
    layout = LAYOUTS.get(dataset, find_folders)(where)
    return {
        part: Scenes(
            *zip(*pairs, strict=True),
            classes=layout.classes,
            name=f"{dataset}, {'training' if part == 'train' else part}",
            table=layout.table,
            colours=layout.colours,
        )
        for part, pairs in layout.pairs.items()
    }


def _not_there(dataset: str, where: Path) -> None:
    if dataset in LAYOUTS:
        raise FileNotFoundError(
            f"{dataset} not found: there is no {where}. Say where it is with --data-root or DNC_DATA, or prepare it: "
            f"python data_scripts/{SCRIPTS.get(dataset, dataset)}.py"
        )
    known = (*LAYOUTS, "digit_scenes")
    near = difflib.get_close_matches(dataset, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"unknown data set of scenes {dataset!r}.{hint} Known: {', '.join(sorted(known))}, or a folder with "
        f"images/{{train,test}}/, masks/{{train,test}}/ and classes.txt at {where}"
    )


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        ValueError: where it cannot be read, by its name.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            return to_rgb(file)
    except Exception as error:  # a damaged file fails a decoder in any way it likes
        raise _unreadable(path, error) from error


def read_mask(path: Path) -> np.ndarray:
    """A mask file as it is: (H, W) uint8.

    Raises:
        ValueError: where it cannot be read, or is not 8-bit grey or palette, by its name.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            mode, bands = file.mode, len(file.getbands())
            numbers = np.asarray(file) if mode in ("L", "P", "1") else None
    except Exception as error:
        raise _unreadable(path, error) from error
    if numbers is None:
        has = f"{bands} channels ({mode})" if bands > 1 else f"numbers of more than 8 bits ({mode})"
        raise ValueError(
            f"{path} has {has}, but a mask has one number of 8 bits a pixel, its class: save it as a grey or palette "
            f"PNG file"
        )
    return numbers.astype(np.uint8, copy=False)


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"{path} cannot be read as an image ({reason}); remove or replace it")
