"""The words of the ``dnc`` command: what may be said, and the recipe that is meant."""

import argparse
import dataclasses
import os
from pathlib import Path

from . import __version__, recipes
from .recipes import Recipe
from .recipes.base import TUPLES, field_help


def parser() -> argparse.ArgumentParser:
    """The parser of ``dnc``; what it parses has a ``command``."""
    whole = argparse.ArgumentParser(prog="dnc", description="Deep nearest centroids.")
    whole.add_argument("--version", action="version", version=f"dnc {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("recipes", help="what can be trained, and what to expect of it")

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
    command.add_argument(
        "--also",
        nargs="+",
        metavar="DEED",
        default=[],
        help="measure again with sub-centroids estimated anew (refresh) or put at training images (anchor)",
    )
    command.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the trained models")
    _add_manner(command)
    _add_fields(command)

    command = commands.add_parser("evaluate", help="measure a run on its test images")
    _add_run(command)
    _add_looks(command, stride=True)
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE.npz",
        help="of scenes: keep each one's confusion counts and predicted labels",
    )

    command = commands.add_parser("predict", help="classes or label maps of images")
    _add_run(command)
    _add_images(command, nargs="+")
    _add_looks(command)
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="of scenes: where label maps and overlays go (predictions)"
    )

    command = commands.add_parser("explain", help="which training images a prediction rests on, how near, the rule")
    _add_run(command)
    _add_images(command)
    command.add_argument(
        "--at", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="of scenes: the pixel, counted from 0 (the centre)"
    )
    command.add_argument("--cases", type=int, default=3, metavar="N", help="shown of each of the two classes (3)")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FIGURE.png",
        help="the figure (IMAGE_explained.png); the same as data goes beside it as .json",
    )
    return whole


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that a command names, with the fields that it changes.

    Raises:
        ValueError: for an unknown name, or a value out of range.
    """
    changes = {key[6:]: value for key, value in vars(options).items() if key.startswith("field_")}
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    return recipes.get(options.recipe, **changes)


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    _add_data(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_images(command: argparse.ArgumentParser, **settings) -> None:
    command.add_argument(
        "image", metavar="IMAGE", help="an image file, or the number of a test image, from 0", **settings
    )


def _add_looks(command: argparse.ArgumentParser, stride: bool = False) -> None:
    """How a scene is looked at; what is not given is not there, so that it can be refused where it has no sense."""
    group = command.add_argument_group("how scenes are looked at")
    plain = {"default": argparse.SUPPRESS}
    group.add_argument(
        "--window", type=int, nargs=2, metavar=("H", "W"), help="slide a window (as the recipe says)", **plain
    )
    if stride:
        group.add_argument(
            "--stride", type=int, nargs=2, metavar=("H", "W"), help="from window to window (2/3 of it)", **plain
        )
    group.add_argument("--flip", action="store_true", help="look at the mirrored image too", **plain)
    group.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="look at the image resized by each factor (1)", **plain
    )


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
