import dataclasses
import inspect
import json
import re
from html import unescape
from pathlib import Path

import pytest

from dnc_lib import recipes
from dnc_lib.recipes import Recipe
from dnc_lib.recipes.base import field_help
from dnc_lib.recipes.sources import DIFFERENCES, FOLLOW, deciding, difference_rows, settings, source_rows

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_is_a_function_of_its_own_name(name):
    function = getattr(recipes, name)
    recipe = function()
    assert recipe.name == name
    assert recipe == recipes.get(name)
    assert function(seed=3, head="softmax") == dataclasses.replace(recipe, seed=3, head="softmax")
    described = recipes.describe(name)
    for word in ("Expect", "Time", "Data"):
        assert word in described
    network = name.removeprefix(f"{recipe.dataset}_").removesuffix("_as_released").removesuffix("_zoo")
    network = network.removesuffix("_paper")
    purposes = ("subset", "ablation", "short", "cifar100_superclasses")
    network = "fast_narrow" if network in purposes else network
    decoder, _, backbone = network.partition("_") if recipe.decoder else ("", "", network)
    assert (decoder, backbone in recipe.backbone) == (recipe.decoder, True)


def test_a_recipe_survives_json():
    recipe = recipes.cifar100_resnet50(learning_rate=1)
    fields = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe.from_dict(fields) == recipe
    del fields["accumulate"]  # as in a manifest older than the field
    assert Recipe.from_dict(fields) == recipe
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        Recipe.from_dict({**fields, "speed": 1})


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.digits_resnet8().seed = 1


def test_the_schedules_of_the_design():
    ten, hundred = recipes.cifar10_resnet50(), recipes.cifar100_resnet50()
    for recipe in (ten, hundred):
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.sgd_momentum) == (200, 128, 0.1, 0.9)
        assert (recipe.num_subcentroids, recipe.momentum, recipe.pad, recipe.flip) == (4, 0.999, 4, True)
    assert (ten.weight_decay, ten.milestones, ten.decay) == (1e-4, (100, 150), 0.1)
    assert (hundred.weight_decay, hundred.milestones, hundred.decay) == (5e-4, (60, 120, 160), 0.2)


def test_unknown_recipes_and_fields_meet_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'cifar10_resnet21'. Did you mean cifar10_resnet\d+\?"):
        recipes.get("cifar10_resnet21")
    with pytest.raises(ValueError, match="unknown recipe 'get'"):  # a name of the module that is no recipe
        recipes.get("get")
    with pytest.raises(ValueError, match=r"a recipe has no field epoch. Did you mean epochs?"):
        recipes.digits_resnet8(epoch=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "svm"}, "head must be one of softmax, cosine, frozen, dnc, got 'svm'"),
        ({"schedule": "linear"}, "schedule must be one of step, one_cycle, cosine, poly, constant"),
        ({"precision": "fp8"}, "precision must be one of no, bf16, fp16"),
        ({"assignment": "best"}, "assignment must be one of sinkhorn, nearest, random"),
        ({"start": "zero"}, "start must be one of random, data"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"num_subcentroids": 0}, "num_subcentroids must be 1 or more"),
        ({"image_size": 0}, "image_size must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"pad": -1}, "pad must be 0 or more"),
        ({"validation": -5}, "validation must be 0 or more"),
        ({"train_limit": -5}, "train_limit must be 0 or more"),
        ({"weight_decay": -1e-4}, "weight_decay must be 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"momentum": 1.0}, "momentum must be 0 or more and below 1, got 1.0"),
        ({"sgd_momentum": -0.1}, "sgd_momentum must be 0 or more and below 1"),
        ({"label_smoothing": 1}, "label_smoothing must be 0 or more and below 1"),
        ({"refresh": True}, "refresh needs held-out images to judge it by: set validation"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"epochs": 2.0}, "epochs must be int, got 2.0"),
        ({"epochs": True}, "epochs must be int, got True"),
        ({"flip": 1}, "flip must be bool, got 1"),
        ({"learning_rate": "fast"}, "learning_rate must be float, got 'fast'"),
        ({"dataset": None}, "dataset must be str, got None"),
        ({"milestones": [3, 5]}, r"milestones must be a tuple of int, got \[3, 5\]"),
        ({"milestones": (3, 5.5)}, "milestones must be a tuple of int"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"reader": "disk"}, "reader must be one of memory, files, scenes, got 'disk'"),
        ({"accumulate": 0}, "accumulate must be 1 or more"),
        ({"accumulate": 5}, "batch_size 64 cannot be cut into 5 equal parts"),
        ({"crop_scale": (0.5,)}, r"crop_scale must be two numbers, 0 < low <= high <= 1, got \(0.5,\)"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale must be two numbers, 0 < low <= high <= 1"),
        ({"crop_pct": 1.1}, "crop_pct must be above 0 and at most 1, got 1.1"),
        ({"mix_probability": 1.5}, "mix_probability must be between 0 and 1"),
        ({"warmup_epochs": 2}, "warmup_epochs 2 does not fit: one_cycle warms up by itself"),
        ({"warmup_epochs": 10, "schedule": "cosine"}, "other schedules need more epochs than that, got 10"),
        ({"learning_rate": float("inf")}, "learning_rate must be float, got inf"),
        ({"rand_augment": "rand-m9"}, "rand_augment is for pictures: it needs reader files, got memory"),
        ({"color_jitter": 0.4}, "color_jitter is for pictures"),
        ({"random_erasing": 0.25}, "random_erasing is for pictures"),
        ({"mixup": 0.8}, "mixed batches never move sub-centroids, and with mix_probability 1 all are mixed"),
    ],
)
def test_values_that_no_training_could_use(changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.digits_resnet8(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "pspnet"}, "decoder must be one of nothing, fcn, deeplabv3, upernet, got 'pspnet'"),
        ({"decoder": ""}, "reader scenes and a decoder belong together, got reader scenes and decoder ''"),
        ({"reader": "files"}, "reader scenes and a decoder belong together, got reader files and decoder 'fcn'"),
        ({"crop_size": ()}, "scenes are cut: set crop_size to height and width"),
        ({"crop_size": (256,)}, r"crop_size must be height and width, or nothing, got \(256,\)"),
        ({"window": (0, 9)}, r"window must be height and width, or nothing, got \(0, 9\)"),
        ({"scale": (2.0, 0.5)}, r"scale must be two numbers, 0 < low <= high, got \(2.0, 0.5\)"),
        ({"class_share": 0.0}, "class_share must be above 0 and at most 1, got 0.0"),
        ({"output_stride": 4}, "output_stride must be one of 0, 8, 16, 32, got 4"),
        ({"pixels": 0}, "pixels must be 1 or more, got 0"),
        ({"channels": 0}, "channels must be 1 or more, got 0"),
        ({"auxiliary": -0.4}, "auxiliary must be 0 or more, got -0.4"),
        ({"backbone_rate": 0.0}, "backbone_rate must be above 0, got 0.0"),
        ({"evaluate_every": 0}, "evaluate_every must be 1 or more, got 0"),
        ({"mixup": 0.8, "mix_probability": 0.5}, "mixup, cutmix and label_smoothing are for whole images, not for"),
        ({"rand_augment": "rand-m9"}, "rand_augment is for pictures: it needs reader files, got scenes"),
    ],
)
def test_values_that_no_training_on_scenes_could_use(changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.camvid_fcn_efficientnet(**changes)


@pytest.mark.parametrize(
    ("field", "value"), [("crop_size", (8, 8)), ("window", (8, 8)), ("auxiliary", 0.4), ("output_stride", 8)]
)
def test_what_serves_scenes_alone(field, value):
    with pytest.raises(ValueError, match=f"{field} is for scenes: it needs reader scenes, got memory"):
        recipes.digits_resnet8(**{field: value})


def test_the_decoders_are_those_that_there_are():
    from dnc_lib.decoders import DECODERS

    for decoder in DECODERS:
        assert recipes.camvid_fcn_efficientnet(decoder=decoder).decoder == decoder


def test_whole_numbers_will_do_for_a_float():
    assert recipes.digits_resnet8(learning_rate=1).learning_rate == 1


def test_the_share_of_the_start_that_is_kept():
    recipe = recipes.cifar10_resnet20()
    assert recipe.start_kept(0) == 1
    assert recipe.start_kept(1000) == pytest.approx(0.999**1000)
    assert recipe.replace(start="data").start_kept(1) == 0
    assert recipe.replace(start="data").start_kept(0) == 1  # no update came: they are where they were


def test_every_field_is_explained():
    assert set(field_help()) >= {field.name for field in dataclasses.fields(Recipe)}
    assert not any(mark in text for text in field_help().values() for mark in ("`", ":func:"))
    assert "Attributes:" in inspect.getdoc(Recipe)


def test_head_settings_build_every_head():
    from dnc_lib.heads import HEADS, build_head

    for head in HEADS:
        build_head(head, 8, 3, **recipes.digits_resnet8().head_settings())


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_three_kinds_of_swin_differ_in_mixing_or_in_the_update_alone(size):
    paper, released, zoo = (recipes.get(f"imagenet_swin_{size}_{kind}") for kind in ("paper", "as_released", "zoo"))

    def differ(other):
        return {key for key, value in paper.to_dict().items() if other.to_dict()[key] != value}

    assert differ(zoo) == {"name", "mixup", "cutmix", "mix_probability", "label_smoothing"}
    assert differ(released) == {"name", "assignment", "update_after", "update_every", "scale_by"}
    assert (released.assignment, released.scale_by) == ("random", "layernorm")
    assert (released.num_subcentroids, released.momentum, released.correct_only) == (4, 0.999, True)
    steps = range(3001)  # as the engine counts: the update comes after step 999 from 0, the thousandth batch
    after, every = released.update_after, released.update_every
    moving = [step for step in steps if step >= after and (step - after) % every == 0]
    assert moving == [999, 1999, 2999]
    assert (released.optimizer, released.learning_rate, released.weight_decay) == ("adamw", 1e-3, 0.05)
    assert (released.epochs, released.warmup_epochs, released.batch_size, released.clip_norm) == (300, 20, 1024, 5)
    assert released.drop_path == {"tiny": 0.2, "small": 0.3, "base": 0.5}[size]
    assert not released.decay_norms


def test_the_resnets_of_imagenet():
    for name in ("imagenet_resnet50", "imagenet_resnet101"):
        recipe = recipes.get(name)
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (100, 256, 0.1)
        assert (recipe.milestones, recipe.decay, recipe.weight_decay) == ((30, 60, 90), 0.1, 1e-4)
        assert (recipe.num_subcentroids, recipe.momentum) == (4, 0.999)
        assert recipe.reader == "files"


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("dnc", {"head": "dnc"}),
        ("dnc num_subcentroids=1", {"head": "dnc", "num_subcentroids": 1}),
        ("momentum=0.9 correct_only=true", {"momentum": 0.9, "correct_only": True}),
        (
            "softmax milestones=3,5 crop_scale=0.2,1",
            {"head": "softmax", "milestones": (3, 5), "crop_scale": (0.2, 1)},
        ),
    ],
)
def test_arms_in_words(text, changes):
    assert recipes.parse_arm(text) == changes
    recipes.digits_resnet8(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("svm", r"arm 'svm': 'svm' is neither a head \(softmax, cosine, frozen, dnc\) nor field=value of a recipe"),
        ("dnc speed=3", "'speed=3' is neither a head"),
        ("epochs=many", "epochs must be int, got 'many'"),
        ("flip=1", "flip must be true or false, got '1'"),
        ("milestones=a", "milestones must be numbers, by commas, got 'a'"),
    ],
)
def test_arms_that_make_no_sense(text, message):
    with pytest.raises(ValueError, match=message):
        recipes.parse_arm(text)


# --- what follows the paper, and where each setting comes from ------------------------------------------------------

#: By the paper as it is recalled, and where it is silent by the released update: stated here once more, on purpose.
PAPER = {
    "assignment": "sinkhorn",
    "epsilon": 0.05,
    "momentum": 0.999,
    "update_every": 1,
    "update_after": 0,
    "correct_only": True,
    "start": "random",
    "spread": "none",
    "scale_by": "temperature",
    "temperature": 0.1,
}


def test_the_recipes_that_follow_the_paper_are_all_of_its_data_sets_and_no_others():
    own = {"cifar10_fast", "cifar10_resnet20", "cifar10_short", "cifar10_subset"}  # this book's, for a CPU
    sets = ("cifar10_resnet", "cifar100_resnet", "imagenet", "ade20k", "cityscapes", "coco_stuff10k")
    expected = {name for name in recipes.NAMES if name.startswith(sets)} - own
    assert set(FOLLOW) == expected


@pytest.mark.parametrize("name", FOLLOW)
def test_a_recipe_of_the_paper_trains_the_papers_method(name):
    recipe = recipes.get(name)
    assert recipe.correct_only
    for field, value in settings(name).items():
        assert getattr(recipe, field) == value
    if not name.endswith("_as_released"):
        assert {field: getattr(recipe, field) for field in PAPER} == PAPER
        assert recipe.num_subcentroids == (10 if recipe.decoder else 4)
    assert recipe.norm_images == (16 if "cifar" in name else {"50": 32, "01": 32, "18": 128}.get(
        name[-2:] if name.startswith("imagenet_resnet") else "", 0))  # fmt: skip


def test_every_setting_says_who_says_so_and_our_own_say_why():
    for name, each in FOLLOW.items():
        assert set(PAPER) | {"num_subcentroids", "memory_size"} <= set(each)
        for field, setting in each.items():
            assert setting.source in ("released", "paper, recalled", "zoo", "ours"), (name, field)
            assert setting.note or setting.source != "ours", (name, field)


def test_a_table_of_sources_has_each_value_and_where_it_comes_from():
    names = ["imagenet_resnet50", "imagenet_swin_small_paper", "imagenet_swin_small_as_released"]
    shown = [recipes.get(name) for name in names]
    rows = {row[0]: row[1:] for row in source_rows(shown)}
    assert set(FOLLOW[names[0]]) | set(FOLLOW[names[2]]) <= set(rows)
    assert len(rows) == len(source_rows(shown))
    assert rows["correct_only"][:3] == ["True"] * 3
    assert rows["update_after"][:3] == ["0", "0", "999"]
    assert rows["norm_images"][:3] == ["32", "-", "-"]
    assert rows["epsilon"][:3] == ["0.05", "0.05", "-"]  # a drawn assignment has none
    assert rows["epochs"] == ["100", "300", "300", "released"]
    said = "1: paper, recalled, after each optimiser step; 1000: released, once in 1000 batches"
    assert rows["update_every"][3] == said
    changed = {row[0]: row[1:] for row in source_rows([shown[0].replace(momentum=0.9)])}
    assert changed["momentum"] == ["0.9", "changed here"]


def test_differences_are_named_with_source_and_how_sure_it_is():
    names = ["ade20k_fcn_resnet101", "ade20k_upernet_swin_base"]
    ((field, *values, there, source, verified, note),) = difference_rows([recipes.get(name) for name in names])
    assert (field, values, there, verified) == ("learning_rate", ["0.01", "-"], "0.1", "quoted")
    assert "wang2023visual" in source
    assert note
    assert difference_rows([recipes.ade20k_fcn_resnet101(learning_rate=0.1)]) == []
    released = {row[0]: row[1] for row in difference_rows([recipes.imagenet_swin_base_as_released()])}
    assert released == {"batch_size": "1024"}  # what the released code does is done there
    text = {row[0]: row[1] for row in difference_rows([recipes.imagenet_resnet50()])}
    assert text == {"update_every": "1", "assignment": "sinkhorn", "scale_by": "temperature", "batch_size": "256"}
    assert all(each.verified in ("seen", "quoted", "recalled") for each in DIFFERENCES)
    assert all(any(re.fullmatch(each.recipes, name) for name in FOLLOW) for each in DIFFERENCES)


@pytest.mark.parametrize(
    ("chapter", "names"),
    [
        (
            "imagenet",
            [
                *("imagenet_resnet50", "imagenet_swin_small_paper"),
                *("imagenet_swin_small_as_released", "imagenet_swin_small_zoo"),
            ],
        ),
        ("ade20k", [name for name in recipes.NAMES if name.startswith("ade20k")]),
        ("cityscapes", [name for name in recipes.NAMES if name.startswith("cityscapes")]),
    ],
)
def test_the_chapters_print_the_deciding_fields_as_the_recipes_have_them(chapter, names):
    """In the committed output: a row a field, with the value of each recipe and its source."""
    cells = json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [each for each in cells if each["cell_type"] == "code" and "source_rows(" in "".join(each["source"])]
    printed = table_rows(cell["outputs"])
    shown = [recipes.get(name) for name in names]
    rows = source_rows(shown)
    assert set(deciding(shown)) <= {row[0] for row in printed}
    assert [row for row in printed if row[0] != "field"] == rows


def test_the_ablations_say_of_the_recipes_what_is_true_of_them():
    cells = json.loads((BOOK / "ablations.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = [" ".join("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown"]
    said = "uses correct samples only, and so does every recipe of this book that follows the paper"
    assert any(f"The released code, by the way, {said}" in text for text in texts)
    (cell,) = [each for each in cells if "from dnc_lib.recipes.sources import FOLLOW" in "".join(each["source"])]
    (output,) = cell["outputs"]
    follow = [name for name in FOLLOW if recipes.get(name).correct_only]
    assert len(follow) == len(FOLLOW)
    assert f"{len(follow)} of {len(FOLLOW)}" in "".join(output["text"])


def table_rows(outputs):
    """The rows of the one table that a cell shows, HTML or Markdown, as texts."""
    (data,) = [each["data"] for each in outputs if "data" in each]
    if "text/html" in data:
        lines = re.findall(r"<tr>(.*?)</tr>", "".join(data["text/html"]))
        return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in lines]
    lines = "".join(data["text/markdown"]).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[0], *lines[2:])]
