"""Real training images as sub-centroids: which image, or which pixel of a scene, lies nearest to each."""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .data.pictures import Pictures
from .data.scenes import Scenes
from .grouping import ClassTiles
from .heads import SubCentroidHead
from .metrics import IGNORED
from .models import Model, Segmenter, evaluating
from .pixels import labels_at
from .places import axes
from .sinkhorn import check_labels

#: What no forward pass looks at, so that it may change without another exemplar.
_IDLE = ("auxiliary.", "head.memory.", "head.origin", "head.moved", "head.wins", "head.updates")


class Exemplar(NamedTuple):
    """The training image, or the pixel of one, that a sub-centroid stands for.

    Attributes:
        image: its number in the training part.
        name: its file's name, or what to call it where it has no file.
        similarity: to the sub-centroid, -1 to 1.
        row: of the pixel, at the scene's own resolution; None for a whole image.
        column: of the pixel.
    """

    image: int
    name: str
    similarity: float
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Exemplars:
    """For each of the C * K sub-centroids of a model the nearest training image or pixel of its class.

    Attributes:
        classes: the C names.
        cases: C tuples of K; None where the class has no image left to give.
        data: digest of the training data.
        model: digest of the model, see :func:`model_digest`.
    """

    classes: tuple[str, ...]
    cases: tuple[tuple[Exemplar | None, ...], ...]
    data: str
    model: str

    def to_dict(self) -> dict:
        """Plain values, for a JSON file; :meth:`from_dict` reads them back."""
        cases = [
            [case and {key: value for key, value in case._asdict().items() if value is not None} for case in own]
            for own in self.cases
        ]
        return {"data": self.data, "model": self.model, "classes": list(self.classes), "exemplars": cases}

    @classmethod
    def from_dict(cls, values: dict) -> "Exemplars":
        """What :meth:`to_dict` gave.

        Raises:
            KeyError: for a part that is missing.
            TypeError: for parts that are none of exemplars.
        """
        cases = tuple(tuple(case and Exemplar(**case) for case in own) for own in values["exemplars"])
        return cls(tuple(values["classes"]), cases, values["data"], values["model"])


def find_exemplars(
    model: Model, loader: Iterable[tuple[Tensor, Tensor]], data, *, progress: bool = False
) -> Exemplars:
    """The nearest training image of its class for each sub-centroid; of a segmenter, the nearest pixel.

    Sub-centroids of a class choose in turn, the one with the closest image first, and no image twice: ten crops of
    one street corner would teach little. Where a class is in fewer scenes than it has sub-centroids, the last ones
    take the nearest pixel of any scene; where it has fewer images, the last ones have none. Embeddings are dropped
    as the images go by. What is kept is K similarities for each image, or the K best scenes for each sub-centroid.

    Args:
        model: with a :class:`~dnc_lib.heads.SubCentroidHead`.
        loader: all of ``data`` once, in order, without augmentation: normalised images and their labels (B,) or,
            for pixels, (B, H, W) with 255 for no class.
        data: the training part: anything that :mod:`dnc_lib.data` gives.
        progress: show a progress bar.

    Raises:
        ValueError: for a head without sub-centroids, a loader that shuffles, or one that gives another number of
            images than the data.
    """
    check_head(model)
    if getattr(loader, "shuffle", False):  # its numbers would be those of other images
        raise ValueError("exemplars need the training images in order: give a loader that does not shuffle")
    find = _pixels if isinstance(model, Segmenter) else _images
    with torch.no_grad(), evaluating(model) as device:
        cases, seen = find(model, tqdm(loader, unit=" batches", leave=False, disable=not progress), device)
    if seen != len(data):
        raise ValueError(f"the loader gave {seen} images, but {data.name} has {len(data)}: give all of them once")
    named = (tuple(case and Exemplar(case[0], image_name(data, case[0]), *case[1:]) for case in own) for own in cases)
    return Exemplars(tuple(data.classes), tuple(named), data.digest(), model_digest(model))


def check_head(model: Model) -> None:
    """Raise ``ValueError`` unless a model has sub-centroids."""
    if not isinstance(model.head, SubCentroidHead):
        raise ValueError(
            f"a {type(model.head).__name__} has no sub-centroids, so no training image stands for a class: "
            f"train with head dnc (or frozen) to get explanations"
        )


def image_name(data, i: int) -> str:
    """What to call image ``i`` of a data set: its file's name, if it has one."""
    if isinstance(data, Scenes):
        return data.images[i].name
    return os.fsdecode(data.names[i]) if isinstance(data, Pictures) else f"image {i}"


def model_digest(model: Model) -> str:
    """SHA-256 of all that decides a model's embeddings and sub-centroids, the first 16 digits."""
    sha = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if not key.startswith(_IDLE):
            sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def _images(model: Model, loader: Iterable, device: torch.device) -> tuple[list, int]:
    """C lists of K (image, similarity) or None, and how many images there were."""
    subcentroids = model.head.subcentroids
    scores, labels = [], []
    for images, own in loader:
        own = own.to(device)
        check_labels(own, len(subcentroids))
        scores.append(
            ClassTiles(model.embed(images.to(device)).float(), own, len(subcentroids)).own_scores(subcentroids)
        )
        labels.append(own)
    if not labels:
        return [], 0
    index, similarity = _choose(torch.cat(scores), torch.cat(labels), len(subcentroids))
    rows = zip(index.tolist(), similarity.tolist(), strict=True)
    cases = [[(i, s) if i >= 0 else None for i, s in zip(*row, strict=True)] for row in rows]
    return cases, sum(map(len, labels))


def _pixels(model: Segmenter, loader: Iterable, device: torch.device) -> tuple[list, int]:
    """C lists of K (image, similarity, row, column) or None, and how many scenes there were."""
    best, number = _NearestScenes(*model.head.subcentroids.shape[:2]), 0
    for images, masks in loader:
        embedded = model.embed(images.to(device)).float()  # (B, D, h, w)
        seen, grid = tuple(images.shape[2:]), tuple(embedded.shape[2:])
        labels = labels_at(masks.to(device), grid, model.multiple, seen)
        check_labels(labels[labels != IGNORED], model.head.num_classes)
        down, across = axes(tuple(masks.shape[1:]), seen, grid, model.multiple)
        for features, own in zip(embedded.flatten(2), labels.flatten(1), strict=True):  # (D, h * w), (h * w,)
            for c in own[own != IGNORED].unique().tolist():
                places = (own == c).nonzero().squeeze(1)
                similarity, which = (model.head.subcentroids[c] @ features[:, places]).max(1)  # (K,)
                cells = (divmod(place, across.places) for place in places[which].tolist())
                where = [(down.pixel(i), across.pixel(j)) for i, j in cells]
                best.offer(c, number, similarity.tolist(), where)
            number += 1
    return best.chosen(), number


class _NearestScenes:
    """For each sub-centroid the K scenes whose nearest pixel of its class lies closest, and that pixel.

    K are enough: when a sub-centroid's turn comes, K - 1 scenes at most are taken.
    """

    def __init__(self, num_classes: int, num_subcentroids: int):
        self.number = num_subcentroids
        self.kept = [[[] for _ in range(num_subcentroids)] for _ in range(num_classes)]

    def offer(self, c: int, scene: int, similarity: list[float], where: list[tuple[int, int]]) -> None:
        """A scene's nearest pixel of a class for each of its K sub-centroids."""
        for own, value, place in zip(self.kept[c], similarity, where, strict=True):
            if len(own) < self.number or value > own[-1][1]:
                own.append((scene, value, *place))
                own.sort(key=lambda case: -case[1])  # stable: of two alike the earlier scene
                del own[self.number :]

    def chosen(self) -> list[list[tuple[int, float, int, int] | None]]:
        """One of them each: the closest pairs first, a scene that is taken is gone; then, if none is left, any."""
        return [self._choose(own) for own in self.kept]

    def _choose(self, candidates: list[list[tuple]]) -> list[tuple | None]:
        chosen, taken = [None] * self.number, set()
        pairs = [(case, k) for k, own in enumerate(candidates) for case in own]
        for case, k in sorted(pairs, key=lambda pair: -pair[0][1]):
            if chosen[k] is None and case[0] not in taken:
                chosen[k] = case
                taken.add(case[0])
        return [case or next(iter(own), None) for case, own in zip(chosen, candidates, strict=True)]


@torch.no_grad()
def nearest_exemplars(embeddings: Tensor, labels: Tensor, subcentroids: Tensor) -> tuple[Tensor, Tensor]:
    """The training image of its class that lies nearest to each sub-centroid, no image twice.

    Sub-centroids of a class choose in turn, the one with the closest image first; an image taken is gone.

    Args:
        embeddings: (N, D) unit embeddings.
        labels: (N,) in [0, C).
        subcentroids: (C, K, D), unit length.

    Returns:
        index (C, K) into the N, -1 where a class has fewer images than sub-centroids; similarity (C, K), NaN there.

    Raises:
        ValueError: for shapes that do not fit, or labels out of range.
    """
    if (
        embeddings.dim() != 2
        or labels.shape != embeddings.shape[:1]
        or subcentroids.shape[2:] != embeddings.shape[1:]
    ):
        shapes = ", ".join(str(tuple(each.shape)) for each in (embeddings, labels, subcentroids))
        raise ValueError(f"embeddings must be (N, D), labels (N,) and subcentroids (C, K, D), got {shapes}")
    check_labels(labels, subcentroids.shape[0])
    scores = ClassTiles(embeddings, labels, subcentroids.shape[0]).own_scores(subcentroids)  # (N, K)
    return _choose(scores, labels, subcentroids.shape[0])


def _choose(scores: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """:func:`nearest_exemplars`, of the similarities (N, K) of each image to the sub-centroids of its class."""
    num_subcentroids = scores.shape[1]
    index = torch.full((num_classes, num_subcentroids), -1, dtype=torch.long, device=labels.device)
    similarity = torch.full((num_classes, num_subcentroids), math.nan, device=labels.device)
    for c in range(num_classes):
        members = (labels == c).nonzero().squeeze(1)
        own = scores[members].clone()  # (N_c, K)
        for _ in range(min(num_subcentroids, len(members))):
            place, k = divmod(int(own.argmax()), num_subcentroids)
            index[c, k], similarity[c, k] = members[place], own[place, k]
            own[place], own[:, k] = -torch.inf, -torch.inf
    return index, similarity
