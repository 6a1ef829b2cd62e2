"""Is this image of a kind that the model was never shown? Scores that say so, how well they tell.

Of every score, higher means more foreign.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .calibration import fit_temperature, score_images
from .checkpoints import ModelCard
from .data import LabelledImages
from .data.foreign_images import foreign_images
from .new_classes import class_centres

#: Of the training images, so many are looked at, the classes even; distances to all 45,000 would say the same.
BANK = 10_000

#: k of the k-th nearest of them; Sun et al. (2022) take it in proportion to their number, 50 for 50,000.
NEIGHBOURS = 10

#: Sub-centroids a class that are estimated after training.
SUBCENTROIDS = 4

_ROWS = 1000  # images compared with others at a time


# --- how foreign ----------------------------------------------------------------------------------------------------


def max_softmax(scores: Tensor) -> Tensor:
    """One minus the largest share: scores (N, C) -> (N,) in [0, 1) (Hendrycks and Gimpel 2017).

    Summed over the shares of all other classes: two images of which the model is all but certain still differ.
    """
    shares = scores.double().softmax(1)
    return shares.scatter(1, scores.argmax(1, keepdim=True), 0.0).sum(1)


def energy(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """-T log sum exp(score / T): scores (N, C) -> (N,) (Liu et al. 2020); low where any class has a high score."""
    return -temperature * (scores.double() / temperature).logsumexp(1)


def knn(embeddings: Tensor, bank: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Cosine distance, one minus the similarity, to the k-th nearest of stored embeddings (Sun et al. 2022).

    Args:
        embeddings: (N, D); brought to unit length.
        bank: (M, D), of training images.
        k: at most M.

    Returns:
        (N,) in [0, 2].

    Raises:
        ValueError: for more neighbours than there are.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must lie in [1, {len(bank)}], the number of stored embeddings, got {k}")
    bank = F.normalize(bank, dim=1)
    parts = [(F.normalize(part, dim=1) @ bank.T).topk(k, dim=1).values[:, -1] for part in embeddings.split(_ROWS)]
    return 1 - torch.cat(parts)


def nearest_subcentroid(embeddings: Tensor, subcentroids: Tensor) -> Tensor:
    """Cosine distance to the nearest sub-centroid of any class: what DNC looks at anyway.

    Args:
        embeddings: (N, D); brought to unit length.
        subcentroids: (C, K, D), or class means (C, 1, D).

    Returns:
        (N,) in [0, 2].
    """
    return knn(embeddings, subcentroids.flatten(0, -2), 1)


# --- how well a score tells -----------------------------------------------------------------------------------------


def auroc(inside: Tensor, outside: Tensor) -> float:
    """How often a foreign image has the higher score, of all pairs of one inside and one outside; a tie is one half.

    That is the area under the ROC curve, exact, ties and all (Mann and Whitney 1947).

    Args:
        inside: (N,) scores of images of the kind that was trained on.
        outside: (M,) scores of foreign images.

    Returns:
        0.5 for a score that tells nothing, 1 for one that tells all, below 0.5 for one that is wrong way round.

    Raises:
        ValueError: without a score, or for NaN.
    """
    inside, outside = _rows(inside, outside)
    ordered = inside.sort().values
    lower, up_to = (torch.searchsorted(ordered, outside, right=right).double() for right in (False, True))
    return float((lower + up_to).sum() / (2 * len(inside) * len(outside)))


def fpr95(inside: Tensor, outside: Tensor) -> float:
    """Share of foreign images taken for familiar, at the lowest threshold that lets 95 % of the others pass.

    Args:
        inside: (N,) see :func:`auroc`.
        outside: (M,).

    Returns:
        0 (none slips through) to 1.

    Raises:
        ValueError: without a score, or for NaN.
    """
    inside, outside = _rows(inside, outside)
    pass_through = -(-95 * len(inside) // 100)  # rounded up
    threshold = inside.sort().values[pass_through - 1]
    return float((outside <= threshold).double().mean())


def _rows(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.dim() != 1 or len(scores) == 0:
            raise ValueError(f"{name} must be a row of scores, one an image, got shape {tuple(scores.shape)}")
        if scores.isnan().any():
            raise ValueError(f"{name} has NaN among its scores: is there an image without an embedding?")
    return inside.double(), outside.double()


# --- a model, measured ----------------------------------------------------------------------------------------------


class Rater:
    """Every score of foreignness of one model.

    Args:
        model: a trained classifier.
        card: as it came with it.
        train: training images with their labels, of which :data:`BANK` are looked at.
        held_out: training images that it was not trained on, to fit a temperature; the energy at it is left out
            without them.

    Attributes:
        own: name of the head's own score.
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, train: LabelledImages, held_out: LabelledImages | None = None
    ):
        self.model, self.card, self.head = model, card, model.head
        self.own = "softmax" if self.head.class_vectors() is None else "nearest"
        some = train.sample(min(BANK, len(train)))
        self.bank = self._embed(score_images(model, card, some)[0])
        self.centres = {
            "means": class_centres(self.bank, some.labels, 1),
            "subcentroids": class_centres(self.bank, some.labels, SUBCENTROIDS),
        }
        self.temperature = held_out and fit_temperature(score_images(model, card, held_out)[1], held_out.labels)

    def __call__(self, data: LabelledImages) -> dict[str, Tensor]:
        """Name of a score to that of every image, (N,) each; see :func:`measure`."""
        features, scores = score_images(self.model, self.card, data)
        embedded = self._embed(features)
        rated = {"softmax": max_softmax(scores), "energy": energy(scores)}
        if self.temperature is not None:
            rated["energy_fitted"] = energy(scores, self.temperature)
        rated["knn"] = knn(embedded, self.bank, min(NEIGHBOURS, len(self.bank)))
        if self.own == "nearest":
            rated["nearest"] = nearest_subcentroid(embedded, self.head.class_vectors().cpu())
        return rated | {name: nearest_subcentroid(embedded, centres) for name, centres in self.centres.items()}

    @torch.no_grad()
    def _embed(self, features: Tensor) -> Tensor:
        """What the head compares, on the CPU; of a softmax head, which compares nothing, the features' directions."""
        if self.own == "softmax":
            return F.normalize(features, dim=1)
        return self.head.embed(features.to(self.head.norm.weight.device)).cpu()


def measure(model: nn.Module, card: ModelCard, parts: dict, details: dict | None = None) -> dict[str, float]:
    """AUROC and FPR95 in percent of every score against every foreign set, and their means over the sets.

    The scores: ``softmax`` (largest share), ``energy`` (temperature 1) and ``energy_fitted`` (the temperature fitted
    on ``validation``), ``knn`` (10th nearest of 10,000 training images), ``nearest`` (the head's own sub-centroids or
    prototypes, where it has any), and for every arm alike what those training images give after the fact: ``means``
    (one a class) and ``subcentroids`` (four a class).

    Args:
        model: a trained classifier of 32x32 images.
        card: as it came with it.
        parts: ``train``, ``test`` and, for the fitted energy, ``validation``; ``left_out``, test images of classes
            that the model was not trained on, takes the place of the foreign sets where it is there.
        details: takes the histograms of the head's own score, of test images and of each foreign set.

    Returns:
        ``auroc_<set>_<score>`` and ``fpr95_<set>_<score>``, and of several sets the means ``auroc_<score>`` and
        ``fpr95_<score>``, and as ``auroc`` and ``fpr95`` those of the head's own score: the distance to the nearest
        (sub-)centroid, of a softmax head its largest share.
    """
    rate = Rater(model, card, parts["train"], parts.get("validation"))
    inside = rate(parts["test"])
    if "left_out" in parts:
        sets = {"left_out": parts["left_out"]}
    else:
        sets = {name: _wrap(name, images) for name, images in foreign_images(parts["test"].images).items()}
    outside = {name: rate(images) for name, images in sets.items()}
    measures = {}
    for score in inside:
        for how in (auroc, fpr95):
            values = {name: 100 * how(inside[score], theirs[score]) for name, theirs in outside.items()}
            measures |= {f"{how.__name__}_{name}_{score}": value for name, value in values.items()}
            if len(values) > 1:
                mean = measures[f"{how.__name__}_{score}"] = sum(values.values()) / len(values)
                if score == rate.own:
                    measures[how.__name__] = mean
    if details is not None:
        details["histograms"] = _histograms(
            {"test": inside[rate.own], **{k: v[rate.own] for k, v in outside.items()}}
        )
    return measures


def _wrap(name: str, images: Tensor) -> LabelledImages:
    return LabelledImages(images, torch.zeros(len(images), dtype=torch.long), ("foreign",), name)


def _histograms(scores: dict[str, Tensor], bins: int = 40) -> dict:
    """Counts of each set's scores between common edges, which take in all of them."""
    together = torch.cat(list(scores.values())).double()
    low, high = together.min().item(), together.max().item()
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    places = {name: torch.bucketize(each.double(), edges[1:-1]) for name, each in scores.items()}
    counts = {name: torch.bincount(place, minlength=bins).tolist() for name, place in places.items()}
    return {"edges": [round(edge, 6) for edge in edges.tolist()], "counts": counts}
