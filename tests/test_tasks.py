"""Images and pixels: losses by hand, what the head's update gets, trainings on scenes that stop or are shared."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scene_runs import write_scenes
from test_fitting import close
from test_resume import Crash, crash_at, same
from torch import nn

from dnc_lib import recipes
from dnc_lib.fitting import Fitting
from dnc_lib.metrics import IGNORED
from dnc_lib.models import ImageClassifier, Segmenter
from dnc_lib.pixels import labels_at
from dnc_lib.runs import Run
from dnc_lib.tasks import Classification, Segmentation, task_of
from dnc_lib.training import train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")

#: 4 steps an epoch; whatever the recipe of that name becomes.
SHORT = {
    "epochs": 3, "evaluate_every": 1, "train_limit": 32, "batch_size": 8, "crop_size": (32, 32), "channels": 16,
    "pixels": 5, "update_after": 0, "memory_size": 300, "auxiliary": 0.4, "backbone": "tiny_resnet8",
    "momentum": 0.95, "image_size": 0, "scale": (0.8, 1.25), "num_subcentroids": 10, "optimizer": "sgd",
    "learning_rate": 0.1, "schedule": "poly", "weight_decay": 5e-4,
}  # fmt: skip


def segmenter(head="dnc", auxiliary=False, classes=5):
    torch.manual_seed(0)
    return Segmenter.build("tiny_resnet8", "fcn", classes, head, channels=8, auxiliary=auxiliary)


def batch(classes=5, count=3, side=24):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, side, side, generator=generator)
    labels = torch.randint(0, classes, (count, side, side), generator=generator)
    labels[:, :5] = IGNORED
    return images, labels


def test_the_task_of_a_recipe():
    assert isinstance(task_of(recipes.digits_resnet8(), 10), Classification)
    task = task_of(recipes.camvid_fcn_resnet50(pixels=7, window=(200, 240)), 11)
    assert (task.num_classes, task.auxiliary, task.pixels, task.window) == (11, 0.4, 7, (200, 240))


def test_whole_images():
    torch.manual_seed(0)
    model = ImageClassifier.build("tiny_resnet8", 4)
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
    outcome = Classification().step(model, images, labels, smoothing=0.1)
    scores, features = model(images, return_features=True)
    assert torch.allclose(outcome.loss, F.cross_entropy(scores, labels, label_smoothing=0.1))
    assert outcome.correct == (scores.argmax(1) == labels).sum()
    assert outcome.count == 6
    rows, their = Classification().samples(outcome, seed=0)
    assert torch.allclose(rows, features)
    assert torch.equal(their, labels)
    assert not rows.requires_grad
    soft = torch.full((6, 4), 0.25)
    mixed = Classification().step(model, images, labels, soft)
    assert torch.allclose(mixed.loss, F.cross_entropy(scores, soft), atol=1e-5)


@pytest.mark.parametrize("head", ["dnc", "softmax"])
def test_the_loss_is_the_mean_over_labelled_pixels(head):
    model, (images, labels) = segmenter(head), batch()
    model.eval()
    outcome = Segmentation(5).step(model, images, labels)
    log = model(images).log_softmax(1)
    labelled = labels != IGNORED
    by_hand = -log.gather(1, labels.where(labelled, 0).unsqueeze(1)).squeeze(1)[labelled].mean()
    assert torch.allclose(outcome.loss, by_hand, atol=1e-5)
    assert outcome.count == labelled.sum() == 3 * 19 * 24
    assert outcome.correct == (log.argmax(1) == labels).sum()
    wrong = F.cross_entropy(log, labels.where(labelled, 0))  # what counting the others as a class would give
    assert (outcome.loss - wrong).abs() > 1e-3


def test_a_batch_without_labels_costs_nothing():
    model, (images, labels) = segmenter(auxiliary=True), batch()
    outcome = Segmentation(5, auxiliary=0.4).step(model, images, torch.full_like(labels, IGNORED))
    outcome.loss.backward()
    assert outcome.loss == 0
    assert outcome.count == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    before = model.head.subcentroids.clone()
    model.head.update(*Segmentation(5).samples(outcome, seed=0))
    assert torch.equal(before, model.head.subcentroids)


def test_the_auxiliary_branch_has_its_weight():
    model, (images, labels) = segmenter(auxiliary=True), batch()
    model.eval()
    losses = [Segmentation(5, weight).step(model, images, labels).loss for weight in (0.0, 0.4, 1.0)]
    _, _, beside = model(images, return_features=True)
    alone = F.cross_entropy(beside, labels, ignore_index=IGNORED)
    assert torch.allclose(losses[1] - losses[0], 0.4 * alone, atol=1e-5)
    assert torch.allclose(losses[2] - losses[0], alone, atol=1e-5)


def test_the_update_gets_few_pixels_of_each_class():
    model, (images, labels) = segmenter(), batch(side=64)
    outcome = Segmentation(5, pixels=4).step(model, images, labels)
    rows, their = Segmentation(5, pixels=4).samples(outcome, seed=3)
    assert rows.shape == (3, 20, 8)
    assert all(((their == c).sum(1) == 4).all() for c in range(5))
    model.head.update(rows, their)
    assert (model.head.moved.sum(1) >= 8).all()  # 12 pixels a class went to ten sub-centroids
    again = Segmentation(5, pixels=4).samples(outcome, seed=4)[0]
    assert not torch.equal(rows, again)


def test_labels_go_where_a_padded_image_shows_them():
    """Sides of 41 and 50 are padded to 44 and 52, in which the 11 x 13 places lie four pixels apart."""
    torch.manual_seed(0)
    model = Segmenter.build("swin_tiny_patch4_window7_224", "upernet", 5, channels=8)
    images, labels = torch.randn(2, 3, 41, 50), torch.randint(0, 5, (2, 41, 50))
    task = task_of(recipes.digit_scenes_fcn(pixels=1000), 5, model.multiple)
    outcome = task.step(model, images, labels)
    assert outcome.features.shape == (2, 8, 11, 13)
    features, drawn = task.samples(outcome, seed=0)
    there = labels_at(labels, (11, 13), 4)
    assert torch.equal(there[:, :10, :12], labels[:, 2::4, 2::4][:, :10, :12])
    for i in range(2):  # every labelled place is drawn, in another order: feature and label belong together
        places = zip(outcome.features[i].flatten(1).T.tolist(), there[i].flatten().tolist(), strict=True)
        rows = zip(features[i].tolist(), drawn[i].tolist(), strict=True)
        assert sorted(each for each in rows if each[1] != IGNORED) == sorted(
            each for each in places if each[1] != IGNORED
        )


def run(output, resume=False, seconds=0.0, **changes):
    recipe = recipes.digit_scenes_fcn(**{**SHORT, **changes})
    return train(recipe, None, output, resume=resume, snapshot_seconds=seconds, progress=False)


@pytest.mark.slow
def test_a_run_on_scenes_that_crashed_ends_where_it_would_have_ended(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", seconds=1e9)
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            run(tmp_path / "broken")
    assert same(whole, run(tmp_path / "broken", resume=True))
    final = whole.manifest["final"]
    assert len(final["iou"]) == len(whole.manifest["classes"]) == 11
    seen = [value for value in final["iou"] if value is not None]
    assert final["miou"] == pytest.approx(sum(seen) / len(seen))
    assert whole.manifest["best"]["miou"] == max(each["miou"] for each in whole.manifest["curve"])
    model, card = whole.model()
    assert model.auxiliary is None
    assert card.decoder == "fcn"


@pytest.fixture
def uneven(tmp_path):
    """A data root with ``streets``, of whose training masks some have ten times the labels of others, and seven test
    scenes, which two processes cannot share evenly."""
    folder = write_scenes(tmp_path / "data" / "streets", number=16)
    for i, path in enumerate(sorted((folder / "masks" / "train").iterdir())):
        numbers = np.asarray(Image.open(path)).copy()
        numbers[:, 4 + 7 * (i % 4) :] = IGNORED
        Image.fromarray(numbers).save(path)
    for kind in ("images", "masks"):
        (folder / kind / "test" / "000.png").unlink()
    return tmp_path / "data"


#: 4 steps; nothing is cut away, so that the labels of a crop are as many as those of its mask.
STREETS = {
    "dataset": "streets", "epochs": 1, "train_limit": 0, "batch_size": 4, "crop_size": (40, 56), "scale": (1.0, 1.0),
    "class_share": 1.0, "flip": True,
}  # fmt: skip


def test_a_run_on_scenes_that_begins_with_a_classifier_says_so(tmp_path):
    digits = recipes.digits_resnet8(epochs=1, train_limit=64, batch_size=32)
    classifier = train(digits, None, tmp_path, progress=False)
    scenes = run(tmp_path, seconds=1e9, backbone="tiny_resnet8", epochs=1, weights=str(classifier.folder))
    began = scenes.manifest["began_with"]
    file = (classifier.folder / "model.safetensors").read_bytes()
    assert began["digest"] == hashlib.sha256(file).hexdigest()[:16]
    assert began["carried"] == sum(p.numel() for p in classifier.model()[0].backbone.parameters())
    assert began["class_matrix"] == 0
    assert "began_with" not in classifier.manifest


PLAIN = """
import torch.nn as nn
nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
nn.Dropout2d.forward = lambda self, x: x
"""

TWO = (
    """
import ast, sys, warnings
import torch
import torch.distributed as dist
from dnc_lib import recipes, training
"""
    + PLAIN
    + """
warnings.simplefilter("ignore")
data, folder, changes = sys.argv[1], sys.argv[2], ast.literal_eval(sys.argv[3])
training.train(recipes.digit_scenes_fcn(**changes), data, folder, progress=False)
if dist.is_initialized():
    dist.destroy_process_group()
"""
)


@pytest.mark.parametrize("passes", [2, 4])
def test_a_batch_in_parts_is_the_batch(tmp_path, monkeypatch, uneven, passes):
    """The loss is the mean over the labelled pixels of the whole batch, however few of them a part has."""
    monkeypatch.setattr(nn.BatchNorm2d, "train", lambda self, mode=True: nn.Module.train(self, False))
    monkeypatch.setattr(nn.Dropout2d, "forward", lambda self, x: x)
    whole, parts = (
        train(
            recipes.digit_scenes_fcn(**{**SHORT, **STREETS, "accumulate": each}),
            uneven,
            tmp_path / str(each),
            progress=False,
        )
        for each in (1, passes)
    )
    assert close(whole, parts)
    first, second = (each.manifest["curve"][0] for each in (whole, parts))
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-4)
    monkeypatch.setattr(Fitting, "_weights", lambda *_: [1 / passes] * passes)
    other = recipes.digit_scenes_fcn(**{**SHORT, **STREETS, "accumulate": passes})
    with pytest.raises(AssertionError, match="differs by"):  # the mean of the parts' means is something else
        close(whole, train(other, uneven, tmp_path / "other", progress=False))


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_twice_the_scenes(tmp_path, uneven):
    """BatchNorm and dropout out of the way: each rank would have its own."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    start = {
        "one": [],
        "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    for name, words in start.items():
        given = [str(uneven), str(tmp_path / name), str({**SHORT, **STREETS})]
        command = [sys.executable, *words, str(script), *given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Run.load(tmp_path / name / "digit_scenes_fcn_dnc_seed0") for name in start)
    assert two.manifest["processes"] == 2
    assert close(one, two)
    for key in ("miou", "pixel_accuracy", "loss"):
        assert two.manifest["final"][key] == pytest.approx(one.manifest["final"][key], rel=1e-3)
