"""Trained models that ship with the package."""

import difflib
from importlib import resources
from pathlib import Path

import torch

from .checkpoints import ModelCard, read_model
from .models import ImageClassifier


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
    names = available()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown pretrained model {name!r}.{hint} There are: {', '.join(names) or 'none'}")
    with resources.as_file(resources.files("dnc_lib") / "weights" / f"{name}.safetensors") as path:
        model, card = read_model(Path(path), device)
    model.card = card
    return model


__all__ = ["ModelCard", "available", "load_pretrained"]
