"""The ``dnc`` command."""

import argparse
import dataclasses
import os
import sys
import warnings
from pathlib import Path

from . import __version__, recipes
from .recipes import Recipe
from .recipes.base import field_help


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
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    fields = command.add_argument_group("the recipe's fields, to change any of them")
    meanings = field_help()
    for each in dataclasses.fields(Recipe):
        if each.name == "name":
            continue
        settings = {"default": argparse.SUPPRESS, "dest": f"field_{each.name}", "help": meanings.get(each.name)}
        if each.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif each.type == tuple[int, ...]:
            settings |= {"type": int, "nargs": "*", "metavar": "N"}
        else:
            settings |= {"type": each.type, "metavar": each.type.__name__.upper()}
        fields.add_argument(f"--{each.name.replace('_', '-')}", **settings)
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="measure a run on its test images")
    command.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    _add_data(command)
    command.set_defaults(run=_evaluate)
    return parser


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where data sets are (DNC_DATA, else ~/.cache/dnc)"
    )
    command.add_argument("--download", action="store_true", help="fetch the data set if it is not there")


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
    changes = {key[6:]: value for key, value in vars(options).items() if key.startswith("field_")}
    if "milestones" in changes:
        changes["milestones"] = tuple(changes["milestones"])
    recipe = recipes.get(options.recipe, **changes)
    from .training import train  # timm loads here, not for `dnc recipes`

    run = train(recipe, options.data_root, options.output, progress=not options.quiet, download=options.download)
    print(f"{run.folder}: accuracy {run.manifest['final']['accuracy']:.2f} % in {run.manifest['seconds']:.0f} s")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from .data import DeviceLoader
    from .evaluation import evaluate
    from .runs import Run
    from .training import prepare_data

    run = Run.load(options.folder)
    parts = prepare_data(run.recipe, options.data_root, download=options.download)
    model, card = run.model()
    if list(parts["test"].classes) != card.classes:
        raise ValueError(f"the data set at hand has other classes than {options.folder} was trained on")
    result = evaluate(model, DeviceLoader(parts["test"], 500, card.mean, card.std))
    print(
        f"accuracy {result['accuracy']:.2f} %  top-5 {result['top5']:.2f} %  loss {result['loss']:.4f}  "
        f"on {result['images']} images"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
