"""Prepare Cityscapes: 3,475 street scenes of 2048x1024 with fine labels, 19 classes.

    python data_scripts/cityscapes.py --archives DIR       lay out your own download
    python data_scripts/cityscapes.py --check              verify what is there

The licence wants each user to register, so nothing is fetched here. Put into DIR, from
https://www.cityscapes-dataset.com/downloads/: leftImg8bit_trainvaltest.zip (11.6 GB) and gtFine_trainvaltest.zip
(253 MB). The MD5 sums below are the ones that public guides quote from that page.

Made: cityscapes/leftImg8bit/{train,val}/<city>/*_leftImg8bit.png (2,975 and 500), cityscapes/gtFine/{train,val}/
<city>/*_gtFine_labelIds.png as published, and beside each *_gtFine_labelTrainIds.png: 0..18 for the classes that are
scored, 255 for all others, which are ignored. The test split has no public labels and is left out.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from _archives import Archive, Member, copy, extract_zip, plan_zip
from _labels import IGNORED, Split, check_pairs, lookup, read_label, save_label, translate
from _prepare import DataSet, Layout
from _prepare import main as run_script

IMAGES = Archive("leftImg8bit_trainvaltest.zip", 11_592_327_197, "md5:0a6e97e94b616a514066c9e2adb0c97f")
LABELS = Archive("gtFine_trainvaltest.zip", 252_567_705, "md5:4237c19de34c8a376e9ba46b495d6f66")

#: The scored classes in the order of their train ids, and their label ids. The other ids of 0..33 are ignored.
CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
LABEL_IDS = range(34)
#: (256,): label id to train id.
TRAIN_IDS = lookup({label: train for train, label in enumerate(CLASSES.values())}, LABEL_IDS)
VALUES = (*range(len(CLASSES)), IGNORED)

IMAGE = re.compile(r"leftImg8bit/(?:train|val)/[^/]+/[^/]+_leftImg8bit\.png")
LABEL = re.compile(r"gtFine/(?:train|val)/[^/]+/[^/]+_gtFine_labelIds\.png")


@dataclass(frozen=True)
class Cityscapes:
    """What is published; tests put miniatures in its place."""

    images: Archive = IMAGES
    labels: Archive = LABELS
    train: int = 2_975
    val: int = 500

    def check(self, folder: Path) -> list[tuple]:
        """Verify both splits below ``folder``, by the labels of train ids."""
        return [
            check_pairs(
                folder,
                Split(
                    name,
                    f"leftImg8bit/{name}",
                    f"gtFine/{name}",
                    getattr(self, name),
                    ("_leftImg8bit.png",),
                    "_gtFine_labelTrainIds.png",
                ),
                VALUES,
            )
            for name in ("train", "val")
        ]


def plan(paths: list[Path]) -> Layout:
    """Images as they are; labels as they are and as train ids."""
    images = plan_zip(paths[0], lambda name: name if IMAGE.fullmatch(name) else None)
    labels = plan_zip(paths[1], lambda name: name if LABEL.fullmatch(name) else None)

    def write(folder: Path) -> None:
        extract_zip(paths[0], images, folder)
        extract_zip(paths[1], labels, folder, _write_both)

    # A map of train ids has fewer values than the one of label ids, so it is hardly ever longer.
    size = sum(member.size for member in images) + 2 * sum(member.size for member in labels)
    return Layout(size, len(images) + 2 * len(labels), write)


def _write_both(source: BinaryIO, target: Path, member: Member) -> None:
    copy(source, target, member)
    ids = read_label(target.read_bytes(), member.name)
    train = target.with_name(target.name.replace("_labelIds.png", "_labelTrainIds.png"))
    save_label(translate(ids, TRAIN_IDS, member.name), train)


def main(argv: Sequence[str] | None = None, spec: Cityscapes | None = None) -> int:
    """Run the script; return its exit status."""
    spec = spec or Cityscapes()
    where = (
        "register at https://www.cityscapes-dataset.com/downloads/, download it there, and say where it lies with "
        "--archives"
    )
    return run_script(__doc__, DataSet("cityscapes", (spec.images, spec.labels), where, plan, spec.check), argv)


if __name__ == "__main__":
    sys.exit(main())
