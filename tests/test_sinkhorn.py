"""dnc_lib.sinkhorn: the mathematics as properties, agreement with a float64 loop over classes, and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from tracing import LargestTensor, OperatorCount

from dnc_lib import sinkhorn
from dnc_lib.sinkhorn import (
    ASSIGNMENTS,
    LARGEST_EXPONENT,
    _plan_of_cosines,
    all_finite,
    assign,
    check_labels,
    class_logsumexp,
)

settings.register_profile("core", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("core")


def loop_over_classes(scores, labels, num_classes, epsilon=0.05, iterations=3) -> np.ndarray:
    """The plan as a textbook has it: class by class in float64; columns to N_c / K, then rows to 1."""
    plan = np.zeros(scores.shape)
    for c in range(num_classes):
        own = np.flatnonzero(labels == c)
        log_plan = np.asarray(scores, dtype=np.float64)[own] / epsilon  # (N_c, K)
        if len(own):
            for _ in range(iterations):
                log_plan += np.log(len(own) / log_plan.shape[1]) - logsumexp(log_plan, axis=0)
                log_plan -= logsumexp(log_plan, axis=1, keepdims=True)
        plan[own] = np.exp(log_plan - logsumexp(log_plan, axis=1, keepdims=True))
    return plan


@st.composite
def problems(draw, scale=1.0, at_least=0):
    """Scores (N, K) in [-scale, scale] as float64, labels (N,), the number of classes."""
    num_classes, k = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    number = draw(st.integers(at_least, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes_seen = draw(st.integers(1, num_classes))  # the others stay without samples
    scores = torch.from_numpy(rng.uniform(-scale, scale, (number, k)))
    return scores, torch.from_numpy(rng.integers(0, classes_seen, number)), num_classes


# The plan


@given(problems(scale=30.0), st.integers(0, 5))
def test_rows_sum_to_one(problem, iterations):
    scores, labels, num_classes = problem
    plan = sinkhorn(scores.float(), labels, num_classes, iterations=iterations)
    assert plan.shape == scores.shape
    assert plan.dtype == torch.float32
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(1), torch.ones(len(plan)), rtol=0, atol=1e-5)


@given(problems(at_least=1))
def test_columns_tend_to_an_equal_share_of_their_class(problem):
    scores, labels, num_classes = problem
    plan = sinkhorn(scores, labels, num_classes, epsilon=1.0, iterations=100)
    columns = torch.zeros(num_classes, plan.shape[1], dtype=plan.dtype).index_add_(0, labels, plan)
    share = torch.bincount(labels, minlength=num_classes)[:, None] / plan.shape[1]
    torch.testing.assert_close(columns, share.expand_as(columns).double(), rtol=0, atol=1e-6)


@given(problems(), st.integers(0, 5))
def test_float32_agrees_with_a_float64_loop_over_classes(problem, iterations):
    scores, labels, num_classes = problem
    plan = sinkhorn(scores.float(), labels, num_classes, iterations=iterations)
    expected = loop_over_classes(scores.float().numpy(), labels.numpy(), num_classes, iterations=iterations)
    np.testing.assert_allclose(plan.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_classes", [1, 10, 300])
def test_at_size_the_plan_and_the_hard_assignment_agree_with_the_loop(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    scores = 1.8 * torch.rand(3000, 4, generator=generator) - 1 + torch.tensor([0.2, 0.1, 0.0, 0.0])
    labels = torch.randint(num_classes, (3000,), generator=generator)
    expected = loop_over_classes(scores.numpy(), labels.numpy(), num_classes)
    np.testing.assert_allclose(sinkhorn(scores, labels, num_classes).numpy(), expected, rtol=0, atol=1e-5)
    best_two = np.sort(expected, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > 1e-5
    assert clear.mean() > 0.99
    chosen = assign(scores, labels, num_classes).numpy()
    np.testing.assert_array_equal(chosen[clear], expected.argmax(1)[clear])
    assert (chosen != scores.numpy().argmax(1)).mean() > 0.02  # balance decides otherwise than nearness: no alias


@given(problems(), st.integers(1, 5), st.sampled_from([1.0, 0.05, 1 / LARGEST_EXPONENT]))
def test_the_plan_of_cosines_is_the_same_but_for_a_factor_of_each_sample(problem, iterations, epsilon):
    scores, labels, num_classes = problem
    if len(scores):
        scores[0], scores[-1] = 1.0, -1.0
        scores[len(scores) // 2, :1] = -1.0
    found = _plan_of_cosines(scores.float(), labels, num_classes, epsilon, iterations).T
    expected = sinkhorn(scores, labels, num_classes, epsilon, iterations)
    torch.testing.assert_close((found / found.sum(1, keepdim=True)).double(), expected, rtol=0, atol=2e-5)


def test_cosines_are_assigned_as_any_scores_are():
    generator = torch.Generator().manual_seed(0)
    scores, labels = 2 * torch.rand(3000, 4, generator=generator) - 1, torch.arange(3000) % 7
    for epsilon in (0.05, 1 / LARGEST_EXPONENT, 1e-3):  # the last leaves float32's range, and goes by logarithms
        assigned = (assign(scores, labels, 7, epsilon=epsilon, cosines=each) for each in (False, True))
        assert torch.equal(*assigned)
    assert torch.equal(assign(scores, labels, 7, iterations=0, cosines=True), scores.argmax(1))
    with OperatorCount() as by_logarithms:
        assign(scores, labels, 7)
    with OperatorCount() as directly:
        assign(scores, labels, 7, cosines=True)
    assert directly.calls < 0.55 * by_logarithms.calls


@pytest.mark.parametrize("alike", [-1.0, 1.0])
def test_the_hardest_cosines_lose_no_mass(alike):
    """A class of 100,000 samples at one end of the range and one at the other, at the smallest epsilon."""
    scores = torch.full((100_000, 4), alike)
    scores[0] = -alike
    labels = torch.zeros(100_000, dtype=torch.long)
    plan = _plan_of_cosines(scores, labels, 1, 1 / LARGEST_EXPONENT, 50)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan / plan.sum(0), torch.full((4, 100_000), 0.25))


@given(problems(at_least=1), st.integers(0, 2**32 - 1))
def test_the_converged_plan_is_the_best_balanced_one(problem, seed):
    scores, labels, num_classes = problem
    epsilon = 1.0

    def worth(plan):
        return (plan * scores).sum() - epsilon * torch.special.xlogy(plan, plan).sum()

    other_scores = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best, other = (sinkhorn(each, labels, num_classes, epsilon, 100) for each in (scores, other_scores))
    assert worth(best) >= worth(other) - 1e-6


@given(problems(), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_shift_of_a_sub_centroids_scores_changes_nothing(problem, iterations, seed):
    scores, labels, num_classes = problem
    generator = torch.Generator().manual_seed(seed)
    shift = 4 * torch.rand(num_classes, scores.shape[1], generator=generator, dtype=torch.float64) - 2
    plan = sinkhorn(scores, labels, num_classes, iterations=iterations)
    shifted = sinkhorn(scores + shift[labels], labels, num_classes, iterations=iterations)
    torch.testing.assert_close(shifted, plan, rtol=0, atol=1e-10)


@given(problems(), st.integers(0, 2**32 - 1))
def test_a_shift_of_a_samples_scores_changes_nothing_in_the_limit(problem, seed):
    scores, labels, num_classes = problem
    shift = torch.rand(len(scores), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for iterations in (0, 100):  # a softmax, and converged; in between the columns, brought to mass first, feel it
        plan = sinkhorn(scores, labels, num_classes, 1.0, iterations)
        shifted = sinkhorn(scores + shift, labels, num_classes, 1.0, iterations)
        torch.testing.assert_close(shifted, plan, rtol=0, atol=1e-6)


@given(problems(), st.integers(0, 2**32 - 1))
def test_order_and_names_do_not_matter(problem, seed):
    scores, labels, num_classes = problem
    plan = sinkhorn(scores, labels, num_classes)
    rng = np.random.default_rng(seed)
    samples, columns, names = (torch.from_numpy(rng.permutation(n)) for n in (*scores.shape, num_classes))
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(sinkhorn(scores[samples], labels[samples], num_classes), plan[samples], **close)
    torch.testing.assert_close(sinkhorn(scores[:, columns], labels, num_classes), plan[:, columns], **close)
    torch.testing.assert_close(sinkhorn(scores, names[labels], num_classes), plan, **close)


def test_a_class_does_not_feel_the_others():
    scores, labels = torch.rand(60, 4), torch.arange(60) % 3
    together = sinkhorn(scores, labels, 3)
    for c in range(3):
        alone = sinkhorn(scores[labels == c], torch.zeros(20, dtype=torch.long), 1)
        torch.testing.assert_close(together[labels == c], alone, rtol=0, atol=1e-6)


def test_clean_clusters_are_found_whole():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(4, 64, generator=generator), dim=1)
    cluster = torch.arange(256) % 4
    x = torch.nn.functional.normalize(centres[cluster] + 0.05 * torch.randn(256, 64, generator=generator), dim=1)
    labels = torch.zeros(256, dtype=torch.long)
    assert torch.equal(assign(x @ centres.T, labels, 1), cluster)


def test_where_balance_and_nearness_disagree_the_column_gets_its_share():
    scores = torch.tensor([[0.9, 0.5], [0.9, 0.4], [0.9, 0.3], [0.9, 0.2]])  # all four are nearest to the first
    labels = torch.zeros(4, dtype=torch.long)
    assert assign(scores, labels, 1, "nearest").tolist() == [0, 0, 0, 0]
    assert assign(scores, labels, 1, iterations=50).tolist() == [1, 1, 0, 0]


# The ends of the range


def test_no_samples():
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert sinkhorn(*empty, 3).shape == (0, 4)
    for method in ASSIGNMENTS:
        assert assign(*empty, 3, method).shape == (0,)
    assert torch.equal(class_logsumexp(empty[0].T, empty[1], 3), torch.full((4, 3), -torch.inf))


def test_one_sub_centroid_takes_all():
    assert torch.equal(sinkhorn(torch.rand(5, 1), torch.tensor([0, 1, 1, 3, 3]), 4), torch.ones(5, 1))


def test_one_sample_is_shared_out_evenly():
    plan = sinkhorn(torch.tensor([[0.9, -0.3, 0.1, 0.0]]), torch.tensor([2]), 5)
    torch.testing.assert_close(plan, torch.full((1, 4), 0.25))


def test_equal_scores_are_shared_out_evenly():
    plan = sinkhorn(torch.full((12, 4), 0.7), torch.arange(12) % 3, 3)
    torch.testing.assert_close(plan, torch.full((12, 4), 0.25))


def test_no_iteration_is_a_softmax():
    scores, labels = torch.randn(20, 3), torch.randint(4, (20,))
    plan = sinkhorn(scores, labels, 4, epsilon=0.2, iterations=0)
    torch.testing.assert_close(plan, (scores / 0.2).softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_float32_out(dtype):
    scores = (2 * torch.rand(50, 4) - 1).to(dtype)
    scores[0] = 1.0  # exp(1 / 0.05) is 4.9e8, and half precision ends at 65504
    labels = torch.arange(50) % 3
    plan = sinkhorn(scores, labels, 3)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, sinkhorn(scores.float(), labels, 3))
    assert torch.equal(assign(scores, labels, 3), plan.argmax(1))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_large_scores_neither_overflow_nor_lose_mass(scale):
    scores, labels = scale * torch.randn(200, 4), torch.arange(200) % 7
    scores[:14] = scale  # ties, of which rounding must leave halves and quarters
    plan = sinkhorn(scores, labels, 7)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(1), torch.ones(200), rtol=0, atol=1e-5)


def test_under_autocast_nothing_changes():
    scores, labels = torch.rand(50, 4), torch.arange(50) % 3
    expected = sinkhorn(scores, labels, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(scores, labels, 3), expected)


def test_float64_stays_float64():
    assert sinkhorn(torch.rand(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.long), 1).dtype == torch.float64


def test_no_gradient_is_kept():
    assert not sinkhorn(torch.rand(5, 2, requires_grad=True), torch.zeros(5, dtype=torch.long), 1).requires_grad


def test_the_input_is_left_alone():
    scores, labels = torch.rand(30, 4), torch.arange(30) % 3
    before = scores.clone()
    sinkhorn(scores, labels, 3)
    assert torch.equal(scores, before)


def test_nothing_with_samples_and_classes_in_its_shape_is_made():
    scores, labels = torch.rand(4000, 4), torch.randint(1000, (4000,))
    with LargestTensor() as largest:
        sinkhorn(scores, labels, 1000)
    assert largest.numel <= scores.numel(), largest.shape


# The pieces


@given(problems(scale=1e3))
def test_class_logsumexp(problem):
    values, labels, num_classes = problem
    found = class_logsumexp(values.T, labels, num_classes)
    for c in range(num_classes):
        torch.testing.assert_close(found[:, c], values[labels == c].logsumexp(0))


def test_all_finite():
    x = torch.zeros(3, 4)
    assert all_finite(x)
    assert all_finite(torch.zeros(0, 4))
    for wrong in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            spoilt = x.to(dtype)
            spoilt[1, 2] = wrong
            assert not all_finite(spoilt)


def test_random_assignment_is_even_and_repeats_with_its_generator():
    scores, labels = torch.rand(4000, 4), torch.zeros(4000, dtype=torch.long)
    first, again = (assign(scores, labels, 1, "random", generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert (torch.bincount(first, minlength=4) - 1000).abs().max() < 150  # five standard deviations
    assert (first == scores.argmax(1)).float().mean() < 0.3


# Bad input


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
)
def test_any_integers_are_labels(dtype):
    scores, labels = torch.rand(9, 2), torch.arange(9) % 3
    assert torch.equal(sinkhorn(scores, labels.to(dtype), 3), sinkhorn(scores, labels, 3))
    assert torch.equal(assign(scores, labels.to(dtype), 3), assign(scores, labels, 3))
    check_labels(labels.to(dtype), 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), "labels must be integers, got torch.float32"),
        (torch.tensor([True, False]), "labels must be integers, got torch.bool"),
        (torch.tensor([0j, 1j]), "labels must be integers, got torch.complex64"),
        (torch.tensor([0, 3]), "labels must lie in [0, 2] for 3 classes, found 3"),
        (torch.tensor([-1, 9]), "labels must lie in [0, 2] for 3 classes, found -1"),
        (torch.tensor([0, 255], dtype=torch.uint8), "labels must lie in [0, 2] for 3 classes, found 255"),
        (torch.tensor([0]), "scores must be (N, K) and labels (N,), got (2, 4) and (1,)"),
        (torch.tensor([[0], [1]]), "scores must be (N, K) and labels (N,), got (2, 4) and (2, 1)"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sinkhorn(torch.rand(2, 4), labels, 3)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("scores", "changes", "message"),
    [
        (torch.rand(2), {}, "scores must be (N, K) and labels (N,), got (2,) and (2,)"),
        (torch.rand(2, 0), {}, "scores need at least one column: K must be 1 or more"),
        (torch.rand(2, 4), {"epsilon": 0}, "epsilon must be positive, got 0"),
        (torch.rand(2, 4), {"epsilon": float("nan")}, "epsilon must be positive, got nan"),
        (torch.rand(2, 4), {"iterations": -1}, "iterations must be 0 or more, got -1"),
        (
            torch.tensor([[0.1, torch.nan], [0.0, 0.0]]),
            {},
            "scores contain NaN or infinity; check the embeddings they come from",
        ),
        (
            torch.tensor([[0.1, torch.inf], [0.0, 0.0]]),
            {},
            "scores contain NaN or infinity; check the embeddings they come from",
        ),
    ],
)
def test_bad_scores_and_settings(scores, changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sinkhorn(scores, torch.tensor([0, 1]), 3, **changes)
    assert str(error.value) == message


def test_unknown_assignment():
    with pytest.raises(ValueError, match=r"^assignment must be one of sinkhorn, nearest, random, got 'kmeans'$"):
        assign(torch.rand(2, 4), torch.tensor([0, 1]), 3, "kmeans")
