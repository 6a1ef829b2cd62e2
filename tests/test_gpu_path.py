"""The way of tensors over a GPU, without one: see ``fake_cuda``. First that it sees what it is there to see."""

import contextlib
import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from fake_cuda import CUDA, FakeCuda, HiddenWait, MixedDevices, MixedTypes, UnorderedStreams, place
from helpers import quick, random_images, write_class_folders
from scene_runs import SHORT, write_scenes
from test_fitting import fitted
from torch import nn
from tracing import OperatorCount

from dnc_lib import grouping, recipes
from dnc_lib.anchoring import anchor
from dnc_lib.calibration import score_images
from dnc_lib.checkpoints import ModelCard
from dnc_lib.data import DeviceLoader
from dnc_lib.data.digit_scenes import make_digit_scenes
from dnc_lib.data.picture_loader import PictureLoader
from dnc_lib.data.pictures import open_pictures
from dnc_lib.data.scene_loader import SceneLoader
from dnc_lib.data.scene_transforms import SceneAugmentation
from dnc_lib.data.scenes import open_scenes
from dnc_lib.evaluation import embed_dataset, evaluate, evaluate_segmentation, segmentation_counts
from dnc_lib.explain import explain
from dnc_lib.faithfulness import faithfulness
from dnc_lib.fitting import Fitting
from dnc_lib.foreign import Rater
from dnc_lib.heads import HEADS, SubCentroidHead
from dnc_lib.heat_maps import similarity_maps
from dnc_lib.hidden_classes import flow, nearest_own, shuffled
from dnc_lib.models import ImageClassifier, Segmenter
from dnc_lib.new_classes import _Reading, class_centres, nearest_neighbours, with_new_classes
from dnc_lib.open_runs import open_run
from dnc_lib.predictions import predict_labels, predict_shares, record_scenes
from dnc_lib.snapshots import Snapshots
from dnc_lib.training import train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")


@pytest.fixture
def gpu():
    with FakeCuda() as fake:
        yield fake


# --- what it sees ---------------------------------------------------------------------------------------------------


def test_tensors_say_where_they_are(gpu):
    x = torch.randn(3, 4).to("cuda")
    assert x.device == CUDA
    assert x.is_cuda
    assert not x.is_cpu
    assert x.get_device() == 0
    views = (x.T, x[1:], x.view(2, 6), x.detach(), x.unbind()[0], nn.Parameter(x).data)
    made = (x + 1, x @ x.T, x.sum(), x.new_zeros(2), torch.zeros_like(x), x.double(), torch.cat([x, x]))
    made += (copy.deepcopy(x), x.cuda(), torch.randn(2).cuda())
    there = (torch.ones(2, device="cuda"), torch.arange(3, device=CUDA), F.one_hot(x.argmax(1), 4), x.to(x), x.long())
    assert all(each.device == CUDA for each in (*views, *made, *there))
    here = (torch.ones(3), x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), torch.from_numpy(np.ones(3)))
    for each in here:
        assert each.device == torch.device("cpu")
        assert not each.is_cuda
    assert torch.equal(x.cpu().to("cuda").cpu(), x.cpu())


def test_modules_gradients_and_optimisers_go_there_too(gpu):
    layer = nn.Linear(4, 3).to("cuda")
    assert {each.device for each in layer.parameters()} == {CUDA}
    with pytest.raises(MixedDevices, match="tensors on several devices in test_gpu_path"):
        layer(torch.randn(2, 4))
    for optimizer in (torch.optim.SGD(layer.parameters(), 0.1, 0.9), torch.optim.AdamW(layer.parameters(), 0.1)):
        before = layer.weight.detach().clone()
        layer(torch.randn(2, 4).to("cuda")).square().sum().backward()
        assert layer.weight.grad.device == CUDA
        with gpu.running({}):
            optimizer.step()
        assert layer.weight.device == CUDA
        assert (layer.weight != before).any()


def test_the_numbers_are_those_of_the_cpu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    x = torch.randn(6, 3, 8, 8)
    twin = copy.deepcopy(model)
    F.cross_entropy(model(x), torch.arange(6) % 5).backward()
    with FakeCuda():
        twin.to("cuda")
        F.cross_entropy(twin(x.to("cuda")), (torch.arange(6) % 5).to("cuda")).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def planted_devices():
    """What CUDA refuses: a name, and what does it to tensors of the GPU x (4, 4), of the CPU y (4, 4), labels i."""
    return {
        "pointwise": lambda x, y, i: x + y,
        "in place": lambda x, y, i: x.add_(y),
        "into the CPU": lambda x, y, i: y.mul_(x),
        "product": lambda x, y, i: x @ y,
        "loss": lambda x, y, i: F.cross_entropy(x, i.cpu()),
        "gather": lambda x, y, i: x.gather(1, i.cpu()[:, None]),
        "index_select": lambda x, y, i: x.index_select(0, i.cpu()),
        "index of the GPU": lambda x, y, i: y[i],
        "what is put": lambda x, y, i: x.__setitem__(i, y),
        "concatenation": lambda x, y, i: torch.cat([x, y]),
        "stack with a scalar": lambda x, y, i: torch.stack([x.sum(), torch.tensor(1.0)]),
        "out": lambda x, y, i: torch.add(x, x, out=y),
        "generator of the CPU": lambda x, y, i: torch.rand(3, device=x.device, generator=torch.Generator()),
        "generator of the GPU": lambda x, y, i: torch.rand(3, generator=torch.Generator(x.device)),
        "generator in place": lambda x, y, i: x.normal_(generator=torch.Generator()),
        "array": lambda x, y, i: x.numpy(),
        "array by numpy": lambda x, y, i: np.asarray(x),
        "backward": lambda x, y, i: _Careless.apply(x.clone().requires_grad_()).sum().backward(),
    }


class _Careless(torch.autograd.Function):
    """Its backward pass makes a tensor on the wrong device."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.full(gradient.shape, 2.0)


@pytest.mark.parametrize("name", planted_devices())
def test_a_mixture_of_devices_is_seen(gpu, name):
    x, y, i = torch.ones(4, 4, device="cuda"), torch.ones(4, 4), torch.arange(4).to("cuda")
    with pytest.raises(MixedDevices):
        planted_devices()[name](x, y, i)


def test_what_cuda_allows_is_allowed(gpu):
    x, i = torch.ones(4, 4, device="cuda"), torch.arange(4)
    found = [
        x * torch.tensor(2.0), torch.tensor(2.0) - x, x[i], x[[0, 2]], x[1:, None], torch.where(x > 0, x, 0), 2 / x,
        torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(1)), x.masked_fill(x > 0, 0.5),
    ]  # fmt: skip
    assert all(each.device == CUDA for each in found)
    x[0], x[1, :2] = 3.0, torch.tensor(4.0)
    on_cpu = torch.zeros(4, 4)
    on_cpu.copy_(x)
    assert on_cpu.device.type == "cpu"
    assert on_cpu[0, 0] == 3


def planted_waits():
    """What makes the host wait for the GPU: a name, and what does it to x (4,) of the GPU."""
    return {
        "item": lambda x: x[0].item(),
        "float": lambda x: float(x.sum()),
        "int": lambda x: int(x[0]),
        "bool": lambda x: bool(x[0] > 0),
        "if": lambda x: 1 if (x > 0).all() else 2,
        "tolist": lambda x: x.tolist(),
        "cpu": lambda x: x.cpu(),
        "to": lambda x: x.to("cpu"),
        "copy": lambda x: torch.zeros(4).copy_(x),
        "sum on the CPU": lambda x: torch.zeros(()).add_(x.sum().to("cpu")),
        "mask": lambda x: x[x > 0],
        "put by a mask": lambda x: x.__setitem__(x > 0, x.clone()),
        "nonzero": lambda x: x.nonzero(),
        "where": lambda x: torch.where(x > 0),
        "masked_select": lambda x: x.masked_select(x > 0),
        "unique": lambda x: x.unique(),
        "bincount": lambda x: x.long().bincount(minlength=9),
        "equal": lambda x: torch.equal(x, x),
        "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
        "upload": lambda x: torch.ones(4).to(x.device),
        "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
        "new_tensor": lambda x: x.new_tensor(len(x)),
        "as_tensor": lambda x: torch.as_tensor([1.0], device=x.device),
        "a list as index": lambda x: x[[0, 1]],
        "synchronize": lambda x: torch.cuda.synchronize(),
        "format": lambda x: f"{x[0]:.1f}",
        "not waiting": lambda x: x.to("cpu", non_blocking=True),
    }


@pytest.mark.parametrize("name", planted_waits())
def test_a_hidden_wait_is_seen(gpu, name):
    x, plant = torch.ones(4, device="cuda"), planted_waits()[name]
    if name != "not waiting":  # which is wrong everywhere
        plant(x)
    with gpu.running({}), pytest.raises(HiddenWait, match=r"test_gpu_path\."):
        plant(x)


def test_what_does_not_wait_is_not_taken_for_a_wait(gpu):
    x, i = torch.ones(4, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
    with gpu.running({}):
        torch.ones(4).to("cuda", non_blocking=True)
        torch.where(x > 0, x, 0)
        x[0], x[i], x.new_full((), 3.0), x.new_zeros(3), torch.full((2,), 1.0, device="cuda"), F.one_hot(i, 3)
        x.repeat_interleave(torch.ones_like(i), output_size=4)
        x[x > 2] = 1.0
        x[0], x[1:3] = 1.0, x[:2].clone()
        x.index_add_(0, i, x.clone()).clamp_(0, 1)
        torch.arange(5).tolist(), float(torch.ones(3).sum()), torch.ones(3)[torch.ones(3) > 0]  # on the CPU
        len(x), x.shape, x.dtype
    assert not gpu.waits


def test_waits_are_allowed_by_name_and_counted(gpu):
    x = torch.ones(4, device="cuda")

    def reads():
        return x.sum().item(), x.tolist()

    with gpu.running({"test_gpu_path.reads": "why not"}):
        reads()
        assert gpu.waits == {"test_gpu_path.reads": 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_of_two_types_is_seen(gpu, dtype):
    x, y = torch.ones(4, 4, device="cuda"), torch.ones(4, 4, device="cuda", dtype=dtype)
    layer = nn.Linear(4, 4).to("cuda")
    images, kernel = torch.ones(1, 2, 5, 5, device="cuda"), torch.ones(3, 2, 3, 3, device="cuda", dtype=dtype)
    planted = (lambda: x @ y, lambda: layer(y), lambda: torch.bmm(x[None], y[None]), lambda: F.conv2d(images, kernel))
    for plant in planted:
        with pytest.raises(MixedTypes):
            plant()
        with torch.autocast("cuda", dtype):
            assert plant().dtype == dtype
        with torch.autocast("cuda", dtype), torch.autocast("cuda", enabled=False), pytest.raises(MixedTypes):
            plant()
    with torch.autocast("cuda", dtype), pytest.raises(MixedTypes, match="autocast of the cpu inside that of the GPU"):
        torch.autocast("cpu", enabled=False)


def test_streams_that_do_not_wait_for_one_another_are_seen(gpu):
    side, main = torch.cuda.Stream(CUDA), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        x = torch.ones(4).to("cuda", non_blocking=True)
    with pytest.raises(UnorderedStreams):
        x + 1
    main.wait_stream(side)
    y = x + 1
    assert not gpu.recorded(x)
    x.record_stream(main)
    assert gpu.recorded(x)
    with torch.cuda.stream(side), pytest.raises(UnorderedStreams):
        y + 1
    y.sum().item()  # the host waits, so what it starts afterwards comes after
    with torch.cuda.stream(side):
        y + 1


def test_afterwards_all_is_as_it_was():
    before = torch.zeros, torch.Tensor.to, torch.Tensor.device, torch.Generator, torch.cuda.is_available
    with FakeCuda():
        x = torch.ones(3, device="cuda")
        assert torch.zeros is not before[0]
    assert (torch.zeros, torch.Tensor.to, torch.Tensor.device, torch.Generator, torch.cuda.is_available) == before
    assert x.device.type == "cpu"
    assert place(x) == "cuda"


# --- the library on it ----------------------------------------------------------------------------------------------

#: Where a training step makes the host wait, and why.
WAITS = {
    "heads._samples": "bad labels and features that are no numbers must be known before anything is changed",
    "memory._count": "once, after the head came to the GPU or its state from a file",
}

#: Besides, where a setting needs it.
CORRECT_ONLY = {"heads._rows": "how many samples were classified correctly decides how many are remembered"}
RANDOM = {"heads._assigned_sums": "the control draws by the number of the update, which a file may have set"}
MANY_CLASSES = {"heads._learn": "which of many classes have samples here"}
PIXELS = {"sinkhorn.check_labels": "a label out of range would be an index out of range, which CUDA reports anywhere"}
IGNORED_LABELS = {"heads._rows": "how many rows have a label"}


@pytest.fixture
def accelerate_there(gpu):
    """Accelerate keeps the device of a process; inside it finds the GPU, afterwards it looks anew."""
    AcceleratorState._reset_state(True)
    yield gpu
    AcceleratorState._reset_state(True)


def guarded(monkeypatch, gpu, allowed=WAITS) -> list[dict]:
    """From here on training steps may wait where it is allowed alone; gives what each step waited for."""
    step, seen = Fitting._train_step, []

    def watched(self, batches):
        with gpu.running(allowed):
            step(self, batches)
            seen.append(dict(gpu.waits))

    monkeypatch.setattr(Fitting, "_train_step", watched)
    return seen


def on_the_gpu(module) -> bool:
    return {tensor.device for tensor in module.state_dict().values()} == {CUDA}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_trains(accelerate_there, monkeypatch, head, precision):
    steps = guarded(monkeypatch, accelerate_there)
    each = fitted(quick(epochs=2, batch_size=16, head=head, precision=precision, memory_size=20))
    assert each.accelerator.device.type == "cuda"
    assert on_the_gpu(each.model)
    each.fit()
    assert len(steps) == 8
    waits = {"heads._samples": 1} if head in ("frozen", "dnc") else {}
    assert steps[1:] == [waits] * 7
    assert on_the_gpu(each.model)
    assert np.isfinite(each.curve[-1]["train_loss"])
    assert 0 <= each.curve[-1]["accuracy"] <= 100


def test_what_a_training_computes_is_what_the_cpu_computes(monkeypatch):
    results = []
    for there in (contextlib.nullcontext(), FakeCuda()):
        AcceleratorState._reset_state(True)
        with there:
            each = fitted(quick(epochs=2, batch_size=16, memory_size=20))
            each.fit()
            results.append({name: value.cpu() for name, value in each.model.state_dict().items()})
    AcceleratorState._reset_state(True)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("changes", "allowed", "waits"),
    [
        ({"mixup": 1.0, "cutmix": 1.0, "mix_probability": 0.5, "label_smoothing": 0.1}, {}, None),
        ({"accumulate": 2, "clip_norm": 1.0}, {}, {"heads._samples": 1}),
        ({"optimizer": "adamw", "schedule": "cosine", "drop_path": 0.1, "backbone": "convnext_atto"}, {}, None),
        ({"start": "data", "spread": "centred", "scale_by": "layernorm"}, {}, {"heads._samples": 1}),
        ({"correct_only": True}, CORRECT_ONLY, {"heads._samples": 1, "heads._rows": 1}),
        ({"assignment": "random"}, RANDOM, {"heads._samples": 1, "heads._assigned_sums": 1}),
        ({"assignment": "nearest", "update_every": 2}, {}, None),
        ({"refresh_epochs": 1}, {}, {"heads._samples": 1}),
        ({"anchor_epochs": 1, "anchor": True}, {}, {"heads._samples": 1}),
    ],
    ids=str,
)
def test_a_classifier_trains_with(accelerate_there, monkeypatch, changes, allowed, waits):
    steps = guarded(monkeypatch, accelerate_there, {**WAITS, **allowed})
    size = 64 if "convnext" in changes.get("backbone", "") else 16
    parts = {"train": random_images(64, size=size), "test": random_images(16, size=size, seed=1)}
    each = fitted(quick(**{"epochs": 2, "batch_size": 16, "memory_size": 20, **changes}), parts)
    each.fit()
    assert on_the_gpu(each.model)
    assert waits is None or steps[1:4] == [waits] * 3
    assert all(count["heads._samples"] == 1 for count in steps if "heads._samples" in count)


def test_its_state_goes_to_a_file_and_back(accelerate_there, monkeypatch, tmp_path):
    recipe = quick(epochs=2, batch_size=16, memory_size=20, schedule="constant")
    one = fitted(recipe)
    one.fit()
    Snapshots(tmp_path).save(one.state_dict(), one.steps_done)
    other = fitted(recipe.replace(epochs=3))
    other.load_state_dict(Snapshots(tmp_path).load())
    assert on_the_gpu(other.model)
    assert len(other.model.head.memory) == 20
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key])
    guarded(monkeypatch, accelerate_there)
    other.fit()
    assert other.epoch == 3


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("head", ["softmax", "dnc"])
def test_a_segmenter_trains(accelerate_there, monkeypatch, head, precision):
    allowed = {**WAITS, **PIXELS, **IGNORED_LABELS}
    steps = guarded(monkeypatch, accelerate_there, allowed)
    changes = {"head": head, "precision": precision, "epochs": 2, "auxiliary": 0.4}
    recipe = recipes.digit_scenes_fcn(**{**SHORT, **changes})
    if head == "dnc":
        recipe = recipe.replace(memory_size=50, refresh_epochs=1)
    each = fitted(recipe, make_digit_scenes(16, 4, size=56))
    each.fit()
    assert len(steps) == 4
    for count in steps[1:]:
        assert count == ({} if head == "softmax" else dict.fromkeys((*PIXELS, "heads._samples", "heads._rows"), 1))
    assert on_the_gpu(each.model)
    assert 0 <= each.held_out["miou"] <= 100


def head_on_gpu(num_classes, memory_size, dim=64, **settings):
    torch.manual_seed(0)
    head = SubCentroidHead(dim, num_classes, 4, memory_size=memory_size, **settings).to("cuda")
    labels = torch.arange(memory_size) % num_classes
    head.memory.push(F.normalize(torch.randn(memory_size, dim), dim=1).to("cuda"), labels.to("cuda"))
    return head


@pytest.mark.parametrize("memory_size", [0, 1000, 12_800])
@pytest.mark.parametrize("num_classes", [10, 1000])
def test_an_update_waits_once(gpu, num_classes, memory_size):
    head = head_on_gpu(num_classes, memory_size)
    x, labels = torch.randn(128, 64).to("cuda"), torch.randint(num_classes, (128,)).to("cuda")
    for _ in range(2):
        with gpu.running(WAITS), OperatorCount() as count:
            head.update(x, labels)
    assert gpu.waits == {"heads._samples": 1}
    assert count.kernels <= 75
    assert on_the_gpu(head)


def test_an_update_of_very_many_classes_looks_which_occur(gpu):
    head = head_on_gpu(9000, 100, 1024)
    x, labels = torch.randn(8, 1024).to("cuda"), torch.randint(9000, (8,)).to("cuda")
    with gpu.running({**WAITS, **MANY_CLASSES}):
        head.update(x, labels)
    assert gpu.waits == {"heads._samples": 1, "heads._learn": 1}


@pytest.mark.parametrize("settings", [{}, {"start": "data"}, {"assignment": "nearest"}, {"spread": "frame"}])
def test_the_update_is_that_of_the_cpu(settings, monkeypatch):
    """By one product and by tiles; a GPU adds by a product with zeros and ones where the CPU adds row after row."""
    for products, block in ((1 << 32, 1 << 26), (0, 1 << 30), (0, 1 << 12)):
        monkeypatch.setattr(grouping, "DEVICE_PRODUCTS", products)
        monkeypatch.setattr(grouping, "DEVICE_BLOCK", block)
        torch.manual_seed(0)
        there, here = (SubCentroidHead(32, 6, 4, 0.9, memory_size=50, **settings) for _ in range(2))
        with FakeCuda():
            there.to("cuda")
        for _ in range(4):
            x, labels = torch.randn(40, 32), torch.randint(6, (40,))
            here.update(x, labels)
            with FakeCuda():
                there.update(x.to("cuda"), labels.to("cuda"))
        x, labels = torch.randn(200, 32), torch.randint(6, (200,))
        torch.testing.assert_close(there.subcentroids, here.subcentroids, rtol=0, atol=1e-5)
        assert torch.equal(there.wins, here.wins)
        assert torch.equal(there.memory.labels, here.memory.labels)
        here.estimate(x, labels)
        with FakeCuda():
            there.estimate(x.to("cuda"), labels.to("cuda"))
        torch.testing.assert_close(there.subcentroids, here.subcentroids, rtol=0, atol=1e-5)


# --- what is asked of a model ---------------------------------------------------------------------------------------

STATS = ([0.5] * 3, [0.25] * 3)


def classifier(head="dnc", backbone="tiny_resnet8", **settings):
    torch.manual_seed(0)
    settings = {"num_subcentroids": 3, "memory_size": 0, **settings}
    return ImageClassifier.build(backbone, 4, head, head_settings=settings)


def segmenter():
    torch.manual_seed(0)
    return Segmenter.build("tiny_resnet8", "fcn", 11, channels=8, head_settings={"num_subcentroids": 3})


def images_and(device):
    data = random_images(40, 4, 16)
    return data, DeviceLoader(data, 16, *STATS, device)


def scenes_and(device, **settings):
    data = make_digit_scenes(6, 2, size=56)["train"]
    return data, SceneLoader(data, 2, *STATS, device, **settings)


def both(question):
    """The answers of the CPU and of the GPU that is none to ``question(device)``."""
    torch.manual_seed(0)
    here = question("cpu")
    with FakeCuda():
        torch.manual_seed(0)
        return here, question("cuda")


def same(one, other):
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(other.detach().cpu(), one.detach(), rtol=1e-5, atol=1e-4)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        [same(value, other[key]) for key, value in one.items()]
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        [same(*pair) for pair in zip(one, other, strict=True)]
    elif isinstance(one, np.ndarray):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    else:
        assert one == (pytest.approx(other, abs=1e-3) if isinstance(one, float) else other)


def test_evaluation():
    same(*both(lambda device: evaluate(classifier().to(device), images_and(device)[1])))
    same(*both(lambda device: embed_dataset(classifier().to(device), images_and(device)[1])))
    same(*both(lambda device: evaluate_segmentation(segmenter().to(device), scenes_and(device)[1])))
    looks = {"window": 32, "flip": True, "scales": (0.75, 1.0)}
    same(*both(lambda device: evaluate_segmentation(segmenter().to(device), scenes_and(device)[1], **looks)))
    same(*both(lambda device: segmentation_counts(segmenter().to(device), scenes_and(device)[1])))


def test_images_may_come_from_the_cpu():
    """A loader need not know where the model is."""
    with FakeCuda():
        evaluate(classifier().to("cuda"), images_and("cpu")[1])
        embed_dataset(classifier().to("cuda"), images_and("cpu")[1])
        evaluate_segmentation(segmenter().to("cuda"), scenes_and("cpu")[1])
        classifier().to("cuda").refresh(images_and("cpu")[1])
        segmenter().to("cuda").refresh(scenes_and("cpu")[1])


def refreshed(model, loader):
    model.refresh(loader)
    return model.head.subcentroids


def test_refresh():
    same(*both(lambda device: refreshed(classifier().to(device), images_and(device)[1])))
    same(*both(lambda device: refreshed(segmenter().to(device), scenes_and(device)[1])))


def anchored(model, loader):
    exemplars, similarity = anchor(model, loader)
    cases = [[case and case.image for case in own] for own in exemplars.cases]
    return cases, similarity, model.head.subcentroids, model.head.moved


def test_anchoring():
    same(*both(lambda device: anchored(classifier().to(device), images_and(device)[1])))
    same(*both(lambda device: anchored(segmenter().to(device), scenes_and(device)[1])))


def explained(model, data, loader):
    exemplars, _ = anchor(model, loader)
    loader.only = torch.arange(len(data))
    images = torch.cat([images for images, _ in loader])
    why = explain(model, images[0], exemplars, look=lambda i: images[i])
    assert why.cases[0].here is not None
    return why.to_dict()


def test_explanations_and_heat_maps():
    same(*both(lambda device: explained(classifier().to(device), *images_and(device))))
    same(*both(lambda device: explained(segmenter().to(device), *scenes_and(device))))
    from_cpu = both(lambda device: explained(classifier().to(device), *images_and("cpu")))
    same(*from_cpu)


def followed(device):
    model, loader = classifier().to(device), images_and(device)[1]
    images = next(iter(loader))[0]
    values = similarity_maps(model, images, model.head.subcentroids[torch.arange(16) % 4, 0]).values
    return [part.score() for part in (faithfulness(model, images, values, 2.0, 4),)]


def test_faithfulness():
    same(*both(followed))


def enlarged(device, head):
    model, loader = classifier(head).to(device), images_and(device)[1]
    images, labels = next(iter(loader))
    larger = with_new_classes(model, images, labels % 2, ["a", "b"])
    return larger(images)


@pytest.mark.parametrize("head", ["dnc", "cosine"])
def test_new_classes(head):
    same(*both(lambda device: enlarged(device, head)))


def test_predictions():
    size = (56, 56)
    same(*both(lambda device: predict_shares(classifier().to(device), images_and("cpu")[1]._batch(*one())[0][0])))
    same(*both(lambda device: predict_labels(segmenter().to(device), torch.zeros(3, *size), size)))
    same(*both(lambda device: record_scenes(segmenter().to(device), scenes_and(device)[1]).loss))


def one():
    return torch.tensor([3]), None, None


def test_what_is_measured_besides():
    def scored(device):
        model, (data, loader) = classifier().to(device), images_and(device)
        card = ModelCard("tiny_resnet8", "dnc", {}, list(data.classes), *STATS, 16, {})
        embeddings, labels = embed_dataset(model, loader)
        groups = nearest_own(embeddings, labels, model.head.subcentroids)
        hidden = torch.arange(40).to(device) % 6
        tables = flow(groups, hidden, 12, 6), shuffled(groups, hidden, 12, 6, 3)
        neighbours = nearest_neighbours(embeddings, embeddings, 3)[0]
        centres = class_centres(embeddings, labels, 3)
        assert centres.device == embeddings.device
        rated = Rater(model, card, data)(data)
        reading = _Reading(model.head, (embeddings, labels), embeddings, 4, 2)
        ways = dict(reading(embeddings[:10], labels[:10] % 2))
        return score_images(model, card, data), groups, *tables, neighbours, centres, rated, ways

    same(*both(scored))


def test_a_whole_training_leaves_its_folder(accelerate_there, tmp_path):
    recipe = quick(epochs=1, train_limit=200, precision="bf16", anchor=True, memory_size=50)
    run = train(recipe, output=tmp_path, progress=False, snapshot_seconds=0)
    assert run.manifest["device"] == "cuda"
    assert run.manifest["device_name"] == torch.cuda.get_device_name()
    assert run.manifest["peak_memory_bytes"] > 0
    model, _ = run.model("cuda")
    assert on_the_gpu(model)
    opened = open_run(run.folder)
    assert opened.device.type == "cuda"
    assert train(recipe, output=tmp_path, progress=False, resume=True).manifest["final"] == run.manifest["final"]


# --- loaders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("varied", [{}, {"pad": 2, "flip": True, "shuffle": True}])
def test_images_on_the_device(varied):
    def batches(device):
        return list(DeviceLoader(random_images(40, 4, 16), 16, *STATS, device, **varied))

    same(*both(batches))
    with FakeCuda() as gpu:
        loader = DeviceLoader(random_images(40, 4, 16), 16, *STATS, "cuda", **varied)
        with gpu.running({}):  # a pass over it never makes the host wait
            assert all(each.device == CUDA for batch in loader for each in batch)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("kind", ["pictures", "scenes", "scenes varied"])
def test_files_are_copied_ahead(tmp_path, kind):
    write_class_folders(tmp_path / "pictures", size=24)
    write_scenes(tmp_path / "streets", size=(40, 40))

    def loader(device):
        if kind == "pictures":
            return PictureLoader(open_pictures("pictures", tmp_path)[0], 4, *STATS, device, image_size=16)
        data = open_scenes("streets", tmp_path)["train"]
        varied = SceneAugmentation(crop_size=(24, 24), shorter_side=32) if "varied" in kind else None
        return SceneLoader(data, 2, *STATS, device, augmentation=varied)

    same(*both(lambda device: list(loader(device))))
    with FakeCuda() as gpu:
        there = loader("cuda")
        work = torch.ones(3, device="cuda")
        with gpu.running({}):
            for batch in there:
                for part in batch:
                    assert part.device == CUDA
                    assert gpu.recorded(part)
                    work = work + part.sum()  # the batch must be ready for the stream that computes
        assert np.isfinite(float(work.sum()))


# --- the tests for a real one ---------------------------------------------------------------------------------------

#: Forgets what a bare machine lacks, then collects what ``pytest -m gpu`` runs.
BARE = """
import sys
from importlib.machinery import PathFinder

class Lacking:
    LACK = {"scipy", "sklearn", "matplotlib", "pandas", "hypothesis", "nbval", "papermill", "umap", "torchmetrics"}

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.LACK else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Lacking(finder) if finder is PathFinder else finder for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(["-m", "gpu", "--collect-only"]))
"""


@pytest.mark.slow
def test_the_tests_for_a_real_one_need_torch_timm_and_accelerate_alone():
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", BARE]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(collected) > 20
    assert {line.partition("::")[0] for line in collected} == {"tests/test_gpu.py"}
