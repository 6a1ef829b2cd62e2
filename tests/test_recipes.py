import dataclasses
import inspect
import json

import pytest

from dnc_lib import recipes
from dnc_lib.recipes import Recipe
from dnc_lib.recipes.base import field_help


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
def test_the_two_kinds_of_swin_differ_in_mixing_alone(size):
    released, zoo = (recipes.get(f"imagenet_swin_{size}_{kind}") for kind in ("as_released", "zoo"))
    differ = {key for key, value in released.to_dict().items() if zoo.to_dict()[key] != value}
    assert differ == {"name", "mixup", "cutmix", "mix_probability", "label_smoothing"}
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
