"""What a model says of images: shares of classes, label maps; and of a whole test set, scene by scene."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .evaluation import segmentation_measures, segmented
from .exemplars import image_name
from .inference import Size, segment
from .metrics import IGNORED, ConfusionMatrix, confusion, predicted_classes
from .models import ImageClassifier, Segmenter, evaluating
from .pixels import labels_at


@torch.no_grad()
def predict_shares(model: ImageClassifier, image: Tensor) -> list[float]:
    """The share of each class, the softmax of the scores.

    Args:
        model: images to scores.
        image: (3, H, W), normalised.
    """
    with evaluating(model) as device:
        return model(image[None].to(device)).float().softmax(1)[0].tolist()


@torch.no_grad()
def predict_labels(
    model: Segmenter,
    image: Tensor,
    size: tuple[int, int],
    *,
    window: Size | None = None,
    stride: Size | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> np.ndarray:
    """The label map of a scene, (H, W) uint8.

    Args:
        model: images to scores of every pixel.
        image: (3, h, w), normalised.
        size: (H, W) of the map, the image's own.
        window: see :func:`dnc_lib.inference.segment` for this and the next three.
        stride: from window to window.
        flip: look at the mirrored image too.
        scales: look at the image resized by each of these factors.
    """
    with evaluating(model) as device:
        scores = segment(
            model, image[None].to(device), window=window, stride=stride, flip=flip, scales=scales, size=size
        )
        return predicted_classes(scores)[0].to(torch.uint8).cpu().numpy()


def class_shares(labels: np.ndarray, classes: Sequence[str]) -> list[tuple[int, str, float]]:
    """The classes of a label map: number, name and share of the pixels, the largest first, those that are there."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda c: -counts[c])
    return [(c, classes[c], counts[c] / labels.size) for c in order]


@dataclass(frozen=True)
class SceneRecords:
    """What a segmenter made of each scene of a data set, in order.

    Attributes:
        counts: (N, C, C) int32, rows are true classes, columns predicted ones.
        labels: N predicted label maps, uint8, at half the resolution of the labels.
        loss: mean cross-entropy over all labelled pixels.
    """

    counts: np.ndarray
    labels: list[np.ndarray]
    loss: float

    def measures(self) -> dict:
        """As :func:`dnc_lib.evaluation.evaluate_segmentation` gives them, and ``shares``: the percent of labelled
        pixels that each class has."""
        total = ConfusionMatrix(self.counts.shape[1])
        total.matrix = torch.from_numpy(self.counts).long().sum(0)
        shares = (100 * total.matrix.sum(1) / total.pixels()).tolist()
        return segmentation_measures(total, self.loss * total.pixels(), len(self.counts)) | {"shares": shares}

    def arrays(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """For ``np.savez_compressed``: ``counts``, ``names`` (N,) and ``labels`` (N, h, w); of scenes that differ in
        size ``labels_0``, ``labels_1``, ... in the place of ``labels``."""
        arrays = {"counts": self.counts, "names": np.array(list(names))}
        if len({labels.shape for labels in self.labels}) == 1:
            return {**arrays, "labels": np.stack(self.labels)}
        return {**arrays, **{f"labels_{i}": labels for i, labels in enumerate(self.labels)}}


@torch.no_grad()
def record_scenes(
    model: Segmenter,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    window: Size | None = None,
    stride: Size | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    progress: bool = False,
) -> SceneRecords:
    """Segment every scene of a data set and keep what tells two models apart, scene by scene.

    Args:
        model: images (B, 3, h, w) to class scores (B, C, h, w).
        loader: unshuffled batches of images and labels (B, H, W), 255 for no class.
        window: see :func:`dnc_lib.inference.segment` for this and the next three.
        stride: from window to window.
        flip: look at the mirrored image too.
        scales: look at the image resized by each of these factors.
        progress: show a progress bar.

    Raises:
        ValueError: for a loader without images or without a labelled pixel.
    """
    counts, maps, loss = [], [], 0.0
    looks = {"window": window, "stride": stride, "flip": flip, "scales": scales}
    with evaluating(model) as device:
        for scores, labels in segmented(model, loader, device, progress, looks):
            predicted = predicted_classes(scores)
            loss += F.cross_entropy(scores, labels.long(), ignore_index=IGNORED, reduction="sum").item()
            counts += [confusion(*pair, scores.shape[1]).cpu() for pair in zip(predicted, labels, strict=True)]
            half = labels_at(predicted, tuple(max(1, side // 2) for side in labels.shape[1:]))
            maps += list(half.to(torch.uint8).cpu().numpy())
    if not counts:
        raise ValueError("the loader gave no images: nothing to record")
    counts = torch.stack(counts)
    if not (pixels := int(counts.sum())):
        raise ValueError(f"no pixel has a label: every one is {IGNORED}; does the data set's table fit its files?")
    return SceneRecords(counts.to(torch.int32).numpy(), maps, loss / pixels)


def save_records(records: SceneRecords, data, path: Path) -> None:
    """Write the arrays of :meth:`SceneRecords.arrays` to an .npz file, under a temporary name first.

    Args:
        records: of all scenes in ``data``, in order.
        data: gives the names.
        path: of the file; its folder is made.

    Raises:
        OSError: where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, **records.arrays(image_name(data, i) for i in range(len(data))))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
