"""Archives as strangers' files: verified before they are opened, and read so that nothing leaves the target folder.

Only plain files and folders are accepted. None of these data sets has links or devices in its archives, so a link,
even a harmless one, means that the file is not what it claims to be.
"""

import contextlib
import hashlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from _console import DataError, progress

CHUNK = 1 << 20
THREADS = 8  # inflating and PNG coding release the interpreter's lock; more threads than this wait for the disk


@dataclass(frozen=True)
class Archive:
    """An archive as published.

    Attributes:
        name: its file name.
        size: bytes; None where the publisher does not say.
        checksum: ``md5:<hex>``, ``sha1:<hex>`` or ``sha256:<hex>``; None where none is published.
        url: where to fetch it; None where a person must.
    """

    name: str
    size: int | None = None
    checksum: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Member:
    """A file of an archive, where it goes below the target folder, and its bytes."""

    name: str
    target: str
    size: int


Place = Callable[[str], str | None]
Write = Callable[[BinaryIO, Path, Member], None]

# --- verified -------------------------------------------------------------------------------------------------------


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file, read once in order."""
    total = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, progress(f"verifying {path.name}", total=path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            total.update(chunk)
            bar.update(len(chunk))
    return total.hexdigest()


def verify(path: Path, archive: Archive, pin: str | None = None) -> None:
    """Compare a file with what was published; without a checksum, print the SHA-256 seen so that it can be pinned.

    Args:
        path: the file.
        archive: what it should be.
        pin: the user's SHA-256, which stands in place of the published size and checksum.

    Raises:
        DataError: if it is cut short, or another file.
    """
    there = path.stat().st_size
    if archive.size and not pin and there != archive.size:
        short = "the download was cut short" if there < archive.size else "it is not the published file"
        raise DataError(f"{path} has {there:,} bytes of {archive.size:,}: {short}; fetch it again")
    wanted = f"sha256:{pin.lower()}" if pin else archive.checksum
    algorithm = wanted.split(":")[0] if wanted else "sha256"
    seen = f"{algorithm}:{digest(path, algorithm)}"
    if wanted and seen != wanted:
        raise DataError(f"{path} is damaged or another file: expected {wanted}, found {seen}; fetch it again")
    if wanted:
        print(f"{archive.name}: {wanted} as expected")
    else:
        print(f"{archive.name}: no checksum is published; seen {seen} (to pin it: --sha256 {seen[7:]})")


# --- named safely ---------------------------------------------------------------------------------------------------


def refuse_unsafe(archive: str, name: str, kind: str = "file") -> None:
    """Refuse a member that could write, or point, outside the target folder, on any system.

    Windows takes any character before a colon for the name of a drive, not only a letter. A drive is refused in the
    middle of a path, too: who places a member may drop the folders before it.

    Args:
        archive: its name, for the message.
        name: of the member, as stored.
        kind: ``file``, ``folder``, or what else it is.

    Raises:
        DataError: naming archive and member.
    """
    parts = name.replace("\\", "/").split("/")
    leaves = name.startswith(("/", "\\")) or "\0" in name
    if leaves or any(part == ".." or part[1:2] == ":" for part in parts):
        raise DataError(f"{archive}: member {name!r} would leave the target folder; nothing of it was kept")
    if kind not in ("file", "folder"):
        raise DataError(f"{archive}: member {name!r} is a {kind}, no plain file; nothing of it was kept")


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.isfile():
        return "file"
    if member.isdir():
        return "folder"
    return "symbolic link" if member.issym() else "hard link" if member.islnk() else "device"


def _zip_kind(member: zipfile.ZipInfo) -> str:
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if member.is_dir():
        return "folder"
    return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "device"


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn every way in which a damaged archive fails into one sentence that names it."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is cut short or damaged ({error}); fetch it again") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile on encrypted members and unknown compression
        raise DataError(f"{name} cannot be read ({error}); it is not the published file") from error


# --- read -----------------------------------------------------------------------------------------------------------


def copy(source: BinaryIO, target: Path, member: Member) -> None:
    """Write one member; what comes out must be as long as the archive says."""
    with open(target, "xb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        if file.tell() != member.size:
            raise EOFError(f"{member.name}: {file.tell():,} of {member.size:,} bytes")


def tar_members(file: BinaryIO, name: str) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """The files of an uncompressed or gzipped tar in their order, each with its content; folders are passed over.

    Python's ``tarfile`` takes a tar that ends between two members for a whole one. Here its end marker is required.

    Args:
        file: the archive, seekable.
        name: for messages.

    Raises:
        DataError: for an unsafe member or an archive that is cut short.
    """
    mode = "r:gz" if file.read(2) == b"\x1f\x8b" else "r:"
    file.seek(0)
    with readable(name), tarfile.open(fileobj=file, mode=mode) as tar:
        end = 0
        for member in tar:
            refuse_unsafe(name, member.name, _tar_kind(member))
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if member.isfile():
                yield member, tar.extractfile(member)
        if mode == "r:gz":  # gzip has an end of its own, with a CRC: read on to it
            while tar.fileobj.read(CHUNK):
                pass
        else:
            tar.fileobj.seek(end)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise EOFError("it has no end marker")


def plan_zip(path: Path, place: Place) -> list[Member]:
    """What of a zip file goes where.

    Args:
        path: the zip file.
        place: gives a member's place below the target folder, or None to leave it out.

    Raises:
        DataError: for an unsafe member, left out or not, a damaged file, or one with nothing to place.
    """
    with readable(path.name), zipfile.ZipFile(path) as file:
        for info in file.infolist():
            refuse_unsafe(path.name, info.orig_filename, _zip_kind(info))
        found = [(info, place(info.filename)) for info in file.infolist() if not info.is_dir()]
    return _planned(path, [Member(info.filename, target, info.file_size) for info, target in found if target])


def plan_tar(path: Path, place: Place) -> list[Member]:
    """The same for a tar file, which is read once for it."""
    with open(path, "rb") as file:
        found = [(member, place(member.name)) for member, _ in tar_members(file, path.name)]
    return _planned(path, [Member(member.name, target, member.size) for member, target in found if target])


def _planned(path: Path, members: list[Member]) -> list[Member]:
    if not members:
        raise DataError(f"{path.name} holds nothing of this data set: is it the right file?")
    seen: set[str] = set()
    for member in members:
        refuse_unsafe(path.name, member.target)
        if member.target in seen:
            raise DataError(f"{path.name} holds {member.target} twice; it is not the published file")
        seen.add(member.target)
    return members


def extract_zip(path: Path, members: list[Member], folder: Path, write: Write = copy) -> None:
    """Write planned members below ``folder``, several at a time.

    Args:
        path: the zip file.
        members: from :func:`plan_zip`.
        folder: exists; sub-folders are made.
        write: gets the content, the path and the member; may write something else than the content.
    """
    _make_parents(folder, members)
    bar = progress(path.name, total=len(members), unit="file")
    with readable(path.name), zipfile.ZipFile(path) as file, bar:

        def one(member: Member) -> None:
            with file.open(member.name) as source:
                write(source, folder / member.target, member)

        pool = ThreadPoolExecutor(THREADS)
        try:
            for _ in pool.map(one, members):
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def extract_tar(path: Path, members: list[Member], folder: Path) -> None:
    """The same for a tar file, in its order."""
    _make_parents(folder, members)
    planned = {member.name: member for member in members}
    with open(path, "rb") as file, progress(path.name, total=len(members), unit="file") as bar:
        for info, source in tar_members(file, path.name):
            if member := planned.get(info.name):
                with readable(path.name):
                    copy(source, folder / member.target, member)
                bar.update()


def _make_parents(folder: Path, members: list[Member]) -> None:
    for parent in {(folder / member.target).parent for member in members}:
        parent.mkdir(parents=True, exist_ok=True)
