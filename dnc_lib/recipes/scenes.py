"""ADE20K, Cityscapes and COCO-Stuff-10K: the paper's segmentation, by the public baselines' schedules.

Settings of mmsegmentation's ``fcn_r101-d8``, ``deeplabv3_r101-d8`` and ``upernet_swin``, which the published numbers
come from: 160,000 steps of batch 16 (Cityscapes: 8), SGD 0.01 for ResNets and AdamW 6e-5 for Swin, poly. What
differs from them is said in :mod:`dnc_lib.decoders`; besides, the ResNets here have timm's plain stem (theirs, v1c,
has three 3x3 convolutions), and momentum 0.999 over so many updates keeps nothing of the start.
"""

from .base import Recipe

__all__ = [
    f"{dataset}_{network}"
    for dataset in ("ade20k", "cityscapes", "coco_stuff10k")
    for network in ("fcn_resnet101", "deeplabv3_resnet101", "upernet_swin_base")
]

#: Steps of a training, by which its epochs are counted.
STEPS = 160_000

#: Of each data set: training images, batch, crop, and the shorter side at the test (0: the image's own).
_SETS = {
    "ade20k": (20_210, 16, (512, 512), 512),
    "cityscapes": (2_975, 8, (769, 769), 0),
    "coco_stuff10k": (9_000, 16, (512, 512), 512),
}


def _paper(dataset: str, network: str, **settings) -> Recipe:
    images, batch, crop, side = _SETS[dataset]
    decoder, _, backbone = network.partition("_")
    resnet = {
        "backbone": "resnet101",
        "output_stride": 8,
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
        "min_learning_rate": 1e-4,
    }
    swin = {
        "backbone": "swin_base_patch4_window7_224",
        "drop_path": 0.3,
        "optimizer": "adamw",
        "learning_rate": 6e-5,
        "weight_decay": 0.01,
        "decay_norms": False,
        "power": 1.0,
        "warmup_epochs": max(round(1500 / (images // batch)), 1),
    }
    return Recipe(
        name=f"{dataset}_{network}",
        dataset=dataset,
        reader="scenes",
        decoder=decoder,
        weights="imagenet",
        auxiliary=0.4,
        epochs=round(STEPS / (images // batch)),
        evaluate_every=10,
        batch_size=batch,
        schedule="poly",
        crop_size=crop,
        image_size=side,
        color_jitter=0.5,
        num_subcentroids=10,
        memory_size=25_600,
        precision="bf16",
        **(swin if backbone == "swin_base" else resnet) | settings,
    )


def ade20k_fcn_resnet101(**changes) -> Recipe:
    """FCN at stride 8 on ResNet-101, 160,000 steps of 16 crops of 512.

    Data: ADE20K. Time: estimated, not measured: a day on 4 H100. Expect: softmax 39.91 (public zoo), DNC 41.1
    (paper, seen in a later one's table).
    """
    return _paper("ade20k", "fcn_resnet101").replace(**changes)


def ade20k_deeplabv3_resnet101(**changes) -> Recipe:
    """DeepLabV3 at stride 8 on ResNet-101, 160,000 steps of 16 crops of 512.

    Data: ADE20K. Time: estimated, not measured: a day on 4 H100. Expect: softmax 45.00 (public zoo).
    """
    return _paper("ade20k", "deeplabv3_resnet101").replace(**changes)


def ade20k_upernet_swin_base(**changes) -> Recipe:
    """UPerNet on Swin-B, 160,000 steps of 16 crops of 512.

    Data: ADE20K. Time: estimated, not measured: a day on 4 H100. Expect: softmax 47.99 (public zoo), DNC 48.6
    (paper, seen in a later one's table).
    """
    return _paper("ade20k", "upernet_swin_base").replace(**changes)


_WHOLE = {"window": (769, 769)}


def cityscapes_fcn_resnet101(**changes) -> Recipe:
    """FCN at stride 8 on ResNet-101, 160,000 steps of 8 crops of 769; at the test a window of 769 slides.

    Data: Cityscapes. Time: estimated, not measured: a day on 4 H100. Expect: softmax 75.52 (public zoo, 80,000 steps).
    """
    return _paper("cityscapes", "fcn_resnet101", **_WHOLE).replace(**changes)


def cityscapes_deeplabv3_resnet101(**changes) -> Recipe:
    """DeepLabV3 at stride 8 on ResNet-101, 160,000 steps of 8 crops of 769; at the test a window of 769 slides.

    Data: Cityscapes. Time: estimated, not measured: a day on 4 H100. Expect: softmax 79.27 to 79.67 (public zoo).
    """
    return _paper("cityscapes", "deeplabv3_resnet101", **_WHOLE).replace(**changes)


def cityscapes_upernet_swin_base(**changes) -> Recipe:
    """UPerNet on Swin-B, 160,000 steps of 8 crops of 769; at the test a window of 769 slides.

    Data: Cityscapes. Time: estimated, not measured: a day on 4 H100. Expect: not known.
    """
    return _paper("cityscapes", "upernet_swin_base", **_WHOLE).replace(**changes)


def coco_stuff10k_fcn_resnet101(**changes) -> Recipe:
    """FCN at stride 8 on ResNet-101, 160,000 steps of 16 crops of 512.

    Data: COCO-Stuff-10K. Time: estimated, not measured: a day on 4 H100. Expect: softmax 32.5, DNC 33.0 (seen in a
    later paper's table).
    """
    return _paper("coco_stuff10k", "fcn_resnet101").replace(**changes)


def coco_stuff10k_deeplabv3_resnet101(**changes) -> Recipe:
    """DeepLabV3 at stride 8 on ResNet-101, 160,000 steps of 16 crops of 512.

    Data: COCO-Stuff-10K. Time: estimated, not measured: a day on 4 H100. Expect: not known.
    """
    return _paper("coco_stuff10k", "deeplabv3_resnet101").replace(**changes)


def coco_stuff10k_upernet_swin_base(**changes) -> Recipe:
    """UPerNet on Swin-B, 160,000 steps of 16 crops of 512.

    Data: COCO-Stuff-10K. Time: estimated, not measured: a day on 4 H100. Expect: softmax 42.8, DNC 43.1 (seen in a
    later paper's table).
    """
    return _paper("coco_stuff10k", "upernet_swin_base").replace(**changes)
