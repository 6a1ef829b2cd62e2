"""The streaming confusion matrix against torchmetrics', on the same predictions and labels.

It needs torchmetrics, which nothing else here does: pip install torchmetrics
"""

import argparse
import sys
from functools import partial

import _common  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from _common import CONFUSION_AT_LEAST, finish, heading, interleaved, mark, parser, table

from dnc_lib.metrics import IGNORED, ConfusionMatrix, predicted_classes

try:
    from torchmetrics.classification import MulticlassConfusionMatrix
except ImportError:
    sys.exit("bench_confusion.py compares with torchmetrics, which is not installed: pip install torchmetrics")

#: Number of classes, height and width: CamVid, Cityscapes, ADE20K, COCO-Stuff-10K.
SCENES = ((11, 360, 480), (19, 1024, 2048), (150, 512, 683), (171, 480, 640))


def scene(classes: int, height: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (1, C, H, W), smooth as a network's are, and labels (1, H, W) that agree with them at 3 pixels of 4.

    A tenth of the pixels has no label.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, -(-height // 8), -(-width // 8), generator=generator)
    scores = F.interpolate(coarse, (height, width), mode="bilinear")
    shape = (1, height, width)
    chance = torch.rand(shape, generator=generator)
    strangers = torch.randint(classes, shape, generator=generator)
    labels = torch.where(chance < 0.75, predicted_classes(scores), strangers).masked_fill_(chance > 0.9, IGNORED)
    return scores.to(device), labels.to(device)


def count_ours(matrix: ConfusionMatrix, found: torch.Tensor, labels: torch.Tensor) -> None:
    """Count an image by its classes (1, H, W) or its scores (1, C, H, W): torchmetrics takes either as it is."""
    matrix.update(predicted_classes(found) if found.dim() == 4 else found, labels)


def milliseconds(
    found: torch.Tensor, labels: torch.Tensor, classes: int, arguments: argparse.Namespace
) -> list[float]:
    """The best update of ours, of theirs, and of theirs with its checks off; all must have counted the same."""
    device = arguments.device
    ours = ConfusionMatrix(classes, device)
    theirs = [
        MulticlassConfusionMatrix(classes, ignore_index=IGNORED, validate_args=checks).to(device)
        for checks in (True, False)
    ]
    calls = [partial(count_ours, ours, found, labels), *(partial(each.update, found, labels) for each in theirs)]
    times = interleaved(calls, arguments.rounds, device, arguments.clock)
    if not all(torch.equal(ours.matrix, each.compute().to(ours.matrix)) for each in theirs):
        sys.exit("the matrices differ: one of them counts wrong, and its time means nothing")
    return [1000 * min(each) for each in times]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--scene", type=int, nargs=3, metavar=("C", "H", "W"), help="one size (default: four)")
    options.add_argument("--rounds", type=int, default=5, help="updates of each (default 5)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    heading("One more image for a confusion matrix", arguments.device, arguments.clock)
    passed = []

    def rows():
        for classes, height, width in [arguments.scene] if arguments.scene else SCENES:
            scores, labels = scene(classes, height, width, arguments.device)
            for what, found in (("classes", predicted_classes(scores)), ("scores", scores)):
                times = milliseconds(found, labels, classes, arguments)
                ratios = [each / times[0] for each in times[1:]]
                passed.append(min(ratios) >= CONFUSION_AT_LEAST)
                yield (
                    f"{classes} classes, {height} x {width}, {what}",
                    *(f"{each:.2f}" for each in times),
                    *(f"{ratio:.2f}" for ratio in ratios),
                    f"{CONFUSION_AT_LEAST}",
                    mark(passed[-1]),
                )

    columns = ("given", "ours ms", "torchmetrics ms", "checks off ms", "speed", "checks off", "at least", "")
    table(columns, rows(), first=34)
    print("\nClasses out of range are always an error for ours, and for torchmetrics unless its checks are off.")
    finish(passed)


if __name__ == "__main__":
    main()
