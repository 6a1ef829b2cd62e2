"""Anchoring: each sub-centroid becomes the embedding of a training image, so that every case is a picture."""

from dataclasses import replace

import torch

from .data.loader import Passes
from .exemplars import Exemplar, Exemplars, find_exemplars, model_digest
from .models import Model, Segmenter, evaluating
from .places import axes


@torch.no_grad()
def anchor(model: Model, loader: Passes, *, progress: bool = False) -> tuple[Exemplars, float]:
    """Put each sub-centroid at the embedding of the training image of its class that is nearest to it, no image
    twice; of a segmenter, at that of the nearest pixel (Wang et al. 2023).

    A pass over the training images finds them, a second one over those alone takes their embeddings. A sub-centroid
    whose class has no image left stays where it is.

    Args:
        model: with a :class:`~dnc_lib.heads.SubCentroidHead`; changed in place.
        loader: all training images in order, without augmentation.
        progress: show a progress bar.

    Returns:
        Which images they are; and the mean similarity of a sub-centroid to its image before it was put there.

    Raises:
        ValueError: for a head without sub-centroids, or a loader that shuffles.
    """
    found = find_exemplars(model, loader, loader.data, progress=progress)
    similarities = [case.similarity for own in found.cases for case in own if case is not None]
    loader.only = torch.tensor(sorted({case.image for own in found.cases for case in own if case is not None}))
    numbers = iter(loader.only.tolist())
    places = {}
    for c, own in enumerate(found.cases):
        for k, case in enumerate(own):
            if case is not None:
                places.setdefault(case.image, []).append((c, k, case))
    with evaluating(model) as device:
        for images, labels in loader:
            embedded = model.embed(images.to(device))  # (B, D), of pixels (B, D, h, w)
            for i, number in zip(range(len(images)), numbers, strict=False):
                for c, k, case in places[number]:
                    vector = embedded[i]
                    if isinstance(model, Segmenter):
                        row, column = _place(case, tuple(labels.shape[1:]), images, vector, model.multiple)
                        vector = vector[:, row, column]
                    model.head.subcentroids[c, k] = vector
    model.head.moved |= torch.tensor([[case is not None for case in own] for own in found.cases], device=device)
    cases = tuple(tuple(case and case._replace(similarity=1.0) for case in own) for own in found.cases)
    return replace(found, cases=cases, model=model_digest(model)), sum(similarities) / max(len(similarities), 1)


def _place(case: Exemplar, size: tuple[int, int], images, embedded, multiple: int) -> tuple[int, int]:
    """The place (row, column) in the decoder's map that an exemplar's pixel lies in."""
    down, across = axes(size, tuple(images.shape[2:]), tuple(embedded.shape[1:]), multiple)
    return down.place(case.row), across.place(case.column)
