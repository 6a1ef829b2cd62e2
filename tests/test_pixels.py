import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc_lib.metrics import IGNORED
from dnc_lib.pixels import draw_pixels, labels_at


@st.composite
def drawings(draw) -> dict:
    """Features that tell their own image and place, and labels, some classes rare, some places without one."""
    classes, batch = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    present = torch.rand(classes + 1, generator=generator) ** 3 + 1e-6  # shares far apart
    labels = torch.multinomial(present, batch * height * width, replacement=True, generator=generator)
    labels = torch.where(labels == classes, IGNORED, labels).view(batch, height, width)
    places = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).expand(batch, -1, -1, -1)
    images = torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, height, width)
    return {
        "features": torch.cat([images, places], 1),  # (B, 2, h, w)
        "labels": labels,
        "limit": draw(st.integers(1, 12)),
        "num_classes": classes,
        "seed": draw(st.integers(0, 2**40)),
    }


@settings(deadline=None, max_examples=60)
@given(drawings())
def test_of_every_class_and_image_the_limit_is_drawn_or_all_there_are(case):
    drawn, chosen = draw_pixels(**case)
    labels, classes = case["labels"], case["num_classes"]
    rows = min(case["limit"] * classes, labels[0].numel())
    assert drawn.shape == (len(labels), rows, 2)
    assert chosen.shape == (len(labels), rows)
    assert chosen.dtype == torch.long
    for image in range(len(labels)):
        for c in range(classes):
            there = int((labels[image] == c).sum())
            assert int((chosen[image] == c).sum()) == min(there, case["limit"])
        assert set(chosen[image].tolist()) <= {*range(classes), IGNORED}


@settings(deadline=None, max_examples=60)
@given(drawings())
def test_a_drawn_row_is_a_pixel_of_its_label_and_none_comes_twice(case):
    drawn, chosen = draw_pixels(**case)
    for image, (rows, own) in enumerate(zip(drawn, chosen, strict=True)):
        assert (rows[:, 0] == image).all()
        places = rows[:, 1].long()
        assert len(set(places.tolist())) == len(places)
        filled = own != IGNORED
        assert torch.equal(case["labels"][image].flatten()[places[filled]], own[filled])


@settings(deadline=None, max_examples=30)
@given(drawings())
def test_what_is_drawn_of_an_image_does_not_depend_on_its_neighbours_in_the_batch(case):
    drawn, chosen = draw_pixels(**case)
    for image in range(len(drawn)):
        alone = {**case, "features": case["features"][image : image + 1], "labels": case["labels"][image : image + 1]}
        features, labels = draw_pixels(**alone)
        assert torch.equal(features[0], drawn[image])
        assert torch.equal(labels[0], chosen[image])


def test_the_seed_decides_and_every_pixel_has_its_chance():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    features = torch.arange(64.0).view(1, 1, 8, 8)
    times = torch.zeros(64)
    for seed in range(200):
        drawn = draw_pixels(features, labels, 8, 1, seed)[0].flatten().long()
        assert torch.equal(drawn, draw_pixels(features, labels, 8, 1, seed)[0].flatten().long())
        times[drawn] += 1
    assert times.sum() == 200 * 8
    assert times.min() > 8  # 25 expected of each, with a deviation of 4.7
    assert times.max() < 50


def test_a_mask_as_it_is_read_will_do():
    """Masks come as uint8; torch's scatter wants long."""
    labels = torch.tensor([[[0, 1], [1, IGNORED]]], dtype=torch.uint8)
    _, chosen = draw_pixels(torch.zeros(1, 3, 2, 2), labels, 1, 2)
    assert sorted(chosen[0].tolist()) == [0, 1]
    assert labels_at(labels, (2, 2)).dtype == labels_at(labels, (1, 1)).dtype == torch.long


def test_without_labels_all_rows_are_ignored():
    drawn, chosen = draw_pixels(torch.ones(2, 3, 4, 4), torch.full((2, 4, 4), IGNORED), 2, 3)
    assert drawn.shape == (2, 6, 3)
    assert (chosen == IGNORED).all()


def test_the_drawn_features_carry_no_gradient():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert not draw_pixels(features, torch.zeros(1, 4, 4, dtype=torch.long), 2, 3)[0].requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, r"^limit must be 1 or more pixels of a class and image, got 0$"),
        ({"labels": torch.full((1, 4, 4), 3)}, r"^labels must lie in \[0, 2\] for 3 classes, found 3$"),
        ({"labels": torch.full((1, 4, 4), -100)}, r"^labels must lie in \[0, 2\] for 3 classes, found -100$"),
        ({"labels": torch.zeros(1, 4, 4)}, r"^labels must be integers, got torch.float32$"),
        (
            {"labels": torch.zeros(1, 8, 8, dtype=torch.long)},
            r"^labels must be \(B, h, w\) for features \(B, D, h, w\), got \(1, 8, 8\) for \(1, 2, 4, 4\): labels_at "
            r"brings them to that resolution$",
        ),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(changes, message):
    case = {"features": torch.zeros(1, 2, 4, 4), "labels": torch.zeros(1, 4, 4, dtype=torch.long), "limit": 2}
    with pytest.raises(ValueError, match=message):
        draw_pixels(**{**case, "num_classes": 3, **changes})


# --- labels at another resolution -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 40)] * 6, st.integers(1, 9))
def test_each_place_gets_the_label_at_its_middle(height, width, h, w, image_height, image_width, multiple):
    """By exact fractions, place by place: the middle in pixels of the padded image, brought to the labels' scale."""
    labels = torch.randint(0, 200, (2, height, width), generator=torch.Generator().manual_seed(0))
    found = labels_at(labels, (h, w), multiple, (image_height, image_width))
    assert found.shape == (2, h, w)
    rows = middles(height, h, multiple, image_height)
    columns = middles(width, w, multiple, image_width)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            inside = row < height and column < width
            expected = labels[:, row, column] if inside else torch.full((2,), IGNORED)
            assert torch.equal(found[:, i, j], expected)


def middles(own: int, places: int, multiple: int, side: int) -> list[int]:
    """Which of ``own`` labels lies at the middle of each place, in whole numbers."""
    padded = -(-side // multiple) * multiple
    if (places, padded) == (own, side):
        return list(range(own))
    return [(2 * i + 1) * own * padded // (2 * places * side) for i in range(places)]


@pytest.mark.parametrize("size", [(3, 5), (6, 10), (12, 20), (7, 4), (24, 40)])
def test_without_padding_it_is_torchs_nearest(size):
    labels = torch.randint(0, 200, (2, 12, 20), generator=torch.Generator().manual_seed(0))
    torchs = torch.nn.functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0]
    assert torch.equal(labels_at(labels, size), torchs.long())


def test_at_the_same_size_nothing_changes():
    labels = torch.randint(0, 256, (2, 5, 7))
    assert torch.equal(labels_at(labels, (5, 7)), labels)


def test_places_in_the_padding_have_no_label():
    """An image of 20 pixels, padded to 32 and cut into patches of 16: the middle of the second is at 24."""
    labels = torch.ones(1, 20, 32, dtype=torch.uint8)
    assert labels_at(labels, (2, 2), 16).tolist() == [[[1, 1], [IGNORED, IGNORED]]]
    assert labels_at(labels, (2, 2)).tolist() == [[[1, 1], [1, 1]]]  # as if there were no padding
    wider = torch.ones(1, 40, 64, dtype=torch.uint8)  # the same image, its labels twice as fine
    assert labels_at(wider, (2, 2), 16, (20, 32)).tolist() == [[[1, 1], [IGNORED, IGNORED]]]


def test_padding_does_not_shift_the_labels():
    """Labels that tell their row: each place has the row at its middle, padded or not."""
    rows = torch.arange(20).view(1, 20, 1).expand(1, 20, 16)
    assert labels_at(rows, (8, 4), 32)[0, :, 0].tolist() == [2, 6, 10, 14, 18, IGNORED, IGNORED, IGNORED]
