"""New classes without training: their sub-centroids are estimated from a few images and stand beside the old ones.

Nothing that a DNC classifier has learned depends on the number of classes, so a class more is K vectors more: no
gradient, no step. The old classes keep their sub-centroids to the last bit, and so their scores up to rounding (a
product with more columns may add in another order). :func:`measure` asks what that is worth, against the class means
and the nearest neighbours of any network's features.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoints import ModelCard
from .data import DeviceLoader, LabelledImages, load
from .heads import CosineHead, Head, SubCentroidHead, unit_length
from .models import ImageClassifier, evaluating
from .sinkhorn import check_labels

#: From so many images a new class is made, and so often they are drawn anew.
SHOTS, DRAWS = (5, 10, 100), 10

#: Training images of a class that are looked at, at most: class means, neighbours and shots come from these.
PER_CLASS = 1000

#: Neighbours that vote.
NEIGHBOURS = 5

#: Images a batch, and rows of similarities at a time.
BATCH, ROWS = 500, 1000


def with_new_classes(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    num_subcentroids: int | None = None,
) -> ImageClassifier:
    """A classifier that knows more classes: those of ``model``, and new ones made from a few images of each.

    >>> larger = with_new_classes(model, images, labels, ["truck", "ship"])  # labels 0 and 1
    >>> save_model(larger, card_with(card, ["truck", "ship"]), "larger.safetensors")

    Args:
        model: a trained classifier; it stays as it is and shares nothing with the new one.
        images: (S, 3, H, W) normalised as the model wants them; or their raw features (S, D).
        labels: (S,) integers from 0, the place of each image's class in ``names``.
        names: the n new classes; they become the classes C to C + n - 1.
        num_subcentroids: how many to estimate for a new class, 1 to K; K without. Where a class has fewer images,
            each of them is a sub-centroid. The places left over repeat the first one, which changes no score.

    Returns:
        The classifier of C + n classes. Sub-centroids of new classes are estimated, see
        :meth:`~dnc_lib.heads.SubCentroidHead.estimate`; a head of learned prototypes gets the mean direction of the
        images (Qi et al. 2018).

    Raises:
        ValueError: for a head to which no class can be added, a class without an image, names that are there twice,
            or images and labels that do not fit.
    """
    if len(names) == 0 or len(set(names)) < len(names):
        raise ValueError(f"names must be those of the new classes, each once, got {list(names)}")
    if images.dim() not in (2, 4) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must be (S, 3, H, W), or features (S, {model.head.dim}), and labels (S,), got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    check_labels(labels, len(names))
    if empty := [name for c, name in enumerate(names) if not (labels == c).any()]:
        raise ValueError(f"new class {empty[0]!r} has no image: give at least one of each")
    with evaluating(model) as device, torch.no_grad():
        features = images.to(device)
        features = model.features(features) if images.dim() == 4 else features
        head = extended_head(model.head, features, labels.to(device), len(names), num_subcentroids)
    larger = ImageClassifier(copy.deepcopy(model.backbone), head)
    larger.made_of = model.made_of
    return larger.train(model.training)


def card_with(card: ModelCard, names: Sequence[str]) -> ModelCard:
    """The card of a model with new classes, to save it by.

    Args:
        card: of the model without them.
        names: of the new classes, in their order.

    Raises:
        ValueError: for a class that the model has already.
    """
    if known := [name for name in names if name in card.classes]:
        raise ValueError(f"the model has a class {known[0]!r} already: give the new one another name")
    settings = {key: value for key, value in card.head_settings.items() if key != "spread"}  # see extended_head
    return dataclasses.replace(card, classes=[*card.classes, *names], head_settings=settings)


@torch.no_grad()
def extended_head(
    head: Head, features: Tensor, labels: Tensor, num_new: int, num_subcentroids: int | None = None
) -> Head:
    """A copy of a head with ``num_new`` more classes, estimated from raw features: what
    :func:`with_new_classes` does, for those who have the features.

    Args:
        head: with sub-centroids, or learned prototypes.
        features: (S, D) raw, before the head's norm.
        labels: (S,) integers in 0..``num_new`` - 1, each at least once.
        num_new: n.
        num_subcentroids: see :func:`with_new_classes`.

    Raises:
        ValueError: for a head to which no class can be added, a number of sub-centroids out of range, features that
            are not finite, or that have no direction.
    """
    if isinstance(head, CosineHead):
        means = class_means(head.embed(features), labels, num_new)
        larger = copy.deepcopy(head)
        means = means.repeat_interleave(head.num_prototypes, dim=0)  # copies of one change no score
        larger.prototypes = torch.nn.Parameter(torch.cat([head.prototypes, means.to(head.prototypes)]))
    elif isinstance(head, SubCentroidHead) and head.class_norm is None:
        larger = copy.deepcopy(head)
        larger.spread = "none"  # what was kept at right angles is not, with vectors beside it that come from data
        vectors = _estimated(head, features, labels, num_new, num_subcentroids)
        full = vectors.new_ones(vectors.shape[:2])
        added = {"subcentroids": vectors, "origin": vectors.clone(), "moved": full, "wins": 0 * full}
        for name, values in added.items():
            before = getattr(head, name)
            setattr(larger, name, torch.cat([before, values.to(before)]))
    elif isinstance(head, SubCentroidHead):
        raise ValueError(
            "this head puts its scores through a LayerNorm over the classes, which has learned a gain and a bias of "
            "each: a new class has none. Train with scale_by='temperature'"
        )
    else:
        raise ValueError(
            f"a {type(head).__name__} scores classes by a learned matrix, in which a new class has no row: compare "
            f"its features with class_means instead"
        )
    larger.num_classes = head.num_classes + num_new
    return larger


def _estimated(
    head: SubCentroidHead, features: Tensor, labels: Tensor, num_new: int, num_subcentroids: int | None
) -> Tensor:
    """Sub-centroids (n, K, D) of the new classes."""
    number = head.num_subcentroids if num_subcentroids is None else num_subcentroids
    if not 1 <= number <= head.num_subcentroids:
        raise ValueError(f"num_subcentroids must be 1 to {head.num_subcentroids}, the head's K, got {number}")
    settings = {"assignment": head.assignment, "epsilon": head.epsilon, "iterations": head.iterations}
    new = SubCentroidHead(head.dim, num_new, number, memory_size=0, seed=head.seed, **settings).to(features.device)
    new.norm.load_state_dict(head.norm.state_dict())
    new.estimate(features, labels)
    if not new.moved[:, 0].all():
        empty = int((~new.moved[:, 0]).nonzero()[0])
        raise ValueError(f"the images of new class {empty} have no direction to be found in: are they blank?")
    first = new.subcentroids[:, :1]
    vectors = torch.where(new.moved.unsqueeze(-1), new.subcentroids, first)
    return torch.cat([vectors, first.expand(-1, head.num_subcentroids - number, -1)], 1)


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean direction of each class, the classic nearest-mean classifier on the sphere (Mensink et al. 2013).

    Args:
        embeddings: (N, D); each is brought to unit length first, so that long ones have no more say.
        labels: (N,) integers in [0, C).
        num_classes: C.

    Returns:
        (C, D), unit length; zero for a class without samples.
    """
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1])
    return F.normalize(sums.index_add_(0, labels, unit_length(embeddings)), dim=-1)


def class_centres(embeddings: Tensor, labels: Tensor, number: int) -> Tensor:
    """A model's centres after the fact, of any model: the mean direction of each class, or several by k-means.

    Args:
        embeddings: (N, D).
        labels: (N,).
        number: K, of a class.

    Returns:
        (C * K, D) float32, unit length, on the device of the embeddings.
    """
    from .classic import NearestSubCentroids  # imports scikit-learn

    estimator = NearestSubCentroids(number, metric="cosine", n_init=3, random_state=0)
    estimator.fit(embeddings.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(estimator.subcentroids_).float().to(embeddings.device)


def nearest_neighbours(queries: Tensor, references: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """The nearest references of each query, by inner product.

    Args:
        queries: (M, D).
        references: (N, D).
        neighbours: how many; all where there are fewer.

    Returns:
        Similarities and indices, (M, min(neighbours, N)) each, the nearest first.
    """
    number = min(neighbours, len(references))
    near = [(rows @ references.T).topk(number, dim=1) for rows in queries.split(ROWS)]
    return torch.cat([each.values for each in near]), torch.cat([each.indices for each in near])


def neighbour_votes(similarities: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The vote of neighbours on a class.

    Args:
        similarities: (M, k) of the neighbours, in [-1, 1].
        labels: (M, k) of the neighbours, in [0, C).
        num_classes: C.

    Returns:
        (M, C): the number of votes, plus less than half a vote that breaks ties in favour of the class whose
        neighbours are nearer.
    """
    worth = 1 + similarities.clamp(-1, 1) / (4 * similarities.shape[1])  # in all a quarter of a vote at most
    return worth.new_zeros(len(labels), num_classes).scatter_add_(1, labels, worth)


@torch.no_grad()
def measure(
    model: ImageClassifier,
    card: ModelCard,
    parts: dict[str, LabelledImages],
    *,
    dataset: str = "cifar10",
    data_root: str | Path | None = None,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
) -> dict[str, float]:
    """How well a model that was trained without some classes takes them up from a few training images of each.

    All numbers are percent of test images, among all classes, the mean over the draws; a draw gives every model the
    same images. Five ways to read the features:

    * the head's own: its sub-centroids or prototypes, beside them what :func:`extended_head` makes of the shots. A
      softmax head has no such way: its matrix gives scores, the shots give directions, and the two have no scale in
      common. It reads by ``means`` here;
    * ``one``: the same with one sub-centroid for a new class (sub-centroid heads only);
    * ``means``: the nearest class mean, of the training images of old classes and of the shots;
    * ``centred``: the same, with the mean of all old training images taken off before features become directions
      (Wang et al. 2019, *SimpleShot*): features that share a large part differ in what is left;
    * ``knn``: the vote of the ``NEIGHBOURS`` nearest among the training images of old classes and the shots.

    Args:
        model: trained without some classes of the data set.
        card: its card, which names the classes that it knows.
        parts: ``train`` and ``test`` of the classes that it knows, see :func:`dnc_lib.loading.prepare_data`.
        dataset: where all classes are, see :func:`dnc_lib.data.load`.
        data_root: of that data set.
        shots: numbers of images a new class is made from; besides, all that are looked at, ``PER_CLASS`` or fewer.
        draws: how often shots are drawn.

    Returns:
        ``new_classes`` (the head's own way, 10 shots), ``old_classes_before`` (old test images among old classes, by
        the head), and for each number of shots s, and ``all``: ``new_classes_s``, ``old_classes_s``, ``harmonic_s``
        (the harmonic mean of the two), ``every_class_s`` (all test images), ``area_s`` (see :func:`trade_off_area`),
        and the same with ``_one``, ``_means``, ``_centred`` or ``_knn`` at the end. ``new_classes_sd`` is the
        deviation of ``new_classes`` over the draws.

    Raises:
        ValueError: where the model lacks no class of the data set, or has others, or a class has fewer images.
    """
    train, test = load(dataset, data_root)
    known = [c for c, name in enumerate(train.classes) if name in card.classes]
    if [train.classes[c] for c in known] != list(card.classes):
        raise ValueError(f"the model's classes are not those of {dataset}, in their order: {', '.join(card.classes)}")
    if len(known) == len(train.classes):
        raise ValueError(f"the model knows all classes of {dataset}: train it with leave_out")
    old, new = len(known), len(train.classes) - len(known)
    seen, unseen = (_features(model, card, _at_most(part)) for part in (parts["train"], train.without(known)))
    asked = [_features(model, card, part) for part in (parts["test"], test.without(known))]
    queries = torch.cat([asked[0][0], asked[1][0]])
    truth = torch.cat([asked[0][1], asked[1][1] + old])
    reading = _Reading(model.head, seen, queries, old, new)
    before = (model.head(queries).argmax(1) == truth)[truth < old]
    result = {"old_classes_before": 100 * before.double().mean().item()}
    for number in (*shots, None):
        times = 1 if number is None else draws
        drawn = [_draw(unseen, new, number, seed) for seed in range(times)]
        scored = [{way: _parts(scores, truth, old) for way, scores in reading(*each)} for each in drawn]
        for way in scored[0]:
            for what in scored[0][way]:
                values = torch.tensor([each[way][what] for each in scored], dtype=torch.float64)
                result[f"{what}_{number or 'all'}{way and '_' + way}"] = values.mean().item()
                if (what, number, way) == ("new_classes", 10, ""):
                    result["new_classes"] = values.mean().item()
                    result["new_classes_sd"] = values.std().item() if times > 1 else 0.0
    return result


class _Reading:
    """The ways to read features, with what does not depend on the shots computed once."""

    def __init__(self, head: Head, seen: tuple[Tensor, Tensor], queries: Tensor, old: int, new: int):
        self.head, self.queries, self.old, self.new = head, queries, old, new
        compared, ours = self._compared(seen[0]), self._compared(queries)
        references, self.units = unit_length(compared), unit_length(ours)
        self.means = class_means(references, seen[1], old)
        self.centre = compared.mean(0)
        self.centred = unit_length(ours - self.centre)
        self.centred_means = class_means(compared - self.centre, seen[1], old)
        self.near, index = nearest_neighbours(self.units, references)
        self.near_classes = seen[1][index]

    def __call__(self, shots: Tensor, labels: Tensor):
        """Pairs of a way and its scores (M, C + n), from raw features (S, D) and labels (S,) in 0..n - 1."""
        compared = self._compared(shots)
        unit = unit_length(compared)
        by_means = self.units @ torch.cat([self.means, class_means(unit, labels, self.new)]).T
        if isinstance(self.head, CosineHead | SubCentroidHead):
            yield "", extended_head(self.head, shots, labels, self.new)(self.queries)
        else:
            yield "", by_means
        if isinstance(self.head, SubCentroidHead):
            yield "one", extended_head(self.head, shots, labels, self.new, 1)(self.queries)
        yield "means", by_means
        centred = class_means(compared - self.centre, labels, self.new)
        yield "centred", self.centred @ torch.cat([self.centred_means, centred]).T
        near, index = nearest_neighbours(self.units, unit)
        together, order = torch.cat([self.near, near], 1).topk(self.near.shape[1], dim=1)
        classes = torch.cat([self.near_classes, labels[index] + self.old], 1).gather(1, order)
        yield "knn", neighbour_votes(together, classes, self.old + self.new)

    def _compared(self, features: Tensor) -> Tensor:
        """What the head compares (..., D); of a softmax head, which has no norm of its own, the raw features."""
        return self.head.embed(features) if hasattr(self.head, "embed") else features


def trade_off_area(scores: Tensor, truth: Tensor, num_old: int) -> float:
    """How well old and new classes are told apart and known, whatever one adds to the scores of the new ones.

    A number added to all scores of new classes buys accuracy on them and pays with accuracy on the old ones: the two
    accuracies run along a curve. This is the area under it (Chao et al. 2016), and also a share of pairs: of one old
    and one new image, both go to the right class among those of their kind, and a number can be found that is right
    for both.

    Args:
        scores: (M, C + n), new classes last.
        truth: (M,) integers in [0, C + n), of both kinds.
        num_old: C.

    Returns:
        0 to 1; ties count half.
    """
    (best_old, old_class), (best_new, new_class) = (
        part.max(1) for part in (scores[:, :num_old], scores[:, num_old:])
    )
    lead, is_old = best_old - best_new, truth < num_old
    ours = lead[is_old & (old_class == truth)]
    theirs = lead[~is_old & (new_class + num_old == truth)].sort().values.contiguous()
    below, upto = (torch.searchsorted(theirs, ours.contiguous(), right=right) for right in (False, True))
    return float((below + upto).double().sum() / 2 / is_old.sum() / (~is_old).sum())


def _parts(scores: Tensor, truth: Tensor, old: int) -> dict[str, float]:
    """Percent correct of old classes, new ones, their harmonic mean, all; and the area of :func:`trade_off_area`."""
    correct, is_old = scores.argmax(1) == truth, truth < old
    before, after, every = (
        100 * part.double().mean().item() for part in (correct[is_old], correct[~is_old], correct)
    )
    harmonic = 2 * before * after / (before + after) if before + after else 0.0
    area = 100 * trade_off_area(scores, truth, old)
    return {"new_classes": after, "old_classes": before, "harmonic": harmonic, "every_class": every, "area": area}


def _draw(unseen: tuple[Tensor, Tensor], new: int, number: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """So many samples of each class, without replacement; all of them for None."""
    features, labels = unseen
    if number is None:
        return features, labels
    generator, index = torch.Generator().manual_seed(seed), []
    for c in range(new):
        own = (labels == c).nonzero().squeeze(1)
        if len(own) < number:
            raise ValueError(f"new class {c} has {len(own)} training images to draw from, fewer than {number} shots")
        index.append(own[torch.randperm(len(own), generator=generator)[:number].to(own.device)])
    chosen = torch.cat(index)
    return features[chosen], labels[chosen]


def _at_most(data: LabelledImages) -> LabelledImages:
    """``PER_CLASS`` images of each class, drawn at random; all where there are fewer."""
    return data.sample(min(len(data), PER_CLASS * data.num_classes))


def _features(model: ImageClassifier, card: ModelCard, data: LabelledImages) -> tuple[Tensor, Tensor]:
    """Raw features (N, D) and labels (N,), in order."""
    with evaluating(model) as device:
        loader = DeviceLoader(data, BATCH, card.mean, card.std, device)
        parts = [(model.features(images).float(), labels) for images, labels in loader]
    features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, labels
