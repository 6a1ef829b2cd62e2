"""CIFAR-10 and CIFAR-100, in any common form."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from .arrays import LabelledImages
from .folders import load_folders

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_TORCHVISION = {"cifar10": ("CIFAR10", "cifar-10-batches-py"), "cifar100": ("CIFAR100", "cifar-100-python")}


def load_cifar(name: str, root: Path, *, download: bool = False) -> tuple[LabelledImages, LabelledImages]:
    """Training (50,000) and test (10,000) images of 32x32.

    Looked for, in this order, under ``root`` and ``root/name``: ``name.npz`` (x_train, y_train, x_test, y_test,
    classes), torchvision's batches (checked against their published digests before they are opened), class folders.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: data root.
        download: let torchvision fetch it if nothing is found.

    Raises:
        FileNotFoundError: where there is none, saying what to run, or it cannot be fetched.
        ValueError: for a file that is damaged.
    """
    class_name, batches = _TORCHVISION[name]
    for folder in (root / name, root):
        if (folder / f"{name}.npz").is_file():
            return _load_npz(name, folder / f"{name}.npz")
        if (folder / batches).is_dir():
            return _load_torchvision(name, folder, class_name)
    if (root / name / "train").is_dir():
        return load_folders(root / name, image_size=32)
    if download:
        return _load_torchvision(name, root / name, class_name, download=True)
    raise FileNotFoundError(
        f"{name} not found under {root} (looked for {name}/{name}.npz, {name}/{batches} and {name}/train/<class>/). "
        f"Say where it is with --data-root or DNC_DATA, or fetch it: "
        f"python -c \"from torchvision.datasets import {class_name}; {class_name}('{root / name}', download=True)\""
    )


def _load_npz(name: str, path: Path) -> tuple[LabelledImages, LabelledImages]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*_ARRAYS, "classes") if key in file.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no .npz file ({error}); delete it and fetch it again") from error
    missing = [key for key in _ARRAYS if key not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it needs {', '.join(_ARRAYS)}")
    for split in ("train", "test"):
        pixels, labels = arrays[f"x_{split}"].dtype, arrays[f"y_{split}"].dtype
        if pixels != np.uint8 or labels.kind not in "iu":
            raise ValueError(f"{path}: x_{split} must be uint8 and y_{split} integers, got {pixels} and {labels}")
    count = 1 + max(int(arrays[key].max(initial=0)) for key in ("y_train", "y_test"))
    classes = tuple(str(each) for each in arrays.get("classes", range(count)))
    return tuple(
        LabelledImages(
            torch.from_numpy(arrays[f"x_{split}"]),
            torch.from_numpy(arrays[f"y_{split}"].astype(np.int64).reshape(-1)),
            classes,
            f"{name}, {'training' if split == 'train' else 'test'}",
        )
        for split in ("train", "test")
    )


def _load_torchvision(name: str, folder: Path, class_name: str, download: bool = False):
    import torchvision

    cls = getattr(torchvision.datasets, class_name)
    try:
        parts = [cls(folder, train=train, download=download) for train in (True, False)]
    except OSError as error:
        raise FileNotFoundError(f"{name} could not be fetched ({error}); see that there is a network") from error
    except RuntimeError as error:  # torchvision checks the digests of the batches before it unpickles them
        raise ValueError(
            f"{name} at {folder} is not what its publishers' digests say ({error}); delete it and fetch it again"
        ) from error
    return tuple(
        LabelledImages(
            torch.from_numpy(part.data), torch.tensor(part.targets), tuple(part.classes), f"{name}, {split}"
        )
        for part, split in zip(parts, ("training", "test"), strict=True)
    )
