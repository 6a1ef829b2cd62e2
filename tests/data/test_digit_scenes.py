
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dnc_lib.data.digit_scenes import (
    BACKGROUND,
    EXAMPLE,
    EXAMPLE_SCENE,
    INK,
    OVER,
    SIDES,
    make_digit_scenes,
    texture,
)
from dnc_lib.data.scene_loader import SceneLoader
from dnc_lib.data.scene_transforms import SceneAugmentation
from dnc_lib.data.scenes import open_scenes


@pytest.fixture(scope="module")
def parts():
    return make_digit_scenes()


def test_what_there_is(parts):
    train, test = parts["train"], parts["test"]
    assert (len(train), len(test), train.num_classes) == (500, 100, 11)
    assert train.classes == (*"0123456789", "background")
    assert (train.name, test.name) == ("digit_scenes, training", "digit_scenes, test")
    assert train.colours.shape == (11, 3)
    assert len(np.unique(train.colours, axis=0)) == 11
    for data in (train, test):
        assert data.images.shape == data.masks.shape == (len(data), 96, 96)
        assert data.images.dtype == data.masks.dtype == np.uint8
        assert set(np.unique(data.masks)) == set(range(11))
        assert 0.7 < (data.masks == BACKGROUND).mean() < 0.95


def test_a_scene_is_read_as_files_are(parts):
    image, mask = parts["test"].read(3)
    assert (image.mode, image.size, mask.shape, mask.dtype) == ("RGB", (96, 96), (96, 96), np.uint8)
    assert np.array_equal(np.asarray(image)[..., 1], parts["test"].images[3])
    mask[:] = 0  # a copy: the scene stays as it was
    assert parts["test"].masks[3].max() == BACKGROUND
    assert parts["test"].path(3) == "scene 3 of digit_scenes, test"


def test_training_scenes_show_training_digits_and_test_scenes_test_digits(parts):
    labels = load_digits().target
    used = {name: [digit for scene in part.digits for digit in scene] for name, part in parts.items()}
    for digits in used.values():
        assert all(digit.label == labels[digit.number] for digit in digits)
    assert all(digit.number % 3 != 1 and digit.number != EXAMPLE for digit in used["train"])
    assert all(digit.number % 3 == 1 for digit in used["test"] if digit.number != EXAMPLE)
    assert len({digit.number for digit in used["train"]}) > 800


def test_the_running_example_stands_in_one_known_scene_and_nothing_covers_it(parts):
    scenes = [i for i, scene in enumerate(parts["test"].digits) if EXAMPLE in {digit.number for digit in scene}]
    assert scenes == [EXAMPLE_SCENE]
    (digit,) = (digit for digit in parts["test"].digits[EXAMPLE_SCENE] if digit.number == EXAMPLE)
    cell = digit.side / 10  # its 8 x 8 cells, with a margin of one
    image, mask = parts["test"].images[EXAMPLE_SCENE].astype(float), parts["test"].masks[EXAMPLE_SCENE]
    centres = ((np.arange(8) + 1.5) * cell).astype(int)
    window = np.ix_(digit.top + centres, digit.left + centres)
    ink = load_digits().images[EXAMPLE]
    assert (mask[window][ink >= 12] == 1).all()
    assert (mask[window][ink <= 2] != 1).all()
    assert abs(np.corrcoef(image[window].ravel(), ink.ravel())[0, 1]) > 0.85


def test_a_mask_is_its_digits_laid_one_over_the_other_and_they_overlap_little(parts):
    grey = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    shares = []
    for mask, digits in zip(parts["train"].masks, parts["train"].digits, strict=True):
        again = np.full(mask.shape, BACKGROUND, dtype=np.uint8)
        for digit in digits:
            assert SIDES[0] <= digit.side <= SIDES[1]
            sheet = Image.fromarray(np.pad(grey[digit.number], 1)).resize((digit.side,) * 2, Image.Resampling.BICUBIC)
            shown = np.asarray(sheet) / np.float32(255) >= np.float32(INK)
            window = again[digit.top : digit.top + digit.side, digit.left : digit.left + digit.side]
            shares.append((window[shown] != BACKGROUND).mean())
            window[shown] = digit.label
        assert np.array_equal(again, mask)
    assert max(shares) <= OVER
    assert 0.1 < np.mean(np.array(shares) > 0) < 0.6
    assert [len(digits) for digits in parts["train"].digits].count(5) > 50


def test_digits_differ_from_the_ground_and_from_one_another_in_grey(parts):
    """Both lighter and darker ones occur, and the mask is where the picture changes."""
    train, lighter = parts["train"], []
    for image, mask, digits in zip(train.images, train.masks, train.digits, strict=True):
        ground = image[mask == BACKGROUND].mean()
        digit = digits[-1]  # nothing lies over the last one
        if sum(other.label == digit.label for other in digits) > 1:
            continue
        window = np.s_[digit.top : digit.top + digit.side, digit.left : digit.left + digit.side]
        level = image[window][mask[window] == digit.label].mean()
        lighter.append(level - ground)
    lighter = np.array(lighter)
    assert (np.abs(lighter) > 15).mean() > 0.99
    assert 0.4 < (lighter > 0).mean() < 0.6
    assert np.abs(lighter).std() > 10


def test_a_texture_has_grains_of_several_sizes():
    one, other = (texture(np.random.default_rng(seed), 96) for seed in (0, 1))
    assert abs(one.mean()) < 1e-4
    assert abs(one.std() - 1) < 1e-3
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5
    waves = np.abs(np.fft.rfft2(one)) ** 2
    waves[0, 0] = 0
    coarse = waves[:3, :3].sum() / waves.sum()
    assert 0.02 < coarse < 0.9  # neither white noise nor one blotch
    assert abs(np.corrcoef(one[:, :-1].ravel(), one[:, 1:].ravel())[0, 1]) > 0.7


def test_a_scene_depends_on_the_seed_its_part_and_its_number_alone(parts):
    few = make_digit_scenes(4, 3)
    for name, count in (("train", 4), ("test", 3)):
        assert np.array_equal(few[name].images, parts[name].images[:count])
        assert np.array_equal(few[name].masks, parts[name].masks[:count])
        assert few[name].digits == parts[name].digits[:count]
    other = make_digit_scenes(4, 3, seed=1)
    assert not (other["train"].masks == few["train"].masks).all((1, 2)).any()
    assert other["test"].digits[EXAMPLE_SCENE][0].number == EXAMPLE
    assert few["train"].digits[1:3] != few["test"].digits[1:3]


def test_the_callers_random_numbers_are_left_alone():
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(())  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    make_digit_scenes(2, 2)
    assert (np.random.rand(), torch.rand(())) == expected  # noqa: NPY002


def test_parts_of_it_and_its_digest(parts):
    test = parts["test"]
    rest, held = test.split(30, seed=1)
    assert (len(rest), len(held), held.name) == (70, 30, "digit_scenes, test, held out")
    some = test.subset(torch.tensor([5, 2]), "two")
    assert some.name == "two"
    assert np.array_equal(some.read(0)[1], test.masks[5])
    assert some.digits == (test.digits[5], test.digits[2])
    assert len({part.digest() for part in (test, some, rest, parts["train"])}) == 4
    assert make_digit_scenes(2, 5)["test"].digest() == make_digit_scenes(9, 5)["test"].digest()


def test_channel_stats_are_those_of_all_pixels(parts):
    mean, std = parts["train"].channel_stats()
    pixels = parts["train"].images / 255
    np.testing.assert_allclose(mean, [pixels.mean()] * 3, rtol=1e-4)
    np.testing.assert_allclose(std, [pixels.std()] * 3, rtol=1e-4)


def test_it_opens_by_name_and_loads(parts):
    opened = open_scenes("digit_scenes")
    assert {name: part.digest() for name, part in opened.items()} == {n: p.digest() for n, p in parts.items()}
    mean, std = parts["train"].channel_stats()
    loader = SceneLoader(parts["train"], 8, mean, std, augmentation=SceneAugmentation((64, 64)), shuffle=True)
    images, masks = next(iter(loader))
    assert (images.shape, masks.shape) == ((8, 3, 64, 64), (8, 64, 64))
    assert set(masks.unique().tolist()) <= {*range(11), 255}
    images, masks = next(iter(SceneLoader(parts["test"], 5, mean, std)))
    assert torch.equal(masks, torch.from_numpy(parts["test"].masks[:5]).long())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 0}, "digit_scenes: each part needs a scene or more, got 0 and 100"),
        ({"size": 40}, "digit_scenes: size must be 54 or more, the side of the largest digit, got 40"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        make_digit_scenes(**settings)
