"""Hidden classes: train on a few coarse classes, then ask whether what the model knows tells the fine ones apart.

The sub-centroids of a class are groups of its samples that nobody named. Whether they are the classes that the coarse
label hides is measured on test images: how pure the groups are, how much they say about the hidden label, beyond what
shuffled groups, a few random images or plain k-means would.
"""

from pathlib import Path

import torch
from torch import Tensor

from .checkpoints import ModelCard
from .data import DeviceLoader, LabelledImages, load
from .data.coarse import COARSE
from .evaluation import embed_dataset
from .heads import unit_length
from .models import ImageClassifier
from .new_classes import class_centres, nearest_neighbours, neighbour_votes

#: Neighbours that vote on a hidden class; shuffles of the null; draws of random images.
NEIGHBOURS, SHUFFLES, DRAWS = 20, 100, 20

#: Training images that are looked at, at most: neighbours, and what k-means is fitted to.
TRAINING_IMAGES = 10_000

#: Test images shown of each sub-centroid.
SHOWN = 6

#: Images a batch.
BATCH = 500


def flow(groups: Tensor, hidden: Tensor, num_groups: int, num_hidden: int) -> Tensor:
    """How many samples of each hidden class each group holds.

    Args:
        groups: (N,) integers in [0, K).
        hidden: (N,) integers in [0, F).
        num_groups: K.
        num_hidden: F.

    Returns:
        (K, F) counts.

    Raises:
        ValueError: for groups and classes of unequal number.
    """
    if groups.shape != hidden.shape or groups.dim() != 1:
        raise ValueError(f"groups and hidden must be (N,), got {tuple(groups.shape)} and {tuple(hidden.shape)}")
    return torch.bincount(groups * num_hidden + hidden, minlength=num_groups * num_hidden).view(num_groups, -1)


def group_purity(table: Tensor) -> float:
    """The share of samples whose hidden class is the most frequent one of their group.

    It never falls when groups are split, and is 1 for groups of one sample: compare groups of equal number only.

    Args:
        table: (K, F) counts, see :func:`flow`.
    """
    return float(table.amax(1).sum() / table.sum())


def mutual_information(tables: Tensor) -> Tensor:
    """Normalised mutual information of groups and hidden classes: 0 where groups say nothing, 1 where they say all.

    The mutual information over the mean of the two entropies (Strehl and Ghosh 2002; scikit-learn's
    ``normalized_mutual_info_score``). Unlike purity it also falls where a hidden class is cut into several groups.

    Args:
        tables: (..., K, F) counts, see :func:`flow`.

    Returns:
        (...) float64; 1 where there is one group and one class only.
    """
    p = tables.double() / tables.sum((-2, -1), keepdim=True)
    by_group, by_class = _entropy(p.sum(-1)), _entropy(p.sum(-2))
    shared = by_group + by_class - _entropy(p.flatten(-2))
    mean = (by_group + by_class) / 2
    return torch.where(mean > 0, shared.clamp_min(0) / mean.where(mean > 0, mean.new_ones(())), 1.0)


def _entropy(p: Tensor) -> Tensor:
    """(..., M) -> (...), in nats."""
    return -torch.xlogy(p, p).sum(-1)


def shuffled(groups: Tensor, hidden: Tensor, num_groups: int, num_hidden: int, times: int, seed: int = 0) -> Tensor:
    """The null: the same groups, dealt out to the samples at random.

    Args:
        groups: see :func:`flow`, as the next three.
        hidden: (N,).
        num_groups: K.
        num_hidden: F.
        times: how often.
        seed: of the shuffles.

    Returns:
        (times, K, F) counts.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(groups), generator=generator).to(groups.device) for _ in range(times))
    return torch.stack([flow(groups[order], hidden, num_groups, num_hidden) for order in orders])


def covered(table: Tensor) -> int:
    """How many hidden classes have a group of their own: one that is for the greater half theirs.

    Args:
        table: (K, F) counts.
    """
    owner = table.argmax(1)[table.amax(1) * 2 > table.sum(1)]
    return len(owner.unique())


def nearest_own(embeddings: Tensor, labels: Tensor, subcentroids: Tensor) -> Tensor:
    """The sub-centroid of its own class that each sample is nearest to.

    Args:
        embeddings: (N, D).
        labels: (N,) integers in [0, C).
        subcentroids: (C, K, D), unit length.

    Returns:
        (N,) integers in [0, K).
    """
    nearest = torch.empty_like(labels)
    for c, own in enumerate(subcentroids):
        nearest[labels == c] = (embeddings[labels == c] @ own.T).argmax(1)
    return nearest


@torch.no_grad()
def measure(
    model: ImageClassifier,
    card: ModelCard,
    parts: dict[str, LabelledImages],
    *,
    data_root: str | Path | None = None,
    fine: tuple[LabelledImages, LabelledImages] | None = None,
    details: dict | None = None,
) -> dict[str, float]:
    """What a model that was trained on coarse classes knows of the fine ones that they hide.

    Of test images, each within its coarse class; means over the coarse classes, in percent where not said otherwise.
    Groups are the K sub-centroids of the class, each image in that of its nearest; to compare heads that have none,
    the same with K-means centroids, K the largest number of classes that one coarse class hides.

    Args:
        model: trained on coarse labels.
        card: its card.
        parts: ``test``, with coarse labels, see :func:`dnc_lib.loading.prepare_data`.
        data_root: of the data set.
        fine: training and test images with fine labels, the test images in the order of ``parts["test"]``; those of
            :data:`dnc_lib.data.coarse.COARSE` without.
        details: filled, for sub-centroids with K of 2 or more, with what the figures are made of: for each coarse
            class ``flows`` (its K rows of counts of the F fine classes) and ``nearest`` (for each of its K
            sub-centroids the numbers of the ``SHOWN`` test images that are nearest to it, of those in its group);
            ``classes`` has the F names.

    Returns:
        For sub-centroids, or learned prototypes, with K of 2 or more: ``nmi``, ``nmi_null`` (shuffled groups, mean;
        ``nmi_null_high``: the largest),
        ``purity``, ``purity_null``, ``fine_covered`` (a number: hidden classes with a group of their own).
        For every model: ``nmi_kmeans``, ``purity_kmeans``, ``fine_covered_kmeans`` (k-means on its embeddings),
        ``nmi_images``, ``purity_images``, ``fine_covered_images`` (K random training images as centroids, mean over
        draws), ``fine_knn`` (the fine class, among all, by the ``NEIGHBOURS`` nearest of ``TRAINING_IMAGES`` training
        images).

    Raises:
        ValueError: where the test images are not those of a coarse data set, or in another order.
        ImportError: without scikit-learn, whose k-means it takes.
    """
    train, test = _fine_parts(card, data_root) if fine is None else fine
    labels, hidden = parts["test"].labels, test.labels
    homes = _homes(labels, hidden, test.num_classes)
    _check_order(parts["test"], test)
    seen, seen_fine = _embedded(model, card, train.sample(min(len(train), TRAINING_IMAGES)))
    asked, _ = _embedded(model, card, test)
    near, index = nearest_neighbours(asked, seen, NEIGHBOURS)
    votes = neighbour_votes(near, seen_fine[index], test.num_classes)
    result = {"fine_knn": 100 * (votes.argmax(1).cpu() == hidden).double().mean().item()}
    asked, seen, seen_coarse = asked.cpu(), seen.cpu(), homes[seen_fine.cpu()]
    compared = int(torch.bincount(homes).max())  # K of the groups that every model gets
    every = (labels, hidden, card, test.num_classes)

    own = model.head.class_vectors()
    if own is not None and own.shape[1] > 1:
        own = own.cpu()
        groups, number = nearest_own(asked, labels, own), own.shape[1]
        result |= _scores(groups, number, *every)
        nulls = [
            shuffled(groups[labels == c], hidden[labels == c], number, test.num_classes, SHUFFLES)
            for c in range(len(card.classes))
        ]
        nmi = torch.stack([mutual_information(tables) for tables in nulls]).mean(0)  # (SHUFFLES,)
        purity = [group_purity(table) for tables in nulls for table in tables]
        result |= {"nmi_null": 100 * nmi.mean().item(), "nmi_null_high": 100 * nmi.max().item()}
        result["purity_null"] = 100 * sum(purity) / len(purity)
        if details is not None:
            similarity = (asked * own[labels, groups]).sum(1)
            details |= _portrait(groups, similarity, number, *every) | {"classes": list(test.classes)}

    centres = class_centres(seen, seen_coarse, compared).view(-1, compared, seen.shape[1])
    result |= _scores(nearest_own(asked, labels, centres), compared, *every, suffix="_kmeans")
    drawn = []
    for seed in range(DRAWS):
        centres = _random_images(seen, seen_coarse, len(card.classes), compared, seed)
        drawn.append(_scores(nearest_own(asked, labels, centres), compared, *every, suffix="_images"))
    return result | {key: sum(each[key] for each in drawn) / DRAWS for key in drawn[0]}


def _scores(
    groups: Tensor, number: int, labels: Tensor, hidden: Tensor, card: ModelCard, num_hidden: int, suffix: str = ""
) -> dict[str, float]:
    """NMI and purity, means over the coarse classes, and how many hidden classes are covered in all of them."""
    own = [labels == c for c in range(len(card.classes))]
    tables = [flow(groups[those], hidden[those], number, num_hidden) for those in own]
    return {
        f"nmi{suffix}": 100 * mutual_information(torch.stack(tables)).mean().item(),
        f"purity{suffix}": 100 * sum(map(group_purity, tables)) / len(tables),
        f"fine_covered{suffix}": float(sum(map(covered, tables))),
    }


def _portrait(
    groups: Tensor, similarity: Tensor, number: int, labels: Tensor, hidden: Tensor, card: ModelCard, num_hidden: int
) -> dict[str, list]:
    """Flows, and the test images nearest to each sub-centroid."""
    tables, nearest = [], []
    for c in range(len(card.classes)):
        own = labels == c
        tables.append(flow(groups[own], hidden[own], number, num_hidden).tolist())
        members = [(own & (groups == k)).nonzero().squeeze(1) for k in range(number)]
        nearest.append([those[similarity[those].argsort(descending=True)[:SHOWN]].tolist() for those in members])
    return {"flows": tables, "nearest": nearest}


def _fine_parts(card: ModelCard, data_root: str | Path | None) -> tuple[LabelledImages, LabelledImages]:
    """The data with fine labels whose coarse classes the model knows."""
    for fine, groups in COARSE.values():
        if list(groups) == list(card.classes):
            return load(fine, data_root)
    raise ValueError(f"no data set hides fine classes behind {', '.join(card.classes)}: give them as fine")


def _homes(labels: Tensor, hidden: Tensor, num_hidden: int) -> Tensor:
    """(F,) the coarse class of each fine one."""
    if labels.shape != hidden.shape:
        raise ValueError(f"there are {len(labels)} test images with coarse labels and {len(hidden)} with fine ones")
    homes = labels.new_zeros(num_hidden).scatter_(0, hidden, labels)
    if not torch.equal(homes[hidden], labels):
        raise ValueError("images of one fine class have several coarse ones: are the two lists in the same order?")
    return homes


def _check_order(coarse: LabelledImages, fine: LabelledImages) -> None:
    if not torch.equal(coarse.images, fine.images):
        raise ValueError("the test images with coarse and with fine labels are not the same, in the same order")


def _embedded(model: ImageClassifier, card: ModelCard, data: LabelledImages) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) of unit length and labels (N,), in order."""
    device = next(model.parameters()).device
    embeddings, labels = embed_dataset(model, DeviceLoader(data, BATCH, card.mean, card.std, device))
    return unit_length(embeddings), labels


def _random_images(embeddings: Tensor, labels: Tensor, num_classes: int, number: int, seed: int) -> Tensor:
    """(C, K, D) embeddings of random images of each class."""
    generator, chosen = torch.Generator().manual_seed(seed), []
    for c in range(num_classes):
        own = (labels == c).nonzero().squeeze(1)
        chosen.append(own[torch.randperm(len(own), generator=generator)[:number]])
    return embeddings[torch.stack(chosen)]
