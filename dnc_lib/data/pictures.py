"""A labelled set of image files of any size: names and labels in memory, pictures read when they are asked for."""

import hashlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .arrays import Labelled, LabelledImages
from .folders import SUFFIXES, class_folders, to_rgb
from .listing import Entry, list_folder, list_shard, list_tar

#: What the held-out part may be called, the first that is there counts.
HELD_OUT = ("test", "val", "validation")


@dataclass(frozen=True, eq=False)
class Pictures(Labelled):
    """Image files with their labels, N of them; few bytes a file, and nothing open, so that workers can share it.

    Attributes:
        root: the folder below which everything lies.
        names: (N,) the file names below ``root``, or within a tar file, as bytes.
        labels: (N,) long, in [0, C).
        classes: the C class names.
        name: of the data set and split.
        archives: the tar files, if any.
        places: (N, 3) where there are tar files: which of them, the offset in it, the bytes.
    """

    root: Path
    names: np.ndarray
    labels: Tensor
    classes: tuple[str, ...]
    name: str = ""
    archives: tuple[Path, ...] = ()
    places: np.ndarray | None = None

    #: Any picture can be read at any time, from folders, tar files and shards alike.
    indexable = True

    def subset(self, index: Tensor, name: str = "") -> "Pictures":
        """The pictures at ``index`` (M,)."""
        index = torch.as_tensor(index)
        return replace(
            self,
            names=self.names[index.numpy()],
            labels=self.labels[index],
            places=None if self.places is None else self.places[index.numpy()],
            name=name or self.name,
        )

    def path(self, i: int) -> str:
        """Where picture ``i`` is: a file, or ``archive.tar: member``."""
        name = os.fsdecode(self.names[i])
        return str(self.root / name) if self.places is None else f"{self.archives[self.places[i, 0]]}: {name}"

    def read(self, i: int) -> tuple[Image.Image, int]:
        """Picture ``i``, as RGB of whatever size it has, and its label.

        Raises:
            ValueError: for a file that cannot be read, by its name.
        """
        try:
            with Image.open(io.BytesIO(self._bytes(i))) as file:
                return to_rgb(file), int(self.labels[i])
        except Exception as error:  # a damaged file fails a decoder in any way it likes
            reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"{self.path(i)} cannot be read as an image ({reason}); remove or replace it") from error

    def _bytes(self, i: int) -> bytes:
        if self.places is None:
            return Path(self.path(i)).read_bytes()
        archive, offset, size = self.places[i].tolist()
        with self.archives[archive].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def channel_stats(self, size: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (3,) each, on the scale 0..1: an estimate from at most ``size``
        pictures, 64 x 64 points of each."""
        some = self.sample(min(size, len(self)))
        points = [some.read(i)[0].resize((64, 64), Image.Resampling.NEAREST) for i in range(len(some))]
        images = torch.from_numpy(np.stack([np.asarray(image) for image in points]))
        return LabelledImages(images, some.labels, self.classes, self.name).channel_stats()

    def digest(self) -> str:
        """SHA-256 of names, labels and sizes, the first 16 digits: names data in a manifest, unread."""
        sizes = (
            self.places[:, 2].tolist()
            if self.places is not None
            else (os.stat(self.path(i)).st_size for i in range(len(self)))
        )
        sha = hashlib.sha256("\n".join(self.classes).encode())
        for line in sorted(zip(self.names.tolist(), self.labels.tolist(), sizes, strict=True)):
            sha.update(repr(line).encode())
        return sha.hexdigest()[:16]


def open_pictures(dataset: str, root: Path | None = None) -> tuple[Pictures, Pictures]:
    """The training and the held-out part of a data set that is too large for the memory.

    Either part, ``train`` and ``test`` (or ``val``, or ``validation``), may lie in any of these forms:

    - a folder of class folders, ``train/<class>/*``
    - a folder of tar files, one a class, ``train/<class>.tar``
    - a tar file of class folders, or of tar files, one a class: ``train.tar``
    - WebDataset shards ``train-0000.tar``, ... (or ``imagenet1k-train-0000.tar``, ...) with ``.cls`` members; a file
      ``classes.txt`` gives names to the class numbers, one a line, up to a tab if there is one

    Args:
        dataset: the folder's name below ``root``; ``wds/NAME`` looks for shards only.
        root: see :func:`dnc_lib.data.data_root`.

    Raises:
        FileNotFoundError: where a part is missing.
        ValueError: for a damaged tar file, classes that do not match, or a class of ``train`` without pictures.
    """
    from . import data_root

    shards_only = dataset.startswith("wds/")
    where = data_root(root) / dataset.removeprefix("wds/")
    if not where.is_dir():
        raise FileNotFoundError(f"no data set {dataset!r}: {where} is not there; put train and val into it")
    train, held_out = (_find(where, names, shards_only) for names in (("train",), HELD_OUT))
    classes = train.classes or tuple(sorted({entry.label for entry in train.entries}))
    strangers = sorted({entry.label for entry in held_out.entries}.difference(classes))
    if strangers:
        raise ValueError(f"{where}: {held_out.name} has classes that train lacks: {', '.join(strangers[:5])}")
    empty = sorted(set(classes).difference(entry.label for entry in train.entries))
    if empty:
        raise ValueError(f"{where}: train has no images for {', '.join(empty[:5])}: put some there or remove it")
    return _pictures(train, classes, f"{dataset}, training"), _pictures(held_out, classes, f"{dataset}, test")


class _Part(NamedTuple):
    """A part as it was found."""

    name: str
    root: Path
    entries: list[Entry]
    classes: tuple[str, ...] = ()  # where folders or files tell them


def _find(where: Path, names: tuple[str, ...], shards_only: bool) -> _Part:
    """The first part of these names that is there."""
    for name in names:
        part = (None if shards_only else _find_files(where, name)) or _find_shards(where, name)
        if part is None:
            continue
        if not part.entries:
            raise FileNotFoundError(f"no images in {name} of {where} (read: {', '.join(sorted(SUFFIXES))})")
        if stray := next((entry for entry in part.entries if not entry.label), None):
            raise ValueError(f"{stray.archive}: {stray.name} lies in no class folder, so its class is not known")
        return part
    forms = "shards NAME-0000.tar" if shards_only else "class folders NAME/, a file NAME.tar or shards NAME-0000.tar"
    raise FileNotFoundError(f"{where} has no part {' or '.join(names)}; looked for {forms}")


def _find_files(where: Path, name: str) -> _Part | None:
    folder, tar = where / name, where / f"{name}.tar"
    if folder.is_dir() and (classes := class_folders(folder)):
        return _Part(name, folder, list(list_folder(folder)), tuple(classes))
    if tars := sorted(folder.glob("*.tar")):
        return _Part(name, folder, [entry for path in tars for entry in list_tar(path, path.stem)])
    if tar.is_file():
        return _Part(name, where, sorted(list_tar(tar), key=lambda entry: entry.name.split(os.sep)))
    return None


def _find_shards(where: Path, name: str) -> _Part | None:
    shards = sorted(where.glob(f"{name}-*.tar")) or sorted(where.glob(f"*-{name}-*.tar"))
    if not shards:
        return None
    listed = where / "classes.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    classes = tuple(line.partition("\t")[0] for line in lines)
    entries = [entry for path in shards for entry in list_shard(path, classes)]
    if not classes and name == "train":  # then a label is its number, and every number up to the highest is a class
        classes = tuple(map(str, range(1 + max((int(entry.label) for entry in entries), default=-1))))
    return _Part(name, where, entries, classes)


def _pictures(part: _Part, classes: tuple[str, ...], name: str) -> Pictures:
    number = {label: c for c, label in enumerate(classes)}
    archives = {path: a for a, path in enumerate(dict.fromkeys(entry.archive for entry in part.entries))}
    inside = None not in archives
    return Pictures(
        part.root,
        np.array([os.fsencode(entry.name) for entry in part.entries]),
        torch.tensor([number[entry.label] for entry in part.entries]),
        classes,
        name,
        tuple(archives) if inside else (),
        np.array([(archives[entry.archive], entry.offset, entry.size) for entry in part.entries]) if inside else None,
    )
