"""Folders that appear whole or not at all: room checked first, written beside, renamed when done."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from _console import DataError, size

try:
    import fcntl
except ImportError:  # Windows has no flock; there two runs at once are not told apart
    fcntl = None

#: A file takes whole blocks: this much is added for each when room is reckoned.
BLOCK = 4096


def data_root(given: str | Path | None = None) -> Path:
    """Where data sets are: what :func:`dnc_lib.data.data_root` says, without importing torch for it.

    So the scripts start at once, and run on a machine that only stores data and has no torch. A test holds the two
    equal.
    """
    return Path(given or os.environ.get("DNC_DATA") or Path.home() / ".cache" / "dnc").expanduser()


def need_room(folder: Path, needed: int, files: int = 0) -> None:
    """Refuse to start what cannot end.

    Args:
        folder: where it will be written; need not exist yet.
        needed: bytes of content.
        files: how many files hold them.

    Raises:
        DataError: if the disk has less, with both numbers.
    """
    there = folder
    while not there.exists():
        there = there.parent
    needed += files * BLOCK
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DataError(
            f"{folder} needs {size(needed)} but its disk has {size(free)} free: make room, or choose another disk "
            f"with --data-root"
        )


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to fill, ``.<name>.partial`` beside ``target``, that takes its place when the block ends well.

    What an earlier run left half done is removed first, and so is this one's if the block fails, Ctrl-C and SIGTERM
    included. What was at ``target`` stays until the new one is whole.
    """
    partial, old = _beside(target, "partial"), _beside(target, "old")
    recover(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        recover(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Undo what a killed run left of :func:`staged`: a half-filled folder, a whole one moved out of the way."""
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        os.replace(old, target)
    for left in (old, _beside(target, "partial")):
        if left.exists():
            shutil.rmtree(left)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name}.{ending}")


@contextlib.contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Only one run prepares a data set at a time; the system lifts the lock even after kill -9.

    Raises:
        DataError: if another run holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".{name}.lock"
    with open(path, "w") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"another run is preparing {name} in {root}: wait for it, or stop it") from None
        yield


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never half of it."""
    part = path.with_name(f".{path.name}.partial")
    part.write_text(text, encoding="utf8")
    os.replace(part, path)


def files_below(folder: Path) -> dict[str, int]:
    """Sizes of all files below a folder by relative path, with ``/``; whatever starts with a dot is passed over."""
    found: dict[str, int] = {}
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))
                else:
                    found[prefix + entry.name] = entry.stat().st_size
    return found
