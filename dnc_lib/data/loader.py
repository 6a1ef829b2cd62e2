"""Passes over a data set; and batches of images that live on the training device, augmented there: no workers, no
copies, no waiting."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .arrays import LabelledImages


class Passes:
    """Which images a process sees, in which order: what loaders share.

    The order of a pass depends on (seed, epoch) alone. Shuffled, each process takes as many steps as the others, and
    the last, short batch is dropped (it would shake the BatchNorm), unless it is the only one; else each image comes
    once over all processes.

    Args:
        data: a labelled data set, with its length and name.
        batch_size: images a batch on this process.
        shuffle: a new order each epoch.
        seed: of the order.
        rank: this process, of
        world_size: processes, each of which gets its own share of the images.

    Attributes:
        epoch: how many shuffled passes were finished; set it to repeat one.
        skip: batches to leave out at the beginning of the next pass, unread: a run resumed within an epoch goes on
            where it was. It is 0 again after that pass.
        only: numbers of the images (M,) that the next unshuffled pass is about, in this order; None, which it is
            again after that pass, for all.
        data: the data set.

    Raises:
        ValueError: for settings out of range.
    """

    #: Whether ``skip`` is kept.
    can_skip = True

    def __init__(self, data, batch_size: int, *, shuffle: bool, seed: int, rank: int, world_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if len(data) < world_size:
            raise ValueError(f"{data.name}: {len(data)} images cannot be shared out over {world_size} processes")
        self.num_images, self.batch_size, self.shuffle, self.seed = len(data), batch_size, shuffle, seed
        self.rank, self.world_size, self.epoch, self.skip = rank, world_size, 0, 0
        self.data, self.only = data, None

    def __len__(self) -> int:
        share = len(range(self.rank, self.num_images, self.world_size))
        if self.shuffle:
            share = self.num_images // self.world_size
            return max(share // self.batch_size, 1)
        return -(-share // self.batch_size)

    def _generator(self) -> torch.Generator:
        # On the CPU, so that every device draws the same numbers.
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

    def _steps(self, generator: torch.Generator) -> list[Tensor]:
        """The image numbers of each batch of the next pass, without those skipped."""
        if not 0 <= self.skip <= len(self):
            raise ValueError(f"skip must be 0 to {len(self)}, the batches of a pass, got {self.skip}")
        order = torch.arange(self.num_images) if self.only is None else self.only
        if self.shuffle:
            order = torch.randperm(self.num_images, generator=generator)
            order = order[: self.num_images // self.world_size * self.world_size]
        return list(order[self.rank :: self.world_size].split(self.batch_size))[self.skip : len(self)]

    def _finish(self) -> None:
        """What a pass leaves behind."""
        self.skip, self.only = 0, None
        if self.shuffle:
            self.epoch += 1


class DeviceLoader(Passes):
    """Normalised batches of a :class:`~dnc_lib.data.arrays.LabelledImages`, shuffled and augmented on the device.

    A batch is gathered, cropped and flipped by one index operation on the uint8 images, then normalised. Crops come
    from images padded by the mean colour, which is zero after the normalisation. The order and the augmentation of
    an epoch depend on (seed, epoch) alone, not on the device or on earlier epochs. For the order, ``epoch`` and
    ``skip`` see :class:`~dnc_lib.data.loader.Passes`.

    Args:
        data: the images.
        batch_size: images a batch on this process.
        mean: (3,) on the scale 0..1.
        std: (3,).
        device: where images live and batches are made.
        shuffle: a new order each epoch; the last, short batch is dropped.
        pad: random crops from images padded by so many pixels; 0 for none.
        flip: mirror half of the images.
        seed: of order and augmentation.
        rank: this process, of
        world_size: processes, each of which gets its own share of the images.

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
        super().__init__(data, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        if pad < 0:
            raise ValueError(f"pad must be 0 or more, got {pad}")
        self.pad, self.flip = pad, flip
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
        self.labels = data.labels.to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, H, W), normalised, channels last in memory, and labels (B,)."""
        generator = self._generator()
        steps = self._steps(generator)
        shifts = torch.randint(0, 2 * self.pad + 1, (self.num_images, 2), generator=generator) if self.pad else None
        mirrored = torch.rand(self.num_images, generator=generator) < 0.5 if self.flip else None
        for index in steps:
            yield self._batch(
                index,
                None if shifts is None else shifts[index],
                None if mirrored is None else mirrored[index],
            )
        self._finish()

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
