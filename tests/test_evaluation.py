import contextlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import random_images
from sklearn.metrics import jaccard_score
from torch import nn

from dnc_lib.data import DeviceLoader
from dnc_lib.evaluation import embed_dataset, evaluate, evaluate_segmentation, segmentation_counts
from dnc_lib.heads import Head
from dnc_lib.inference import segment
from dnc_lib.metrics import IGNORED, ConfusionMatrix, class_iou
from dnc_lib.models import ImageClassifier, evaluating


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ImageClassifier.build("tiny_resnet8", 7)


def loader(batch_size=10, count=43):
    data = random_images(count, classes=7)
    return DeviceLoader(data, batch_size, *data.channel_stats())


def test_the_measures_agree_with_one_big_batch(model):
    ((images, labels),) = list(loader(100))
    with torch.no_grad():
        scores = model.eval()(images)
    result = evaluate(model, loader(10))
    assert result["images"] == 43
    assert result["accuracy"] == pytest.approx(100 * (scores.argmax(1) == labels).double().mean().item())
    among = (scores.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    assert result["top5"] == pytest.approx(100 * among.double().mean().item())
    assert result["loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)


def test_two_processes_sum_to_the_whole(model):
    data = random_images(43, classes=7)
    mean, std = data.channel_stats()
    sums = []

    def keep(values):
        sums.append(values)
        return values

    for rank in (0, 1):
        evaluate(model, DeviceLoader(data, 10, mean, std, rank=rank, world_size=2), keep)
    together = evaluate(model, loader(), lambda _: sums[0] + sums[1])
    assert together == pytest.approx(evaluate(model, loader()), rel=1e-6)


def test_evaluation_changes_nothing(model):
    model.train()
    model.backbone.bn.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, loader())
    embed_dataset(model, loader())
    assert model.training
    assert not model.backbone.bn.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_embeddings_come_in_the_loaders_order(model):
    ((images, labels),) = list(loader(100))
    embeddings, got = embed_dataset(model, loader(10))
    assert torch.equal(got, labels)
    with torch.no_grad():
        torch.testing.assert_close(embeddings, model.eval().embed(images))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(43))


def test_nothing_to_evaluate(model):
    with pytest.raises(ValueError, match="the loader gave no images: nothing to evaluate"):
        evaluate(model, [])
    with pytest.raises(ValueError, match="the loader gave no images: nothing to embed"):
        embed_dataset(model, [])


def test_labels_out_of_range(model):
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 6\] for 7 classes, found 7"):
        evaluate(model, [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 7]))])
    assert model.training  # restored although it failed


# Segmentation


class Pixels(nn.Module):
    """Each pixel scored by itself and its neighbours: images (B, 3, h, w) to scores (B, 5, h, w)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.head = Head(5, 5)  # which knows the number of classes, as that of every segmenter does

    def forward(self, x):
        return 3 * self.norm(self.conv(x))


def scenes(count=5, batch_size=2, size=(12, 16), label_size=(18, 21), classes=4, dtype=torch.long):
    """Images and labels of another resolution; a fifth has no class, and class 4 never occurs."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, *size, generator=generator)
    labels = torch.randint(classes, (count, *label_size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORED
    return list(zip(images.split(batch_size), labels.to(dtype).split(batch_size), strict=True))


def slow_measures(model, batches):
    """Everything again, by scikit-learn and in float64."""
    with torch.no_grad():
        scores = torch.cat(
            [
                F.interpolate(model.eval()(images), labels.shape[1:], mode="bilinear", align_corners=False).double()
                for images, labels in batches
            ]
        )
    labels = torch.cat([labels for _, labels in batches]).long()
    kept = labels != IGNORED
    truth, found = labels[kept], scores.argmax(1)[kept]
    iou = jaccard_score(truth, found, labels=range(5), average=None, zero_division=0)
    iou[[not ((truth == each) | (found == each)).any() for each in range(5)]] = math.nan
    log_shares = scores.log_softmax(1).movedim(1, -1)[kept]
    loss = -log_shares.gather(1, truth[:, None]).mean().item()
    return {
        "miou": 100 * np.nanmean(iou),
        "pixel_accuracy": 100 * (truth == found).double().mean().item(),
        "loss": loss,
        "images": len(labels),
        "iou": [None if math.isnan(each) else 100 * each for each in iou],
    }


def assert_measures(found, expected):
    assert found.keys() == expected.keys()
    for name in ("miou", "pixel_accuracy", "loss", "images"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    assert [iou is None for iou in found["iou"]] == [iou is None for iou in expected["iou"]]
    assert [iou or 0 for iou in found["iou"]] == pytest.approx([iou or 0 for iou in expected["iou"]])


@pytest.mark.parametrize("label_size", [(12, 16), (18, 21), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.long, torch.uint8])
def test_the_measures_of_pixels_are_those_at_the_labels_own_resolution(label_size, dtype):
    model, batches = Pixels(), scenes(label_size=label_size, dtype=dtype)
    assert_measures(evaluate_segmentation(model, batches), slow_measures(model, batches))


def test_a_class_in_neither_labels_nor_predictions_has_no_iou():
    model, batches = Pixels(), scenes()
    assert evaluate_segmentation(model, batches)["iou"][4] == 0  # it is predicted somewhere
    with torch.no_grad():
        model.norm.bias[4] = -100
    result = evaluate_segmentation(model, batches)
    assert result["iou"][4] is None
    assert result["miou"] == pytest.approx(sum(result["iou"][:4]) / 4)
    assert json.loads(json.dumps(result)) == result


def test_perfect_labels_are_a_hundred_percent():
    model, batches = Pixels(), scenes(label_size=(12, 16))
    with torch.no_grad():
        perfect = [(images, model.eval()(images).argmax(1)) for images, _ in batches]
    result = evaluate_segmentation(model, perfect)
    assert result["miou"] == result["pixel_accuracy"] == 100
    assert set(result["iou"]) <= {100.0, None}


def test_scenes_of_different_sizes_one_by_one():
    model = Pixels()
    batches = scenes(2, 1) + scenes(2, 1, size=(9, 20), label_size=(7, 30))
    result = evaluate_segmentation(model, batches)
    assert result["images"] == 4
    counts = segmentation_counts(model, batches)
    assert counts.shape == (4, 5, 5)
    assert result["miou"] == pytest.approx(100 * class_iou(counts.sum(0)).nanmean().item())


@pytest.mark.parametrize("shares", [(3, 2), (5, 0), (0, 5)])
def test_two_processes_sum_to_the_whole_of_the_pixels(shares):
    """Also where a process has no image: the other waits for what it has to say."""
    model, batches, told = Pixels(), scenes(5, 1), []
    parts = batches[: shares[0]], batches[shares[0] :]

    def tell(values):
        told.append(values.clone())
        return values

    with contextlib.suppress(ValueError):  # the process without images, here alone in the world
        evaluate_segmentation(model, parts[0], tell)
    answers = iter(told)
    together = evaluate_segmentation(model, parts[1], lambda values: values + next(answers))
    assert next(answers, None) is None
    assert_measures(together, evaluate_segmentation(model, batches))


@pytest.mark.parametrize("looks", [{"window": (8, 9), "stride": 4}, {"flip": True}, {"scales": (0.5, 1.0)}])
def test_the_looks_are_those_of_inference(looks):
    model, batches = Pixels(), scenes()
    assert evaluate_segmentation(model, batches, **looks) != evaluate_segmentation(model, batches)

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images):
            return segment(self.inner, images, size=(18, 21), **looks)

    matrix = ConfusionMatrix(5)
    with torch.no_grad(), evaluating(looking := Looking()):
        for images, labels in batches:
            matrix.update(looking(images).argmax(1), labels)
    assert evaluate_segmentation(model, batches, **looks)["miou"] == pytest.approx(100 * matrix.miou())
    assert torch.equal(segmentation_counts(model, batches, **looks).sum(0), matrix.matrix)


def test_counts_come_image_by_image_in_the_loaders_order():
    model, batches = Pixels(), scenes(5, 2)
    counts = segmentation_counts(model, batches)
    one_by_one = [pair for images, labels in batches for pair in zip(images.split(1), labels.split(1), strict=True)]
    assert torch.equal(counts, torch.cat([segmentation_counts(model, [pair]) for pair in one_by_one]))
    labels = torch.cat([labels for _, labels in batches])
    true = torch.stack([torch.bincount(each[each != IGNORED], minlength=5) for each in labels])
    assert torch.equal(counts.sum(2), true)


def test_evaluating_pixels_changes_nothing():
    model = Pixels()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for run in (evaluate_segmentation, segmentation_counts):
        run(model, scenes(), flip=True)
        assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_is_shown_where_it_is_asked_for(capfd):
    model = Pixels()
    for run in (evaluate_segmentation, segmentation_counts):
        run(model, scenes())
        assert capfd.readouterr() == ("", "")
        run(model, scenes(5, 2), progress=True)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert "/3 [" in shown.err  # of three batches


def test_scenes_that_cannot_be_evaluated():
    model = Pixels()
    images, labels = scenes(2, 2)[0]
    flat = "labels must be maps (B, H, W) for 2 images, got {}: give a loader of scenes"
    for run in (evaluate_segmentation, segmentation_counts):
        assert message(run, model, []) == "the loader gave no images: nothing to evaluate"
        assert message(run, model, [(images, labels[0, 0, :2])]) == flat.format("(2,)")
        assert message(run, model, [(images, labels[:1])]) == flat.format("(1, 18, 21)")
        wrong = labels.clone()
        wrong[1, 3, 4] = 5
        assert message(run, model, [(images, wrong)]) == (
            "labels must lie in [0, 4] for 5 classes, or be 255 for no class, found 5"
        )
    nowhere = [(images, torch.full_like(labels, IGNORED))]
    assert message(evaluate_segmentation, model, nowhere) == (
        "no pixel has a label: every one is 255; does the data set's table fit its files?"
    )
    assert not segmentation_counts(model, nowhere).any()  # an image without labels counts nothing
    assert model.training  # restored although all of these failed


def message(call, *arguments) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(*arguments)
    return str(error.value)
