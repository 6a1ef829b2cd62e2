"""A network for CIFAR-10 that learns in few epochs, so that an experiment can afford many seeds.

In the spirit of Keller Jordan's airbench (2024), written afresh: a first layer that whitens patches and is not
learned, then three short stages, and convolutions that begin as the identity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}

#: Added to the variances before they are divided by: directions that hardly vary are noise.
WHITENING_FLOOR = 5e-4


class Stage(nn.Module):
    """Two 3x3 convolutions with BatchNorm; the first is followed by a max-pool that halves the side."""

    def __init__(self, in_width: int, width: int, activation: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.activation = ACTIVATIONS[activation]
        for conv in (self.conv1, self.conv2):  # what comes in goes on as it is; further channels begin at random
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H / 2, W / 2)."""
        x = self.activation(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        return self.activation(self.bn2(self.conv2(x)))


class FastNetwork(nn.Module):
    """A whitening layer, three stages, a max over places.

    Args:
        widths: channels of the stages.
        patch: side of the patches that the first layer whitens.
        stride: between patches; 1 is best, 2 is four times faster.
        activation: ``"relu"`` or ``"gelu"``.

    Attributes:
        num_features: D, width of the pooled feature: the last of ``widths``.
    """

    def __init__(
        self, widths: tuple[int, ...] = (64, 256, 256), patch: int = 2, stride: int = 1, activation: str = "gelu"
    ):
        super().__init__()
        before = 2 * 3 * patch**2  # each direction of the patches and its opposite: the activation cuts one of them
        self.whitening = nn.Conv2d(3, before, patch, stride, bias=False)
        self.whitening.weight.requires_grad_(False)
        stages = []
        for width in widths:
            stages.append(Stage(before, width, activation))
            before = width
        self.stages = nn.Sequential(*stages)
        self.activation, self.num_features = ACTIVATIONS[activation], before

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Set the first layer so that what comes out is uncorrelated and of unit variance.

        Args:
            images: (N, 3, H, W), normalised; some thousands of training images.
        """
        side = self.whitening.kernel_size[0]
        patches = F.unfold(images, side, stride=side).transpose(1, 2).flatten(0, 1).double()  # (patches, 3 side^2)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + WHITENING_FLOOR).sqrt()).T.flip(0)  # the strongest first
        filters = filters.view(-1, 3, side, side)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What is pooled: (B, 3, H, W) -> (B, D, h, w)."""
        return self.stages(self.activation(self.whitening(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """The pooling, under timm's names: (B, D, h, w) -> (B, D). There is no classifier after it."""
        return x.amax((2, 3))


def fast_network(name: str) -> FastNetwork:
    """``"cifar_fast"``, for a GPU, or ``"cifar_fast_narrow"``, for a CPU."""
    if name == "cifar_fast":
        return FastNetwork()
    return FastNetwork((32, 64, 128), stride=2, activation="relu")


FAST = ("cifar_fast", "cifar_fast_narrow")
