"""Batches of image files: read, cropped and augmented by workers, normalised on the training device."""

from dataclasses import dataclass

import torch
from timm.data import create_transform
from torch import Tensor

from .file_loader import FileLoader, FileViews
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


class PictureLoader(FileLoader):
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
        if image_size < 1:
            raise ValueError(f"image_size must be 1 or more, got {image_size}")
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be a share of the picture's side, above 0 and up to 1, got {crop_pct}")
        _check_interpolation(interpolation, INTERPOLATIONS)
        if augmentation is not None:
            transform = augmentation.transform(image_size, *(tuple(map(float, values)) for values in (mean, std)))
        else:
            transform = create_transform(image_size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
        super().__init__(
            Views(data, transform, None if augmentation is None else seed),
            _stack,
            batch_size,
            mean,
            std,
            device,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )


class Views(FileViews):
    """Pictures as tensors (3, S, S) with their labels.

    Args:
        data: the pictures.
        transform: PIL image to tensor (3, S, S).
        seed: of the transform's random numbers; none where it draws none.
    """

    def __init__(self, data: Pictures, transform, seed: int | None):
        super().__init__(data, seed)
        self.transform = transform

    def view(self, picture, label: int) -> tuple[Tensor, int]:
        """The picture as a tensor, and its label."""
        return self.transform(picture), label


def _stack(items: list) -> tuple[Tensor, Tensor]:
    """Images (B, S, S, 3) and labels (B,)."""
    images, labels = zip(*items, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]), torch.tensor(labels)


def _check_interpolation(value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"interpolation must be one of {', '.join(known)}, got {value!r}")
