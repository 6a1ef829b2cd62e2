"""CamVid's road scenes, for a CPU and for a GPU."""

from .base import Recipe

__all__ = [
    *(f"camvid_{decoder}_efficientnet" for decoder in ("fcn", "deeplabv3", "upernet")),
    *(f"camvid_{decoder}_resnet50" for decoder in ("fcn", "deeplabv3", "upernet")),
]

_SCENES = {"reader": "scenes", "image_size": 0, "num_subcentroids": 10, "schedule": "poly", "correct_only": True}


def _small(decoder: str, **settings) -> Recipe:
    """EfficientNet-Lite0 with ImageNet's weights and a narrow decoder; sub-centroids stand still for an epoch."""
    return Recipe(
        name=f"camvid_{decoder}_efficientnet",
        dataset="camvid",
        backbone="tf_efficientnet_lite0",
        weights="imagenet",
        decoder=decoder,
        channels=64,
        epochs=10,
        evaluate_every=5,
        batch_size=8,
        optimizer="adamw",
        learning_rate=2e-3,
        backbone_rate=0.25,
        weight_decay=1e-2,
        decay_norms=False,
        clip_norm=5.0,
        crop_size=(256, 256),
        color_jitter=0.4,
        momentum=0.99,
        update_after=45,
        **_SCENES | settings,
    )


def camvid_fcn_efficientnet(**changes) -> Recipe:
    """FCN at stride 16 on EfficientNet-Lite0, for a CPU.

    Data: CamVid. Time: half an hour on one CPU core. Expect: softmax 51.8 mIoU, DNC and cosine 50.4 (one seed each,
    in ``book/results``).
    """
    return _small("fcn", output_stride=16).replace(**changes)


def camvid_deeplabv3_efficientnet(**changes) -> Recipe:
    """DeepLabV3 at stride 16 on EfficientNet-Lite0, for a CPU.

    Data: CamVid. Time: half an hour on one CPU core. Expect: with ``epochs=5`` DNC 41.3 mIoU, softmax 38.8 (one seed
    each, in ``book/results``); ten epochs were not run here yet.
    """
    return _small("deeplabv3", output_stride=16).replace(**changes)


def camvid_upernet_efficientnet(**changes) -> Recipe:
    """UPerNet on EfficientNet-Lite0, for a CPU.

    Data: CamVid. Time: half an hour on one CPU core. Expect: cosine 55.3 mIoU, softmax 55.0, DNC 54.7 (one seed each,
    in ``book/results``).
    """
    return _small("upernet").replace(**changes)


def _resnet50(decoder: str, **settings) -> Recipe:
    """ResNet-50 with ImageNet's weights at full resolution, for a GPU: 80 epochs of SGD 0.01."""
    return Recipe(
        name=f"camvid_{decoder}_resnet50",
        dataset="camvid",
        backbone="resnet50.tv_in1k",
        weights="imagenet",
        decoder=decoder,
        auxiliary=0.4,
        epochs=80,
        evaluate_every=10,
        batch_size=8,
        learning_rate=0.01,
        weight_decay=5e-4,
        min_learning_rate=1e-4,
        crop_size=(360, 480),
        color_jitter=0.5,
        momentum=0.99,
        update_after=225,
        precision="bf16",
        **_SCENES | settings,
    )


def camvid_fcn_resnet50(**changes) -> Recipe:
    """FCN at stride 8 on ResNet-50.

    Data: CamVid. Time: estimated, not measured: a quarter of an hour on one H100. Expect: not run here yet.
    """
    return _resnet50("fcn", output_stride=8).replace(**changes)


def camvid_deeplabv3_resnet50(**changes) -> Recipe:
    """DeepLabV3 at stride 8 on ResNet-50.

    Data: CamVid. Time: estimated, not measured: a quarter of an hour on one H100. Expect: not run here yet.
    """
    return _resnet50("deeplabv3", output_stride=8).replace(**changes)


def camvid_upernet_resnet50(**changes) -> Recipe:
    """UPerNet on ResNet-50.

    Data: CamVid. Time: estimated, not measured: a quarter of an hour on one H100. Expect: not run here yet.
    """
    return _resnet50("upernet").replace(**changes)
