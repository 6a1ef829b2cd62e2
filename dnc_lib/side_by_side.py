"""Several comparisons in one table, judged by the ledger's rule, with what their number costs."""

from collections.abc import Mapping, Sequence

from .ledger import pairs as pairs_of
from .records import Record
from .statistics import PAIRS, holm, paired, verdict

#: What :func:`outcome` calls the verdicts of :func:`dnc_lib.statistics.verdict`, of the first arm beside the second.
WORDS = {
    "not run": "not run yet",
    "held here": "above",
    "contradicted on this recipe": "below",
    "equivalent": "level",
    "inconclusive": "open",
}

#: Said of pairs that are there and too few.
EARLY = "too early"


def differences(
    records: Sequence[Record], recipe: str, first: tuple[str, str], second: tuple[str, str]
) -> list[float]:
    """First minus second of each pair of trainings, as the ledger pairs them, in points.

    Args:
        records: from :func:`dnc_lib.records.load_results`.
        recipe: as a record names it.
        first: an arm and one of its scores; the two sides may be one arm, or one score.
        second: the other.

    Returns:
        One a seed; those whose training has not been asked for the score are left out.
    """
    (_, ours), (_, theirs) = first, second
    found = pairs_of(records, recipe, (first[0], second[0]))
    return [a.scores[ours] - b.scores[theirs] for a, b in found if ours in a.scores and theirs in b.scores]


def outcome(differences: Sequence[float], margin: float, pairs: int = PAIRS, words: Mapping[str, str] = WORDS) -> str:
    """What paired differences say, in a word for a table.

    Args:
        differences: (n,) first minus second, one a seed; may be empty.
        margin: differences smaller than this do not matter.
        pairs: with fewer it is too early.
        words: for each verdict of :func:`dnc_lib.statistics.verdict`.
    """
    if 0 < len(differences) < pairs:
        return EARLY
    return words[verdict(differences, margin, pairs)]


def adjusted(rows: Sequence[Sequence[float]]) -> list[float | None]:
    """Holm's p of the t test of each row of differences, for all rows together that have two pairs or more.

    Args:
        rows: of differences; a row may be empty.

    Returns:
        One a row; ``None`` for a row without an interval.
    """
    tested = [paired(row, [0.0] * len(row)).p_t if len(row) > 1 else None for row in rows]
    corrected = iter(holm([p for p in tested if p is not None]))
    return [None if p is None else next(corrected) for p in tested]


def side_by_side(
    rows: Mapping[str, Sequence[float]],
    margin: float,
    pairs: int = PAIRS,
    words: Mapping[str, str] = WORDS,
) -> str:
    """A table of paired comparisons: mean difference, 95 % interval, pairs, p, Holm's p, and what it says.

    The t interval decides; ``p`` is the sign-flip test's, which needs no normal distribution. ``Holm`` is the t
    test's p after the correction for all rows of the table: below 0.05 a row stands although so many were asked.

    >>> print(side_by_side({"dnc - softmax": [0.5, 0.6], "dnc - cosine": []}, margin=0.3))
                     mean  95 % interval     pairs       p    Holm
    dnc - softmax   +0.55  -0.09 to +1.19        2     0.5   0.058  too early
    dnc - cosine                                                    not run yet
    1 comparison

    Args:
        rows: name to (n,) differences, first minus second.
        margin: see :func:`outcome`, as the next two.
        pairs: with fewer it is too early.
        words: for the last column.
    """
    width = max(map(len, rows), default=0)
    corrected = adjusted(list(rows.values()))
    lines = [f"{'':{width}}{'mean':>8}  {'95 % interval':<18}{'pairs':>5}{'p':>8}{'Holm':>8}"]
    for (name, differences), holms in zip(rows.items(), corrected, strict=True):
        said = outcome(differences, margin, pairs, words)
        if not len(differences):
            lines.append(f"{name:{width}}{'':49}  {said}")
            continue
        found = paired(differences, [0.0] * len(differences))
        several = found.n > 1
        interval = f"{found.low:+.2f} to {found.high:+.2f}" if several else "none"
        p, after = (f"{found.p:.2g}", f"{holms:.2g}") if several else ("", "")
        lines.append(f"{name:{width}}{found.mean:+8.2f}  {interval:<18}{found.n:>5}{p:>8}{after:>8}  {said}")
    number = sum(p is not None for p in corrected)
    lines.append(f"{number} comparison{'s' * (number != 1)}")
    return "\n".join(lines)
