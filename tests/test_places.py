import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc_lib.metrics import IGNORED
from dnc_lib.pixels import labels_at
from dnc_lib.places import axes

SIDES = st.integers(1, 200)


@st.composite
def grids(draw):
    """Sizes of a scene, of what the network sees, of the grid, and the multiple."""
    multiple = draw(st.sampled_from([1, 4, 32]))
    size, seen = ((draw(SIDES), draw(SIDES)) for _ in range(2))
    grid = tuple(draw(st.integers(1, side + -side % multiple)) for side in seen)
    return size, seen, grid, multiple


@settings(max_examples=200, deadline=None)
@given(grids())
def test_every_pixel_lies_in_a_place(case):
    for axis in axes(*case):
        assert 0 <= axis.place(0) <= axis.place(axis.pixels - 1) < axis.places


@settings(max_examples=100, deadline=None)
@given(grids(), st.data())
def test_the_pixel_of_a_place_has_the_label_that_training_gives_it(case, data):
    size, seen, grid, multiple = case
    labels = torch.arange(size[0] * size[1]).view(1, *size) + 1000  # every pixel its own
    at_grid = labels_at(labels, grid, multiple, seen)[0]
    down, across = axes(*case)
    i, j = data.draw(st.integers(0, grid[0] - 1)), data.draw(st.integers(0, grid[1] - 1))
    row, column = down.pixel(i), across.pixel(j)
    if row < size[0] and column < size[1]:
        assert at_grid[i, j] == labels[0, row, column]
    else:
        assert at_grid[i, j] == IGNORED


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.sampled_from([1, 4]))
def test_there_and_back(places, times, multiple):
    side = places * times * multiple
    down, _ = axes((side * 3, 9), (side, 9), (places, 9), multiple)
    assert [down.place(down.pixel(i)) for i in range(places)] == list(range(places))


def test_by_hand():
    down, across = axes((360, 480), (180, 240), (45, 60))
    assert (down.pixel(0), down.pixel(44), across.pixel(59)) == (4, 356, 476)
    assert (down.place(7), down.place(8), across.place(479)) == (0, 1, 59)
    padded, _ = axes((30, 30), (30, 30), (8, 8), 32)
    assert [padded.pixel(i) for i in (0, 6, 7)] == [2, 26, 30]  # the last lies in the padding
    assert padded.place(29) == pytest.approx(7)
