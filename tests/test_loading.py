"""Where a model begins: ImageNet's weights, a classifier's, or training images; BatchNorms over several processes."""

import pytest
import timm
import torch
from helpers import quick, random_images
from torch import nn

from dnc_lib import loading, recipes
from dnc_lib.checkpoints import save_model
from dnc_lib.data.digit_scenes import make_digit_scenes
from dnc_lib.loading import build_model, make_card
from dnc_lib.models import ImageClassifier, Segmenter
from dnc_lib.norms import synchronised
from dnc_lib.optimisation import parameter_groups
from dnc_lib.training import make_accelerator


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_batch_norms_over_several_processes_compute_the_same(name):
    """Some of timm's BatchNorms end in an activation, which must not be lost."""
    torch.manual_seed(0)
    model, images = Segmenter.build(name, "fcn", 3, channels=8).eval(), torch.randn(1, 3, 64, 64)
    before, names = model(images), list(model.state_dict())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    model = synchronised(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == norms > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert torch.equal(before, model(images))
    assert list(model.state_dict()) == names


def test_their_biases_learn_as_fast():
    recipe, model = quick(norm_bias_rate=8.0), ImageClassifier.build("tiny_resnet8", 4, "softmax")
    before = [len(group["params"]) for group in parameter_groups(recipe, model)]
    after = [len(group["params"]) for group in parameter_groups(recipe, synchronised(model))]
    assert before == after
    assert after[1] == 7  # one in the stem, two in each of three blocks


def begun(recipe, parts):
    return build_model(recipe, make_card(recipe, parts), parts, make_accelerator("no"))


@pytest.mark.parametrize("scenes", [False, True])
def test_a_carried_first_layer_is_not_set_from_data_again(tmp_path, scenes):
    """What follows it has learned to read what it gives."""
    parts = {"train": random_images(50, size=32)}
    recipe = recipes.cifar10_fast_narrow(dataset="noise")
    classifier = begun(recipe, parts)
    path = tmp_path / "model.safetensors"
    save_model(classifier, make_card(recipe, parts), path)
    other = {"train": random_images(50, size=32, seed=9)}
    if scenes:
        recipe, other = recipes.digit_scenes_fcn(backbone=recipe.backbone), make_digit_scenes(2, 2)
    model = begun(recipe.replace(weights=str(path)), other)
    for name, value in classifier.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name
    if scenes:
        assert model.transfer.counts()["carried"] > 0
        with pytest.raises(ValueError, match="cifar_fast_narrow sets its first layer from images in memory, and"):
            begun(recipe, other)


def test_the_weights_of_imagenet_are_fitted_to_the_size_of_the_images(monkeypatch):
    """Tables of positions have the shape that the images ask for; timm fits those of its weights, if it is told."""
    asked = []

    def without_network(name, pretrained=False, **settings):
        asked.append((pretrained, settings))
        return timm.create_model(name, num_classes=0, **settings)

    monkeypatch.setattr(loading, "build_backbone", without_network)
    recipe = quick(backbone="vit_tiny_patch16_224", weights="imagenet", dataset="noise")
    model = begun(recipe, {"train": random_images(8, size=32)})
    assert asked == [(True, {"img_size": 32})]
    assert model.backbone.pos_embed.shape == (1, 1 + 2 * 2, 192)


def test_weights_that_are_nowhere(tmp_path):
    message = r"weights 'nowhere': no model at nowhere; say imagenet, or the run folder or file of a classifier"
    with pytest.raises(FileNotFoundError, match=message):
        make_card(quick(weights="nowhere"), {"train": random_images(8)})
