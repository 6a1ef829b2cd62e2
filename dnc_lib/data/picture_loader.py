"""Batches of image files: read, cropped and augmented by workers, normalised on the training device."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .loader import Passes
from .pictures import Pictures

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied, by timm's transforms: a crop of random area and shape, brought to the image
    size, perhaps mirrored, recoloured, partly erased.

    Attributes:
        crop_scale: least and largest share of the picture's area.
        flip: mirror half of the pictures.
        rand_augment: timm's name of a RandAugment, such as ``rand-m9-mstd0.5-inc1``; empty for none.
        color_jitter: how much brightness, contrast and saturation vary.
        random_erasing: the share of pictures in which a rectangle is filled with noise, after the normalisation.
        interpolation: how a crop is resized; ``random`` draws from bilinear and bicubic.

    Raises:
        ValueError: for settings out of range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    rand_augment: str = ""
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self):
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two shares, 0 < least <= largest <= 1, got {self.crop_scale}")
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter must be 0 or more, got {self.color_jitter}")
        if self.color_jitter and self.rand_augment:
            raise ValueError("timm leaves color_jitter out beside rand_augment: set one of them")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing must be a share, 0 to 1, got {self.random_erasing}")
        _check_interpolation(self.interpolation, (*INTERPOLATIONS, "random"))

    def transform(self, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        """PIL image to (3, S, S): uint8, or float32 and normalised where a part is erased."""
        try:
            return create_transform(
                image_size,
                is_training=True,
                scale=tuple(self.crop_scale),
                hflip=0.5 if self.flip else 0.0,
                color_jitter=self.color_jitter or None,
                auto_augment=self.rand_augment or None,
                interpolation=self.interpolation,
                mean=mean,
                std=std,
                re_prob=self.random_erasing,
                re_mode="pixel",
                normalize=self.random_erasing > 0,
            )
        except (AssertionError, LookupError, ValueError) as error:
            raise ValueError(
                f"rand_augment {self.rand_augment!r} is not known to timm; a good one is 'rand-m9-mstd0.5-inc1'"
            ) from error


class PictureLoader(Passes):
    """Normalised batches of :class:`~dnc_lib.data.pictures.Pictures`.

    Order and augmentation of a picture depend on (seed, epoch, picture) alone: not on the workers, on the processes
    or on where a run was resumed. The caller's random numbers are left alone. For the order, ``epoch`` and ``skip``
    see :class:`~dnc_lib.data.loader.Passes`; what is skipped is not read.

    Args:
        data: the pictures.
        batch_size: pictures a batch on this process.
        mean: (3,) on the scale 0..1.
        std: (3,).
        device: where batches are wanted.
        image_size: S, the side of the images.
        augmentation: of training pictures; without one, the centre square is cut.
        crop_pct: side of that square as a share of the picture's shorter side.
        interpolation: how it is resized.
        shuffle: a new order each epoch; the last, short batch is dropped.
        seed: of order and augmentation.
        rank: this process, of
        world_size: processes, each of which gets its own share of the pictures.
        workers: processes that read; 0 reads in this one. They stay alive from pass to pass.

    Raises:
        ValueError: for settings out of range; while iterating, for a picture that cannot be read, by its name.
    """

    def __init__(
        self,
        data: Pictures,
        batch_size: int,
        mean: Tensor,
        std: Tensor,
        device: torch.device | str = "cpu",
        *,
        image_size: int,
        augmentation: Augmentation | None = None,
        crop_pct: float = 0.875,
        interpolation: str = "bilinear",
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ):
        super().__init__(data, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        if image_size < 1:
            raise ValueError(f"image_size must be 1 or more, got {image_size}")
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be a share of the picture's side, above 0 and up to 1, got {crop_pct}")
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        _check_interpolation(interpolation, INTERPOLATIONS)
        self.device, self.workers = torch.device(device), workers
        self.mean = torch.as_tensor(mean, device=device, dtype=torch.float32)
        self.scale = 1 / torch.as_tensor(std, device=device, dtype=torch.float32)
        if augmentation is not None:
            transform = augmentation.transform(image_size, *(tuple(map(float, values)) for values in (mean, std)))
        else:
            transform = create_transform(image_size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
        self.views = Views(data, transform, None if augmentation is None else seed)
        self._plan = _Plan()
        self._read = DataLoader(
            self.views,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_stack,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # or each pass would draw from the caller's
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, S, S), normalised, channels last in memory, and labels (B,)."""
        self._plan.epoch, self._plan.steps = self.epoch, self._steps(self._generator())
        yield from self._ahead() if self.device.type == "cuda" else map(self._normalise, self._read)
        self._finish()

    def _ahead(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches that are copied to the GPU while it works on the ones before."""
        stream, ready = torch.cuda.Stream(self.device), None
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
            raise batch
        images, labels = (part.to(self.device, non_blocking=True) for part in batch)
        if images.dtype == torch.uint8:
            images = (images.float().div_(255) - self.mean) * self.scale
        return images.permute(0, 3, 1, 2), labels


class _Plan:
    """What is asked of the workers in a pass. They outlive an epoch, so each picture comes with its own."""

    def __init__(self):
        self.epoch, self.steps = 0, []

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index in self.steps:
            yield [(self.epoch, i) for i in index.tolist()]


class Views(Dataset):
    """Pictures as tensors, asked for by (epoch, number); an unreadable one gives its error back as a value, so that
    it arrives from a worker as it is, not as the text of a traceback.

    Args:
        data: the pictures.
        transform: PIL image to tensor (3, S, S).
        seed: of the transform's random numbers; none where it draws none.
    """

    def __init__(self, data: Pictures, transform, seed: int | None):
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, which: tuple[int, int]) -> tuple[Tensor, int] | ValueError:
        epoch, i = which
        try:
            picture, label = self.data.read(i)
        except ValueError as error:
            return ValueError(str(error))  # its cause may hold what cannot be sent
        if self.seed is None:
            return self.transform(picture), label
        with _seeded(self.seed, epoch, i):
            return self.transform(picture), label


@contextlib.contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch (on the CPU) that depend on ``numbers`` alone; the caller's go on."""
    # timm draws from the global numbers of all three, so they are lent to it.
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    first, second, third = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(3)
    random.seed(int(first))
    np.random.seed(second)  # noqa: NPY002
    torch.default_generator.manual_seed(int(third))  # torch.manual_seed would reach the GPU's generator too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])


def _stack(items: list) -> tuple[Tensor, Tensor] | ValueError:
    """Images (B, S, S, 3) and labels (B,), or the first error."""
    if error := next((item for item in items if isinstance(item, ValueError)), None):
        return error
    images, labels = zip(*items, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]), torch.tensor(labels)


def _check_interpolation(value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"interpolation must be one of {', '.join(known)}, got {value!r}")
