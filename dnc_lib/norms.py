"""What a BatchNorm sees: the images of a process, a part of them, or those of several processes together."""

from functools import cache

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norm_group(share: int, processes: int, wanted: int, *, together: bool = False) -> tuple[int, int]:
    """How many images a BatchNorm sees at once in training, and how many processes share it.

    Args:
        share: images that a process has in a pass.
        processes: of the training.
        wanted: images that a norm is to see; 0 for those that come.
        together: where 0 is wanted, whether all processes share their norms.

    Raises:
        ValueError: where the images of a process can be neither cut nor put together to what is wanted.
    """
    if not wanted:
        return (share * processes, processes) if together else (share, 1)
    if share % wanted == 0:
        return wanted, 1
    if wanted % share == 0 and processes % (wanted // share) == 0:
        return wanted, wanted // share
    raise ValueError(
        f"BatchNorm is to see norm_images {wanted}, and a process has {share} images in a pass: one number must "
        f"divide the other, and {processes} processes must make whole groups; change the number of processes, "
        f"batch_size, accumulate or norm_images"
    )


def set_norms(model: nn.Module, images: int, processes: int, rank: int = 0, world_size: int = 1) -> nn.Module:
    """The model with BatchNorms that see so many images at once in training. In evaluation nothing changes.

    Args:
        model: its BatchNorms are changed, names and weights stay.
        images: that a norm sees.
        processes: that share a norm, those that follow one another; more than one need CUDA.
        rank: of this process.
        world_size: number of all.
    """
    if processes > 1:
        return synchronised(model, _group(processes, rank, world_size))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _in_parts(type(module))
            module.images = images
    return model


def synchronised(model: nn.Module, group: object = None) -> nn.Module:
    """The model with BatchNorms that see the images of all processes of a group (of all), in the place of its own.

    timm's conversion, not torch's: many of timm's BatchNorms end in an activation, which torch's would leave out.
    """
    return convert_sync_batchnorm(model, group)


@cache
def _in_parts(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """A kind of BatchNorm that, in training, takes ``images`` at a time, so that each part has a mean of its own."""

    class InParts(kind):
        def forward(self, x: Tensor) -> Tensor:
            parts = max(1, len(x) // self.images) if self.training else 1
            if parts == 1:
                return super().forward(x)
            return torch.cat([kind.forward(self, part) for part in x.tensor_split(parts)])

    InParts.__name__ = kind.__name__
    return InParts


def _group(processes: int, rank: int, world_size: int):
    """The processes that share their norms with this one; ``None`` for all. Every process makes every group."""
    if processes == world_size:
        return None
    starts = range(0, world_size, processes)
    groups = [torch.distributed.new_group(list(range(start, start + processes))) for start in starts]
    return groups[rank // processes]
