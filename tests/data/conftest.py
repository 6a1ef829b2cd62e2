"""Small images, and the forms in which data sets lie on disk."""

import numpy as np
import pytest
import torch
from PIL import Image

from dnc_lib.data import LabelledImages


@pytest.fixture
def noise():
    """Makes labelled noise: ``noise(count, classes=4, size=8, seed=0)``."""

    def make(count, classes=4, size=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(classes, (count,), generator=generator)
        return LabelledImages(images, labels, tuple(f"class{c}" for c in range(classes)), "noise")

    return make


@pytest.fixture
def arrays():
    """What a ``cifar10.npz`` holds, in miniature: 20 training and 10 test images of 32x32."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(10, dtype=np.uint8),
        "classes": np.array([f"thing{c}" for c in range(10)]),
    }


@pytest.fixture
def tree(tmp_path):
    """Writes class folders: ``tree({"train/cat/1.png": image or array, ...})`` gives their root."""

    def write(files, root=None):
        root = root or tmp_path / "pets"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                image = content if isinstance(content, Image.Image) else Image.fromarray(content)
                image.save(path)
        return root

    return write


@pytest.fixture
def grey():
    """An array of one colour: ``grey(level, height=8, width=8)``."""
    return lambda level, height=8, width=8: np.full((height, width, 3), level, dtype=np.uint8)
