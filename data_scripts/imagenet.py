"""Prepare ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation images, 1000 classes, as class folders.

    python data_scripts/imagenet.py --archives DIR             lay out your own download; go on after a stop
    python data_scripts/imagenet.py --archives DIR --only val  only the validation images (6.7 GB)
    python data_scripts/imagenet.py --check                    verify what is there

The licence wants each user to register, so nothing is fetched here. From https://image-net.org/download.php (ILSVRC
2012) put into DIR: ILSVRC2012_img_train.tar (147.9 GB), ILSVRC2012_img_val.tar (6.7 GB) and
ILSVRC2012_devkit_t12.tar.gz (2.6 MB). Their MD5 sums are the ones that torchvision carries. Needs scipy, which reads
the devkit.

Made: imagenet/train/<wnid>/*.JPEG, imagenet/val/<wnid>/*.JPEG, imagenet/classes.txt (a class a line: wnid, tab,
names) and imagenet/prepared.json, which says how many files and bytes each class has, so that a later run or --check
sees what is whole. Images are written as they are: a few are CMYK, one is a PNG by another name, and readers must
cope.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _archives import Archive, verify
from _console import DataError, parser, progress, run, size, table
from _devkit import read_devkit
from _disk import data_root, files_below, locked, write_whole
from _download import pins
from _imagenet import lay_out_train, lay_out_val
from _record import Record

HEADER = ("split", "images", "classes", "fewest", "most", "size")
TRAIN = Archive("ILSVRC2012_img_train.tar", 147_897_477_120, "md5:1d675b47d978889d74fa0da5fadfb00e")
VAL = Archive("ILSVRC2012_img_val.tar", 6_744_924_160, "md5:29b22e2961454d5413ddabcf34fc5622")
DEVKIT = Archive("ILSVRC2012_devkit_t12.tar.gz", checksum="md5:fa75699e90414af021442c21a62c3abf")


@dataclass(frozen=True)
class ImageNet:
    """What is published; tests put miniatures in its place."""

    train: Archive = TRAIN
    val: Archive = VAL
    devkit: Archive = DEVKIT
    classes: int = 1_000
    train_images: int = 1_281_167
    val_images: int = 50_000


def check(folder: Path, spec: ImageNet, splits: Sequence[str]) -> list[tuple]:
    """Verify the splits below ``folder``; return the rows of the table.

    Counts are compared with the published ones and, class by class, with what was noted when they were written.

    Raises:
        DataError: naming the first thing that is missing or wrong.
    """
    record = Record(folder)
    return [_check_split(folder / split, getattr(spec, f"{split}_images"), spec, record) for split in splits]


def _check_split(folder: Path, images: int, spec: ImageNet, record: Record) -> tuple:
    if not folder.is_dir():
        raise DataError(f"{folder} is not there: run this script without --check")
    noted = record.splits[folder.name]
    found = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    if missing := sorted(noted.keys() - found.keys()):
        raise DataError(f"{folder / missing[0]} is missing: run this script without --check to make it again")
    counts, total = [], 0
    with progress(f"checking {folder.name}", total=len(found), unit="class") as bar:
        for wnid, path in found.items():
            files = files_below(path) if path.is_dir() else {}
            seen = [len(files), sum(files.values())]
            if empty := next((name for name, length in files.items() if not length), None):
                raise DataError(f"{path / empty} is empty: run this script with --replace to make {wnid} again")
            if noted.get(wnid, seen) != seen:
                files_noted, bytes_noted = noted[wnid]
                raise DataError(
                    f"{path} has {seen[0]:,} files of {seen[1]:,} bytes, not {files_noted:,} of {bytes_noted:,}: "
                    f"run this script with --replace to make it again"
                )
            counts.append(seen[0])
            total += seen[1]
            bar.update()
    if len(counts) != spec.classes or sum(counts) != images:
        raise DataError(
            f"{folder} has {sum(counts):,} images of {len(counts):,} classes, not {images:,} of {spec.classes:,}"
        )
    return folder.name, images, len(counts), min(counts), max(counts), size(total)


def prepare(root: Path, spec: ImageNet, args, splits: Sequence[str]) -> list[tuple]:
    """Bring the splits to the data root, as far as they are not there; return the rows of the table."""
    folder = root / "imagenet"
    if (folder / "classes.txt").is_file():
        try:
            rows = check(folder, spec, splits)
        except DataError as error:
            print(f"to do: {error}")
        else:
            print(f"{folder} is whole, nothing to do")
            return rows
    archives = (spec.devkit, *(getattr(spec, split) for split in splits))
    paths = _verified(archives, args.archives or root / "archives", folder, pins(args.sha256, archives))
    devkit = read_devkit(paths[0], spec.classes, spec.val_images)
    record = Record(folder)
    for split, path in zip(splits, paths[1:], strict=True):
        lay_out = {"train": lay_out_train, "val": lay_out_val}[split]
        lay_out(path, folder / split, devkit, record, replace=args.replace)
    write_whole(folder / "classes.txt", "".join(f"{wnid}\t{names}\n" for wnid, names in devkit.names.items()))
    rows = check(folder, spec, splits)
    print(f"no longer needed: {', '.join(str(path) for path in paths)}")
    return rows


def _verified(archives: Sequence[Archive], where: Path, folder: Path, pinned: dict[str, str]) -> list[Path]:
    """The archives; all are looked for before minutes go into the first one's checksum."""
    paths = [where / archive.name for archive in archives]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(
            f"{' and '.join(missing)} not found in {where}: register at https://image-net.org/download.php, download "
            f"it there (ILSVRC 2012), and say where it lies with --archives"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    for path, archive in zip(paths, archives, strict=True):
        if archive.name in pinned:  # the user's word holds for this run only
            verify(path, archive, pinned[archive.name])
        elif not record.verified(path, archive):
            verify(path, archive)
            record.add_archive(path, archive)
    return paths


def main(argv: Sequence[str] | None = None, spec: ImageNet | None = None) -> int:
    """Run the script; return its exit status."""
    spec = spec or ImageNet()
    options = parser(__doc__, downloads=False)
    options.add_argument("--only", choices=("train", "val"), help="only one of the two splits")
    args = options.parse_args(argv)
    splits = (args.only,) if args.only else ("train", "val")

    def work() -> None:
        root = data_root(args.data_root)
        if args.check:
            rows = check(root / "imagenet", spec, splits)
        else:
            with locked(root, "imagenet"):
                rows = prepare(root, spec, args, splits)
        print(table(f"ImageNet at {root / 'imagenet'}", HEADER, rows))

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
