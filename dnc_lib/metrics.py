"""Measures of a classifier, as pure functions of scores and labels."""

import torch
from torch import Tensor


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
