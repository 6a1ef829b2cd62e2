import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import quick, trained, write_class_folders

from dnc_lib.loading import prepare_data
from dnc_lib.models import ImageClassifier
from dnc_lib.runs import METRICS, Run
from dnc_lib.training import train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")  # trainings are cut short here

#: The shortest training there is: 3 steps of 64 digits.
BRIEF = {"epochs": 1, "train_limit": 200}


def run(tmp_path, **changes):
    return train(quick(**changes), output=tmp_path, progress=False)


def weights(run):
    return run.model()[0].state_dict()


def same(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


# --- what a training reaches and leaves -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "cosine", "frozen", "dnc"])
def test_every_arm_learns_the_digits(head):
    run = trained(head)
    assert run.manifest["final"]["accuracy"] > 90
    assert run.folder.name == f"digits_resnet8_{head}_seed0"
    curve = run.manifest["curve"]
    assert [record["epoch"] for record in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    assert run.manifest["best"]["accuracy"] == max(record["accuracy"] for record in curve)
    assert run.manifest["final"]["accuracy"] == curve[-1]["accuracy"]  # the last epoch, not the best


def test_the_sub_centroids_of_dnc_move_and_those_of_frozen_do_not():
    dnc, frozen = (trained(head).manifest["curve"][-1] for head in ("dnc", "frozen"))
    assert dnc["drift"] > 0.5
    assert abs(frozen["drift"]) < 1e-6
    assert 0.25 <= dnc["usage"] <= 1
    assert "drift" not in trained("softmax").manifest["curve"][-1]


def test_the_folder_holds_what_the_run_says():
    run = Run.load(trained().folder)
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "best.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert run.recipe == trained().recipe == quick()
    assert run.metrics() == run.manifest["curve"]
    state = weights(run)
    assert len(state) > 10
    assert int(state["head.updates"]) == 6 * 18


def test_a_run_is_never_overwritten(tmp_path):
    (tmp_path / "digits_resnet8_dnc_seed0").mkdir()
    (tmp_path / "digits_resnet8_dnc_seed0" / METRICS).write_text("{}\n")
    with pytest.raises(
        FileExistsError,
        match="digits_resnet8_dnc_seed0 holds a run already; go on with it by --resume, choose another",
    ):
        run(tmp_path)
    assert (tmp_path / "digits_resnet8_dnc_seed0" / METRICS).read_text() == "{}\n"


# --- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"assignment": "random"}, {"head": "softmax"}])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, changes):
    torch.manual_seed(1)
    first = weights(run(tmp_path / "1", **BRIEF, **changes))
    torch.manual_seed(2)
    second = weights(run(tmp_path / "2", **BRIEF, **changes))
    other = weights(run(tmp_path / "3", **BRIEF, **changes, seed=1))
    assert same(first, second)
    assert not torch.equal(first["backbone.conv.weight"], other["backbone.conv.weight"])


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, **BRIEF)
    assert torch.equal(torch.rand(3), expected)


# --- settings -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path):
    for head in ("dnc", "softmax"):
        with pytest.raises(
            FloatingPointError, match=r"the loss is (nan|inf) at step \d+ of epoch 1: lower learning_rate"
        ):
            run(tmp_path, head=head, learning_rate=1e12, weight_decay=0.5, schedule="constant", train_limit=400)


def test_a_momentum_that_keeps_the_random_start_is_called_out(tmp_path):
    with pytest.warns(UserWarning, match=r"momentum 0.999 over 3 updates keeps 100% .* or less would move them"):
        manifest = run(tmp_path, **BRIEF, momentum=0.999).manifest
    assert manifest["start_kept"] == pytest.approx(0.999**3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tmp_path / "data", **BRIEF, momentum=0.999, start="data").manifest["start_kept"] == 0
        assert "start_kept" not in run(tmp_path / "frozen", **BRIEF, head="frozen").manifest
    with pytest.warns(UserWarning, match=r"over 0 updates keeps 100% .* update_after is too late"):
        run(tmp_path / "late", **BRIEF, update_after=99)


def test_update_after_delays_the_updates(tmp_path):
    late = run(tmp_path, epochs=2, train_limit=200, update_after=4, momentum=0.0)
    assert int(weights(late)["head.updates"]) == 2
    first, second = late.metrics()
    assert abs(first["drift"]) < 1e-6
    assert second["drift"] > 0.1


@pytest.mark.parametrize("falls", [False, True])
def test_a_refresh_is_kept_only_where_held_out_accuracy_does_not_fall(tmp_path, monkeypatch, falls):
    if falls:  # an estimate that puts every class where another was
        monkeypatch.setattr(
            ImageClassifier,
            "refresh",
            lambda model, *_: model.head.subcentroids.copy_(model.head.subcentroids.roll(1, 0)),
        )
    result = run(tmp_path, epochs=2, momentum=0.8, refresh=True, validation=200)
    record = result.manifest["refresh"]
    assert record["kept"] == (record["held_out_after"] >= record["held_out_before"])
    assert record["kept"] != falls
    assert result.manifest["data"]["validation"]["images"] == 200
    assert result.manifest["data"]["train"]["images"] == 998
    kept = record["held_out_after"] if record["kept"] else record["held_out_before"]
    assert kept > 50
    assert (len(result.model()[0].head.memory) == 0) == record["kept"]  # taken back with its memory


def test_the_judge_of_epochs_is_the_validation_split(tmp_path):
    result = run(tmp_path, **BRIEF, validation=150)
    accuracy = result.metrics()[-1]["accuracy"]
    assert accuracy * 150 / 100 == pytest.approx(round(accuracy * 150 / 100))
    assert result.manifest["final"]["accuracy"] * 599 / 100 == pytest.approx(
        round(result.manifest["final"]["accuracy"] * 599 / 100)
    )


def test_bf16_runs_and_another_precision_may_follow_in_the_same_process(tmp_path):
    first = run(tmp_path / "1", **BRIEF, precision="bf16")
    second = run(tmp_path / "2", **BRIEF)
    assert first.manifest["recipe"]["precision"] == "bf16"
    assert all(value.dtype != torch.bfloat16 for value in weights(first).values())
    assert not same(weights(first), weights(second))


@pytest.mark.slow
def test_the_final_measure_of_bf16_is_that_of_the_saved_model(tmp_path):
    from dnc_lib.data import DeviceLoader
    from dnc_lib.evaluation import evaluate

    result = run(tmp_path, epochs=1, precision="bf16", head="softmax")
    model, card = result.model()
    test = prepare_data(result.recipe)["test"]
    again = evaluate(model, DeviceLoader(test, 500, card.mean, card.std))
    assert again["accuracy"] == result.manifest["final"]["accuracy"]
    assert again["loss"] == pytest.approx(result.manifest["final"]["loss"], rel=1e-4)


def test_data_smaller_than_a_batch(tmp_path):
    result = run(tmp_path, epochs=4, train_limit=30, batch_size=128)  # one step an epoch, four in all
    assert int(weights(result)["head.updates"]) == 4


def test_what_a_recipe_uses():
    parts = prepare_data(quick(validation=100, train_limit=300, seed=1))
    assert {part: len(data) for part, data in parts.items()} == {"train": 300, "test": 599, "validation": 100}
    counts = torch.bincount(parts["train"].labels)
    assert counts.max() - counts.min() <= 1
    other = prepare_data(quick(validation=100, train_limit=300, seed=2))
    for part in ("train", "validation"):  # seeds are compared on the same images
        assert torch.equal(parts[part].images, other[part].images)
    with pytest.raises(ValueError, match="digits, training: cannot hold out 1198 of 1198 images"):
        prepare_data(quick(validation=1198))
    with pytest.raises(ValueError, match="digits, training: cannot draw 5000 of 1198 images"):
        prepare_data(quick(train_limit=5000))


def test_class_folders_of_ones_own(tmp_path):
    write_class_folders(tmp_path / "mypictures")
    recipe = quick(dataset="mypictures", image_size=16, batch_size=12, epochs=2, memory_size=64)
    result = train(recipe, tmp_path, tmp_path / "runs", progress=False)
    model, card = result.model()
    assert card.classes == ["cat", "dog", "owl"]
    assert card.image_size == 16
    assert model.head.num_classes == 3


# --- the bar --------------------------------------------------------------------------------------------------------


def test_the_bar_shows_loss_accuracy_speed_and_the_time_left(tmp_path, capfd):
    train(quick(**BRIEF), output=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    last = err.split("\r")[-1]
    assert last.startswith("digits_resnet8 dnc: 100%")
    assert re.search(r"\d+:\d\d<\d+:\d\d", last)
    assert "images/s" in last
    assert re.search(r"loss=\d\.\d", last)
    assert re.search(r"accuracy=\d+\.\d%", last)
    assert "192/192" in last


# --- several processes ----------------------------------------------------------------------------------------------

TWO = """
import sys, warnings
import torch
import torch.distributed as dist
from dnc_lib import training
from dnc_lib.__main__ import main

models = []
build = training.ModelCard.build
training.ModelCard.build = lambda card, **settings: models.append(build(card, **settings)) or models[-1]
warnings.simplefilter("error", FutureWarning)
kept, checked = {}, []  # a mean of BatchNorm's after a step, on this process: no other may overwrite it

def mean_of(model):
    return next(each for name, each in model.named_buffers() if name.endswith("running_mean"))

def before_a_pass(model, _):
    if model.training and kept:
        assert torch.equal(mean_of(model), kept["mean"])
        checked.append(True)

def after_step(keeper, after_step=training._Keeper.after_step):
    after_step(keeper)
    model = keeper.fitting.model
    if not kept and not checked:
        model.register_forward_pre_hook(before_a_pass)
    kept["mean"] = mean_of(model).clone()
    both = [torch.empty_like(kept["mean"]) for _ in range(2)]
    dist.all_gather(both, kept["mean"])
    assert not torch.equal(*both)  # each saw other images

def share(fitting, share=training.Fitting.share_statistics):
    share(fitting)
    kept.clear()

training._Keeper.after_step, training.Fitting.share_statistics = after_step, share
assert main(sys.argv[1:]) == 0
assert dist.get_world_size() == 2
assert len(checked) > 6
(model,) = models
for name, tensor in model.state_dict().items():
    if not name.endswith("num_batches_tracked"):
        both = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(both, tensor.contiguous())
        assert torch.equal(*both), f"{name} differs between the processes"
if dist.get_rank() == 0:
    print("both processes agree on", len(model.state_dict()), "tensors")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_the_same_model_and_leave_one_run(tmp_path):
    """Under torch's launcher, which is what ``accelerate launch`` calls for several GPUs, on the CPU (gloo)."""
    script, output = tmp_path / "two.py", tmp_path / "runs"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += ["train", "digits_resnet8", "--output", str(output), "--epochs", "2", "--momentum", "0.8"]
    command += ["--validation", "150", "--train-limit", "400", "--refresh"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "both processes agree" in done.stdout
    assert done.stdout.count(": accuracy ") == 1  # one of them speaks
    (folder,) = output.iterdir()
    run = Run.load(folder)
    assert run.manifest["processes"] == 2
    assert run.manifest["recipe"]["batch_size"] == 64
    assert "refresh" in run.manifest
    assert len(run.metrics()) == 2
    assert int(weights(run)["head.updates"]) == 2 * 6
    assert "digits_resnet8 dnc: 100%" in done.stderr
    assert run.manifest["final"]["accuracy"] * 599 / 100 == pytest.approx(  # each test image once, on one of them
        round(run.manifest["final"]["accuracy"] * 599 / 100)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixup": 0.2, "mix_probability": 0.5, "batch_size": 33},
            "need an even number of images a process and pass, got 33: change batch_size",
        ),
        ({"drop_path": 0.1}, "the backbone tiny_resnet8 has no drop path: set drop_path to 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(quick(train_limit=200, **changes), output=tmp_path, progress=False)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
