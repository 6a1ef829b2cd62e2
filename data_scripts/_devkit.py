"""ImageNet's development kit: which classes there are, what they are called, and the validation labels."""

from dataclasses import dataclass
from pathlib import Path

from _archives import readable, tar_members
from _console import DataError
from _matlab import read_mat

META = "meta.mat"
LABELS = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """What the devkit tells.

    Attributes:
        names: what each class is called, by wnid, in the order of the wnids.
        val: the wnid of each validation image, in the order of their numbers.
    """

    names: dict[str, str]
    val: list[str]


def read_devkit(path: Path, classes: int, val_images: int) -> Devkit:
    """Read ``ILSVRC2012_devkit_t12.tar.gz`` without unpacking it.

    Args:
        path: the archive.
        classes: how many classes there must be.
        val_images: how many validation labels.

    Raises:
        DataError: if it is damaged, in another form, or has not as many.
    """
    content = dict.fromkeys((META, LABELS), b"")
    with open(path, "rb") as file:
        for member, source in tar_members(file, path.name):
            folder, _, name = member.name.rpartition("/")
            if name in content and folder.endswith("/data"):
                with readable(path.name):
                    content[name] = source.read()
    if missing := [name for name, found in content.items() if not found]:
        raise DataError(f"{path.name} holds no data/{missing[0]}: is it the right file?")
    nodes = read_mat(content[META], "synsets", f"{path.name}, {META}", squeeze=True)
    try:
        # A record for each WordNet node: the classes are the leaves; the others are above them and have no images.
        leaves = [node for node in nodes if int(node["num_children"]) == 0]
        wnids = {int(node["ILSVRC2012_ID"]): str(node["WNID"]) for node in leaves}
        names = {str(node["WNID"]): str(node["words"]) for node in leaves}
        val = [wnids[int(line)] for line in content[LABELS].split()]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{path.name} is not in the form of the 2012 devkit ({error!r})") from error
    if len(names) != classes or len(val) != val_images:
        raise DataError(
            f"{path.name} has {len(names):,} classes and {len(val):,} validation labels, not {classes:,} and "
            f"{val_images:,}"
        )
    return Devkit(dict(sorted(names.items())), val)
