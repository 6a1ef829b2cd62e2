from pathlib import Path

import numpy as np
import pytest

from dnc_lib.data import data_root, load


def test_unknown_names_meet_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown data set 'cifar11'. Did you mean cifar10\? Known: digits, cifar10"
    ):
        load("cifar11", tmp_path)
    with pytest.raises(ValueError, match=f"or a folder with train/<class>/ and test/<class>/ at {tmp_path}/zzz"):
        load("zzz", tmp_path)
    with pytest.raises(ValueError, match="unknown data set ''"):
        load("", tmp_path)


@pytest.mark.parametrize(("name", "cls"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_data_that_is_not_at_hand_says_what_to_run(tmp_path, name, cls):
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert f"{name} not found under {tmp_path}" in message
    assert "--data-root or DNC_DATA" in message
    assert f"from torchvision.datasets import {cls}; {cls}('{tmp_path / name}', download=True)" in message


def test_the_root_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DNC_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data_root() == tmp_path / "variable"
    monkeypatch.setenv("DNC_DATA", "")
    assert data_root() == Path.home() / ".cache" / "dnc"
    monkeypatch.delenv("DNC_DATA")
    assert data_root("~/pictures") == Path.home() / "pictures"


def test_the_variable_is_respected(monkeypatch, tmp_path, tree, grey):
    tree({"train/a/1.png": grey(1), "test/a/1.png": grey(2)})
    monkeypatch.setenv("DNC_DATA", str(tmp_path))
    train, test = load("pets")
    assert (train.name, test.name) == ("pets, training", "pets, test")


def test_training_and_test_images_of_other_sizes_are_refused(tmp_path, arrays):
    arrays["x_test"] = np.ascontiguousarray(arrays["x_test"][:, :28, :28])
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(ValueError, match=r"cifar10: training images are \(32, 32\) .* test images \(28, 28\)"):
        load("cifar10", tmp_path)
