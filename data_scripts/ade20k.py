"""Prepare ADE20K: 22,210 scenes with a label for every pixel, 150 classes, in the form of the 2016 challenge.

    python data_scripts/ade20k.py                 fetch it (0.9 GB), verify it, lay it out
    python data_scripts/ade20k.py --check         verify what is there

Source: http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip. Its publishers state no checksum; the
SHA-1 below is the one that several public loaders have long checked it against. Counts and pairs are verified too.

Made: ade20k/images/{training,validation}/*.jpg and ade20k/annotations/{training,validation}/*.png (20,210 and 2,000),
as published: values 1..150 are classes, 0 is everything else and is ignored. objectInfo150.txt names the classes.
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

ARCHIVE = Archive(
    "ADEChallengeData2016.zip",
    checksum="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
)

VALUES = range(151)  # 0 is "other"
WANTED = re.compile(
    r"ADEChallengeData2016/"
    r"((?:images/(?:training|validation)/[^/]+\.jpg)|(?:annotations/(?:training|validation)/[^/]+\.png)|[^/]+\.txt)"
)


@dataclass(frozen=True)
class ADE20K:
    """What is published; tests put miniatures in its place."""

    archive: Archive = ARCHIVE
    training: int = 20_210
    validation: int = 2_000

    def check(self, folder: Path) -> list[tuple]:
        """Verify both splits below ``folder``."""
        return [
            check_pairs(folder, Split(name, f"images/{name}", f"annotations/{name}", getattr(self, name)), VALUES)
            for name in ("training", "validation")
        ]


def main(argv: Sequence[str] | None = None, spec: ADE20K | None = None) -> int:
    """Run the script; return its exit status."""
    spec = spec or ADE20K()
    where = f"download {spec.archive.url}"
    return run_script(__doc__, DataSet("ade20k", (spec.archive,), where, as_published(WANTED), spec.check), argv)


if __name__ == "__main__":
    sys.exit(main())
