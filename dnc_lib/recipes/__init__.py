"""Recipes: one named function an experiment, its docstring giving expected score, time and hardware."""

import difflib
import inspect
from collections.abc import Callable

from .base import Recipe, parse_arm
from .camvid import *  # noqa: F403
from .camvid import __all__ as _camvid
from .cifar import *  # noqa: F403
from .cifar import __all__ as _cifar
from .digits import *  # noqa: F403
from .digits import __all__ as _digits
from .imagenet import *  # noqa: F403
from .imagenet import __all__ as _imagenet
from .scenes import *  # noqa: F403
from .scenes import __all__ as _scenes

NAMES = (*_digits, *_cifar, *_imagenet, *_camvid, *_scenes)

__all__ = ["NAMES", "Recipe", "describe", "get", "parse_arm", *NAMES]


def get(name: str, **changes) -> Recipe:
    """The recipe of this name, with fields changed.

    Raises:
        ValueError: for an unknown recipe, with the nearest name, or an unknown field.
    """
    return _function(name)(**changes)


def describe(name: str) -> str:
    """What to expect of a recipe: its docstring."""
    return inspect.getdoc(_function(name))


def _function(name: str) -> Callable[..., Recipe]:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown recipe {name!r}.{hint} `dnc recipes` lists all: {', '.join(NAMES)}")
    return globals()[name]
