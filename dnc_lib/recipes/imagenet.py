"""ImageNet-1k, with ResNets and Swin transformers.

Hours are arithmetic (:mod:`dnc_lib.estimates`), and presume that the pictures come as fast.
"""

from .base import Recipe
from .sources import settings as sourced

_KINDS = ("paper", "as_released", "zoo")

__all__ = [
    "imagenet_resnet18",
    "imagenet_resnet50",
    "imagenet_resnet101",
    *(f"imagenet_swin_{size}_{kind}" for size in ("tiny", "small", "base") for kind in _KINDS),
]

_PICTURES = {"dataset": "imagenet", "reader": "files", "image_size": 224, "precision": "bf16"}


def _resnet(name: str, **settings) -> Recipe:
    """The released schedule: 100 epochs, batch 256, SGD 0.1, times 0.1 at 30, 60, 90; random crop and flip. There
    eight GPUs had 32 pictures each, and a BatchNorm saw those: so it does here, on any number of GPUs."""
    return Recipe(
        name=f"imagenet_{name}",
        backbone=name,
        epochs=100,
        batch_size=256,
        milestones=(30, 60, 90),
        **_PICTURES | sourced(f"imagenet_{name}") | settings,
    )


def imagenet_resnet18(**changes) -> Recipe:
    """ResNet-18 for a short budget: 16 epochs of one cycle.

    Data: ImageNet. Time: estimated from its operations, not measured: 0 to 1 hours on one H100; at 3,000 pictures a
    second, reading alone takes two. Expect: 65 to 68 % (not run here yet).
    """
    short = {"epochs": 16, "batch_size": 1024, "learning_rate": 2.0, "nesterov": True, "weight_decay": 5e-5}
    short |= {"schedule": "one_cycle", "crop_scale": (0.25, 1.0)}
    return _resnet("resnet18").replace(**short | changes)


def imagenet_resnet50(**changes) -> Recipe:
    """ResNet-50, the released schedule.

    Data: ImageNet. Time: estimated from its operations, not measured: 4 to 9 hours on one H100. Expect: softmax
    76.20 (paper, recalled; public zoo 76.55), DNC 76.49 (paper, recalled).
    """
    return _resnet("resnet50").replace(**changes)


def imagenet_resnet101(**changes) -> Recipe:
    """ResNet-101, the released schedule.

    Data: ImageNet. Time: estimated from its operations, not measured: 8 to 17 hours on one H100. Expect: softmax
    77.52 (paper, recalled; public zoo 77.97), DNC 77.80 (paper, recalled).
    """
    return _resnet("resnet101").replace(**changes)


_SWIN = {"tiny": 0.2, "small": 0.3, "base": 0.5}


def _swin(size: str, kind: str, **settings) -> Recipe:
    """The released schedule: 300 epochs, batch 1024, AdamW 1e-3, decay 0.05, 20 epochs of warm-up, cosine,
    RandAugment, random erasing, drop path by size, gradients clipped at 5; neither Mixup nor label smoothing."""
    return Recipe(
        name=f"imagenet_swin_{size}_{kind}",
        backbone=f"swin_{size}_patch4_window7_224",
        drop_path=_SWIN[size],
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        decay_norms=False,
        clip_norm=5.0,
        schedule="cosine",
        warmup_epochs=20,
        min_learning_rate=1e-5,
        interpolation="bicubic",
        crop_pct=0.9,
        rand_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.25,
        **_PICTURES | sourced(f"imagenet_swin_{size}_{kind}") | settings,
    )


def _swin_zoo(size: str) -> Recipe:
    """What the public zoo's softmax Swin had besides: Mixup 0.8, CutMix 1.0 and label smoothing 0.1.

    Mixed pictures must not move a sub-centroid, so one batch of five stays as it is, in every arm alike; the zoo
    mixed all (``mix_probability=1``, for every head but ``dnc``).
    """
    return _swin(size, "zoo", mixup=0.8, cutmix=1.0, label_smoothing=0.1, mix_probability=0.8)


def imagenet_swin_tiny_paper(**changes) -> Recipe:
    """Swin-T: the released schedule, without Mixup, CutMix and label smoothing, and DNC by the paper's text.

    Data: ImageNet. Time: estimated from its operations, not measured: 15 to 29 hours on one H100. Expect: not
    published.
    """
    return _swin("tiny", "paper").replace(**changes)


def imagenet_swin_small_paper(**changes) -> Recipe:
    """Swin-S: the released schedule, without Mixup, CutMix and label smoothing, and DNC by the paper's text.

    Data: ImageNet. Time: estimated from its operations, not measured: 28 to 57 hours on one H100. Expect: softmax
    83.02, DNC 83.26 (paper, both recalled; the softmax number equals that of the public zoo, which had Mixup).
    """
    return _swin("small", "paper").replace(**changes)


def imagenet_swin_base_paper(**changes) -> Recipe:
    """Swin-B: the released schedule, without Mixup, CutMix and label smoothing, and DNC by the paper's text.

    Data: ImageNet. Time: estimated from its operations, not measured: 50 to 100 hours on one H100. Expect: softmax
    83.36, DNC 83.68 (paper, both recalled; the softmax number equals that of the public zoo, which had Mixup).
    """
    return _swin("base", "paper").replace(**changes)


def imagenet_swin_tiny_as_released(**changes) -> Recipe:
    """Swin-T as released, update and all: sub-centroids drawn at random, moved once in 1000 batches, scores through a
    LayerNorm over the classes.

    A field cannot say one thing: there an update averages all samples of the 1000 batches before it, here the batch
    and a memory of past updates.

    Data: ImageNet. Time: estimated from its operations, not measured: 15 to 29 hours on one H100. Expect: not
    published.
    """
    return _swin("tiny", "as_released").replace(**changes)


def imagenet_swin_small_as_released(**changes) -> Recipe:
    """Swin-S as released, update and all; see :func:`imagenet_swin_tiny_as_released`.

    Data: ImageNet. Time: estimated from its operations, not measured: 28 to 57 hours on one H100. Expect: not known.
    What was released may not be what the paper's 83.26 (recalled) was made with.
    """
    return _swin("small", "as_released").replace(**changes)


def imagenet_swin_base_as_released(**changes) -> Recipe:
    """Swin-B as released, update and all; see :func:`imagenet_swin_tiny_as_released`.

    Data: ImageNet. Time: estimated from its operations, not measured: 50 to 100 hours on one H100. Expect: not
    known. What was released may not be what the paper's 83.68 (recalled) was made with.
    """
    return _swin("base", "as_released").replace(**changes)


def imagenet_swin_tiny_zoo(**changes) -> Recipe:
    """Swin-T with the public zoo's Mixup, CutMix and label smoothing.

    Data: ImageNet. Time: estimated from its operations, not measured: 15 to 29 hours on one H100. Expect: not run
    here yet.
    """
    return _swin_zoo("tiny").replace(**changes)


def imagenet_swin_small_zoo(**changes) -> Recipe:
    """Swin-S with the public zoo's Mixup, CutMix and label smoothing.

    Data: ImageNet. Time: estimated from its operations, not measured: 28 to 57 hours on one H100. Expect: softmax
    83.02 (public zoo, all batches mixed).
    """
    return _swin_zoo("small").replace(**changes)


def imagenet_swin_base_zoo(**changes) -> Recipe:
    """Swin-B with the public zoo's Mixup, CutMix and label smoothing.

    Data: ImageNet. Time: estimated from its operations, not measured: 50 to 100 hours on one H100. Expect: softmax
    83.36 (public zoo, all batches mixed).
    """
    return _swin_zoo("base").replace(**changes)
