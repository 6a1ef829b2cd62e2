"""The ``dnc`` command."""

import argparse
import dataclasses
import os
import sys
import warnings
from pathlib import Path

from . import __version__, recipes
from .heads import HEADS
from .recipes import Recipe
from .recipes.base import TUPLES, field_help
from .signals import Stopped

#: What torch says, and what to do about it.
_ADVICE = {
    "DataLoader worker": "a process that reads pictures died, often for want of memory; try fewer --workers",
    "out of memory": "lower --batch-size or --memory-size, or raise --accumulate",
    "can't allocate memory": "lower --batch-size or --memory-size, or raise --accumulate",
}


def main(arguments: list[str] | None = None) -> int:
    """Run ``dnc``; a wrong input is one line on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"dnc: warning: {message}", file=sys.stderr)
            return options.run(options)
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"dnc: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:  # the status of a process that SIGTERM ended, so that a scheduler is not misled
        print(f"dnc: {stopped}", file=sys.stderr)
        return 143
    except RuntimeError as error:
        if not (advice := next((text for sign, text in _ADVICE.items() if sign in str(error)), "")):
            raise
        print(f"dnc: {' '.join(str(error).split())[:200]}: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dnc: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dnc", description="Deep nearest centroids.")
    parser.add_argument("--version", action="version", version=f"dnc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("recipes", help="what can be trained, and what to expect of it")
    command.set_defaults(run=_recipes)

    command = commands.add_parser("train", help="train by a recipe")
    command.add_argument("recipe", help="a name that `dnc recipes` lists")
    _add_data(command)
    command.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("runs"), help="where run folders go (runs)"
    )
    command.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    command.add_argument(
        "--snapshot-seconds", type=float, metavar="S", default=600.0, help="least time between snapshots (600)"
    )
    _add_manner(command)
    _add_fields(command)
    command.set_defaults(run=_train)

    command = commands.add_parser("compare", help="train several arms with several seeds, in pairs")
    command.add_argument("recipe", help="a name that `dnc recipes` lists")
    _add_data(command)
    command.add_argument("--output", type=Path, metavar="FILE", required=True, help="the manifest, a .json file")
    command.add_argument(
        "--arm",
        action="append",
        metavar="ARM",
        help="a head, or fields that differ, or both: 'dnc momentum=0.99'; may be given again (the four heads)",
    )
    command.add_argument("--seeds", type=int, nargs="+", metavar="N", default=[0], help="of the trainings (0)")
    _add_manner(command)
    _add_fields(command)
    command.set_defaults(run=_compare)

    command = commands.add_parser("evaluate", help="measure a run on its test images")
    command.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    _add_data(command)
    command.set_defaults(run=_evaluate)
    return parser


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where data sets are (DNC_DATA, else ~/.cache/dnc)"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", default=min(os.cpu_count() or 1, 8), help="processes that read pictures"
    )
    command.add_argument("--download", action="store_true", help="fetch the data set if it is not there")


def _add_manner(command: argparse.ArgumentParser) -> None:
    command.add_argument("--profile", default="full", metavar="NAME", help="full, or smoke for a try (full)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_fields(command: argparse.ArgumentParser) -> None:
    """Every field of a recipe is an option."""
    fields = command.add_argument_group("the recipe's fields, to change any of them")
    meanings = field_help()
    for each in dataclasses.fields(Recipe):
        if each.name == "name":
            continue
        settings = {"default": argparse.SUPPRESS, "dest": f"field_{each.name}", "help": meanings.get(each.name)}
        if each.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif each.type in TUPLES:
            settings |= {"type": TUPLES[each.type][0][0], "nargs": "*", "metavar": "N"}
        else:
            settings |= {"type": each.type, "metavar": each.type.__name__.upper()}
        fields.add_argument(f"--{each.name.replace('_', '-')}", **settings)


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that a command names, with the fields that it changes."""
    changes = {key[6:]: value for key, value in vars(options).items() if key.startswith("field_")}
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    return recipes.get(options.recipe, **changes)


def _recipes(options: argparse.Namespace) -> int:
    rows = [("recipe", "data set", "backbone", "epochs", "what to expect")]
    for name in recipes.NAMES:
        recipe = recipes.get(name)
        expect = " ".join(recipes.describe(name).split("\n\n")[-1].split())
        rows.append((name, recipe.dataset, recipe.backbone, str(recipe.epochs), expect))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
    return 0


def _train(options: argparse.Namespace) -> int:
    recipe = _recipe(options)
    from .training import train  # timm loads here, not for `dnc recipes`

    run = train(
        recipe,
        options.data_root,
        options.output,
        resume=options.resume,
        profile=options.profile,
        workers=options.workers,
        snapshot_seconds=options.snapshot_seconds,
        progress=not options.quiet,
        download=options.download,
    )
    final, seconds, waiting = (run.manifest.get(key) for key in ("final", "seconds", "wait_share"))
    waited = "" if waiting is None else f", {waiting:.0%} of the training steps waiting for data"
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        score = f"mIoU {final['miou']:.2f}" if run.recipe.decoder else f"accuracy {final['accuracy']:.2f}"
        print(f"{run.folder}: {score} % in {seconds:.0f} s{waited}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    recipe = _recipe(options)
    if hasattr(options, "field_seed"):
        raise ValueError("a comparison takes --seeds, for all of its arms, not --seed")
    arms = {name: recipes.parse_arm(name) for name in options.arm or HEADS}
    from .comparisons import compare

    manifest = compare(
        recipe,
        arms,
        options.seeds,
        options.output,
        options.data_root,
        profile=options.profile,
        workers=options.workers,
        progress=not options.quiet,
        download=options.download,
    )
    for arm, each in manifest["summary"].items():
        spread = "" if each["sd"] is None else f" ± {each['sd']:.2f}"
        print(f"{arm}: {each['mean']:.2f}{spread} % over {each['n']} seeds")
    for each in manifest["paired"]:
        first, second = each["arms"]
        print(f"{first} minus {second}: {each['mean']:+.2f} points, p = {each['p']:.3g} over {each['n']} pairs")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    import torch

    from .evaluation import evaluate
    from .loading import make_loader, prepare_data
    from .runs import Run

    run = Run.load(options.folder)
    parts = prepare_data(run.recipe, options.data_root, download=options.download)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, card = run.model(device)
    if list(parts["test"].classes) != card.classes:
        raise ValueError(f"the data set at hand has other classes than {options.folder} was trained on")
    result = evaluate(model, make_loader(run.recipe, parts["test"], card, device, workers=options.workers))
    print(
        f"accuracy {result['accuracy']:.2f} %  top-5 {result['top5']:.2f} %  loss {result['loss']:.4f}  "
        f"on {result['images']} images"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
