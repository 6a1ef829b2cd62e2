import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dnc_lib import painting
from dnc_lib.metrics import IGNORED


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 11, 19, 150, 171, 255])
def test_made_colours_differ(number):
    colours = painting.class_colours(number)
    assert colours.shape == (number, 3)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == number


def test_the_first_made_colours_are_far_apart():
    colours = painting.class_colours(11).astype(int)
    apart = np.abs(colours[:, None] - colours).sum(2) + 1000 * np.eye(11, dtype=int)
    assert apart.min() > 40


def test_given_colours_are_kept():
    given_colours = [[1, 2, 3], [4, 5, 6]]
    assert painting.class_colours(2, given_colours).tolist() == given_colours
    with pytest.raises(ValueError, match=r"3 classes need as many colours \(R, G, B\), got \(2, 3\)"):
        painting.class_colours(3, given_colours)


# --- label maps -----------------------------------------------------------------------------------------------------


def test_a_label_map_has_the_classes_as_numbers_and_shows_their_colours(tmp_path):
    labels = np.array([[0, 1, 2], [2, 1, IGNORED]], dtype=np.uint8)
    colours = painting.class_colours(3)
    painting.label_map(labels, colours).save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(read), labels)
        shown = np.asarray(read.convert("RGB"))
    assert np.array_equal(shown[labels != IGNORED], colours[labels[labels != IGNORED]])
    assert shown[1, 2].tolist() == [0, 0, 0]


def test_an_overlay_mixes_colours_where_there_are_classes():
    picture, labels = noise(6, 8), np.full((6, 8), IGNORED, dtype=np.uint8)
    labels[:, 4:] = 1
    colours = np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    mixed = np.asarray(painting.overlay(picture, labels, colours, 0.5)).astype(float)
    pixels = np.asarray(picture).astype(float)
    assert np.array_equal(mixed[:, :4], pixels[:, :4])  # no class: the picture
    half = (pixels[:, 5:] + [0, 0, 255]) / 2
    assert np.abs(mixed[:, 5:] - half).max() <= 0.5
    border = 0.6 * (pixels[:, 4] + [0, 0, 255]) / 2  # darker where classes meet
    assert np.abs(mixed[:, 4] - border).max() <= 0.5
    assert np.array_equal(np.asarray(painting.overlay(picture, labels, colours, 0))[:, 5:], pixels[:, 5:])


def test_an_overlay_of_another_size():
    with pytest.raises(ValueError, match="labels are 3x2 but the picture is 8x6"):
        painting.overlay(noise(6, 8), np.zeros((2, 3), dtype=np.uint8), painting.class_colours(1))


@pytest.mark.parametrize("number", [1, 3, 40])
def test_a_legend_stands_below_and_shows_every_colour(number):
    colours = painting.class_colours(number)
    picture = noise(50, 300)
    whole = painting.with_legend(picture, [(f"class {c}", colours[c]) for c in range(number)])
    pixels = np.asarray(whole)
    assert np.array_equal(pixels[:50, :300], np.asarray(picture))
    below = {tuple(colour) for colour in pixels[50:].reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in colours.tolist()} <= below


def test_a_legend_of_long_words_widens_the_picture():
    words = "a class with a name that is longer than the picture is wide"
    whole = painting.with_legend(noise(20, 30), [(words, (1, 2, 3))])
    assert whole.width > painting.font(14).getlength(words)
    assert painting.with_legend(noise(20, 30), []).size == (30, 20)


def test_a_small_picture_is_painted_large():
    labels = np.zeros((10, 20), dtype=np.uint8)
    whole = painting.painted(noise(10, 20), labels, painting.class_colours(1))
    assert whole.size == (480, 240)
    assert painting.painted(noise(500, 300), np.zeros((500, 300), np.uint8), painting.class_colours(1)).height == 500


# --- crops and marks ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.data())
def test_a_crop_holds_its_pixel_where_it_says(height, width, side, data):
    at = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    numbers = np.arange(height * width, dtype=np.int32).reshape(height, width)
    part, (row, column) = painting.crop(Image.fromarray(numbers), at, side)
    assert part.size == (min(side, width), min(side, height))
    assert np.asarray(part)[row, column] == numbers[at]


def test_far_from_the_border_the_pixel_is_in_the_middle():
    assert painting.crop(noise(100, 100), (50, 40), 20)[1] == (10, 10)
    assert painting.crop(noise(100, 100), (0, 99), 20)[1] == (0, 19)


def test_a_mark_is_a_ring_around_the_place():
    black = Image.new("RGB", (60, 40))
    found = np.argwhere(np.asarray(painting.marked(black, (10, 30), radius=6)).any(2))
    assert np.abs(found.mean(0) - (10, 30)).max() < 0.6
    assert not np.asarray(black).any()  # a copy was marked
    assert [10, 30] not in found.tolist()  # what is in the middle can be seen


def test_the_mark_of_a_crop_is_where_the_pixel_is():
    dark = np.zeros((200, 300, 3), dtype=np.uint8)
    shown = np.asarray(painting.marked_crop(Image.fromarray(dark), (3, 290), 160, 160)).astype(int)
    row, column = np.argwhere(shown.sum(2) > 300).mean(0)
    assert row < 16  # cut at the top border: what is seen of the ring lies there
    assert column > 130
    middle = np.argwhere(np.asarray(painting.marked_crop(Image.fromarray(dark), (100, 150), 160, 160)).sum(2) > 300)
    assert np.abs(middle.mean(0) - 80).max() < 2


def test_fitted_keeps_proportions_and_pixels():
    assert painting.fitted(noise(100, 200), 160, 160).size == (160, 80)
    assert painting.fitted(noise(3, 1000), 160, 160).size == (160, 1)
    few = noise(8, 8)
    grown = np.asarray(painting.fitted(few, 160, 160))
    assert np.array_equal(grown[::20, ::20], np.asarray(few))  # every pixel became a square
    assert np.array_equal(grown[19::20, 19::20], np.asarray(few))


# --- words ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "word", "longer", "sub-centroid", "IF"]), min_size=1, max_size=20))
def test_wrapped_words_are_all_there_and_fit(words):
    lines = painting.wrapped(" ".join(words), 150, 15)
    assert " ".join(lines).split() == words
    assert all(painting.font(15).getlength(line) <= 150 for line in lines)


def test_shortened_text_fits_and_keeps_both_ends():
    assert painting.shortened("short", 200, 13) == "short"
    text = painting.shortened("Seq05VD_f00000_leftImg8bit_number_17.png", 120, 13)
    assert painting.font(13).getlength(text) <= 120
    assert text.startswith("Seq")
    assert text.endswith("17.png")
    assert "..." in text
    assert painting.shortened("anything", 1, 13) == "..."


# --- heat -----------------------------------------------------------------------------------------------------------


def test_what_the_network_sees_is_the_picture_again():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    image = ((picture / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    assert np.array_equal(np.asarray(painting.as_seen(image, mean, std)), picture)


def test_heat_colours_where_it_is_hot_and_leaves_grey_where_it_is_not():
    picture = Image.new("RGB", (40, 20), (90, 140, 30))
    drawn = np.asarray(painting.heated(picture, np.array([[1.0, -3.0]]), (213, 94, 0), 1.0)).astype(int)
    left, right = drawn[:, :8], drawn[:, -8:]
    assert (left[..., 0] - left[..., 2] > 80).all()  # orange
    assert (np.ptp(right, axis=2) == 0).all()  # grey
    half = np.asarray(painting.heated(picture, np.full((1, 1), 0.5), (213, 94, 0), 1.0)).astype(int)
    assert np.abs(2 * half[10, 20] - left[10, 0] - right[10, -1]).max() <= 2  # half way between
    above = np.asarray(painting.heated(picture, np.full((1, 1), 9.0), (213, 94, 0), 1.0))
    assert np.abs(above[10, 20] - left[10, 0]).max() <= 1
    assert painting.heated(picture, np.zeros((3, 3)), (1, 2, 3), 0.0).size == (40, 20)
