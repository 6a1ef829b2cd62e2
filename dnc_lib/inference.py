"""Class scores of whole scenes: at once or window by window, mirrored and at several sizes, at any resolution."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Height and width of something, in pixels; one number for both.
Size = int | tuple[int, int]


def segment(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    window: Size | None = None,
    stride: Size | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Class scores of images, with the options that published results differ by.

    One look (one scale, no flip) gives the model's own scores, resized. Several looks are averaged as class
    probabilities, and come back as the logarithm of the mean: the softmax of what is returned is that mean, so its
    argmax is the prediction and its cross-entropy the loss, as for the scores of one look.

    Gradients, mode and autocast are the caller's: call it under ``torch.no_grad()`` and in evaluation mode.

    Args:
        model: images (B, 3, h, w) to class scores (B, C, h, w).
        images: (B, 3, h, w), normalised, on the model's device.
        window: (height, width) of a sliding window, in pixels of the (resized) image; None sees images whole, and so
            does a window that covers them.
        stride: pixels from window to window, down and across; two thirds of the window if None. The last window is
            flush with the border; where windows overlap, their scores are averaged.
        flip: look at the mirrored image too.
        scales: look at the image resized by each of these factors.
        size: (H, W) of the result, for instance the labels'; the images' if None. Scores are resized bilinearly.

    Returns:
        (B, C, H, W) scores in float32.

    Raises:
        ValueError: for images of another shape; windows, strides, scales or sizes that cannot be.
    """
    if images.dim() != 4:
        raise ValueError(f"images must be (B, 3, h, w), got {tuple(images.shape)}")
    window, stride = _window_and_stride(window, stride)
    _check_scales(scales)
    size = tuple(images.shape[2:]) if size is None else _pair("size", size)
    looks = len(scales) * (2 if flip else 1)
    total = None
    for scale, mirrored in itertools.product(scales, (False, True) if flip else (False,)):
        seen = _scaled(images, scale)
        scores = _slide(model, seen.flip(3) if mirrored else seen, window, stride)
        scores = _resized(scores.flip(3) if mirrored else scores, size)
        if looks == 1:
            return scores
        shares = scores.softmax(1)
        total = shares if total is None else total.add_(shares)
    return total.div_(looks).clamp_min_(torch.finfo(total.dtype).tiny).log_()


def _slide(model: Callable[[Tensor], Tensor], images: Tensor, window: Size | None, stride: Size | None) -> Tensor:
    """Scores (B, C, h, w) of images (B, 3, h, w), whole or as the mean over overlapping windows."""
    size = tuple(images.shape[2:])
    if window is None or all(side <= own for side, own in zip(size, window, strict=True)):
        return _scores(model, images)
    total, seen = None, images.new_zeros(size, dtype=torch.float32)  # (h, w): how many windows saw a pixel
    for place in _places(size, window, stride):
        scores = _scores(model, images[:, :, *place])
        if total is None:
            total = scores.new_zeros(*scores.shape[:2], *size)
        total[:, :, *place] += scores
        seen[place] += 1
    return total.div_(seen)


def _places(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window: from the top left by the stride, the last one flush with the border."""
    sides = []
    for whole, own, step in zip(size, window, stride, strict=True):
        own = min(own, whole)
        starts = [*range(0, whole - own, step), whole - own]
        sides.append([slice(start, start + own) for start in starts])
    yield from itertools.product(*sides)


def _scores(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The model's scores (B, C, h, w) in float32, at the images' size.

    Raises:
        ValueError: if the model does not end in a map of class scores.
    """
    scores = model(images)
    if scores.dim() != 4 or len(scores) != len(images):
        raise ValueError(
            f"the model must map images (B, 3, h, w) to class scores (B, C, h, w), got {tuple(scores.shape)} "
            f"for images {tuple(images.shape)}"
        )
    return _resized(scores.float(), tuple(images.shape[2:]))


def _resized(scores: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(scores.shape[2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Images resized by a factor; shrunk ones are smoothed first, as when the network was trained."""
    size = tuple(max(1, round(side * scale)) for side in images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)


def _window_and_stride(window: Size | None, stride: Size | None) -> tuple:
    """Both as pairs; the stride's default."""
    if window is None:
        if stride is not None:
            raise ValueError(f"stride {stride} needs a window to move: give window=(height, width) too")
        return None, None
    window = _pair("window", window)
    stride = tuple(max(1, round(2 * side / 3)) for side in window) if stride is None else _pair("stride", stride)
    if any(step > side for step, side in zip(stride, window, strict=True)):
        raise ValueError(
            f"stride {stride} is larger than the window {window}: pixels between windows would be missed"
        )
    return window, stride


def _pair(name: str, value: Size) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(side >= 1 and int(side) == side for side in pair):
        raise ValueError(f"{name} must be (height, width) in whole pixels, 1 or more, got {value}")
    return int(pair[0]), int(pair[1])


def _check_scales(scales: Sequence[float]) -> None:
    if not isinstance(scales, Sequence) or not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be one or more positive factors, got {scales}")
