"""The run plan: which comparisons a book shows, read from a YAML file, and what of them is there already."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from . import recipes
from .comparisons import ALSO
from .recipes import Recipe, parse_arm
from .records import Record, canonical_arm, canonical_recipe
from .training import GENERATION

DEVICES = ("cpu", "cuda")

#: What a measure leaves in a record, by which we see that it was taken.
MEASURED = {"foreign": "auroc", "calibration": "ece", "new_classes": "new_classes", "hidden_classes": "fine_knn"}


@dataclass(frozen=True)
class Entry:
    """A comparison that is to be run, or a command that makes something of one.

    Attributes:
        id: name of the entry.
        decides: what it is run for, in words.
        result: file below the folder of results; with ``{arm}`` and ``{seed}`` in it one file a run.
        recipe: name of the recipe; empty for a command.
        changes: fields that all trainings change, as ``"epochs=5 precision=bf16"``.
        arms: see :func:`dnc_lib.recipes.parse_arm`.
        seeds: of the trainings.
        also: see :func:`dnc_lib.comparisons.compare`.
        measure: what else the trained models are asked, names of :data:`MEASURED`.
        minutes: of one training, or of the command, about.
        device: ``cpu`` (one core) or ``cuda`` (one GPU).
        command: shell command that writes the result, in the place of trainings; ``{python}`` is the interpreter,
            ``{runs}`` the folder of run folders, ``{models}`` that of kept models, ``{result}`` the file.
    """

    id: str
    decides: str
    result: str
    minutes: float
    recipe: str = ""
    changes: str = ""
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    also: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()
    device: str = "cpu"
    command: str = ""

    @property
    def single(self) -> bool:
        """Whether each training is a run with a file of its own."""
        return "{arm}" in self.result

    def base(self) -> Recipe:
        """What all trainings share."""
        return recipes.get(self.recipe, **parse_arm(self.changes))

    def file(self, arm: str = "", seed: int = 0) -> str:
        """The result's file, below the folder of results."""
        return self.result.format(arm=re.sub(r"[^\w=.]+", "_", arm), seed=seed) if self.single else self.result

    def trainings(self) -> list[tuple[str, int]]:
        """(arm, seed) in the order in which they are run: all arms of a seed before the next seed."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def as_command(self) -> str:
        """The `dnc` command of the trainings, to be read; ``make runs ONLY=<id>`` does it."""
        if self.command:
            return self.command
        words = (word.partition("=") for word in self.changes.split())
        changes = " ".join(f"--{name.replace('_', '-')} {value.replace(',', ' ')}" for name, _, value in words)
        if self.single:
            return f"dnc train {self.recipe} --head <arm> --seed <seed> {changes}".strip()
        arms = " ".join(f'--arm "{arm}"' if " " in arm else f"--arm {arm}" for arm in self.arms)
        also = f"--also {' '.join(self.also)}" if self.also else ""
        seeds = f"--seeds {' '.join(map(str, self.seeds))}"
        return " ".join(f"dnc compare {self.recipe} {changes} {arms} {seeds} {also}".split())


@dataclass(frozen=True)
class Status:
    """What is there of an entry.

    Attributes:
        entry: that is asked about.
        missing: (arm, seed) of the trainings that no record has, or that older code ran than would be comparable.
        stale: how many of the missing ones are of such older code.
        total: trainings in all; 1 for a command.
    """

    entry: Entry
    missing: tuple[tuple[str, int], ...]
    stale: int
    total: int

    @property
    def state(self) -> str:
        """``done``, ``partial``, ``not run``, or ``stale`` where all that lacks was run by older code."""
        if not self.missing:
            return "done"
        if self.stale == len(self.missing):
            return "stale"
        return "partial" if len(self.missing) < self.total else "not run"

    @property
    def minutes(self) -> float:
        """Left, about, on one core or one GPU."""
        return len(self.missing) * self.entry.minutes


def load_plan(path: str | Path) -> list[Entry]:
    """The entries of a YAML file, in its order.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming an entry that is damaged, lacks something or is there twice.
    """
    import yaml  # of the extra `book`

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, list):
        raise ValueError(f"{path} must hold a list of entries, each beginning with '- id:'")
    plan = [_entry(values, f"{path}: {_name(values, number)}") for number, values in enumerate(raw, 1)]
    names = [entry.id for entry in plan]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: {twice}: this id is there twice")
    return plan


def status(entry: Entry, records: Sequence[Record], results: str | Path) -> Status:
    """What of an entry is there.

    Args:
        entry: of the plan.
        records: from :func:`dnc_lib.records.load_results`.
        results: the folder of results, for what is no training.
    """
    if entry.command:
        missing = () if (Path(results) / entry.result).exists() else (("", 0),)
        return Status(entry, missing, 0, 1)
    name = canonical_recipe(entry.base())
    found = {(each.arm, each.seed): each for each in records if each.recipe == name}
    asked = [MEASURED[each] for each in entry.measure]
    missing, stale = [], 0
    for arm, seed in entry.trainings():
        record = found.get((canonical_arm(arm, entry.recipe, entry.base()), seed))
        if record is None or not all(any(key.startswith(what) for key in record.scores) for what in asked):
            missing.append((arm, seed))
        elif record.generation < GENERATION:
            missing.append((arm, seed))
            stale += 1
    return Status(entry, tuple(missing), stale, len(entry.trainings()))


def _name(values: object, number: int) -> str:
    return str(values["id"]) if isinstance(values, dict) and "id" in values else f"entry {number}"


def _entry(values: object, where: str) -> Entry:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be a mapping")
    known = {field.name: field for field in fields(Entry)}
    needed = {name for name, field in known.items() if field.default is MISSING}
    if strange := sorted(set(values) - set(known)):
        raise ValueError(f"{where}: has unknown {', '.join(map(str, strange))}; it may have {', '.join(known)}")
    if lacking := sorted(needed - set(values)):
        raise ValueError(f"{where}: lacks {', '.join(lacking)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if isinstance(values.get("seeds"), int):
        values["seeds"] = tuple(range(values["seeds"]))
    entry = Entry(**values)
    if bool(entry.command) == bool(entry.recipe):
        raise ValueError(f"{where}: must have either a recipe or a command")
    if entry.recipe and not (entry.arms and entry.seeds):
        raise ValueError(f"{where}: a recipe needs arms and seeds")
    if entry.device not in DEVICES or not entry.minutes > 0:
        raise ValueError(f"{where}: device must be one of {', '.join(DEVICES)} and minutes above 0")
    if unknown := (set(entry.also) - set(ALSO)) | (set(entry.measure) - set(MEASURED)):
        raise ValueError(f"{where}: there is no {', '.join(sorted(unknown))} to measure")
    try:
        for arm in entry.arms:
            entry.base().replace(**parse_arm(arm)) if entry.recipe else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return entry
