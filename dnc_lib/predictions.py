"""What a model says of images: shares of classes, label maps; and of a whole test set, scene by scene."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .inference import Size, segment
from .metrics import IGNORED, confusion, predicted_classes
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
        ValueError: for a loader without images.
    """
    counts, maps, loss = [], [], 0.0
    looks = {"window": window, "stride": stride, "flip": flip, "scales": scales}
    with evaluating(model) as device:
        for images, labels in tqdm(loader, unit=" batches", leave=False, disable=not progress):
            labels, size = labels.to(device), tuple(labels.shape[1:])
            scores = segment(model, images.to(device), size=size, **looks)
            predicted = predicted_classes(scores)
            loss += F.cross_entropy(scores, labels.long(), ignore_index=IGNORED, reduction="sum").item()
            counts += [confusion(*pair, scores.shape[1]).cpu() for pair in zip(predicted, labels, strict=True)]
            half = labels_at(predicted, tuple(max(1, side // 2) for side in size))
            maps += list(half.to(torch.uint8).cpu().numpy())
    if not counts:
        raise ValueError("the loader gave no images: nothing to record")
    counts = torch.stack(counts)
    return SceneRecords(counts.to(torch.int32).numpy(), maps, loss / max(int(counts.sum()), 1))
