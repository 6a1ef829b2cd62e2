import colorsys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dnc_lib.data.scene_transforms import (
    SceneAugmentation,
    largest_share,
    nearest_crop,
    resized_crop,
    rotate_hue,
)
from dnc_lib.metrics import IGNORED
from dnc_lib.randomness import seeded

FILL = (200, 100, 50)


def patchwork(height: int, width: int, patches: int = 6, seed: int = 0) -> np.ndarray:
    """A mask (H, W) of patches around random points, 0 to ``patches`` - 1."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (patches, 2)) * (height, width)
    rows, columns = np.mgrid[:height, :width] + 0.5
    return ((rows - points[:, :1, None]) ** 2 + (columns - points[:, 1:, None]) ** 2).argmin(0).astype(np.uint8)


def painted(mask: np.ndarray) -> Image.Image:
    """The mask as a picture: 30 grey levels a class."""
    return Image.fromarray((30 * mask)[..., None].repeat(3, 2))


def sides_meet(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Where a mask (h, w) has more than one value within ``reach`` pixels."""
    padded = torch.nn.functional.pad(mask[None].float(), [reach] * 4, mode="replicate")
    size = 2 * reach + 1
    largest = torch.nn.functional.max_pool2d(padded, size, 1)
    return (largest != -torch.nn.functional.max_pool2d(-padded, size, 1))[0]


# --- image and mask move together -----------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(30, 90), st.integers(30, 90)),
    st.tuples(st.integers(16, 100), st.integers(16, 100)),
)
@settings(max_examples=60, deadline=None)
def test_image_and_mask_move_together(seed, size, crop_size):
    mask = patchwork(*size, seed=seed)
    augmentation = SceneAugmentation(crop_size, color_jitter=0)
    with seeded(seed):
        image, labels = augmentation(painted(mask), mask, FILL)
    assert (image.dtype, labels.dtype) == (torch.uint8, torch.uint8)
    assert (image.shape, labels.shape) == ((3, *crop_size), crop_size)
    inside = labels != IGNORED
    assert (image[:, ~inside] == torch.tensor(FILL)[:, None]).all()
    # Near a border between patches the image is a mixture, and near the edge one may lie just outside.
    clear = inside & ~sides_meet(labels, 3)
    clear[:3] = clear[-3:] = clear[:, :3] = clear[:, -3:] = False
    assert (image[0][clear] == 30 * labels[clear]).all()


def test_a_shift_of_two_pixels_would_show():
    """What the test above measures does break where mask and image do not fit."""
    mask = patchwork(80, 80, patches=12)
    with seeded(0):
        image, labels = SceneAugmentation((60, 60), scale=(1, 1), color_jitter=0)(painted(mask), mask)
    labels = torch.roll(labels, 5, 1)
    clear = ~sides_meet(labels, 3)
    assert (image[0][clear] != 30 * labels[clear]).any()


def test_half_of_the_scenes_are_mirrored():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[:, 20:] = 1
    augmentation = SceneAugmentation((20, 30), scale=(1, 1), class_share=1, color_jitter=0)
    with seeded(0):
        views = [augmentation(painted(mask), mask) for _ in range(400)]
    for image, labels in views:
        assert torch.equal(image[0], 30 * labels)
    mirrored = [bool(labels[0, 0]) for _, labels in views]
    assert 160 < sum(mirrored) < 240
    with seeded(0):
        plain = SceneAugmentation((20, 30), scale=(1, 1), flip=False, color_jitter=0)
        assert not any(plain(painted(mask), mask)[1][0, 0] for _ in range(20))


def test_sides_are_scaled_together_between_half_and_double():
    """Red counts columns, blue rows: how fast they grow tells the scale."""
    rows, columns = np.mgrid[:120, :120].astype(np.uint8)
    image = Image.fromarray(np.stack([2 * columns, np.zeros_like(rows), 2 * rows], 2))
    mask = patchwork(120, 120, 12)
    augmentation = SceneAugmentation((40, 50), class_share=1, flip=False, color_jitter=0)
    seen, corners = [], []
    with seeded(1):
        for _ in range(150):
            pixels = augmentation(image, mask)[0].float()
            across, down = (pixels[0, 20, 45] - pixels[0, 20, 5]) / 80, (pixels[2, 35, 25] - pixels[2, 5, 25]) / 60
            assert abs(1 / across - 1 / down) < 0.12 / down
            seen.append(float(1 / across))
            corners.append((float(pixels[0, 0, 0]) / 2, float(pixels[2, 0, 0]) / 2))
    assert 0.48 < min(seen) < 0.6
    assert 1.85 < max(seen) < 2.1
    assert 1.15 < np.mean(seen) < 1.35  # of 0.5 to 2, evenly: 1.25
    left, top = np.array(corners).T
    assert left.max() > 60
    assert top.max() > 60
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.6


def test_the_shorter_side_can_come_first():
    mask = patchwork(40, 60)
    augmentation = SceneAugmentation((80, 120), scale=(1, 1), flip=False, color_jitter=0, shorter_side=80)
    image, labels = augmentation(painted(mask), mask)
    assert np.array_equal(labels, mask.repeat(2, 0).repeat(2, 1))
    assert torch.equal(image, F.pil_to_tensor(F.resize(painted(mask), [80, 120])))


# --- the crop -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.4, 2.5))
@example(915, 1.3984375)
@settings(max_examples=60, deadline=None)
def test_a_crop_is_that_of_the_whole_resized_scene(seed, factor):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    size = round(37 * factor), round(53 * factor)
    height, width = rng.integers(1, size[0] + 1), rng.integers(1, size[1] + 1)
    box = tuple(
        int(number)
        for number in (rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1), height, width)
    )
    whole = F.pil_to_tensor(F.resize(image, list(size), antialias=True))
    part = F.pil_to_tensor(resized_crop(image, size, box)).int()
    top, left = box[:2]
    # Rows and columns are resized one after the other, and each is rounded: two steps at most, in noise of 256.
    assert (part - whole[:, top : top + height, left : left + width].int()).abs().max() <= 2
    mask = patchwork(37, 53, 12, seed)
    whole = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(nearest_crop(mask, size, box), whole[top : top + height, left : left + width])


def test_crops_come_from_everywhere():
    rows, columns = np.mgrid[:30, :40]
    image = Image.fromarray(np.stack([columns, rows, rows], 2).astype(np.uint8))
    augmentation = SceneAugmentation((10, 10), scale=(1, 1), class_share=1, flip=False, color_jitter=0)
    mask = patchwork(30, 40)
    with seeded(0):
        corners = {tuple(augmentation(image, mask)[0][:2, 0, 0].tolist()) for _ in range(6000)}
    assert len(corners) > 0.99 * 21 * 31
    assert corners <= {(left, top) for left in range(31) for top in range(21)}


def halves(share: float, tries: int = 300) -> float:
    """Of crops a quarter as wide as a scene of two halves, those in which one has 75 % or more."""
    mask = np.zeros((8, 400), dtype=np.uint8)
    mask[:, 200:] = 1
    augmentation = SceneAugmentation((8, 100), scale=(1, 1), class_share=share, color_jitter=0)
    with seeded(2):
        views = [augmentation(painted(mask), mask)[1].numpy() for _ in range(tries)]
    return float(np.mean([largest_share(view) >= 0.75 for view in views]))


def test_a_class_is_kept_from_filling_the_crop_ten_times():
    """A crop fits with a chance of 50 in 301, so ten tries fail with a chance of 0.16, one with 0.83."""
    chance = 1 - 50 / 301
    assert abs(halves(1.0) - chance) < 0.07
    assert abs(halves(0.75) - chance**10) < 0.07


def test_where_no_crop_fits_the_last_is_taken():
    mask = np.zeros((30, 30), dtype=np.uint8)
    _, labels = SceneAugmentation((10, 10), scale=(1, 1))(painted(mask), mask)
    assert (labels == 0).all()


def test_the_share_is_of_labelled_pixels():
    mask = np.full((10, 10), IGNORED, dtype=np.uint8)
    assert largest_share(mask) == 1
    mask[0, :5] = 3
    mask[0, 5:8] = 1
    assert largest_share(mask) == 5 / 8


def test_small_scenes_are_filled_right_and_below():
    mask = patchwork(20, 30)
    augmentation = SceneAugmentation((50, 40), scale=(1, 1), flip=False, color_jitter=0.5)
    image, labels = augmentation(painted(mask), mask, FILL)
    assert np.array_equal(labels[:20, :30], mask)
    assert (labels[20:] == IGNORED).all()
    assert (labels[:, 30:] == IGNORED).all()
    filled = labels == IGNORED
    assert (image[:, filled] == torch.tensor(FILL)[:, None]).all()  # the colour is not jittered


# --- colours --------------------------------------------------------------------------------------------------------


def test_colours_vary_and_labels_do_not():
    mask = patchwork(40, 40)
    noise = Image.fromarray(np.random.default_rng(0).integers(60, 180, (40, 40, 3), dtype=np.uint8))
    augmentation = SceneAugmentation((40, 40), scale=(1, 1), flip=False)
    with seeded(0):
        views = [augmentation(noise, mask) for _ in range(60)]
    assert all(np.array_equal(labels, mask) for _, labels in views)
    images = torch.stack([image for image, _ in views]).float()
    means, contrasts = images.mean((1, 2, 3)), images.std((1, 2, 3))
    plain = F.pil_to_tensor(noise).float()
    assert means.min() < 0.7 * plain.mean()
    assert means.max() > 1.3 * plain.mean()
    assert contrasts.min() < 0.6 * plain.std()
    assert contrasts.max() > 1.2 * plain.std()
    assert (images != plain).flatten(1).any(1).all()


def luma(colour) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


@given(st.tuples(*[st.integers(80, 170)] * 3), st.floats(-0.5, 0.5))
@settings(max_examples=100, deadline=None)
def test_turning_the_hue_keeps_grey_and_brightness(colour, turn):
    turned = rotate_hue(Image.new("RGB", (1, 1), colour), turn).getpixel((0, 0))
    if min(turned) > 0 and max(turned) < 255:  # nothing was cut off
        assert abs(luma(turned) - luma(colour)) <= 1.5
        back = rotate_hue(Image.new("RGB", (1, 1), turned), -turn).getpixel((0, 0))
        assert np.abs(np.subtract(back, colour)).max() <= 3
    grey = (colour[0],) * 3
    assert np.abs(np.subtract(rotate_hue(Image.new("RGB", (1, 1), grey), turn).getpixel((0, 0)), grey)).max() <= 1


def test_turning_the_hue_turns_it_as_hsv_does():
    """Red goes towards green for a positive turn, and colours come round in the same order as on HSV's wheel."""
    red = (180, 100, 100)
    hues = []
    for turn in np.arange(0, 1, 1 / 12):
        turned = rotate_hue(Image.new("RGB", (1, 1), red), float(turn)).getpixel((0, 0))
        hues.append(colorsys.rgb_to_hsv(*np.divide(turned, 255))[0])
    steps = np.diff(hues)
    assert hues[0] == 0
    assert (steps > 0).all()
    assert np.abs(steps - 1 / 12).max() < 0.06
    assert rotate_hue(Image.new("RGB", (1, 1), red), 0).getpixel((0, 0)) == red


# --- randomness and settings ----------------------------------------------------------------------------------------


def test_a_view_depends_on_torchs_numbers_alone():
    mask = patchwork(60, 80)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    augmentation = SceneAugmentation((40, 40))
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(augmentation(noise, mask))
    assert all(torch.equal(a, b) for a, b in zip(views[0], views[1], strict=True))
    assert not torch.equal(views[0][0], views[2][0])


def test_the_scene_itself_is_left_as_it_was():
    mask = patchwork(30, 30)
    image, before = painted(mask), mask.copy()
    for _ in range(5):
        SceneAugmentation((20, 20))(image, mask)
    assert np.array_equal(mask, before)
    assert np.array_equal(np.asarray(image), np.asarray(painted(before)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": (0, 4)}, r"crop_size must be \(height, width\), 1 or more each, got \(0, 4\)"),
        ({"crop_size": (4,)}, r"crop_size must be \(height, width\), 1 or more each, got \(4,\)"),
        ({"scale": (0.0, 1.0)}, r"scale must be two factors, 0 < least <= largest, got \(0.0, 1.0\)"),
        ({"scale": (2.0, 1.0)}, r"scale must be two factors, 0 < least <= largest, got \(2.0, 1.0\)"),
        ({"class_share": 0}, "class_share must be a share, above 0 and up to 1, got 0"),
        ({"class_share": 1.5}, "class_share must be a share, above 0 and up to 1, got 1.5"),
        ({"color_jitter": -0.1}, "color_jitter must be 0 to 1, got -0.1"),
        ({"shorter_side": -1}, "shorter_side must be 0 or more, got -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SceneAugmentation(**{"crop_size": (8, 8), **settings})
