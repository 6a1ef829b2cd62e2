"""Decoders: a backbone's feature maps to one dense embedding (B, D, h, w), which a head scores place by place.

FCN (Long et al. 2015), DeepLabV3 (Chen et al. 2017) and UPerNet (Xiao et al. 2018), laid out as the baselines that
readers compare numbers with, mmsegmentation's ``fcn_r101-d8``, ``deeplabv3_r101-d8`` and ``upernet_swin``. Those end
in a 1x1 convolution to class scores; here the decoder ends before it, and the head takes its place. Convolutions
begin as theirs do (Kaiming normal, fan out), resizing is bilinear with ``align_corners=False``.

The differences lie before the decoders, in timm's backbones. Its ResNets have one 7x7 convolution as stem, where
mmsegmentation's ``-d8`` models have three of 3x3 (timm's ``resnet50c`` and ``resnet101c`` have them too). Its Swin
has a LayerNorm on the last map alone, where mmsegmentation's has one on each of the four; and where that Swin was
built for images of 224, its last stage is a single window, which larger images do not make it shift, as
mmsegmentation's does.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation

DECODERS = ("fcn", "deeplabv3", "upernet")

#: Dilation of DeepLabV3's three branches, in places of a map of stride 8; halve them at stride 16.
RATES = (12, 24, 36)

#: Sides of the grids that UPerNet averages the last map over.
GRIDS = (1, 2, 3, 6)


def conv_block(in_width: int, width: int, side: int = 3) -> Conv2dNormActivation:
    """Convolution, BatchNorm, ReLU; the resolution stays."""
    return Conv2dNormActivation(in_width, width, side)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def _check_norm(norm: nn.Module, values: int) -> None:
    """BatchNorm has no variance to divide by if a channel has one value; with several processes they share."""
    if values == 1 and norm.training and not isinstance(norm, nn.SyncBatchNorm):
        raise ValueError(
            "BatchNorm sees one value a channel here, since this decoder averages each image to a single place: "
            "train with at least two images a process and pass (batch_size, accumulate)"
        )


class Decoder(nn.Module, ABC):
    """Feature maps to a dense embedding.

    Args:
        widths: channels of each map, from the finest to the coarsest, see :func:`dnc_lib.feature_maps.map_widths`.
        width: D, channels of the embedding.
        dropout: share of the embedding's channels that are silenced in training.

    Attributes:
        width: D.
    """

    def __init__(self, widths: Sequence[int], width: int, dropout: float):
        super().__init__()
        if not widths:
            raise ValueError("a decoder needs at least one feature map: widths is empty")
        self.widths, self.width = tuple(widths), width
        self.dropout = nn.Dropout2d(dropout)

    @abstractmethod
    def decode(self, maps: list[Tensor]) -> Tensor:
        """The embedding before dropout."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[(B, D_i, H_i, W_i)] -> (B, D, h, w).

        Raises:
            ValueError: for maps of other widths, or one value a channel under BatchNorm in training.
        """
        seen = tuple(x.shape[1] for x in maps)
        if seen != self.widths:
            raise ValueError(f"this decoder was built for maps of widths {self.widths}, got {seen}")
        return self.dropout(self.decode(list(maps)))

    def _begin(self) -> None:
        """Weights as the public baselines begin."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class FCN(Decoder):
    """Two 3x3 convolutions on the last map, and a third on what came out beside what went in.

    The layout is mmsegmentation's ``FCNHead``: two convolutions, input joined, 512 channels, dropout 0.1.
    """

    def __init__(self, widths: Sequence[int], channels: int = 512, dropout: float = 0.1):
        super().__init__(widths, channels, dropout)
        self.convs = nn.Sequential(conv_block(widths[-1], channels), conv_block(channels, channels))
        self.join = conv_block(widths[-1] + channels, channels)
        self._begin()

    def decode(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        _check_norm(self.join[1], x[:, 0].numel())
        return self.join(torch.cat([x, self.convs(x)], 1))


class DeepLabV3(Decoder):
    """The last map through five branches at once: each place, its surroundings at three distances, the whole image.

    The branches are torchvision's ``ASPP``. What follows them is mmsegmentation's: one 3x3 convolution over all five,
    then dropout 0.1; torchvision has a 1x1 convolution with dropout 0.5 and a 3x3 after it.

    Args:
        rates: dilation of the three outer branches; ``(12, 24, 36)`` for a last map of stride 8, half of that for 16.
    """

    def __init__(
        self, widths: Sequence[int], channels: int = 512, dropout: float = 0.1, rates: Sequence[int] = RATES
    ):
        super().__init__(widths, channels, dropout)
        self.branches = ASPP(widths[-1], rates, channels)
        self.branches.project = conv_block((len(rates) + 2) * channels, channels)
        self._begin()

    def decode(self, maps: list[Tensor]) -> Tensor:
        _check_norm(self.branches.convs[-1][2], len(maps[-1]))
        return self.branches(maps[-1])


class UPerNet(Decoder):
    """Every map counts: the coarsest knows what, the finest knows where; sums pass it down, a convolution joins all.

    The last map is averaged over grids of 1, 2, 3 and 6 cells a side (pyramid pooling). From there on downwards each
    level adds the resized level above. The embedding has the finest map's resolution. The layout is
    mmsegmentation's ``UPerHead`` with 512 channels and dropout 0.1. torchvision's feature pyramid has no place for
    the pooling, so it is not used.
    """

    def __init__(self, widths: Sequence[int], channels: int = 512, dropout: float = 0.1):
        super().__init__(widths, channels, dropout)
        self.pooled = nn.ModuleList(conv_block(widths[-1], channels, 1) for _ in GRIDS)
        self.top = conv_block(widths[-1] + len(GRIDS) * channels, channels)
        self.lateral = nn.ModuleList(conv_block(width, channels, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(conv_block(channels, channels) for _ in widths[:-1])
        self.fuse = conv_block(len(widths) * channels, channels)
        self._begin()

    def _top(self, x: Tensor) -> Tensor:
        _check_norm(self.pooled[0][1], len(x))
        grids = [block(F.adaptive_avg_pool2d(x, side)) for side, block in zip(GRIDS, self.pooled, strict=True)]
        return self.top(torch.cat([x, *(_resized(grid, x) for grid in grids)], 1))

    def decode(self, maps: list[Tensor]) -> Tensor:
        level = self._top(maps[-1])
        levels = [level]
        for i in reversed(range(len(self.lateral))):
            lateral = self.lateral[i](maps[i])
            level = lateral + _resized(level, lateral)
            levels.insert(0, self.smooth[i](level))
        return self.fuse(torch.cat([_resized(level, levels[0]) for level in levels], 1))


class AuxiliaryDecoder(Decoder):
    """One 3x3 convolution on the last map but one: a second loss, halfway, for training only.

    A backbone with a single map gives that one.
    """

    def __init__(self, widths: Sequence[int], channels: int = 256, dropout: float = 0.1):
        super().__init__(widths, channels, dropout)
        self.conv = conv_block(widths[-2:][0], channels)
        self._begin()

    def decode(self, maps: list[Tensor]) -> Tensor:
        x = maps[-2:][0]
        _check_norm(self.conv[1], x[:, 0].numel())
        return self.conv(x)


def build_decoder(
    name: str,
    widths: Sequence[int],
    *,
    channels: int = 512,
    dropout: float = 0.1,
    rates: Sequence[int] | None = None,
) -> Decoder:
    """A decoder by its name.

    Args:
        name: ``"fcn"``, ``"deeplabv3"`` or ``"upernet"``.
        widths: channels of each of the backbone's maps.
        channels: D, channels of the embedding and of the layers before it; the public baselines have 512.
        dropout: share of the embedding's channels that are silenced in training.
        rates: of DeepLabV3, see :class:`DeepLabV3`.

    Raises:
        ValueError: for an unknown name, no maps, or rates for a decoder that has none.
    """
    if name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}: choose one of {', '.join(DECODERS)}")
    if name == "deeplabv3":
        return DeepLabV3(widths, channels, dropout, rates or RATES)
    if rates is not None:
        raise ValueError(f"{name} has no dilated branches: leave rates out, or take deeplabv3")
    return (FCN if name == "fcn" else UPerNet)(widths, channels, dropout)


def build_auxiliary(widths: Sequence[int], channels: int = 256, dropout: float = 0.1) -> AuxiliaryDecoder:
    """The auxiliary decoder of the public baselines; its embedding has stride 16, or 8 under output stride 8."""
    return AuxiliaryDecoder(widths, channels, dropout)
