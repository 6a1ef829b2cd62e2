"""The ledger: what is claimed, what was published, what was run, and the verdict that follows.

Claims and published numbers come from :mod:`dnc_lib.claims`, the runs from :mod:`dnc_lib.records`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .claims import Claim, Published, as_printed, load_claims, load_literature
from .records import Record, canonical_arm, load_results, validate
from .statistics import holm, paired, verdict

__all__ = [
    "Claim", "Difference", "Family", "Published", "Record", "Row", "Verdict", "families", "judge", "ledger",
    "load_claims", "load_literature", "load_results", "pairs", "runs_of", "say", "unlike", "validate",
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
        p_t: of the t test whose interval this is; ``None`` with fewer than two pairs.
        verdict: in words, see :func:`dnc_lib.statistics.verdict`.
        seeds: (n,) of the pairs.
        first: (n,) scores of the claim's first arm.
        second: (n,) scores of the second.
        hardware: what they ran on, each kind once.
        commits: of the code that ran them, each once; see :class:`dnc_lib.records.Record`.
        unlike: runs of a common seed that are no pair, and in what they differ; see :func:`unlike`.
        beside: why this verdict stands beside the others; see :class:`dnc_lib.records.Record`.
    """

    claim: Claim
    recipe: str
    n: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_t: float | None = None
    verdict: str = "not run"
    seeds: tuple[int, ...] = ()
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    hardware: tuple[str, ...] = ()
    commits: tuple[str | None, ...] = ()
    unlike: tuple[str, ...] = ()
    beside: str = ""

    @property
    def differences(self) -> list[float]:
        """(n,) first arm minus second, one a seed, in points."""
        return [a - b for a, b in zip(self.first, self.second, strict=True)]


@dataclass(frozen=True)
class Family:
    """Verdicts that rest on common runs, so that one lucky run moves them all.

    Attributes:
        recipe: of the runs.
        verdicts: those that have an interval.
        adjusted: p of the t test of each after Holm's correction for all of the family.
    """

    recipe: str
    verdicts: tuple[Verdict, ...]
    adjusted: tuple[float, ...]


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
    """The records of two arms that share a seed and differ in nothing but the arm, in the order of the seeds.

    Recipe and seed are equal by their names; data, kind of device, number of processes and generation of the code are
    compared. What :func:`unlike` names is left out.

    Args:
        records: from :func:`load_results`.
        recipe: as a record names it.
        arms: two, see :func:`runs_of`.

    Raises:
        ValueError: where two records of a seed disagree.
    """
    return [both for both in _of_common_seeds(records, recipe, arms) if not _unlike(*both)]


def unlike(records: Sequence[Record], recipe: str, arms: Sequence[str]) -> list[str]:
    """In words, the runs of two arms that share a seed and yet are no pair, and in what they differ.

    Args:
        records: see :func:`pairs`, as the other two.
        recipe: as a record names it.
        arms: two.
    """
    found = _of_common_seeds(records, recipe, arms)
    return [f"seed {a.seed}: {what}" for a, b in found if (what := _unlike(a, b))]


def _of_common_seeds(records: Sequence[Record], recipe: str, arms: Sequence[str]) -> list[tuple[Record, Record]]:
    first, second = (runs_of(records, recipe, arm) for arm in arms)
    return [(first[seed], second[seed]) for seed in first if seed in second]


def _unlike(a: Record, b: Record) -> str:
    """What keeps two runs from being a pair; empty for a pair."""
    told = [f"{part} data" for part in {**a.data, **b.data} if a.data.get(part) != b.data.get(part)]
    for field, name in (("device", "device"), ("processes", "processes"), ("generation", "generation of the code")):
        ours, theirs = getattr(a, field), getattr(b, field)
        told += [f"{name} {ours} and {theirs}"] * (ours != theirs)
    return ", ".join(told)


def judge(claim: Claim, records: Sequence[Record]) -> list[Verdict]:
    """The verdicts on a claim: one for each recipe with runs of a common seed, or a single ``not run``.

    Raises:
        ValueError: as :func:`pairs`, or where a record lacks the claim's metric.
    """
    names = sorted({record.recipe for record in records if record.dataset == claim.dataset and not record.apart})
    if claim.metric == "accuracy":  # on some of the classes it says nothing of the whole
        names = [name for name in names if " leave_out=" not in name]
    verdicts = [_judge(claim, records, name) for name in names]
    return [each for each in verdicts if each.n or each.unlike] or [Verdict(claim, "")]


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
    found, strange = pairs(records, recipe, claim.arms), tuple(unlike(records, recipe, claim.arms))
    if not found:
        return Verdict(claim, recipe, unlike=strange)
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
        result.p_t if several else None,
        verdict([a - b for a, b in zip(first, second, strict=True)], claim.margin, claim.pairs),
        tuple(record.seed for record, _ in found),
        first,
        second,
        tuple(sorted({record.hardware for record in members})),
        tuple(dict.fromkeys(record.commit for record in members)),
        strange,
        members[0].beside,
    )


def say(found: Verdict) -> str:
    """A verdict as a sentence, with all that it rests on.

    Args:
        found: see :func:`judge`.
    """
    first, second = found.claim.arms
    where = f"On {found.recipe or found.claim.dataset}"
    if not found.n:
        return f"{where}: {first} against {second} was not run."
    unit = {"accuracy": "points", "miou": "points of mIoU"}.get(found.claim.metric, f"points of {found.claim.metric}")
    way = f"{abs(found.mean):.2f} {unit} {'above' if found.mean > 0 else 'below'}"
    rests = f"{found.n} pair{'s' * (found.n != 1)}"
    if found.low is not None:
        rests += f", 95 % interval {found.low:+.2f} to {found.high:+.2f}, sign-flip p = {found.p:.2g}"
    beside = f" It stands beside the others: {found.beside}." if found.beside else ""
    return f"{where}, {first} is {way} {second} ({rests}): {found.verdict}.{beside}"


def families(verdicts: Iterable[Verdict]) -> list[Family]:
    """Verdicts of one recipe that share an arm, directly or through others, and so the luck of its runs.

    Args:
        verdicts: see :func:`judge`; those without an interval are passed over.

    Returns:
        Families of two or more, in the order of their first verdict.
    """
    groups: list[tuple[str, set[str], list[Verdict]]] = []
    for each in verdicts:
        if each.p_t is None:
            continue
        arms = {f"{each.claim.metric} {canonical_arm(arm, each.recipe)}" for arm in each.claim.arms}
        joined = [group for group in groups if group[0] == each.recipe and group[1] & arms]
        members = [member for group in joined for member in group[2]] + [each]
        place = groups.index(joined[0]) if joined else len(groups)
        groups = [group for group in groups if group not in joined]
        groups.insert(place, (each.recipe, arms.union(*(group[1] for group in joined)), members))
    return [
        Family(recipe, tuple(members), tuple(holm([member.p_t for member in members])))
        for recipe, _, members in groups
        if len(members) > 1
    ]


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
