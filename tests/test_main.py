import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import random_images, trained, write_class_folders
from PIL import Image
from safetensors.torch import load_file, save_file
from scene_runs import SHORT, trained_on_files, trained_scenes

import dnc_lib
from dnc_lib import recipes, training
from dnc_lib.__main__ import main
from dnc_lib.recipes import Recipe
from dnc_lib.runs import MANIFEST, MODEL, Run
from dnc_lib.signals import Stopped

COMMANDS = ("recipes", "train", "compare", "evaluate", "predict", "explain")


def dnc(*words, **settings):
    """The command as a process of its own."""
    command = [sys.executable, "-m", "dnc_lib", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **settings)


WATCHED = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
sys.meta_path.insert(0, Watch())
import runpy
sys.argv = ["dnc", "recipes"]
runpy.run_module("dnc_lib", run_name="__main__")
"""


@pytest.mark.parametrize(("chosen", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_do_not_spin_while_they_wait_unless_the_user_says_so(chosen, found):
    """Torch reads it once, when it loads; so it must be there by then."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment.update({} if chosen is None else {"OMP_WAIT_POLICY": chosen})
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == found
    assert "cifar10_resnet20" in done.stdout


def refused(capsys, *words):
    """The one line that a refused command prints."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("dnc: ")
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(trained().folder, tmp_path / "run"))


@pytest.fixture
def recipe_of(monkeypatch, tmp_path):
    """The recipe that the words of `dnc train` amount to; nothing is trained."""

    def parse(*words):
        made = []

        def pretend(recipe, *_, **__):
            made.append(recipe)
            return Run(tmp_path, {"final": {"accuracy": 0.0, "miou": 0.0}, "seconds": 0.0})

        monkeypatch.setattr(training, "train", pretend)
        assert main(["train", *words]) == 0
        return made[0]

    return parse


# --- as processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_strangers_pictures_to_their_accuracy(tmp_path):
    write_class_folders(tmp_path / "mypictures")
    words = ["train", "digits_resnet8", "--dataset", "mypictures", "--data-root", tmp_path, "--image-size", "32",
             "--output", tmp_path / "runs", "--epochs", "3", "--batch-size", "12", "--momentum", "0.5"]  # fmt: skip
    done = dnc(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    told = re.fullmatch(r"(.*): accuracy (\d+\.\d\d) % in \d+ s, \d+% of .* waiting for data\n", done.stdout)
    assert told[1] == str(folder)
    assert "images/s" in done.stderr
    assert "Warning" not in done.stderr
    again = dnc("evaluate", folder, "--data-root", tmp_path, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"accuracy {told[2]} %")
    assert again.stderr == ""


@pytest.mark.slow
def test_a_refusal_as_a_process_has_a_status_and_no_traceback(tmp_path):
    done = dnc("train", "cifar10_resnet20", "--data-root", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"dnc: cifar10 not found under {tmp_path}" in done.stderr
    assert 'python -c "from torchvision.datasets import CIFAR10' in done.stderr


@pytest.mark.slow
def test_a_reader_who_has_seen_enough():
    done = subprocess.run(
        f"{sys.executable} -m dnc_lib recipes | head -n 0", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_from_digits_in_scenes_to_the_reasons(tmp_path):
    fields = [f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}" for name, value in SHORT.items()]
    values = [[] if isinstance(value, bool) else [value] for value in SHORT.values()]
    words = [word for name, value in zip(fields, values, strict=True) for word in (name, *value)]
    done = dnc("train", "digit_scenes_fcn", *words, "--output", tmp_path / "runs", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    told = re.match(r"(.*): mIoU (\d+\.\d\d) % in \d+ s", done.stdout)
    assert told[1] == str(folder)

    done = dnc("evaluate", folder, "--quiet", "--output", "records.npz", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"mIoU {told[2]} %  pixel accuracy ")
    assert done.stdout.splitlines()[-1] == "records.npz"
    with np.load(tmp_path / "records.npz") as file:
        assert file["counts"].shape == (100, 11, 11)
        assert file["labels"].shape == (100, 48, 48)
        assert file["names"][7] == "image 7"

    done = dnc("explain", folder, 3, "--at", 20, 70, "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("test image 3, row 20, column 70 (labelled ")
    assert lines[1].startswith("IF the pixel is nearer to case ")
    assert lines[-1] == "3_explained.png, 3_explained.json"
    why = json.loads((tmp_path / "3_explained.json").read_text())
    assert why["run"] == folder.name
    assert why["image"] == "test image 3"
    assert why["rule"] == lines[1]
    assert why["at"] == [20, 70]
    assert (folder / "exemplars.json").is_file()


# --- recipes, help --------------------------------------------------------------------------------------------------


def test_recipes_lists_every_recipe(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["recipe", "data", "set", "backbone", "epochs", "what", "to", "expect"]
    assert [line.split()[0] for line in lines[1:]] == list(recipes.NAMES)
    assert all("Expect" in line for line in lines[1:])


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: dnc" in capsys.readouterr().out


def test_the_help_of_train_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in set(recipes.digits_resnet8().to_dict()) - {"name"}:
        assert f"--{name.replace('_', '-')}" in text
    assert "only correctly classified samples" in text


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dnc {dnc_lib.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train"],
        ["evaluate"],
        ["predict", "run"],
        ["explain", "run"],
        ["explain", "run", "image.png", "--at", "3"],
        ["explain", "run", "image.png", "--at", "3", "4.5"],
        ["evaluate", "run", "--window", "64"],
        ["train", "digits_resnet8", "--epochs", "three"],
        ["train", "digits_resnet8", "--epochs", "2.5"],
        ["train", "digits_resnet8", "--learning-rate", "fast"],
        ["train", "digits_resnet8", "--milestones", "3,5"],
        ["train", "digits_resnet8", "--flip", "yes"],
        ["train", "digits_resnet8", "--wheels", "4"],
        ["train", "digits_resnet8", "--name", "mine"],
    ],
)
def test_words_that_cannot_be_parsed(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# --- train ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_field_can_be_changed(recipe_of):
    numbers = ["--epochs", "7", "--learning-rate", "0.3", "--milestones", "3", "5"]
    recipe = recipe_of("digits_resnet8", *numbers, "--head", "softmax", "--correct-only", "--no-nesterov", "--flip")
    assert recipe == recipes.digits_resnet8(
        epochs=7, learning_rate=0.3, head="softmax", correct_only=True, nesterov=False, flip=True, milestones=(3, 5)
    )
    assert recipe_of("digits_resnet8") == recipes.digits_resnet8()
    assert recipe_of("digits_resnet8", "--milestones").milestones == ()
    assert recipe_of("--momentum", "0", "digits_resnet8").momentum == 0


@pytest.mark.parametrize("field", [name for name in recipes.digits_resnet8().to_dict() if name != "name"])
def test_no_field_is_forgotten(recipe_of, field):
    other = {
        "dataset": "other", "backbone": "other", "head": "cosine", "schedule": "cosine", "assignment": "nearest",
        "start": "data", "precision": "bf16", "milestones": (7, 8), "reader": "files", "optimizer": "adamw",
        "interpolation": "bicubic", "rand_augment": "rand-m9", "crop_scale": (0.5, 0.75), "accumulate": 2,
        "decoder": "fcn", "weights": "some", "output_stride": 8, "auxiliary": 0.5, "crop_size": (7, 8),
        "window": (7, 8), "scale": (0.75, 1.25), "spread": "centred", "scale_by": "layernorm", "leave_out": (7, 8),
        "anchor_epochs": 2, "refresh_epochs": 2, "norm_images": 16,
    }  # fmt: skip
    scenes = ["--reader", "scenes", "--decoder", "fcn", "--crop-size", "9", "9"]
    base = {
        "refresh": ["--validation", "9"],
        "anchor_epochs": ["--anchor"],
        "warmup_epochs": ["--schedule", "cosine"],
        **{name: ["--reader", "files"] for name in ("rand_augment", "color_jitter", "random_erasing")},
        "mixup": ["--mix-probability", "0.5"],
        "cutmix": ["--mix-probability", "0.5"],
        **dict.fromkeys(("output_stride", "auxiliary", "window"), scenes),
        "decoder": [*scenes[:2], *scenes[4:]],
        "crop_size": scenes[:4],
    }.get(field, [])
    before = getattr(recipes.digits_resnet8(), field)
    if field not in other:
        other[field] = (not before) if isinstance(before, bool) else type(before)(before / 2 or 0.5) or 3
    value = other[field]
    option = f"--{field.replace('_', '-')}"
    if isinstance(value, bool):
        words = [option if value else option.replace("--", "--no-")]
    else:
        words = [option, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    recipe = recipe_of("digits_resnet8", *base, *words)
    assert getattr(recipe, field) == value
    assert type(getattr(recipe, field)) is type(before)
    assert isinstance(recipe, Recipe)


def test_refusals_of_train(capsys, tmp_path):
    out = ["--output", tmp_path / "runs"]
    assert "unknown recipe 'digits_resnet9'. Did you mean digits_resnet8?" in refused(
        capsys, "train", "digits_resnet9"
    )
    line = refused(capsys, "train", "digits_resnet8", "--dataset", "digit", *out)
    assert "unknown data set 'digit'. Did you mean digits?" in line
    line = refused(capsys, "train", "digits_resnet8", "--backbone", "resnet_18", *out)
    assert "unknown backbone 'resnet_18'; did you mean" in line
    assert "momentum must be 0 or more and below 1, got 1.5" in refused(
        capsys, "train", "digits_resnet8", "--momentum", "1.5", *out
    )
    assert "learning_rate must be above 0, got nan" in refused(
        capsys, "train", "digits_resnet8", "--learning-rate", "nan", *out
    )
    assert "head must be one of" in refused(capsys, "train", "digits_resnet8", "--head", "svm", *out)


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "train", "digits_resnet8", "--output", tmp_path / "file")


def test_a_run_is_not_overwritten(capsys):
    line = refused(capsys, "train", "digits_resnet8", "--output", trained().folder.parent)
    assert "holds a run already; go on with it by --resume, choose another --output or remove it" in line


def test_a_diverging_training_is_one_line(capsys, tmp_path):
    words = ["--learning-rate", "1e12", "--schedule", "constant", "--weight-decay", "0.5", "--momentum", "0.5"]
    line = refused(capsys, "train", "digits_resnet8", "--quiet", "--output", tmp_path, *words)
    assert "the loss is" in line
    assert "lower learning_rate (1000000000000.0)" in line


def test_control_c(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert main(["train", "digits_resnet8"]) == 130
    assert capsys.readouterr().err == "dnc: stopped\n"


def test_warnings_are_one_line_without_code(capsys, monkeypatch):
    import warnings

    def warns(*_, **__):
        warnings.warn("mostly random", stacklevel=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["train", "digits_resnet8"])
    assert capsys.readouterr().err == "dnc: warning: mostly random\ndnc: stopped\n"


# --- compare --------------------------------------------------------------------------------------------------------


def test_compare_writes_its_manifest_and_prints_means_and_pairs(capsys, tmp_path):
    output = tmp_path / "pairs.json"
    words = ["compare", "digits_resnet8", "--epochs", "1", "--quiet", "--output", str(output), "--profile", "smoke"]
    words += ["--arm", "softmax", "--arm", "dnc num_subcentroids=1 momentum=0.5"]
    assert main([*words, "--seeds", "0", "1"]) == 0
    manifest = json.loads(output.read_text())
    lines = capsys.readouterr().out.splitlines()
    means = {arm: each["mean"] for arm, each in manifest["summary"].items()}
    assert list(means) == ["softmax", "dnc num_subcentroids=1 momentum=0.5"]
    assert lines[0] == f"softmax: {means['softmax']:.2f} ± {manifest['summary']['softmax']['sd']:.2f} % over 2 seeds"
    (pair,) = manifest["paired"]
    assert lines[2].startswith("dnc num_subcentroids=1 momentum=0.5 minus softmax: ")
    assert lines[2].endswith(f"{pair['mean']:+.2f} points, p = {pair['p']:.3g} over 2 pairs")
    assert manifest["profile"] == "smoke"
    assert manifest["recipe"]["epochs"] == 1


def test_refusals_of_compare(capsys, tmp_path):
    out = ["--output", tmp_path / "pairs.json"]
    assert "arm 'svm': 'svm' is neither a head" in refused(capsys, "compare", "digits_resnet8", "--arm", "svm", *out)
    assert "profile must be one of full, smoke, got 'fast'" in refused(
        capsys, "compare", "digits_resnet8", "--profile", "fast", *out
    )
    assert "a comparison takes --seeds, for all of its arms, not --seed" in refused(
        capsys, "compare", "digits_resnet8", "--seed", "3", *out
    )
    assert f"{tmp_path} is a folder: name the manifest, a .json file" in refused(
        capsys, "compare", "digits_resnet8", "--output", tmp_path
    )
    assert "the arms 'dnc' and 'momentum=0.98' are the same training: leave one of them out" in refused(
        capsys, "compare", "digits_resnet8", "--arm", "dnc", "--arm", "momentum=0.98", *out
    )
    with pytest.raises(SystemExit) as stop:
        main(["compare", "digits_resnet8"])
    assert stop.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_a_stopped_training_has_the_status_of_sigterm(capsys, monkeypatch):
    def stopped(*_, **__):
        raise Stopped("stopped at step 3 of epoch 2, as asked")

    monkeypatch.setattr(training, "train", stopped)
    assert main(["train", "digits_resnet8"]) == 143
    assert capsys.readouterr().err == "dnc: stopped at step 3 of epoch 2, as asked\n"


def test_train_passes_on_what_is_no_field_of_the_recipe(monkeypatch, tmp_path):
    seen = {}

    def pretend(recipe, *_, **options):
        seen.update(options)
        return Run(tmp_path, {"final": {"accuracy": 0.0, "miou": 0.0}, "seconds": 0.0})

    monkeypatch.setattr(training, "train", pretend)
    words = ["--resume", "--snapshot-seconds", "30", "--workers", "3", "--profile", "smoke", "--quiet", "--download"]
    assert main(["train", "digits_resnet8", *words]) == 0
    assert seen == {
        "resume": True, "snapshot_seconds": 30.0, "workers": 3, "profile": "smoke", "progress": False,
        "download": True,
    }  # fmt: skip


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_prints_what_the_manifest_says(capsys):
    assert main(["evaluate", str(trained().folder)]) == 0
    out, _ = capsys.readouterr()
    final = trained().manifest["final"]
    expected = (
        f"accuracy {final['accuracy']:.2f} %  top-5 {final['top5']:.2f} %  loss {final['loss']:.4f}  on 599 images"
    )
    assert out == expected + "\n"


def test_refusals_of_evaluate(capsys, folder, tmp_path):
    assert "is no run folder: it has no manifest.json" in refused(capsys, "evaluate", tmp_path / "nowhere")
    content = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(content[: len(content) // 2])
    assert "model.safetensors is truncated or no safetensors file" in refused(capsys, "evaluate", folder)
    (folder / MODEL).unlink()
    assert "no model at" in refused(capsys, "evaluate", folder)
    (folder / MANIFEST).write_text("{")
    assert "manifest.json is damaged" in refused(capsys, "evaluate", folder)


def test_a_checkpoint_of_another_shape(capsys, folder):
    from safetensors import safe_open

    with safe_open(folder / MODEL, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(folder / MODEL)
    state["head.subcentroids"] = state["head.subcentroids"][:, :2].contiguous()
    save_file(state, folder / MODEL, metadata=metadata)
    line = refused(capsys, "evaluate", folder)
    assert "head.subcentroids has shape (10, 2, 32), the model wants (10, 4, 32)" in line


def test_a_data_set_with_other_classes(capsys, folder, tmp_path):
    data = random_images(40)
    arrays = {"x": data.images.numpy(), "y": data.labels.numpy()}
    np.savez(
        tmp_path / "cifar10.npz", classes=list("abcd"),
        **{f"{key}_{part}": value for key, value in arrays.items() for part in ("train", "test")},
    )  # fmt: skip
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["recipe"]["dataset"] = "cifar10"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    line = refused(capsys, "evaluate", folder, "--data-root", tmp_path)
    assert "the data set at hand has other classes than" in line
    assert "was trained on" in line


# --- scenes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def streets(tmp_path):
    """A copy of a run on scenes on disk, and the words that say where its data is."""
    folder = trained_on_files().folder
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("exemplars.json"))
    return tmp_path / "run", ["--data-root", str(folder.parent), "--workers", "0", "--quiet"]


def said(capsys, *words):
    """What an accepted command prints."""
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_evaluate_of_scenes_prints_every_class(capsys, streets):
    folder, where = streets
    lines = said(capsys, "evaluate", folder, *where)
    final = Run.load(folder).manifest["final"]
    assert lines[0] == (
        f"mIoU {final['miou']:.2f} %  pixel accuracy {final['pixel_accuracy']:.2f} %  loss {final['loss']:.4f}  "
        f"on 4 images"
    )
    assert lines[1].split() == ["class", "IoU", "%", "share", "of", "pixels", "%"]
    rows = [line.split() for line in lines[2:]]
    assert [row[0] for row in rows] == ["sky", "road", "car"]
    assert [row[1] for row in rows] == [f"{iou:.2f}" for iou in final["iou"]]
    assert [row[2] for row in rows] == ["50.00", f"{100 * (0.5 - 12 * 16 / (40 * 56)):.2f}", "8.57"]


def test_scenes_can_be_looked_at_in_other_ways(capsys, streets):
    folder, where = streets
    plain = said(capsys, "evaluate", folder, *where)[0]
    for look in (["--window", 20, 20, "--stride", 10, 10], ["--flip"], ["--scales", 0.75, 1.25]):
        assert said(capsys, "evaluate", folder, *where, *look)[0].split("loss")[1] != plain.split("loss")[1]
    assert said(capsys, "evaluate", folder, *where, "--window", 99, 99)[0] == plain  # one window sees all
    assert "stride (3, 3) needs a window to move" in refused(capsys, "evaluate", folder, *where, "--stride", 3, 3)
    assert "scales must be one or more positive factors" in refused(capsys, "evaluate", folder, *where, "--scales", 0)


def test_predict_of_scenes_writes_label_maps_and_overlays(capsys, streets, tmp_path):
    folder, where = streets
    photograph = trained_on_files().folder.parent / "streets" / "images" / "test" / "002.png"
    Image.open(photograph).convert("L").save(tmp_path / "grey.png")
    output = tmp_path / "deep" / "out"
    lines = said(capsys, "predict", folder, photograph, tmp_path / "grey.png", 1, "--output", output, *where)
    assert len(lines) == 6
    assert lines[0].startswith(f"{photograph}: ")
    shares = re.findall(r"(sky|road|car) (\d+\.\d) %", lines[0])
    assert 99.7 <= sum(float(share) for _, share in shares) <= 100.3
    assert lines[1] == f"  {output}/002_labels.png, {output}/002_overlay.png"
    assert lines[4].startswith("001.png: ")
    with Image.open(output / "002_labels.png") as labels, Image.open(output / "002_overlay.png") as overlay:
        assert (labels.mode, labels.size) == ("P", (56, 40))
        counts = np.bincount(np.asarray(labels).ravel(), minlength=3) / (40 * 56)
        assert overlay.width >= 448  # enlarged, so that it can be seen
    told = dict(shares)
    for name, share in zip(("sky", "road", "car"), counts, strict=True):
        assert float(told.get(name, 0)) == pytest.approx(100 * share, abs=0.1)
    assert sorted(path.name for path in output.iterdir()) == [
        f"{stem}_{kind}.png" for stem in ("002", "1", "grey") for kind in ("labels", "overlay")
    ]


def test_refusals_of_predict(capsys, streets, tmp_path):
    folder, where = streets
    (tmp_path / "text.png").write_text("no image")
    out = ["--output", tmp_path / "out"]
    line = refused(capsys, "predict", folder, tmp_path / "text.png", *out, *where)
    assert line == f"dnc: {tmp_path}/text.png cannot be read as an image (no format that Pillow knows)"
    line = refused(capsys, "predict", folder, tmp_path / "nowhere.png", *out, *where)
    assert line == f"dnc: there is no image {tmp_path}/nowhere.png"
    line = refused(capsys, "predict", folder, 4, *out, *where)
    assert line == "dnc: there is no test image 4: streets, test has 4, counted from 0"
    line = refused(capsys, "predict", folder, tmp_path / "a" / "1.png", tmp_path / "b" / "1.png", *out, *where)
    assert line == f"dnc: some of these images have one name, and would overwrite each other in {tmp_path}/out"
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "predict", folder, 0, "--output", tmp_path / "file", *where)


def test_predict_of_whole_images(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big.png").write_bytes(b"")
    Image.new("RGBA", (300, 200), (10, 10, 10, 128)).save(tmp_path / "big.png")
    lines = said(capsys, "predict", trained().folder, 0, "big.png", 5)
    pattern = r"(test image \d+|big\.png): (\d) (\d+\.\d) %, then (\d) (\d+\.\d) %"
    rows = [re.fullmatch(pattern, line).groups() for line in lines]
    assert [row[0] for row in rows] == ["test image 0", "big.png", "test image 5"]
    assert all(row[1] != row[3] and 100 >= float(row[2]) >= float(row[4]) for row in rows)
    for option in (["--window", 8, 8], ["--flip"], ["--scales", 2], ["--output", "out"]):
        line = refused(capsys, "predict", trained().folder, 0, *option)
        assert line == f"dnc: {option[0]} is for scenes; {trained().folder} classifies whole images"


def test_what_only_scenes_have_is_refused_elsewhere(capsys, tmp_path):
    folder = trained().folder
    for option in (["--stride", 8, 8], ["--output", tmp_path / "records.npz"]):
        line = refused(capsys, "evaluate", folder, *option)
        assert line == f"dnc: {option[0]} is for scenes; {folder} classifies whole images"
    line = refused(capsys, "explain", folder, 0, "--at", 3, 3)
    assert line == f"dnc: --at is for pixels; {folder} classifies whole images"


def test_explain_of_a_whole_image(capsys, folder, tmp_path):
    figure = tmp_path / "deep" / "why.png"
    lines = said(capsys, "explain", folder, 3, "--cases", 2, "--output", figure, "--quiet")
    assert re.match(r"test image 3 \(labelled (\d)\): \1 \d+\.\d %, then \d \d+\.\d %", lines[0])
    assert re.match(
        r"IF it is nearer to case \d of \d \(image \d+\) than to any of the other 39 cases THEN", lines[1]
    )
    assert len(lines) == 3 + 4 + 1
    with Image.open(figure) as drawn:
        assert drawn.width > 600
    why = json.loads(figure.with_suffix(".json").read_text())
    assert why["truth"] == lines[0].split("labelled ")[1][0]
    assert len(why["cases"]) == 4


def test_explain_of_a_pixel(capsys, streets, tmp_path):
    folder, where = streets
    photograph = trained_on_files().folder.parent / "streets" / "images" / "test" / "002.png"
    figure = tmp_path / "why.jpg"
    words = ["explain", folder, photograph, "--output", figure, *where]
    lines = said(capsys, *words, "--at", 39, 55)
    assert lines[0].startswith(f"{photograph}, row 39, column 55: ")
    assert lines[-1] == f"{figure}, {figure.with_suffix('.json')}"
    kept = (folder / "exemplars.json").read_bytes()
    lines = said(capsys, *words)
    assert lines[0].startswith(f"{photograph}, row 20, column 28: ")
    assert lines[-2] == "(the pixel is the image's centre; --at ROW COLUMN asks about another)"
    assert (folder / "exemplars.json").read_bytes() == kept
    why = json.loads(figure.with_suffix(".json").read_text())
    assert why["at"] == [20, 28]
    for case in why["cases"]:
        exemplar = case["exemplar"]
        mask = trained_on_files().folder.parent / "streets" / "masks" / "train" / exemplar["name"]
        with Image.open(mask) as labels:
            assert np.asarray(labels)[exemplar["row"], exemplar["column"]] == case["label"]


@pytest.mark.slow
def test_refusals_of_explain(capsys, streets, tmp_path):
    folder, where = streets
    line = refused(capsys, "explain", folder, 0, "--at", 40, 3, *where)
    assert line == "dnc: row 40 lies outside the image, which has 40 rows and 56 columns, counted from 0"
    line = refused(capsys, "explain", folder, 0, "--at", 3, -1, *where)
    assert line == "dnc: column -1 lies outside the image, which has 40 rows and 56 columns, counted from 0"
    assert not (folder / "exemplars.json").exists()  # refused before the search
    line = refused(capsys, "explain", folder, 0, "--output", tmp_path / "why.txt", *where)
    assert line == f"dnc: --output {tmp_path}/why.txt: name a figure, .png, .jpg or .webp"
    assert "cases must be 1 or more, got 0" in refused(capsys, "explain", folder, 0, "--cases", 0, *where)
    line = refused(capsys, "evaluate", folder, "--output", tmp_path / "records.csv", *where)
    assert line == f"dnc: --output {tmp_path}/records.csv: name a .npz file"
    for head, name in (("softmax", "SoftmaxHead"), ("cosine", "CosineHead")):
        line = refused(capsys, "explain", trained(head).folder, 0)
        assert line == (
            f"dnc: a {name} has no sub-centroids, so no training image stands for a class: train with head dnc (or "
            f"frozen) to get explanations"
        )
    assert "a SoftmaxHead has no sub-centroids" in refused(capsys, "explain", trained_scenes("softmax").folder, 0)


def test_exemplars_that_no_longer_fit_are_told_of_in_one_line(capsys, streets, tmp_path):
    folder, where = streets
    (folder / "exemplars.json").write_text("{")
    assert main(["explain", str(folder), "0", "--output", str(tmp_path / "why.png"), *where]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"dnc: warning: .*exemplars\.json is damaged \(.*\): the exemplars are searched anew\n", err)


def test_a_comparison_of_scenes_is_told_in_miou(capsys, monkeypatch, tmp_path):
    from dnc_lib import comparisons

    summary = {"dnc": {"mean": 53.7, "sd": None, "n": 1}}
    monkeypatch.setattr(comparisons, "compare", lambda *_, **__: {"summary": summary, "paired": []})
    words = ["--output", tmp_path / "pairs.json", "--arm", "dnc"]
    assert said(capsys, "compare", "digit_scenes_fcn", *words) == ["dnc: mIoU 53.70 % over 1 seeds"]
    assert said(capsys, "compare", "digits_resnet8", *words) == ["dnc: 53.70 % over 1 seeds"]


# --- compare, errors ------------------------------------------------------------------------------------------------


def test_a_comparison_that_is_complete_is_told_again(capsys, tmp_path):
    output = tmp_path / "pairs.json"
    words = ["compare", "digits_resnet8", "--epochs", "1", "--train-limit", "200", "--quiet", "--arm", "softmax"]
    assert main([*words, "--output", str(output)]) == 0
    first, written = capsys.readouterr().out, output.read_bytes()
    assert main([*words, "--output", str(output)]) == 0
    assert capsys.readouterr().out == first
    assert output.read_bytes() == written


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed.", "often for want of memory; try fewer --workers"),
        ("CUDA out of memory. Tried to allocate 2 GiB.", "lower --batch-size or --memory-size"),
    ],
)
def test_what_torch_runs_into_comes_with_advice(capsys, monkeypatch, error, advice):
    def fails(*_, **__):
        raise RuntimeError(error)

    monkeypatch.setattr(training, "train", fails)
    line = refused(capsys, "train", "digits_resnet8")
    assert error in line
    assert advice in line


def test_an_error_of_the_program_is_not_hidden(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(training, "train", fails)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["train", "digits_resnet8"])


@pytest.mark.parametrize(("arms", "lines"), [(3, 3), (8, 7)])
def test_of_many_arms_the_pairs_with_the_first_are_printed(monkeypatch, capsys, arms, lines):
    from dnc_lib import comparisons

    names = [f"dnc momentum=0.{i}" for i in range(arms)]
    results = [{"arm": name, "seed": seed, "accuracy": 80.0 + seed} for name in names for seed in (0, 1)]
    manifest = {"arms": dict.fromkeys(names), **comparisons.summarize(results, names)}
    monkeypatch.setattr(comparisons, "compare", lambda *_, **__: manifest)
    assert main(["compare", "digits_resnet8", "--output", "pairs.json"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if " minus " in line]
    assert len(printed) == lines
    assert arms == 3 or all(f"minus {names[0]}: " in line for line in printed)
