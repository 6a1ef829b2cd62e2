"""Is a difference between two arms more than luck? Paired runs, intervals, the sign-flip test, power and a verdict.

Accuracies and differences are in points (percent) everywhere, but nothing here depends on the unit. NumPy alone is
needed at import; the quantiles of t come from SciPy, imported where they are used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

#: Up to so many differences :func:`sign_flip` counts every flip; beyond, it draws ``DRAWS`` of them.
EXACT_PAIRS = 40
DRAWS = 99_999

#: What :func:`verdict` can say.
VERDICTS = ("not run", "inconclusive", "held here", "contradicted on this recipe", "equivalent")

#: Paired seeds without which nothing is decided, in the ledger and anywhere else: with fewer, all signs alike would
#: still come up more than once in twenty times by luck (2 / 2^5 = 0.062).
PAIRS = 6

_CHUNK = 2**20  # signs or sums in memory at a time
_QUANTILES = 4096  # of the chi-square distribution, to average over
_ROUNDING = 1e-9  # sums closer than this share of the largest possible one are equal


@dataclass(frozen=True)
class Paired:
    """Two arms over the same seeds.

    Attributes:
        n: pairs.
        mean: of the differences, first minus second.
        sd: standard deviation of the differences, from n - 1; NaN for one pair.
        low: lower end of the t interval for the mean difference; -inf for one pair.
        high: upper end.
        p: of the sign-flip test. If the arms were interchangeable, so that each difference could as well have had
            the other sign, a mean at least this far from 0 would come up with probability p. It is *not* the
            probability that the arms are equal, and a large p does not show that they are.
        p_t: of the two-sided t test whose interval this is: below 1 - level exactly where the interval leaves out 0;
            NaN for one pair.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    p_t: float


@dataclass(frozen=True)
class Unpaired:
    """Two arms whose runs have nothing in common.

    Attributes:
        n_first: runs of the first arm.
        n_second: runs of the second.
        mean: mean of the first minus mean of the second.
        low: lower end of Welch's interval; -inf where an arm has one run.
        high: upper end.
        p: of Welch's two-sided t test: how often two arms of equal mean would differ by this much; NaN where an arm
            has one run.
    """

    n_first: int
    n_second: int
    mean: float
    low: float
    high: float
    p: float


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided sign-flip test that paired differences are symmetric about 0.

    If the two arms were interchangeable, every difference could as well have come with the other sign, so all 2^n
    ways to flip signs would be equally likely. p is the share of them whose mean is at least as far from 0 as the
    observed one. The observed signs and their mirror image always count: p is 2 / 2^n at least, 0.25 with three
    pairs and 0.031 with six. No normal distribution is assumed (Fisher, *The Design of Experiments*, 1935).

    Every flip is counted up to ``EXACT_PAIRS`` differences; beyond, ``DRAWS`` flips are drawn from a fixed seed and
    the observed one is added to them, so that p is never 0.

    Args:
        differences: (n,) at least one.

    Returns:
        p.

    Raises:
        ValueError: without a difference, or where one is not finite.
    """
    values = np.abs(_numbers("differences", differences))
    signs = np.sign(np.asarray(differences, dtype=float))
    if not values.max():
        return 1.0
    values = values / values.max()  # flips look at ratios only, and sums of huge numbers would overflow
    least = abs(float(values @ signs)) - _ROUNDING * float(values.sum())
    if least <= 0:  # every flip is as far from 0 as this
        return 1.0
    return _count_all(values, least) if len(values) <= EXACT_PAIRS else _draw(values, least)


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Paired:
    """Compare two arms by the differences of runs that share a seed.

    The interval is Student's: mean plus or minus t * sd / sqrt(n), with n - 1 degrees of freedom. Of intervals made
    so, ``level`` would hold the true mean difference, if the differences are about normal.

    Args:
        first: (n,) scores of the first arm, in the order of the seeds.
        second: (n,) scores of the second arm, in the same order.
        level: of the interval.

    Returns:
        See :class:`Paired`. Equal differences, sd 0, give an interval of no width.

    Raises:
        ValueError: for unequal lengths, no pair, a score that is not finite, or a level outside 0..1.
    """
    _check_share("level", level)
    if len(first) != len(second):
        raise ValueError(
            f"paired needs as many scores in the first arm as in the second, got {len(first)} and {len(second)}: "
            "keep the seeds that both have, or use unpaired"
        )
    differences = _numbers("first", first) - _numbers("second", second)
    return _interval(differences, level)


def unpaired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Unpaired:
    """Compare two arms whose runs share nothing, by Welch's interval: each arm has a spread of its own.

    Args:
        first: (n,) scores of the first arm.
        second: (m,) scores of the second arm.
        level: of the interval.

    Returns:
        See :class:`Unpaired`.

    Raises:
        ValueError: for an arm without a run, a score that is not finite, or a level outside 0..1.
    """
    _check_share("level", level)
    arms = _numbers("first", first), _numbers("second", second)
    sizes = tuple(len(arm) for arm in arms)
    mean = float(arms[0].mean() - arms[1].mean())
    result = partial(Unpaired, *sizes, mean)
    if min(sizes) == 1:
        return result(-math.inf, math.inf, math.nan)
    shares = [float(arm.var(ddof=1)) / len(arm) for arm in arms]
    error = math.sqrt(sum(shares))
    if not error:
        return result(mean, mean, 0.0 if mean else 1.0)
    weights = [(share / sum(shares)) ** 2 / (size - 1) for share, size in zip(shares, sizes, strict=True)]
    freedom = 1 / sum(weights)  # Welch and Satterthwaite
    from scipy.special import stdtr

    reach = _t(level, freedom) * error
    return result(mean - reach, mean + reach, float(2 * stdtr(freedom, -abs(mean) / error)))


def detectable(sd: float, pairs: int, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest true difference that so many pairs would probably show.

    That is the mean difference at which the paired t test at this level comes out significant with probability
    ``power``, from the noncentral t distribution.

    Args:
        sd: standard deviation of one paired difference.
        pairs: how many.
        power: wanted probability.
        level: 1 minus the rate of false alarms.

    Returns:
        The difference, in the unit of ``sd``; infinite for one pair.

    Raises:
        ValueError: for a negative sd, fewer pairs than 1, a level outside 0..1 or a power outside 1 - level..1.
    """
    _check_share("level", level)
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd must be 0 or more, got {sd}")
    if pairs != int(pairs) or pairs < 1:
        raise ValueError(f"pairs must be a whole number, 1 or more, got {pairs}")
    if not 1 - level < power < 1:
        raise ValueError(f"power must be above 1 - level, {1 - level:g}, and below 1, got {power}")
    if pairs == 1:
        return math.inf
    reached = _power_of_t(int(pairs) - 1, level)
    low, high = 0.0, 1.0
    while reached(high) < power:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < power else (low, middle)
    return high * sd / math.sqrt(pairs)


def pairs_needed(difference: float, sd: float, power: float = 0.8, level: float = 0.95) -> int:
    """The fewest pairs that would probably show a true difference of this size: ``detectable`` turned round.

    Args:
        difference: above 0.
        sd: standard deviation of one paired difference, in the same unit.
        power: see :func:`detectable`.
        level: see :func:`detectable`.

    Returns:
        The smallest n with ``detectable(sd, n) <= difference``, 2 at least.

    Raises:
        ValueError: as :func:`detectable`; and for a difference of 0 or less, or one below a hundred thousandth of sd.
    """
    if not (math.isfinite(difference) and difference > 0):
        raise ValueError(f"difference must be above 0, got {difference}")
    if math.isfinite(sd) and sd > 1e5 * difference:
        raise ValueError(f"no number of runs shows {difference} where one pair spreads by {sd}: see the units")
    high = 2
    while detectable(sd, high, power, level) > difference:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if detectable(sd, middle, power, level) > difference else (low, middle)
    return high


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of several tests, so that all of a family together err once in twenty times, not each (Holm 1979).

    The smallest p is multiplied by their number n, the next by n - 1, and so on; none may fall below the one before.

    Args:
        p: (n,) of the tests, in any order.

    Returns:
        (n,) in the same order, at most 1.

    Raises:
        ValueError: for one that is no probability.
    """
    for each in p:
        if not 0 <= each <= 1:
            raise ValueError(f"p must lie in [0, 1], got {each}")
    adjusted, highest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda each: p[each])):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = highest
    return adjusted


def verdict(differences: Sequence[float], margin: float, pairs: int = PAIRS, level: float = 0.95) -> str:
    """What paired runs say of the claim that the first arm beats the second.

    Args:
        differences: (n,) first minus second, one a seed; may be empty.
        margin: differences smaller than this do not matter; 0 or more.
        pairs: fewer pairs than this decide nothing. Both are written down before the runs.
        level: of the interval that decides.

    Returns:
        The first that fits: ``not run`` (no pair), ``inconclusive`` (fewer than ``pairs``), ``held here`` (the
        interval is above 0), ``contradicted on this recipe`` (below 0), ``equivalent`` (within the margin on either
        side), ``inconclusive``.

    Raises:
        ValueError: for a difference that is not finite, a negative margin, or a level outside 0..1.
    """
    _check_share("level", level)
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin must be 0 or more, got {margin}")
    if len(differences) == 0:
        return "not run"
    interval = _interval(_numbers("differences", differences), level)
    if interval.n < pairs:
        return "inconclusive"
    if interval.low > 0:
        return "held here"
    if interval.high < 0:
        return "contradicted on this recipe"
    return "equivalent" if -margin < interval.low and interval.high < margin else "inconclusive"


def _interval(differences: np.ndarray, level: float) -> Paired:
    n, mean, p = len(differences), float(differences.mean()), sign_flip(differences)
    if n == 1:
        return Paired(n, mean, math.nan, -math.inf, math.inf, p, math.nan)
    sd = float(differences.std(ddof=1))
    reach = _t(level, n - 1) * sd / math.sqrt(n)
    return Paired(n, mean, sd, mean - reach, mean + reach, p, _p_of_t(mean, sd / math.sqrt(n), n - 1))


def _p_of_t(mean: float, error: float, freedom: int) -> float:
    """Two-sided p of a mean with this standard error."""
    from scipy.special import stdtr

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stdtr(freedom, -abs(mean) / error))


def _t(level: float, freedom: float) -> float:
    """How many standard errors an interval reaches to either side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _power_of_t(freedom: int, level: float):
    """Probability of a significant two-sided t test, as a function of the true mean in standard errors.

    Given the estimated spread s (its square is chi-square over its freedom) the mean is significant when it is beyond
    t * s. That is a normal probability; we average it over the quantiles of s. SciPy's noncentral t gives the same
    where it converges, and NaN in the far tail.
    """
    from scipy.special import chdtri, ndtr

    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    threshold = _t(level, freedom) * np.sqrt(chdtri(freedom, shares) / freedom)
    return lambda mean: float((ndtr(mean - threshold) + ndtr(-mean - threshold)).mean())


def _count_all(values: np.ndarray, least: float) -> float:
    """Share of all 2^n sums of plus or minus ``values`` that are at least ``least`` from 0.

    A sum over all is a sum over one half of the values plus one over the other: 2^(n/2) sums each, one side sorted,
    and a binary search says how many of them lift a sum of the other side to ``least``. So 40 values need a million
    sums in memory, not 2^40. Sums come in mirrored pairs, hence twice the upper tail.
    """
    ours, theirs = _all_sums(values[: len(values) // 2]), np.sort(_all_sums(values[len(values) // 2 :]))
    too_small = np.searchsorted(theirs, np.sort(least - ours), side="left")
    return 2 * int((len(theirs) - too_small).sum()) / 2 ** len(values)


def _all_sums(values: np.ndarray) -> np.ndarray:
    """(2^n,) sums of plus or minus each of n values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _draw(values: np.ndarray, least: float) -> float:
    rng, beyond, left = np.random.default_rng(0), 1, DRAWS
    while left:
        rows = min(left, max(1, _CHUNK // len(values)))
        sums = rng.choice((-1.0, 1.0), (rows, len(values))) @ values
        beyond += int((np.abs(sums) >= least).sum())
        left -= rows
    return beyond / (DRAWS + 1)


def _numbers(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one row of numbers, got shape {array.shape}")
    if not len(array):
        raise ValueError(f"{name} is empty: at least one number is needed")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite numbers, got {array[index]} at place {index}: leave failed runs out")
    return array


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value} (95 percent is 0.95)")
