"""Why this class? The nearest cases of a prediction and of its runner-up, the rule in words, what it would take to
change it, and where in the images the similarity comes from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .exemplars import Exemplar, Exemplars, check_head
from .heat_maps import HeatMap, NoPlaces, heat_maps, scene_maps
from .inference import segment
from .metrics import IGNORED
from .models import Model, Segmenter, evaluating
from .places import axes

#: Sub-centroids that are shown of a class.
CASES = 3


class Case(NamedTuple):
    """A sub-centroid as evidence.

    Attributes:
        label: c, its class.
        subcentroid: k, its number within the class.
        similarity: to what is explained, -1 to 1.
        exemplar: the training image or pixel that it stands for; None where its class has none left.
        here: which places of the explained image are similar to the sub-centroid; None where nobody asked.
        there: which places of the exemplar are similar to the explained image; of a scene, to the sub-centroid.
    """

    label: int
    subcentroid: int
    similarity: float
    exemplar: Exemplar | None
    here: HeatMap | None = None
    there: HeatMap | None = None

    @property
    def maps(self) -> dict[str, HeatMap]:
        """Those of the two heat maps that there are."""
        return {key: heat for key, heat in (("here", self.here), ("there", self.there)) if heat is not None}


@dataclass(frozen=True)
class Explanation:
    """What a prediction rests on.

    Attributes:
        classes: the C names.
        num_subcentroids: K, of each class.
        predicted: the class of the nearest sub-centroid.
        runner_up: the class of the nearest sub-centroid of any other class.
        shares: of each class, the softmax of the scores; they add up to 1.
        cases: the nearest sub-centroids of the predicted class, nearest first, then those of the runner-up.
        size: (height, width) of the image itself.
        at: (row, column) of the pixel that was asked about; None for a whole image.
        centre: the pixel in the middle of the decoder's place that it lies in, whose embedding is explained.
        map_class: what the label map says at the pixel: class scores are blended between neighbouring places, so
            near a border it may differ from ``predicted``. None for a whole image.
        truth: its true class, 255 where it has none; None where that is not known.
        no_maps: why there are no heat maps, where they were asked for and there are none; else empty.
    """

    classes: tuple[str, ...]
    num_subcentroids: int
    predicted: int
    runner_up: int
    shares: tuple[float, ...]
    cases: tuple[Case, ...]
    size: tuple[int, int]
    at: tuple[int, int] | None = None
    centre: tuple[int, int] | None = None
    map_class: int | None = None
    truth: int | None = None
    no_maps: str = ""

    def of(self, label: int) -> tuple[Case, ...]:
        """The cases of a class, nearest first."""
        return tuple(case for case in self.cases if case.label == label)

    @property
    def margin(self) -> float:
        """How much nearer the predicted class's nearest case is than the runner-up's, in similarity."""
        return self.of(self.predicted)[0].similarity - self.of(self.runner_up)[0].similarity

    @property
    def rule(self) -> str:
        """The decision as a rule."""
        name, others = self.classes[self.predicted], len(self.classes) * self.num_subcentroids - 1
        what = "it" if self.at is None else "the pixel"
        return (
            f"IF {what} is nearer to {self.describe(self.of(self.predicted)[0])} than to any of the other "
            f"{others} cases THEN {name}"
        )

    @property
    def change(self) -> str:
        """What it would take to change the decision."""
        other, name = self.of(self.runner_up)[0], self.classes[self.runner_up]
        return (
            f"It would be {name} if its similarity to {self.describe(other)} were more than {self.margin:.3f} higher"
        )

    @property
    def caveat(self) -> str:
        """Where the label map says something else at this pixel, that it does; else empty."""
        if self.map_class is None or self.map_class == self.predicted:
            return ""
        return (
            f"The label map, which blends the scores of neighbouring places, has {self.classes[self.map_class]} at "
            f"this pixel: it lies near a border"
        )

    @property
    def map_note(self) -> str:
        """What the heat maps' numbers mean, or why there are none; empty where nobody asked for them."""
        notes = dict.fromkeys(heat.note for case in self.cases for heat in case.maps.values())
        return self.no_maps or f"The heat maps show {'; '.join(notes)}" * bool(notes)

    def describe(self, case: Case) -> str:
        """A case in words."""
        words = f"case {case.subcentroid} of {self.classes[case.label]}"
        if case.exemplar is None:
            return f"{words} (no training image is left to show it)"
        place = "" if case.exemplar.row is None else f", row {case.exemplar.row}, column {case.exemplar.column}"
        return f"{words} ({case.exemplar.name}{place})"

    def subject(self, name: str = "") -> str:
        """What is explained, in words: the image, the pixel, its true class, as far as they are known."""
        place = "" if self.at is None else f"row {self.at[0]}, column {self.at[1]}"
        subject = ", ".join(part for part in (name, place) if part)
        if self.truth is None:
            return subject
        label = "not labelled" if self.truth == IGNORED else f"labelled {self.classes[self.truth]}"
        return f"{subject} ({label})".strip()

    def lines(self, name: str = "") -> list[str]:
        """All of it in words: the classes and their shares, rule and change, then each case with its similarity.

        Args:
            name: what to call the image.
        """
        first, second = (
            f"{self.classes[label]} {100 * self.shares[label]:.1f} %" for label in (self.predicted, self.runner_up)
        )
        subject = self.subject(name)
        head = f"{subject}{': ' * bool(subject)}{first}, then {second}"
        cases = (f"  {case.similarity:6.3f}  {self.describe(case)}" for case in self.cases)
        return [line for line in (head, self.rule, self.change, self.caveat, *cases, self.no_maps) if line]

    def to_dict(self) -> dict:
        """Plain values, for a JSON file."""
        cases = []
        for case in self.cases:
            exemplar = case.exemplar and {key: v for key, v in case.exemplar._asdict().items() if v is not None}
            numbers = {"label": case.label, "subcentroid": case.subcentroid, "similarity": case.similarity}
            maps = {"maps": {key: heat.to_dict() for key, heat in case.maps.items()}} if case.maps else {}
            cases.append({**numbers, "class": self.classes[case.label], "exemplar": exemplar, **maps})
        place = {}
        if self.at is not None:
            place = {"at": list(self.at), "centre": list(self.centre), "map_class": self.classes[self.map_class]}
        truth = {}
        if self.truth is not None:
            truth = {"truth": None if self.truth == IGNORED else self.classes[self.truth]}
        no_maps = {"no_maps": self.no_maps} if self.no_maps else {}
        return {
            "predicted": self.classes[self.predicted],
            "runner_up": self.classes[self.runner_up],
            "margin": self.margin,
            "rule": self.rule,
            "change": self.change,
            "size": list(self.size),
            **place,
            **truth,
            "shares": dict_of_shares(self.classes, self.shares),
            **no_maps,
            "cases": cases,
        }


def dict_of_shares(classes: Iterable[str], shares: Iterable[float]) -> list[dict]:
    """Classes and their shares, the largest first."""
    pairs = sorted(zip(classes, shares, strict=True), key=lambda pair: -pair[1])
    return [{"class": name, "share": share} for name, share in pairs]


@torch.no_grad()
def explain(
    model: Model,
    image: Tensor,
    exemplars: Exemplars,
    *,
    at: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    cases: int = CASES,
    truth: int | None = None,
    look: Callable[[int], Tensor] | None = None,
) -> Explanation:
    """The evidence for the class of an image or, of a segmenter, of one of its pixels.

    A scene is seen whole, whatever window its recipe slides over it at the test.

    Args:
        model: with a :class:`~dnc_lib.heads.SubCentroidHead`.
        image: (3, h, w), normalised, as the model is given it.
        exemplars: of this model, see :func:`~dnc_lib.exemplars.find_exemplars`.
        at: (row, column) of the pixel, at the image's own resolution; its centre if None. For segmenters alone.
        size: (H, W) of the image itself, where it was resized for the model; else (h, w).
        cases: how many are given of the predicted class and of the runner-up, at most.
        truth: the true class, 255 for none, where it is known.
        look: number of a training image to that image as the model is given it, (3, h, w), normalised. With it every
            case gets two heat maps, see :mod:`dnc_lib.heat_maps`.

    Raises:
        ValueError: for a head without sub-centroids or one that learns how to weigh the classes, a single class,
            exemplars of another number of classes or sub-centroids, a pixel outside the image or of a classifier.
    """
    check_nearest(model)
    subcentroids = model.head.subcentroids  # (C, K, D)
    num_classes, number = subcentroids.shape[:2]
    if num_classes < 2:
        raise ValueError("with a single class there is nothing to explain: nothing else could have been predicted")
    if image.dim() != 3:
        raise ValueError(f"image must be one image (3, h, w), got {tuple(image.shape)}")
    if cases < 1:
        raise ValueError(f"cases must be 1 or more, got {cases}")
    if [len(own) for own in exemplars.cases] != [number] * num_classes:
        raise ValueError(f"the exemplars are another model's: this one has {num_classes} x {number} sub-centroids")
    size = tuple(image.shape[1:]) if size is None else tuple(size)
    place = {}
    with evaluating(model) as device:
        image = image[None].to(device)
        if isinstance(model, Segmenter):
            at = (size[0] // 2, size[1] // 2) if at is None else tuple(at)
            check_pixel(at, size)
            embedded, place = _at_place(model, image, at, size)
        elif at is not None:
            raise ValueError(f"this model classifies whole images: there is no pixel {at} to explain")
        else:
            embedded = model.embed(image)[0]
    similarity = subcentroids @ embedded.to(subcentroids.dtype)  # (C, K)
    best = similarity.amax(1)
    predicted, runner_up = best.topk(2).indices.tolist()
    evidence = []
    for label in (predicted, runner_up):
        values, which = similarity[label].sort(descending=True)
        for value, k in list(zip(values.tolist(), which.tolist(), strict=True))[:cases]:
            evidence.append(Case(label, k, value, exemplars.cases[label][k]))
    no_maps = ""
    if look is not None:
        try:
            evidence = _mapped(model, image[0], embedded, evidence, look)
        except NoPlaces as error:
            no_maps = str(error)
    shares = tuple((best / model.head.temperature).softmax(0).tolist())
    fields = (exemplars.classes, number, predicted, runner_up, shares, tuple(evidence), size)
    return Explanation(*fields, **place, truth=truth, no_maps=no_maps)


def check_nearest(model: Model) -> None:
    """Raise ``ValueError`` unless a model's prediction is the class of its nearest sub-centroid."""
    check_head(model)
    if model.head.class_norm is not None:
        raise ValueError(
            "this model's class scores go through a LayerNorm over the classes, whose learned gain and bias decide "
            "too: its prediction need not be the class of the nearest case, so no case explains it; train with "
            "scale_by temperature to get explanations"
        )


def _mapped(
    model: Model, image: Tensor, embedded: Tensor, cases: list[Case], look: Callable[[int], Tensor]
) -> list[Case]:
    """The cases with their heat maps: ``image`` (3, h, w) against each case, each exemplar against ``embedded`` (D,),
    or, of a scene, against its sub-centroid."""
    targets = torch.stack([model.head.subcentroids[case.label, case.subcentroid] for case in cases])
    if isinstance(model, Segmenter):
        here = scene_maps(model, image, targets)
        there = [
            case.exemplar and scene_maps(model, look(case.exemplar.image), target[None])[0]
            for case, target in zip(cases, targets, strict=True)
        ]
    else:
        here = heat_maps(model, image[None], targets)
        there = [
            case.exemplar and heat_maps(model, look(case.exemplar.image)[None], embedded[None])[0] for case in cases
        ]
    return [case._replace(here=h, there=t) for case, h, t in zip(cases, here, there, strict=True)]


def check_pixel(at: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise ``ValueError`` unless (row, column) lies in an image of (height, width)."""
    for what, place, side in zip(("row", "column"), at, size, strict=True):
        if not 0 <= place < side:
            raise ValueError(
                f"{what} {place} lies outside the image, which has {size[0]} rows and {size[1]} columns, "
                f"counted from 0"
            )


def _at_place(model: Segmenter, image: Tensor, at: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, dict]:
    """The embedding (D,) of the place that a pixel lies in, and the fields of the explanation that tell of it."""
    embedded = model.embed(image)[0]  # (D, h, w)
    down, across = axes(size, tuple(image.shape[2:]), tuple(embedded.shape[1:]), model.multiple)
    row, column = down.place(at[0]), across.place(at[1])
    centre = min(down.pixel(row), size[0] - 1), min(across.pixel(column), size[1] - 1)
    map_class = int(segment(model, image, size=size)[0, :, at[0], at[1]].argmax())
    return embedded[:, row, column], {"at": at, "centre": centre, "map_class": map_class}
