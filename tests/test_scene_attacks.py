"""Bad data and wrong use of trainings on scenes: one line that says what to do, never a traceback or a hang."""

import numpy as np
import pytest
from PIL import Image
from scene_runs import write_scenes
from test_resume import Crash, crash_at

from dnc_lib import recipes
from dnc_lib.__main__ import main
from dnc_lib.comparisons import compare
from dnc_lib.runs import held
from dnc_lib.training import train

SMALL = {
    "dataset": "streets", "epochs": 1, "evaluate_every": 1, "crop_size": (32, 32), "channels": 8, "batch_size": 4,
    "memory_size": 100, "update_after": 0, "momentum": 0.04, "backbone": "tiny_resnet8", "image_size": 0,
    "scale": (0.8, 1.25), "optimizer": "sgd", "learning_rate": 0.01, "schedule": "poly",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A data root with ``streets``: eight training and four test scenes of sky, road and car."""
    write_scenes(tmp_path / "data" / "streets")
    return tmp_path / "data"


@pytest.fixture
def dnc(root, capsys):
    """``dnc train digit_scenes_fcn`` on the streets, small, with these words; gives its status and what it said."""

    def run(*words, workers=0):
        command = ["train", "digit_scenes_fcn", "--quiet", "--workers", str(workers)]
        for field, value in SMALL.items():
            values = value if isinstance(value, tuple) else (value,)
            command += [f"--{field.replace('_', '-')}", *map(str, values)]
        command += ["--data-root", str(root), "--output", str(root / "runs"), *map(str, words)]
        status = main(command)
        return status, capsys.readouterr().err.strip()

    return run


def mask(root, number=3, part="train"):
    return root / "streets" / "masks" / part / f"{number:03d}.png"


def image(root, number=3, part="train"):
    return root / "streets" / "images" / part / f"{number:03d}.png"


def save(pixels, path):
    Image.fromarray(pixels).save(path)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: save(np.zeros((20, 30), np.uint8), mask(root)), "003.png is 30x20 but its image"),
        (lambda root: save(np.zeros((40, 56, 3), np.uint8), mask(root)), "003.png has 3 channels (RGB), but a mask"),
        (lambda root: save(np.zeros((40, 56), np.uint16), mask(root)), "has numbers of more than 8 bits (I;16)"),
        (
            lambda root: save(np.full((40, 56), 200, np.uint8), mask(root)),
            "003.png has numbers that stand for nothing in streets, training: 200 (2240 pixels); classes are 0 to 2",
        ),
        (lambda root: mask(root).unlink(), "003.png has no mask"),
        (lambda root: image(root).unlink(), "003.png has no image"),
        (lambda root: half(image(root)), "images/train/003.png cannot be read as an image (image file is truncated)"),
        (lambda root: half(mask(root)), "masks/train/003.png cannot be read as an image (image file is truncated)"),
        (lambda root: half(mask(root, part="test")), "masks/test/003.png cannot be read as an image"),
        (lambda root: (root / "streets" / "classes.txt").unlink(), "classes.txt is missing: it names the classes"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_wrong_is_named(dnc, root, spoil, message, workers):
    spoil(root)
    status, said = dnc(workers=workers)
    assert status == 2
    assert message in said
    assert "\n" not in said


def test_scenes_of_any_size_and_images_of_any_kind(dnc, root):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, (height, width) in enumerate([(1, 1), (17, 90), (33, 20), (64, 64)]):
            save(rng.integers(0, 256, (height, width, 3)).astype(np.uint8), image(root, number, part))
            save(rng.integers(0, 3, (height, width)).astype(np.uint8), mask(root, number, part))
    picture = Image.open(image(root, 4)).convert("RGB")
    for number, mode in enumerate(("L", "RGBA", "P", "1"), start=4):
        picture.convert(mode).save(image(root, number))
    image(root, 0, "test").unlink()
    Image.new("CMYK", (1, 1)).save(image(root, 0, "test").with_suffix(".tif"))
    save(np.full((64, 64), 40_000, np.uint16), image(root, 3, "test"))
    assert dnc() == (0, "")


@pytest.mark.parametrize("quiet", [True, False])
def test_training_masks_without_a_label(root, quiet):
    for number in range(8):
        save(np.full((40, 56), 255, np.uint8), mask(root, number))
    with pytest.raises(ValueError, match=r"no pixel of 2 steps had a label, so there was nothing to learn: do the"):
        train(recipes.digit_scenes_fcn(**SMALL), root, root / "runs", progress=not quiet)


def test_test_masks_without_a_label(dnc, root):
    for number in range(4):
        save(np.full((40, 56), 255, np.uint8), mask(root, number, "test"))
    assert dnc() == (2, "dnc: no pixel has a label: every one is 255; does the data set's table fit its files?")


def test_a_class_that_never_occurs_has_no_iou_of_its_own(dnc, root):
    (root / "streets" / "classes.txt").write_text("sky\nroad\ncar\ntram\n")
    recipe = recipes.digit_scenes_fcn(**SMALL, head="softmax")
    manifest = train(recipe, root, root / "runs", progress=False).manifest
    assert manifest["classes"][3] == "tram"
    seen = [value for value in manifest["final"]["iou"] if value is not None]
    assert manifest["final"]["miou"] == pytest.approx(sum(seen) / len(seen))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--crop-size", 32], "dnc: crop_size must be height and width, or nothing, got (32,)"),
        (["--crop-size", 9, 9, 9], "dnc: crop_size must be height and width, or nothing, got (9, 9, 9)"),
        (["--window", 20], "dnc: window must be height and width, or nothing, got (20,)"),
        (
            ["--output-stride", 8],
            "dnc: tiny_resnet8 is made for small images and has a fixed stride: leave output_stride out",
        ),
        (
            ["--backbone", "swin_tiny_patch4_window7_224", "--output-stride", 8],
            "dnc: swin_tiny_patch4_window7_224 cannot be built with output stride 8: leave output_stride out and "
            "take the decoder upernet, which uses every scale, or a ResNet, whose stride can be 8, 16 or 32",
        ),
        (
            ["--weights", "imagnet"],
            "dnc: weights 'imagnet': no model at imagnet; say imagenet, or the run folder or file of a classifier",
        ),
        (
            ["--weights", "imagenet"],
            "dnc: there are no pretrained weights for tiny_resnet8, and so no normalisation that they ask for",
        ),
        (
            ["--backbone", "cifar_fast_narrow"],
            "dnc: cifar_fast_narrow sets its first layer from images in memory, and reader scenes has none: take "
            "another backbone, or the weights of a classifier with this one",
        ),
        (
            ["--decoder", "deeplabv3", "--batch-size", 1],
            "dnc: BatchNorm sees one value a channel here, since this decoder averages each image to a single place: "
            "train with at least two images a process and pass (batch_size, accumulate)",
        ),
        (["--dataset", "lanes"], "dnc: unknown data set of scenes 'lanes'."),
        (["--dataset", "camvid"], "dnc: camvid not found: there is no"),
        (["--batch-size", 4, "--accumulate", 3], "dnc: batch_size 4 cannot be cut into 3 equal parts"),
        (["--validation", 8], "dnc: streets, training: cannot hold out 8 of 8 images"),
        (["--drop-path", 0.1], "dnc: the backbone tiny_resnet8 has no drop path: set drop_path to 0"),
    ],
)
def test_wrong_use_is_one_line(dnc, words, message):
    status, said = dnc(*words)
    assert status == 2
    assert said.startswith(message)
    assert "\n" not in said


@pytest.mark.parametrize(
    "words",
    [
        ["--window", 500, 500],
        ["--window", 20, 20, "--crop-size", 16, 16],
        ["--batch-size", 100],
        ["--memory-size", 0],
        ["--num-subcentroids", 1],
        ["--num-subcentroids", 100],  # more than a class has pixels
        ["--precision", "bf16", "--auxiliary", 0.4],
        ["--validation", 3, "--refresh", "--pixels", 2],
        ["--scale", 0.001, 0.001],
        ["--channels", 1, "--head", "cosine"],
    ],
)
def test_settings_at_the_edge(dnc, words):
    status, said = dnc(*words)
    assert (status, said) == (0, "")


@pytest.mark.parametrize("decoder", ["fcn", "deeplabv3", "upernet"])
@pytest.mark.parametrize("head", ["dnc", "softmax", "cosine", "frozen"])
def test_every_head_on_every_decoder(dnc, decoder, head):
    assert dnc("--decoder", decoder, "--head", head) == (0, "")


@pytest.mark.slow
def test_a_comparison_on_scenes(root):
    arms = {"softmax": {"head": "softmax"}, "dnc": {"head": "dnc"}}
    output, recipe = root / "pairs.json", recipes.digit_scenes_fcn(**SMALL)
    manifest = compare(recipe, arms, [0], output, root, progress=False)
    manifest = compare(recipe, arms, [0, 1], output, root, progress=False)
    alone = train(recipe.replace(seed=1), root, root / "runs", progress=False).manifest["final"]
    together = manifest["results"][3]
    assert {key: together[key] for key in alone} == alone  # the iou of each class too
    scores = [each["miou"] for each in manifest["results"] if each["arm"] == "dnc"]
    assert manifest["summary"]["dnc"]["mean"] == pytest.approx(sum(scores) / 2)
    with pytest.raises(ValueError, match="holds another comparison: name another output"):
        compare(recipe.replace(crop_size=(16, 16)), arms, [0], output, root, progress=False)


def test_a_run_goes_on_with_its_own_crop_and_masks_alone(dnc, root, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, 1)
        with pytest.raises(Crash):
            dnc("--snapshot-seconds", 0)
    changed, same = "began with another", "go on with the same, or choose another --output"
    folder = root / "runs" / "digit_scenes_fcn_dnc_seed0"
    assert dnc()[1].startswith(f"dnc: {folder} holds a run already; go on with it by --resume")
    assert dnc("--resume", "--crop-size", 16, 16) == (
        2,
        f"dnc: the run in {folder} {changed} recipe: crop_size; {same}",
    )
    before = mask(root).read_bytes()
    save(np.zeros((40, 56), np.uint8), mask(root))
    assert dnc("--resume") == (2, f"dnc: the run in {folder} {changed} data: train; {same}")
    mask(root).write_bytes(before)
    with held(folder):
        assert dnc("--resume")[1].startswith(f"dnc: another process is writing {folder}")
    assert dnc("--resume") == (0, "")
