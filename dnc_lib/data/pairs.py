"""Image files and the mask files that belong to them."""

import os
from collections.abc import Iterable
from pathlib import Path

from .folders import SUFFIXES

Pairs = list[tuple[Path, Path]]


def pair_files(
    images: Path, masks: Path, image_endings: Iterable[str] = SUFFIXES, mask_ending: str = ".png"
) -> Pairs:
    """The images below a folder, in alphabetical order, each with the mask of the same name below another.

    Args:
        images: the folder of the images; what lies in its folders counts too.
        masks: the folder of the masks, with the same folders.
        image_endings: what image files end in; the path up to there is the name of the pair.
        mask_ending: what masks end in.

    Raises:
        FileNotFoundError: for a folder that is not there or holds none, or an image or mask without its partner.
        ValueError: for two images of one mask.
    """
    found, wanted = files_by_name(images, image_endings), files_by_name(masks, [mask_ending])
    if lonely := sorted(found.keys() - wanted.keys()):
        raise FileNotFoundError(
            f"{found[lonely[0]]} has no mask: {masks / lonely[0]}{mask_ending} is missing{_and_more(lonely)}"
        )
    if lonely := sorted(wanted.keys() - found.keys()):
        raise FileNotFoundError(
            f"{wanted[lonely[0]]} has no image: nothing called {lonely[0]} is in {images}{_and_more(lonely)}"
        )
    return [(found[name], wanted[name]) for name in sorted(found)]


def pair_listed(listing: Path, images: Path, masks: Path) -> Pairs:
    """The images that a file names, one a line, in its order: NAME.jpg of one folder with NAME.png of another.

    Raises:
        FileNotFoundError: for a list, image or mask that is missing.
        ValueError: for a list that is empty, or names a file in another folder.
    """
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} is missing: it says which images the part has")
    names = listing.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{listing} is empty: it should name images, one a line")
    if stray := next((name for name in names if set(name) & set("/\\:")), None):  # the list comes out of an archive
        raise ValueError(f"{listing} names {stray!r}: it should name images of {images}, without a path")
    pairs = [(images / f"{name}.jpg", masks / f"{name}.png") for name in names]
    if missing := next((path for pair in pairs for path in pair if not path.is_file()), None):
        raise FileNotFoundError(f"{missing} is missing, but {listing} names it")
    return pairs


def files_by_name(folder: Path, endings: Iterable[str]) -> dict[str, Path]:
    """The files below a folder by their path there, up to the ending; whatever starts with a dot is passed over.

    Raises:
        FileNotFoundError: for a folder that is not there, or holds no such file.
        ValueError: for two files of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} is missing")
    endings, found = tuple(ending.lower() for ending in endings), {}
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(os.path.relpath(where, folder))
        for file in sorted(files):
            ending = next((ending for ending in endings if file.lower().endswith(ending)), None)
            if ending is None or file.startswith("."):
                continue
            name = (below / file[: -len(ending)]).as_posix()
            if name in found:
                raise ValueError(
                    f"{found[name]} and {Path(where) / file} have one name: rename or remove one of them"
                )
            found[name] = Path(where) / file
    if not found:
        raise FileNotFoundError(f"{folder} is empty: no file there ends in {', '.join(sorted(endings))}")
    return found


def _and_more(lonely: list[str]) -> str:
    return f" (and {len(lonely) - 1} more like it)" if len(lonely) > 1 else ""
