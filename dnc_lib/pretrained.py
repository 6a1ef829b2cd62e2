"""Trained models that ship with the package."""

import difflib
import json
from importlib import resources
from pathlib import Path

import torch

from .checkpoints import ModelCard, read_model
from .data import DeviceLoader, LabelledImages
from .exemplars import Exemplars, find_exemplars
from .models import ImageClassifier

#: Images at a time where exemplars are searched.
BATCH = 250


def available() -> list[str]:
    """Names for :func:`load_pretrained`."""
    folder = resources.files("dnc_lib") / "weights"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))


def load_pretrained(name: str, device: str | torch.device = "cpu") -> ImageClassifier:
    """A trained model that ships with the package, in evaluation mode; its ``card`` tells classes and normalisation.

    Args:
        name: for instance ``"cifar10_resnet20_dnc"``.
        device: where to put it.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    _check(name)
    with resources.as_file(resources.files("dnc_lib") / "weights" / f"{name}.safetensors") as path:
        model, card = read_model(Path(path), device)
    model.card = card
    return model


def pretrained_exemplars(name: str, train: LabelledImages | None = None) -> Exemplars:
    """Which training image each sub-centroid of such a model stands for, as :func:`dnc_lib.explain.explain` wants it.

    Args:
        name: see :func:`load_pretrained`.
        train: the training images at hand. A data set may lie on disk in another order than the one that the numbers
            of the shipped exemplars count in; then they are found anew among these, in a pass over all of them.

    Raises:
        ValueError: for an unknown name, with the nearest one, a model without sub-centroids, or images of other
            classes.
    """
    _check(name)
    path = resources.files("dnc_lib") / "weights" / f"{name}.exemplars.json"
    if not path.is_file():
        raise ValueError(f"{name} has no sub-centroids that an image could stand for")
    shipped = Exemplars.from_dict(json.loads(path.read_text(encoding="utf-8")))
    if train is None or train.digest() == shipped.data:
        return shipped
    if tuple(train.classes) != shipped.classes:
        raise ValueError(
            f"{train.name or 'the training images'} has other classes than {name}, which knows "
            f"{', '.join(shipped.classes)}"
        )
    model = load_pretrained(name)
    return find_exemplars(model, DeviceLoader(train, BATCH, model.card.mean, model.card.std), train)


def _check(name: str) -> None:
    """Raise ``ValueError`` for a name that no shipped model has."""
    names = available()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown pretrained model {name!r}.{hint} There are: {', '.join(names) or 'none'}")


__all__ = ["ModelCard", "available", "load_pretrained", "pretrained_exemplars"]
