"""From ImageNet's two image archives to class folders.

The training archive is a tar of 1000 tars. It is read in order, and each inner tar is unpacked from within it,
without being written out. A class appears when it is whole. The validation archive is flat, and all of its classes
appear at once.
"""

from pathlib import Path
from tarfile import TarInfo
from typing import BinaryIO

from _archives import Member, copy, readable, tar_members
from _console import DataError, progress
from _devkit import Devkit
from _disk import files_below, need_room, recover, staged
from _record import Record

#: An image has some 110 kB: good enough to reckon the room that file ends waste.
IMAGE_SIZE = 110_000


def lay_out_train(path: Path, folder: Path, devkit: Devkit, record: Record, *, replace: bool = False) -> None:
    """Unpack every class that is not whole yet, in the archive's order.

    Args:
        path: the tar of tars.
        folder: ``imagenet/train``.
        devkit: knows the classes.
        record: knows what is whole.
        replace: whether a class folder that differs may be replaced.

    Raises:
        DataError: for an archive that is cut short, an unknown or missing class, a folder that differs, or no room.
    """
    todo = _missing_classes(path, folder, devkit, record)
    if not todo:
        return
    need_room(folder, sum(todo.values()), files=sum(todo.values()) // IMAGE_SIZE)
    folder.mkdir(parents=True, exist_ok=True)
    bar = progress("train", total=sum(todo.values()))
    with open(path, "rb") as file, bar:
        for member, content in tar_members(file, path.name):
            wnid = _wnid(member.name)
            if wnid in todo:
                _lay_out_class(content, f"{path.name}, {member.name}", folder / wnid, record, replace)
                bar.update(member.size)


def _missing_classes(path: Path, folder: Path, devkit: Devkit, record: Record) -> dict[str, int]:
    """Bytes by wnid of the classes to unpack. Reads only the headers, so a truncated archive is found in seconds."""
    sizes: dict[str, int] = {}
    with open(path, "rb") as file:
        for member, _ in tar_members(file, path.name):
            wnid = _wnid(member.name)
            if wnid not in devkit.names or wnid in sizes:
                what = "twice" if wnid in sizes else "which is no class of the devkit"
                raise DataError(f"{path.name} holds {member.name}, {what}: it is not the published file")
            sizes[wnid] = member.size
    if missing := sorted(devkit.names.keys() - sizes.keys()):
        raise DataError(
            f"{path.name} lacks {len(missing):,} classes, {missing[0]} first: it is not the published file"
        )
    for wnid in sizes:
        recover(folder / wnid)
    return {wnid: size for wnid, size in sizes.items() if not record.whole("train", wnid, folder / wnid)}


def _wnid(name: str) -> str:
    return name.removeprefix("./").removesuffix(".tar")


def _lay_out_class(content: BinaryIO, name: str, target: Path, record: Record, replace: bool) -> None:
    if target.exists() and not replace:  # unpacked by other means: taken over if it is the same, file by file
        expected = {_image_name(image, name): image.size for image, _ in tar_members(content, name)}
        if files_below(target) != expected:
            raise DataError(f"{target} is not what {name} holds; to make it anew and replace it, add --replace")
        record.add("train", {target.name: target})
        return
    with staged(target) as partial:
        for image, source in tar_members(content, name):
            _write_image(image, source, name, partial)
        record.add("train", {target.name: partial})


def _image_name(image: TarInfo, archive: str) -> str:
    name = image.name.removeprefix("./")
    if "/" in name or not name.endswith(".JPEG"):
        raise DataError(f"{archive} holds {image.name}, which is no image of ImageNet")
    return name


def _write_image(image: TarInfo, source: BinaryIO, archive: str, folder: Path) -> None:
    name = _image_name(image, archive)
    with readable(archive):
        copy(source, folder / name, Member(image.name, name, image.size))


def lay_out_val(path: Path, folder: Path, devkit: Devkit, record: Record, *, replace: bool = False) -> None:
    """Unpack the flat archive: ``ILSVRC2012_val_00000007.JPEG`` goes where the seventh label says.

    Args:
        path: the tar.
        folder: ``imagenet/val``.
        devkit: knows the labels.
        record: knows what is whole.
        replace: whether a folder that differs may be replaced.

    Raises:
        DataError: for an archive that is cut short, a file without a label, a folder that differs, or no room.
    """
    recover(folder)
    classes = sorted(set(devkit.val))
    if all(record.whole("val", wnid, folder / wnid) for wnid in classes):
        return
    places = {f"ILSVRC2012_val_{i:08d}.JPEG": wnid for i, wnid in enumerate(devkit.val, start=1)}
    sizes: dict[str, int] = {}
    with open(path, "rb") as file:
        for image, _ in tar_members(file, path.name):
            name = _image_name(image, path.name)
            if name not in places or name in sizes:
                what = "twice" if name in sizes else "for which the devkit has no label"
                raise DataError(f"{path.name} holds {name}, {what}: it is not the published file")
            sizes[name] = image.size
    if len(sizes) != len(places):
        raise DataError(f"{path.name} holds {len(sizes):,} of {len(places):,} images: it is not the published file")
    if folder.is_dir() and any(folder.iterdir()) and not replace:
        if files_below(folder) != {f"{places[name]}/{name}": size for name, size in sizes.items()}:
            raise DataError(f"{folder} is not what {path.name} holds; to make it anew and replace it, add --replace")
        record.add("val", {wnid: folder / wnid for wnid in classes})
        return
    need_room(folder, sum(sizes.values()), files=len(sizes))
    with staged(folder) as partial, open(path, "rb") as file, progress("val", total=sum(sizes.values())) as bar:
        for wnid in classes:
            (partial / wnid).mkdir()
        for image, source in tar_members(file, path.name):
            _write_image(image, source, path.name, partial / places[_image_name(image, path.name)])
            bar.update(image.size)
        record.add("val", {wnid: partial / wnid for wnid in classes})
