import pytest
import torch
import torch.nn.functional as F
from helpers import random_images

from dnc_lib.backbones import build_backbone
from dnc_lib.fast import FAST, FastNetwork
from dnc_lib.loading import build_model, make_card
from dnc_lib.recipes import cifar10_fast_narrow
from dnc_lib.training import make_accelerator


def smooth_images(count=400):
    """Images whose neighbouring pixels agree, as those of photographs do."""
    torch.manual_seed(0)
    return F.avg_pool2d(torch.randn(count, 3, 36, 36), 5, 1)


@pytest.mark.parametrize("name", FAST)
def test_images_to_features(name):
    network = build_backbone(name)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, network.num_features)
    assert not network.whitening.weight.requires_grad


@pytest.mark.parametrize("name", FAST)
def test_what_is_pooled_and_the_pooling(name):
    network, images = build_backbone(name).eval(), smooth_images(2)
    last = network.forward_features(images)
    assert last.shape[:2] == (2, network.num_features)
    assert torch.equal(network(images), network.forward_head(last, pre_logits=True))
    assert torch.equal(network(images), last.flatten(2).max(2).values)


@pytest.mark.parametrize("patch", [2, 3])
def test_the_first_layer_whitens(patch):
    network, images = FastNetwork((8,), patch=patch, stride=patch), smooth_images()
    network.start_from(images)
    out = network.whitening(images).permute(1, 0, 2, 3).flatten(1)  # (2 x directions, places)
    half = len(out) // 2
    assert torch.allclose(out[:half], -out[half:], atol=1e-4)  # a direction and its opposite
    moments = out[:half] @ out[:half].T / out.shape[1]
    off = moments - torch.diag(moments.diagonal())
    assert off.abs().max() < 0.02
    variances = moments.diagonal()
    assert variances.max() < 1.01
    assert variances[0] > 0.95  # the strongest direction; weak ones are held down by the floor
    raw = F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    assert (torch.corrcoef(raw.T) - torch.eye(raw.shape[1])).abs().max() > 0.5  # they were correlated


def test_the_convolutions_begin_as_the_identity():
    network = FastNetwork((24, 32))
    x = torch.randn(2, 24, 8, 8)
    for stage in network.stages[:1]:
        assert torch.allclose(stage.conv1(x), x, atol=1e-6)
    wide = network.stages[1].conv1(x)
    assert torch.allclose(wide[:, :24], x, atol=1e-6)
    assert wide[:, 24:].abs().max() > 0.01


def test_a_recipe_starts_it_from_training_images():
    parts = {"train": random_images(50, size=32)}
    recipe = cifar10_fast_narrow(dataset="noise")
    card = make_card(recipe, parts)
    one, again = (
        build_model(recipe, card, parts, make_accelerator("no")).backbone.whitening.weight for _ in range(2)
    )
    assert torch.equal(one, again)  # drawn from no random numbers
    other = build_model(recipe, card, {"train": random_images(50, size=32, seed=9)}, make_accelerator("no"))
    assert not torch.equal(one, other.backbone.whitening.weight)
