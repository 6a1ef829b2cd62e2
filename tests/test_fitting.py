import functools
import os
import subprocess
import sys

import pytest
import torch
from helpers import quick, random_images, write_class_folders

from dnc_lib import fitting
from dnc_lib.fitting import Clock, Fitting
from dnc_lib.loading import build_model, make_card, make_loaders
from dnc_lib.runs import Run
from dnc_lib.training import make_accelerator, train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")

#: ConvNeXt normalises each place by itself: no BatchNorm, so a batch may be cut into parts.
NO_BATCH_NORM = {
    "dataset": "pictures", "backbone": "convnext_atto", "image_size": 32, "pad": 2, "batch_size": 16, "epochs": 2,
    "learning_rate": 0.02, "schedule": "constant", "momentum": 0.9, "memory_size": 40, "weight_decay": 1e-4,
}  # fmt: skip


def fitted(recipe, parts=None, **settings):
    parts = parts or {"train": random_images(64, size=8), "test": random_images(16, size=8, seed=1)}
    accelerator = make_accelerator(recipe.precision)
    card = make_card(recipe, parts)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, card, parts, accelerator)
    return Fitting(recipe, model, make_loaders(recipe, parts, card, accelerator), accelerator, **settings)


def close(one: Run, other: Run, tolerance=1e-5):
    """The largest difference between the weights and sub-centroids of two runs."""
    first, second = (each.model()[0].state_dict() for each in (one, other))
    for name, value in first.items():
        difference = (value.double() - second[name].double()).abs().max()
        allowed = tolerance if value.dtype == torch.float32 else 1e-3  # the memory has half precision
        assert difference <= allowed, f"{name} differs by {difference}"
    return True


@pytest.mark.parametrize("passes", [2, 4])
def test_a_batch_in_parts_is_the_batch(tmp_path, passes):
    write_class_folders(tmp_path / "pictures", count=16, size=32)
    whole = train(quick(**NO_BATCH_NORM), tmp_path, tmp_path / "whole", progress=False)
    parts = train(quick(**NO_BATCH_NORM, accumulate=passes), tmp_path, tmp_path / "parts", progress=False)
    assert close(whole, parts)
    assert int(parts.model()[0].state_dict()["head.updates"]) == 6
    other = train(quick(**{**NO_BATCH_NORM, "learning_rate": 0.0202}), tmp_path, tmp_path / "other", progress=False)
    with pytest.raises(AssertionError, match="differs by"):  # the bound tells a learning rate that is 1 % off
        close(whole, other)


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_twice_the_batch(tmp_path):
    """Real processes (gloo): the same weights and sub-centroids to 1e-5, and on both ranks the same bits."""
    write_class_folders(tmp_path / "pictures", count=16, size=32)
    recipe = quick(**NO_BATCH_NORM)
    alone = train(recipe, tmp_path, tmp_path / "alone", progress=False)
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [str(tmp_path), str(NO_BATCH_NORM)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same on both" in done.stdout
    together = Run.load(tmp_path / "two" / alone.folder.name)
    assert together.manifest["processes"] == 2
    assert close(alone, together)
    assert together.manifest["final"]["loss"] == pytest.approx(alone.manifest["final"]["loss"], rel=1e-3)


TWO = """
import ast, sys, warnings
import torch
import torch.distributed as dist
from dnc_lib import recipes, training

warnings.simplefilter("ignore")
folder, changes = sys.argv[1], ast.literal_eval(sys.argv[2])
seen = []
after_step = training._Keeper.after_step

def compare(keeper):
    mine = keeper.fitting.model.head.subcentroids
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine.contiguous())
    assert torch.equal(*both), keeper.fitting.steps_done
    seen.append(keeper.fitting.steps_done)
    after_step(keeper)

training._Keeper.after_step = compare
recipe = recipes.digits_resnet8(**changes)
training.train(recipe, folder, folder + "/two", progress=False)
assert seen == list(range(1, 7)), seen
if dist.get_rank() == 0:
    print("the same on both")
dist.destroy_process_group()
"""


def test_the_clock_tells_waiting_from_working():
    clock = Clock(training=8.0, waiting=2.0, elsewhere=2.0, images=400)
    assert clock.report() == {"seconds": 10.0, "wait_share": 0.25, "images_per_second": 50.0}
    assert Clock().report()["wait_share"] == 0


def test_the_held_out_images_are_looked_at_as_often_as_asked(monkeypatch):
    for every, looked in ((1, [1, 2, 3]), (2, [2, 3]), (0, [3])):
        each = fitted(quick(epochs=3, batch_size=16), evaluate_every=every)
        each.fit()
        assert [record["epoch"] for record in each.curve if "accuracy" in record] == looked
        assert [record["epoch"] for record in each.curve] == [1, 2, 3]
        assert each.clock.images == 3 * 64


def test_mixed_batches_move_no_sub_centroid(monkeypatch):
    each = fitted(quick(epochs=4, batch_size=16, mixup=1.0, mix_probability=0.5))
    mixed = []
    monkeypatch.setattr(type(each.model.head), "update", lambda head, x, labels: mixed.append(each.steps_done))
    each.fit()
    plain = [step for step in range(16) if not each.mixer.mixes(step)]
    assert mixed == plain
    assert 2 <= len(plain) <= 14
    assert each.updates == 8  # expected


def test_gradients_are_clipped():
    each = fitted(quick(epochs=1, batch_size=16, clip_norm=0.01, sgd_momentum=0.0, nesterov=False, weight_decay=0.0))
    before = torch.cat([p.detach().flatten().clone() for p in each.model.parameters()])
    rates = []
    each.fit(after_step=lambda: rates.append(each.scheduler.get_last_lr()[0]))
    moved = torch.cat([p.detach().flatten() for p in each.model.parameters()]) - before
    assert 0 < moved.norm() <= 0.01 * each.recipe.learning_rate * 4 * 1.001


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_and_plain_agree(monkeypatch, backend):
    """By the backend that only traces, and slowly by the one that writes C++, as a recipe's ``compile`` does."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    settings = {"epochs": 1, "batch_size": 32, "head": "cosine"}
    plain, compiled = fitted(quick(**settings)), fitted(quick(**settings, compile=True))
    assert isinstance(compiled.wrapped, torch._dynamo.eval_frame.OptimizedModule)
    plain.fit()
    compiled.fit()
    assert compiled.curve[-1]["train_loss"] == pytest.approx(plain.curve[-1]["train_loss"], rel=1e-3)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_the_scale_of_fp16_is_part_of_the_state():
    one, other = (fitted(quick(epochs=1, batch_size=16)) for _ in range(2))
    assert one.state_dict()["scaler"] is None
    one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # on a CPU accelerate makes none
    state = one.state_dict()
    other.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    other.load_state_dict(state)
    assert other.accelerator.scaler.get_scale() == 8.0


def test_a_loss_that_is_no_number_is_seen_at_the_latest_after_so_many_steps():
    each = fitted(quick(epochs=1, batch_size=16, head="softmax"))
    with torch.no_grad():
        each.model.head.linear.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+ of epoch 1: lower learning_rate"):
        each.fit()
    assert each.step <= fitting.LOOK_EVERY
