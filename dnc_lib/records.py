"""Manifests read back: one record a training, from the manifest of a run or of a comparison.

A record names its recipe and its arm by how the training differs from the recipe of that name in this package. What
concerns only the head is part of the arm (``dnc momentum=0.9``), anything else part of the recipe
(``cifar10_resnet20 epochs=3``). So records that share a recipe differ in nothing but head and seed.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import recipes
from .data.whole import missing
from .heads import HEADS
from .recipes import Recipe, parse_arm

SCHEMA = Path(__file__).with_name("schemas") / "manifest.json"

_OWN = ("name", "head", "seed")  # fields that name a training; all others describe it
_FEW = {
    "softmax": (),
    "cosine": ("num_prototypes", "temperature"),
    "frozen": ("num_subcentroids", "temperature", "scale_by"),
}
#: What says when and how sub-centroids move, besides the settings of their head.
_UPDATES = {"update_after", "update_every", "refresh", "refresh_epochs", "anchor", "anchor_epochs", "pixels"}
#: Numbers of an outcome that are none of its scores.
_NO_SCORES = ("seed", "seconds", "generation")
_APART = {"validation": "{} training images held out", "train_limit": "trained on {} images"}
#: Recipes whose test images helped to choose settings of others.
_CHOSE = {"cifar10_subset": "its test images helped to choose settings"}
_WRITERS = "`dnc train` and `dnc compare` write manifests"


@dataclass(frozen=True)
class Record:
    """One training's outcome.

    Attributes:
        recipe: its name, and the fields in which the training, head apart, differs from the recipe of that name.
        dataset: trained and tested on.
        arm: the head, and the fields that matter to it in which the training differs from the recipe.
        seed: of the training.
        scores: the final ones, on the test images.
        data: digest of each part of the data.
        hardware: what it ran on.
        commit: of the code, with ``+`` after it where the checkout had changes; ``None`` where it is not known.
        seconds: of wall time.
        file: the manifest's name.
        device: kind of device, ``cpu`` or ``cuda``.
        processes: how many shared each batch.
        generation: of the code, see :data:`dnc_lib.training.GENERATION`.
        apart: why it takes part in no verdict; empty for one that does.
        beside: why its verdicts stand beside the others and not among them; empty for most.
    """

    recipe: str
    dataset: str
    arm: str
    seed: int
    scores: dict[str, float]
    data: dict[str, str]
    hardware: str
    commit: str | None
    seconds: float
    file: str
    device: str = "cpu"
    processes: int = 1
    generation: int = 1
    apart: str = ""
    beside: str = ""


def load_results(folder: str | Path) -> list[Record]:
    """Every full training recorded in a folder of manifests; smoke runs are left out.

    Those in its folder ``screening``, those trained on another part of the training images than their recipe says,
    and those whose data set was not whole, are marked ``apart``. Other folders in it hold records of another kind.

    Args:
        folder: of ``.json`` files.

    Returns:
        Records in the order of file names, and within a comparison in its own.

    Raises:
        FileNotFoundError: where there is no such folder.
        ValueError: naming a file that is damaged, or that another version or an unknown recipe wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of results at {folder}; {_WRITERS}")
    records = []
    for apart in ("", "screening"):
        for path in sorted((folder / apart).glob("*.json")):
            records += flatten(read_manifest(path), path.relative_to(folder).as_posix(), apart)
    return records


def read_manifest(path: str | Path) -> dict:
    """The manifest in a JSON file.

    Raises:
        ValueError: where it is damaged, or is none.
    """
    path = Path(path)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it or run it again") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} is no manifest; {_WRITERS}")
    return manifest


def flatten(manifest: dict, file: str, apart: str = "") -> list[Record]:
    """The trainings of a manifest of either kind; none of a smoke run.

    Args:
        manifest: of a run or a comparison.
        file: its name, for messages.
        apart: why its records take part in no verdict, if they do not.

    Raises:
        ValueError: where it lacks something, or another version or an unknown recipe wrote it.
    """
    if manifest.get("profile") == "smoke":
        return []
    try:
        if manifest.get("kind", "run") == "comparison":
            outcomes = [(manifest["arms"][entry["arm"]], entry) for entry in manifest["results"]]
        else:
            run = {"seed": manifest["recipe"]["seed"], "seconds": manifest["seconds"]}
            outcomes = [({}, {**manifest["final"], **run})]
        return [_record({**manifest["recipe"], **arm}, outcome, manifest, file, apart) for arm, outcome in outcomes]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no whole manifest ({type(error).__name__}: {error}); {_WRITERS}") from error


def validate(manifest: dict, name: str = "the manifest") -> None:
    """Check a manifest of either kind against the schema that travels with the package, ``schemas/manifest.json``.

    Args:
        manifest: as :func:`~dnc_lib.records.read_manifest` returns it.
        name: for the message.

    Raises:
        ImportError: where ``jsonschema`` is not installed.
        ValueError: saying what does not fit, and where.
    """
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise ImportError("checking a manifest needs jsonschema: pip install jsonschema") from error
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(manifest), key=lambda error: list(map(str, error.path)))
    if errors:
        place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in errors[0].path).lstrip(".")
        message = errors[0].message if len(errors[0].message) < 200 else f"it is no valid {errors[0].validator}"
        raise ValueError(f"{name} does not fit the schema{f' at {place}' if place else ''}: {message}")


# --- names ----------------------------------------------------------------------------------------------------------


def canonical_arm(text: str, recipe: str, shared: Recipe | None = None) -> str:
    """An arm as records of this recipe name it: fields in the recipe's order, those that change nothing left out.

    Args:
        text: a head and what is changed, see :func:`dnc_lib.recipes.parse_arm`.
        recipe: a recipe's name, as a record has it.
        shared: what the arm changes, where that is not the recipe as the package has it.
    """
    base = _base(recipe.partition(" ")[0])
    return _arm({**(base if shared is None else shared.to_dict()), **parse_arm(text)}, base)


def canonical_recipe(recipe: Recipe) -> str:
    """A recipe as records name it: its name, and the fields, head apart, in which it differs from the package's."""
    return _recipe(recipe.to_dict(), _base(recipe.name))


def arm_fields(head: str) -> tuple[str, ...]:
    """The fields of a recipe that matter to this head and to nothing else in a training."""
    if head in _FEW:
        return _FEW[head]
    wanted = {*Recipe(name="", dataset="", backbone="").head_settings()} - set(_OWN) | _UPDATES
    return tuple(field.name for field in dataclasses.fields(Recipe) if field.name in wanted)


def _arm(fields: dict, base: dict) -> str:
    changed = [f"{field}={fields[field]}" for field in arm_fields(fields["head"]) if fields[field] != base[field]]
    return " ".join([fields["head"], *changed])


def _recipe(fields: dict, base: dict) -> str:
    beside = {*_OWN, *(field for head in HEADS for field in arm_fields(head))}
    changed = [f"{field}={fields[field]}" for field in base if field not in beside and fields[field] != base[field]]
    return " ".join([fields["name"], *changed])


@cache
def _base(name: str) -> dict:
    return recipes.get(name).to_dict()


# --- inside ---------------------------------------------------------------------------------------------------------


def _record(fields: dict, outcome: dict, manifest: dict, file: str, apart: str) -> Record:
    if unknown := sorted(set(fields) - {field.name for field in dataclasses.fields(Recipe)}):
        raise ValueError(f"{file}: a recipe has no field {', '.join(unknown)}; another version wrote it")
    if fields["name"] not in recipes.NAMES:
        raise ValueError(f"{file}: there is no recipe {fields['name']!r}; `dnc recipes` lists all")
    try:
        fields = Recipe.from_dict(fields).to_dict()  # a field that came later: its default is what was done before
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    base, code = _base(fields["name"]), outcome.get("code", manifest["code"])
    limit = fields["train_limit"]
    reasons = [apart, *(text.format(fields[field]) for field, text in _APART.items() if fields[field] != base[field])]
    reasons.append(_partial(fields, manifest))
    return Record(
        recipe=_recipe(fields, base),
        dataset=fields["dataset"],
        arm=_arm(fields, base),
        seed=outcome["seed"],
        scores={k: v for k, v in outcome.items() if type(v) in (int, float) and k not in _NO_SCORES},
        data={part: each["digest"] for part, each in manifest["data"].items()},
        hardware=_hardware(manifest),
        commit=code["commit"] and code["commit"] + "+" * bool(code["dirty"]),
        seconds=outcome["seconds"],
        file=file,
        device=manifest["device"],
        processes=manifest["processes"],
        generation=outcome.get("generation", manifest.get("generation", 1)),
        apart=", ".join(filter(None, reasons)),
        beside=", ".join(filter(None, (limit and f"{limit:,} training images", _CHOSE.get(fields["name"])))),
    )


def _partial(fields: dict, manifest: dict) -> str:
    """What a training lacked of its data set: as it says itself, or by the counts of one older than that."""
    cuts = {name: fields[name] for name in ("train_limit", "validation", "leave_out")}
    counts = {part: each["images"] for part, each in manifest["data"].items()}
    return manifest.get("partial", "") or missing(fields["dataset"], counts, **cuts)


def _hardware(manifest: dict) -> str:
    several = f"{manifest['processes']} x " if manifest["processes"] > 1 else ""
    if manifest["device"] != "cpu":
        return several + manifest["device_name"]
    return f"{several}{manifest['device_name']} CPU, {manifest['threads']} thread{'s' * (manifest['threads'] != 1)}"


def _refuse(constant: str) -> Callable:
    raise ValueError(f"{constant} is no number")
