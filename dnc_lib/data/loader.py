"""Batches of images that live on the training device, augmented there: no workers, no copies, no waiting."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .arrays import LabelledImages


class DeviceLoader:
    """Normalised batches of a :class:`LabelledImages`, shuffled and augmented on the device.

    A batch is gathered, cropped and flipped by one index operation on the uint8 images, then normalised. Crops come
    from images padded by the mean colour, which is zero after the normalisation. The order and the augmentation of
    an epoch depend on (seed, epoch) alone, not on the device or on earlier epochs.

    Args:
        data: the images.
        batch_size: images a batch on this process.
        mean: (3,) on the scale 0..1.
        std: (3,).
        device: where images live and batches are made.
        shuffle: a new order each epoch; the last, short batch is dropped (it would shake the BatchNorm), unless it
            is the only one.
        pad: random crops from images padded by so many pixels; 0 for none.
        flip: mirror half of the images.
        seed: of order and augmentation.
        rank: this process, of
        world_size: processes, each of which gets its own share of the images.

    Attributes:
        epoch: how many shuffled passes were finished; set it to repeat one.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        mean: Tensor,
        std: Tensor,
        device: torch.device | str = "cpu",
        *,
        shuffle: bool = False,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if pad < 0:
            raise ValueError(f"pad must be 0 or more, got {pad}")
        if len(data) < world_size:
            raise ValueError(f"{data.name}: {len(data)} images cannot be shared out over {world_size} processes")
        self.batch_size, self.shuffle, self.pad, self.flip, self.seed = batch_size, shuffle, pad, flip, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.size = tuple(data.images.shape[1:3])  # (H, W)
        self.mean = torch.as_tensor(mean, device=device, dtype=torch.float32)
        self.scale = 1 / torch.as_tensor(std, device=device, dtype=torch.float32)
        images = data.images.to(device)
        if pad:
            count, height, width, _ = images.shape
            colour = (self.mean * 255).round().to(torch.uint8)
            padded = colour.expand(count, height + 2 * pad, width + 2 * pad, 3).clone()
            padded[:, pad:-pad, pad:-pad] = images
            images = padded
        self.pixels = images.reshape(-1, 3)  # all pixels of all images, padding too: one index finds one
        self.stored = tuple(images.shape[1:3])  # (H, W) with the padding
        self.labels, self.num_images = data.labels.to(device), len(data)

    def __len__(self) -> int:
        share = len(range(self.rank, self.num_images, self.world_size))
        if self.shuffle:
            share = self.num_images // self.world_size
            return max(share // self.batch_size, 1)
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, H, W), normalised, channels last in memory, and labels (B,)."""
        # On the CPU, so that every device draws the same numbers.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.arange(self.num_images)
        if self.shuffle:
            order = torch.randperm(self.num_images, generator=generator)
            order = order[: self.num_images // self.world_size * self.world_size]
        shifts = torch.randint(0, 2 * self.pad + 1, (self.num_images, 2), generator=generator) if self.pad else None
        mirrored = torch.rand(self.num_images, generator=generator) < 0.5 if self.flip else None
        order = order[self.rank :: self.world_size]
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._batch(
                index,
                None if shifts is None else shifts[index],
                None if mirrored is None else mirrored[index],
            )
        if self.shuffle:
            self.epoch += 1

    def _batch(self, index: Tensor, shift: Tensor | None, mirror: Tensor | None) -> tuple[Tensor, Tensor]:
        device, (height, width) = self.pixels.device, self.size
        rows = torch.arange(height).expand(len(index), height)
        columns = torch.arange(width).expand(len(index), width)
        if mirror is not None:
            columns = torch.where(mirror[:, None], width - 1 - columns, columns)
        if shift is not None:
            rows, columns = rows + shift[:, :1], columns + shift[:, 1:]
        index, rows, columns = (part.to(device, non_blocking=True) for part in (index, rows, columns))
        place = (index[:, None, None] * self.stored[0] + rows[:, :, None]) * self.stored[1] + columns[:, None, :]
        images = self.pixels.index_select(0, place.flatten()).view(*place.shape, 3)  # (B, H, W, 3)
        images = (images.float().div_(255) - self.mean) * self.scale
        return images.permute(0, 3, 1, 2), self.labels[index]
