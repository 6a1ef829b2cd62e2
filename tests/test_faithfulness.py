"""Deletion and insertion: exact areas where the answer is known, and a map that knows beats one that does not."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dnc_lib.faithfulness import (
    Curves,
    Faithfulness,
    blurred,
    bootstrap,
    edits,
    faithfulness,
    follow,
    middle_first,
    pixel_order,
    random_maps,
)
from dnc_lib.heads import SubCentroidHead
from dnc_lib.models import ImageClassifier


def images(number=3, side=8, seed=0):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Corner(nn.Module):
    """Looks at the upper left quarter alone: is it red, green or blue there?"""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        side = x.shape[2] // 2
        return x[:, :, :side, :side].mean((2, 3)) * self.scale


@pytest.fixture
def corner():
    head = SubCentroidHead(3, 3, num_subcentroids=1, memory_size=0)
    head.subcentroids.copy_(F.normalize(torch.eye(3) - 1 / 3, dim=-1)[:, None])
    return ImageClassifier(Corner(), head)


# --- the order, and the edits ---------------------------------------------------------------------------------------


def test_the_hottest_pixels_come_first():
    values = torch.tensor([[[0.0, 1.0], [3.0, 2.0]]])
    assert pixel_order(values, (2, 2)).tolist() == [[2, 3, 1, 0]]
    order = pixel_order(torch.zeros(1, 2, 2), (4, 4))
    assert order.tolist() == [list(range(16))]  # of equals the upper left one
    large = pixel_order(values, (8, 8))
    assert sorted(large[0].tolist()) == list(range(64))
    assert set(large[0, :4].tolist()) == {48, 49, 56, 57}  # the lower left corner of 8 x 8


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(2, 6), st.integers(0, 9))
def test_each_step_replaces_so_many_pixels_and_never_gives_one_back(steps, side, seed):
    ours, theirs = torch.zeros(2, 3, side, side), torch.ones(2, 3, side, side)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(side * side, generator=generator) for _ in range(2)])
    before = torch.zeros_like(ours)
    for step, (share, edited) in enumerate(edits(ours, theirs, order, steps)):
        assert share == step / steps
        assert (edited[:, 0].sum((1, 2)) == round(side * side * share)).all()
        assert (edited >= before).all()
        for n in range(2):
            taken = set(edited[n, 0].flatten().nonzero().squeeze(1).tolist())
            assert taken == set(order[n, : len(taken)].tolist())
        before = edited
    assert torch.equal(edited, theirs)


def test_rivals():
    middle = middle_first(2, (4, 6))
    assert middle.shape == (2, 4, 6)
    assert torch.allclose(middle, middle.flip(1, 2))
    assert middle[0].argmax() in (8, 9, 14, 15)  # the four in the middle
    assert middle[0].argmin() in (0, 5, 18, 23)  # the corners
    noise = random_maps(3, (4, 6), torch.Generator().manual_seed(0))
    assert torch.equal(noise, random_maps(3, (4, 6), torch.Generator().manual_seed(0)))
    assert not torch.equal(noise[0], noise[1])


def test_the_blur_keeps_what_does_not_vary_and_flattens_what_does():
    flat = torch.full((1, 3, 12, 12), 2.5)
    assert torch.allclose(blurred(flat, 3.0), flat, atol=1e-6)
    noise = images(2, 32)
    assert blurred(noise, 4.0).std() < 0.15 * noise.std()
    assert blurred(noise, 1.0).std() > 2 * blurred(noise, 4.0).std()
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1
    spread = blurred(point, 2.0)[0, 0]
    assert float(spread[10, 12] / spread[10, 10]) == pytest.approx(
        math.exp(-0.5), abs=1e-4
    )  # two pixels are one sigma
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(spread, spread.T)


# --- curves ---------------------------------------------------------------------------------------------------------


def test_the_area_is_the_mean_height():
    shares = torch.linspace(0, 1, 5)
    curves = Curves(shares, torch.stack([shares, torch.ones(5), 1 - shares]), torch.zeros(3, 5))
    assert curves.area().tolist() == pytest.approx([0.5, 1.0, 0.5])
    assert curves.area("confidence").tolist() == [0, 0, 0]
    both = Faithfulness(curves, Curves(shares, torch.ones(3, 5), torch.zeros(3, 5)))
    assert both.score().tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_curves_begin_and_end_where_they_must(corner):
    batch = images(4)
    blur = blurred(batch, 3.0)
    result = faithfulness(corner, batch, random_maps(4, (4, 4), torch.Generator().manual_seed(0)), 3.0, steps=4)
    assert result.deletion.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    with torch.no_grad():
        corner.eval()
        rows, whole = torch.arange(4), corner.head.similarities(corner.features(batch)).flatten(1)
        nearest = whole.argmax(1)
        gone = corner.head.similarities(corner.features(blur)).flatten(1)
        logits = corner(batch).softmax(1)
    for curves, (first, last) in ((result.deletion, (whole, gone)), (result.insertion, (gone, whole))):
        assert torch.allclose(curves.similarity[:, 0], first[rows, nearest], atol=1e-6)
        assert torch.allclose(curves.similarity[:, -1], last[rows, nearest], atol=1e-6)
    assert torch.allclose(result.deletion.confidence[:, 0], logits.amax(1), atol=1e-6)
    assert torch.allclose(result.insertion.confidence[:, -1], logits.amax(1), atol=1e-6)


def test_who_knows_where_the_model_looks_wins_and_who_says_the_opposite_loses(corner):
    batch = 0.2 * images(20, seed=3)
    batch[:, 1] += 1  # green
    batch[:, 0, :4, :4] += 2  # and red in the upper left quarter, the only one that counts
    truth = torch.zeros(20, 2, 2)
    truth[:, 0, 0] = 1
    rival = random_maps(20, (2, 2), torch.Generator().manual_seed(1))
    known, random, wrong = (faithfulness(corner, batch, values, 4.0, 8) for values in (truth, rival, -truth))
    for what in ("similarity", "confidence"):
        assert (known.score(what) > 0).all()
        assert (wrong.score(what) < 0).all()
        assert bootstrap(known.score(what) - random.score(what)).low > 0
        assert bootstrap(random.score(what) - wrong.score(what)).low > 0
    # by hand: nothing is left of what it looks at after a quarter of the pixels, and nothing happens afterwards
    assert torch.allclose(known.deletion.similarity[:, 4:], known.deletion.similarity[:, -1:], atol=0.02)
    assert torch.allclose(wrong.deletion.similarity[:, :4], wrong.deletion.similarity[:, :1], atol=0.02)


def test_the_model_is_left_as_it_was_and_parts_do_not_matter(corner, monkeypatch):
    corner.train()
    batch = images(5)
    order = pixel_order(middle_first(5, (4, 4)), (8, 8))
    together = follow(corner, batch, torch.zeros_like(batch), order, batch, 3)
    assert corner.training
    monkeypatch.setattr("dnc_lib.faithfulness.BATCH", 2)
    parted = follow(corner, batch, torch.zeros_like(batch), order, batch, 3)
    assert torch.allclose(together.similarity, parted.similarity, atol=1e-6)
    assert not together.similarity.requires_grad


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    found = bootstrap(values)
    error = values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert found == bootstrap(torch.from_numpy(values))  # the same drawing
    narrow = bootstrap(values, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high
    assert bootstrap([3.0]) == (3.0, 3.0, 3.0)


def test_bad_input(corner):
    with pytest.raises(ValueError, match=r"^sigma must be positive, got 0$"):
        blurred(images(), 0)
    with pytest.raises(
        ValueError, match=r"^order must be \(N, H \* W\) for images and others \(N, 3, H, W\), got \(3, 16\) for"
    ):
        follow(corner, images(), images(), pixel_order(torch.rand(3, 2, 2), (4, 4)), images())
    for values in ([], [1.0, float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match=r"^bootstrap takes one row of finite numbers, got shape"):
            bootstrap(values)
