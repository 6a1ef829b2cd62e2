"""The segmentation recipes against the public baselines' settings, and through the engine on miniatures."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dnc_lib import recipes, train
from dnc_lib.backbones import build_backbone, pretrained_normalisation
from dnc_lib.data.scene_layouts import CITYSCAPES
from dnc_lib.data.scenes import open_scenes
from dnc_lib.inference import segment
from dnc_lib.optimisation import make_optimizer, make_schedule, parameter_groups
from dnc_lib.recipes.scenes import __all__ as NAMES
from dnc_lib.records import canonical_arm, flatten, validate

#: Training images, optimiser steps that the docstrings tell of, classes.
SETS = {
    "ade20k": (20_210, 160_000, 150),
    "cityscapes": (2_975, 160_000, 19),
    "coco_stuff10k": (9_000, 80_000, 171),
}
RESNETS = [name for name in NAMES if name.endswith("resnet101")]
SWINS = [name for name in NAMES if name.endswith("swin_base")]

each_recipe = pytest.mark.parametrize("name", NAMES)


def steps_an_epoch(recipe):
    return SETS[recipe.dataset][0] // recipe.batch_size


@each_recipe
def test_the_epochs_make_the_steps_that_the_docstring_tells_of(name):
    recipe = recipes.get(name)
    steps = SETS[recipe.dataset][1]
    assert abs(recipe.epochs * steps_an_epoch(recipe) - steps) <= steps_an_epoch(recipe) / 2
    crops = f"{steps:,} steps of {recipe.batch_size} crops of {recipe.crop_size[0]}"
    assert crops in " ".join(recipes.describe(name).split())


@each_recipe
def test_what_all_public_baselines_share(name):
    recipe = recipes.get(name)
    assert (recipe.reader, recipe.schedule, recipe.auxiliary, recipe.channels) == ("scenes", "poly", 0.4, 512)
    assert (recipe.scale, recipe.class_share, recipe.flip) == ((0.5, 2.0), 0.75, True)
    assert (recipe.num_subcentroids, recipe.momentum, recipe.head) == (10, 0.999, "dnc")
    street = recipe.dataset == "cityscapes"
    expected = (8, (769, 769), 0, (769, 769)) if street else (16, (512, 512), 512, ())
    assert (recipe.batch_size, recipe.crop_size, recipe.image_size, recipe.window) == expected


def test_a_street_takes_eight_windows_of_769_every_513_pixels():
    seen = []

    def model(images):
        seen.append(tuple(images.shape[2:]))
        return images[:, :1]

    rows = torch.arange(1024.0)[:, None].expand(1024, 2048)
    columns = torch.arange(2048.0).expand(1024, 2048)
    images = torch.stack([rows, columns, rows])[None]
    scores = segment(model, images, window=recipes.cityscapes_fcn_resnet101().window)
    assert seen == [(769, 769)] * 8
    assert torch.equal(scores[0, 0], rows)  # each window is put back where it was cut
    seen.clear()

    def first_column(images):
        seen.append(int(images[0, 1, 0, 0]))
        return images[:, :1]

    segment(first_column, images, window=(769, 769))
    assert seen[:4] == [0, 513, 1026, 2048 - 769]


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_learn_by_sgd_and_poly_down_to_a_hundredth(name):
    recipe = recipes.get(name)
    assert (recipe.optimizer, recipe.sgd_momentum, recipe.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (recipe.output_stride, recipe.warmup_epochs, recipe.decay_norms) == (8, 0, True)
    rates = learning_rates(recipe)
    assert rates[0] == 0.01
    half = 1e-4 + (0.01 - 1e-4) * 0.5**0.9  # the public poly: from the floor up, not cut off at it
    assert rates[len(rates) // 2] == pytest.approx(half, rel=1e-6)
    assert rates[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("name", SWINS)
def test_swin_learns_by_adamw_after_some_1500_steps_of_warm_up(name):
    recipe = recipes.get(name)
    assert (recipe.optimizer, recipe.weight_decay, recipe.drop_path) == ("adamw", 0.01, 0.3)
    assert 1_200 <= recipe.warmup_epochs * steps_an_epoch(recipe) <= 1_700
    rates = learning_rates(recipe)
    top, last = recipe.warmup_epochs * A_FEW, len(rates) - 1
    assert rates[0] < 1e-6
    assert rates[top] == max(rates) == pytest.approx(6e-5)
    middle = top + (last - top) // 2
    assert rates[middle] == pytest.approx(6e-5 * (last - middle) / (last - top))  # a line down to zero
    assert rates[last] == pytest.approx(0, abs=1e-12)


#: Steps an epoch that the shape of a schedule is tested with: it is one of epochs, and the true ones take a second.
A_FEW = 4


def learning_rates(recipe):
    """Before each step and after the last, by the schedule itself; one layer stands for the network."""
    optimizer = make_optimizer(recipe, torch.nn.Linear(1, 1))
    schedule = make_schedule(recipe, optimizer, A_FEW)
    rates = [optimizer.param_groups[0]["lr"]]
    optimizer.step()  # torch warns where a schedule steps first
    for _ in range(recipe.epochs * A_FEW):
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_weights_are_those_of_the_smaller_imagenet():
    """timm's plain name of Swin-B means weights that saw ImageNet-22k: worth more than any head is said to gain."""
    assert "22k" in timm.get_pretrained_cfg("swin_base_patch4_window7_224").tag
    for name in NAMES:
        recipe = recipes.get(name)
        assert recipe.weights == "imagenet"
        tag = timm.get_pretrained_cfg(recipe.backbone).tag
        assert tag == ("ms_in1k" if name in SWINS else "tv_in1k")
        mean, std = pretrained_normalisation(recipe.backbone)
        assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_swin_s_norms_and_position_tables_are_spared_from_weight_decay():
    recipe = recipes.ade20k_upernet_swin_base()
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"backbone": build_backbone(recipe.backbone)})
    groups = parameter_groups(recipe, model)
    free = {id(each) for group in groups if group["weight_decay"] == 0 for each in group["params"]}
    spared = {key for key, each in model.named_parameters() if id(each) in free}
    tables = [key for key, _ in model.named_parameters() if "relative_position_bias_table" in key]
    norms = [key for key, _ in model.named_parameters() if ".norm" in key]
    assert len(tables) == 24
    assert spared.issuperset(tables)
    assert spared.issuperset(norms)
    assert not any(key.endswith("qkv.weight") for key in spared)


@each_recipe
def test_momentum_forgets_the_random_start(name):
    recipe = recipes.get(name)
    assert recipe.start_kept(recipe.epochs * steps_an_epoch(recipe)) < 1e-30


def test_a_record_names_such_recipes_as_they_are():
    assert canonical_arm("dnc momentum=0.999", "ade20k_fcn_resnet101") == "dnc"
    assert canonical_arm("dnc num_subcentroids=1", "cityscapes_upernet_swin_base") == "dnc num_subcentroids=1"


# --- through the engine ---------------------------------------------------------------------------------------------

#: What shrinks; everything else is the recipe's.
SMALL = {
    "backbone": "tiny_resnet8",
    "weights": "",
    "output_stride": 0,
    "drop_path": 0.0,
    "channels": 16,
    "crop_size": (33, 33),
    "epochs": 2,
    "evaluate_every": 2,
    "batch_size": 4,
    "warmup_epochs": 0,
    "momentum": 0.2,
    "memory_size": 200,
    "precision": "no",
}


def write_scenes(root: Path, dataset: str, train: int = 5, test: int = 2) -> list[tuple[int, int]]:
    """Scenes in the data set's own layout and sizes of their own; the numbers in masks are those of its files.

    Returns:
        (height, width) of the test scenes.
    """
    rng, where, sizes = np.random.default_rng(0), root / dataset, []
    for part, count in (("train", train), ("test", test)):
        for i in range(count):
            size = (40, 72) if dataset == "cityscapes" else (40 + 3 * i, 60 - 2 * i)
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            block = rng.integers(0, 19, (4, 4), dtype=np.uint8).repeat(10, 0).repeat(18, 1)
            classes = np.resize(block, size)
            if dataset == "ade20k":
                split = {"train": "training", "test": "validation"}[part]
                names = (f"images/{split}/ADE_{i}.jpg", f"annotations/{split}/ADE_{i}.png")
                numbers = classes  # 0 is "other", 1 to 18 are the classes 0 to 17
            elif dataset == "cityscapes":
                split = {"train": "train/aachen", "test": "val/lindau"}[part]
                names = (f"leftImg8bit/{split}/a_{i}_leftImg8bit.png", f"gtFine/{split}/a_{i}_gtFine_labelIds.png")
                numbers = np.array([label for label, _ in CITYSCAPES.values()], dtype=np.uint8)[classes]
                numbers[:3] = 1  # the car's own bonnet, for once on top
            else:
                names, numbers = (f"images/{part}{i}.jpg", f"annotations/{part}{i}.png"), classes.copy()
                numbers[:3] = 255
            for name, content in zip(names, (image, Image.fromarray(numbers)), strict=True):
                (where / name).parent.mkdir(parents=True, exist_ok=True)
                content.save(where / name)
            sizes += [size] if part == "test" else []
    if dataset == "ade20k":
        rows = [f"{c}\t0.1\t1\t1\tthing {c}, other name" for c in range(1, 151)]
        (where / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    if dataset == "coco_stuff10k":
        (where / "classes.txt").write_text("\n".join(f"stuff {c}" for c in range(171)))
        (where / "imageLists").mkdir()
        for part, count in (("train", train), ("test", test)):
            (where / "imageLists" / f"{part}.txt").write_text("\n".join(f"{part}{i}" for i in range(count)))
    return sizes


@pytest.mark.parametrize(
    "name", ["ade20k_fcn_resnet101", "cityscapes_deeplabv3_resnet101", "coco_stuff10k_upernet_swin_base"]
)
def test_a_miniature_goes_the_way_of_the_full_run(name, tmp_path):
    recipe = recipes.get(name)
    sizes = write_scenes(tmp_path, recipe.dataset)
    shrunk = {"window": (33, 33)} if recipe.window else {"image_size": 32}
    recipe = recipe.replace(**SMALL, **shrunk)
    run = train(recipe, tmp_path, tmp_path / "runs", profile="smoke", progress=False)
    manifest = json.loads(json.dumps(run.manifest))
    validate(manifest)
    classes = SETS[recipe.dataset][2]
    assert len(manifest["classes"]) == len(manifest["final"]["iou"]) == classes
    assert [(part, each["images"]) for part, each in manifest["data"].items()] == [("train", 5), ("test", 2)]
    assert flatten(manifest, "manifest.json") == []  # a smoke run is no result
    assert flatten({**manifest, "profile": "full"}, "manifest.json")[0].recipe.startswith(f"{name} backbone=tiny")
    model, _ = run.model()
    assert model.auxiliary is None  # it is for training alone
    masks = [open_scenes(recipe.dataset, tmp_path)["test"].read(i)[1] for i in range(2)]
    assert [mask.shape for mask in masks] == sizes
    assert all({255} < set(np.unique(mask).tolist()) for mask in masks)
