"""Run a model over a data set: scores to measures, images to embeddings."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .inference import Size, segment
from .metrics import IGNORED, ConfusionMatrix, confusion, predicted_classes, top_k_correct
from .models import evaluating
from .sinkhorn import check_labels


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], reduce: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Accuracy and loss of a classifier, in evaluation mode.

    Args:
        model: images (B, 3, H, W) to scores (B, C).
        loader: batches of images and labels, each image once.
        reduce: sums a tensor over processes; none for one process.

    Returns:
        ``accuracy`` and ``top5`` in percent, ``loss`` (mean cross-entropy), ``images`` (how many were seen).

    Raises:
        ValueError: for a loader without images, or labels out of range.
    """
    sums = torch.zeros(4, dtype=torch.float64)  # correct, among the best five, loss, images
    with evaluating(model) as device:
        for images, labels in loader:
            labels = labels.to(device)
            scores = model(images.to(device)).float()
            check_labels(labels, scores.shape[1])
            loss = F.cross_entropy(scores, labels, reduction="sum")
            best = [top_k_correct(scores, labels, k) for k in (1, 5)]
            sums += torch.stack([*best, loss, loss.new_full((), len(labels))]).to(sums)
    if reduce is not None:
        sums = reduce(sums if device.type == "mps" else sums.to(device))  # MPS has no float64, and one process
    correct, among, loss, count = sums.tolist()
    if count == 0:
        raise ValueError("the loader gave no images: nothing to evaluate")
    return {
        "accuracy": 100 * correct / count,
        "top5": 100 * among / count,
        "loss": loss / count,
        "images": int(count),
    }


@torch.no_grad()
def embed_dataset(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of every image, in the loader's order, in evaluation mode.

    Args:
        model: an :class:`~dnc_lib.models.ImageClassifier`.
        loader: batches of images and labels, unshuffled if the order matters.

    Returns:
        embeddings (N, D) float32, labels (N,), on the model's device.

    Raises:
        ValueError: for a loader without images.
    """
    with evaluating(model) as device:
        parts = [(model.embed(images.to(device)).float(), labels.to(device)) for images, labels in loader]
    if not parts:
        raise ValueError("the loader gave no images: nothing to embed")
    embeddings, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return embeddings, labels


@torch.no_grad()
def evaluate_segmentation(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    reduce: Callable[[Tensor], Tensor] | None = None,
    *,
    window: Size | None = None,
    stride: Size | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    progress: bool = False,
) -> dict[str, float | int | list[float | None]]:
    """Mean intersection over union, pixel accuracy and loss of a segmenter, at the labels' own resolution.

    One confusion matrix over all images gives every number; a class that occurs in neither labels nor predictions
    has no IoU and does not enter the mean.

    Args:
        model: images (B, 3, h, w) to class scores (B, C, h, w).
        loader: batches of images (B, 3, h, w) and labels (B, H, W), each image once; label 255 is no class. H and W
            may differ from h and w: the scores are resized, never the labels.
        reduce: sums a tensor over processes; none for one process.
        window: of a sliding window; see :func:`dnc_lib.inference.segment` for this and the next three.
        stride: from window to window.
        flip: look at the mirrored image too.
        scales: look at the image resized by each of these factors.
        progress: show a progress bar.

    Returns:
        ``miou`` and ``pixel_accuracy`` in percent, ``loss`` (mean cross-entropy over labelled pixels), ``images``
        (how many were seen), ``iou`` (percent for each class, None where a class has none).

    Raises:
        ValueError: for a loader without images or without a labelled pixel, labels out of range or of another shape.
    """
    total, sums = None, torch.zeros(2, dtype=torch.float64)  # loss, images
    looks = {"window": window, "stride": stride, "flip": flip, "scales": scales}
    with evaluating(model) as device:
        for scores, labels in segmented(model, loader, device, progress, looks):
            if total is None:
                total = ConfusionMatrix(scores.shape[1], device)
            total.update(predicted_classes(scores), labels)
            loss = F.cross_entropy(scores, labels.long(), ignore_index=IGNORED, reduction="sum")
            sums += torch.stack([loss, loss.new_full((), len(labels))]).to(sums)
    if total is None and reduce is None:
        raise ValueError("the loader gave no images: nothing to evaluate")
    if reduce is not None:
        if total is None:  # no image for this process, but the others wait for its numbers
            total = ConfusionMatrix(model.head.num_classes, device)
        total.reduce(reduce)
        sums = reduce(sums if device.type == "mps" else sums.to(device))  # MPS has no float64, and one process
    loss, count = sums.tolist()
    if count == 0:
        raise ValueError("the loader gave no images: nothing to evaluate")
    return segmentation_measures(total, loss, int(count))


def segmentation_measures(
    matrix: ConfusionMatrix, loss: float, images: int
) -> dict[str, float | int | list[float | None]]:
    """What :func:`evaluate_segmentation` returns, of what it counted.

    Args:
        matrix: of all images.
        loss: sum of the cross-entropy over all labelled pixels.
        images: how many were seen.

    Raises:
        ValueError: where no pixel had a label.
    """
    if matrix.pixels() == 0:
        raise ValueError(f"no pixel has a label: every one is {IGNORED}; does the data set's table fit its files?")
    return {
        "miou": 100 * matrix.miou(),
        "pixel_accuracy": 100 * matrix.pixel_accuracy(),
        "loss": loss / matrix.pixels(),
        "images": images,
        "iou": [None if iou != iou else 100 * iou for iou in matrix.iou().tolist()],  # NaN alone differs from itself
    }


@torch.no_grad()
def segmentation_counts(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    window: Size | None = None,
    stride: Size | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    progress: bool = False,
) -> Tensor:
    """One confusion matrix an image, in the loader's order: what an interval over images needs.

    Args:
        model: see :func:`evaluate_segmentation`.
        loader: see there; unshuffled, to compare two models image by image.
        window: see :func:`dnc_lib.inference.segment` for this and the next three.
        stride: from window to window.
        flip: look at the mirrored image too.
        scales: look at the image resized by each of these factors.
        progress: show a progress bar.

    Returns:
        (N, C, C) int64 on the CPU, rows are true classes, columns predicted ones; see
        :func:`dnc_lib.metrics.bootstrap_miou`.

    Raises:
        ValueError: for a loader without images, labels out of range or of another shape.
    """
    matrices = []
    looks = {"window": window, "stride": stride, "flip": flip, "scales": scales}
    with evaluating(model) as device:
        for scores, labels in segmented(model, loader, device, progress, looks):
            pairs = zip(predicted_classes(scores), labels, strict=True)
            matrices += [confusion(*pair, scores.shape[1]).cpu() for pair in pairs]
    if not matrices:
        raise ValueError("the loader gave no images: nothing to evaluate")
    return torch.stack(matrices)


def segmented(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device, progress: bool, looks: dict
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (B, C, H, W) at the labels' resolution, and labels (B, H, W), batch by batch.

    Args:
        model: images to class scores, in evaluation mode.
        loader: see :func:`evaluate_segmentation`.
        device: of the model.
        progress: show a progress bar.
        looks: ``window``, ``stride``, ``flip`` and ``scales`` of :func:`dnc_lib.inference.segment`.

    Raises:
        ValueError: for labels that are not one map an image.
    """
    for images, labels in tqdm(loader, unit=" batches", leave=False, disable=not progress):
        if labels.dim() != 3 or len(labels) != len(images):
            raise ValueError(
                f"labels must be maps (B, H, W) for {len(images)} images, got {tuple(labels.shape)}: "
                f"give a loader of scenes"
            )
        size = tuple(labels.shape[1:])
        yield segment(model, images.to(device), size=size, **looks), labels.to(device)
