"""The state of a training on disk, to go on from after a crash: written whole or not at all, checked when read."""

import contextlib
import hashlib
import os
import pickle
import re
import warnings
from pathlib import Path

import torch

#: step0000012345.<first 16 digits of the file's SHA-256>.pt
_NAME = re.compile(r"step(\d{10})\.([0-9a-f]{16})\.pt")


class Snapshots:
    """The newest snapshots of a training in a folder.

    A snapshot is written under a temporary name, flushed to the disk and renamed, so that a crash at any moment
    leaves the ones before. Its name carries the digest of what is in it, so that damage is seen.

    Args:
        folder: made when the first is written.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """The snapshots there are, newest first."""
        found = [path for path in self.folder.glob("step*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def save(self, state: dict, step: int) -> Path:
        """Write a snapshot, then remove those beyond ``keep``.

        Args:
            state: nested dicts and lists of tensors, numbers and strings.
            step: optimiser steps done; the newest snapshot is that of the highest.

        Raises:
            OSError: where it cannot be written; those before are as they were.
        """
        part = self.folder / f".{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"step{step:010d}.{_digest(part)}.pt"
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # the latter is what torch makes of a full disk
            raise OSError(f"no snapshot could be written into {self.folder} ({error}); make room there") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        killed = self.folder.glob(".*.part")  # what processes that were killed while they wrote left behind
        for old in [*[each for each in self.paths() if each != path][self.keep - 1 :], *killed]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> dict | None:
        """The newest snapshot that is whole; ``None`` where there is none.

        A damaged one is warned about and put aside, under the same name with ``.damaged`` behind it.

        Raises:
            ValueError: for one that is whole but holds what no snapshot holds.
        """
        for path in self.paths():
            if _digest(path) == _NAME.fullmatch(path.name)[2]:
                try:
                    return torch.load(path, map_location="cpu", weights_only=True)
                except (pickle.UnpicklingError, RuntimeError) as error:
                    raise ValueError(f"{path} was written by another program or version ({error})") from error
            path.rename(f"{path}.damaged")
            warnings.warn(f"the snapshot {path} is damaged; going on from the one before it", stacklevel=2)
        return None

    def remove(self) -> None:
        """Delete all, the folder too, and what a crash left half written."""
        if self.folder.is_dir():
            for path in [*self.paths(), *self.folder.glob("step*.damaged"), *self.folder.glob(".*.part")]:
                path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
