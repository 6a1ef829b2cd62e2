"""What only a real GPU can show. ``pytest -m gpu`` runs this file alone, and torch, timm and accelerate are enough.

``DNC_REHEARSE_GPU=1 pytest -m gpu`` runs it on the GPU that is none (``fake_cuda``), to see on any machine that the
tests themselves are sound.
"""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from fake_cuda import FakeCuda
from helpers import quick, random_images, write_class_folders
from torch import nn

from dnc_lib import ImageClassifier, Segmenter, SubCentroidHead, grouping, training
from dnc_lib.anchoring import anchor
from dnc_lib.data import DeviceLoader
from dnc_lib.data.picture_loader import PictureLoader
from dnc_lib.data.pictures import open_pictures
from dnc_lib.evaluation import embed_dataset, evaluate
from dnc_lib.explain import explain
from dnc_lib.norms import synchronised
from dnc_lib.runs import Run
from dnc_lib.training import train

REHEARSED = os.environ.get("DNC_REHEARSE_GPU") == "1"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSED or torch.cuda.is_available()), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:momentum .* of the random start"),
]

on_a_real_one = pytest.mark.skipif(REHEARSED, reason="a rehearsal shows nothing of it")

STATS = ([0.5] * 3, [0.25] * 3)

#: 3 steps of 64 pictures; the digits would take scikit-learn.
BRIEF = {"dataset": "pictures", "image_size": 16, "epochs": 1, "memory_size": 100}


@pytest.fixture(autouse=True)
def there(monkeypatch):
    """Products in float32 are products in float32, and Accelerate looks anew for the device of each test."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    AcceleratorState._reset_state(True)
    with FakeCuda() if REHEARSED else contextlib.nullcontext():
        yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def root(tmp_path) -> Path:
    """Where the pictures are: three classes, 64 for training of each."""
    write_class_folders(tmp_path / "pictures", count=64, size=16)
    return tmp_path


def run(root: Path, output: str, **changes) -> Run:
    settings = {key: changes.pop(key) for key in ("snapshot_seconds", "resume") if key in changes}
    return train(quick(**{**BRIEF, **changes}), root, root / output, progress=False, **settings)


@contextlib.contextmanager
def on_the_cpu(monkeypatch):
    """Accelerate's own word for it."""
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(True)
        yield
    AcceleratorState._reset_state(True)


def weights(one: Run) -> dict[str, torch.Tensor]:
    return one.model()[0].state_dict()


def close(one: dict, other: dict, tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name].cpu().double(), value.cpu().double(), rtol=0, atol=tolerance, msg=name)


def classifier(**settings) -> ImageClassifier:
    torch.manual_seed(0)
    settings = {"num_subcentroids": 3, "memory_size": 0, **settings}
    return ImageClassifier.build("tiny_resnet8", 4, head_settings=settings).eval()


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["softmax", "cosine", "dnc"])
def test_a_training_is_that_of_the_cpu(root, monkeypatch, head):
    """A few steps: rounding grows from step to step."""
    there = run(root, "gpu", head=head)
    with on_the_cpu(monkeypatch):
        here = run(root, "cpu", head=head)
    assert (there.manifest["device"], here.manifest["device"]) == ("cuda", "cpu")
    first, second = (each.manifest["curve"][0] for each in (here, there))
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)
    one, other = weights(here), weights(there)
    floating = {name for name in one if one[name].is_floating_point() and not name.startswith("head.memory")}
    close({name: one[name] for name in floating}, other, 5e-3)
    moved = max((one[name] - classifier_start(here)[name]).abs().max() for name in floating if "weight" in name)
    assert moved > 0.02  # so the bound above is far below what the steps do


def classifier_start(one: Run) -> dict[str, torch.Tensor]:
    """The weights that a run began with."""
    torch.manual_seed(one.recipe.seed)
    return one.model()[1].build().state_dict()


@pytest.mark.slow
def test_the_digits_are_learned(tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    manifest = train(quick(), output=tmp_path, progress=False).manifest
    assert manifest["device"] == "cuda"
    assert manifest["final"]["accuracy"] > 90
    assert manifest["curve"][-1]["drift"] > 0.5


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=on_a_real_one)])
def test_a_training_in_half_precision(root, precision):
    half, whole = run(root, "half", precision=precision), run(root, "whole")
    first, second = (each.manifest["curve"][0]["train_loss"] for each in (half, whole))
    assert first == pytest.approx(second, rel=0.05)
    assert first != second  # it did compute with fewer bits
    state = weights(half)
    assert state["head.subcentroids"].dtype == torch.float32
    lengths = state["head.subcentroids"].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


class Crash(Exception):
    """Instead of a kill."""


def test_a_run_that_was_stopped_goes_on(root, monkeypatch):
    whole = run(root, "whole", epochs=2)
    after_step = training._Keeper.after_step

    def crashing(keeper):
        after_step(keeper)
        if keeper.fitting.steps_done == 4:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(training._Keeper, "after_step", crashing)
        with pytest.raises(Crash):
            run(root, "broken", epochs=2, snapshot_seconds=0)
    again = run(root, "broken", epochs=2, resume=True)
    one, other = weights(whole), weights(again)
    for name in ("head.updates", "head.memory.written", "head.memory.labels"):
        assert torch.equal(one[name], other[name]), name
    floating = {name: value for name, value in one.items() if value.is_floating_point() and "memory" not in name}
    close(floating, other, 5e-3)  # a GPU adds in no fixed order


@on_a_real_one
def test_a_compiled_training(root):
    compiled, plain = run(root, "compiled", compile=True), run(root, "plain")
    first, second = (each.manifest["curve"][0]["train_loss"] for each in (compiled, plain))
    assert first == pytest.approx(second, rel=1e-2)


@on_a_real_one
def test_the_device_is_accelerates_choice(root):
    """The command, in a process of its own: the GPU, or what the environment says."""
    words = ["train", "digits_resnet8", "--dataset", "pictures", "--image-size", "16", "--data-root", str(root)]
    words += ["--epochs", "1", "--momentum", "0.3", "--quiet", "--output"]
    for name, environment, device in (("gpu", {}, "cuda"), ("cpu", {"ACCELERATE_USE_CPU": "true"}, "cpu")):
        command = [sys.executable, "-m", "dnc_lib", *words, str(root / name)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr[-2000:]
        manifest = Run.load(root / name / "digits_resnet8_dnc_seed0").manifest
        assert manifest["device"] == device
        assert manifest["peak_memory_bytes"] > 0
        assert (manifest["device_name"] == torch.cuda.get_device_name()) == (device == "cuda")


# --- the head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"start": "data"}, {"assignment": "nearest"}, {"spread": "frame"}], ids=str)
@pytest.mark.parametrize("by_tiles", [False, True])
def test_the_update_is_that_of_the_cpu(monkeypatch, settings, by_tiles):
    """In float64, so that no tie is settled by rounding."""
    if by_tiles:
        monkeypatch.setattr(grouping, "DEVICE_PRODUCTS", 0)
        monkeypatch.setattr(grouping, "DEVICE_BLOCK", 1 << 14)
    here, there = (SubCentroidHead(256, 10, 4, 0.9, memory_size=1000, **settings).double() for _ in range(2))
    there = there.to("cuda")
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        x = torch.randn(128, 256, generator=generator, dtype=torch.float64)
        labels = torch.randint(10, (128,), generator=generator)
        here.update(x, labels)
        there.update(x.to("cuda"), labels.to("cuda"))
    torch.testing.assert_close(there.subcentroids.cpu(), here.subcentroids, rtol=0, atol=1e-9)
    torch.testing.assert_close(there.memory.embeddings.cpu(), here.memory.embeddings, rtol=0, atol=1e-9)
    for name in ("wins", "moved", "updates"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
    here.estimate(x, labels)
    there.estimate(x.to("cuda"), labels.to("cuda"))
    torch.testing.assert_close(there.subcentroids.cpu(), here.subcentroids, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(10, 128, 512), (1000, 12_800, 64), (21_841, 64, 128)])
def test_scores_and_gradients_are_those_of_the_cpu(shape):
    classes, number, dim = shape
    here, there = (SubCentroidHead(dim, classes, memory_size=0) for _ in range(2))
    there = there.to("cuda")
    x = torch.randn(number, dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(number) % classes
    found = []
    for head, device in ((here, "cpu"), (there, "cuda")):
        features = x.clone().to(device).requires_grad_()
        loss = F.cross_entropy(head(features), labels.to(device))
        loss.backward()
        found.append((loss.detach().cpu(), features.grad.cpu()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@on_a_real_one
@pytest.mark.parametrize("num_classes", [10, 1000])
def test_an_update_waits_for_the_gpu_once(num_classes):
    """By the count of torch itself."""
    head = SubCentroidHead(64, num_classes, memory_size=1000).to("cuda")
    x, labels = torch.randn(128, 64, device="cuda"), torch.randint(num_classes, (128,), device="cuda")
    head.update(x, labels)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            head.update(x, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in caught if "synchronizing" in str(each.message)]) == 1


@on_a_real_one
def test_a_training_step_waits_for_the_gpu_once(root, monkeypatch):
    counts = []
    step = training.Fitting._train_step

    def counted(self, batches):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(len([each for each in caught if "synchronizing" in str(each.message)]))

    monkeypatch.setattr(training.Fitting, "_train_step", counted)
    run(root, "watched", epochs=2)
    assert counts[1:] == [1] * 5


# --- what is asked of a model, and what feeds it --------------------------------------------------------------------


def test_evaluation_is_that_of_the_cpu():
    data, model = random_images(60, 4, 16), classifier()
    here = evaluate(model, DeviceLoader(data, 16, *STATS))
    there = evaluate(model.to("cuda"), DeviceLoader(data, 16, *STATS, "cuda"))
    assert there["images"] == here["images"] == 60
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)
    assert there["accuracy"] == pytest.approx(
        here["accuracy"], abs=100 / 60 + 1e-9
    )  # one image may lie on the border
    embeddings, labels = embed_dataset(model, DeviceLoader(data, 16, *STATS))
    assert embeddings.device.type == labels.device.type == "cuda"


def test_an_explanation_is_that_of_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        data, model = random_images(40, 4, 16), classifier().to(device)
        loader = DeviceLoader(data, 16, *STATS, device)
        model.refresh(loader)
        exemplars, _ = anchor(model, loader)
        images = torch.cat([images for images, _ in loader])
        found.append(explain(model, images[0], exemplars, look=lambda i, images=images: images[i]))
    here, there = found
    assert (here.predicted, here.runner_up) == (there.predicted, there.runner_up)
    for one, other in zip(here.cases, there.cases, strict=True):
        assert other.similarity == pytest.approx(one.similarity, abs=1e-4)
        torch.testing.assert_close(other.here.values, one.here.values, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_pictures_come_by_pinned_memory(tmp_path):
    write_class_folders(tmp_path / "pictures", size=40)
    train_part, _ = open_pictures("pictures", tmp_path)
    here, there = (
        PictureLoader(train_part, 4, *STATS, device, image_size=32, workers=0 if REHEARSED else 2)
        for device in ("cpu", "cuda")
    )
    assert there._read.pin_memory
    assert not here._read.pin_memory
    pinned = []
    normalise = there._normalise
    there._normalise = lambda batch: pinned.append(batch[0].is_pinned()) or normalise(batch)
    for _ in range(2):
        busy = torch.randn(1000, 1000, device="cuda")
        for one, other in zip(here, there, strict=True):
            busy = busy @ busy  # the GPU is at work while the next batch is copied
            busy = busy / busy.norm()
            for a, b in zip(one, other, strict=True):
                assert b.device.type == "cuda"
                torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-5)
    assert pinned
    assert all(pinned)


def test_batch_norms_of_several_processes_on_one():
    """The conversion that only a GPU can run; with one process it computes what its own BatchNorms would."""
    torch.manual_seed(0)
    model = Segmenter.build("tiny_resnet8", "fcn", 3, channels=8)
    twin = synchronised(Segmenter.build("tiny_resnet8", "fcn", 3, channels=8))
    twin.load_state_dict(model.state_dict())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in twin.modules())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to("cuda")
    model, twin = model.to("cuda"), twin.to("cuda")
    found = []
    for each in (model, twin):
        torch.manual_seed(0)  # of dropout
        found.append(each.train()(images))
    scores, same = found
    torch.testing.assert_close(same, scores, rtol=0, atol=1e-4)
    close(model.state_dict(), twin.state_dict(), 1e-4)


@on_a_real_one
def test_the_throughput_of_whole_steps_is_measured(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "bench_throughput.py"
    command = [sys.executable, str(script), "--recipe", "digits_resnet8", "--batch", "32", "--classes", "10"]
    command += ["--device", "cuda", "--precision", "bf16", "--rounds", "2", "--output", str(tmp_path / "record.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["heads"]["dnc"]["images_per_second"]["best"] > 0
