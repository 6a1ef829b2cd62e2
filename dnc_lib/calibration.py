"""Is a model right as often as it says? Bins, calibration error, and the one temperature that mends most of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import ModelCard
from .data import DeviceLoader, LabelledImages
from .models import evaluating

#: Bins of a reliability diagram, as in Guo et al. (2017).
BINS = 15

#: Where :func:`fit_temperature` looks.
COLDEST, HOTTEST = 0.01, 100.0

_HALVINGS = 60  # of the logarithm's range: as exact as float64 is
_BATCH = 500  # images


@dataclass(frozen=True)
class ReliabilityBins:
    """Images sorted into bins by the share that the model gives to its prediction.

    Attributes:
        edges: (B + 1,) float64, from the lowest share of a bin to its highest.
        counts: (B,) how many images.
        confidence: (B,) float64, their mean share; NaN for an empty bin.
        accuracy: (B,) float64, the share of them that is predicted right; NaN for an empty bin.
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """Mean over the images of the distance, in their bin, from confidence to accuracy: 0 to 1."""
        gaps = (self.confidence - self.accuracy).abs()[self.counts > 0]
        weights = self.counts[self.counts > 0].double()
        return float((weights * gaps).sum() / weights.sum())


def reliability_bins(
    shares: Tensor, correct: Tensor, bins: int = BINS, *, equal_mass: bool = False
) -> ReliabilityBins:
    """What a reliability diagram shows (Guo et al. 2017, section 2).

    Args:
        shares: (N,) in [0, 1], of the predicted class: the largest of the softmax of the scores.
        correct: (N,) bool, or 0 and 1: whether that class is the true one.
        bins: B.
        equal_mass: bins of equally many images, where else they are equally wide. Images of one share count as
            correct to the same degree, wherever the border falls between them, so their order does not matter.

    Returns:
        See :class:`ReliabilityBins`. A bin holds its upper edge, and the first its lower edge too.

    Raises:
        ValueError: for shapes that differ, no image, shares outside [0, 1], no bin, or more bins than images where
            they are to hold equally many.
    """
    shares, correct = _check_shares(shares, correct)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    if equal_mass:
        return _equal_mass(shares, correct, bins)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(shares, edges[1:-1])  # (N,), right edges inclusive
    counts = torch.bincount(place, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, place, each) for each in (shares, correct)]
    return ReliabilityBins(edges, counts, *(each / counts for each in sums))  # 0 / 0 is NaN


def ece(shares: Tensor, correct: Tensor, bins: int = BINS, *, equal_mass: bool = False) -> float:
    """Expected calibration error: how far, on average, confidence lies from accuracy (Naeini et al. 2015).

    With bins of equal width most images of a good model share one or two bins; ``equal_mass`` gives the version with
    equally many in each (Nixon et al. 2019). Both grow by chance in small samples, even where the model is perfect.

    Args:
        shares: see :func:`reliability_bins` for these and the errors.
        correct: (N,).
        bins: B.
        equal_mass: bins of equally many images.

    Returns:
        0 (calibrated) to 1.
    """
    return reliability_bins(shares, correct, bins, equal_mass=equal_mass).error


def nll(scores: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats of scores (N, C) against labels (N,)."""
    scores, labels = _check_scores(scores, labels)
    return float(F.cross_entropy(scores, labels))


def brier(scores: Tensor, labels: Tensor) -> float:
    """Mean squared distance of the shares of all classes from the truth, one 1 and else 0 (Brier 1950).

    Args:
        scores: (N, C), whose softmax the shares are.
        labels: (N,).

    Returns:
        0 (certain and right) to 2 (certain and wrong).
    """
    scores, labels = _check_scores(scores, labels)
    truth = F.one_hot(labels, scores.shape[1])
    return float((scores.softmax(1) - truth).square().sum(1).mean())


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The number T for which ``scores / T`` has the least cross-entropy (temperature scaling, Guo et al. 2017).

    The order of the classes, and so the prediction, stays. In b = 1 / T the loss is convex; its slope, the mean of
    (expected score under the model minus score of the true class), rises with b and is 0 at the best one, which
    halving an interval finds. Fit on images that the model was not trained on, and judge on others.

    Args:
        scores: (N, C).
        labels: (N,).

    Returns:
        T; the bound of [0.01, 100] where the least loss lies beyond it, as where every image is predicted right.

    Raises:
        ValueError: for shapes that do not fit, labels out of range, no image, NaN or infinity.
    """
    scores, labels = _check_scores(scores, labels)
    true = scores.gather(1, labels[:, None]).squeeze(1)

    def slope(inverse: Tensor) -> Tensor:
        return ((scores * inverse).softmax(1) * scores).sum(1).sub(true).mean()

    low, high = torch.tensor([1 / HOTTEST, 1 / COLDEST], dtype=torch.float64).log()
    if slope(low.exp()) >= 0:
        return HOTTEST
    if slope(high.exp()) <= 0:
        return COLDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle.exp()) < 0 else (low, middle)
    return float((-(low + high) / 2).exp())


@torch.no_grad()
def score_images(model: nn.Module, card: ModelCard, data: LabelledImages) -> tuple[Tensor, Tensor]:
    """What a classifier makes of every image, in order.

    Args:
        model: an :class:`~dnc_lib.models.ImageClassifier`.
        card: mean and deviation of the images.
        data: images in memory; its labels are not used.

    Returns:
        raw features (N, D) and scores (N, C), float32, on the CPU.
    """
    features, scores = [], []
    with evaluating(model) as device:
        for images, _ in DeviceLoader(data, _BATCH, card.mean, card.std, device):
            score, feature = model(images, return_features=True)
            features.append(feature.float().cpu())
            scores.append(score.float().cpu())
    return torch.cat(features), torch.cat(scores)


def measure(model: nn.Module, card: ModelCard, parts: dict, details: dict | None = None) -> dict[str, float]:
    """Calibration on the test images before and after one temperature, fitted on held-out training images.

    Args:
        model: a trained classifier.
        card: as it came with it.
        parts: ``validation``, held out from training, and ``test``.
        details: takes the reliability bins before and after, as lists.

    Returns:
        ``ece``, ``ece_equal_mass``, ``brier`` (all times 100), ``nll`` (nats) and ``confidence`` (mean share of the
        predicted class in percent) after the fit, the same with ``_before`` before it, and ``temperature``, by which
        the scores were divided.

    Raises:
        ValueError: where no training images were held out.
    """
    if "validation" not in parts:
        raise ValueError(
            "a temperature is fitted on training images that the training did not see, and none were held out: "
            "train with validation=5000 or so"
        )
    held_out, test = (score_images(model, card, parts[part])[1] for part in ("validation", "test"))
    labels = parts["test"].labels
    temperature = fit_temperature(held_out, parts["validation"].labels)
    measures = {"temperature": temperature}
    for suffix, scores in (("_before", test), ("", test / temperature)):
        shares, predicted = scores.double().softmax(1).max(1)
        correct = predicted == labels
        bins = reliability_bins(shares, correct)
        measures |= {
            f"ece{suffix}": 100 * bins.error,
            f"ece_equal_mass{suffix}": 100 * ece(shares, correct, equal_mass=True),
            f"brier{suffix}": 100 * brier(scores, labels),
            f"nll{suffix}": nll(scores, labels),
            f"confidence{suffix}": 100 * float(shares.mean()),
        }
        if details is not None:
            details[f"bins{suffix}"] = {
                "counts": bins.counts.tolist(),
                "confidence": _or_none(bins.confidence),
                "accuracy": _or_none(bins.accuracy),
            }
    return measures


def _equal_mass(shares: Tensor, correct: Tensor, bins: int) -> ReliabilityBins:
    if bins > len(shares):
        raise ValueError(f"{bins} bins cannot hold equally many of {len(shares)} images: ask for fewer bins")
    shares, order = shares.sort()
    _, tied, ties = shares.unique_consecutive(return_inverse=True, return_counts=True)
    correct = torch.zeros(len(ties), dtype=torch.float64).index_add_(0, tied, correct[order]).div_(ties)[tied]
    parts = [each.tensor_split(bins) for each in (shares, correct)]
    means = (torch.stack([part.mean() for part in each]) for each in parts)
    edges = torch.stack([shares[0], *(part[-1] for part in parts[0])])
    return ReliabilityBins(edges, torch.tensor([len(part) for part in parts[0]]), *means)


def _or_none(values: Tensor) -> list[float | None]:
    return [None if value != value else round(value, 6) for value in values.tolist()]  # NaN alone differs from itself


def _check_shares(shares: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    shares, correct = torch.as_tensor(shares).double().cpu(), torch.as_tensor(correct).double().cpu()
    if shares.dim() != 1 or shares.shape != correct.shape:
        raise ValueError(
            f"shares and correct must be one row each, of one length, got {tuple(shares.shape)} and "
            f"{tuple(correct.shape)}"
        )
    if len(shares) == 0:
        raise ValueError("shares are empty: there is no image to judge by")
    if not ((shares >= 0) & (shares <= 1)).all():  # NaN is outside, too
        wrong = shares[~((shares >= 0) & (shares <= 1))][0]
        raise ValueError(f"shares must lie in [0, 1], got {wrong:g}: take the softmax of the scores, not the scores")
    if not ((correct == 0) | (correct == 1)).all():
        raise ValueError("correct must hold True and False, or 1 and 0: whether each prediction is right")
    return shares, correct


def _check_scores(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if scores.dim() != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores must be (N, C) and labels (N,), got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if len(scores) == 0:
        raise ValueError("scores are empty: there is no image to judge by")
    if not torch.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinity: has the training diverged?")
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels must be integers in [0, {scores.shape[1] - 1}], one of {scores.shape[1]} classes")
    return scores.detach().double().cpu(), labels.long().cpu()
