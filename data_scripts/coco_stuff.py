"""Prepare COCO-Stuff-10k, version 1.1: 10,000 photographs with a label for every pixel, 171 classes.

    python data_scripts/coco_stuff.py             fetch it (2.0 GB), verify it, lay it out
    python data_scripts/coco_stuff.py --check     verify what is there

Source: http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip. Its publishers
state no checksum: counts, pairs, every label id and the labels of an even sample are verified, and the SHA-256 seen
is printed for you to pin. Needs scipy, which reads the published MATLAB files.

Made: coco_stuff10k/images/*.jpg and coco_stuff10k/imageLists/{train,test}.txt (9,000 and 1,000 names) as published;
coco_stuff10k/annotations/*.png from the .mat files: 0..170 for the classes in the order of their ids, 255 for
unlabelled pixels, which are ignored; and coco_stuff10k/classes.txt, the 171 names in that order.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from _archives import Archive, Member, copy, extract_zip, plan_zip
from _coco_names import NAMES
from _console import DataError
from _labels import IGNORED, Split, check_pairs, lookup, save_label, translate
from _matlab import read_mat
from _prepare import DataSet, Layout
from _prepare import main as run_script

ARCHIVE = Archive(
    "cocostuff-10k-v1.1.zip",
    url="http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip",
)

#: Label ids are 1..182, 0 is unlabelled. These eleven of COCO's things were never drawn, and are no classes.
NEVER_DRAWN = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
CLASS_IDS = tuple(label for label in range(1, 183) if label not in NEVER_DRAWN)
#: (256,): label id to train id.
TRAIN_IDS = lookup({label: train for train, label in enumerate(CLASS_IDS)}, [0])
VALUES = (*range(len(CLASS_IDS)), IGNORED)

WANTED = re.compile(r"(?:[^/]+/)?(images/[^/]+\.jpg|annotations/[^/]+\.mat|imageLists/(?:train|test)\.txt)")


@dataclass(frozen=True)
class COCOStuff:
    """What is published; tests put miniatures in its place."""

    archive: Archive = ARCHIVE
    train: int = 9_000
    test: int = 1_000

    def check(self, folder: Path) -> list[tuple]:
        """Verify both splits below ``folder`` by the published lists."""
        rows, lists = [], {}
        for name in ("train", "test"):
            path = folder / "imageLists" / f"{name}.txt"
            if not path.is_file():
                raise DataError(f"{path} is missing")
            lists[name] = path.read_text(encoding="utf8").split()
            if len(set(lists[name])) != len(lists[name]):
                raise DataError(f"{path} names an image twice")
            rows.append(
                check_pairs(folder, Split(name, "images", "annotations", getattr(self, name)), VALUES, lists[name])
            )
        if both := set(lists["train"]) & set(lists["test"]):
            raise DataError(f"{folder / 'imageLists'}: {min(both)} is in train.txt and in test.txt")
        return rows


def plan(paths: list[Path]) -> Layout:
    """Images and lists as they are, annotations as PNG."""

    def place(name: str) -> str | None:
        found = WANTED.fullmatch(name)
        return found[1].replace(".mat", ".png") if found else None

    members = plan_zip(paths[0], place)

    def write(folder: Path) -> None:
        extract_zip(paths[0], members, folder, _write)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in class_names()), encoding="utf8")

    # A .mat file also holds superpixels and captions: the PNG of its labels alone is shorter.
    return Layout(sum(member.size for member in members), len(members), write)


def class_names() -> list[str]:
    """The 171 names by train id."""
    return [NAMES[label] for label in CLASS_IDS]


def _write(source: BinaryIO, target: Path, member: Member) -> None:
    if target.suffix == ".png":
        save_label(translate(_read_mat(source.read(), member.name), TRAIN_IDS, member.name), target)
    else:
        copy(source, target, member)


def _read_mat(content: bytes, name: str) -> np.ndarray:
    """The map of label ids ``S`` (H, W) of a published annotation."""
    found = read_mat(content, "S", name)
    if found.dtype.kind == "f" and (found == np.rint(found)).all():  # MATLAB's own numbers are doubles
        found = found.astype(np.int64)
    if found.ndim != 2 or found.dtype.kind not in "ui":
        raise DataError(f"{name}: S must be a map of whole numbers, got {found.dtype} {found.shape}")
    return found


def main(argv: Sequence[str] | None = None, spec: COCOStuff | None = None) -> int:
    """Run the script; return its exit status."""
    spec = spec or COCOStuff()
    where = f"download {spec.archive.url}"
    return run_script(__doc__, DataSet("coco_stuff10k", (spec.archive,), where, plan, spec.check), argv)


if __name__ == "__main__":
    sys.exit(main())
