"""Records of different code may be paired only where the code trains the same: short trainings are held to numbers.

Whoever changes what a training computes (order of images, initialisation, loss, update of the sub-centroids) sees
this fail, counts ``dnc_lib.training.GENERATION`` on and writes the new numbers here. Rounding moves the fifth digit.
"""

from pathlib import Path

import pytest
from helpers import quick

from dnc_lib.comparisons import compare
from dnc_lib.records import load_results
from dnc_lib.training import GENERATION

ARMS = {
    "softmax": {"head": "softmax"},
    "cosine": {"head": "cosine"},
    "cosine, K = 4": {"head": "cosine", "num_prototypes": 4},
    "frozen": {"head": "frozen"},
    "dnc": {},
    "dnc, nearest": {"assignment": "nearest", "correct_only": True},
    "dnc, frame": {"spread": "frame", "update_after": 2, "num_subcentroids": 3},
}

#: Training loss of the first five steps, and how far the sub-centroids drifted in them.
RECORDED = {
    1: {
        "softmax": (2.33001, None),
        "cosine": (2.84623, None),
        "cosine, K = 4": (2.56705, None),
        "frozen": (2.69465, 0.0),
        "dnc": (2.61385, 0.10184),
        "dnc, nearest": (2.77741, 0.01681),
        "dnc, frame": (3.02919, 0.14863),
    }
}


def test_this_generation_trains_as_it_did(tmp_path):
    recipe = quick(epochs=1, momentum=0.9, train_limit=320)
    manifest = compare(recipe, ARMS, [0], tmp_path / "five_steps.json", progress=False)
    assert manifest["generation"] == GENERATION
    for entry in manifest["results"]:
        loss, drift = RECORDED[GENERATION][entry["arm"]]
        assert entry["train_loss"] == pytest.approx(loss, rel=2e-4), entry["arm"]
        if drift is not None:
            assert entry["drift"] == pytest.approx(drift, abs=2e-4), entry["arm"]
        assert entry["generation"] == GENERATION


def test_records_of_before_the_count_are_of_the_first_generation():
    records = load_results(Path(__file__).resolve().parents[1] / "book" / "results")
    assert {record.generation for record in records} <= set(range(1, GENERATION + 1))
