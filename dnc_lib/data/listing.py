"""What lies where: the pictures of class folders, of tar files and of WebDataset shards, listed but not read.

The layouts are those of timm's readers. A picture in a tar file is known by its place, so that any worker can fetch
it at any time, without an open file to share, and so that shards can be shuffled like files.
"""

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .folders import SUFFIXES, class_folders


class Entry(NamedTuple):
    """One picture."""

    name: str  # below its folder, or within its tar file
    label: str  # the name of its class
    archive: Path | None = None  # the tar file that holds it,
    offset: int = 0  # where its bytes begin there,
    size: int = -1  # and how many they are; -1 for a file of its own


def list_folder(folder: Path) -> Iterator[Entry]:
    """The pictures below ``folder/<class>/``, in alphabetical order; whatever starts with a dot is passed over."""
    for label in class_folders(folder):
        names = []
        for where, folders, files in os.walk(folder / label, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = os.path.relpath(where, folder)
            names += [os.path.join(below, name) for name in files if _is_picture(name)]
        yield from (Entry(name, label) for name in sorted(names, key=lambda name: name.split(os.sep)))


def list_tar(path: Path, prefix: str = "") -> Iterator[Entry]:
    """The pictures in a tar file, in its own order; tar files in it are looked into.

    The class of a picture is the last folder on its way. A tar file in a tar file (``n01440764.tar``) counts as a
    folder, and so does this one where ``prefix`` names it.

    Raises:
        ValueError: for a tar file that is damaged or compressed.
    """
    with _reading(path):
        for tar, member in _members(path.open("rb")):
            name = _join(prefix, member.name)
            if name.lower().endswith(".tar") and _is_shown(name):
                for _, child in _members(tar.extractfile(member)):
                    below = _join(name[: -len(".tar")], child.name)
                    if _is_picture(below):
                        yield _entry(path, below, member.offset_data + child.offset_data, child.size)
            elif _is_picture(name):
                yield _entry(path, name, member.offset_data, member.size)


def list_shard(path: Path, classes: tuple[str, ...] = ()) -> Iterator[Entry]:
    """The pictures in a WebDataset shard: members ``KEY.jpg`` (or .jpeg, .png, .webp) and ``KEY.cls``, the number of
    the class in digits.

    Args:
        path: the shard.
        classes: names for the numbers; without them the number is the name.

    Raises:
        ValueError: for a damaged shard, a picture without its ``.cls``, or one that holds no such number.
    """
    pictures, numbers = [], {}
    with _reading(path):
        for tar, member in _members(path.open("rb")):
            name = _join("", member.name)
            if name.endswith(".cls"):
                numbers[_key(name)] = tar.extractfile(member).read()
            elif _is_picture(name):
                pictures.append((name, member.offset_data, member.size))
    for name, offset, size in pictures:
        key = _key(name)
        if key not in numbers:
            raise ValueError(f"{path}: {name} has no {key}.cls beside it, so its class is not known")
        number = numbers[key].decode(errors="replace").strip()
        if not number.isdecimal() or (classes and int(number) >= len(classes)):
            known = f"0 to {len(classes) - 1}" if classes else "0 or more"
            raise ValueError(f"{path}: {key}.cls holds {number[:20]!r}, which is no class number ({known})")
        yield Entry(name, classes[int(number)] if classes else str(int(number)), path, offset, size)


def _members(file) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files in a tar file, read by seeking from header to header, each forgotten when it was given."""
    with file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # a million of them would fill gigabytes
            if member.isreg():
                yield tar, member
        file.seek(tar.offset)
        if not file.read(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it stops before its end mark")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an uncompressed tar file ({error}); fetch it again") from error


def _entry(path: Path, name: str, offset: int, size: int) -> Entry:
    return Entry(name, os.path.basename(os.path.dirname(name)), path, offset, size)


def _join(prefix: str, name: str) -> str:
    return os.path.normpath(os.path.join(prefix, name))  # tar files made with "." begin their names with "./"


def _key(name: str) -> str:
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0])


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split(os.sep))


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and _is_shown(name)
