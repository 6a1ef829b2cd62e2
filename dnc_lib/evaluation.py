"""Run a model over a data set: scores to measures, images to embeddings."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import top_k_correct


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
        ValueError: for a loader without images.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(4, dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    try:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            scores = model(images).float()
            loss = F.cross_entropy(scores, labels, reduction="sum")
            correct, among = top_k_correct(scores, labels), top_k_correct(scores, labels, 5)
            sums += torch.stack([correct.double(), among.double(), loss.double(), torch.ones_like(loss).double() * len(labels)]).to(sums.device)
    finally:
        model.train(training)
    if reduce is not None:
        sums = reduce(sums)
    correct, among, loss, count = sums.tolist()
    if count == 0:
        raise ValueError("the loader gave no images: nothing to evaluate")
    return {"accuracy": 100 * correct / count, "top5": 100 * among / count, "loss": loss / count, "images": int(count)}


@torch.no_grad()
def embed_dataset(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of every image, in the loader's order, in evaluation mode.

    Args:
        model: an :class:`~dnc_lib.models.ImageClassifier`.
        loader: batches of images and labels, unshuffled if the order matters.

    Returns:
        embeddings (N, D) float32, labels (N,), on the model's device.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        parts = [(model.embed(images.to(device)).float(), labels.to(device)) for images, labels in loader]
    finally:
        model.train(training)
    if not parts:
        raise ValueError("the loader gave no images: nothing to embed")
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
