import pytest
import torch
import torch.nn.functional as F
from helpers import random_images

from dnc_lib.data import DeviceLoader
from dnc_lib.evaluation import embed_dataset, evaluate
from dnc_lib.models import ImageClassifier


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
