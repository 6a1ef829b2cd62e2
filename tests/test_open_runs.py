import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from helpers import quick, trained, write_class_folders
from PIL import Image
from scene_runs import trained_on_files, trained_scenes

from dnc_lib import open_runs
from dnc_lib.checkpoints import ModelCard
from dnc_lib.data import LabelledImages, load
from dnc_lib.data.pictures import open_pictures
from dnc_lib.open_runs import EXEMPLARS, OpenRun, centre_square, open_picture, open_run, read_picture
from dnc_lib.runs import MANIFEST, Run


@pytest.fixture
def streets(tmp_path):
    """A copy of a run on scenes on disk, and of its data."""
    folder = trained_on_files().folder
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns(EXEMPLARS))
    shutil.copytree(folder.parent / "streets", tmp_path / "streets")
    return tmp_path


@pytest.fixture
def searched(monkeypatch):
    """How often exemplars were searched."""
    calls, find = [], open_runs.find_exemplars
    monkeypatch.setattr(open_runs, "find_exemplars", lambda *a, **k: calls.append(1) or find(*a, **k))
    return calls


def silent(opened):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return opened.exemplars()


# --- prepared as the test images are --------------------------------------------------------------------------------


def test_images_in_memory_are_prepared_as_the_loader_does():
    opened = open_run(trained().folder)
    batch, _ = next(iter(opened.loader("test")))
    for i in (0, 5):
        picture, label = read_picture(opened.parts["test"], i)
        assert torch.equal(opened.prepare(picture), batch[i])
        assert label == int(opened.parts["test"].labels[i])
    assert opened.prepare(Image.new("RGB", (70, 33))).shape == batch[0].shape


def test_scenes_are_prepared_as_the_loader_does():
    opened = open_run(trained_on_files().folder, trained_on_files().folder.parent)
    for i, (images, _) in enumerate(opened.loader("test")):
        assert torch.equal(opened.prepare(opened.parts["test"].read(i)[0]), images[0])
    assert images.shape[2:] == (32, 44)  # of 40 x 56
    assert opened.prepare(Image.new("RGB", (100, 10))).shape == (3, 32, 320)


def test_pictures_are_prepared_as_the_loader_does(tmp_path):
    write_class_folders(tmp_path / "mine", size=30)
    train, test = open_pictures("mine", tmp_path)
    recipe = quick(dataset="mine", reader="files", image_size=24, crop_pct=0.75, interpolation="bicubic")
    card = ModelCard("tiny_resnet8", "dnc", {}, list(train.classes), [0.4] * 3, [0.2] * 3, 24)
    run = Run(tmp_path, {"recipe": recipe.to_dict()})
    opened = OpenRun(run, card.build(), card, torch.device("cpu"), tmp_path)
    batch, _ = next(iter(opened.loader("test")))
    assert torch.equal(opened.prepare(test.read(3)[0]), batch[3])


def test_a_centre_square_is_what_a_folder_is_read_as(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "odd" / part / "a").mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "odd" / part / "a" / "1.png")
    train, _ = load("odd", tmp_path, image_size=20)
    square = centre_square(open_picture(tmp_path / "odd" / "train" / "a" / "1.png"), 20)
    assert np.array_equal(np.asarray(square), train.images[0].numpy())


# --- users' images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    if mode.startswith("I"):
        image = Image.fromarray((grey * 257).astype(np.uint16 if ";" in mode else np.int32))
    else:
        image = Image.fromarray(grey.astype(np.uint8)).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I") else "image.png")
    image.save(path)
    opened = open_picture(path)
    assert opened.mode == "RGB"
    assert opened.size == (16, 16)
    if mode not in ("1", "P", "CMYK"):
        assert np.array_equal(np.asarray(opened)[..., 0], grey)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^there is no image {re.escape(str(tmp_path / 'nowhere.png'))}$"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r" is a folder: name the images in it, for instance .*/\*\.png$"):
        open_picture(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image \(no format that Pillow knows\)$"):
        open_picture(tmp_path / "text.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90])
    with pytest.raises(ValueError, match=r"half\.png cannot be read as an image \("):
        open_picture(tmp_path / "half.png")
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(
        ValueError, match=r"its grey values are floating-point, of no agreed range; save it with 8 bits"
    ):
        open_picture(tmp_path / "float.tif")


def test_a_number_is_a_test_image_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open_run(trained_scenes().folder)
    name, picture, mask = opened.picture("3")
    assert name == "test image 3"
    assert np.array_equal(np.asarray(picture)[..., 0], opened.parts["test"].images[3])
    assert np.array_equal(mask, opened.parts["test"].masks[3])
    with pytest.raises(ValueError, match=r"there is no test image 100: digit_scenes, test has 100, counted from 0"):
        opened.picture("100")
    Image.new("RGB", (5, 5), "red").save("4", format="png")
    assert opened.picture("4")[1].size == (5, 5)
    assert opened.picture("4")[2] is None


# --- exemplars in the run folder ------------------------------------------------------------------------------------


def test_exemplars_are_searched_once_and_then_read(streets, searched):
    first = silent(open_run(streets / "run", streets))
    assert (streets / "run" / EXEMPLARS).is_file()
    assert silent(open_run(streets / "run", streets)) == first
    assert len(searched) == 1
    for own in first.cases:
        for case in own:
            assert (streets / "streets" / "images" / "train" / case.name).is_file()


def test_a_training_image_that_has_moved_is_named(streets, searched):
    before = silent(open_run(streets / "run", streets))
    gone = max((case for own in before.cases for case in own), key=lambda case: case.image)  # others go on to the end
    remove(streets, gone.name)
    with pytest.warns(
        UserWarning,
        match=rf"^the training image {gone.name}, an exemplar, is not where it was \(put it back to get the same "
        r"exemplars again\): the exemplars are searched anew$",
    ):
        after = open_run(streets / "run", streets).exemplars()
    assert gone.name not in {case.name for own in after.cases for case in own}
    assert silent(open_run(streets / "run", streets)) == after
    assert len(searched) == 2


def test_where_another_image_has_gone_no_exemplar_is_named(streets, searched):
    before = silent(open_run(streets / "run", streets))
    kept = {case.name for own in before.cases for case in own}
    others = sorted(path.name for path in (streets / "streets" / "images" / "train").iterdir())
    gone = next(name for name in others if name not in kept)
    assert gone < max(kept)  # the numbers of what comes after it have changed
    remove(streets, gone)
    with pytest.warns(UserWarning, match=r"^the training data at hand \(streets, training\) has changed since the"):
        after = open_run(streets / "run", streets).exemplars()
    assert [[case.name for case in own] for own in after.cases] == [[c.name for c in own] for own in before.cases]


def remove(streets, name):
    for kind in ("images", "masks"):
        (streets / "streets" / kind / "train" / name).unlink()


def test_other_training_data_and_another_model_are_noticed(streets, searched):
    silent(open_run(streets / "run", streets))
    path = streets / "streets" / "images" / "train" / "000.png"
    Image.new("RGB", (56, 40), "blue").save(path)
    with pytest.warns(UserWarning, match=r"^the training data at hand \(streets, training\) has changed since the"):
        open_run(streets / "run", streets).exemplars()
    opened = open_run(streets / "run", streets)
    opened.model.head.subcentroids.copy_(opened.model.head.subcentroids.roll(1, 0))
    with pytest.warns(UserWarning, match=r"exemplars\.json is another model's: the exemplars are searched anew$"):
        opened.exemplars()
    assert len(searched) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"classes": 3, "exemplars": [], "data": "", "model": ""}', "[" * 99999]
)
def test_a_damaged_file_of_exemplars(streets, searched, text):
    (streets / "run" / EXEMPLARS).write_text(text)
    with pytest.warns(UserWarning, match=r"exemplars\.json is damaged \(.*\): the exemplars are searched anew$"):
        open_run(streets / "run", streets).exemplars()
    assert json.loads((streets / "run" / EXEMPLARS).read_text())["classes"] == ["sky", "road", "car"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda case: case.update(image=10**6), "there is no training image 1000000"),
        (lambda case: case.update(image=-1), "there is no training image -1"),
        (lambda case: case.update(image="3"), "there is no training image 3"),
        (lambda case: case.update(name="other.png"), r"training image \d+ is \d+\.png, not other\.png"),
        (lambda case: case.update(similarity="near"), r"the exemplar \d+\.png lacks its similarity or its pixel"),
        (lambda case: case.pop("row"), r"the exemplar \d+\.png lacks its similarity or its pixel"),
    ],
)
def test_an_exemplar_that_no_search_would_write(streets, searched, change, reason):
    before = silent(open_run(streets / "run", streets))
    path = streets / "run" / EXEMPLARS
    values = json.loads(path.read_text())
    change(values["exemplars"][2][1])
    path.write_text(json.dumps(values))
    with pytest.warns(
        UserWarning, match=rf"exemplars\.json is damaged \({reason}\): the exemplars are searched anew$"
    ):
        assert open_run(streets / "run", streets).exemplars() == before
    assert silent(open_run(streets / "run", streets)) == before


@pytest.mark.parametrize("part", ["classes", "exemplars", "K"])
def test_exemplars_of_too_few_classes_or_sub_centroids(streets, searched, part):
    before = silent(open_run(streets / "run", streets))
    path = streets / "run" / EXEMPLARS
    values = json.loads(path.read_text())
    (values["exemplars"][0] if part == "K" else values[part]).pop()
    path.write_text(json.dumps(values))
    wanted = f"it must hold 3 x {len(before.cases[0])} exemplars"
    with pytest.warns(
        UserWarning, match=rf"exemplars\.json is damaged \({wanted}\): the exemplars are searched anew$"
    ):
        assert open_run(streets / "run", streets).exemplars() == before


def test_a_folder_that_cannot_be_written_still_gives_exemplars(streets, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(open_runs, "write_json", full)
    with pytest.warns(UserWarning, match=r"exemplars\.json could not be written \(No space left on device\): the"):
        found = open_run(streets / "run", streets).exemplars()
    assert found.classes == ("sky", "road", "car")


def test_other_classes_or_no_data(streets):
    (streets / "streets" / "classes.txt").write_text("sky\nroad\nboat\n")
    with pytest.raises(ValueError, match=r"the data set at hand has other classes than .*run was trained on"):
        open_run(streets / "run", streets).exemplars()
    shutil.rmtree(streets / "streets")
    with pytest.raises(ValueError, match="unknown data set of scenes 'streets'"):
        open_run(streets / "run", streets).exemplars()


def test_a_softmax_run_has_no_exemplars():
    with pytest.raises(ValueError, match="a SoftmaxHead has no sub-centroids"):
        open_run(trained_scenes("softmax").folder).exemplars()


def test_a_run_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it has no manifest\.json"):
        open_run(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        open_run(tmp_path)


def test_read_picture_of_images_in_memory():
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    data = LabelledImages(images, torch.tensor([1, 0]), ("a", "b"))
    picture, label = read_picture(data, 1)
    assert np.array_equal(np.asarray(picture), images[1].numpy())
    assert label == 0
