"""Batches of what lies in files: read and varied by workers, copied ahead to the device, normalised there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..randomness import seeded
from .loader import Passes


class FileViews(Dataset, ABC):
    """Images as tensors, asked for by (epoch, number); what cannot be read gives its error back as a value, so that
    it arrives from a worker as it is, not as the text of a traceback.

    Args:
        data: a data set whose ``read(i)`` raises ``ValueError`` for a file that cannot be read.
        seed: of the random numbers that :meth:`view` draws; none where it draws none.
    """

    def __init__(self, data, seed: int | None):
        self.data, self.seed = data, seed

    @abstractmethod
    def view(self, *read):
        """What comes into a batch, of what ``data.read(i)`` gave."""

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, which: tuple[int, int]):
        epoch, i = which
        try:
            read = self.data.read(i)
        except ValueError as error:
            return ValueError(str(error))  # its cause may hold what cannot be sent
        if self.seed is None:
            return self.view(*read)
        with seeded(self.seed, epoch, i):
            return self.view(*read)


class FileLoader(Passes):
    """Normalised batches of views of a data set: what :class:`~dnc_lib.data.picture_loader.PictureLoader` and
    :class:`~dnc_lib.data.scene_loader.SceneLoader` share.

    Order and augmentation of an image depend on (seed, epoch, image) alone: not on the workers, on the processes
    or on where a run was resumed. The caller's random numbers are left alone. For the order, ``epoch`` and ``skip``
    see :class:`~dnc_lib.data.loader.Passes`; what is skipped is not read.

    Args:
        views: of the data set.
        stack: a list of views to (images (B, H, W, 3), labels), or to an error.
        batch_size: images a batch on this process.
        mean: (3,) on the scale 0..1.
        std: (3,).
        device: where batches are wanted.
        shuffle: a new order each epoch; the last, short batch is dropped.
        seed: of the order.
        rank: this process, of
        world_size: processes, each of which gets its own share of the images.
        workers: processes that read; 0 reads in this one. They stay alive from pass to pass.

    Raises:
        ValueError: for settings out of range; while iterating, for a file that cannot be read, by its name.
    """

    def __init__(
        self,
        views: FileViews,
        stack: Callable[[list], tuple[Tensor, Tensor] | ValueError],
        batch_size: int,
        mean: Tensor,
        std: Tensor,
        device: torch.device | str,
        *,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        workers: int,
    ):
        super().__init__(views.data, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        self.views, self.device, self.workers = views, torch.device(device), workers
        self.mean = torch.as_tensor(mean, device=device, dtype=torch.float32)
        self.scale = 1 / torch.as_tensor(std, device=device, dtype=torch.float32)
        self._plan = _Plan()
        self._read = DataLoader(
            views,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=partial(_first_error_or, stack),
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # or each pass would draw from the caller's
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, H, W), normalised, channels last in memory, and their labels, long."""
        self._plan.epoch, self._plan.steps = self.epoch, self._steps(self._generator())
        yield from self._ahead() if self.device.type == "cuda" else map(self._normalise, self._read)
        self._finish()

    def _ahead(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches that are copied to the GPU while it works on the ones before."""
        stream, ready = torch.cuda.Stream(self.device), None
        stream.wait_stream(torch.cuda.current_stream(self.device))  # which may be at work on the mean and the scale
        for batch in self._read:
            with torch.cuda.stream(stream):
                coming = self._normalise(batch)
            if ready is not None:
                yield ready
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(stream)
            for part in coming:
                part.record_stream(current)  # or its memory would be given away when the copying stream is done
            ready = coming
        if ready is not None:
            yield ready

    def _normalise(self, batch: tuple[Tensor, Tensor] | ValueError) -> tuple[Tensor, Tensor]:
        if isinstance(batch, ValueError):
            # Anew: one that a local names would hold its own traceback, and with it the workers, in a cycle that is
            # collected in an order in which they are not told to stop; they would be waited for, 5 s each.
            raise ValueError(*batch.args)
        images, labels = (part.to(self.device, non_blocking=True) for part in batch)
        if images.dtype == torch.uint8:
            images = (images.float().div_(255) - self.mean) * self.scale
        return images.permute(0, 3, 1, 2), labels.long()


def _first_error_or(stack: Callable[[list], tuple[Tensor, Tensor] | ValueError], items: list):
    """The batch, or the first error among its views."""
    return next((item for item in items if isinstance(item, ValueError)), None) or stack(items)


class _Plan:
    """What is asked of the workers in a pass. They outlive an epoch, so each image comes with its own."""

    def __init__(self):
        self.epoch, self.steps = 0, []

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index in self.steps:
            yield [(self.epoch, i) for i in index.tolist()]
