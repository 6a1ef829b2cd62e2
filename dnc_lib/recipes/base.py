"""What a recipe is: everything that decides the outcome of a training, frozen."""

import dataclasses
import difflib
import inspect
import re
from dataclasses import dataclass

from ..heads import HEADS
from ..sinkhorn import ASSIGNMENTS

SCHEDULES = ("step", "one_cycle", "cosine", "constant")
PRECISIONS = ("no", "bf16", "fp16")

_CHOICES = {
    "head": HEADS,
    "schedule": SCHEDULES,
    "assignment": ASSIGNMENTS,
    "start": ("random", "data"),
    "precision": PRECISIONS,
}
_RANGES = (
    ("1 or more", lambda x: x >= 1, ("epochs", "batch_size", "image_size", "num_subcentroids")),
    (
        "0 or more",
        lambda x: x >= 0,
        ("seed", "weight_decay", "pad", "memory_size", "update_after", "validation", "train_limit"),
    ),
    ("above 0", lambda x: x > 0, ("learning_rate", "decay", "temperature", "epsilon")),
    ("0 or more and below 1", lambda x: 0 <= x < 1, ("sgd_momentum", "momentum", "label_smoothing")),
)

#: A random start that keeps more of its weight than this is called out.
START_KEPT = 0.05


@dataclass(frozen=True)
class Recipe:
    """A training, whole. Field names are command-line options: ``momentum`` is ``--momentum``.

    Attributes:
        name: of the recipe.
        dataset: see :func:`dnc_lib.data.load`.
        backbone: see :func:`dnc_lib.backbones.build_backbone`.
        head: ``softmax``, ``cosine`` (learned prototypes), ``frozen`` (random, never moved) or ``dnc``.
        seed: of weights, sub-centroids, order and augmentation.
        epochs: passes over the training images.
        batch_size: images a step, over all processes together.
        learning_rate: of SGD; the peak for one_cycle.
        sgd_momentum: of SGD, not of the sub-centroids.
        nesterov: look ahead, SGD's variant.
        weight_decay: on every learnable parameter.
        schedule: ``step`` (times ``decay`` at ``milestones``), ``one_cycle``, ``cosine`` or ``constant``.
        milestones: epochs after which ``step`` lowers the learning rate.
        decay: its factor.
        pad: random crop after padding by so many pixels.
        flip: mirror half of the images.
        label_smoothing: share of each label spread over all classes.
        image_size: for folders of images of unequal size.
        num_subcentroids: K, of each class.
        momentum: mu, the share of the old sub-centroid kept at an update.
        temperature: of every head but softmax.
        memory_size: past embeddings that take part in the update; 0 for none.
        assignment: ``sinkhorn``, ``nearest`` or ``random``.
        epsilon: entropy of the Sinkhorn assignment.
        correct_only: only correctly classified samples enter update and memory.
        start: ``random`` or ``data``.
        update_after: optimiser steps during which the sub-centroids stand still.
        refresh: after training, estimate them anew; kept only where held-out accuracy does not fall.
        validation: training images held out; 0 for none.
        train_limit: train on so many images, classes even; 0 for all.
        precision: ``no``, ``bf16`` or ``fp16``.
    """

    name: str
    dataset: str
    backbone: str
    head: str = "dnc"
    seed: int = 0
    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    sgd_momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = (100, 150)
    decay: float = 0.1
    pad: int = 4
    flip: bool = True
    label_smoothing: float = 0.0
    image_size: int = 32
    num_subcentroids: int = 4
    momentum: float = 0.999
    temperature: float = 0.1
    memory_size: int = 12_800
    assignment: str = "sinkhorn"
    epsilon: float = 0.05
    correct_only: bool = False
    start: str = "random"
    update_after: int = 0
    refresh: bool = False
    validation: int = 0
    train_limit: int = 0
    precision: str = "no"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for rule, holds, fields in _RANGES:
            for field in fields:
                if not holds(getattr(self, field)):
                    raise ValueError(f"{field} must be {rule}, got {getattr(self, field)}")
        if self.refresh and not self.validation:
            raise ValueError("refresh needs held-out images to judge it by: set validation to their number")

    def replace(self, **changes) -> "Recipe":
        """The same with some fields changed.

        Raises:
            ValueError: for a field that does not exist, with the nearest one, or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"a recipe has no field {', '.join(unknown)}.{hint} It has: {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def head_settings(self) -> dict:
        """The fields that concern the head."""
        names = ("num_subcentroids", "momentum", "temperature", "memory_size", "assignment", "epsilon")
        return {name: getattr(self, name) for name in (*names, "correct_only", "start", "seed")}

    def start_kept(self, updates: int) -> float:
        """Weight of a sub-centroid's start after so many updates: momentum to their number."""
        return 0.0 if self.start == "data" else self.momentum**updates

    def to_dict(self) -> dict:
        """Plain values, for a manifest."""
        return dataclasses.asdict(self)


def field_help() -> dict[str, str]:
    """What the docstring of :class:`Recipe` says of each field, as plain text, for the command line."""
    described = (inspect.getdoc(Recipe) or "").partition("Attributes:\n")[2]
    plain = re.sub(r":\w+:`|`", "", described)
    return dict(re.findall(r"^ +(\w+): (.+?)\.?$", plain, re.MULTILINE))


def _check_type(field: dataclasses.Field, value: object) -> None:
    """Raise ``ValueError`` unless the value is of the field's type; a whole number will do for a float."""
    if field.type == tuple[int, ...]:
        fits, wanted = isinstance(value, tuple) and all(type(each) is int for each in value), "a tuple of int"
    else:
        fits = type(value) is field.type or (field.type is float and type(value) is int)
        wanted = field.type.__name__
    if not fits:
        raise ValueError(f"{field.name} must be {wanted}, got {value!r}")
