"""The statistics agree with SciPy's, with enumeration, with simulation, and say what is wrong with bad input."""

import itertools
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from dnc_lib import statistics
from dnc_lib.statistics import VERDICTS, detectable, paired, pairs_needed, sign_flip, unpaired, verdict

# Scores as they come: percentages of 10,000 images, in hundredths of a point. So ties and zeros occur.
score = st.integers(8000, 10000).map(lambda hundredths: hundredths / 100)
scores = st.lists(score, min_size=2, max_size=12)
both_arms = st.integers(2, 12).flatmap(lambda n: st.tuples(*2 * [st.lists(score, min_size=n, max_size=n)]))


def differences_of(low, high):
    return st.lists(st.integers(-300, 300).map(lambda hundredths: hundredths / 100), min_size=low, max_size=high)


def flip_by_hand(differences) -> float:
    """All 2^n flips, in whole hundredths, so that nothing is rounded."""
    units = [round(100 * d) for d in differences]
    flips = [abs(sum(map(int.__mul__, signs, units))) for signs in itertools.product((-1, 1), repeat=len(units))]
    return sum(flip >= abs(sum(units)) for flip in flips) / len(flips)


# --- the sign-flip test


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.3], 1.0), ([0.1, 0.2, 0.3], 0.25), ([0.1, 0.2, -0.3], 1.0), ([-0.1, 0.2, 0.3], 0.5), ([0.0, 0.0], 1.0)],
)
def test_sign_flip_by_hand(differences, p):
    # [-.1, .2, .3]: sums of the eight flips are +-.6, +-.4, +-.2, 0, 0; four of them are .4 or more from 0.
    assert sign_flip(differences) == p


@given(differences_of(1, 9))
def test_sign_flip_is_the_count_over_all_flips(differences):
    assert sign_flip(differences) == flip_by_hand(differences)


@settings(max_examples=25, deadline=None)
@given(differences_of(2, 11))
def test_sign_flip_agrees_with_scipy(differences):
    theirs = stats.permutation_test(
        (np.array(differences),), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip(differences) == pytest.approx(theirs.pvalue)


@given(differences_of(1, 30), st.randoms())
def test_sign_flip_has_the_symmetries_of_the_question(differences, random):
    p = sign_flip(differences)
    assert 2 / 2 ** len(differences) <= p <= 1
    assert sign_flip([-d for d in differences]) == p  # swapping the arms
    assert sign_flip([1000 * d for d in differences]) == p  # another unit
    assert sign_flip(random.sample(differences, len(differences))) == p  # another order of the seeds


@given(differences_of(1, 30).filter(lambda ds: all(d > 0 for d in ds) and ds))
def test_sign_flip_reaches_its_floor_when_all_signs_agree(differences):
    assert sign_flip(differences) == 2 / 2 ** len(differences)


@given(differences_of(1, 12), st.floats(0, 5))
def test_sign_flip_falls_as_the_gain_grows(differences, gain):
    assume(sum(differences) > 0)
    assert sign_flip([d + gain for d in differences]) <= sign_flip(differences)


def test_sign_flip_counts_forty_pairs_exactly_in_little_memory():
    signs = [-1] * 10 + [1] * 30  # every flip's sum is even: p is a binomial tail, known in closed form
    tracemalloc.start()
    p = sign_flip(signs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert p == pytest.approx(stats.binomtest(10, 40).pvalue, rel=1e-12)
    assert peak < 200 * 2**20, f"{peak / 2**20:.0f} MiB"


def test_sign_flip_draws_beyond_what_it_counts():
    signs = [-1] * 18 + [1] * 42
    assert len(signs) > statistics.EXACT_PAIRS
    exact = stats.binomtest(18, 60).pvalue  # 0.0027
    error = math.sqrt(exact * (1 - exact) / statistics.DRAWS)
    assert abs(sign_flip(signs) - exact) < 5 * error
    assert sign_flip(signs) == sign_flip(signs)  # from a seed
    assert sign_flip([1] * 60) == 1 / (statistics.DRAWS + 1)  # the observed one counts: never 0


def test_sign_flip_is_right_about_chance():
    """Without a difference p is below 0.05 in at most 5 % of experiments: 3.1 % with six pairs (2 flips of 64)."""
    rng = np.random.default_rng(0)
    alarms = np.mean([sign_flip(d) < 0.05 for d in rng.normal(size=(4000, 6))])
    assert 0.022 < alarms < 0.041


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_sign_flip_neither_overflows_nor_underflows(scale):
    assert sign_flip([-1 * scale, 2 * scale, 3 * scale]) == 0.5


# --- the paired interval


@given(both_arms, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_paired_agrees_with_scipy(arms, level):
    first, second = map(np.array, arms)
    assume(np.std(first - second) > 1e-6)
    result = paired(first, second, level)
    theirs = stats.ttest_rel(first, second).confidence_interval(level)
    assert (result.low, result.high) == pytest.approx(tuple(theirs))
    assert result.n == len(first)
    assert result.mean == pytest.approx(np.mean(first - second))
    assert result.sd == pytest.approx(np.std(first - second, ddof=1))
    assert result.p == flip_by_hand(first - second)


@given(both_arms, st.floats(-50, 50))
def test_paired_shifts_and_swaps(arms, shift):
    first, second = map(np.array, arms)
    result, moved, swapped = paired(first, second), paired(first + shift, second), paired(second, first)
    assert (moved.mean, moved.low, moved.high) == pytest.approx(
        (result.mean + shift, result.low + shift, result.high + shift), abs=1e-9
    )
    assert moved.sd == pytest.approx(result.sd, abs=1e-9)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-result.mean, -result.high, -result.low))
    assert swapped.p == result.p


@given(both_arms)
def test_a_higher_level_gives_a_wider_interval(arms):
    wide, narrow = paired(*arms, level=0.99), paired(*arms, level=0.9)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """95 %, give or take 1.6. With four pairs 1.96 standard errors, the normal interval, would cover 85.5 %."""
    rng = np.random.default_rng(1)
    draws, truth = 3000, 0.2
    hits = 0
    for differences in rng.normal(truth, 0.3, (draws, 4)):
        result = paired(differences, np.zeros(4))
        hits += result.low <= truth <= result.high
    assert abs(hits / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)


def test_one_pair_shows_no_spread_and_is_no_error():
    result = paired([95.78], [95.55])
    assert result.n == 1
    assert result.mean == pytest.approx(0.23)
    assert math.isnan(result.sd)
    assert (result.low, result.high, result.p) == (-math.inf, math.inf, 1.0)


def test_equal_differences_give_an_interval_of_no_width():
    result = paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (result.sd, result.low, result.high, result.p) == (0.0, 1.0, 1.0, 0.25)


# --- the unpaired interval


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
def test_the_t_tests_p_and_its_interval_say_the_same(differences):
    assume(np.std(differences) > 1e-6)
    found = statistics.paired(differences, [0.0] * len(differences))
    assert found.p_t == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6, abs=1e-12)
    if abs(found.p_t - 0.05) > 1e-9:
        assert (found.p_t < 0.05) == (found.low > 0 or found.high < 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_rejects_what_its_steps_reject(p):
    """By its definition: in order of size, reject while p is at most level / (number left)."""
    adjusted = statistics.holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert max(adjusted) <= 1
    for level in (0.01, 0.05, 0.3):
        rejected, left = set(), len(p)
        for index in sorted(range(len(p)), key=lambda each: p[each]):
            if p[index] * left > level:
                break
            rejected.add(index)
            left -= 1
        assert {index for index, each in enumerate(adjusted) if each <= level} == rejected


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="p must lie"):
        statistics.holm([0.1, 1.5])


@given(scores, scores, st.sampled_from([0.8, 0.95]))
def test_unpaired_agrees_with_scipys_welch(first, second, level):
    assume(np.std(first) > 1e-6)
    assume(np.std(second) > 1e-6)
    result, theirs = unpaired(first, second, level), stats.ttest_ind(first, second, equal_var=False)
    assert (result.low, result.high) == pytest.approx(tuple(theirs.confidence_interval(level)))
    assert result.p == pytest.approx(theirs.pvalue)
    assert result.mean == pytest.approx(np.mean(first) - np.mean(second))
    assert (result.n_first, result.n_second) == (len(first), len(second))


def test_unpaired_with_one_run_in_an_arm():
    result = unpaired([90.0], [89.0, 91.0])
    assert (result.n_first, result.n_second, result.mean) == (1, 2, 0.0)
    assert (result.low, result.high) == (-math.inf, math.inf)
    assert math.isnan(result.p)


def test_unpaired_without_spread():
    assert unpaired([2.0, 2.0], [1.0, 1.0]) == statistics.Unpaired(2, 2, 1.0, 1.0, 1.0, 0.0)
    assert unpaired([1.0, 1.0], [1.0, 1.0]).p == 1.0


def test_pairing_pays_exactly_where_the_arms_move_together():
    rng = np.random.default_rng(0)
    seeds, noise = rng.normal(0, 0.5, 12), rng.normal(0, 0.1, (2, 12))
    together, apart = (90.2 + seeds + noise[0], 90 + seeds + noise[1]), rng.normal(0, 0.5, (2, 12))

    def width(result):
        return result.high - result.low

    assert width(paired(*together)) < width(unpaired(*together)) / 2
    assert width(paired(*apart)) > width(unpaired(*apart)) / 2


# --- power


@pytest.mark.parametrize("pairs", [2, 3, 6, 15, 100])
@pytest.mark.parametrize("power", [0.7, 0.8, 0.95])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_detectable_agrees_with_the_noncentral_t(pairs, power, level):
    noncentrality = detectable(0.3, pairs, power, level) * math.sqrt(pairs) / 0.3
    threshold = stats.t.isf((1 - level) / 2, pairs - 1)
    assert stats.nct.sf(threshold, pairs - 1, noncentrality) == pytest.approx(power, abs=1e-4)


def test_power_counts_both_tails():
    noncentrality = detectable(1.0, 10, power=0.6, level=0.5) * math.sqrt(10)
    threshold = stats.t.isf(0.25, 9)
    upper, lower = stats.nct.sf(threshold, 9, noncentrality), stats.nct.cdf(-threshold, 9, noncentrality)
    assert lower > 0.05
    assert upper + lower == pytest.approx(0.6, abs=1e-4)


def test_detectable_is_what_simulation_finds():
    rng = np.random.default_rng(0)
    sd, pairs, draws = 0.25, 6, 20_000
    differences = rng.normal(detectable(sd, pairs), sd, (draws, pairs))
    found = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
    assert abs(found - 0.8) < 4 * math.sqrt(0.8 * 0.2 / draws)  # the normal formula would give 0.63


@given(st.floats(0.01, 3), st.integers(2, 60), st.floats(0.2, 0.99), st.floats(0.85, 0.999))
@settings(max_examples=15, deadline=None)
def test_detectable_is_monotone_and_scales(sd, pairs, power, level):
    here = detectable(sd, pairs, power, level)
    assert detectable(sd, pairs + 1, power, level) < here
    assert detectable(2 * sd, pairs, power, level) == pytest.approx(2 * here)
    assert detectable(sd, pairs, (1 + power) / 2, level) > here


@given(st.floats(0.05, 2), st.floats(0.05, 2), st.floats(0.3, 0.95))
@settings(max_examples=15, deadline=None)
def test_pairs_needed_is_the_smallest_number_that_does(difference, sd, power):
    pairs = pairs_needed(difference, sd, power)
    assert pairs >= 2
    assert detectable(sd, pairs, power) <= difference
    assert pairs == 2 or detectable(sd, pairs - 1, power) > difference


def test_pairs_needed_by_a_textbook_case():
    """A difference of half a standard deviation, 80 %, two-sided 5 %: 34 pairs in any table of the paired t test."""
    assert pairs_needed(0.5, 1.0) == 34
    assert pairs_needed(1.0, 1.0) == 10
    assert pairs_needed(0.2, 0.0) == 2


def test_power_at_its_ends():
    assert detectable(0.3, 1) == math.inf
    assert detectable(0.0, 2) == 0.0
    many = pairs_needed(1e-3, 1.0)  # so many that t is normal
    assert many == pytest.approx(((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 1e3) ** 2, rel=1e-4)


# --- the verdict


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], "not run"),
        ([0.5] * 5, "inconclusive"),
        ([0.4, 0.5, 0.6, 0.5, 0.4, 0.6], "held here"),
        ([-0.4, -0.5, -0.6, -0.5, -0.4, -0.6], "contradicted on this recipe"),
        ([0.1, -0.1, 0.1, -0.1, 0.1, -0.1], "equivalent"),
        ([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], "inconclusive"),
        ([0.11, 0.1, 0.09, 0.1, 0.11, 0.09], "held here"),  # above 0 comes first, though it is inside the margin
        ([0.0] * 6, "equivalent"),
    ],
)
def test_verdict(differences, expected):
    assert verdict(differences, margin=0.3, pairs=6) == expected


@given(differences_of(0, 8), st.floats(0.01, 3), st.integers(0, 8))
def test_verdict_follows_the_interval(differences, margin, pairs):
    said = verdict(differences, margin, pairs)
    assert said in VERDICTS
    assert (said == "not run") == (not differences)
    mirror = {"held here": "contradicted on this recipe", "contradicted on this recipe": "held here"}
    assert verdict([-d for d in differences], margin, pairs) == mirror.get(said, said)
    if said in ("held here", "contradicted on this recipe", "equivalent"):
        result = paired(differences, np.zeros(len(differences)))
        assert result.n >= max(pairs, 2)
        assert (result.low > 0) == (said == "held here")
        assert (result.high < 0) == (said == "contradicted on this recipe")
        if said == "equivalent":
            assert -margin < result.low <= 0 <= result.high < margin


def test_one_pair_never_decides():
    assert verdict([0.5], margin=0.3, pairs=1) == "inconclusive"


def test_margin_0_is_never_equivalent():
    assert verdict([0.0] * 6, margin=0, pairs=6) == "inconclusive"


# --- bad input

LEVEL = "level must be above 0 and below 1, got {} (95 percent is 0.95)"


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, math.nan])
def test_a_level_out_of_range(level):
    for call in (
        lambda: paired([1, 2], [1, 1], level),
        lambda: unpaired([1, 2], [1, 1], level),
        lambda: detectable(1.0, 2, level=level),
        lambda: verdict([], 0.3, 6, level),
    ):
        with pytest.raises(ValueError, match="level") as error:
            call()
        assert str(error.value) == LEVEL.format(level)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired([1, 2, 3], [1, 2]),
            "paired needs as many scores in the first arm as in the second, got 3 and 2: "
            "keep the seeds that both have, or use unpaired",
        ),
        (lambda: paired([], []), "first is empty: at least one number is needed"),
        (lambda: unpaired([1.0], []), "second is empty: at least one number is needed"),
        (lambda: sign_flip([]), "differences is empty: at least one number is needed"),
        (
            lambda: paired([1, 2, math.nan], [1, 2, 3]),
            "first must be finite numbers, got nan at place 2: leave failed runs out",
        ),
        (
            lambda: verdict([0.1, math.inf], 0.3, 2),
            "differences must be finite numbers, got inf at place 1: leave failed runs out",
        ),
        (lambda: sign_flip([[0.1, 0.2]]), "differences must be one row of numbers, got shape (1, 2)"),
        (lambda: verdict([0.1], -0.3, 6), "margin must be 0 or more, got -0.3"),
        (lambda: detectable(-1.0, 3), "sd must be 0 or more, got -1.0"),
        (lambda: detectable(math.nan, 3), "sd must be 0 or more, got nan"),
        (lambda: detectable(1.0, 0), "pairs must be a whole number, 1 or more, got 0"),
        (lambda: detectable(1.0, 2.5), "pairs must be a whole number, 1 or more, got 2.5"),
        (lambda: detectable(1.0, 3, power=1.0), "power must be above 1 - level, 0.05, and below 1, got 1.0"),
        (lambda: detectable(1.0, 3, power=0.04), "power must be above 1 - level, 0.05, and below 1, got 0.04"),
        (lambda: pairs_needed(0.0, 1.0), "difference must be above 0, got 0.0"),
        (lambda: pairs_needed(-0.2, 1.0), "difference must be above 0, got -0.2"),
        (
            lambda: pairs_needed(1e-9, 1.0),
            "no number of runs shows 1e-09 where one pair spreads by 1.0: see the units",
        ),
        (lambda: pairs_needed(0.2, -1.0), "sd must be 0 or more, got -1.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert str(error.value) == message


def test_the_module_needs_numpy_alone_until_a_quantile_is_asked_for():
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('statistics_of_runs', sys.argv[1]);"
        "m = u.module_from_spec(s); sys.modules[s.name] = m; s.loader.exec_module(m); m.sign_flip([0.1, 0.2]);"
        "print('scipy' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, statistics.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
