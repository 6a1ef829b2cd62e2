"""How large each published data set is, so that a part of one is not taken for it."""

from collections.abc import Mapping
from typing import NamedTuple


class Whole(NamedTuple):
    """A data set as published: images of each part, and classes."""

    train: int
    test: int
    classes: int
    validation: int = 0
    even: bool = False  # as many images of each class


_CIFAR10, _CIFAR100 = Whole(50_000, 10_000, 10, even=True), Whole(50_000, 10_000, 100, even=True)

#: Data sets of a fixed size; any other is whole as it is. ADE20K, Cityscapes and ImageNet test on what they call
#: validation images.
WHOLE = {
    "cifar10": _CIFAR10,
    "cifar10_coarse": _CIFAR10._replace(classes=2, even=False),
    "cifar100": _CIFAR100,
    "cifar100_coarse": _CIFAR100._replace(classes=20),
    "imagenet": Whole(1_281_167, 50_000, 1000),
    "camvid": Whole(367, 233, 11, validation=101),
    "ade20k": Whole(20_210, 2_000, 150),
    "cityscapes": Whole(2_975, 500, 19),
    "coco_stuff10k": Whole(9_000, 1_000, 171),
}


def missing(
    name: str,
    images: Mapping[str, int],
    *,
    train_limit: int = 0,
    validation: int = 0,
    leave_out: tuple[int, ...] = (),
    classes: int | None = None,
) -> str:
    """What a training lacks of its data set, in words; empty where it is whole, or of no known size.

    Args:
        name: of the data set.
        images: of each part that was used, as a manifest counts them.
        train_limit: of the recipe: so many of the training images were wanted.
        validation: of the recipe: so many training images were held out.
        leave_out: of the recipe: classes that were left out on purpose.
        classes: that were there, where that is known.
    """
    if (whole := WHOLE.get(name)) is None:
        return ""
    wanted = {"train": whole.train, "test": whole.test}
    if leave_out:
        if not whole.even:
            return ""  # how many images those classes have is not known here
        wanted = {part: count * (whole.classes - len(leave_out)) // whole.classes for part, count in wanted.items()}
    if whole.validation and not validation:  # else they are cut from the training images
        wanted["validation"] = whole.validation
    wanted["train"] -= validation
    wanted["train"] = min(wanted["train"], train_limit) if train_limit else wanted["train"]
    found = [
        f"{images.get(part, 0):,} of {count:,} {part} images"
        for part, count in wanted.items()
        if images.get(part, 0) < count
    ]
    if classes is not None and classes < whole.classes - len(leave_out):
        found.append(f"{classes:,} of {whole.classes - len(leave_out):,} classes")
    return f"not the whole of {name}: {', '.join(found)}" if found else ""
