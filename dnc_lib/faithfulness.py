"""Does a heat map show what the model looks at? Take its places away, or put them back, and watch the score.

Deletion: the pixels that a map calls most important are replaced by a blurred version, more and more of them. If the
map is right the score falls fast: the area under its curve is small. Insertion begins with the blurred image and puts
pixels back: the area is large (Petsiuk, Das and Saenko 2018).

What the numbers do not say. A half blurred image is none that the model was trained on, so a fall may be the shock of
the edit and not the loss of evidence. Single pixels taken at random wreck an image's texture everywhere, so an order
is to be compared with orders that are as smooth as itself. Photographers put things in the middle, so "the middle
first" is a rival, and a hard one. And that the rule agrees with the prediction holds by construction: it is no
evidence at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .heat_maps import enlarged
from .models import ImageClassifier, evaluating

#: Shares of the pixels at which the score is taken: none, a tenth, ..., all.
STEPS = 10

#: Images that go through the model together.
BATCH = 500


@dataclass(frozen=True, eq=False)
class Curves:
    """How the scores of N images follow a growing share of edited pixels.

    Attributes:
        shares: (S + 1,) from 0 to 1.
        similarity: (N, S + 1) to the case that was nearest to the whole image.
        confidence: (N, S + 1), the share (softmax) of the class predicted for the whole image.
    """

    shares: Tensor
    similarity: Tensor
    confidence: Tensor

    def area(self, what: str = "similarity") -> Tensor:
        """Area under each image's curve, (N,), by trapezoids: the mean score over all shares."""
        return torch.trapezoid(getattr(self, what), self.shares, dim=1)


class Faithfulness(NamedTuple):
    """Curves of deletion and of insertion in the same order of pixels."""

    deletion: Curves
    insertion: Curves

    def score(self, what: str = "similarity") -> Tensor:
        """Insertion's area minus deletion's, (N,): above 0 where the order puts first what matters."""
        return self.insertion.area(what) - self.deletion.area(what)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, 3, H, W) under a Gaussian of this many pixels, mirrored at the border."""
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    reach = min(round(3 * sigma), min(images.shape[2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    for shape in ((-1, 1), (1, -1)):
        padded = F.conv2d(padded, kernel.view(1, 1, *shape).repeat(channels, 1, 1, 1), groups=channels)
    return padded


def pixel_order(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Heat maps (N, h, w) to an order of pixels (N, H * W): the hottest first, of equals the upper left one."""
    return enlarged(values, size).flatten(1).argsort(dim=1, descending=True, stable=True)


def random_maps(number: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise on the grid of a heat map, (N, h, w): enlarged it is as coarse as the map, and says nothing."""
    return torch.rand(number, *grid, generator=generator)


def middle_first(number: int, grid: tuple[int, int]) -> Tensor:
    """The same map for all, (N, h, w): the nearer to the middle of the image, the larger."""
    axes = [((torch.arange(side) + 0.5) / side - 0.5) ** 2 for side in grid]
    return -(axes[0][:, None] + axes[1][None]).expand(number, *grid)


def edits(images: Tensor, others: Tensor, order: Tensor, steps: int = STEPS) -> Iterator[tuple[float, Tensor]]:
    """Images (N, 3, H, W) in which the first pixels of an order are another image's: a share, 0 to 1, and the result.

    Args:
        images: (N, 3, H, W).
        others: (N, 3, H, W), where the pixels come from.
        order: (N, H * W), see :func:`pixel_order`.
        steps: S; the shares are 0, 1 / S, ..., 1.
    """
    pixels = order.shape[1]
    if images.shape != others.shape or order.shape != (len(images), images.shape[2] * images.shape[3]):
        raise ValueError(
            f"order must be (N, H * W) for images and others (N, 3, H, W), got {tuple(order.shape)} for "
            f"{tuple(images.shape)} and {tuple(others.shape)}"
        )
    ranks = order.argsort(dim=1).view(len(images), 1, *images.shape[2:])  # of each pixel: when is its turn?
    for step in range(steps + 1):
        yield step / steps, torch.where(ranks < round(pixels * step / steps), others, images)


@torch.no_grad()
def follow(model: ImageClassifier, images: Tensor, others: Tensor, order: Tensor, whole: Tensor, steps: int = STEPS):
    """The scores of images whose pixels are replaced one after another.

    Args:
        model: with a :class:`~dnc_lib.heads.SubCentroidHead`.
        images: (N, 3, H, W), normalised.
        others: (N, 3, H, W), what the pixels are replaced by.
        order: (N, H * W).
        whole: (N, 3, H, W), the unedited images, whose nearest case and class are followed.
        steps: S.

    Returns:
        :class:`Curves`.
    """
    with evaluating(model) as device:
        nearest = torch.cat([_similarities(model, part.to(device)).argmax(1) for part in whole.split(BATCH)])
        number, rows = model.head.num_subcentroids, torch.arange(len(whole), device=device)
        shares, similarity, confidence = [], [], []
        for share, edited in edits(images, others, order, steps):
            parts = [_similarities(model, part.to(device)) for part in edited.split(BATCH)]
            scores = torch.cat(parts)  # (N, C * K)
            classes = scores.unflatten(1, (-1, number)).amax(2) / model.head.temperature
            shares.append(share)
            similarity.append(scores[rows, nearest])
            confidence.append(classes.softmax(1)[rows, nearest // number])
    return Curves(torch.tensor(shares), *(torch.stack(each, 1).cpu() for each in (similarity, confidence)))


def faithfulness(
    model: ImageClassifier, images: Tensor, values: Tensor, sigma: float, steps: int = STEPS
) -> Faithfulness:
    """Deletion and insertion of images (N, 3, H, W) in the order of their heat maps (N, h, w).

    Args:
        model: with a :class:`~dnc_lib.heads.SubCentroidHead`.
        images: normalised.
        values: of :func:`dnc_lib.heat_maps.similarity_maps`, or a rival's.
        sigma: of the blur, in pixels: so large that what is blurred is not recognised.
        steps: S.

    Raises:
        ValueError: for shapes that do not fit.
    """
    order, blur = pixel_order(values, tuple(images.shape[2:])), blurred(images, sigma)
    order = order.to(images.device)
    return Faithfulness(
        follow(model, images, blur, order, images, steps), follow(model, blur, images, order, images, steps)
    )


class Interval(NamedTuple):
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Tensor | np.ndarray, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean of N numbers, one an image, and how far it would wander with other images.

    Images are drawn anew, with replacement, as many as there are; the interval holds the middle ``level`` of the
    means (Efron 1979). Of two orders, give it the differences, image by image: what an image does to both falls away.

    Args:
        values: (N,).
        level: of the interval.
        draws: how often.
        seed: of the drawing.

    Raises:
        ValueError: without a number, or for one that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"bootstrap takes one row of finite numbers, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = np.concatenate([
        values[rng.integers(0, len(values), (min(500, draws - start), len(values)))].mean(1)
        for start in range(0, draws, 500)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def _similarities(model: ImageClassifier, images: Tensor) -> Tensor:
    """(N, 3, H, W) to the similarities with all cases, (N, C * K)."""
    return model.head.similarities(model.features(images)).flatten(1)
