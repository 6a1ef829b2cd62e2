"""Data that needs no download: scikit-learn's handwritten digits."""

import numpy as np
import torch

from .arrays import LabelledImages

#: Every third image is for testing: a rule, so that all chapters and runs share one split.
TEST_EVERY = 3


def load_digits() -> tuple[LabelledImages, LabelledImages]:
    """1797 handwritten digits of 8x8 pixels, the grey repeated in three channels.

    Image 1485, the book's running example, falls to the training part; the chapters that ask about it hold it out.

    Raises:
        ImportError: where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    raw = load()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
    images = torch.from_numpy(np.repeat(grey[..., None], 3, axis=3))
    labels = torch.from_numpy(raw.target.astype(np.int64))
    classes = tuple(str(digit) for digit in range(10))
    test = torch.arange(len(labels)) % TEST_EVERY == 1
    return (
        LabelledImages(images[~test], labels[~test], classes, "digits, training"),
        LabelledImages(images[test], labels[test], classes, "digits, test"),
    )
