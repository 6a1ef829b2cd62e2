"""The trial of transfer: its task, its segmenters, and how its results become records for the ledger."""

import json

import pytest
import torch

from dnc_lib import plates
from dnc_lib.data import load
from dnc_lib.ledger import judge, load_claims
from dnc_lib.plates import EXAMPLE, GROUND


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_plates_show_nine_digits_each_with_its_label(digits):
    training, test = digits
    images, labels = plates.plates(training, 5, seed=3)
    assert images.shape == (5, 3, 30, 30)
    assert labels.shape == (5, 30, 30)
    assert torch.equal(images[:, 0], images[:, 1])
    for row in range(3):
        for column in range(3):
            cell = labels[:, 10 * row : 10 * row + 10, 10 * column : 10 * column + 10].flatten(1)
            for one in cell:
                assert len(set(one.tolist()) - {GROUND}) == 1  # one digit a place
    again = plates.plates(training, 5, seed=3)
    assert torch.equal(images, again[0])
    assert not torch.equal(images, plates.plates(training, 5, seed=4)[0])
    others = plates.plates(test, 5, seed=3)
    assert not torch.equal(images, others[0])


def test_ink_has_the_digit_and_dark_has_the_ground(digits):
    training, _ = digits
    images, labels = plates.plates(training, 4, seed=0)
    mean, deviation = training.channel_stats()
    grey = 255 * (images[:, 0] * deviation[0] + mean[0])
    assert grey[labels != GROUND].min() >= plates.INK - 0.1
    assert grey[labels == GROUND].max() < plates.INK


def test_classes_and_ground_can_be_chosen(digits):
    _, labels = plates.plates(digits[0], 20, 0, range(5), ground=5)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 5}


def test_the_running_example_is_kept_for_the_first_judged_plate(digits):
    training, _ = digits
    alone = training.subset(torch.tensor([EXAMPLE]))
    digit = alone.images[0, :, :, 0]
    images, labels = plates.judged_plates(number=3)
    mean, deviation = training.channel_stats()
    shown = (255 * (images[0, 0, 11:19, 11:19] * deviation[0] + mean[0])).round()
    assert torch.equal(shown.int(), digit.int())
    assert set(labels[0, 10:20, 10:20].unique().tolist()) == {int(alone.labels[0]), GROUND}
    one = training.without([c for c in range(10) if c != int(alone.labels[0])])  # all 1s
    assert len(one) > 1
    few, _ = plates.plates(training, 300, 0, classes=[int(alone.labels[0])])
    grey = (255 * (few[:, 0] * deviation[0] + mean[0])).round().int()
    patches = grey.unfold(1, 8, 1).unfold(2, 8, 1).flatten(1, 2)  # (300, 23 * 23, 8, 8)
    assert not (patches == digit.int()).flatten(2).all(2).any()


def test_segmenters_of_a_seed_begin_with_one_decoder():
    states = [plates.segmenter(None, head, 7).decoder.state_dict() for head in plates.HEADS]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    other = plates.segmenter(None, "dnc", 8).decoder.state_dict()
    assert any(not torch.equal(states[0][key], other[key]) for key in states[0])


def test_the_trial_trains_every_way_once():
    models = {}
    judged = plates.judged_plates(number=2)
    found = plates.trial(5, judged, sources=("scratch",), steps=60, number=40, models=models)
    assert set(found) == set(models) == {"scratch to softmax", "scratch to dnc"}
    assert all(0 <= value <= 100 for value in found.values())
    assert found == plates.trial(5, judged, sources=("scratch",), steps=60, number=40)
    moved = models["scratch to dnc"].head
    assert not torch.equal(moved.subcentroids, moved.origin)


def manifest(rows):
    """A manifest as the tool writes it; rows: of each seed the mIoU from softmax to softmax, ... ."""
    ways = [f"{source} to {head}" for source in plates.SOURCES for head in plates.HEADS]
    results = [{"seed": seed, "seconds": 1.0, "miou": dict(zip(ways, row, strict=True))} for seed, row in rows]
    code = {"commit": "0" * 40, "dirty": False}
    return {"data": "x", "code": code, "generation": 3, "hardware": "a CPU", "results": results}


def test_records_of_the_trial_are_judged_by_the_ledger(pytestconfig):
    #                  s to s, s to d, d to s, d to d, scratch
    rows = [(100 + i, (50 + 0.1 * i, 40 - 0.3 * i, 45, 48 - 0.2 * i, 20, 21)) for i in range(6)]
    records = plates.as_records(manifest(rows))
    assert len(records) == 12
    claims = load_claims(pytestconfig.rootpath / "book" / "claims.yaml")
    found = {each.id: judge(each, records)[0] for each in claims if each.dataset == plates.DATASET}
    assert set(found) == {"plates_own_head", "plates_pretraining", "plates_segmenter"}
    own, pretraining, segmenter = (
        found[name] for name in ("plates_own_head", "plates_pretraining", "plates_segmenter")
    )
    assert own.differences == pytest.approx([-2 - 0.3 * i for i in range(6)])  # d to d less s to s
    assert pretraining.differences == pytest.approx([8 + 0.1 * i for i in range(6)])  # d to d less s to d
    assert segmenter.differences == pytest.approx([-10 - 0.4 * i for i in range(6)])  # s to d less s to s
    assert (own.verdict, pretraining.verdict) == ("contradicted on this recipe", "held here")


def test_the_recorded_trial_has_the_seeds_of_the_plan(pytestconfig):
    book = pytestconfig.rootpath / "book"
    path = book / "results" / "transfer" / "plates.json"
    if not path.is_file():
        pytest.skip("not run yet")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [each["seed"] for each in found["results"]] == list(range(100, 112))
    assert found["code"]["commit"]
    assert found["code"]["dirty"] is False
    for each in found["results"]:
        assert len(each["miou"]) == len(plates.SOURCES) * len(plates.HEADS)
