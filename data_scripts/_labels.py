"""Data sets of images with a label for every pixel: are the pairs whole, and what may a label be?"""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _archives import THREADS
from _console import DataError, progress, size
from _disk import files_below
from PIL import Image

#: The value of a pixel that belongs to no class, in the label images that these scripts make.
IGNORED = 255

#: Every file is counted and paired; at most so many label images of a split, evenly spaced, are opened as well.
OPENED = 200


@dataclass(frozen=True)
class Split:
    """Images and label images of one split.

    Attributes:
        name: as the data set calls it.
        images: folder of the images below the data set's.
        labels: folder of the label images.
        count: how many pairs there must be.
        image_endings: what image files end in; the rest of the path is the key of the pair.
        label_ending: what label files end in.
    """

    name: str
    images: str
    labels: str
    count: int
    image_endings: tuple[str, ...] = (".jpg",)
    label_ending: str = ".png"


def check_pairs(folder: Path, split: Split, values: Iterable[int], keys: Iterable[str] | None = None) -> tuple:
    """Verify one split; return its row of the table: name, pairs, bytes.

    Args:
        folder: of the data set.
        split: what to look for.
        values: what a label's pixels may be.
        keys: the keys that there must be, where a list says so; others are then passed over.

    Raises:
        DataError: naming the first file that is missing, empty or wrong.
    """
    images = _by_key(folder / split.images, split.image_endings)
    labels = _by_key(folder / split.labels, (split.label_ending,))
    wanted = sorted(keys) if keys is not None else sorted(images.keys() | labels.keys())
    for key in wanted:
        if key not in images:
            raise DataError(f"{folder / split.images / key}{split.image_endings[0]} is missing")
        if key not in labels:
            raise DataError(f"{folder / split.labels / key}{split.label_ending} is missing")
    if len(wanted) != split.count:
        raise DataError(f"{folder}: {split.name} has {len(wanted):,} images, not {split.count:,}")
    for found in (images, labels):
        if empty := next((found[key][0] for key in wanted if found[key][1] == 0), None):
            raise DataError(f"{empty} is empty")
    allowed = np.zeros(1 << 16, dtype=bool)
    allowed[list(values)] = True
    sample = wanted[:: -(-len(wanted) // OPENED) or 1]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress(f"checking {split.name}", total=len(sample), unit="label") as bar,
    ):
        for _ in pool.map(lambda key: _check_label(images[key][0], labels[key][0], allowed), sample):
            bar.update()
    total = sum(found[key][1] for found in (images, labels) for key in wanted)
    return split.name, len(wanted), len(wanted), size(total)


def _by_key(folder: Path, endings: tuple[str, ...]) -> dict[str, tuple[Path, int]]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing")
    found = {}
    for name, length in files_below(folder).items():
        if ending := next((ending for ending in endings if name.endswith(ending)), None):
            found[name.removesuffix(ending)] = (folder / name, length)
    return found


def _check_label(image_path: Path, label_path: Path, allowed: np.ndarray) -> None:
    label = read_label(label_path.read_bytes(), str(label_path))
    wrong = label[~allowed[label]]
    if len(wrong):
        raise DataError(f"{label_path} has the value {wrong[0]}, which is no label of this data set")
    try:
        with Image.open(image_path) as image:
            height, width = image.height, image.width
    except OSError as error:
        raise DataError(f"{image_path} cannot be read as an image ({error}); prepare the data set again") from error
    if label.shape != (height, width):
        raise DataError(f"{label_path} is {label.shape[1]}x{label.shape[0]} but its image is {width}x{height}")


def read_label(content: bytes, name: str) -> np.ndarray:
    """A label image as (H, W) integers.

    Raises:
        DataError: if it cannot be read, or has colours where it should have numbers.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:  # Pillow raises both on damaged PNG files
        raise DataError(f"{name} cannot be read as an image ({error}); prepare the data set again") from error
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise DataError(f"{name} is a picture, not a map of labels: one whole number a pixel is needed")
    return pixels


def lookup(train_ids: dict[int, int], known: Iterable[int]) -> np.ndarray:
    """A table (256,) from label ids to train ids: ``IGNORED`` for known ids without a class, -1 for unknown ones."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(known)] = IGNORED
    table[list(train_ids)] = list(train_ids.values())
    return table


def translate(ids: np.ndarray, table: np.ndarray, name: str) -> np.ndarray:
    """Label ids (H, W) to train ids (H, W) uint8.

    Raises:
        DataError: for an id that the table does not know.
    """
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if low < 0 or high > 255:
        raise DataError(f"{name} has the id {low if low < 0 else high}, which the data set does not define")
    found = table[ids]
    if (found < 0).any():
        raise DataError(f"{name} has the id {int(ids[found < 0][0])}, which the data set does not define")
    return found.astype(np.uint8)


def save_label(labels: np.ndarray, path: Path) -> int:
    """Write (H, W) uint8 as an 8-bit grey PNG; return its bytes."""
    Image.fromarray(labels).save(path, format="PNG")
    return path.stat().st_size
