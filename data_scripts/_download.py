"""Find an archive or fetch it: downloads go on where they stopped, and nothing is used unverified."""

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from _archives import CHUNK, Archive, verify
from _console import DataError, progress

TRIES = 5
TIMEOUT = 60  # seconds without a byte


def pins(given: list[str], archives: tuple[Archive, ...]) -> dict[str, str]:
    """The user's ``--sha256 [FILE=]HEX`` by file name.

    Raises:
        DataError: for a name that is none of the archives, no name where there are several, or no SHA-256.
    """
    names, pinned = [archive.name for archive in archives], {}
    for text in given:
        name, _, value = text.rpartition("=")
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise DataError(f"--sha256 {text}: write it as FILE=HEX, where FILE is one of {', '.join(names)}")
        if len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
            raise DataError(f"--sha256 {text}: a SHA-256 has 64 hexadecimal digits, this has {len(value)} characters")
        pinned[name] = value.lower()
    return pinned


def obtain(archive: Archive, folder: Path, where: str, *, pin: str | None = None, mirror: str | None = None) -> Path:
    """The verified archive, from ``folder``, or fetched into it.

    Args:
        archive: what is wanted.
        folder: where archives are kept.
        where: sentence that tells a person where to get it, for archives without an address.
        pin: see :func:`_archives.verify`.
        mirror: folder to fetch from, in place of the archive's own address.

    Raises:
        DataError: if it is not there and cannot be fetched, or is not what was published. A download that fails the
            check is deleted; a file that was there before is left for its owner to look at.
    """
    path = folder / archive.name
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    fetched = False
    if not path.is_file():
        if not url:
            raise DataError(f"{archive.name} is not in {folder}: {where}")
        fetch(url, path)
        fetched = True
    try:
        verify(path, archive, pin)
    except DataError:
        if fetched:
            path.unlink()
        raise
    return path


def fetch(url: str, path: Path, *, tries: int = TRIES, pause: float = 1.0) -> None:
    """Download to ``<name>.part`` and rename when whole.

    A download that breaks off is taken up where it stopped, at once and in a later run too. Only if the server says
    that the file is still the same one (its ETag or date, kept beside the part): else it starts again.

    Args:
        url: ``https``, ``http`` or ``file``.
        path: where to.
        tries: how often to try without getting a byte further.
        pause: seconds before the second try; doubled each time.

    Raises:
        DataError: if it cannot be had; the part stays for the next run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part)
            break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            gone = isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)
            if gone or failures == tries or isinstance(getattr(error, "reason", None), FileNotFoundError):
                raise DataError(
                    f"{url} cannot be fetched ({error}): see that there is a network, or put {path.name} into "
                    f"{path.parent} by hand"
                ) from error
            time.sleep(pause * 2**failures)
    os.replace(part, path)
    _mark(part).unlink(missing_ok=True)


def _mark(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _fetch_rest(url: str, part: Path) -> None:
    """One request for what is missing."""
    mark = _mark(part)
    request = urllib.request.Request(url, headers={"User-Agent": "dnc-data-scripts"})
    start = part.stat().st_size if part.exists() and mark.exists() else 0
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", mark.read_text())
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is as long as the file, or longer: start again
            part.unlink()
            return _fetch_rest(url, part)
        raise
    with answer:
        if start and answer.status != 206:  # the whole file comes: it changed, or the server knows no ranges
            start = 0
        tag = answer.headers.get("ETag", "W/")
        validator = (
            answer.headers.get("Last-Modified") if tag.startswith("W/") else tag
        )  # weak tags do not tell bytes
        if validator:
            mark.write_text(validator)
        else:
            mark.unlink(missing_ok=True)
        rest = answer.headers.get("Content-Length")
        total = start + int(rest) if rest else None
        with (
            open(part, "ab" if start else "wb") as file,
            progress(part.name.removesuffix(".part"), total=total, done=start) as bar,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            if total is not None and file.tell() != total:
                raise http.client.IncompleteRead(b"", total - file.tell())
