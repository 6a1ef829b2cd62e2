"""A run that was stopped at any moment ends where it would have ended; on the CPU bit for bit."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers import quick, write_class_folders

from dnc_lib import fitting, training
from dnc_lib.checkpoints import ModelCard, read_model
from dnc_lib.evaluation import evaluate
from dnc_lib.loading import make_loader, prepare_data
from dnc_lib.models import ImageClassifier
from dnc_lib.runs import Run, held
from dnc_lib.signals import Stopped
from dnc_lib.snapshots import Snapshots
from dnc_lib.tasks import Classification
from dnc_lib.training import train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")

#: 6 steps an epoch, 18 in all.
SHORT = {"epochs": 3, "train_limit": 400}
WORDS = ["train", "digits_resnet8", "--epochs", "3", "--train-limit", "400", "--momentum", "0.97"]
WORDS += ["--snapshot-seconds", "0"]


def run(output, resume=False, seconds=0.0, data_root=None, **changes):
    recipe = quick(**{**SHORT, **changes})
    return train(recipe, data_root, output, resume=resume, snapshot_seconds=seconds, progress=False)


def same(one: Run, other: Run):
    """Whether two runs agree in everything but their times."""
    first, second = (each.model()[0].state_dict() for each in (one, other))
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    curves = [[{**record, "seconds": 0} for record in each.manifest["curve"]] for each in (one, other)]
    assert curves[0] == curves[1]
    assert one.manifest["final"] == other.manifest["final"]
    assert [record["epoch"] for record in other.metrics()] == [1, 2, 3]
    assert other.metrics() == other.manifest["curve"]
    return True


class Crash(Exception):
    """Instead of a kill, within this process."""


def crash_at(monkeypatch, step):
    """Let the training crash after this step, at which a snapshot was or was not taken."""
    after_step = training._Keeper.after_step

    def crashing(keeper):
        after_step(keeper)
        if keeper.fitting.steps_done == step:
            raise Crash

    monkeypatch.setattr(training._Keeper, "after_step", crashing)


@pytest.mark.parametrize("step", [1, 5, 6, 7, 12, 17, 18])
def test_a_crash_after_any_step(tmp_path, monkeypatch, step):
    whole = run(tmp_path / "whole", seconds=1e9)
    crash_at(monkeypatch, step)
    with pytest.raises(Crash):
        run(tmp_path / "broken")
    monkeypatch.undo()
    state = Snapshots(tmp_path / "broken" / whole.folder.name / "snapshots").load()["fitting"]
    assert state["epoch"] * 6 + state["step"] == step
    assert same(whole, run(tmp_path / "broken", resume=True))
    assert not (tmp_path / "broken" / whole.folder.name / "snapshots").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "softmax", "optimizer": "adamw", "decay_norms": False, "learning_rate": 1e-3},
        {"schedule": "cosine", "warmup_epochs": 1, "clip_norm": 1.0, "accumulate": 2},
        {"mixup": 0.4, "cutmix": 1.0, "mix_probability": 0.6, "label_smoothing": 0.1},
        {"assignment": "random", "start": "data", "update_after": 4, "schedule": "step", "milestones": (1, 2)},
        {"head": "cosine", "schedule": "poly"},
        {"precision": "bf16"},
        {"validation": 100, "refresh": True},
        {"anchor": True, "anchor_epochs": 2, "refresh_epochs": 3, "update_every": 2},
        {"spread": "frame", "num_subcentroids": 2, "scale_by": "layernorm", "refresh_epochs": 1},
    ],
)
def test_a_crash_under_every_setting(tmp_path, monkeypatch, changes):
    whole = run(tmp_path / "whole", seconds=1e9, **changes)
    crash_at(monkeypatch, 8)
    with pytest.raises(Crash):
        run(tmp_path / "broken", **changes)
    monkeypatch.undo()
    torch.manual_seed(random.randrange(1000))  # what the caller draws does not matter
    assert same(whole, run(tmp_path / "broken", resume=True, **changes))


def test_dropped_paths_are_the_same_after_a_crash_in_the_middle_of_an_epoch_of_pictures(tmp_path, monkeypatch):
    """Swin has random depth; pictures have random crops: all are functions of the seed and the place."""
    write_class_folders(tmp_path / "pictures", count=10)
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2}

    def build_small(card, memory=True, auxiliary=False):
        settings = card.head_settings if memory else {**card.head_settings, "memory_size": 0}
        return ImageClassifier.build(
            card.backbone, len(card.classes), card.head, head_settings=settings, **card.backbone_settings, **small
        )

    monkeypatch.setattr(ModelCard, "build", build_small)
    changes = {
        "dataset": "pictures", "reader": "files", "backbone": "swin_tiny_patch4_window7_224", "image_size": 32,
        "drop_path": 0.5, "batch_size": 6, "train_limit": 30, "rand_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.25, "memory_size": 32, "epochs": 3, "optimizer": "adamw", "learning_rate": 1e-3,
    }  # fmt: skip
    whole = run(tmp_path / "whole", seconds=1e9, data_root=tmp_path, **changes)
    with monkeypatch.context() as patch:
        crash_at(patch, 7)  # five steps an epoch
        with pytest.raises(Crash):
            run(tmp_path / "broken", data_root=tmp_path, **changes)
    assert same(whole, run(tmp_path / "broken", resume=True, data_root=tmp_path, **changes))
    assert 0 < whole.manifest["wait_share"] < 1


def test_a_crash_before_the_first_snapshot_begins_anew(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", seconds=1e9)
    crash_at(monkeypatch, 9)
    with pytest.raises(Crash):
        run(tmp_path / "broken", seconds=1e9)
    monkeypatch.undo()
    assert len(Run(tmp_path / "broken" / whole.folder.name).metrics()) == 1
    with pytest.raises(FileExistsError, match="holds a run already; go on with it by --resume"):
        run(tmp_path / "broken")
    assert same(whole, run(tmp_path / "broken", resume=True))


def test_the_snapshot_before_a_damaged_one_is_used(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", seconds=1e9)
    crash_at(monkeypatch, 10)
    with pytest.raises(Crash):
        run(tmp_path / "broken")
    monkeypatch.undo()
    newest, _ = Snapshots(tmp_path / "broken" / whole.folder.name / "snapshots").paths()
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step0000000010\..*is damaged; going on from the one before"):
        again = run(tmp_path / "broken", resume=True)
    assert same(whole, again)


def test_a_finished_run_is_given_back(tmp_path):
    first = run(tmp_path, seconds=1e9)
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = run(tmp_path, resume=True)
    assert again.recipe == first.recipe
    assert again.manifest["curve"] == first.manifest["curve"]
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="holds a finished run of another recipe; choose another --output"):
        run(tmp_path, resume=True, epochs=4)


def test_a_run_goes_on_with_its_own_recipe_only(tmp_path, monkeypatch):
    crash_at(monkeypatch, 2)
    with pytest.raises(Crash):
        run(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"began with another recipe: epochs, learning_rate; go on with the same"):
        run(tmp_path, resume=True, epochs=4, learning_rate=0.3)
    describe = training.describe
    monkeypatch.setattr(training, "describe", lambda *words: {**describe(*words), "data": {"train": "other"}})
    with pytest.raises(ValueError, match=r"began with another data: train; go on with the same"):
        run(tmp_path, resume=True)


def test_the_best_epoch_is_kept_beside_the_last(tmp_path):
    result = run(tmp_path, seconds=1e9)
    model, card = read_model(result.folder / "best.safetensors")
    test = make_loader(result.recipe, prepare_data(result.recipe)["test"], card, "cpu")
    assert evaluate(model, test)["accuracy"] == pytest.approx(result.manifest["best"]["accuracy"])


# --- real processes -------------------------------------------------------------------------------------------------


#: The command, which rests after each snapshot: on a busy machine, too, a kill then comes before the end.
SLOWLY = """
import sys, time
from dnc_lib.__main__ import main
from dnc_lib.snapshots import Snapshots
save = Snapshots.save
Snapshots.save = lambda *words: (save(*words), time.sleep(0.3))[0]
sys.exit(main())
"""


def start(output, *words, slowly=False):
    program = ["-c", SLOWLY] if slowly else ["-m", "dnc_lib"]
    command = [sys.executable, *program, *WORDS, "--output", str(output), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_snapshot(process, folder, step):
    """Until a snapshot of this step or a later one is there."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.name[4:14]) >= step for path in Snapshots(folder / "snapshots").paths()):
            return
        time.sleep(0.002)
    raise AssertionError(f"no snapshot came; {process.poll()}")


@pytest.mark.slow
def test_killed_twice_and_resumed(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=600) == 0
    folder = tmp_path / "broken" / "digits_resnet8_dnc_seed0"
    for step, words in ((2, ()), (9, ("--resume",))):
        process = start(tmp_path / "broken", *words, slowly=True)
        wait_for_snapshot(process, folder, step)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=600) == -signal.SIGKILL
        assert not (folder / "manifest.json").exists()
    last = start(tmp_path / "broken", "--resume")
    assert last.wait(timeout=600) == 0
    assert same(Run.load(tmp_path / "whole" / folder.name), Run.load(folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
    ]


@pytest.mark.slow
def test_sigterm_saves_and_stops(tmp_path):
    folder = tmp_path / "digits_resnet8_dnc_seed0"
    process = start(tmp_path, "--snapshot-seconds", "3600", "--epochs", "500")
    deadline = time.monotonic() + 600
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143
    assert "as asked; the snapshot in" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert len(Snapshots(folder / "snapshots").paths()) == 1
    assert Snapshots(folder / "snapshots").load()["fitting"]["epoch"] >= 1


def test_sigterm_within_this_process_stops_and_leaves_the_handler_as_it_was(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", seconds=1e9)
    before = signal.getsignal(signal.SIGTERM)
    after_step = training._Keeper.after_step

    def terminated(keeper):
        if keeper.fitting.steps_done == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(keeper)

    monkeypatch.setattr(training._Keeper, "after_step", terminated)
    with pytest.raises(Stopped, match=r"stopped at step 2 of epoch 2, as asked; .* go on with --resume"):
        run(tmp_path / "broken", seconds=1e9)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before
    assert same(whole, run(tmp_path / "broken", resume=True, seconds=1e9))


def test_a_training_in_another_thread_does_without_the_signal(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, seconds=1e9, epochs=1, train_limit=100)))
    thread.start()
    thread.join(timeout=600)
    assert results[0].manifest["final"]["accuracy"] > 0


# --- what may lie in the way ----------------------------------------------------------------------------------------


def crashed(monkeypatch, output, step=8, **changes):
    """The folder of a run that crashed after this step."""
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(Crash):
            run(output, **changes)
    return output / "digits_resnet8_dnc_seed0"


def rewrite(folder, change):
    """The newest snapshot alone, changed and whole, as another version might have written it."""
    snapshots = Snapshots(folder / "snapshots")
    state = snapshots.load()
    snapshots.remove()
    change(state)
    snapshots.save(state, state["fitting"]["epoch"] * 6 + state["fitting"]["step"])


def test_a_snapshot_from_before_a_field_goes_on(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", seconds=1e9)
    folder = crashed(monkeypatch, tmp_path / "broken")
    rewrite(folder, lambda state: state["manifest"]["recipe"].pop("clip_norm"))
    assert same(whole, run(tmp_path / "broken", resume=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("manifest"),
        lambda state: state["fitting"].pop("sums"),
        lambda state: state["fitting"]["clock"].update(lunch=1.0),
        lambda state: state["fitting"]["model"].pop("head.subcentroids"),
        lambda state: state["manifest"]["recipe"].update(wheels=4),
    ],
)
def test_a_snapshot_of_another_version_is_refused_in_words(tmp_path, monkeypatch, change):
    folder = crashed(monkeypatch, tmp_path, step=2)
    rewrite(folder, change)
    with pytest.raises(
        ValueError, match=r"is of another version of dnc_lib .*; go on with that version, or choose anoth"
    ):
        run(tmp_path, resume=True)


def test_going_on_with_other_code_is_called_out(tmp_path, monkeypatch):
    folder = crashed(monkeypatch, tmp_path)
    rewrite(folder, lambda state: state["manifest"]["code"].update(commit="0" * 40))
    with pytest.warns(
        UserWarning, match="seed0 began with another code; its manifest will tell of the present one alon"
    ):
        run(tmp_path, resume=True)


def test_a_snapshot_that_cannot_be_written_stops_only_what_needs_it(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no snapshot could be written: disk full")

    monkeypatch.setattr(Snapshots, "save", full)
    with pytest.warns(UserWarning, match="disk full: the training goes on, and tries again"):
        ended = run(tmp_path / "one")
    assert ended.finished
    monkeypatch.setattr(training, "watch_for_stop", lambda: contextlib.nullcontext(lambda: True))
    with pytest.raises(OSError, match="disk full"):  # not Stopped: there is nothing to go on from
        run(tmp_path / "two", seconds=1e9)


def test_one_process_a_run(tmp_path):
    with held(tmp_path / "digits_resnet8_dnc_seed0"):
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=r"another process is writing .*dnc_seed0: wait for its end"):
                run(tmp_path, resume=resume)
    run(tmp_path, seconds=1e9, epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["digits_resnet8_dnc_seed0"]


def test_what_kills_left_is_cleared_away(tmp_path, monkeypatch):
    folder = crashed(monkeypatch, tmp_path)
    (folder / ".77.best.safetensors").write_bytes(b"half")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    ended = run(tmp_path, resume=True)
    assert len(ended.metrics()) == 3
    (folder / "snapshots").mkdir()  # killed between the manifest and the removal of the snapshots
    Snapshots(folder / "snapshots").save({"step": 18}, 18)
    run(tmp_path, resume=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
    ]


class FakeTime:
    """A clock that moves only when told to."""

    now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def takes(self, seconds, deed):
        """The same deed, which takes so many seconds."""

        def slow(*words, **settings):
            self.now += seconds
            return deed(*words, **settings)

        return slow


def test_the_time_of_snapshots_and_of_the_last_measure_counts(tmp_path, monkeypatch):
    clock = FakeTime()
    for module in (training, fitting):
        monkeypatch.setattr(module, "time", clock)
    for owner, name, seconds in (
        (fitting.Fitting, "_train_step", 2),
        (Snapshots, "save", 50),
        (Classification, "evaluate", 1000),
    ):
        monkeypatch.setattr(owner, name, clock.takes(seconds, getattr(owner, name)))
    manifest = run(tmp_path).manifest
    assert [each["seconds"] for each in manifest["curve"]] == [epoch * (6 * 52 + 1000) for epoch in (1, 2, 3)]
    assert manifest["seconds"] == 18 * 52 + 4 * 1000 == clock.now  # it is measured after each epoch and once at last
    assert manifest["images_per_second"] == 64 / 2  # of the steps alone
