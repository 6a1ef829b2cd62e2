"""Plates of digits: the smallest task on which a classifier becomes a segmenter, and the trial of all ways to do it.

A plate shows nine handwritten digits on one ground, each as large as the classifier knew it, so that a paired trial
of several seeds fits into minutes on one CPU core.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import recipes
from .data import LabelledImages, load
from .evaluation import evaluate_segmentation
from .models import Segmenter
from .randomness import seeded
from .records import Record
from .tasks import Segmentation, Task
from .training import train

#: Where the running example, image 1485 of scikit-learn's digits, stands in the training part; its label.
EXAMPLE, ONE = 990, 1

#: Side of a plate, of a place of its three by three, and how bright a pixel of a digit is that has its label.
SIDE, PLACE, INK = 30, 10, 110

#: The label of the ground.
GROUND = 10

#: The sub-centroids of a segmenter with DNC's head.
HEAD = {"num_subcentroids": 4, "momentum": 0.9, "memory_size": 2000, "correct_only": True}

#: Of a segmenter: width of its embedding, plates and steps of its training, highest learning rate, plates a batch.
CHANNELS, PLATES, STEPS, RATE, BATCH = 16, 200, 150, 0.01, 8

#: The first weights of a segmenter's backbone, and its head; ``scratch`` is no classifier.
SOURCES, HEADS = ("softmax", "dnc", "scratch"), ("softmax", "dnc")

#: How records of the trial name their data set, and their recipe: of the classifier, and what becomes of it.
DATASET, RECIPE = "digit_plates", "digits_resnet8 then=digit_plates"


def plates(
    digits: LabelledImages,
    number: int,
    seed: int,
    classes: Iterable[int] = range(10),
    ground: int = GROUND,
    *,
    training: LabelledImages | None = None,
) -> tuple[Tensor, Tensor]:
    """Plates of nine digits, drawn at random, without the running example.

    Args:
        digits: part of scikit-learn's digits that they show.
        number: N.
        seed: of the draws.
        classes: digits that occur.
        ground: label of the pixels that show none.
        training: part whose mean and deviation normalise them; that of the digits without.

    Returns:
        Images (N, 3, 30, 30), normalised, and labels (N, 30, 30).
    """
    training = load("digits")[0] if training is None else training
    rng = np.random.default_rng(seed)
    ink, label = digits.images[..., 0].numpy(), digits.labels.numpy()  # (M, 8, 8), (M,)
    shown = np.isin(label, list(classes))
    if len(digits) == len(training) and torch.equal(digits.images, training.images):
        shown[EXAMPLE] = False
    pool = np.flatnonzero(shown)
    images, labels = np.zeros((number, SIDE, SIDE), np.float32), np.full((number, SIDE, SIDE), ground)
    for i, cell in np.ndindex(number, 9):
        row, column = PLACE * np.array(divmod(cell, 3)) + rng.integers(0, 3, 2)
        place = np.s_[i, row : row + 8, column : column + 8]
        n = rng.choice(pool)
        images[place] = ink[n]
        labels[place][ink[n] >= INK] = label[n]
    mean, deviation = (each[:, None, None] for each in training.channel_stats())
    images = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1) / 255  # grey in three channels
    images = (images - mean) / deviation
    return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


def judged_plates(number: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Plates of test digits, as :func:`plates` gives them; the running example is in the middle of the first."""
    training, test = load("digits")
    images, labels = plates(test, number, seed, training=training)
    digit, border = training.images[EXAMPLE, :, :, 0], (1, 1, 1, 1)  # (8, 8)
    mean, deviation = (each[0] for each in training.channel_stats())
    middle = np.s_[PLACE : 2 * PLACE, PLACE : 2 * PLACE]
    images[0][:, *middle] = (F.pad(digit / 255, border) - mean) / deviation
    labels[0][middle] = F.pad(torch.where(digit >= INK, ONE, GROUND), border, value=GROUND)
    return images, labels


def segmenter(source: Path | None, head: str, seed: int, num_classes: int = 11) -> Segmenter:
    """A segmenter for plates before its training; of one seed all have the same decoder.

    Args:
        source: run folder of a classifier; ``None`` for random first weights.
        head: its last layer.
        seed: of what is new.
        num_classes: C.
    """
    settings = {"channels": CHANNELS, "head_settings": HEAD}
    with seeded(seed):
        if source is None:
            model = Segmenter.build("tiny_resnet8", "upernet", num_classes, head, **settings)
        else:
            model = Segmenter.from_classifier(source, "upernet", num_classes, head, **settings)
    return model.to(memory_format=torch.channels_last)  # no other numbers, only faster


def fit(
    model: nn.Module, task: Task, images: Tensor, labels: Tensor, steps: int, seed: int, batch: int = BATCH
) -> nn.Module:
    """Train in place: steps of AdamW with one cycle of the learning rate.

    Args:
        model: a segmenter, or a classifier.
        task: what is special about either.
        images: (N, 3, H, W), normalised.
        labels: (N, H, W), or (N,).
        steps: of the optimiser.
        seed: of the order in which images are seen, and of dropout.
        batch: images a step.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    model.train()
    with seeded(seed):  # of dropout
        for step in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=order)
            outcome = task.step(model, images[chosen], labels[chosen])  # forward pass and loss
            optimiser.zero_grad()
            outcome.loss.backward()
            optimiser.step()
            schedule.step()
            if step >= 10:  # first gather, then follow; a softmax head has nothing that moves
                model.head.update(*task.samples(outcome, seed=step))
    return model


def classifier(head: str, seed: int, output: Path) -> Path:
    """Train a classifier of digits, the trial's; its run folder."""
    recipe = recipes.digits_resnet8(head=head, seed=seed, epochs=6, evaluate_every=6, momentum=0.97)
    return train(recipe, output=output, progress=False).folder


def trial(
    seed: int,
    judged: tuple[Tensor, Tensor],
    *,
    sources: Sequence[str] = SOURCES,
    heads: Sequence[str] = HEADS,
    steps: int = STEPS,
    number: int = PLATES,
    classifiers: dict[str, Path] | None = None,
    models: dict | None = None,
) -> dict[str, float]:
    """Every way from a classifier to a segmenter, once.

    All segmenters of a seed have the same decoder at the start and see the same plates in the same order.

    Args:
        seed: of everything.
        judged: plates on which they are judged.
        sources: of :data:`SOURCES`.
        heads: of the segmenters.
        steps: of a segmenter's training.
        number: of plates to learn from.
        classifiers: run folder of each source; trained here, in a temporary folder, without.
        models: filled with the trained segmenters.

    Returns:
        mIoU in percent, as ``"softmax to dnc"``: the classifier's head, then the segmenter's.
    """
    training, found = load("digits")[0], {}
    images, labels = plates(training, number, 100 + seed, training=training)
    task = Segmentation(GROUND + 1, pixels=10)
    with tempfile.TemporaryDirectory() as folder:
        for source in sources:
            start = None
            if source != "scratch":
                start = classifiers[source] if classifiers else classifier(source, seed, Path(folder))
            for head in heads:
                model = fit(segmenter(start, head, seed), task, images, labels, steps, seed)
                found[f"{source} to {head}"] = evaluate_segmentation(model, [judged])["miou"]
                if models is not None:
                    models[f"{source} to {head}"] = model
    return found


def as_records(manifest: dict) -> list[Record]:
    """The trial's results as records that the ledger can judge.

    An arm is a head, and a score says where it stood: ``miou_own`` in the classifier and in the segmenter that it
    became; ``miou_to_<head>`` in the classifier, before a segmenter of that head; ``miou_from_<source>`` in the
    segmenter, after that source.

    Args:
        manifest: as ``tools/plates.py`` writes it.
    """
    made = []
    for entry in manifest["results"]:
        for arm in HEADS:
            scores = {"miou_own": entry["miou"][f"{arm} to {arm}"]}
            scores |= {f"miou_to_{head}": entry["miou"][f"{arm} to {head}"] for head in HEADS}
            scores |= {f"miou_from_{source}": entry["miou"][f"{source} to {arm}"] for source in SOURCES}
            code = manifest["code"]
            made.append(
                Record(
                    RECIPE,
                    DATASET,
                    arm,
                    entry["seed"],
                    scores,
                    data={"train": manifest["data"]},
                    hardware=manifest["hardware"],
                    commit=code["commit"] and code["commit"] + "+" * bool(code["dirty"]),
                    seconds=entry["seconds"],
                    file="transfer/plates.json",
                    generation=manifest["generation"],
                )
            )
    return made
