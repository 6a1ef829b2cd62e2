"""A tree of class folders, read into memory."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .arrays import LabelledImages

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def load_folders(folder: Path, *, image_size: int | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Read the images below ``folder/train/<class>/`` and ``folder/test/<class>/`` (or ``val``).

    Whatever starts with a dot is passed over. Every image becomes RGB: grey is repeated, 16-bit grey is scaled to 8,
    transparent places turn white.

    Args:
        folder: the tree; classes are the sub-folders of ``train``, in alphabetical order.
        image_size: bring the shorter side to this length and cut the centre square; without it all images must
            have the first one's size.

    Raises:
        FileNotFoundError: where a part is missing.
        ValueError: for a file that is no image, a size that differs, classes that do not match, or a class of
            ``train`` without images.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be 1 or more, got {image_size}")
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{folder} has train/ but neither test/ nor val/: put held-out images there")
    classes = tuple(class_folders(folder / "train"))
    if not classes:
        raise FileNotFoundError(f"{folder / 'train'} has no class folders")
    strangers = [name for name in class_folders(test) if name not in classes]
    if strangers:
        raise ValueError(f"{test} has classes that {folder / 'train'} lacks: {', '.join(strangers[:5])}")
    train_part = _read(folder / "train", classes, image_size, f"{folder.name}, training")
    empty = [name for label, name in enumerate(classes) if not (train_part.labels == label).any()]
    if empty:
        raise ValueError(
            f"{folder / 'train'} has no images for {', '.join(empty[:5])}: put some there or remove the folder"
        )
    return train_part, _read(test, classes, image_size, f"{folder.name}, test")


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders, in alphabetical order; hidden ones (.ipynb_checkpoints) are no classes."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """The images below a class folder, in alphabetical order."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read(folder: Path, classes: tuple[str, ...], image_size: int | None, name: str) -> LabelledImages:
    images, labels, first = [], [], None
    for label, class_name in enumerate(classes):
        for path in _image_files(folder / class_name):
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
            image = to_rgb(file)
    except Exception as error:  # a damaged file fails a decoder in any way it likes
        raise ValueError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
    if image_size and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        size = [max(image_size, round(side * scale)) for side in image.size]
        left, top = ((side - image_size) // 2 for side in size)
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: grey is repeated, 16-bit grey scaled to 8, transparent places turn white."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its grey values do not fit 16 bits; save it with 8")
        return Image.fromarray((pixels / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its grey values are floating-point, of no agreed range; save it with 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
