"""Ask the models that a comparison kept for more than their accuracy, and write a manifest that has the answers.

    python tools/measure.py MANIFEST KEPT OUTPUT --what foreign calibration

MANIFEST is what `dnc compare ... --output MANIFEST --keep KEPT` wrote. OUTPUT is a manifest of the same trainings:
each entry of `results` has the new measures, and its accuracy is that on the test images. What OUTPUT already holds
of the same training from another --what stays too; that from the same one is replaced. `measured` says which keys
each --what gave, and by which code. With --details, histograms and reliability bins go to a file of OUTPUT's name in
a folder `details` there.
"""

import argparse
import importlib
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: see dnc_lib/__main__.py

import torch

from dnc_lib.checkpoints import read_model
from dnc_lib.comparisons import summarize
from dnc_lib.data import data_root, load
from dnc_lib.evaluation import evaluate
from dnc_lib.kept import kept_path
from dnc_lib.loading import Parts, make_loader, prepare_data
from dnc_lib.recipes import Recipe
from dnc_lib.records import read_manifest, validate
from dnc_lib.runs import describe_code, held, write_json

#: What may be asked: modules of the package with `measure(model, card, parts) -> dict[str, float]`; and whether it
#: takes a dictionary, as `details`, for what is nested.
WHAT = {"foreign": True, "calibration": True, "new_classes": False, "hidden_classes": True}

#: Points of accuracy by which two devices may differ on one model.
SAME = 0.5

_SCORES = ("accuracy", "top5", "loss")  # of a training's entry, what the test images give anew
_IDENTITY = ("arm", "seed", "train_loss", "seconds")  # two entries that agree in these speak of one training


def measure(
    manifest: Path,
    kept: Path,
    output: Path,
    what: list[str],
    *,
    details: bool = False,
    go_on: bool = False,
    device: str = "cpu",
) -> dict:
    """Measure every model of a comparison; says on standard output how far it is.

    Args:
        manifest: of the comparison.
        kept: the folder of its models.
        output: the manifest to write, when all are measured.
        what: names of :data:`WHAT`.
        details: write the nested ones beside it.
        go_on: leave alone the trainings that ``output`` already holds, asked for the same.
        device: where the models run.

    Returns:
        The manifest written.

    Raises:
        FileNotFoundError: where a model or the data is not there.
        ValueError: for a manifest of another kind, other data, a model whose accuracy says that it is another
            training's, or a measure that is no number or has a taken name.
    """
    found = read_manifest(manifest)
    validate(found, str(manifest))
    if found.get("kind") != "comparison":
        raise ValueError(
            f"{manifest} is of one run: `dnc compare ... --output FILE --keep DIR` writes what is wanted"
        )
    paths = [model_path(kept, entry) for entry in found["results"]]  # a missing one is told of now, not after an hour
    recipe = Recipe.from_dict(found["recipe"])
    parts = _parts(recipe, found["data"])
    with held(output):
        before, beside = read_manifest(output) if output.is_file() else {}, output.parent / "details" / output.name
        nested = json.loads(beside.read_text(encoding="utf-8"))["arms"] if go_on and beside.is_file() else {}
        measured = before.get("measured", {})
        others = {name: each for name, each in measured.items() if name not in what}
        fresh = {name: {"keys": [], "code": describe_code()} for name in what}
        found["measured"] = others | fresh
        for place, (entry, path) in enumerate(zip(found["results"], paths, strict=True)):
            old, own = _earlier(entry, before), nested.setdefault(entry["arm"], {})
            # A head that has fewer scores has fewer keys, so one of them will do.
            if go_on and all(any(key in old for key in measured.get(name, fresh[name])["keys"]) for name in what):
                found["results"][place] = old
                for name in what:
                    fresh[name]["keys"] = list(dict.fromkeys([*fresh[name]["keys"], *measured[name]["keys"]]))
                continue
            entry |= {key: old[key] for each in others.values() for key in each["keys"] if key in old}
            own[str(entry["seed"])] = {}
            started = time.perf_counter()
            model, card = read_model(path, device)
            model = model.to(memory_format=torch.channels_last)
            before_that = recipe.validation and "validation_accuracy" not in entry
            if before_that:  # as `dnc compare` wrote it until it measured both
                entry["validation_accuracy"] = entry["accuracy"]
            scores = evaluate(model, make_loader(recipe, parts["test"], card, device))
            if not before_that and abs(scores["accuracy"] - entry["accuracy"]) > SAME:
                raise ValueError(
                    f"{path} has an accuracy of {scores['accuracy']:.2f}, but {manifest} says "
                    f"{entry['accuracy']:.2f}: it is another training's model; name the folder of this one"
                )
            entry |= {key: scores[key] for key in _SCORES}
            for name in what:
                given = importlib.import_module(f"dnc_lib.{name}").measure
                more = {"details": own[str(entry["seed"])]} if WHAT[name] else {}
                _add(entry, name, given(model, card, parts, **more), fresh[name]["keys"])
            print(f"{entry['arm']}, seed {entry['seed']}: {time.perf_counter() - started:.0f} s", flush=True)
        found |= summarize(found["results"], list(found["arms"]))
        validate(found, str(output))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(found, output)
        if details:
            beside.parent.mkdir(exist_ok=True)
            beside.write_text(json.dumps({"of": output.name, "arms": nested}) + "\n", encoding="utf-8")
    return found


def model_path(kept: Path, entry: dict) -> Path:
    """Where `dnc compare --keep` put the model of an entry.

    Raises:
        FileNotFoundError: where it is not.
    """
    path = kept_path(kept, entry["arm"], entry["seed"])
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}: run the comparison anew with --keep {kept}")
    return path


def _parts(recipe: Recipe, recorded: dict) -> Parts:
    """The comparison's data, and as ``left_out`` the test images of classes that it left out, under their own labels.

    Raises:
        FileNotFoundError: where the data is not at hand.
        ValueError: where it is other data.
    """
    parts = prepare_data(recipe)
    for name, data in parts.items():
        if data.digest() != recorded[name]["digest"]:
            raise ValueError(
                f"{data.name}: digest {data.digest()}, but the models were trained and tested with "
                f"{recorded[name]['digest']}: set DNC_DATA to that data"
            )
    if recipe.leave_out:
        _, test = load(recipe.dataset, data_root(), image_size=recipe.image_size)
        index = torch.isin(test.labels, torch.tensor(recipe.leave_out)).nonzero().squeeze(1)
        parts["left_out"] = test.subset(index, f"{test.name}, left out")
    return parts


def _earlier(entry: dict, before: dict) -> dict:
    """What an earlier call wrote of the same training; empty where it wrote nothing."""
    same = (old for old in before.get("results", []) if all(old.get(key) == entry.get(key) for key in _IDENTITY))
    return next(same, {})


def _add(entry: dict, name: str, measures: dict[str, float], keys: list[str]) -> None:
    """Put measures into an entry.

    Raises:
        ValueError: for one that is no number, or has the name of something else.
    """
    for key, value in measures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}: {key} of {entry['arm']!r}, seed {entry['seed']}, is no number: {value!r}")
        if key in entry:
            raise ValueError(f"{name}: the name {key} is taken; an entry has it already")
    entry |= measures
    keys += [key for key in measures if key not in keys]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("kept", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--what", nargs="+", choices=WHAT, required=True)
    parser.add_argument("--details", action="store_true", help="write histograms and bins beside OUTPUT")
    parser.add_argument("--go-on", action="store_true", help="leave alone the trainings that OUTPUT holds already")
    parser.add_argument("--data-root", help="as of `dnc train`; without it DNC_DATA")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.data_root:
        os.environ["DNC_DATA"] = options.data_root  # for all that load data by name
    names = list(dict.fromkeys(options.what))
    chosen = {"details": options.details, "go_on": options.go_on, "device": options.device}
    try:
        measure(options.manifest, options.kept, options.output, names, **chosen)
    except (OSError, ValueError) as error:
        sys.exit(f"measure: {error}")


if __name__ == "__main__":
    main()
