"""What several test files share: a trained digits run, small images, trees of class folders."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnc_lib.data import LabelledImages
from dnc_lib.recipes import Recipe, digits_resnet8
from dnc_lib.runs import Run
from dnc_lib.training import train


def quick(**changes) -> Recipe:
    """The digits recipe, short: 6 epochs of 18 steps, and a momentum that forgets the start by then."""
    return digits_resnet8(**{"epochs": 6, "momentum": 0.97, **changes})


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dnc-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _train(head: str) -> Run:
    return train(quick(head=head), output=_scratch(), progress=False)


def trained(head: str = "dnc") -> Run:
    """A digits run of this arm, trained once a test session. Read it, do not change it."""
    return _train(head)


def random_images(count: int = 40, classes: int = 4, size: int = 8, seed: int = 0) -> LabelledImages:
    """Noise with labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    names = tuple(f"class{c}" for c in range(classes))
    return LabelledImages(images, torch.arange(count) % classes, names, "noise")


def write_class_folders(folder: Path, classes=("cat", "dog", "owl"), count: int = 12, size: int = 20) -> Path:
    """``folder/train/<class>/*.png`` and ``folder/test/<class>/*.png``: each class a colour, with noise."""
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("test", count // 2)):
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 60, (size, size, 3))
                pixels[..., label % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i:03d}.png")
    return folder


@contextlib.contextmanager
def small_disk():
    """Inside, no file may grow beyond 4 kB: what a full disk does, for this process. Keep it around one call: the
    test runner's own report may be a file."""
    resource = pytest.importorskip("resource")  # of Unix alone
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
