"""Data sets by name, found under a data root; images live on the training device as uint8.

>>> train, test = load("digits")
"""

import difflib
import os
from pathlib import Path

from .arrays import LabelledImages
from .cifar import load_cifar
from .coarse import COARSE, merged
from .embedded import load_digits
from .folders import load_folders
from .loader import DeviceLoader

#: Data sets with a loader of their own. Any other name is a folder of class folders under the data root.
NAMES = ("digits", "cifar10", "cifar100", *COARSE)

__all__ = ["NAMES", "DeviceLoader", "LabelledImages", "data_root", "load"]


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets are: ``root``, else the variable ``DNC_DATA``, else ``~/.cache/dnc``."""
    return Path(root or os.environ.get("DNC_DATA") or Path.home() / ".cache" / "dnc").expanduser()


def load(
    name: str, root: str | Path | None = None, *, image_size: int | None = None, download: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images of a data set.

    Args:
        name: ``digits`` (embedded), ``cifar10``, ``cifar100``, with merged classes ``cifar10_coarse`` (vehicles and
            animals) and ``cifar100_coarse`` (20 superclasses), or the name of a folder under the root that holds
            ``train/<class>/*`` and ``test/<class>/*`` (or ``val``).
        root: see :func:`data_root`.
        image_size: side to which images of a folder are brought; needed where they differ in size.
        download: fetch the data set if it is not there (CIFAR only).

    Raises:
        ValueError: for a name that is neither known nor a folder, with the nearest known one, or data that is
            damaged.
        FileNotFoundError: where the data is not at hand, saying what to run.
    """
    train, test = _load(name, data_root(root), image_size, download)
    sizes = [tuple(part.images.shape[1:3]) for part in (train, test)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{name}: training images are {sizes[0]} (height, width), test images {sizes[1]}; bring them to one size"
        )
    return train, test


def _load(name: str, where: Path, image_size: int | None, download: bool) -> tuple[LabelledImages, LabelledImages]:
    if name == "digits":
        return load_digits()
    if name in ("cifar10", "cifar100"):
        return load_cifar(name, where, download=download)
    if name in COARSE:
        fine, groups = COARSE[name]
        return tuple(merged(part, groups) for part in load_cifar(fine, where, download=download))
    if name and (where / name / "train").is_dir():
        return load_folders(where / name, image_size=image_size)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"unknown data set {name!r}.{hint} Known: {', '.join(NAMES)}, "
        f"or a folder with train/<class>/ and test/<class>/ at {where / name}"
    )
