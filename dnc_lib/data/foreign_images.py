"""Images that are no photographs of anything, made of what is at hand: to ask a model about what it never saw."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .embedded import load_digits

#: Images of each foreign set.
SIZE = 1000

_SIDE = 32


def foreign_images(photographs: Tensor, size: int = SIZE, seed: int = 0) -> dict[str, Tensor]:
    """Images that are no photographs of anything, 32x32, uint8 (N, 32, 32, 3); nothing is downloaded.

    Args:
        photographs: (M, 32, 32, 3) uint8, M at least ``size``; the set ``shuffled`` is made of them.
        size: images a set, at most 1797, for there are no more digits.
        seed: of all that is drawn.

    Returns:
        ``digits`` (scikit-learn's, enlarged), ``uniform`` and ``gaussian`` noise, ``textures`` (gratings, stripes,
        checkerboards and blobs in two colours, as many of each), ``shuffled`` (photographs, each with its pixels in
        an order of its own: all colours are there, and no form is).

    Raises:
        ValueError: for photographs of another size or type, or too few.
    """
    if not 1 <= size <= 1797:
        raise ValueError(f"size must lie in [1, 1797], the number of digits, got {size}")
    if photographs.dtype != torch.uint8 or photographs.shape[1:] != (_SIDE, _SIDE, 3) or len(photographs) < size:
        raise ValueError(
            f"photographs must be uint8 (M, {_SIDE}, {_SIDE}, 3) with {size} of them or more, "
            f"got {photographs.dtype} {tuple(photographs.shape)}"
        )
    shape, rng = (size, _SIDE, _SIDE, 3), np.random.default_rng(seed)
    order = rng.random((size, _SIDE * _SIDE)).argsort(1)[..., None]
    made = {
        "digits": _digits(size),
        "uniform": rng.integers(0, 256, shape, dtype=np.uint8),
        "gaussian": (127.5 + 64 * rng.standard_normal(shape, dtype=np.float32)).clip(0, 255).astype(np.uint8),
        "textures": np.stack([_texture(rng, PATTERNS[i % len(PATTERNS)]) for i in range(size)]),
        "shuffled": np.take_along_axis(photographs[:size].reshape(size, -1, 3).numpy(), order, 1).reshape(shape),
    }
    return {name: torch.from_numpy(images) for name, images in made.items()}


def _digits(size: int) -> np.ndarray:
    pool = np.concatenate([part.images[..., 0].numpy() for part in load_digits()])[:size]
    grown = [Image.fromarray(digit).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) for digit in pool]
    return np.repeat(np.stack([np.asarray(each) for each in grown])[..., None], 3, axis=3)


def _waves(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(u)


def _stripes(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(u))


def _checks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(u) * np.sin(v))


def _blobs(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cells = int(rng.integers(3, 8))
    noise = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.tanh(4 * np.asarray(noise.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)))


PATTERNS: tuple[Callable, ...] = (_waves, _stripes, _checks, _blobs)


def _texture(rng: np.random.Generator, pattern: Callable) -> np.ndarray:
    """One texture, (32, 32, 3) uint8: a pattern, turned and scaled by chance, between two colours."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 16)  # radians, pixels
    y, x = np.mgrid[:_SIDE, :_SIDE] * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi, (2, 1, 1))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    mix = (pattern(rng, u, v)[..., None] + 1) / 2  # (32, 32, 1) in [0, 1]
    first, second = rng.uniform(0, 255, (2, 3))
    return (first + mix * (second - first)).round().astype(np.uint8)
