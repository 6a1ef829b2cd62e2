"""What the chapter on road scenes reads: counts, label maps, exemplars and explanations belong to their manifests."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dnc_lib.metrics import ConfusionMatrix

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results"
SCENES = RESULTS / "camvid"
ARRAYS = sorted(SCENES.glob("*.npz"))
EXEMPLARS = sorted(SCENES.glob("*_exemplars.json"))
EXPLAINED = sorted(SCENES.glob("*_explained.json"))

#: Points. A handful of the 39 million labelled pixels may fall the other way in a second evaluation, no more.
ROUNDING = 1e-3

each_array = pytest.mark.parametrize("path", ARRAYS, ids=lambda path: path.stem)
each_found = pytest.mark.parametrize("path", EXEMPLARS, ids=lambda path: path.stem)
each_explained = pytest.mark.parametrize("path", EXPLAINED, ids=lambda path: path.stem)


def manifest(stem: str) -> dict:
    """The manifest of the run of this name."""
    return json.loads((RESULTS / f"{stem}.json").read_text(encoding="utf-8"))


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def stem(path: Path) -> str:
    """The run's name, of a file beside its arrays."""
    return path.stem.rsplit("_", 1)[0]


def test_every_small_run_has_its_scenes_and_every_dnc_its_exemplars():
    runs = {path.stem for path in RESULTS.glob("camvid_*_efficientnet_*.json")}
    assert runs
    assert runs == {path.stem for path in ARRAYS}
    explainable = {run for run in runs if manifest(run)["recipe"]["head"] == "dnc"}
    assert explainable == {stem(path) for path in EXEMPLARS}
    assert {stem(path) for path in EXPLAINED} <= explainable
    assert EXPLAINED


def test_files_are_small():
    sizes = [path.stat().st_size for path in SCENES.iterdir()]
    assert max(sizes) < 1_200_000
    assert sum(sizes) < 8_000_000


@each_array
def test_counts_add_up_to_the_scores_of_the_manifest(path):
    record, counts = manifest(path.stem), arrays(path)["counts"]
    classes, images = len(record["classes"]), record["data"]["test"]["images"]
    assert counts.shape == (images, classes, classes)
    total = ConfusionMatrix(classes)
    total.matrix = torch.from_numpy(counts).long().sum(0)
    assert 100 * total.miou() == pytest.approx(record["final"]["miou"], abs=ROUNDING)
    assert 100 * total.pixel_accuracy() == pytest.approx(record["final"]["pixel_accuracy"], abs=ROUNDING)
    assert (100 * total.iou()).tolist() == pytest.approx(record["final"]["iou"], abs=ROUNDING)


@each_array
def test_all_runs_saw_the_same_scenes(path):
    first, own = arrays(ARRAYS[0]), arrays(path)
    assert own["names"].tolist() == first["names"].tolist()
    assert len(set(own["names"].tolist())) == len(own["names"])
    assert np.array_equal(own["counts"].sum(2), first["counts"].sum(2))  # true pixels by image and class
    assert manifest(path.stem)["data"] == manifest(ARRAYS[0].stem)["data"]


@each_array
def test_label_maps_are_those_that_were_counted(path):
    own = arrays(path)
    classes = own["counts"].shape[1]
    assert own["labels"].shape == (len(own["counts"]), 180, 240)
    assert own["labels"].max() < classes
    painted = np.stack([np.bincount(labels.ravel(), minlength=classes) for labels in own["labels"]])
    counted = own["counts"].sum(1)
    # Maps have a quarter of the pixels, and those without a class besides: shares in an image agree to that. Beside
    # the counts of another image they do not: a map fits its own image best, neighbouring frames apart.
    painted, counted = (x / x.sum(1, keepdims=True) for x in (painted, counted))
    distance = np.abs(painted[:, None] - counted[None]).sum(2)  # (N, N)
    assert np.median(np.diag(distance)) < 0.1
    assert (distance.argmin(1) == np.arange(len(distance))).mean() > 0.8


@each_found
def test_exemplars_are_of_the_runs_training_scenes(path):
    record, found = manifest(stem(path)), json.loads(path.read_text(encoding="utf-8"))
    assert found["classes"] == record["classes"]
    assert found["data"] == record["data"]["train"]["digest"]
    assert [len(own) for own in found["exemplars"]] == [record["recipe"]["num_subcentroids"]] * len(record["classes"])
    for own in found["exemplars"]:
        assert len({case["image"] for case in own}) == len({case["name"] for case in own}) == len(own)
        for case in own:
            assert 0 <= case["image"] < record["data"]["train"]["images"]
            assert 0 <= case["row"] < 360
            assert 0 <= case["column"] < 480
            assert 0 < case["similarity"] <= 1 + 1e-6


@each_explained
def test_explained_pixel_is_of_the_run_and_its_exemplars(path):
    why, record = json.loads(path.read_text(encoding="utf-8")), manifest(stem(path))
    assert why["run"] == stem(path)
    found = json.loads((SCENES / f"{stem(path)}_exemplars.json").read_text(encoding="utf-8"))["exemplars"]
    for case in why["cases"]:
        assert case["exemplar"] == found[record["classes"].index(case["class"])][case["subcentroid"]]
    best = {name: max(case["similarity"] for case in why["cases"] if case["class"] == name)
            for name in (why["predicted"], why["runner_up"])}  # fmt: skip
    assert best[why["predicted"]] - best[why["runner_up"]] == pytest.approx(why["margin"], abs=1e-6)
    ratio = why["shares"][0]["share"] / why["shares"][1]["share"]  # the softmax of similarity / temperature
    assert np.log(ratio) * record["recipe"]["temperature"] == pytest.approx(why["margin"], abs=1e-4)


@each_explained
def test_explained_pixel_has_the_class_of_the_label_map(path):
    why, own = json.loads(path.read_text(encoding="utf-8")), arrays(SCENES / f"{stem(path)}.npz")
    image = own["names"].tolist().index(why["image"].split(",")[0])
    row, column = why["at"]
    assert row % 2 == column % 2 == 1, "a recorded label is that of the second pixel of two"
    label = own["labels"][image, row // 2, column // 2]
    assert manifest(stem(path))["classes"][label] == why["map_class"]
