"""Calibration: bins and errors against constructed data and torchmetrics, temperatures that are known beforehand."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from dnc_lib.calibration import COLDEST, HOTTEST, brier, ece, fit_temperature, measure, nll, reliability_bins
from dnc_lib.checkpoints import ModelCard
from dnc_lib.data import LabelledImages

seeds = st.integers(0, 2**31)


def draw(seed, count=400, classes=5, scale=3.0):
    """Scores (N, C), and labels drawn from their softmax: a model that is calibrated."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return scores, torch.multinomial(scores.softmax(1), 1, generator=generator).squeeze(1)


def judged(scores, labels):
    shares, predicted = scores.softmax(1).max(1)
    return shares, predicted == labels


# --- bins and their error


def test_three_bins_by_hand():
    shares = torch.tensor([0.2, 0.5, 0.6, 0.9, 1.0])
    bins = reliability_bins(shares, torch.tensor([0, 1, 0, 1, 1]), 3)
    assert bins.counts.tolist() == [1, 2, 2]
    assert bins.confidence.tolist() == pytest.approx([0.2, 0.55, 0.95])
    assert bins.accuracy.tolist() == [0.0, 0.5, 1.0]
    assert bins.error == pytest.approx((1 * 0.2 + 2 * 0.05 + 2 * 0.05) / 5)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_as_right_as_it_says_is_no_error(equal_mass):
    """Of ten images with share s, 10 s are right."""
    shares = torch.arange(1, 10).repeat_interleave(10) / 10
    correct = torch.cat([torch.arange(10) < right for right in range(1, 10)])
    assert ece(shares, correct, 9, equal_mass=equal_mass) == pytest.approx(0, abs=1e-7)
    assert ece(shares, ~correct, 9, equal_mass=equal_mass) > 0.4


def test_certain_and_wrong_is_all_error():
    assert ece(torch.ones(7), torch.zeros(7)) == 1.0


@given(seeds, st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_agrees_with_torchmetrics(seed, bins):
    scores, labels = draw(seed)
    theirs = multiclass_calibration_error(scores.softmax(1).float(), labels, 5, n_bins=bins, norm="l1")
    shares, predicted = scores.softmax(1).float().max(1)
    assert ece(shares, predicted == labels, bins) == pytest.approx(theirs.item(), abs=1e-5)


@given(seeds, st.booleans(), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_bins_hold_every_image_once_and_order_does_not_matter(seed, equal_mass, bins):
    scores, labels = draw(seed)
    shares, correct = judged(scores, labels)
    shares = (shares * 8).round() / 8  # many ties, also at the edges
    found = reliability_bins(shares, correct, bins, equal_mass=equal_mass)
    full = found.counts > 0
    assert found.counts.sum() == len(labels)
    assert (found.counts * found.confidence)[full].sum().item() == pytest.approx(shares.sum().item())
    assert (found.counts * found.accuracy)[full].sum().item() == pytest.approx(correct.sum().item())
    assert ((found.edges[:-1] <= found.confidence + 1e-9) & (found.confidence <= found.edges[1:] + 1e-9))[full].all()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    again = reliability_bins(shares[order], correct[order], bins, equal_mass=equal_mass)
    assert again.error == pytest.approx(found.error)
    if equal_mass:
        assert found.counts.max() - found.counts.min() <= 1


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_one_bin_is_confidence_minus_accuracy(seed):
    shares, correct = judged(*draw(seed))
    gap = abs(shares.mean() - correct.double().mean()).item()
    assert ece(shares, correct, 1) == pytest.approx(gap)
    assert ece(shares, correct, 1, equal_mass=True) == pytest.approx(gap)
    assert ece(shares, correct, 12) >= gap - 1e-12  # gaps of opposite signs no longer cancel


@pytest.mark.parametrize(
    ("shares", "correct", "settings", "message"),
    [
        (
            torch.ones(3),
            torch.ones(2),
            {},
            "shares and correct must be one row each, of one length, got (3,) and (2,)",
        ),
        (torch.ones(0), torch.ones(0), {}, "shares are empty: there is no image to judge by"),
        (
            torch.tensor([0.5, 3.0]),
            torch.ones(2),
            {},
            "shares must lie in [0, 1], got 3: take the softmax of the scores, not the scores",
        ),
        (
            torch.tensor([math.nan]),
            torch.ones(1),
            {},
            "shares must lie in [0, 1], got nan: take the softmax of the scores, not the scores",
        ),
        (
            torch.ones(2),
            torch.tensor([1, 2]),
            {},
            "correct must hold True and False, or 1 and 0: whether each prediction is right",
        ),
        (torch.ones(2), torch.ones(2), {"bins": 0}, "bins must be 1 or more, got 0"),
        (
            torch.ones(2),
            torch.ones(2),
            {"bins": 3, "equal_mass": True},
            "3 bins cannot hold equally many of 2 images: ask for fewer bins",
        ),
    ],
)
def test_bad_bins(shares, correct, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reliability_bins(shares, correct, **settings)


# --- temperature, cross-entropy, Brier's score


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_temperature_is_where_the_loss_is_least(seed):
    scores, labels = draw(seed, 200)
    best = fit_temperature(scores, labels)
    least = nll(scores / best, labels)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert nll(scores / (factor * best), labels) > least


@given(seeds, st.floats(0.05, 20))
@settings(max_examples=25, deadline=None)
def test_temperature_undoes_a_factor(seed, factor):
    scores, labels = draw(seed, 200)
    once = fit_temperature(scores, labels)
    assert fit_temperature(factor * scores, labels) == pytest.approx(factor * once, rel=1e-9)


def test_a_calibrated_model_has_temperature_one():
    scores, labels = draw(0, 50_000)
    assert fit_temperature(scores, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(2.5 * scores, labels) == pytest.approx(2.5, abs=0.08)
    over = judged(2.5 * scores, labels)
    assert ece(*over) > 0.1
    assert ece(*judged(2.5 * scores / fit_temperature(2.5 * scores, labels), labels)) < 0.01


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_a_shift_of_an_image_s_scores_changes_nothing_and_no_prediction_does(seed):
    scores, labels = draw(seed, 100)
    best = fit_temperature(scores, labels)
    shift = 10 * torch.randn(100, 1, generator=torch.Generator().manual_seed(seed))
    assert fit_temperature(scores + shift, labels) == pytest.approx(best, rel=1e-6)
    assert torch.equal((scores / best).argmax(1), scores.argmax(1))


def test_temperature_agrees_with_lbfgs():
    scores, labels = draw(3, 500)
    scores = 1.7 * scores
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(scores / log.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(scores, labels) == pytest.approx(log.exp().item(), rel=1e-4)


def test_no_best_temperature_gives_a_bound():
    scores = torch.eye(4)
    assert fit_temperature(scores, torch.arange(4)) == COLDEST  # all right: the colder the better
    assert fit_temperature(scores, torch.tensor([1, 2, 3, 0])) == HOTTEST  # all wrong: best to be unsure
    assert fit_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)) == HOTTEST  # no scores, no matter


def test_cross_entropy_and_brier_by_hand():
    scores = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log()
    labels = torch.tensor([0, 0])
    assert nll(scores, labels) == pytest.approx(-(math.log(0.8) + math.log(0.3)) / 2)
    assert brier(scores, labels) == pytest.approx((2 * 0.2**2 + 2 * 0.7**2) / 2)
    assert brier(torch.tensor([[0.0, 1000.0]]), torch.tensor([0])) == 2.0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3).long(), "scores must be (N, C) and labels (N,), got (2, 3) and (3,)"),
        (torch.zeros(0, 3), torch.zeros(0).long(), "scores are empty: there is no image to judge by"),
        (
            torch.tensor([[0.0, math.inf]]),
            torch.zeros(1).long(),
            "scores contain NaN or infinity: has the training diverged?",
        ),
        (torch.zeros(1, 3), torch.tensor([3]), "labels must be integers in [0, 2], one of 3 classes"),
        (torch.zeros(1, 3), torch.tensor([0.0]), "labels must be integers in [0, 2], one of 3 classes"),
    ],
)
@pytest.mark.parametrize("function", [fit_temperature, nll, brier])
def test_bad_scores(function, scores, labels, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        function(scores, labels)


# --- a model


class Fixed(torch.nn.Module):
    """Scores that are written in the pixels: the first C values of the first row, halves of grey levels."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, return_features=False):
        scores = images[:, 0, 0, :4] * 255 / 2
        return (scores, scores) if return_features else scores


def written(seed, count=600):
    """Images whose scores are twice too large for the labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
    images[:, 0, :4, 0] = torch.randint(0, 12, (count, 4), generator=generator, dtype=torch.uint8)
    scores = images[:, 0, :4, 0] / 2
    labels = torch.multinomial((scores / 2).softmax(1), 1, generator=generator).squeeze(1)
    return LabelledImages(images, labels, tuple("abcd"), "written")


def test_a_model_is_measured_before_and_after():
    card = ModelCard("", "", {}, list("abcd"), [0.0] * 3, [1.0] * 3, 8)
    parts, details = {"validation": written(0, 4000), "test": written(1, 4000)}, {}
    found = measure(Fixed(), card, parts, details)
    assert found["temperature"] == pytest.approx(2, abs=0.2)
    assert found["ece_before"] > 10 > 3 > found["ece"] > 0
    assert found["ece_equal_mass_before"] > 10 > 3 > found["ece_equal_mass"] > 0
    assert found["nll"] < found["nll_before"]
    assert found["brier"] < found["brier_before"]
    assert found["confidence"] < found["confidence_before"]
    assert set(details) == {"bins_before", "bins"}
    for bins in details.values():
        assert sum(bins["counts"]) == 4000
        assert [value is None for value in bins["accuracy"]] == [count == 0 for count in bins["counts"]]


def test_a_model_without_held_out_images_is_refused():
    with pytest.raises(ValueError, match=r"^a temperature is fitted on training images that the training did"):
        measure(Fixed(), None, {"test": written(0)})
