import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from dnc_lib.checkpoints import ModelCard
from dnc_lib.data import load
from dnc_lib.data.coarse import merged
from dnc_lib.heads import CosineHead, SoftmaxHead, SubCentroidHead
from dnc_lib.hidden_classes import (
    SHOWN,
    covered,
    flow,
    group_purity,
    measure,
    mutual_information,
    nearest_own,
    shuffled,
)
from dnc_lib.models import ImageClassifier


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def complaint(function, *args, **settings):
    """What it says when it refuses."""
    with pytest.raises(ValueError, match=r".") as error:
        function(*args, **settings)
    return str(error.value)


labellings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n), st.lists(st.integers(0, 3), min_size=n, max_size=n)
    )
)


# --- groups against hidden classes ----------------------------------------------------------------------------------


def test_by_hand():
    """Two groups of four: one pure, one half and half."""
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    hidden = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    table = flow(groups, hidden, 2, 2)
    assert table.tolist() == [[4, 0], [2, 2]]
    assert group_purity(table) == 6 / 8
    log = lambda x: torch.tensor(x, dtype=torch.float64).log()  # noqa: E731
    by_group, by_class = log(2.0), -(0.75 * log(0.75) + 0.25 * log(0.25))
    together = -(0.5 * log(0.5) + 2 * 0.25 * log(0.25))
    expected = (by_group + by_class - together) / ((by_group + by_class) / 2)
    torch.testing.assert_close(mutual_information(table), expected)


@settings(max_examples=40, deadline=None)
@given(labellings)
def test_mutual_information_is_that_of_scikit_learn(both):
    groups, hidden = both
    table = flow(torch.tensor(groups), torch.tensor(hidden), 5, 4)
    ours = float(mutual_information(table))
    assert ours == pytest.approx(normalized_mutual_info_score(hidden, groups), abs=1e-9)
    assert 0 <= ours <= 1 + 1e-12


@settings(max_examples=50, deadline=None)
@given(labellings, st.randoms(use_true_random=False))
def test_neither_measure_knows_what_groups_are_called(both, random):
    groups, hidden = map(torch.tensor, both)
    table = flow(groups, hidden, 5, 4)
    rows, columns = (random.sample(range(size), size) for size in (5, 4))
    moved = table[rows][:, columns]
    torch.testing.assert_close(mutual_information(moved), mutual_information(table))
    assert group_purity(moved) == group_purity(table)
    assert covered(moved) == covered(table)


def test_the_ends_of_the_scale():
    hidden = torch.arange(12) % 3
    assert float(mutual_information(flow(hidden, hidden, 3, 3))) == pytest.approx(1)
    independent = torch.arange(12) // 6
    assert float(mutual_information(flow(independent, hidden, 2, 3))) == pytest.approx(0, abs=1e-12)
    one_each = torch.arange(12)
    assert group_purity(flow(one_each, hidden, 12, 3)) == 1  # purity is no help where groups are many
    assert float(mutual_information(flow(one_each, hidden, 12, 3))) < 0.7


def test_splitting_a_group_never_lowers_purity():
    groups, hidden = (torch.randint(size, (80,), generator=generator(seed)) for size, seed in ((3, 0), (4, 1)))
    finer = groups * 2 + torch.randint(2, (80,), generator=generator(2))
    assert group_purity(flow(finer, hidden, 6, 4)) >= group_purity(flow(groups, hidden, 3, 4))


def test_covered_needs_the_greater_half():
    assert covered(torch.tensor([[5, 5, 0], [9, 1, 0], [0, 2, 2]])) == 1  # a tie is not a group of one's own
    assert covered(torch.tensor([[6, 5, 0], [9, 1, 0], [0, 2, 3]])) == 2  # two groups of class 0 count once
    assert covered(torch.tensor([[0, 0], [0, 4]])) == 1  # a group that got nothing owns nothing


def test_flow_counts():
    groups, hidden = torch.tensor([2, 0, 2, 2]), torch.tensor([1, 0, 1, 0])
    assert flow(groups, hidden, 3, 2).tolist() == [[1, 0], [0, 0], [1, 2]]
    assert complaint(flow, groups, hidden[:3], 3, 2) == "groups and hidden must be (N,), got (4,) and (3,)"


def test_shuffles_keep_the_margins_and_lose_the_rest():
    hidden = torch.arange(300) % 3
    tables = shuffled(hidden, hidden, 3, 3, times=40)
    assert tables.shape == (40, 3, 3)
    assert (tables.sum(1) == 100).all()
    assert (tables.sum(2) == 100).all()
    assert mutual_information(tables).max() < 0.06
    assert len({tuple(table.flatten().tolist()) for table in tables}) > 30
    assert torch.equal(tables, shuffled(hidden, hidden, 3, 3, times=40))


def test_nearest_own_never_looks_at_another_class():
    embeddings, subcentroids = torch.eye(4), torch.eye(4).view(2, 2, 4)
    labels = torch.tensor([0, 0, 1, 1])
    assert nearest_own(embeddings, labels, subcentroids).tolist() == [0, 1, 0, 1]
    closer = torch.stack([subcentroids[0] * 0.1 + 0.01, subcentroids[1]])
    assert nearest_own(embeddings, labels, closer)[:2].tolist() == [0, 1]


# --- measure --------------------------------------------------------------------------------------------------------

GROUPS = {"low": ("0", "1", "2", "3", "4"), "high": ("5", "6", "7", "8", "9")}


class Pixels(torch.nn.Module):
    """A network that passes the middle of an image on: 64 grey values of a digit."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))  # a model is where its parameters are

    def forward(self, images):
        return self.weight * images.mean(1).flatten(1)


@pytest.fixture(scope="module")
def digits():
    """Coarse digits and a classifier by pixels, whose sub-centroids are the means of the hidden classes."""
    train, test = load("digits")
    parts = {"train": merged(train, GROUPS), "test": merged(test, GROUPS)}
    mean, std = (each.tolist() for each in train.channel_stats())
    card = ModelCard("none", "dnc", {}, list(GROUPS), mean, std, 8)
    head = SubCentroidHead(64, 2, 5, memory_size=0)
    model = ImageClassifier(Pixels(), head)
    x = (train.images.float()[..., 0] / 255 - mean[0]).flatten(1) / std[0]
    embedded = head.embed(x).detach()
    for digit in range(10):
        head.subcentroids[digit // 5, digit % 5] = F.normalize(embedded[train.labels == digit].mean(0), dim=0)
    return model, card, parts, (train, test)


def test_means_of_hidden_classes_recover_them(digits):
    model, card, parts, fine = digits
    result = measure(model, card, parts, fine=fine)
    assert set(result) == {"fine_knn", "nmi_null", "nmi_null_high", "purity_null"} | {
        f"{what}{way}" for what in ("nmi", "purity", "fine_covered") for way in ("", "_kmeans", "_images")
    }
    assert result["purity"] > 85
    assert result["fine_covered"] == 10
    assert result["nmi"] > result["nmi_kmeans"] > result["nmi_images"] > 10 > result["nmi_null_high"]
    assert result["nmi_null_high"] > result["nmi_null"]
    assert result["fine_knn"] > 95
    assert result == measure(model, card, parts, fine=fine)


def test_the_measures_are_those_of_the_flows(digits):
    model, card, parts, fine = digits
    details = {}
    result = measure(model, card, parts, fine=fine, details=details)
    assert json.loads(json.dumps(details)) == details
    assert details["classes"] == [str(digit) for digit in range(10)]
    coarse, hidden = parts["test"].labels, fine[1].labels
    scores, purities = [], []
    for c, table in enumerate(details["flows"]):
        assert torch.equal(torch.tensor(table).sum(0), torch.bincount(hidden[coarse == c], minlength=10))
        groups = [k for k, row in enumerate(table) for count in row for _ in range(count)]
        members = [f for row in table for f, count in enumerate(row) for _ in range(count)]
        scores.append(normalized_mutual_info_score(members, groups))
        purities.append(sum(max(row) for row in table) / len(members))
    assert result["nmi"] == pytest.approx(50 * sum(scores))
    assert result["purity"] == pytest.approx(50 * sum(purities))


def test_the_images_shown_are_the_nearest_ones(digits):
    model, card, parts, fine = digits
    details, (_, test) = {}, fine
    measure(model, card, parts, fine=fine, details=details)
    x = (test.images.float()[..., 0] / 255 - card.mean[0]).flatten(1) / card.std[0]
    scores = model.head.similarities(x)
    for c, own in enumerate(details["nearest"]):
        members = parts["test"].labels == c
        for k, shown in enumerate(own):
            won = members & (scores[:, c].argmax(1) == k)
            assert len(shown) == min(SHOWN, int(won.sum()))
            assert all(won[shown])
            assert scores[shown, c, k].min() >= scores[won, c, k].sort(descending=True).values[len(shown) - 1] - 1e-6


def test_heads_without_groups_get_those_of_k_means(digits):
    model, card, parts, fine = digits
    ours = measure(model, card, parts, fine=fine)
    torch.manual_seed(0)
    for head in (SoftmaxHead(64, 2), CosineHead(64, 2), SubCentroidHead(64, 2, 1, memory_size=0)):
        details = {}
        result = measure(ImageClassifier(model.backbone, head), card, parts, fine=fine, details=details)
        assert not details
        assert not {"nmi", "purity", "fine_covered", "nmi_null"} & set(result)
        assert result.keys() < ours.keys()
        if not isinstance(head, SoftmaxHead):  # the same embedding: what does not ask the head is the same
            assert result == {key: ours[key] for key in result}


def test_what_cannot_be_measured(digits):
    model, card, parts, fine = digits
    said = complaint(measure, model, card, parts)
    assert said == "no data set hides fine classes behind low, high: give them as fine"
    shorter = (fine[0], fine[1].subset(torch.arange(10)))
    said = complaint(measure, model, card, parts, fine=shorter)
    assert said == "there are 599 test images with coarse labels and 10 with fine ones"
    backwards = torch.arange(len(fine[1])).flip(0)
    said = complaint(measure, model, card, parts, fine=(fine[0], fine[1].subset(backwards)))
    assert said == "images of one fine class have several coarse ones: are the two lists in the same order?"
    other = dataclasses.replace(fine[1], images=255 - fine[1].images)
    said = complaint(measure, model, card, parts, fine=(fine[0], other))
    assert said == "the test images with coarse and with fine labels are not the same, in the same order"
