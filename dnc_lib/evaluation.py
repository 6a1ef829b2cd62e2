"""Run a model over a data set: scores to measures, images to embeddings."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import top_k_correct
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
            sums += torch.stack(
                [top_k_correct(scores, labels), top_k_correct(scores, labels, 5), loss, loss.new_tensor(len(labels))]
            ).to(sums)
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
