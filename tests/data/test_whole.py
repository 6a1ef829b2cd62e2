"""Whether a data set is whole: by counts alone, from a manifest or from the images."""

import importlib

import pytest

from dnc_lib import recipes
from dnc_lib.data.whole import WHOLE, missing

IMAGENET = {"train": 1_281_167, "test": 50_000}


@pytest.mark.parametrize(
    ("name", "images", "cuts", "said"),
    [
        ("imagenet", IMAGENET, {}, ""),
        ("imagenet", IMAGENET, {"classes": 1000}, ""),
        ("imagenet", {"train": 1_281_166, "test": 50_000}, {}, "1,281,166 of 1,281,167 train images"),
        (
            "imagenet",
            {"train": 10, "test": 3},
            {"classes": 10},
            "10 of 1,281,167 train images, 3 of 50,000 test images, 10 of 1,000 classes",
        ),
        ("imagenet", {"train": 100_000, "test": 50_000}, {"train_limit": 100_000}, ""),
        ("imagenet", {"train": 99_999, "test": 50_000}, {"train_limit": 100_000}, "99,999 of 100,000 train images"),
        ("imagenet", {"train": 5, "test": 5}, {"leave_out": (3,)}, ""),  # classes differ in size: not known
        ("cifar10", {"train": 45_000, "test": 10_000, "validation": 5000}, {"validation": 5000}, ""),
        ("cifar10", {"train": 45_000, "test": 10_000}, {}, "45,000 of 50,000 train images"),
        ("cifar10", {"train": 35_000, "test": 8000}, {"validation": 5000, "leave_out": (0, 2)}, ""),
        (
            "cifar10",
            {"train": 35_000, "test": 7999},
            {"validation": 5000, "leave_out": (0, 2)},
            "7,999 of 8,000 test images",
        ),
        ("cifar10", {"train": 10_000, "test": 10_000}, {"train_limit": 10_000}, ""),
        ("cifar100_coarse", {"train": 50_000, "test": 10_000}, {"classes": 20}, ""),
        ("camvid", {"train": 367, "test": 233, "validation": 101}, {}, ""),
        ("camvid", {"train": 367, "test": 233}, {}, "0 of 101 validation images"),
        ("ade20k", {"train": 20_210, "test": 2000}, {"classes": 150}, ""),
        ("cityscapes", {"train": 2975, "test": 499}, {}, "499 of 500 test images"),
        ("digits", {"train": 5, "test": 5}, {}, ""),  # no published size
    ],
)
def test_what_is_missing(name, images, cuts, said):
    assert missing(name, images, **cuts) == (said and f"not the whole of {name}: {said}")


def test_the_sizes_are_those_that_the_data_scripts_verify(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "data_scripts"))
    for name, script, spec, parts in (
        ("ade20k", "ade20k", "Ade20k", ("training", "validation")),
        ("cityscapes", "cityscapes", "Cityscapes", ("train", "val")),
        ("coco_stuff10k", "coco_stuff", "CocoStuff", ("train", "test")),
        ("camvid", "camvid", "CamVid", ("train", "test", "val")),
        ("imagenet", "imagenet", "ImageNet", ("train_images", "val_images")),
    ):
        module = importlib.import_module(script)
        found = next(value for key, value in vars(module).items() if key.lower() == spec.lower())()
        whole = WHOLE[name]
        wanted = (whole.train, whole.test, whole.validation)[: len(parts)]
        assert tuple(getattr(found, part) for part in parts) == wanted


def test_every_recipe_of_a_published_set_is_checked():
    sets = {recipes.get(name).dataset for name in recipes.NAMES} - {"digits", "digit_scenes"}
    assert sets <= set(WHOLE)
