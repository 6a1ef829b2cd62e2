"""Claims and published numbers: what is said, by whom, and how sure that is, read from YAML files."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .recipes import parse_arm
from .records import arm_fields

VERIFIED = ("seen", "recalled")


@dataclass(frozen=True)
class Claim:
    """A statement that runs can decide.

    Attributes:
        id: its name.
        statement: in words.
        source: key of the bibliography, or ``this book``.
        verified: ``seen`` in the source, or ``recalled``.
        dataset: on which it is made.
        arms: the first is said to beat the second; ``dnc num_subcentroids=1`` is DNC with that field changed.
        metric: of the final scores.
        margin: differences within it count as none, in points.
        pairs: paired seeds without which nothing is decided.
    """

    id: str
    statement: str
    source: str
    verified: str
    dataset: str
    arms: tuple[str, str]
    metric: str
    margin: float
    pairs: int


@dataclass(frozen=True)
class Published:
    """A number that others report.

    Attributes:
        id: its name.
        dataset: of the number.
        network: in words.
        arm: head that it was measured with.
        metric: as our manifests name it.
        value: in points; ``None`` where it is known to exist and not known to us.
        source: key of the bibliography, or the name of a model zoo.
        verified: ``seen`` in a public source, or ``recalled``.
        recipe: ours that would reproduce it.
        note: what else to know.
    """

    id: str
    dataset: str
    network: str
    arm: str
    metric: str
    value: float | None
    source: str
    verified: str
    recipe: str
    note: str

    @property
    def text(self) -> str:
        """The number as it is printed: a recalled one never without that word."""
        return as_printed(self.value, self.verified)


def as_printed(value: float | None, verified: str, signed: bool = False) -> str:
    """A published number in words: a recalled one never without that word.

    Args:
        value: in points; ``None`` where it is not known.
        verified: ``seen`` or ``recalled``.
        signed: write the sign of a positive one too, for a difference.
    """
    if value is None:
        return "not known"
    number = f"{value:+g}" if signed else str(value)
    return number + " (recalled)" * (verified == "recalled")


def load_claims(path: str | Path) -> list[Claim]:
    """The claims of a YAML file, in its order.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming what is damaged, missing, unknown, of the wrong kind or there twice.
    """
    claims = _load_entries(Path(path), Claim)
    for claim in claims:
        if claim.margin < 0 or claim.pairs < 1:
            raise ValueError(f"{path}: {claim.id}: margin must be 0 or more and pairs 1 or more")
        for arm in claim.arms:
            try:
                _check_arm(arm)
            except ValueError as error:
                raise ValueError(f"{path}: {claim.id}: {error}") from None
    return claims


def entry_changes(claim: Claim, earlier: str) -> list[str] | None:
    """How an earlier text of a file of claims had this one.

    Args:
        claim: as it is now.
        earlier: the file's text then.

    Returns:
        Names of the fields that were others; none where the whole entry was the same, ``None`` where it was not
        there.
    """
    import yaml

    found = next((each for each in yaml.safe_load(earlier) or [] if each.get("id") == claim.id), None)
    if found is None:
        return None
    then = {field: tuple(value) if isinstance(value, list) else value for field, value in found.items()}
    return [field.name for field in dataclasses.fields(Claim) if then.get(field.name) != getattr(claim, field.name)]


def load_literature(path: str | Path) -> list[Published]:
    """The published numbers of a YAML file, in its order. Raises as :func:`load_claims`."""
    return _load_entries(Path(path), Published)


def _check_arm(arm: str) -> None:
    changes = parse_arm(arm)
    head = changes.pop("head", None)
    if head is None:
        raise ValueError(f"arm {arm!r} names no head")
    if strange := sorted(set(changes) - set(arm_fields(head))):
        raise ValueError(f"arm {arm!r} changes {', '.join(strange)}, which does not concern the head {head}")


_KINDS: dict[object, tuple[str, Callable[[object], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float)),
    float | None: ("a number or null", lambda value: value is None or type(value) in (int, float)),
    tuple[str, str]: ("two texts", lambda value: type(value) is tuple and list(map(type, value)) == [str, str]),
}


def _load_entries(path: Path, kind: Callable) -> list:
    """The entries of a YAML list as objects of a dataclass, checked field by field."""
    import yaml  # of the extra `book`

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise ValueError(f"{path}{line} is damaged ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of entries, each beginning with '- id:'")
    made: dict[str, object] = {}
    for number, entry in enumerate(entries, 1):
        name = entry.get("id") if isinstance(entry, dict) else None
        where = f"{path}: {name or f'entry {number}'}"
        made_now = _make(entry, kind, where)
        if made_now.id in made:
            raise ValueError(f"{where}: this id is there twice")
        made[made_now.id] = made_now
    return list(made.values())


def _make(entry: object, kind: Callable, where: str):
    wanted = {field.name: field.type for field in dataclasses.fields(kind)}
    if not isinstance(entry, dict) or set(entry) != set(wanted):
        given = set(entry) if isinstance(entry, dict) else set()
        missing, unknown = sorted(set(wanted) - given), sorted(map(str, given - set(wanted)))
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{where}: {' and '.join(said)}")
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in entry.items()}
    for field, type_ in wanted.items():
        words, fits = _KINDS[type_]
        if not fits(values[field]):
            raise ValueError(f"{where}: {field} must be {words}, got {entry[field]!r}")
    if values["verified"] not in VERIFIED:
        raise ValueError(f"{where}: verified must be {' or '.join(VERIFIED)}, got {values['verified']!r}")
    return kind(**values)
