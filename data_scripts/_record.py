"""What a long preparation has done so far, kept beside the data so that it can go on."""

import json
from pathlib import Path

from _archives import Archive
from _console import DataError
from _disk import files_below, write_whole


class Record:
    """``prepared.json``: number of files and bytes of each class that was written, and the archives already verified.

    A class is noted before it appears, so one without a note was put there by someone else.

    Args:
        folder: of the data set.

    Attributes:
        splits: for ``train`` and ``val``, files and bytes by class.
        archives: what a verified archive looked like.

    Raises:
        DataError: if the file is damaged.
    """

    def __init__(self, folder: Path):
        self.path = folder / "prepared.json"
        self.splits: dict[str, dict[str, list[int]]] = {"train": {}, "val": {}}
        self.archives: dict[str, list] = {}
        try:
            known = json.loads(self.path.read_text(encoding="utf8"))
            self.splits = {split: dict(known[split]) for split in self.splits}
            self.archives = dict(known["archives"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} is damaged ({error!r}): delete it and run this script again") from error

    def add(self, split: str, classes: dict[str, Path]) -> None:
        """Note the folders of classes that are about to appear."""
        self.splits[split] |= {name: measure(folder) for name, folder in classes.items()}
        self._save()

    def whole(self, split: str, name: str, folder: Path) -> bool:
        """Whether a class is there as it was written."""
        return folder.is_dir() and self.splits[split].get(name) == measure(folder)

    def add_archive(self, path: Path, archive: Archive) -> None:
        """Note that this very file was verified: a restart need not read 148 GB for it again."""
        self.archives[archive.name] = _stamp(path, archive)
        self._save()

    def verified(self, path: Path, archive: Archive) -> bool:
        """Whether this very file was verified before: same size, time and expected checksum."""
        return self.archives.get(archive.name) == _stamp(path, archive)

    def _save(self) -> None:
        write_whole(self.path, json.dumps({**self.splits, "archives": self.archives}))


def measure(folder: Path) -> list[int]:
    """Number of files below a folder and their bytes."""
    found = files_below(folder)
    return [len(found), sum(found.values())]


def _stamp(path: Path, archive: Archive) -> list:
    there = path.stat()
    return [there.st_size, there.st_mtime_ns, archive.checksum]
