"""Measures of a classifier and of a segmenter: pure functions of scores and labels, and one streaming matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

#: The label of a pixel without a class, whatever the data set's files call it.
IGNORED = 255


def top_k_correct(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """How many labels are among the ``k`` best scores.

    Args:
        scores: (N, C).
        labels: (N,).
        k: at most C.

    Returns:
        A scalar count.
    """
    return (scores.topk(min(k, scores.shape[1]), dim=1).indices == labels[:, None]).any(1).sum()


def purity(winners: Tensor, labels: Tensor, num_subcentroids: int, num_classes: int) -> Tensor:
    """Of the samples that each sub-centroid wins, the share of its own class.

    Args:
        winners: (N,) index c * K + k of the sub-centroid nearest to each sample.
        labels: (N,) true classes.
        num_subcentroids: K, sub-centroids of a class.
        num_classes: C, how many classes there are.

    Returns:
        (C, K), NaN for a sub-centroid that wins nothing.
    """
    size = num_classes * num_subcentroids
    won = torch.bincount(winners, minlength=size)
    right = torch.bincount(winners[winners // num_subcentroids == labels], minlength=size)
    return (right / won).view(num_classes, num_subcentroids)


def predicted_classes(scores: Tensor) -> Tensor:
    """The class with the largest score at each pixel: (B, C, H, W) -> (B, H, W).

    The same as ``scores.argmax(1)``; on a CPU ``max`` takes a quarter to two thirds of the time that it takes.
    """
    return scores.max(dim=1).indices


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often each class was taken for each: a confusion matrix of labelled pixels (or of images).

    Args:
        predictions: class indices, any shape; where the label is :data:`IGNORED` they may be anything.
        labels: true classes, the same shape, :data:`IGNORED` where there is none.
        num_classes: C, from 1 to 255.

    Returns:
        (C, C) int64, rows are true classes, columns predicted ones.

    Raises:
        ValueError: for shapes that differ, numbers that are no integers, classes out of range, or more of them than
            8 bits can tell from :data:`IGNORED`.
    """
    _check_number(num_classes)
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions and labels must have one shape, got {tuple(predictions.shape)} and {tuple(labels.shape)}: "
            f"resize the scores, not the labels, before you take the best class"
        )
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {values.dtype}")
    wrong = _outside(labels, IGNORED)  # labels from C up to IGNORED show below, in the counts
    if wrong is None and _outside(predictions, num_classes - 1) is not None:
        kept = labels != IGNORED
        predictions, labels = predictions[kept], labels[kept]
        if (wrong := _outside(predictions, num_classes - 1)) is not None:
            raise ValueError(
                f"predictions must lie in [0, {num_classes - 1}] for {num_classes} classes, found {wrong}"
            )
    if wrong is None:
        # Nothing is masked: ignored pixels are counted, in a row of their own. Codes of 32 bits halve the traffic.
        codes = (labels.to(torch.int32) * num_classes).add_(predictions.to(torch.int32))
        counts = torch.bincount(codes.flatten(), minlength=(IGNORED + 1) * num_classes).view(-1, num_classes)
        beyond = counts[num_classes:IGNORED].any(1)
        if not beyond.any():
            return counts[:num_classes].clone()  # a view would keep all 256 rows
        wrong = num_classes + int(beyond.int().argmax())
    raise ValueError(
        f"labels must lie in [0, {num_classes - 1}] for {num_classes} classes, or be {IGNORED} for no class, "
        f"found {wrong}"
    )


def _check_number(num_classes: int) -> None:
    if not 1 <= num_classes <= IGNORED:
        raise ValueError(f"num_classes must lie in [1, {IGNORED}], got {num_classes}: {IGNORED} is no class")


def _outside(values: Tensor, highest: int) -> int | None:
    """The lowest value, or the highest, if it lies outside [0, highest]."""
    if values.numel() == 0:
        return None
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return low if low < 0 else high if high > highest else None


def class_iou(matrix: Tensor) -> Tensor:
    """Intersection over union: of each class, the pixels that are it and predicted so, over those that are either.

    Args:
        matrix: (..., C, C) counts, rows true, columns predicted.

    Returns:
        (..., C) float64 in [0, 1]; NaN for a class that neither occurs nor is predicted.
    """
    both, either = _areas(matrix)
    return both / either  # 0 / 0 is NaN


def _areas(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels that are a class and predicted so, and pixels that are either: (..., C) float64, on the CPU."""
    both = matrix.diagonal(dim1=-2, dim2=-1)
    either = matrix.sum(-1) + matrix.sum(-2) - both
    return both.cpu().double(), either.cpu().double()  # exact up to 2^53 pixels; not every device has float64


class ConfusionMatrix:
    """A confusion matrix that grows batch by batch and never keeps a pixel.

    Args:
        num_classes: C, from 1 to 255.
        device: where the matrix lies and the counting is done.

    Attributes:
        matrix: (C, C) int64 counts, rows are true classes, columns predicted ones.

    Raises:
        ValueError: for a number of classes that 8 bits cannot tell from :data:`IGNORED`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        _check_number(num_classes)
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.long, device=device)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count a batch, without the labels equal to :data:`IGNORED`; see :func:`confusion` for shapes and errors."""
        device = self.matrix.device
        self.matrix += confusion(predictions.to(device), labels.to(device), self.num_classes)

    def reduce(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the matrix by what ``function`` makes of it: its sum over processes."""
        self.matrix = function(self.matrix)

    def pixels(self) -> int:
        """How many labelled pixels were counted."""
        return int(self.matrix.sum())

    def iou(self) -> Tensor:
        """Intersection over union of each class, (C,) float64 in [0, 1]; NaN for a class in neither truth nor
        predictions."""
        return class_iou(self.matrix)

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that occur in truth or predictions; NaN for an empty matrix."""
        return self.iou().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted right; NaN for an empty matrix."""
        matrix = self.matrix.cpu().double()
        return (matrix.trace() / matrix.sum()).item()


def bootstrap_miou(matrices: Tensor, samples: int = 1000, seed: int = 0) -> Tensor:
    """How the mean IoU would vary had other images of the same kind been in the test set.

    The images, not the pixels, are drawn anew with replacement, as many as there are: pixels of one image are not
    independent. The mean IoU is taken of the summed matrix of each draw, as it is of the whole test set. Quantiles of
    what comes back make an interval; it says nothing about another seed of training.

    Args:
        matrices: (N, C, C) counts, one matrix an image, see :func:`dnc_lib.evaluation.segmentation_counts`.
        samples: S, how many draws.
        seed: of the draws; the same seed and N draw the same images.

    Returns:
        (S,) float64 mean IoU in [0, 1] over the classes that occur in truth or predictions of the draw.

    Raises:
        ValueError: for matrices of another shape or without images, or fewer than one sample.
    """
    _check_matrices(matrices)
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, got {samples}")
    number = len(matrices)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(number, (samples, number), generator=generator)
    times = torch.zeros(samples, number, dtype=torch.float64).scatter_add_(  # (S, N): how often each image was drawn
        1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(samples, number)
    )
    both, either = (times @ area for area in _areas(matrices))  # (S, C); whole numbers, so the sums are exact
    return (both / either).nanmean(1)


def bootstrap_miou_difference(first: Tensor, second: Tensor, samples: int = 1000, seed: int = 0) -> Tensor:
    """How the difference of two models' mean IoU would vary with the test images: first minus second, paired.

    Both models see the same draws of images, so what makes an image hard for both cancels out.

    Args:
        first: (N, C, C) counts of one model, one matrix an image.
        second: those of the other, for the same images in the same order.
        samples: S, how many draws.
        seed: of the draws.

    Returns:
        (S,) float64 differences of mean IoU, in [-1, 1].

    Raises:
        ValueError: as :func:`bootstrap_miou`, and where the two do not speak of the same images.
    """
    _check_matrices(first)
    _check_matrices(second)
    if first.shape != second.shape or not torch.equal(first.sum(2), second.sum(2)):  # true pixels by image and class
        raise ValueError(
            "the two models must have been evaluated on the same images in the same order: "
            "their labelled pixels of each class differ"
        )
    return bootstrap_miou(first, samples, seed) - bootstrap_miou(second, samples, seed)


def _check_matrices(matrices: Tensor) -> None:
    if matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2] or len(matrices) == 0:
        raise ValueError(f"matrices must be (N, C, C), one for each of N images, got {tuple(matrices.shape)}")
