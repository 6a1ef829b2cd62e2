"""dnc_lib.inference: whole images, windows, mirrored and resized looks, and what they may not change."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dnc_lib.inference import _places, segment

C = 4


def images(height: int = 13, width: int = 17, number: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def network(kernel: int = 3) -> nn.Module:
    """A convolution: of kernel 1 it sees each pixel alone, of kernel 3 its place beside the border too."""
    torch.manual_seed(0)
    return nn.Conv2d(3, C, kernel, padding=kernel // 2).requires_grad_(False)


class Counting(nn.Module):
    """The first call scores 1 everywhere, the second 2, and so on; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return x.new_full((len(x), C, *x.shape[2:]), float(len(self.seen)))


# Whole images


def test_one_look_gives_the_models_own_scores():
    x, model = images(), network()
    assert torch.equal(segment(model, x), model(x))


@pytest.mark.parametrize("size", [(26, 34), (5, 9), (13, 40)])
def test_scores_are_brought_to_the_size_asked_for(size):
    x, model = images(), network()
    expected = F.interpolate(model(x), size, mode="bilinear", align_corners=False)
    assert torch.equal(segment(model, x, size=size), expected)


def test_half_precision_comes_back_as_float32():
    model = network().half()
    scores = segment(model, images().half())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, segment(network(), images()), rtol=0, atol=0.02)


def test_a_model_that_answers_at_half_resolution_is_brought_to_the_images():
    model = nn.Sequential(network(), nn.AvgPool2d(2))
    x = images(12, 16)
    expected = F.interpolate(model(x), (12, 16), mode="bilinear", align_corners=False)
    assert torch.equal(segment(model, x), expected)
    windows = segment(model, x, window=(12, 8), stride=8)  # each window's own, beside one another
    torch.testing.assert_close(
        windows[..., :8], F.interpolate(model(x[..., :8]), (12, 8), mode="bilinear", align_corners=False)
    )


# Windows


@pytest.mark.parametrize("window", [(13, 17), (14, 30), (13, 100), 17])
@pytest.mark.parametrize("stride", [None, 1])
def test_a_window_that_covers_the_image_is_the_whole_image_bit_for_bit(window, stride):
    x, model = images(), network()
    assert torch.equal(segment(model, x, window=window, stride=stride), model(x))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(window=st.tuples(st.integers(1, 20), st.integers(1, 20)), data=st.data())
def test_windows_do_not_show_where_a_pixel_is_scored_by_itself(window, data):
    stride = data.draw(st.tuples(*[st.integers(1, side) for side in window]))
    x, model = images(number=1), network(kernel=1)
    torch.testing.assert_close(segment(model, x, window=window, stride=stride), model(x), rtol=0, atol=1e-5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)), data=st.data())
def test_windows_are_of_one_size_by_the_stride_and_flush_with_the_border(size, data):
    window = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    stride = data.draw(st.tuples(*[st.integers(1, side) for side in window]))
    places = list(_places(size, window, stride))
    for axis in (0, 1):
        starts = sorted({place[axis].start for place in places})
        own = min(window[axis], size[axis])
        assert {place[axis].stop - place[axis].start for place in places} == {own}
        assert starts[0] == 0
        assert starts[-1] == size[axis] - own
        assert all(start == stride[axis] * turn for turn, start in enumerate(starts[:-1]))
        assert len(starts) == -(-(size[axis] - own) // stride[axis]) + 1  # as few as can be
    seen = torch.zeros(size, dtype=torch.long)
    for place in places:
        seen[place] += 1
    assert seen.min() >= 1
    assert len(places) == len(set(map(str, places)))


def test_what_windows_say_is_averaged_where_they_overlap():
    model = Counting()
    scores = segment(model, images(4, 10, number=1), window=(4, 6), stride=3)
    # columns: window 1 sees 0 to 5, window 2 sees 3 to 8, window 3 is flush with the border and sees 4 to 9
    expected = torch.tensor([1, 1, 1, 1.5, 2, 2, 2.5, 2.5, 2.5, 3])
    torch.testing.assert_close(scores, expected.expand(1, C, 4, 10))


def test_each_window_shows_its_part_of_the_image():
    x, model = images(9, 12), Counting()
    segment(model, x, window=(6, 7), stride=(4, 5))
    assert [tuple(each.shape) for each in model.seen] == [(2, 3, 6, 7)] * 4
    for shown, (top, left) in zip(model.seen, [(0, 0), (0, 5), (3, 0), (3, 5)], strict=True):
        assert torch.equal(shown, x[:, :, top : top + 6, left : left + 7])


def test_an_image_lower_than_the_window_is_seen_at_its_own_height():
    model = Counting()
    segment(model, images(5, 12), window=(8, 8), stride=4)
    assert [tuple(each.shape[2:]) for each in model.seen] == [(5, 8), (5, 8)]


@pytest.mark.parametrize(("window", "stride"), [(769, 513), (512, 341), (6, 4), (2, 1), (1, 1)])
def test_the_stride_is_two_thirds_of_the_window(window, stride):
    model = Counting()
    scores = segment(model, torch.zeros(1, 3, window, window + stride), window=window)
    assert len(model.seen) == 2  # the second begins one stride on, flush with the border
    assert scores[0, 0, 0, 0] == 1
    assert scores[0, 0, 0, stride - 1] == 1
    if stride < window:
        assert scores[0, 0, 0, stride] == 1.5
    model = Counting()
    segment(model, torch.zeros(1, 3, window, window + stride + 1), window=window)
    assert len(model.seen) == 3


# Several looks


def test_mirrored_looks_are_averaged_as_class_probabilities():
    x, model = images(), network()
    here, there = model(x), model(x.flip(3)).flip(3)
    assert not torch.allclose(here, there, atol=1e-2)
    result = segment(model, x, flip=True)
    torch.testing.assert_close(result.exp(), (here.softmax(1) + there.softmax(1)) / 2)
    torch.testing.assert_close(result.exp().sum(1), torch.ones(2, 13, 17))
    torch.testing.assert_close(result.flip(3), segment(model, x.flip(3), flip=True))


def test_scales_are_averaged_at_the_size_asked_for():
    x, model, size = images(12, 16), network(), (7, 21)
    looks = []
    for seen in ((6, 8), (12, 16), (18, 24)):
        shown = F.interpolate(x, seen, mode="bilinear", align_corners=False, antialias=seen[0] < 12)
        shown = x if seen == (12, 16) else shown
        for mirror in (False, True):
            scores = model(shown.flip(3)).flip(3) if mirror else model(shown)
            looks.append(F.interpolate(scores, size, mode="bilinear", align_corners=False).softmax(1))
    result = segment(model, x, scales=(0.5, 1.0, 1.5), flip=True, size=size)
    torch.testing.assert_close(result, torch.stack(looks).mean(0).log(), rtol=0, atol=1e-5)
    alone = segment(model, x, scales=(1.5,), size=size)
    torch.testing.assert_close(alone.softmax(1), looks[4])


def test_windows_are_laid_on_the_resized_image():
    model = Counting()
    segment(model, images(10, 10), window=(10, 10), stride=5, scales=(0.5, 1.0, 1.5))
    assert [tuple(each.shape[2:]) for each in model.seen] == [(5, 5), (10, 10), *[(10, 10)] * 4]


def test_the_mean_of_looks_is_a_loss_like_any_scores_and_never_infinite():
    """A class that every look is sure it is not has a probability below the smallest float."""
    x, model = images(), network()
    model.weight.mul_(300)
    result = segment(model, x, flip=True)
    assert torch.isfinite(result).all()
    labels = torch.randint(C, (2, 13, 17))
    expected = -result.gather(1, labels[:, None]).mean()
    torch.testing.assert_close(F.cross_entropy(result, labels), expected)


def test_the_images_stay_as_they_are():
    x, model = images(), network()
    before = x.clone()
    segment(model, x, window=6, flip=True, scales=(0.5, 1.0))
    assert torch.equal(x, before)


# Bad input


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window": (0, 5)}, "window must be (height, width) in whole pixels, 1 or more, got (0, 5)"),
        ({"window": (4, 5, 6)}, "window must be (height, width) in whole pixels, 1 or more, got (4, 5, 6)"),
        ({"window": 4.5}, "window must be (height, width) in whole pixels, 1 or more, got 4.5"),
        ({"window": 8, "stride": 0}, "stride must be (height, width) in whole pixels, 1 or more, got 0"),
        (
            {"window": 8, "stride": (4, 2.5)},
            "stride must be (height, width) in whole pixels, 1 or more, got (4, 2.5)",
        ),
        (
            {"window": (8, 8), "stride": (4, 9)},
            "stride (4, 9) is larger than the window (8, 8): pixels between windows would be missed",
        ),
        ({"stride": 4}, "stride 4 needs a window to move: give window=(height, width) too"),
        ({"size": (0, 4)}, "size must be (height, width) in whole pixels, 1 or more, got (0, 4)"),
        ({"scales": ()}, "scales must be one or more positive factors, got ()"),
        ({"scales": (1.0, 0)}, "scales must be one or more positive factors, got (1.0, 0)"),
        ({"scales": (1.0, float("nan"))}, "scales must be one or more positive factors, got (1.0, nan)"),
        ({"scales": (float("inf"),)}, "scales must be one or more positive factors, got (inf,)"),
        ({"scales": 1.5}, "scales must be one or more positive factors, got 1.5"),
    ],
)
def test_windows_strides_and_scales_that_cannot_be(options, expected):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        segment(network(), images(), **options)
    assert str(error.value) == expected


def test_what_is_no_batch_of_images_or_no_map_of_scores():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        segment(network(), images()[0])
    assert str(error.value) == "images must be (B, 3, h, w), got (3, 13, 17)"
    pooled = nn.Sequential(network(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError) as error:  # noqa: PT011
        segment(pooled, images())
    assert str(error.value) == (
        "the model must map images (B, 3, h, w) to class scores (B, C, h, w), got (2, 4) for images (2, 3, 13, 17)"
    )
