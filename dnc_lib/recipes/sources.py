"""Where the settings of the recipes that follow the paper come from: one place for values, sources and reasons.

The recipes take their head's settings from here, and the chapters make their tables from here, so that neither can
say what the other does not do. Where the paper and the released code contradict each other, a recipe follows the
paper's text, and in what that leaves open the released update; ``imagenet_swin_..._as_released`` follows the released
code in all that the fields of a recipe can say.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .base import Recipe

#: Who says so. "Recalled": known of the paper, not checked against its text. "Quoted": read in a page that quotes it.
RELEASED, PAPER, ZOO, OURS = "released", "paper, recalled", "zoo", "ours"


class Setting(NamedTuple):
    """A value of a recipe's field.

    Attributes:
        value: of the field.
        source: ``released``, ``paper, recalled``, ``zoo`` or ``ours``.
        note: what else to know; of our own choices the reason.
    """

    value: object
    source: str
    note: str = ""

    @property
    def words(self) -> str:
        """Source and note, as a table prints them."""
        return f"{self.source}: {self.note}" if self.note else self.source


class Difference(NamedTuple):
    """What a source says that a recipe may not do.

    Attributes:
        recipes: pattern of the recipes' names that the source is about.
        field: of a recipe.
        there: what the source says.
        source: who says it.
        verified: ``seen`` (read), ``quoted`` (read in a page that quotes it) or ``recalled``.
        note: what else to know.
    """

    recipes: str
    field: str
    there: object
    source: str
    verified: str
    note: str = ""


# --- the head's settings --------------------------------------------------------------------------------------------

#: DNC by the paper's text; of the released code what the text leaves open.
_HEAD = {
    "num_subcentroids": Setting(4, RELEASED),
    "momentum": Setting(0.999, RELEASED, "and the paper, recalled"),
    "assignment": Setting("sinkhorn", PAPER),
    "epsilon": Setting(0.05, PAPER, "with 3 iterations, which are not a field"),
    "correct_only": Setting(True, RELEASED, "its update masks to correctly classified samples"),
    "update_after": Setting(0, OURS, "neither paper nor code waits, and at first few samples are correct"),
    "update_every": Setting(1, PAPER, "after each optimiser step"),
    "start": Setting("random", RELEASED),
    "spread": Setting("none", RELEASED, "and the paper, recalled"),
    "scale_by": Setting("temperature", OURS, "keeps the nearest case the prediction"),
    "temperature": Setting(0.1, OURS, "the released 0.1 serves a loss that is switched off"),
}
_CIFAR = _HEAD | {
    "memory_size": Setting(12_800, OURS, "100 batches"),
    "norm_images": Setting(16, RELEASED, "eight GPUs of 16, each its own BatchNorm"),
}
_IMAGENET = _HEAD | {"memory_size": Setting(25_600, OURS, "25.6 pictures a class")}
_RESNET = _IMAGENET | {"norm_images": Setting(32, RELEASED, "eight GPUs of 32, each its own BatchNorm")}
_RESNET18 = _IMAGENET | {"norm_images": Setting(128, OURS, "an eighth of the batch")}
_SWIN_AS_RELEASED = _IMAGENET | {
    "assignment": Setting("random", RELEASED, "in effect: what moves them is drawn, near enough at random"),
    "update_every": Setting(1000, RELEASED, "once in 1000 batches"),
    "update_after": Setting(999, RELEASED, "the first update comes with the thousandth batch"),
    "scale_by": Setting("layernorm", RELEASED, "over the classes, with a gain and bias that learn"),
    "memory_size": Setting(25_600, OURS, "theirs holds the 1000 batches since the last update"),
}
_SCENES = _HEAD | {
    "num_subcentroids": Setting(10, PAPER),
    "momentum": Setting(0.999, PAPER),
    "memory_size": Setting(25_600, OURS, "as for ImageNet"),
    "pixels": Setting(20, OURS, "of a class and image, so that walls do not outvote flags"),
}

#: Every recipe that follows the paper, and its settings. CamVid and the digits are no row of the paper.
FOLLOW = {
    **dict.fromkeys(("cifar10_resnet18", "cifar10_resnet50", "cifar10_resnet101"), _CIFAR),
    **dict.fromkeys(("cifar100_resnet50", "cifar100_resnet101"), _CIFAR),
    "imagenet_resnet18": _RESNET18,
    **dict.fromkeys(("imagenet_resnet50", "imagenet_resnet101"), _RESNET),
    **{
        f"imagenet_swin_{size}_{kind}": _SWIN_AS_RELEASED if kind == "as_released" else _IMAGENET
        for size in ("tiny", "small", "base")
        for kind in ("paper", "as_released", "zoo")
    },
    **{
        f"{dataset}_{network}": _SCENES
        for dataset in ("ade20k", "cityscapes", "coco_stuff10k")
        for network in ("fcn_resnet101", "deeplabv3_resnet101", "upernet_swin_base")
    },
}


def settings(name: str) -> dict[str, object]:
    """The values that decide for the head and the norms, for the recipe of this name: field to value."""
    return {field: each.value for field, each in FOLLOW[name].items()}


# --- what the other fields rest on ----------------------------------------------------------------------------------

_PICTURES = {
    "epochs": "released",
    "batch_size": "released",
    "optimizer": "released",
    "learning_rate": "released",
    "sgd_momentum": "zoo (SGD only)",
    "weight_decay": "released",
    "decay_norms": "zoo: not for Swin",
    "schedule": "released",
    "milestones": "released (step only)",
    "warmup_epochs": "released",
    "min_learning_rate": "zoo",
    "clip_norm": "released",
    "drop_path": "released",
    "crop_scale": "released: random crop; its range timm's",
    "interpolation": "zoo",
    "crop_pct": "zoo",
    "rand_augment": "released; its strength the zoo's",
    "random_erasing": "released; its share the zoo's",
    "label_smoothing": "zoo; not in the released one",
    "mixup": "zoo; not in the released one",
    "cutmix": "zoo; not in the released one",
    "mix_probability": "ours: some batches must be whole",
    "precision": "ours",
}
_SEGMENTATION = {
    "backbone": "zoo: weights of ImageNet-1k; the ResNet's are torchvision's: ours",
    "output_stride": "zoo",
    "channels": "zoo",
    "auxiliary": "zoo",
    "batch_size": "zoo",
    "crop_size": "zoo",
    "scale": "zoo",
    "class_share": "zoo",
    "image_size": "zoo: shorter side at the test, 0 the image's own",
    "window": "zoo: at the test, every two thirds of it",
    "color_jitter": "ours: a little more than the zoo's",
    "optimizer": "zoo",
    "learning_rate": "zoo",
    "weight_decay": "zoo",
    "min_learning_rate": "zoo",
    "power": "zoo",
    "warmup_epochs": "zoo: 1,500 steps",
    "drop_path": "zoo",
    "epochs": "paper, recalled: 160,000 steps",
    "precision": "ours",
}
#: Beside a recipe's own, for the data set whose zoo had fewer steps.
_EPOCHS = {
    "ade20k": "paper, recalled: 160,000 steps; the zoo's too",
    "cityscapes": "paper, recalled: 160,000 steps; the zoo's have 40,000 or 80,000",
    "coco_stuff10k": "80,000 steps: a later paper (ma2024ssaseg), seen",
}

_CODE, _TEXT = "the released code", "the paper (wang2023visual), as ri.k117.org quotes it"
_IMAGES = r"(cifar|imagenet).*"

#: What paper and released code say, and some recipe does not do. Their names are matched whole.
DIFFERENCES = (
    Difference(_IMAGES, "update_every", 1000, _CODE, "seen", "its file names 300 to 500 for Swin in a comment"),
    Difference(_IMAGES, "assignment", "random", _CODE, "seen", "in effect; a Sinkhorn stands beside it, not called"),
    Difference(_IMAGES, "scale_by", "layernorm", _CODE, "seen", "the prediction is then not always the nearest case"),
    Difference(
        r"imagenet_(resnet(50|101)|swin_.*)", "batch_size", 16, _TEXT, "quoted", "the released files: 256 and 1024"
    ),
    Difference(
        r"(ade20k|cityscapes|coco_stuff10k)_(fcn|deeplabv3)_.*",
        *("learning_rate", 0.1, _TEXT, "quoted", "SGD; the zoo's files, whose softmax scores we compare with: 0.01"),
    ),
)


# --- tables ---------------------------------------------------------------------------------------------------------


def deciding(shown: Iterable[Recipe]) -> list[str]:
    """The fields with a :class:`Setting` in any of these recipes, in their order."""
    return list(dict.fromkeys(field for recipe in shown for field in FOLLOW[recipe.name]))


def source_rows(shown: Sequence[Recipe]) -> list[list[str]]:
    """A table of recipes that follow the paper, field by field.

    Args:
        shown: the recipes, one a column.

    Returns:
        Rows of texts: the field, its value in each recipe ("-" where it is off or does not concern the recipe), and
        where that comes from; where the recipes differ in this, each value with its own source. A field that is off
        in all of them has no row, unless it decides for the head.
    """
    beside: dict[str, str] = {}
    for recipe in shown:
        beside |= _beside(recipe)
    decide = deciding(shown)
    rows = [[field, *(shown_value(each, field) for each in shown), words] for field, words in beside.items()]
    rows = [row for row in rows if set(row[1:-1]) != {"-"}]
    for field in decide:
        values = [shown_value(each, field, always=True) for each in shown]
        said = dict.fromkeys(
            (value, _words(each, field)) for value, each in zip(values, shown, strict=True) if value != "-"
        )
        words = list(dict.fromkeys(each for _, each in said))
        several = "; ".join(f"{value}: {each.replace(': ', ', ', 1)}" for value, each in said)
        rows.append([field, *values, words[0] if len(words) == 1 else several])
    return rows


def difference_rows(shown: Sequence[Recipe]) -> list[list[str]]:
    """What paper and released code say and these recipes do not do.

    Returns:
        Rows of texts: the field, its value in each recipe ("-" where the source is not about it, "as there" where
        they agree), what the source says, who says it, how sure that is (``seen``, ``quoted`` or ``recalled``), and a
        note. None where all agree.
    """
    rows = []
    for each in DIFFERENCES:
        values = []
        for recipe in shown:
            ours = getattr(recipe, each.field)
            about = re.fullmatch(each.recipes, recipe.name)
            values.append(("as there" if ours == each.there else str(ours)) if about else "-")
        if set(values) - {"-", "as there"}:
            rows.append([each.field, *values, str(each.there), each.source, each.verified, each.note])
    return rows


def shown_value(recipe: Recipe, field: str, always: bool = False) -> str:
    """A field's value in words; "-" where it does not concern this recipe or, unless ``always``, is 0 or empty."""
    value = getattr(recipe, field)
    idle = {
        "sgd_momentum": recipe.optimizer != "sgd",
        "milestones": recipe.schedule != "step",
        "power": recipe.schedule != "poly",
        "min_learning_rate": recipe.schedule not in ("cosine", "poly"),
        "mix_probability": not (recipe.mixup or recipe.cutmix),
        "epsilon": recipe.assignment != "sinkhorn",
        "temperature": recipe.scale_by == "layernorm",
        "pixels": not recipe.decoder,
        "norm_images": not recipe.norm_images,
    }
    zero_speaks = always or isinstance(value, bool) or (field == "image_size")
    return "-" if idle.get(field) or (value in ("", 0, ()) and not zero_speaks) else str(value).strip("()")


def _words(recipe: Recipe, field: str) -> str:
    """Where a recipe's value of a deciding field comes from."""
    setting = FOLLOW[recipe.name].get(field)
    if setting is None:
        return "the default"
    return setting.words if getattr(recipe, field) == setting.value else "changed here"


def _beside(recipe: Recipe) -> dict[str, str]:
    if not recipe.decoder:
        return _PICTURES
    return _SEGMENTATION | ({"epochs": _EPOCHS[recipe.dataset]} if recipe.dataset in _EPOCHS else {})
