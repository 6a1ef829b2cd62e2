import random

import numpy as np
import pytest
import torch

from dnc_lib.randomness import seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_numbers_depend_on_what_is_given_alone():
    with seeded(1, 2, 3):
        first = draw()
    draw()
    with seeded(1, 2, 3):
        assert draw() == first
    for others in [(1, 2), (1, 2, 4), (2, 1, 3), (0, 2, 3)]:
        with seeded(*others):
            assert not set(draw()) & set(first)


def test_the_three_generators_are_apart():
    with seeded(0):
        assert len({round(number, 6) for number in draw()}) == 3


def test_the_callers_numbers_go_on_whatever_happens_inside():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = [draw(), draw()]
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    got = [draw()]
    with pytest.raises(ZeroDivisionError), seeded(7):
        draw()[0] / 0
    assert [*got, draw()] == expected


def test_one_within_another():
    with seeded(1):
        plain = [draw(), draw()]
    with seeded(1):
        outer = [draw()]
        with seeded(2):
            draw()
        outer.append(draw())
    assert outer == plain


def test_negative_and_huge_numbers_are_seeds_too():
    with seeded(-1, 2**70 + 3):
        first = draw()
    with seeded(2**64 - 1, 3 + 2**70 - 2**64 * 2**6):
        assert draw() == first
