"""What a BatchNorm sees: the images of a process, a part of them, or those of several processes."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import quick, random_images
from torch import nn

from dnc_lib import loading, recipes
from dnc_lib.loading import build_model, make_card, norms_of
from dnc_lib.models import ImageClassifier
from dnc_lib.norms import norm_group, set_norms
from dnc_lib.training import make_accelerator


@pytest.mark.parametrize(
    ("share", "processes", "wanted", "together", "seen"),
    [
        (256, 1, 0, False, (256, 1)),
        (32, 8, 0, False, (32, 1)),  # its own share: other than on one GPU
        (2, 8, 0, True, (16, 8)),
        (16, 1, 0, True, (16, 1)),
        (256, 1, 32, False, (32, 1)),  # the same on one GPU, on four, on eight and on sixteen
        (64, 4, 32, False, (32, 1)),
        (32, 8, 32, False, (32, 1)),
        (16, 16, 32, False, (32, 2)),
        (4, 64, 32, True, (32, 8)),
    ],
)
def test_how_many_images_a_norm_sees_and_who_shares_it(share, processes, wanted, together, seen):
    assert norm_group(share, processes, wanted, together=together) == seen


@pytest.mark.parametrize(("share", "processes", "wanted"), [(48, 1, 32), (24, 4, 32), (16, 3, 32), (8, 2, 32)])
def test_what_can_be_neither_cut_nor_put_together(share, processes, wanted):
    with pytest.raises(ValueError, match=rf"norm_images {wanted}, and a process has {share} images in a pass: one"):
        norm_group(share, processes, wanted)


def on(device: str, processes: int = 1):
    """As much of an accelerator as the decision looks at."""
    return SimpleNamespace(device=torch.device(device), num_processes=processes, process_index=0)


def test_the_recipe_decides_whatever_the_number_of_gpus():
    resnet, scenes = recipes.imagenet_resnet50(), recipes.ade20k_fcn_resnet101()
    assert [norms_of(resnet, on("cuda", gpus)) for gpus in (1, 4, 8, 16)] == [(32, 1), (32, 1), (32, 1), (32, 2)]
    assert norms_of(resnet.replace(accumulate=4), on("cuda", 2)) == (32, 1)
    assert [norms_of(resnet.replace(norm_images=0), on("cuda", gpus))[0] for gpus in (1, 8)] == [256, 32]
    assert [norms_of(scenes, on("cuda", gpus)) for gpus in (1, 8)] == [(16, 1), (16, 8)]
    assert norms_of(recipes.cifar10_resnet50(), on("cpu")) == (16, 1)


def test_processes_on_the_cpu_share_no_norm():
    recipe = recipes.imagenet_resnet50()
    assert norms_of(recipe, on("cpu", 8)) == (32, 1)
    message = (
        r"norm_images 32 are those of 2 processes together, and processes share norms on GPUs alone: take fewer "
        r"processes, or norm_images 16"
    )
    with pytest.raises(ValueError, match=message):
        norms_of(recipe, on("cpu", 16))


def test_a_norm_in_parts_computes_what_each_part_alone_would():
    """Eight images in parts of two, by hand; the running mean moves with each part; evaluation is as it was."""
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(3), torch.randn(8, 3, 4, 4) + torch.arange(8.0)[:, None, None, None]
    plain = copy.deepcopy(norm)
    set_norms(norm, 2, 1)
    assert isinstance(norm, nn.BatchNorm2d)
    by_hand = torch.cat([(part - part.mean((0, 2, 3), keepdim=True)) /
                         (part.var((0, 2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt()
                         for part in x.split(2)])  # fmt: skip
    assert torch.allclose(norm(x), by_hand, atol=1e-5)
    assert not torch.allclose(plain(x), by_hand, atol=0.1)  # all at once is something else
    mean = torch.zeros(3)
    for part in x.split(2):
        mean = 0.9 * mean + 0.1 * part.mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm.eval()(x), plain.eval()(x))
    assert torch.equal(copy.deepcopy(norm).train()(x), norm.train()(x))


def test_norms_that_end_in_an_activation_keep_it():
    torch.manual_seed(0)
    model = ImageClassifier.build("tf_efficientnet_lite0", 3, "softmax").train()
    whole, names = copy.deepcopy(model), list(model.state_dict())
    set_norms(model, 4, 1)
    assert list(model.state_dict()) == names
    images = torch.randn(8, 3, 64, 64)
    parts = torch.cat([copy.deepcopy(whole).backbone(part) for part in images.split(4)])
    # drop path off: Lite0 has none by default; so both halves alone are the two halves together
    assert torch.allclose(model.backbone(images), parts, atol=1e-4)
    assert not torch.allclose(whole.backbone(images), parts, atol=1e-2)


def test_the_engine_sets_them_and_the_manifest_says_so(monkeypatch):
    from dnc_lib.training import describe

    parts = {"train": random_images(64), "test": random_images(8)}
    seen = []
    monkeypatch.setattr(loading, "set_norms", lambda model, *settings: seen.append(settings) or model)
    for images in (0, 16):
        recipe = quick(norm_images=images, dataset="noise")
        build_model(recipe, make_card(recipe, parts), parts, make_accelerator("no"))
        assert describe(recipe, parts, make_accelerator("no"))["norm_images"] == (images or recipe.batch_size)
    assert seen == [(16, 1, 0, 1)]


def test_a_number_that_does_not_divide_a_pass():
    with pytest.raises(ValueError, match="norm_images 32 do not divide the 24 images of a pass: take a number that"):
        recipes.imagenet_resnet50(batch_size=96, accumulate=4)
    with pytest.raises(ValueError, match="norm_images must be 0 or more, got -1"):
        quick(norm_images=-1)
