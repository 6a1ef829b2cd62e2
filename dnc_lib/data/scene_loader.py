"""Batches of scenes: images and masks read and varied by workers, normalised on the training device."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .file_loader import FileLoader, FileViews
from .scene_transforms import SceneAugmentation
from .scenes import Scenes


class SceneLoader(FileLoader):
    """Normalised batches of :class:`~dnc_lib.data.scenes.Scenes`: images (B, 3, h, w), channels last in memory, and
    masks (B, H, W) long, 255 for no class.

    Augmented, image and mask have one size. Else the image's shorter side is brought to ``image_size``, its sides in
    proportion, and the mask keeps its own resolution, the one at which a prediction is judged. For order, workers
    and resuming see :class:`~dnc_lib.data.file_loader.FileLoader`.

    Args:
        data: the scenes.
        batch_size: scenes a batch on this process.
        mean: (3,) on the scale 0..1.
        std: (3,).
        device: where batches are wanted.
        augmentation: of training scenes; without one, they are shown whole.
        image_size: length of the shorter side without augmentation; 0 leaves the images as they are.
        shuffle: a new order each epoch; the last, short batch is dropped.
        seed: of order and augmentation.
        rank: this process, of
        world_size: processes, each of which gets its own share of the scenes.
        workers: processes that read; 0 reads in this one. They stay alive from pass to pass.

    Raises:
        ValueError: for settings out of range; while iterating, for a file that cannot be read, by its name, or
            scenes of several sizes that are wanted as one batch.
    """

    def __init__(
        self,
        data: Scenes,
        batch_size: int,
        mean: Tensor,
        std: Tensor,
        device: torch.device | str = "cpu",
        *,
        augmentation: SceneAugmentation | None = None,
        image_size: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ):
        if image_size < 0:
            raise ValueError(f"image_size must be 0 or more, got {image_size}")
        fill = tuple((torch.as_tensor(mean) * 255).round().int().tolist())
        super().__init__(
            SceneViews(data, augmentation, image_size, fill, None if augmentation is None else seed),
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


class SceneViews(FileViews):
    """Scenes as tensors, image (3, h, w) and mask (H, W), both uint8.

    Args:
        data: the scenes.
        augmentation: of training scenes, or None.
        image_size: length of the shorter side without it, 0 for the image's own.
        fill: the colour around scenes that are smaller than the crop.
        seed: of the augmentation's random numbers.
    """

    def __init__(
        self,
        data: Scenes,
        augmentation: SceneAugmentation | None,
        image_size: int,
        fill: tuple[int, int, int],
        seed: int | None,
    ):
        super().__init__(data, seed)
        self.augmentation, self.image_size, self.fill = augmentation, image_size, fill

    def view(self, image: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Image and mask, varied together, or the image at its size for evaluation beside its own mask."""
        if self.augmentation is not None:
            return self.augmentation(image, mask, self.fill)
        if self.image_size:
            image = F.resize(image, [self.image_size], antialias=True)
        return F.pil_to_tensor(image), torch.from_numpy(mask)


def _stack(items: list) -> tuple[Tensor, Tensor] | ValueError:
    """Images (B, h, w, 3) and masks (B, H, W), or what is wrong with their sizes."""
    sizes = [(tuple(image.shape[1:]), tuple(mask.shape)) for image, mask in items]
    if other := next((size for size in sizes if size != sizes[0]), None):
        (height, width), (other_height, other_width) = sizes[0][1], other[1]
        return ValueError(
            f"scenes of {width}x{height} and {other_width}x{other_height} cannot share a batch: evaluate them with "
            f"batch_size 1"
        )
    images, masks = zip(*items, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]), torch.stack(masks)
