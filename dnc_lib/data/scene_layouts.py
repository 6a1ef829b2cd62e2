"""Where the images and the masks of each data set of scenes lie, and what the numbers in its masks stand for."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..metrics import IGNORED
from .pairs import Pairs, pair_files, pair_listed

#: A number that must not occur in a mask.
UNKNOWN = -1

#: CamVid's classes in the order of their numbers, and the colours that they are painted in.
CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
#: The classes of Cityscapes that are scored, in the order of their train ids: label id and colour.
CITYSCAPES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}


class Layout(NamedTuple):
    """A data set as it was found."""

    pairs: dict[str, Pairs]  # of each part: images and their masks
    classes: tuple[str, ...]
    table: np.ndarray  # (256,): number in a mask to class, IGNORED for no class, UNKNOWN for what must not occur
    colours: np.ndarray | None = None  # (C, 3) uint8


def value_table(values: Iterable[int], no_class: Iterable[int] = ()) -> np.ndarray:
    """(256,) int16: ``values`` become 0, 1, ... in their order, ``no_class`` IGNORED, all other numbers UNKNOWN."""
    table = np.full(256, UNKNOWN, dtype=np.int16)
    table[list(no_class)] = IGNORED
    for label, value in enumerate(values):
        table[value] = label
    return table


def find_camvid(where: Path) -> Layout:
    """SegNet's form: train, val, test and trainannot, valannot, testannot; 11 is void."""
    parts = {"train": "train", "validation": "val", "test": "test"}
    pairs = {part: pair_files(where / name, where / f"{name}annot") for part, name in parts.items()}
    return Layout(pairs, tuple(CAMVID), value_table(range(11), [11]), _palette(CAMVID.values()))


def find_ade20k(where: Path) -> Layout:
    """The challenge of 2016: images and annotations, {training,validation}; 1..150 are classes, 0 is all else."""
    pairs = {
        part: pair_files(where / "images" / name, where / "annotations" / name, [".jpg"])
        for part, name in (("train", "training"), ("test", "validation"))
    }
    classes = _ade20k_names(where / "objectInfo150.txt")
    return Layout(pairs, classes, value_table(range(1, len(classes) + 1), [0]))


def find_cityscapes(where: Path) -> Layout:
    """leftImg8bit and gtFine, {train,val}/<city>. Masks of train ids where there are any, else those of label ids,
    of which the classes that are not scored become no class."""
    images, masks = where / "leftImg8bit", where / "gtFine"
    train_ids = any((masks / "train").glob("*/*_gtFine_labelTrainIds.png"))
    ending = "_gtFine_labelTrainIds.png" if train_ids else "_gtFine_labelIds.png"
    pairs = {
        part: pair_files(images / name, masks / name, ["_leftImg8bit.png"], ending)
        for part, name in (("train", "train"), ("test", "val"))
    }
    ids, colours = zip(*CITYSCAPES.values(), strict=True)
    table = value_table(range(19), [255]) if train_ids else value_table(ids, range(34))
    return Layout(pairs, tuple(CITYSCAPES), table, _palette(colours))


def find_coco_stuff(where: Path) -> Layout:
    """images/*.jpg, annotations/*.png, and imageLists/{train,test}.txt; 255 is unlabelled."""
    pairs = {
        part: pair_listed(where / "imageLists" / f"{part}.txt", where / "images", where / "annotations")
        for part in ("train", "test")
    }
    classes = class_names(where / "classes.txt")
    return Layout(pairs, classes, value_table(range(len(classes)), [255]))


def find_folders(where: Path) -> Layout:
    """Anyone's own: images/{train,test}, masks/{train,test}, classes.txt with a name a line; a mask's number is that
    of the line, from 0, and 255 is no class.

    ``val`` stands for ``test`` where there is no ``test``; beside it, it is the validation part.
    """
    if not (where / "images" / "train").is_dir():
        needs = "images/{train,test}/, masks/{train,test}/ and classes.txt"
        raise FileNotFoundError(f"{where} is no data set of scenes: it needs {needs}")
    parts = {"train": "train", "test": "test" if (where / "images" / "test").is_dir() else "val"}
    if parts["test"] == "test" and (where / "images" / "val").is_dir():
        parts["validation"] = "val"
    pairs = {part: pair_files(where / "images" / name, where / "masks" / name) for part, name in parts.items()}
    classes = class_names(where / "classes.txt")
    return Layout(pairs, classes, value_table(range(len(classes)), [255]))


#: How each data set is found below its own folder. Any other name is a folder in the form of :func:`find_folders`.
LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "camvid": find_camvid,
    "ade20k": find_ade20k,
    "cityscapes": find_cityscapes,
    "coco_stuff10k": find_coco_stuff,
}
#: The script that prepares each of them.
SCRIPTS = {"coco_stuff10k": "coco_stuff"}


def class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line, up to a tab if there is one.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for no names, more than 255, an empty one, or one that comes twice.
    """
    return _checked([line.partition("\t")[0].strip() for line in _lines(path)], path)


def _ade20k_names(path: Path) -> tuple[str, ...]:
    """The first name of each class; its number comes first in the line, its names come last."""
    rows = [line.split("\t") for line in _lines(path)[1:]]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2 or row[0].strip() != str(number):
            raise ValueError(f"{path}: line {number + 1} should begin with {number} and a tab, and end with a name")
    return _checked([row[-1].split(",")[0].split(";")[0].strip() for row in rows], path)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it names the classes")
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as such") from error


def _checked(names: list[str], path: Path) -> tuple[str, ...]:
    if not 0 < len(names) <= IGNORED:
        raise ValueError(f"{path} names {len(names)} classes; it must be 1 to {IGNORED}")
    if "" in names:
        raise ValueError(f"{path}: line {names.index('') + 1} is empty; each line names a class")
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise ValueError(f"{path} names {twice!r} twice")
    return tuple(names)


def _palette(colours: Iterable[tuple[int, int, int]]) -> np.ndarray:
    return np.array(list(colours), dtype=np.uint8)
