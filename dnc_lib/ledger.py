"""The ledger: what is claimed, what was published, what was run, and the verdict that follows.

Claims and published numbers come from :mod:`dnc_lib.claims`, the runs from :mod:`dnc_lib.records`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .claims import Claim, Published, as_printed, load_claims, load_literature
from .records import Record, canonical_arm, load_results, validate
from .statistics import paired, verdict

__all__ = [
    "Claim", "Difference", "Published", "Record", "Row", "Verdict", "judge", "ledger", "load_claims",
    "load_literature", "load_results", "pairs", "runs_of", "validate",
]  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """What one source reports of both arms of a claim, for one network.

    Attributes:
        network: in words.
        source: see :class:`Published`.
        verified: ``seen`` if both numbers were.
        value: first arm minus second, in points; ``None`` where one of them is not known.
    """

    network: str
    source: str
    verified: str
    value: float | None

    @property
    def text(self) -> str:
        """The difference as it is printed."""
        return as_printed(self.value, self.verified, signed=True)


@dataclass(frozen=True)
class Verdict:
    """What the runs of one recipe say about one claim.

    Attributes:
        claim: that is judged.
        recipe: of the runs; empty where there are none.
        n: number of pairs.
        mean: of the differences, in points; ``None`` without a pair.
        low: lower end of the 95 % interval of the mean; ``None`` with fewer than two pairs.
        high: upper end.
        p: of the two-sided sign-flip test; ``None`` without a pair.
        verdict: in words, see :func:`dnc_lib.statistics.verdict`.
        seeds: (n,) of the pairs.
        first: (n,) scores of the claim's first arm.
        second: (n,) scores of the second.
        hardware: what they ran on, each kind once.
        commits: of the code that ran them, each once; see :class:`dnc_lib.records.Record`.
    """

    claim: Claim
    recipe: str
    n: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = "not run"
    seeds: tuple[int, ...] = ()
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    hardware: tuple[str, ...] = ()
    commits: tuple[str | None, ...] = ()

    @property
    def differences(self) -> list[float]:
        """(n,) first arm minus second, one a seed, in points."""
        return [a - b for a, b in zip(self.first, self.second, strict=True)]


@dataclass(frozen=True)
class Row:
    """A line of the ledger: a claim, a recipe, what was published of them and what we found."""

    claim: Claim
    recipe: str
    published: tuple[Difference, ...]
    ours: Verdict


# --- judging --------------------------------------------------------------------------------------------------------


def runs_of(records: Iterable[Record], recipe: str, arm: str) -> dict[int, Record]:
    """The records of one arm of a recipe, by seed; those kept apart are left out.

    Args:
        records: from :func:`load_results`.
        recipe: as a record names it.
        arm: in any spelling that :func:`dnc_lib.recipes.parse_arm` reads.

    Raises:
        ValueError: where two records of a seed disagree: which of them counts is not for a program to choose.
    """
    found: dict[int, Record] = {}
    name = None
    for record in records:
        if record.apart or record.recipe != recipe:
            continue
        name = name or canonical_arm(arm, recipe)
        if record.arm != name:
            continue
        other = found.setdefault(record.seed, record)
        if any(other.scores[metric] != record.scores[metric] for metric in {*other.scores} & {*record.scores}):
            raise ValueError(
                f"{other.file} and {record.file} both hold seed {record.seed} of {recipe}, arm {record.arm}, with "
                "different scores: keep one of them"
            )
    return dict(sorted(found.items()))


def pairs(records: Sequence[Record], recipe: str, arms: Sequence[str]) -> list[tuple[Record, Record]]:
    """The records of two arms that share a seed, in the order of the seeds.

    Whatever else decides a training is equal: where it is not, records have another recipe or another arm.

    Args:
        records: from :func:`load_results`.
        recipe: as a record names it.
        arms: two, see :func:`runs_of`.

    Raises:
        ValueError: where two records of a seed disagree, or the two of a pair did not see the same data.
    """
    first, second = (runs_of(records, recipe, arm) for arm in arms)
    found = [(first[seed], second[seed]) for seed in first if seed in second]
    for a, b in found:
        for part in {**a.data, **b.data}:
            if a.data.get(part) != b.data.get(part):
                raise ValueError(
                    f"{a.file} and {b.file} cannot be paired: they saw different data ({part}: digests "
                    f"{a.data.get(part)} and {b.data.get(part)})"
                )
    return found


def judge(claim: Claim, records: Sequence[Record]) -> list[Verdict]:
    """The verdicts on a claim: one for each recipe with a pair, or a single ``not run``.

    Raises:
        ValueError: as :func:`pairs`, or where a record lacks the claim's metric.
    """
    names = sorted({record.recipe for record in records if record.dataset == claim.dataset and not record.apart})
    if claim.metric == "accuracy":  # on some of the classes it says nothing of the whole
        names = [name for name in names if " leave_out=" not in name]
    verdicts = [_judge(claim, records, name) for name in names]
    return [each for each in verdicts if each.n] or [Verdict(claim, "")]


def ledger(claims: Iterable[Claim], records: Sequence[Record], literature: Sequence[Published] = ()) -> list[Row]:
    """A row for each claim and recipe that was run or that would reproduce a published difference.

    Recipes with a published difference come first, in the order of the literature.

    Raises:
        ValueError: as :func:`judge`.
    """
    rows = []
    for claim in claims:
        published = _differences(claim, literature)
        found = {each.recipe: each for each in judge(claim, records)}
        if published:
            found.pop("", None)  # the recipes that would decide it say more than a row without any
        for recipe in dict.fromkeys([*published, *found]):
            ours = found.get(recipe, Verdict(claim, recipe))
            rows.append(Row(claim, recipe, tuple(published.get(recipe, ())), ours))
    return rows


def _judge(claim: Claim, records: Sequence[Record], recipe: str) -> Verdict:
    if len({canonical_arm(arm, recipe) for arm in claim.arms}) == 1:  # by this recipe the two arms are one
        return Verdict(claim, recipe)
    found = pairs(records, recipe, claim.arms)
    if not found:
        return Verdict(claim, recipe)
    members = [record for pair in found for record in pair]
    if not any(claim.metric in record.scores for record in members):  # these were not asked for it
        return Verdict(claim, recipe)
    for record in members:
        if claim.metric not in record.scores:
            raise ValueError(f"{record.file} has no {claim.metric}, which the claim {claim.id} is about")
    first, second = (tuple(record.scores[claim.metric] for record in arm) for arm in zip(*found, strict=True))
    result = paired(first, second)
    several = result.n > 1  # one pair says nothing of its spread
    return Verdict(
        claim,
        recipe,
        result.n,
        result.mean,
        result.low if several else None,
        result.high if several else None,
        result.p,
        verdict([a - b for a, b in zip(first, second, strict=True)], claim.margin, claim.pairs),
        tuple(record.seed for record, _ in found),
        first,
        second,
        tuple(sorted({record.hardware for record in members})),
        tuple(dict.fromkeys(record.commit for record in members)),
    )


def _differences(claim: Claim, literature: Sequence[Published]) -> dict[str, list[Difference]]:
    """What each source reports of both arms of a claim, by the recipe that would reproduce the first."""
    known = [entry for entry in literature if (entry.dataset, entry.metric) == (claim.dataset, claim.metric)]
    found: dict[str, list[Difference]] = {}
    for a in known:
        for b in known:
            if (a.arm, b.arm) == claim.arms and (a.source, a.network) == (b.source, b.network):
                value = None if None in (a.value, b.value) else round(a.value - b.value, 6)
                verified = "seen" if a.verified == b.verified == "seen" else "recalled"
                found.setdefault(a.recipe, []).append(Difference(a.network, a.source, verified, value))
    return found
