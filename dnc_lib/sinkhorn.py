"""Balanced assignment of samples to the K sub-centroids of their class, all classes at once.

Pure functions. Each sample only ever meets the sub-centroids of its own class, so everything here works on
own-class scores of shape (N, K): no tensor with N, C and K in its shape is made, whatever the number of classes.
"""

import torch
from torch import Tensor

#: exp of this, of its negative, and of sums over millions of such numbers stay well inside float32 (up to 88).
LARGEST_EXPONENT = 40


def check_integers(labels: Tensor, name: str = "labels") -> None:
    """Raise ``ValueError`` unless ``labels`` are of an integer type."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {labels.dtype}")


def check_range(low: int, high: int, num_classes: int, name: str = "labels") -> None:
    """Raise ``ValueError`` unless the smallest and the largest label lie in ``[0, num_classes)``."""
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} must lie in [0, {num_classes - 1}] for {num_classes} classes, found {wrong}")


def check_labels(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Raise ``ValueError`` unless ``labels`` are integers in ``[0, num_classes)``.

    Args:
        labels: class indices, any shape.
        num_classes: C, how many classes there are.
        name: how the error calls them.
    """
    check_integers(labels, name)
    if labels.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(labels.long())).tolist()
    check_range(low, high, num_classes, name)


def all_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, any shape: by the extremes, in one pass and without a copy."""
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def class_logsumexp(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Log-sum-exp over the samples of each class.

    Args:
        values: (K, N), any finite numbers.
        labels: (N,) integers in [0, C).
        num_classes: C, how many classes there are.

    Returns:
        (K, C); minus infinity for a class without samples.
    """
    labels = labels.long()
    index = labels.expand_as(values)
    top = values.new_full((len(values), num_classes), -torch.inf).scatter_reduce_(1, index, values, "amax")
    # The largest term of each class becomes exp(0): nothing overflows, and no sum is below 1.
    terms = torch.exp(values - top.index_select(1, labels))
    return top + torch.zeros_like(top).index_add_(1, labels, terms).log()


@torch.no_grad()
def sinkhorn(scores: Tensor, labels: Tensor, num_classes: int, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Entropy-regularised, balanced assignment of samples to the sub-centroids of their class.

    Within each class this approaches the plan Q that maximises ``sum(Q * scores) + epsilon * entropy(Q)``, where
    every sample has mass 1 and every sub-centroid receives N_c / K of it (DNC, section 3.2; Cuturi 2013). The
    normalisation over the samples of a class is a segment log-sum-exp, so one call serves all classes and costs
    O(N K) an iteration. Computed in float32, in log space: exp(score / 0.05) overflows half precision above 0.554.

    Args:
        scores: (N, K) similarity of each sample to the K sub-centroids of its own class; half precision is fine.
        labels: (N,) integers in [0, C).
        num_classes: C, how many classes there are.
        epsilon: strength of the entropy, in units of the scores; small is close to a hard assignment.
        iterations: how often sub-centroids, then samples, are brought to their mass. 0 is a softmax.

    Returns:
        (N, K) float32 plan (float64 if the scores are). Rows sum to 1; the columns of a class tend to N_c / K.

    Raises:
        ValueError: for shapes that do not fit, labels out of range, a non-finite score, epsilon <= 0 or
            iterations < 0.
    """
    if scores.dim() != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores must be (N, K) and labels (N,), got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if scores.shape[1] == 0:
        raise ValueError("scores need at least one column: K must be 1 or more")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more, got {iterations}")
    check_labels(labels, num_classes)
    if not all_finite(scores):
        raise ValueError("scores contain NaN or infinity; check the embeddings they come from")
    with torch.autocast(scores.device.type, enabled=False):
        return _log_plan(scores, labels, num_classes, epsilon, iterations).exp().t().contiguous()


def _log_plan(scores: Tensor, labels: Tensor, num_classes: int, epsilon: float, iterations: int) -> Tensor:
    """The logarithm of the plan, unchecked: the update calls it every step.

    (K, N), not (N, K): K is short, and a CPU needs ten times as long for a softmax along a short last dimension.
    """
    labels = labels.long()
    scores = scores if scores.dtype == torch.float64 else scores.float()
    log_plan = (scores / epsilon).t().contiguous()  # (K, N)
    for _ in range(iterations):
        # To mass 1 a sub-centroid, not N_c / K: that factor is the same for all K, and the samples' step undoes it.
        log_plan = log_plan - class_logsumexp(log_plan, labels, num_classes).index_select(1, labels)
        log_plan = log_plan.log_softmax(dim=0)
    return log_plan if iterations else log_plan.log_softmax(dim=0)


def _plan_of_cosines(scores: Tensor, labels: Tensor, num_classes: int, epsilon: float, iterations: int) -> Tensor:
    """The plan (K, N) of scores in [-1, 1], unchecked, but for a factor of each sample, which no argmax feels.

    Nothing vanishes on the way: no number exceeds 1 once the sub-centroids have mass 1, so dividing by a sample's
    sum, which is at most K, leaves each sub-centroid at least 1 / K.
    """
    labels = labels.long()
    scores = scores if scores.dtype == torch.float64 else scores.float()
    plan = (scores / epsilon).t().contiguous().exp_()  # (K, N)
    for iteration in range(iterations):
        if iteration:
            plan = plan / plan.sum(0)
        mass = plan.new_zeros(len(plan), num_classes).index_add_(1, labels, plan)  # (K, C)
        plan = plan / mass.index_select(1, labels)
    return plan


@torch.no_grad()
def assign(
    scores: Tensor,
    labels: Tensor,
    num_classes: int,
    method: str = "sinkhorn",
    epsilon: float = 0.05,
    iterations: int = 3,
    generator: torch.Generator | None = None,
    cosines: bool = False,
) -> Tensor:
    """The sub-centroid (0..K-1) of its class that each sample moves.

    Args:
        scores: (N, K) own-class similarities.
        labels: (N,) integers in [0, C).
        num_classes: C, how many classes there are.
        method: ``"sinkhorn"`` (balanced), ``"nearest"`` (the most similar, as in k-means) or ``"random"``
            (uniform: the control, and in effect what the released code does).
        epsilon: see :func:`sinkhorn`.
        iterations: see :func:`sinkhorn`.
        generator: for ``"random"``.
        cosines: the scores lie in [-1, 1]. Unless epsilon is very small their exponentials then fit float32, and
            the iterations need no logarithm: the same plan in half the operations.

    Returns:
        (N,) long.

    Raises:
        ValueError: for an unknown method.
    """
    if method == "sinkhorn" and cosines and iterations > 0 and 1 / epsilon <= LARGEST_EXPONENT:
        return _plan_of_cosines(scores, labels, num_classes, epsilon, iterations).max(dim=0).indices
    if method == "sinkhorn":
        return _log_plan(scores, labels, num_classes, epsilon, iterations).max(dim=0).indices  # faster than argmax
    if method == "nearest":
        return scores.argmax(dim=1)
    if method == "random":
        size = (scores.shape[0],)
        return torch.randint(scores.shape[1], size, generator=generator, device=scores.device)
    raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {method!r}")


ASSIGNMENTS = ("sinkhorn", "nearest", "random")
