"""Figures: that they hold what they were given, and one colour stands for one arm."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from dnc_lib import plots
from dnc_lib.heads import HEADS

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_every_arm_has_a_colour_of_its_own():
    assert set(HEADS) <= set(plots.ARM_COLOURS)
    assert len(set(plots.ARM_COLOURS.values())) == len(plots.ARM_COLOURS)


def test_importing_changes_no_setting_and_use_style_does():
    before = plt.rcParams["axes.titlelocation"]
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["axes.titlelocation"] == "left" != before


def test_image_grid_shows_every_image_once_and_hides_the_rest():
    images = [np.full((4, 4), value, dtype=np.uint8) for value in range(5)]
    fig = plots.image_grid(images, titles=list("abcde"), columns=3)
    drawn = [ax.images[0].get_array()[0, 0] for ax in fig.axes if ax.images]
    assert drawn == [0, 1, 2, 3, 4]
    assert [ax.get_title() for ax in fig.axes if ax.images] == list("abcde")
    assert [ax.axison for ax in fig.axes] == [True] * 5 + [False]


def test_show_image_frames_only_when_asked():
    _, (plain, framed) = plt.subplots(1, 2)
    plots.show_image(plain, np.zeros((2, 2)))
    plots.show_image(framed, np.zeros((2, 2)), colour="red")
    assert not any(spine.get_visible() for spine in plain.spines.values())
    assert all(spine.get_visible() for spine in framed.spines.values())


def test_similarity_bars_put_the_first_on_top_and_write_the_values():
    _, ax = plt.subplots()
    plots.similarity_bars(ax, ["a", "b"], [0.25, 0.75])
    assert ax.yaxis_inverted()
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.75]
    assert {text.get_text() for text in ax.texts} == {"0.25", "0.75"}


def test_show_photographs_shows_one_jpeg_and_closes_the_figure(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    fig = plots.image_grid([np.zeros((8, 8, 3), dtype=np.uint8)], columns=1)
    plots.show_photographs(fig)
    assert [image.data[:2] for image in shown] == [b"\xff\xd8"]
    assert not plt.fignum_exists(fig.number)
