"""A tree of class folders, read into memory."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .arrays import LabelledImages

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def load_folders(folder: Path, *, image_size: int | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Read ``folder/train/<class>/*`` and ``folder/test/<class>/*`` (or ``val``).

    Args:
        folder: the tree; classes are the sub-folders of ``train``, in alphabetical order.
        image_size: bring the shorter side to this length and cut the centre square; without it all images must
            have the first one's size.

    Raises:
        FileNotFoundError: where a part is missing.
        ValueError: for a file that is no image, a size that differs, or classes that do not match.
    """
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{folder} has train/ but neither test/ nor val/: put held-out images there")
    classes = tuple(sorted(path.name for path in (folder / "train").iterdir() if path.is_dir()))
    if not classes:
        raise FileNotFoundError(f"{folder / 'train'} has no class folders")
    strangers = sorted(path.name for path in test.iterdir() if path.is_dir() and path.name not in classes)
    if strangers:
        raise ValueError(f"{test} has classes that {folder / 'train'} lacks: {', '.join(strangers[:5])}")
    return (
        _read(folder / "train", classes, image_size, f"{folder.name}, training"),
        _read(test, classes, image_size, f"{folder.name}, test"),
    )


def _read(folder: Path, classes: tuple[str, ...], image_size: int | None, name: str) -> LabelledImages:
    images, labels, first = [], [], None
    for label, class_name in enumerate(classes):
        for path in sorted((folder / class_name).glob("*")):
            if path.suffix.lower() not in SUFFIXES:
                continue
            image = _read_image(path, image_size)
            first = first or (path, image.shape)
            if image.shape != first[1]:
                raise ValueError(
                    f"{path} is {image.shape[1]}x{image.shape[0]} but {first[0]} is {first[1][1]}x{first[1][0]}: "
                    f"give image_size to bring all to one size"
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise FileNotFoundError(f"no images in the class folders of {folder} (read: {', '.join(sorted(SUFFIXES))})")
    return LabelledImages(torch.from_numpy(np.stack(images)), torch.tensor(labels), classes, name)


def _read_image(path: Path, image_size: int | None) -> np.ndarray:
    """(H, W, 3) uint8."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
    if image_size and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        size = [max(image_size, round(side * scale)) for side in image.size]
        left, top = ((side - image_size) // 2 for side in size)
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)
