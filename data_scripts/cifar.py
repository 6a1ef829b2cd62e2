"""Prepare CIFAR-10 and CIFAR-100: 60,000 photographs of 32x32 each, 10 and 100 classes.

    python data_scripts/cifar.py                  fetch both (170 MB each), verify them, unpack them
    python data_scripts/cifar.py cifar10          only one of them
    python data_scripts/cifar.py --check          verify what is there

Source: https://www.cs.toronto.edu/~kriz/cifar.html. Addresses, the MD5 of each archive and of each file in it are the
ones that torchvision carries.

Made: cifar10/cifar-10-batches-py/ and cifar100/cifar-100-python/, the published batches, which torchvision and
dnc_lib.data.load read. Any other form that dnc_lib.data.load reads (cifar10.npz, class folders) is checked as it is.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _archives import Archive, digest, extract_tar, plan_tar
from _console import DataError, parser, run, size, table
from _disk import data_root, files_below, locked, need_room, recover, staged
from _download import obtain, pins

HEADER = ("set and split", "images", "classes", "a class", "size")


@dataclass(frozen=True)
class Cifar:
    """One of the two as published; tests put miniatures in its place.

    Attributes:
        name: of its folder.
        source: torchvision's class, whose constants say where it is and what its digests are.
        train: number of training images.
        test: number of test images.
        classes: number of classes, all of one size.
    """

    name: str
    source: str
    train: int = 50_000
    test: int = 10_000
    classes: int = 10

    @property
    def published(self) -> type:
        """torchvision's data set class."""
        import torchvision

        return getattr(torchvision.datasets, self.source)

    @property
    def archive(self) -> Archive:
        """The archive that torchvision knows."""
        known = self.published
        return Archive(known.filename, checksum=f"md5:{known.tgz_md5}", url=known.url)

    def digests(self) -> dict[str, str]:
        """MD5 of each file of the archive that is read."""
        known = self.published
        return dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])


SPECS = (Cifar("cifar10", "CIFAR10"), Cifar("cifar100", "CIFAR100", classes=100))


def check(spec: Cifar, root: Path) -> list[tuple]:
    """Read the data set as the package does, digests included, and count; return the rows of the table.

    Raises:
        FileNotFoundError: if it is not there at all.
        DataError: if it is damaged, or too small.
    """
    from dnc_lib import data  # imports torch: late, so that --help comes at once

    try:
        parts = data.load(spec.name, root)
    except ValueError as error:
        raise DataError(str(error)) from error
    rows = []
    for split, part, count in zip(("train", "test"), parts, (spec.train, spec.test), strict=True):
        each = part.labels.bincount(minlength=part.num_classes)
        if len(part) != count or part.num_classes != spec.classes or each.min() != each.max():
            raise DataError(
                f"{spec.name} in {root}: {split} has {len(part):,} images of {part.num_classes} classes, not "
                f"{count:,} of {spec.classes}, as many of each"
            )
        rows.append((f"{spec.name} {split}", len(part), part.num_classes, int(each[0]), size(part.images.nbytes)))
    return rows


def prepare(spec: Cifar, root: Path, args) -> list[tuple]:
    """Bring it to the data root, unless a whole one is there; return the rows of the table."""
    folder = root / spec.name
    target = folder / spec.published.base_folder
    recover(target)
    try:
        rows = check(spec, root)
    except FileNotFoundError:
        pass
    except DataError as error:
        if not args.replace or not target.is_dir():
            hint = f"; to make it anew and replace {target}, add --replace" if target.is_dir() else ""
            raise DataError(f"{error}{hint}") from None
    else:
        print(f"{spec.name} in {root} is whole, nothing to do")
        return rows
    archive = spec.archive
    path = obtain(
        archive,
        args.archives or root / "archives",
        f"download {archive.url}",
        pin=pins(args.sha256, tuple(each.archive for each in SPECS)).get(archive.name),
        mirror=args.mirror,
    )
    prefix = f"{spec.published.base_folder}/"
    members = plan_tar(path, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)
    need_room(target, sum(member.size for member in members), len(members))
    with staged(target) as partial:
        extract_tar(path, members, partial)
        found = files_below(partial)
        for name, md5 in spec.digests().items():
            if name not in found or digest(partial / name, "md5") != md5:
                raise DataError(f"{path.name}: {name} is missing or not what was published; nothing of it was kept")
    print(f"no longer needed: {path}")
    return check(spec, root)


def main(argv: Sequence[str] | None = None, specs: Sequence[Cifar] = SPECS) -> int:
    """Run the script; return its exit status."""
    options = parser(__doc__, downloads=True)
    names = [spec.name for spec in specs]
    options.add_argument("name", nargs="*", metavar="NAME", help=f"which ({', '.join(names)}; default: all)")
    args = options.parse_args(argv)

    def work() -> None:
        root = data_root(args.data_root)
        if strangers := sorted(set(args.name) - set(names)):
            raise DataError(f"{strangers[0]} is neither {' nor '.join(names)}")
        rows, absent = [], []
        for spec in specs:
            if args.name and spec.name not in args.name:
                continue
            if args.check:
                try:
                    rows += check(spec, root)
                except FileNotFoundError:
                    absent.append(spec.name)
            else:
                with locked(root, spec.name):
                    rows += prepare(spec, root, args)
        if absent and (args.name or not rows):
            raise DataError(f"{' and '.join(absent)} not found in {root}: run this script without --check")
        rows += [(f"{name} not there", "", "", "", "") for name in absent]
        print(table(f"CIFAR in {root}", HEADER, rows))

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
