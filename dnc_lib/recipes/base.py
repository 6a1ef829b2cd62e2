"""What a recipe is: everything that decides the outcome of a training, frozen."""

import dataclasses
from dataclasses import dataclass

from ..heads import HEADS

SCHEDULES = ("step", "one_cycle", "cosine", "constant")
PRECISIONS = ("no", "bf16", "fp16")

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
        nesterov: SGD's variant.
        weight_decay: on every learnable parameter.
        schedule: ``step`` (times ``decay`` at ``milestones``), ``one_cycle``, ``cosine`` or ``constant``.
        milestones: epochs.
        decay: factor.
        pad: random crop after padding by so many pixels.
        flip: mirror half of the images.
        label_smoothing: of the cross-entropy.
        image_size: for folders of images of unequal size.
        num_subcentroids: K.
        momentum: mu, the share of the old sub-centroid kept at an update.
        temperature: of every head but softmax.
        memory_size: past embeddings in the update.
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
        for field, allowed in (("head", HEADS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for field in ("epochs", "batch_size", "num_subcentroids"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be 1 or more, got {getattr(self, field)}")
        if self.refresh and not self.validation:
            raise ValueError("refresh needs held-out images to judge it by: set validation to their number")

    def replace(self, **changes) -> "Recipe":
        """The same with some fields changed.

        Raises:
            ValueError: for a field that does not exist, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"a recipe has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
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
