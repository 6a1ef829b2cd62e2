"""Many trainings in one process, which differ in one thing at a time and share their seeds: pairs that can decide."""

import json
import statistics as moments
import time
import warnings
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from .anchoring import anchor
from .checkpoints import save_model
from .fitting import Fitting
from .heads import SubCentroidHead
from .kept import check_kept, kept_path
from .loading import Parts, build_model, make_card, make_loader, make_loaders, prepare_data
from .recipes import Recipe
from .runs import held, peak_memory, warn_changed, write_json
from .statistics import sign_flip
from .tasks import task_of
from .training import PROFILES, describe, make_accelerator

#: What is kept of a training: its last epoch.
_LEFT_OUT = ("epoch", "learning_rate")

#: What the arms have in common: the data, prepared once, and what the comparison itself decides.
_SHARED = (
    *("name", "dataset", "reader", "image_size", "decoder"),
    *("validation", "train_limit", "leave_out", "precision", "seed"),
)

#: What may differ from training to training of a comparison that went on later; each entry has its own.
_MADE_BY = ("code", "generation")

#: What may be done to the sub-centroids of a trained model, each by itself, and measured again.
ALSO = ("refresh", "anchor")


def compare(
    recipe: Recipe,
    arms: dict[str, dict],
    seeds: Iterable[int],
    output: str | Path,
    data_root: str | Path | None = None,
    *,
    also: Sequence[str] = (),
    keep: str | Path | None = None,
    profile: str = "full",
    workers: int = 0,
    progress: bool = True,
    download: bool = False,
) -> dict:
    """Train every arm with every seed and write one manifest with all results.

    A seed gives every arm the same first weights of the backbone and the same batches. All arms of a seed come before
    the next seed, and the manifest is written after each training, so that it holds pairs whenever it ends; called
    again, it goes on with those that are missing.

    Args:
        recipe: what all trainings share.
        arms: name to the fields that this arm changes, for instance ``{"dnc, K = 1": {"num_subcentroids": 1}}``.
        seeds: of the trainings.
        output: the manifest, a ``.json`` file.
        data_root: see :func:`dnc_lib.data.data_root`.
        also: of trained models that have sub-centroids, measure again with those estimated anew from the training
            images (``"refresh"``), or put at their nearest ones (``"anchor"``); a result has the score as
            ``accuracy_refresh``, ``accuracy_anchor`` (of scenes ``miou_...``).
        keep: a folder for the trained models, see :func:`dnc_lib.kept.kept_path`; none are kept without.
        profile: ``"full"``, or ``"smoke"`` for a try whose scores are no results.
        workers: processes that read pictures; images in memory need none.
        progress: show a bar, counted in trainings.
        download: fetch the data set if it is not there.

    Returns:
        The manifest: ``results`` has a record for each arm and seed with the scores on the test images after the last
        epoch (where training images are held out, theirs as ``validation_accuracy``) and the code that ran it,
        ``summary`` mean and deviation of each arm, ``paired`` each difference with its sign-flip p-value.

    Raises:
        ValueError: for less than one arm or seed, an unknown field, arms that differ in nothing or in their data,
            several processes, an output that holds another comparison, or arms whose models cannot be told apart by
            their files' names.
        IsADirectoryError: where the output is a folder.
        FileExistsError: where the folder of models has some of another comparison.
        OSError: where models cannot be written.
        BlockingIOError: where another process writes it.
    """
    seeds, output = list(dict.fromkeys(seeds)), Path(output)
    if not arms or not seeds:
        raise ValueError("a comparison needs one arm and one seed or more")
    if unknown := [each for each in also if each not in ALSO]:
        raise ValueError(f"also must be of {', '.join(ALSO)}, got {unknown[0]!r}")
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    recipes = _arms(recipe, arms)
    for seed in seeds:
        recipe.replace(seed=seed)  # a seed out of range is told of now, not after hours
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder: name the manifest, a .json file")
    accelerator = make_accelerator(recipe.precision)
    if accelerator.num_processes > 1:
        raise ValueError("a comparison runs in one process; give each process other seeds and another output")
    parts = prepare_data(recipe, data_root, download=download)
    metric = task_of(recipe, parts["train"].num_classes).metric
    manifest = {"kind": "comparison", "arms": arms, "results": []} | describe(recipe, parts, accelerator, profile)
    with held(output):
        file = _go_on(output, manifest) if output.is_file() else None
        done = {(result["arm"], result["seed"]) for result in manifest["results"]}
        before = sum(result["seconds"] for result in manifest["results"])
        wanted = [(seed, name) for seed in seeds for name in arms if (name, seed) not in done]
        if keep is not None:
            check_kept(Path(keep), list(manifest["arms"]), wanted if file is None else [])
        _warn_missing(manifest, recipes, keep, also, metric)
        if not wanted:
            return file
        if file is not None:
            warn_changed(file, manifest, f"the comparison in {output}")
        started = time.perf_counter()
        for seed, name in tqdm(wanted, unit=" trainings", disable=not progress, desc=recipe.name):
            kept = keep and kept_path(keep, name, seed)
            result = fit_once(recipes[name].replace(seed=seed), parts, accelerator, workers, also=also, keep=kept)
            made_by = {key: manifest[key] for key in _MADE_BY}
            manifest["results"].append({"arm": name, "seed": seed, **result, **made_by})
            manifest |= summarize(manifest["results"], list(manifest["arms"]), metric)
            manifest["seconds"] = before + time.perf_counter() - started
            manifest["peak_memory_bytes"] = peak_memory(accelerator.device)
            write_json(manifest, output)
    return manifest


def fit_once(
    recipe: Recipe,
    parts: Parts,
    accelerator: Accelerator,
    workers: int = 0,
    *,
    also: Sequence[str] = (),
    keep: Path | None = None,
) -> dict:
    """One training without a run folder: its last record and the scores on the test images, for scenes with the
    ``iou`` of each class, and with ``start_kept`` where sub-centroids move.

    Args:
        recipe: what to train.
        parts: the data.
        accelerator: device and precision.
        workers: processes that read pictures.
        also: see :func:`compare`.
        keep: file for the trained model, without its memory.
    """
    card = make_card(recipe, parts)
    loaders = make_loaders(recipe, parts, card, accelerator, workers)
    model = build_model(recipe, card, parts, accelerator)
    fitting = Fitting(recipe, model, loaders, accelerator, evaluate_every=0)
    fitting.fit()
    task = fitting.task
    result = {key: value for key, value in fitting.curve[-1].items() if key not in _LEFT_OUT}
    judged, scores = loaders["test"], fitting.held_out
    # Measured as `train` measures what it leaves: in full precision, and on the test images.
    if recipe.precision != "no" or judged is not loaders["held_out"]:
        scores = task.evaluate(model, judged, accelerator.reduce)
    if recipe.anchor:
        _, moved = anchor(model, loaders["train_plain"])
        result["anchoring"] = {"similarity": moved, "before": scores[task.metric]}
        scores = task.evaluate(model, judged, accelerator.reduce)
        result["anchoring"]["after"] = scores[task.metric]
    result |= {key: scores[key] for key in (*task.measures, *task.details)}
    if recipe.validation:
        held_out = fitting.held_out
        if recipe.precision != "no" or recipe.anchor:
            held_out = task.evaluate(model, loaders["held_out"], accelerator.reduce)
        result[f"validation_{task.metric}"] = held_out[task.metric]
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, card, keep, memory=False)
    if also and isinstance(model.head, SubCentroidHead):
        plain = make_loader(recipe, parts["train"], card, accelerator.device, workers=workers)
        state = {key: value.clone() for key, value in model.head.state_dict().items()}
        for each in also:
            task.refresh(model, plain) if each == "refresh" else anchor(model, plain)
            result[f"{task.metric}_{each}"] = task.evaluate(model, judged, accelerator.reduce)[task.metric]
            model.head.load_state_dict(state)
    accelerator.free_memory()
    if recipe.head == "dnc":
        result["start_kept"] = recipe.start_kept(fitting.updates)
    return result


def summarize(results: list[dict], arms: list[str], metric: str = "accuracy") -> dict:
    """Mean and deviation of each arm's score in percent, and each pair of arms over the seeds that both have."""
    scores = {arm: {each["seed"]: each[metric] for each in results if each["arm"] == arm} for arm in arms}
    summary, paired = {}, []
    for arm, values in scores.items():
        if values:
            spread = moments.stdev(values.values()) if len(values) > 1 else None
            summary[arm] = {"n": len(values), "mean": moments.fmean(values.values()), "sd": spread}
    for first, second in combinations(arms, 2):
        seeds = sorted(scores[first].keys() & scores[second].keys())
        differences = [scores[second][seed] - scores[first][seed] for seed in seeds]
        if len(differences) > 1:
            paired.append(
                {
                    "arms": [second, first],
                    "n": len(differences),
                    "mean": moments.fmean(differences),
                    "sd": moments.stdev(differences),
                    "p": sign_flip(differences),
                }
            )
    return {"summary": summary, "paired": paired}


def merge(first: dict, second: dict) -> dict:
    """Two manifests of one comparison as one: trainings made at different times or places.

    Args:
        first: its trainings come first; where both hold a training, the second's counts.
        second: says what is known of the machine.

    Raises:
        ValueError: where they are of different recipes or data, or an arm of one name is two.
    """
    if any(first["arms"].get(name, fields) != fields for name, fields in second["arms"].items()):
        raise ValueError("an arm of one name has other fields in the other manifest: these are two comparisons")
    same = first["data"] == second["data"] and first["profile"] == second["profile"]
    if not same or Recipe.from_dict(first["recipe"]) != Recipe.from_dict(second["recipe"]):
        raise ValueError("these are two comparisons: of different recipes, data or profile")
    entries = {(each["arm"], each["seed"]): each for each in (*_with_makers(first), *_with_makers(second))}
    arms, results = first["arms"] | second["arms"], list(entries.values())
    metric = "miou" if Recipe.from_dict(second["recipe"]).decoder else "accuracy"
    made = first | second | {"arms": arms, "results": results} | summarize(results, list(arms), metric)
    made["seconds"] = sum(each["seconds"] for each in results)
    if "measured" in first and "measured" in second:
        made["measured"] = {
            name: {
                "keys": list(dict.fromkeys(key for each in both for key in each["keys"])),
                "code": both[-1]["code"],
            }
            for name in {**first["measured"], **second["measured"]}
            for both in [[each["measured"][name] for each in (first, second) if name in each["measured"]]]
        }
    return made


def _with_makers(manifest: dict) -> list[dict]:
    """The entries, each with what made it: of those written before that was kept, the manifest's."""
    known = {"code": manifest["code"], "generation": manifest.get("generation", 1)}
    return [known | entry for entry in manifest["results"]]


def _arms(recipe: Recipe, arms: dict[str, dict]) -> dict[str, Recipe]:
    """The recipe of each arm.

    Raises:
        ValueError: for an arm that changes what all share, two that are the same, or a refresh.
    """
    made = {}
    for name, changes in arms.items():
        if shared := [field for field in _SHARED if field in changes]:
            raise ValueError(
                f"arm {name!r} changes {', '.join(shared)}, which all arms share: make that a comparison of its own"
            )
        made[name] = recipe.replace(**changes)
        if twin := next((other for other in made if other != name and made[other] == made[name]), None):
            raise ValueError(f"the arms {twin!r} and {name!r} are the same training: leave one of them out")
        if made[name].refresh:  # its choice would be judged by the images that score the arm
            raise ValueError(f"arm {name!r}: a comparison does not refresh sub-centroids; `dnc train` does")
    return made


def _warn_missing(
    manifest: dict, recipes: dict[str, Recipe], keep: str | Path | None, also: Sequence[str], metric: str
) -> None:
    """Say so where trainings that were done before lack what is asked for now: they are not repeated."""
    done = [each for each in manifest["results"] if each["arm"] in recipes]
    lost = keep and [each for each in done if not kept_path(keep, each["arm"], each["seed"]).is_file()]
    if lost:
        warnings.warn(
            f"{keep} lacks the models of {len(lost)} of the trainings done before; to keep all, begin anew with "
            f"another output",
            stacklevel=3,
        )
    for what in also:
        moved = [each for each in done if recipes[each["arm"]].head in ("dnc", "frozen")]
        if lacking := [each for each in moved if f"{metric}_{what}" not in each]:
            warnings.warn(
                f"{len(lacking)} of the trainings done before have no {metric}_{what}; to measure all, begin anew "
                f"with another output",
                stacklevel=3,
            )


def _go_on(output: Path, now: dict) -> dict:
    """Take over the arms and the results that the file holds, if it is of this comparison; gives what it holds.

    Raises:
        ValueError: where it is damaged, or of another recipe, data or arm of the same name.
    """
    try:
        before = json.loads(output.read_text(encoding="utf-8"))
        arms = json.loads(json.dumps(now["arms"]))  # JSON knows no tuples
        same = all(before[key] == json.loads(json.dumps(now[key])) for key in ("kind", "profile", "data"))
        # fields of a recipe that came later have the values that did then what was done
        same = same and Recipe.from_dict(before["recipe"]) == Recipe.from_dict(now["recipe"])
        same = same and all(before["arms"].get(name, changes) == changes for name, changes in arms.items())
        now["arms"], now["results"] = before["arms"] | arms, _with_makers(before)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{output} is damaged or no comparison ({error}); move it away") from error
    if not same:
        raise ValueError(f"{output} holds another comparison: name another output, or go on with its recipe and arms")
    return before
