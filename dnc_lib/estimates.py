"""Time of a run by arithmetic: its operations over what a GPU's data sheet promises and the share that is reached.

An estimate, not a measurement, and silent about how fast images come. It is made for one GPU, :data:`GPU`, wherever
this package and its book name hours.
"""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from .data.whole import WHOLE
from .models import ImageClassifier, Segmenter
from .recipes import Recipe


class Device(NamedTuple):
    """A GPU: its name, and its operations a second in bfloat16 by its data sheet (dense)."""

    name: str
    peak: float


#: What hours may be estimated for.
DEVICES = {"H100": Device("H100", 989e12), "A100": Device("A100", 312e12)}

#: The one that estimates are made for.
GPU = DEVICES["H100"]

#: The share of its peak that a training is assumed to reach, at best and at worst.
UTILISATION = (0.2, 0.1)


def image_operations(recipe: Recipe, num_classes: int | None = None) -> float:
    """Operations (two a multiply-add) of a training step for one image or crop: forward, and twice as many back.

    The network is built with a softmax head on the meta device, so this needs neither memory nor weights.

    Args:
        recipe: its network and the size of its images.
        num_classes: of the data set, where it is not one of a known size.
    """
    classes = WHOLE[recipe.dataset].classes if num_classes is None else num_classes
    with torch.device("meta"):
        if recipe.decoder:
            network = Segmenter.build(
                recipe.backbone,
                recipe.decoder,
                classes,
                "softmax",
                channels=recipe.channels,
                output_stride=recipe.output_stride or None,
                auxiliary=recipe.auxiliary > 0,
            )
            size, settings = recipe.crop_size, {"return_features": True}
        else:
            network = ImageClassifier.build(recipe.backbone, classes, "softmax")
            size, settings = (recipe.image_size, recipe.image_size), {}
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(2, 3, *size), **settings)
    return 3 * counter.get_total_flops() / 2


def run_operations(recipe: Recipe) -> float:
    """Operations of a whole training on a data set of known size; a short last batch is dropped, as in training."""
    steps = WHOLE[recipe.dataset].train // recipe.batch_size
    return image_operations(recipe) * steps * recipe.batch_size * recipe.epochs


def hours(operations: float, utilisation: float = UTILISATION[0], gpu: Device = GPU, devices: int = 1) -> float:
    """Hours on so many GPUs, at best: no more than so many times as fast as one."""
    return operations / (gpu.peak * utilisation * devices) / 3600
