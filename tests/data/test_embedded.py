import sys

import pytest
import torch

from dnc_lib.data import load


def test_the_digits_are_split_by_a_rule_and_complete():
    train, test = load("digits")
    assert (len(train), len(test)) == (1198, 599)
    assert train.images.shape[1:] == (8, 8, 3)
    assert train.classes == test.classes == tuple("0123456789")
    assert torch.equal(train.images[..., 0], train.images[..., 2])
    assert int(train.images.max()) == 255
    assert torch.bincount(test.labels).min() > 40


def test_the_running_example_is_a_training_image():
    from sklearn.datasets import load_digits

    train, test = load("digits")
    wanted = torch.from_numpy((load_digits().images[1485] * (255 / 16)).round()).to(torch.uint8)
    assert (train.images[..., 0] == wanted).flatten(1).all(1).sum() == 1
    assert not (test.images[..., 0] == wanted).flatten(1).all(1).any()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="the digits come with scikit-learn: pip install scikit-learn"):
        load("digits")
