"""dnc_lib/explorer.py; that its page works in a browser is tested in tests/pages."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from helpers import random_images
from PIL import Image

from dnc_lib.explorer import Cases, explorer

CLASSES, COLOURS = ("cat", "dog <b>", "owl"), ["#123456", "red", "rgb(0, 0, 9)"]


def drawn(number=25, **changes):
    images, own = random_images(number, 3, 8).images, random_images(6, 3, 8, seed=1).images
    generator = torch.Generator().manual_seed(2)
    places, similarity = torch.randn(number, 2, generator=generator), torch.rand(number, 6, generator=generator)
    cases = Cases(own, torch.tensor([0, 0, 1, 1, 2, 2]), torch.randn(6, 2, generator=generator), similarity)
    parts = {"images": images, "labels": torch.arange(number) % 3, "places": places, "cases": cases} | changes
    return explorer(**{"classes": CLASSES, "colours": COLOURS, **parts}), parts


def data_of(page):
    return json.loads(re.search(r"data = (\{.*?\});", page)[1])


def test_each_dot_has_its_nearest_case_and_the_nearest_of_another_class():
    page, parts = drawn()
    similarity, labels = parts["cases"].similarity, parts["cases"].labels
    for row, dot in zip(similarity, data_of(page)["dots"], strict=True):
        first, near, second, other = dot[3:]
        assert near == pytest.approx(row.max().item(), abs=1e-3)
        assert row[first] == row.max()
        assert labels[first] != labels[second]
        assert other == pytest.approx(max(row[k].item() for k in range(6) if labels[k] != labels[first]), abs=1e-3)


def test_places_keep_their_proportions_within_the_map():
    page, parts = drawn()
    found = np.array([dot[:2] for dot in data_of(page)["dots"]])
    wanted = parts["places"].numpy()
    assert found.min() >= 3
    assert found.max() <= 97
    for axis in (0, 1):
        assert np.corrcoef(found[:, axis], wanted[:, axis])[0, 1] > 0.99999


def test_the_sheets_hold_the_images_in_order():
    page, parts = drawn()
    sheets = re.findall(r'data:image/jpeg;base64,([^"]+)"', page)
    assert len(sheets) == 2
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheets[0])))).astype(int)
    assert sheet.shape == (16, 160, 3)  # 25 images of 8 x 8 in rows of 20
    for i in (0, 7, 24):
        top, left = 8 * (i // 20), 8 * (i % 20)
        errors = np.abs(
            sheet[top : top + 8, left : left + 8] - parts["images"].numpy().astype(int)[:, None][i]
        ).mean()
        others = np.abs(
            sheet[top : top + 8, left : left + 8] - parts["images"].numpy().astype(int)[(i + 1) % 25]
        ).mean()
        assert errors < 20 < others  # noise is the worst that a JPEG can be given


def test_it_needs_nothing_from_elsewhere_and_stays_light():
    page, _ = drawn(300)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "dog <b>" not in page  # names are escaped, in the legend and in the script
    assert "dog &lt;b&gt;" in page
    assert "$" not in re.sub(r"\$\{", "", page)  # no place was left unfilled
    assert len(page) < 400_000


def test_bad_input():
    with pytest.raises(ValueError, match="a map takes 1 to 300 images, got 301: draw some of them"):
        drawn(301)
    with pytest.raises(ValueError, match="got 25 images, 24 labels, 25 places, 25 similarities"):
        drawn(labels=torch.zeros(24))
    _, parts = drawn()
    cases = Cases(parts["cases"].images[:5], *list(vars(parts["cases"]).values())[1:])
    with pytest.raises(ValueError, match="each case needs an image, a label, a place and a column of similarities"):
        drawn(cases=cases)
    for changes, message in (
        ({"colours": COLOURS[:2]}, "each class needs a colour, got 2 for 3 classes"),
        ({"labels": torch.full((25,), 3)}, "label 3 of the images is none of 3 classes"),
        ({"cases": labelled(parts, 0, 0, 1, 1, -1, 2)}, "label -1 of the cases is none of 3 classes"),
        (
            {"cases": labelled(parts, 2, 2, 2, 2, 2, 2)},
            "the cases are of one class: there is no nearest of another to",
        ),
        ({"name": "my map"}, "name must begin with a letter and have letters, digits, - and _ alone, got 'my map'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            drawn(**changes)


def labelled(parts, *labels):
    return dataclasses.replace(parts["cases"], labels=torch.tensor(labels))
