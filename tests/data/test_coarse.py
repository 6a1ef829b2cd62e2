import numpy as np
import pytest
import torch
from helpers import random_images, write_class_folders

from dnc_lib.data import load
from dnc_lib.data.coarse import COARSE, merged
from dnc_lib.data.pictures import open_pictures


def test_every_fine_class_has_one_home():
    for (name, groups), fine in zip(COARSE.values(), (10, 100), strict=True):
        members = [member for group in groups.values() for member in group]
        assert len(members) == len(set(members)) == fine, name
    assert {len(group) for group in COARSE["cifar100_coarse"][1].values()} == {5}


def test_merged_images_keep_their_order(tmp_path):
    """From a real file, in the form that the data comes in."""
    names = [*COARSE["cifar10_coarse"][1]["vehicle"], *COARSE["cifar10_coarse"][1]["animal"]]
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8) for part in ("train", "test")}
    labels = np.arange(20) % 10
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "cifar10.npz", **arrays, y_train=labels, y_test=labels, classes=np.array(names))
    fine, coarse = load("cifar10", tmp_path)[0], load("cifar10_coarse", tmp_path)[0]
    assert torch.equal(fine.images, coarse.images)
    assert coarse.classes == ("vehicle", "animal")
    assert coarse.labels.tolist() == [int(names[label] in names[4:]) for label in labels]
    assert coarse.name == "cifar10, training, coarse"


def test_a_class_without_a_home():
    data = random_images(8, 4)
    message = "noise: class 'class3' is in 0 of the coarse classes a, b; it must be in one"
    with pytest.raises(ValueError, match=message):
        merged(data, {"a": ("class0", "class1"), "b": ("class2",)})
    with pytest.raises(ValueError, match="class 'class0' is in 2 of"):
        merged(data, {"a": data.classes, "b": ("class0",)})


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_classes_left_out_and_the_others_close_ranks(kind, tmp_path):
    if kind == "memory":
        data = random_images(12, 4)
    else:
        write_class_folders(tmp_path / "pets", classes=("ant", "bee", "cat", "dog"))
        data = open_pictures("pets", tmp_path)[0]
    rest = data.without((1, 2))
    names = data.classes
    assert rest.classes == (names[0], names[3])
    assert rest.num_classes == 2
    assert len(rest) == int(((data.labels == 0) | (data.labels == 3)).sum())
    assert torch.equal(rest.labels, (data.labels[(data.labels == 0) | (data.labels == 3)] == 3).long())
    if kind == "memory":
        assert torch.equal(rest.images, data.images[(data.labels == 0) | (data.labels == 3)])
    with pytest.raises(ValueError, match="there is no class 7 to leave out of 4"):
        data.without((7,))
    with pytest.raises(ValueError, match="no image is left without the classes 0, 1, 2, 3"):
        data.without((0, 1, 2, 3))
