"""What the recipe for digit scenes and its docstring promise, as far as no training is needed to see it."""

import re

import pytest
import torch
import torch.nn.functional as F

from dnc_lib import recipes
from dnc_lib.data.digit_scenes import SIDES, make_digit_scenes
from dnc_lib.loading import build_model, make_card, make_loaders, prepare_data
from dnc_lib.metrics import ConfusionMatrix
from dnc_lib.training import make_accelerator


@pytest.fixture(scope="module")
def recipe():
    return recipes.digit_scenes_fcn()


@pytest.fixture(scope="module")
def parts(recipe):
    return prepare_data(recipe)


def test_a_fifth_of_the_steps_pass_before_sub_centroids_move_and_then_they_forget_their_start(recipe, parts):
    steps = recipe.epochs * (len(parts["train"]) // recipe.batch_size)
    assert recipe.update_after == steps / 5
    assert recipe.start_kept(steps - recipe.update_after) < 0.05


def test_a_place_sees_a_whole_digit(recipe, parts):
    """Half the largest digit's side in every direction, counted from the middle of the place."""
    accelerator = make_accelerator("no")
    model = build_model(recipe, make_card(recipe, parts), parts, accelerator).eval()
    assert model.decoder.width == recipe.channels
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    features = model.features(image)
    assert features.shape == (1, recipe.channels, 16, 16)
    features[0, :, 8, 8].sum().backward()
    rows = image.grad[0].abs().sum((0, 2)).nonzero().flatten()  # those that reach the place
    reach = min(34 - int(rows.min()), int(rows.max()) - 33)  # the place's middle lies between rows 33 and 34
    assert reach >= SIDES[1] * 64 / 96 / 2
    assert len(rows) < 64  # and not the whole scene


def test_the_docstring_tells_what_the_grid_loses(recipe):
    told = int(re.search(r"has (\d+) mIoU", recipes.describe("digit_scenes_fcn")).group(1))
    truth = torch.from_numpy(make_digit_scenes(train=1)["test"].masks).long()
    shares = F.adaptive_avg_pool2d(F.one_hot(truth, 11).movedim(-1, 1).float(), 16)
    best = F.interpolate(shares, truth.shape[1:], mode="bilinear", align_corners=False).argmax(1)
    matrix = ConfusionMatrix(11)
    matrix.update(best, truth)
    assert told == round(100 * matrix.miou())


def test_crops_and_whole_scenes_have_the_sizes_that_the_docstring_names(recipe, parts):
    loaders = make_loaders(recipe, parts, make_card(recipe, parts), make_accelerator("no"))
    images, masks = next(iter(loaders["train"]))
    assert (tuple(images.shape), tuple(masks.shape)) == ((4, 3, 48, 48), (4, 48, 48))
    images, masks = next(iter(loaders["test"]))
    assert (tuple(images.shape), tuple(masks.shape)) == ((1, 3, 64, 64), (1, 96, 96))
