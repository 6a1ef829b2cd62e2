"""The course that the scripts share.

What is whole is passed over. Else: find the archives, verify them, see that there is room, lay out beside, check, and
only then put it in its place.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _archives import Archive, extract_zip, plan_zip
from _console import DataError, parser, run, table
from _disk import data_root, locked, need_room, recover, staged
from _download import obtain, pins

HEADER = ("split", "images", "labels", "size")


@dataclass(frozen=True)
class Layout:
    """What will be written, known before anything is.

    Attributes:
        size: bytes that it takes.
        files: how many files.
        write: writes them below a folder that exists.
    """

    size: int
    files: int
    write: Callable[[Path], None]


@dataclass(frozen=True)
class DataSet:
    """A data set that is laid out in one go.

    Attributes:
        name: of its folder in the data root.
        archives: what it is made from.
        where: sentence that tells a person where to get them.
        plan: from the verified archives, in the order above, to what will be written.
        check: verifies a folder and gives the rows of the table; raises :class:`DataError`.
    """

    name: str
    archives: tuple[Archive, ...]
    where: str
    plan: Callable[[list[Path]], Layout]
    check: Callable[[Path], list[tuple]]


def as_published(wanted: re.Pattern) -> Callable[[list[Path]], Layout]:
    """The plan of a set whose one zip is laid out as it is: members that match, each where its first group says."""

    def plan(paths: list[Path]) -> Layout:
        def place(name: str) -> str | None:
            found = wanted.fullmatch(name)
            return found[1] if found else None

        members = plan_zip(paths[0], place)
        size = sum(member.size for member in members)
        return Layout(size, len(members), lambda folder: extract_zip(paths[0], members, folder))

    return plan


def main(doc: str, made: DataSet, argv: Sequence[str] | None = None) -> int:
    """Run one script: parse the options, prepare or check, print the table; return the exit status."""
    options = parser(doc, downloads=any(archive.url for archive in made.archives))
    args = options.parse_args(argv)

    def work() -> None:
        root = data_root(args.data_root)
        target = root / made.name
        if args.check:
            if not target.is_dir():
                raise DataError(f"{target} is not there: run this script without --check")
            rows = made.check(target)
        else:
            with locked(root, made.name):
                rows = _prepare(made, root, args)
        print(table(f"{made.name} at {target}", HEADER, rows))

    return run(work)


def _prepare(made: DataSet, root: Path, args) -> list[tuple]:
    target = root / made.name
    pinned = pins(args.sha256, made.archives)
    recover(target)
    if target.is_dir() and any(target.iterdir()):
        try:
            rows = made.check(target)
        except DataError as error:
            if not args.replace:
                raise DataError(f"{error}; to make it anew and replace {target}, add --replace") from None
        else:
            print(f"{target} is whole, nothing to do")
            return rows
    folder = args.archives or root / "archives"
    mirror = getattr(args, "mirror", None)
    paths = [
        obtain(archive, folder, made.where, pin=pinned.get(archive.name), mirror=mirror) for archive in made.archives
    ]
    layout = made.plan(paths)
    need_room(target, layout.size, layout.files)
    with staged(target) as partial:
        layout.write(partial)
        try:
            rows = made.check(partial)
        except DataError as error:
            names = " and ".join(path.name for path in paths)
            raise DataError(
                f"{names}: {str(error).replace(str(partial), str(target))}; nothing of it was kept"
            ) from None
    print(f"no longer needed: {', '.join(str(path) for path in paths)}")
    return rows
