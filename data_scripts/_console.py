"""What every data script says and how it ends: options, progress, the final table, one line on bad input."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

#: Exit status of a run that was refused; 130 and 143 are the usual ones for Ctrl-C and SIGTERM.
REFUSED = 2


class DataError(Exception):
    """What is wrong and what to do, in one sentence for the user."""


class _Stopped(BaseException):
    """SIGTERM, raised as an exception so that every `with` and `finally` cleans up on the way out."""


def parser(doc: str, *, downloads: bool) -> argparse.ArgumentParser:
    """The options that all scripts share; the description is the script's docstring.

    Args:
        doc: the script's ``__doc__``.
        downloads: whether the script can fetch its archives itself, and so has ``--mirror``.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data-root", metavar="DIR", help="where data sets live (default: DNC_DATA, or ~/.cache/dnc)")
    made.add_argument(
        "--archives", type=Path, metavar="DIR", help="where the archives are (default: `archives` in the data root)"
    )
    made.add_argument("--check", action="store_true", help="only verify what is there, and print the table")
    made.add_argument("--replace", action="store_true", help="replace what is there but not whole")
    made.add_argument(
        "--sha256", action="append", default=[], metavar="[FILE=]HEX", help="pin an archive to this SHA-256"
    )
    if downloads:
        made.add_argument("--mirror", metavar="URL", help="fetch the archives from this folder instead")
    return made


def run(work: Callable[[], None]) -> int:
    """Do the work; turn its end, whatever it is, into an exit status and at most one line of explanation."""
    try:
        with _terminable():
            work()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:  # a full disk, no permission: the system's own words and the file
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}; what was half done is removed", file=sys.stderr)
        return REFUSED
    except (KeyboardInterrupt, _Stopped) as stop:
        print("stopped: what was half done is removed, what was whole stays; run it again to go on", file=sys.stderr)
        return 143 if isinstance(stop, _Stopped) else 130
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_):
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def progress(what: str, *, total: int | None = None, unit: str = "B", done: int = 0) -> tqdm:
    """A progress bar on standard error; silent where that is no terminal."""
    scaled = unit == "B"
    return tqdm(
        desc=what,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=scaled,
        unit_divisor=1000,
        disable=None,
        leave=False,
    )


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as disks and download pages count them: ``147.9 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in plain text: the first column to the left, the others, numbers mostly, to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(
        line.rstrip() for line in (title, lines[0], "  ".join("-" * width for width in widths), *lines[1:])
    )
