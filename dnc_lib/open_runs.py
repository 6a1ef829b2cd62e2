"""A finished run, opened to be asked: its model, images prepared as it wants them, its data, its exemplars."""

import io
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .checkpoints import ModelCard
from .data import LabelledImages
from .data.folders import to_rgb
from .exemplars import Exemplars, check_head, find_exemplars, image_name, model_digest
from .loading import Data, Loader, Parts, make_loader, prepare_data
from .models import Model, Segmenter
from .recipes import Recipe
from .runs import EXEMPLARS, Run, write_json


@dataclass
class OpenRun:
    """A run with its model; the data set is opened when it is first needed.

    Attributes:
        run: where it lies.
        model: in evaluation mode.
        card: of the model.
        device: where the model is.
        data_root: see :func:`dnc_lib.data.data_root`.
        workers: processes that read pictures.
        download: fetch the data set if it is not there.
        progress: show progress bars.
    """

    run: Run
    model: Model
    card: ModelCard
    device: torch.device
    data_root: str | Path | None = None
    workers: int = 0
    download: bool = False
    progress: bool = False

    @property
    def recipe(self) -> Recipe:
        """What it was trained by."""
        return self.run.recipe

    @property
    def segments(self) -> bool:
        """Whether it classifies pixels."""
        return isinstance(self.model, Segmenter)

    @cached_property
    def parts(self) -> Parts:
        """The data: ``train``, ``test``, perhaps ``validation``.

        Raises:
            FileNotFoundError: where it is not at hand.
            ValueError: where it has other classes than the model.
        """
        parts = prepare_data(self.recipe, self.data_root, download=self.download)
        if list(parts["test"].classes) != self.card.classes:
            raise ValueError(f"the data set at hand has other classes than {self.run.folder} was trained on")
        return parts

    def loader(self, part: str) -> Loader:
        """All images of a part in order, without augmentation."""
        return make_loader(self.recipe, self.parts[part], self.card, self.device, workers=self.workers)

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture (RGB, of any size) as the model is given it: (3, h, w), normalised, on the model's device.

        What the test images go through: a scene keeps its proportions, a picture's central square is cut.
        """
        if self.recipe.reader == "memory":
            pixels = np.asarray(centre_square(picture, self.card.image_size))
            data = LabelledImages(torch.from_numpy(pixels.copy())[None], torch.tensor([0]), tuple(self.card.classes))
        else:
            label = np.zeros((picture.height, picture.width), dtype=np.uint8) if self.segments else 0
            data = _One(picture, label)
        ((images, _),) = make_loader(self.recipe, data, self.card, self.device)
        return images[0]

    def exemplars(self) -> Exemplars:
        """The training images or pixels that the sub-centroids stand for: read from the run folder, or, where they
        are not there, or of another model or other training data, found and written there.

        Raises:
            FileNotFoundError: where the training data is not at hand.
            ValueError: for a head without sub-centroids.
        """
        check_head(self.model)
        path, train = self.run.folder / EXEMPLARS, self.parts["train"]
        if path.is_file():
            try:
                stored = Exemplars.from_dict(json.loads(path.read_text(encoding="utf-8")))
                if stored.model != model_digest(self.model):
                    what = f"{path} is another model's"
                elif stored.data != train.digest():
                    what = _moved(stored, train)
                else:
                    _check_stored(stored, self.model, self.card, train)
                    return stored
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                what = f"{path} is damaged ({error})"
            warnings.warn(f"{what}: the exemplars are searched anew", stacklevel=2)
        found = find_exemplars(self.model, self.loader("train"), train, progress=self.progress)
        try:
            write_json(found.to_dict(), path)
        except OSError as error:
            warnings.warn(f"{path} could not be written ({error}): the search is lost", stacklevel=2)
        return found

    def picture(self, which: str) -> tuple[str, Image.Image, np.ndarray | int | None]:
        """An image that a user names: a file, or, where there is no such file, the number of a test image.

        Returns:
            What to call it; the image as RGB; its label or mask (H, W), None for a file.

        Raises:
            FileNotFoundError: where there is neither.
            ValueError: for a file that is no image.
        """
        if which.isdecimal() and not Path(which).exists():
            test = self.parts["test"]
            if int(which) >= len(test):
                raise ValueError(f"there is no test image {which}: {test.name} has {len(test)}, counted from 0")
            name = image_name(test, int(which))
            return (f"test {name}" if name.startswith("image ") else name), *read_picture(test, int(which))
        return which, open_picture(which), None


def open_run(folder: str | Path, data_root: str | Path | None = None, **settings) -> OpenRun:
    """Open a run folder, on a GPU where there is one.

    Args:
        folder: of the run.
        data_root: see :func:`dnc_lib.data.data_root`.
        settings: ``workers``, ``download``, ``progress`` of :class:`OpenRun`.

    Raises:
        FileNotFoundError: where there is no finished run.
        ValueError: where it is damaged.
    """
    run = Run.load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return OpenRun(run, *run.model(device), device, data_root, **settings)


def read_picture(data: Data, i: int) -> tuple[Image.Image, np.ndarray | int]:
    """Image ``i`` of a data set as RGB at its own resolution, and its label or mask.

    Raises:
        ValueError: for a file that cannot be read, by its name.
    """
    if isinstance(data, LabelledImages):
        return Image.fromarray(data.images[i].numpy()), int(data.labels[i])
    return data.read(i)


def open_picture(path: str | Path) -> Image.Image:
    """A user's image of any mode as RGB: grey is repeated, 16-bit grey scaled to 8, transparent places turn white.

    Raises:
        FileNotFoundError: where it is not.
        ValueError: for a file that is no image, or of values that no agreement makes grey or colour.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the images in it, for instance {path / '*.png'}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            return to_rgb(file)
    except Exception as error:  # a damaged file fails a decoder in any way it likes
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{path} cannot be read as an image ({reason})") from error


def centre_square(picture: Image.Image, side: int) -> Image.Image:
    """The central square, its side brought to ``side``, as images of a folder are read into memory."""
    if picture.size == (side, side):
        return picture
    scale = side / min(picture.size)
    size = [max(side, round(length * scale)) for length in picture.size]
    left, top = ((length - side) // 2 for length in size)
    return picture.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


class _One:
    """A data set of one picture."""

    name = "one picture"

    def __init__(self, picture: Image.Image, label: np.ndarray | int):
        self.picture, self.label = picture, label

    def __len__(self) -> int:
        return 1

    def read(self, i: int) -> tuple[Image.Image, np.ndarray | int]:
        return self.picture, self.label


def _check_stored(stored: Exemplars, model: Model, card: ModelCard, train: Data) -> None:
    """Raise ``ValueError`` where exemplars of this model and this data are not what a search would write."""
    number, pixels = model.head.subcentroids.shape[1], isinstance(model, Segmenter)
    if list(stored.classes) != card.classes or [len(own) for own in stored.cases] != [number] * len(card.classes):
        raise ValueError(f"it must hold {len(card.classes)} x {number} exemplars")
    for case in (case for own in stored.cases for case in own if case is not None):
        places = (case.row, case.column)
        if type(case.image) is not int or not 0 <= case.image < len(train):
            raise ValueError(f"there is no training image {case.image}")
        if case.name != (name := image_name(train, case.image)):
            raise ValueError(f"training image {case.image} is {name}, not {case.name}")
        if type(case.similarity) is not float or any(
            type(place) is not (int if pixels else type(None)) for place in places
        ):
            raise ValueError(f"the exemplar {case.name} lacks its similarity or its pixel")


def _moved(stored: Exemplars, train: Data) -> str:
    """Why exemplars do not fit the training data at hand."""
    if not isinstance(train, LabelledImages):  # images in memory have numbers for names
        names = {image_name(train, i) for i in range(len(train))}
        for case in (case for own in stored.cases for case in own if case is not None):
            if case.name not in names:
                return (
                    f"the training image {case.name}, an exemplar, is not where it was (put it back to get the same "
                    f"exemplars again)"
                )
    return f"the training data at hand ({train.name}) has changed since the exemplars were found"
