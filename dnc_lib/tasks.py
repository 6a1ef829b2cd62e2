"""Classifying images and classifying pixels: the loss of a step, what the head's update gets of it, the measures.

The engine asks a task and knows no other difference between the two.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .evaluation import evaluate, evaluate_segmentation
from .metrics import IGNORED, predicted_classes
from .models import Model
from .pixels import draw_pixels, labels_at
from .recipes import Recipe

Reduce = Callable[[Tensor], Tensor] | None


class Outcome(NamedTuple):
    """What a forward pass of a training step gives.

    Attributes:
        loss: a scalar, to go backward from.
        correct: how many of the labelled samples were classified correctly.
        count: the labelled samples.
        features: raw ones, without a gradient, for the head's update.
        labels: of the features.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor
    features: Tensor
    labels: Tensor


class Classification:
    """Whole images.

    Attributes:
        metric: what the best epoch is judged by, and a comparison.
        measures: the scores of an evaluation, numbers.
        details: lists of numbers that it gives besides.
        even: whether every batch of so many images has as many samples to learn from as any other.
    """

    metric = "accuracy"
    measures = ("accuracy", "top5", "loss")
    details = ()
    even = True

    def step(
        self, model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None = None, smoothing: float = 0.0
    ) -> Outcome:
        """Forward pass and loss.

        Args:
            model: images (B, 3, H, W) to scores and features, with ``return_features``.
            images: (B, 3, H, W).
            labels: (B,).
            targets: (B, C), soft labels of mixed images, in the place of ``labels``.
            smoothing: share of each label spread over all classes.
        """
        scores, features = model(images, return_features=True)
        targets = labels if targets is None else targets
        loss = F.cross_entropy(scores.float(), targets, label_smoothing=smoothing)
        correct = (scores.detach().argmax(1) == labels).sum()
        return Outcome(loss, correct, loss.new_full((), len(labels)), features.detach(), labels)

    def samples(self, outcome: Outcome, seed: int) -> tuple[Tensor, Tensor]:
        """What the head's update gets: features (B, D) and labels (B,)."""
        return outcome.features, outcome.labels

    def evaluate(self, model: Model, loader: Iterable, reduce: Reduce = None) -> dict:
        """See :func:`dnc_lib.evaluation.evaluate`."""
        return evaluate(model, loader, reduce)

    def refresh(self, model: Model, loader: Iterable) -> None:
        """See :meth:`dnc_lib.models.ImageClassifier.refresh`."""
        model.refresh(loader)


class Segmentation:
    """Pixels.

    Args:
        num_classes: C, how many classes there are.
        auxiliary: weight of the auxiliary branch's loss.
        pixels: how many of each class and image the head's update gets, at most.
        window: (height, width) of the sliding window at an evaluation; empty for the whole image.
        multiple: of the model, see ``Segmenter.multiple``.

    Attributes:
        metric: see :class:`Classification`.
        measures: see :class:`Classification`.
        details: see :class:`Classification`; ``iou`` is of each class.
        even: see :class:`Classification`; of some crops more pixels are labelled than of others.
    """

    metric = "miou"
    measures = ("miou", "pixel_accuracy", "loss")
    details = ("iou",)
    even = False

    def __init__(
        self,
        num_classes: int,
        auxiliary: float = 0.0,
        pixels: int = 20,
        window: tuple[int, ...] = (),
        multiple: int = 1,
    ):
        self.num_classes, self.auxiliary, self.pixels = num_classes, auxiliary, pixels
        self.window, self.multiple = tuple(window), multiple

    def count(self, labels: Tensor) -> Tensor:
        """How many pixels of (B, H, W) are labelled."""
        return (labels != IGNORED).sum()

    def step(
        self, model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None = None, smoothing: float = 0.0
    ) -> Outcome:
        """Forward pass and loss, the mean over the labelled pixels.

        Args:
            model: see :meth:`dnc_lib.models.Segmenter.forward`.
            images: (B, 3, H, W).
            labels: (B, H, W), 255 for no class.
            targets: not for pixels.
            smoothing: not for pixels.
        """
        scores, features, beside = model(images, return_features=True)
        count = self.count(labels)
        loss = _cross_entropy(scores, labels, count)
        if beside is not None:
            loss = loss + self.auxiliary * _cross_entropy(beside, labels, count)
        correct = (predicted_classes(scores.detach()) == labels).sum()  # no class is called 255
        return Outcome(loss, correct, count, features.detach(), labels)

    def samples(self, outcome: Outcome, seed: int) -> tuple[Tensor, Tensor]:
        """What the head's update gets: features (B, P, D) and labels (B, P) as
        :func:`dnc_lib.pixels.draw_pixels` draws them."""
        labels = labels_at(outcome.labels, outcome.features.shape[2:], self.multiple)
        return draw_pixels(outcome.features, labels, self.pixels, self.num_classes, seed)

    def evaluate(self, model: Model, loader: Iterable, reduce: Reduce = None) -> dict:
        """See :func:`dnc_lib.evaluation.evaluate_segmentation`."""
        return evaluate_segmentation(model, loader, reduce, window=self.window or None)

    def refresh(self, model: Model, loader: Iterable) -> None:
        """See :meth:`dnc_lib.models.Segmenter.refresh`."""
        model.refresh(loader, self.pixels)


Task = Classification | Segmentation


def task_of(recipe: Recipe, num_classes: int, multiple: int = 1) -> Task:
    """The task of a recipe, for a model of so many classes and, of pixels, this ``multiple``."""
    if not recipe.decoder:
        return Classification()
    return Segmentation(num_classes, recipe.auxiliary, recipe.pixels, recipe.window, multiple)


def _cross_entropy(scores: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Mean over ``count`` labelled pixels; 0 where a batch has none, which a plain mean would make NaN."""
    total = F.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / count.clamp_min(1)
