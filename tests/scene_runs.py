"""Small runs on scenes and a small data set of scenes on disk, for tests of what is asked of finished runs."""

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from dnc_lib import recipes
from dnc_lib.runs import Run
from dnc_lib.training import train

SHORT = {
    "backbone": "tiny_resnet8", "channels": 16, "epochs": 1, "train_limit": 24, "batch_size": 8,
    "learning_rate": 0.01, "num_subcentroids": 3, "memory_size": 0, "momentum": 0.5, "correct_only": False,
    "update_after": 0,
}  # fmt: skip


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dnc-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _train(**changes) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run this short is mostly random, and says so
        return train(recipes.digit_scenes_fcn(**{**SHORT, **changes}), _scratch(), _scratch(), progress=False)


@functools.cache
def trained_scenes(head: str = "dnc") -> Run:
    """A short run on digit scenes, trained once a test session. Read it, do not change it."""
    return _train(head=head)


@functools.cache
def trained_on_files() -> Run:
    """A short run on scenes on disk (:func:`write_scenes`), which are at ``streets`` beside it."""
    write_scenes(_scratch() / "streets")
    return _train(
        name="streets_fcn", dataset="streets", train_limit=0, batch_size=4, crop_size=(32, 32), image_size=32
    )


def write_scenes(folder: Path, number: int = 8, size: tuple[int, int] = (40, 56)) -> Path:
    """``folder/{images,masks}/{train,test}``: a grey sky over a road with a red car on it."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "classes.txt").write_text("sky\nroad\ncar\n")
    for part, count in (("train", number), ("test", number // 2)):
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros(size, dtype=np.uint8)
            mask[size[0] // 2 :] = 1
            left = int(rng.integers(0, size[1] - 16))
            mask[size[0] // 2 + 4 : size[0] // 2 + 16, left : left + 16] = 2
            colours = np.array([(200, 200, 210), (60, 60, 60), (200, 30, 30)])
            pixels = colours[mask] + rng.integers(-20, 20, (*size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / part / f"{i:03d}.png")
            Image.fromarray(mask).save(folder / "masks" / part / f"{i:03d}.png")
    return folder
