"""Hours by arithmetic: from the operations of a network, one GPU for all, and the docstrings that repeat them."""

import json
import re
from pathlib import Path

import pytest

from dnc_lib import recipes
from dnc_lib.estimates import DEVICES, GPU, UTILISATION, hours, image_operations, run_operations
from dnc_lib.recipes.sources import FOLLOW

ESTIMATED = [name for name in FOLLOW if not name.startswith("cifar")]
#: One of each network: the rest takes half a minute.
FEW = {"imagenet_resnet50", "imagenet_swin_small_paper", "ade20k_fcn_resnet101", "cityscapes_upernet_swin_base"}


def test_the_operations_are_those_that_are_printed_with_the_networks():
    resnet = recipes.imagenet_resnet50()
    assert image_operations(resnet) / 6 == pytest.approx(4.09e9, rel=0.01)  # multiply-adds of a forward pass
    assert image_operations(resnet, num_classes=10) < image_operations(resnet)
    steps = 1_281_167 // 256
    assert run_operations(resnet) == image_operations(resnet) * steps * 256 * 100
    assert hours(3600e12, utilisation=0.5, gpu=DEVICES["A100"]) == pytest.approx(1 / 156)


def test_a_segmenter_is_counted_at_the_size_of_its_crop():
    small = recipes.camvid_fcn_efficientnet()
    half = small.replace(crop_size=(128, 256))
    assert image_operations(half) == pytest.approx(image_operations(small) / 2, rel=0.02)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in ESTIMATED])
def test_the_hours_of_a_docstring_are_those_of_the_arithmetic(name):
    said = " ".join(recipes.describe(name).split())
    low, high, gpu = re.search(r"not measured: (\d+) to (\d+) hours on one (\w+)", said).groups()
    operations = run_operations(recipes.get(name))
    assert gpu == GPU.name
    assert [int(low), int(high)] == [round(hours(operations, share)) for share in UTILISATION]


@pytest.mark.parametrize("chapter", ["cost_and_scaling", "ade20k", "cityscapes", "imagenet"])
def test_no_chapter_has_a_gpu_of_its_own(chapter):
    path = Path(__file__).resolve().parents[1] / "book" / f"{chapter}.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        outputs = [
            each.get("text") or each.get("data", {}).get("text/markdown", "") for each in cell.get("outputs", [])
        ]
        source = "".join(cell["source"])
        assert not re.search(r"\d{3}e12", source), "a peak that is typed"
        said = re.findall(r"\ban? ([AHVB]\d00)\b", "\n".join([source, *map("".join, outputs)]))
        assert set(said) <= {GPU.name}
