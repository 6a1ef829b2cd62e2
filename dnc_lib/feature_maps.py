"""Feature maps: what a backbone sees at every place of an image, before it pools.

The backbone is the very module that classifies (:func:`dnc_lib.backbones.build_backbone`), so its parameters keep
their names and shapes. Only the way through it differs: the maps of its stages come out, and pooling is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import timm
import torch
from timm.layers import NormMlpClassifierHead
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from torch import Tensor, nn

from .backbones import CIFAR_RESNETS, CIFAR_STEMS, TINY, CifarResNet
from .fast import FAST, FastNetwork

#: So many maps at most: at strides 4, 8, 16, 32, or at four depths of a transformer of one scale.
MOST_MAPS = 4

#: These pad at every stride, so that no border is lost: n pixels become ceil(n / stride) places, whatever n is.
PADDING = (CifarResNet, ResNet, EfficientNet, MobileNetV3, RegNet)

#: A probe has at least this side: large enough for every stride to show.
PROBE_SIDE = 128


def feature_maps(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The maps of a backbone's stages, at most four, without the stem's.

    The last one has passed every layer that the classifier's feature passes and that works at one place: final
    norms, late 1x1 convolutions. Where such a layer comes after the pooling (MobileNetV3, ConvNeXt and their kin), it
    is applied to each place as to an image of a single place. On an image that small, the last map is the pooled
    feature. What is left out all the same, :func:`without_place` names.

    Args:
        backbone: from :func:`dnc_lib.backbones.build_backbone`, with :func:`dense_settings`.
        images: (B, 3, H, W), normalised; H and W multiples of :func:`input_multiple`.

    Returns:
        [(B, D_i, H_i, W_i)] from the finest to the coarsest.

    Raises:
        ValueError: for a backbone without maps, or an image size that it cannot take.
    """
    if isinstance(backbone, CifarResNet | FastNetwork):
        return _own_maps(backbone, images)
    _check_size(backbone, images)
    final, maps = backbone.forward_intermediates(images, indices=_indices(backbone))
    last = _as_map(backbone, final, maps[-1])
    return [*maps[:-1], _late_layers(backbone, last)]


def _own_maps(backbone: CifarResNet | FastNetwork, images: Tensor) -> list[Tensor]:
    """The three stages of a network of this package."""
    if isinstance(backbone, CifarResNet):
        x = torch.relu_(backbone.bn(backbone.conv(images)))
    else:
        x = backbone.activation(backbone.whitening(images))
    maps = []
    for stage in backbone.stages:
        x = stage(x)
        maps.append(x)
    return maps


def _check_size(backbone: nn.Module, images: Tensor) -> None:
    """Say what is wrong before timm does in its own terms."""
    name, (height, width) = type(backbone).__name__, images.shape[-2:]
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(f"{name} gives no feature maps: take a backbone that has timm's forward_intermediates")
    patches = getattr(backbone, "patch_embed", None)
    if getattr(patches, "strict_img_size", False) and tuple(patches.img_size) != (height, width):
        raise ValueError(
            f"this {name} takes images of {' x '.join(map(str, patches.img_size))} only, got {height} x {width}: "
            f"build it with the settings that dense_settings gives"
        )
    multiple = input_multiple(backbone)
    if height % multiple or width % multiple:
        raise ValueError(
            f"{name} takes images whose sides are multiples of {multiple}, got {height} x {width}: pad them to "
            f"{-(-height // multiple) * multiple} x {-(-width // multiple) * multiple}"
        )


def _indices(backbone: nn.Module) -> list[int]:
    """Which of timm's intermediates: the last ones; of a transformer of one scale, those at equal distances."""
    count, scales = len(backbone.feature_info), {info["reduction"] for info in backbone.feature_info}
    if len(scales) == 1 and count > MOST_MAPS:
        return [count * (i + 1) // MOST_MAPS - 1 for i in range(MOST_MAPS)]
    return list(range(max(count - MOST_MAPS, 0), count))


def _as_map(backbone: nn.Module, final: Tensor, last: Tensor) -> Tensor:
    """What the backbone ends in, as (B, D, h, w) if it can be laid out like its last intermediate; else that."""
    if final.dim() == 3:  # tokens, perhaps with a class token before them
        tokens = final[:, getattr(backbone, "num_prefix_tokens", 0) :]
        if tokens.shape[1] != last.shape[2] * last.shape[3]:
            return last
        return tokens.transpose(1, 2).unflatten(2, last.shape[2:])
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        final = final.permute(0, 3, 1, 2)
    return final if final.shape[2:] == last.shape[2:] else last


def _late_layers(backbone: nn.Module, x: Tensor) -> Tensor:
    """Layers that the classifier has after its pooling, at every place: (B, D', h, w) -> (B, D, h, w)."""
    if isinstance(getattr(backbone, "fc_norm", None), nn.Module):  # ViT, EVA, BEiT with average pooling
        return backbone.fc_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if not isinstance(backbone, MobileNetV3) and not isinstance(
        getattr(backbone, "head", None), NormMlpClassifierHead
    ):
        return x
    batch, width, height, breadth = x.shape
    places = x.permute(0, 2, 3, 1).reshape(-1, width, 1, 1)  # each is an image of a single place: pooling keeps it
    return backbone.forward_head(places).view(batch, height, breadth, -1).permute(0, 3, 1, 2)


def input_multiple(backbone: nn.Module) -> int:
    """The sides of an image must be multiples of this: 1 where any size will do.

    A backbone that pads takes every size; Swin cuts whole patches and pads what comes after. Of any other, the
    coarsest stride is asked, so that no border is lost on the way.
    """
    if isinstance(backbone, (*PADDING, FastNetwork)):
        return 1
    scales = {info["reduction"] for info in backbone.feature_info}
    if len(scales) > 1 and getattr(backbone, "dynamic_img_size", False):  # Swin
        return max(backbone.patch_embed.patch_size)
    return max(scales)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: a probe must leave no trace in running statistics."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _probe(backbone: nn.Module) -> Tensor:
    """An image (1, 3, side, side) of noise, of the smallest side that tells."""
    weight = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d)).weight
    patches = getattr(backbone, "patch_embed", None)
    if getattr(patches, "strict_img_size", False):
        height, width = patches.img_size
    else:
        multiple = input_multiple(backbone) if hasattr(backbone, "feature_info") else 1
        height = width = -(-PROBE_SIDE // multiple) * multiple
    noise = torch.randn(1, weight.shape[1], height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)


def _shapes(backbone: nn.Module) -> tuple[int, list[torch.Size]]:
    """The height of a probe, and the shapes of its maps."""
    probe = _probe(backbone)
    with _evaluating(backbone), torch.no_grad():
        return probe.shape[2], [x.shape for x in feature_maps(backbone, probe)]


def map_widths(backbone: nn.Module) -> list[int]:
    """How many channels each of :func:`feature_maps` has; measured on a small image."""
    return [shape[1] for shape in _shapes(backbone)[1]]


def map_strides(backbone: nn.Module) -> list[int]:
    """How many pixels lie between two places of each of :func:`feature_maps`; measured on a small image."""
    if isinstance(backbone, FastNetwork):  # it rounds down, so that a small map would mislead
        return [backbone.whitening.stride[0] * 2 ** (i + 1) for i in range(len(backbone.stages))]
    side, shapes = _shapes(backbone)
    return [side // shape[2] for shape in shapes]


def without_place(backbone: nn.Module) -> list[str]:
    """The names of parameters that no map depends on: classification uses them, segmentation cannot.

    Found by asking for the gradient of the maps, so it is exact; whether a parameter is frozen does not matter.
    """
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    learned = [parameter.requires_grad for parameter in parameters]
    try:
        backbone.requires_grad_(True)
        with _evaluating(backbone), torch.inference_mode(False), torch.enable_grad():
            total = sum(x.float().sum() for x in feature_maps(backbone, _probe(backbone)))
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        for parameter, before in zip(parameters, learned, strict=True):
            parameter.requires_grad_(before)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def dense_settings(name: str, output_stride: int | None = None) -> dict:
    """What :func:`dnc_lib.backbones.build_backbone` must be told so that a backbone takes images of any size.

    No setting changes a parameter's name or shape: a classifier's weights fit.

    Args:
        name: of the backbone.
        output_stride: 8 or 16: the last stages keep their resolution and dilate their convolutions instead. None
            leaves the backbone as it classifies, with stride 32.

    Raises:
        ValueError: for a backbone whose stride cannot be set, or that takes one image size only.
    """
    own = name in CIFAR_RESNETS or name in CIFAR_STEMS or name in TINY or name in FAST
    if own or not timm.is_model(name):  # an unknown name is for build_backbone to refuse
        if own and output_stride is not None:
            raise ValueError(f"{name} is made for small images and has a fixed stride: leave output_stride out")
        return {}
    settings = _any_size(name)
    if output_stride is None:
        return settings
    built = _on_paper(name, output_stride=output_stride, **settings)
    if built is None or max(info["reduction"] for info in built.feature_info) != output_stride:
        raise ValueError(
            f"{name} cannot be built with output stride {output_stride}: leave output_stride out and take the "
            f"decoder upernet, which uses every scale, or a ResNet, whose stride can be 8, 16 or 32"
        )
    return {**settings, "output_stride": output_stride}


def _any_size(name: str) -> dict:
    """Settings that free a backbone of its image size."""
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        return {}
    for settings in ({"strict_img_size": False}, {"dynamic_img_size": True}):  # Swin's way, ViT's way
        if _on_paper(name, **settings) is not None:
            return settings
    raise ValueError(
        f"{name} takes images of one size only, and segmentation needs any: take a ResNet, EfficientNet, "
        f"ConvNeXt, Swin or ViT"
    )


def _on_paper(name: str, **settings) -> nn.Module | None:
    """The backbone without memory for its weights, or None if it does not know the settings."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0, **settings)
    except (TypeError, AssertionError, NotImplementedError):
        return None
