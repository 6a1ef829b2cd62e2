"""Foreign images: scores against their formulas, AUROC and FPR95 against scikit-learn, sets against their names."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from dnc_lib.checkpoints import ModelCard
from dnc_lib.data import LabelledImages
from dnc_lib.foreign import (
    Rater,
    auroc,
    class_centres,
    energy,
    foreign_images,
    fpr95,
    knn,
    max_softmax,
    measure,
    nearest_subcentroid,
)
from dnc_lib.models import ImageClassifier

few = st.lists(st.integers(0, 6), min_size=1, max_size=30).map(lambda values: torch.tensor(values) / 2)  # many ties
seeds = st.integers(0, 2**31)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- how well a score tells


def test_pairs_counted_by_hand():
    inside, outside = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 3.0])
    assert auroc(inside, outside) == (1 + 0.5 + 0.5 + 3) / 6
    assert auroc(outside, inside) == pytest.approx(1 - 5 / 6)
    assert fpr95(inside, outside) == 0.5  # all three pass at 2, and so does one of the two


@given(few, few)
@settings(deadline=None)
def test_auroc_agrees_with_scikit_learn_ties_and_all(inside, outside):
    truth = [0] * len(inside) + [1] * len(outside)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, torch.cat([inside, outside])))


@given(few, few)
@settings(deadline=None)
def test_auroc_counts_pairs(inside, outside):
    signs = (outside[:, None] - inside).sign()  # (M, N): 1, 0 or -1
    assert auroc(inside, outside) == pytest.approx(((signs + 1) / 2).mean().item())
    assert auroc(inside, outside) + auroc(outside, inside) == pytest.approx(1)
    assert auroc(inside.exp(), outside.exp()) == auroc(inside, outside)  # the order is all that counts


@given(few, few)
@settings(deadline=None)
def test_fpr95_agrees_with_scikit_learn_s_curve(inside, outside):
    truth = [1] * len(inside) + [0] * len(outside)
    passed, kept, _ = roc_curve(truth, -torch.cat([inside, outside]), drop_intermediate=False)
    assert fpr95(inside, outside) == pytest.approx(passed[np.argmax(kept >= 0.95 - 1e-12)])


def test_of_twenty_images_one_may_be_lost():
    inside = torch.arange(20.0)
    assert fpr95(inside, torch.tensor([18.0, 18.5, 19.0])) == pytest.approx(1 / 3)
    assert fpr95(inside[:19], torch.tensor([17.5, 18.5])) == 0.5  # of nineteen none


@pytest.mark.parametrize("how", [auroc, fpr95])
@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], "inside must be a row of scores, one an image, got shape (0,)"),
        ([1.0], [[1.0]], "outside must be a row of scores, one an image, got shape (1, 1)"),
        ([1.0], [math.nan], "outside has NaN among its scores: is there an image without an embedding?"),
    ],
)
def test_bad_rows(how, inside, outside, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        how(torch.tensor(inside), torch.tensor(outside))


# --- scores


@given(seeds, st.floats(0.1, 5))
@settings(max_examples=30, deadline=None)
def test_scores_are_their_formulas(seed, temperature):
    scores = 3 * normal(seed, 7, 5).double()
    assert torch.allclose(max_softmax(scores), 1 - scores.softmax(1).amax(1))
    by_hand = -temperature * (scores / temperature).exp().sum(1).log()
    assert torch.allclose(energy(scores, temperature), by_hand)
    assert torch.allclose(energy(scores + 2, temperature), by_hand - 2)  # softmax would not see the shift
    assert torch.allclose(max_softmax(scores + 2), max_softmax(scores))


def test_certainty_beyond_single_precision_is_still_told_apart():
    scores = torch.tensor([[0.0, 30.0], [0.0, 60.0]])
    assert (1 - scores.softmax(1).amax(1)).tolist() == [0.0, 0.0]
    first, second = max_softmax(scores).tolist()
    assert first == pytest.approx(math.exp(-30))
    assert second == pytest.approx(math.exp(-60))


@given(seeds, st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_knn_agrees_with_scikit_learn(seed, k):
    bank, queries = normal(seed, 12, 4), normal(seed + 1, 9, 4)
    distances, _ = NearestNeighbors(n_neighbors=k, metric="cosine").fit(bank).kneighbors(queries)
    assert knn(queries, bank, k).numpy() == pytest.approx(distances[:, -1], abs=1e-5)
    assert knn(3 * queries, 5 * bank, k).numpy() == pytest.approx(distances[:, -1], abs=1e-5)


def test_knn_in_blocks_is_knn(monkeypatch):
    bank, queries = normal(0, 50, 6), normal(1, 23, 6)
    whole = knn(queries, bank, 5)
    monkeypatch.setattr("dnc_lib.foreign._ROWS", 4)
    assert torch.allclose(knn(queries, bank, 5), whole, atol=1e-6)


@pytest.mark.parametrize("k", [0, 4])
def test_too_many_neighbours(k):
    message = f"k must lie in [1, 3], the number of stored embeddings, got {k}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        knn(torch.ones(1, 2), torch.ones(3, 2), k)


def test_nearest_subcentroid_of_any_class():
    subcentroids = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]])
    found = nearest_subcentroid(torch.tensor([[0.0, -2.0], [1.0, 1.0]]), subcentroids)
    assert found.tolist() == pytest.approx([0.0, 1 - math.sqrt(0.5)], abs=1e-6)


def test_class_centres_are_mean_directions_and_k_means_finds_two_kinds():
    kinds = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]]), dim=1)
    embeddings = F.normalize(kinds.repeat_interleave(20, 0) + 0.05 * normal(0, 80, 3), dim=1)
    labels = torch.tensor([0] * 40 + [1] * 40)
    means = class_centres(embeddings, labels, 1)
    expected = torch.stack([embeddings[labels == c].mean(0) for c in (0, 1)])
    assert torch.allclose(means, F.normalize(expected, dim=1), atol=1e-5)
    centres = class_centres(embeddings, labels, 2)
    assert (centres @ kinds.T).amax(0).min() > 0.99


# --- foreign images


def test_foreign_images_are_what_they_say():
    photographs = torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8)
    made = foreign_images(photographs, 24)
    assert list(made) == ["digits", "uniform", "gaussian", "textures", "shuffled"]
    for images in made.values():
        assert images.shape == (24, 32, 32, 3)
        assert images.dtype == torch.uint8
        assert images.flatten(1).float().std(1).median() > 5
        assert len(images.flatten(1).unique(dim=0)) == 24
    ours, theirs = made["shuffled"].flatten(1, 2), photographs[:24].flatten(1, 2)
    assert not torch.equal(ours, theirs)
    for image, photograph in zip(ours.tolist(), theirs.tolist(), strict=True):
        assert sorted(image) == sorted(photograph)  # whole pixels have moved, colours and all
    assert (made["digits"][..., 0] == made["digits"][..., 2]).all()  # grey
    assert 100 < made["gaussian"].float().mean() < 155
    again, other = foreign_images(photographs, 24), foreign_images(photographs, 24, seed=1)
    assert all(torch.equal(again[name], images) for name, images in made.items())
    assert all(not torch.equal(other[name], made[name]) for name in made if name != "digits")


def test_textures_are_smooth_and_noise_is_not():
    made = foreign_images(torch.zeros(40, 32, 32, 3, dtype=torch.uint8), 40)

    def roughness(images):
        grey = images.float().mean(3)
        return ((grey[:, 1:] - grey[:, :-1]).abs().mean((1, 2)) / grey.std((1, 2)).clamp_min(1)).mean()

    assert roughness(made["textures"]) < 0.6 * roughness(made["uniform"])


@pytest.mark.parametrize(
    ("photographs", "size", "message"),
    [
        (torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 1798, "size must lie in [1, 1797], the number of digits, got"),
        (torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 4, "photographs must be uint8 (M, 32, 32, 3) with 4 of them"),
        (torch.zeros(3, 8, 8, 3, dtype=torch.uint8), 2, "photographs must be uint8 (M, 32, 32, 3) with 2 of them"),
        (
            torch.zeros(3, 32, 32, 3),
            2,
            "photographs must be uint8 (M, 32, 32, 3) with 2 of them or more, got torch.f",
        ),
    ],
)
def test_bad_photographs(photographs, size, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        foreign_images(photographs, size)


# --- a model


class Small(torch.nn.Module):
    """Mean, deviation and roughness of each colour: features enough to tell noise from flat pictures."""

    num_features = 9

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        rough = (images[:, :, 1:] - images[:, :, :-1]).abs().mean((2, 3))
        return torch.cat([images.mean((2, 3)), images.std((2, 3)), 3 * rough], 1) + self.nothing


@pytest.fixture(scope="module")
def parts():
    """Two classes of all but flat pictures, dark red and dark blue."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 20, (350, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(350) % 2
    images[labels == 0, :, :, 0] += 60
    images[labels == 1, :, :, 2] += 60
    data = LabelledImages(images, labels, ("red", "blue"), "flat")
    part = {"train": slice(0, 100), "validation": slice(100, 150), "test": slice(150, 350)}
    return {name: data.subset(torch.arange(350)[where], name) for name, where in part.items()}


CARD = ModelCard("", "", {}, ["red", "blue"], [0.2] * 3, [0.2] * 3, 32)


@pytest.mark.parametrize("head", ["softmax", "cosine", "frozen", "dnc"])
def test_a_model_is_asked_by_every_score_that_it_has(head, parts, monkeypatch):
    from dnc_lib.heads import build_head

    monkeypatch.setattr("dnc_lib.foreign.foreign_images", lambda photographs: foreign_images(photographs, 200))

    torch.manual_seed(0)
    model = ImageClassifier(Small(), build_head(head, 9, 2, num_subcentroids=2, memory_size=0)).eval()
    if head == "dnc":
        model.refresh([(images, labels) for images, labels in _loader(parts["train"])])
    details = {}
    found = measure(model, CARD, parts, details)
    scores = ["softmax", "energy", "energy_fitted", "knn", "nearest", "means", "subcentroids"]
    if head == "softmax":
        scores.remove("nearest")
    sets = ["digits", "uniform", "gaussian", "textures", "shuffled"]
    expected = {f"{how}_{name}_{score}" for how in ("auroc", "fpr95") for name in sets for score in scores}
    expected |= {f"{how}_{score}" for how in ("auroc", "fpr95") for score in scores} | {"auroc", "fpr95"}
    assert set(found) == expected
    assert all(0 <= value <= 100 for value in found.values())
    own = "softmax" if head == "softmax" else "nearest"
    assert found["auroc"] == found[f"auroc_{own}"]
    assert found["auroc_knn"] == pytest.approx(sum(found[f"auroc_{name}_knn"] for name in sets) / 5)
    assert found["auroc_uniform_knn"] > 99  # noise is nothing like a flat picture
    if head == "dnc":
        assert found["auroc_uniform_nearest"] > 99
    counts = details["histograms"]["counts"]
    assert {name: sum(each) for name, each in counts.items()} == {"test": 200, **dict.fromkeys(sets, 200)}
    assert len(details["histograms"]["edges"]) == len(counts["test"]) + 1


def test_own_score_is_the_distance_to_the_head_s_own_subcentroids(parts):
    from dnc_lib.heads import SubCentroidHead

    model = ImageClassifier(Small(), SubCentroidHead(9, 2, 2, memory_size=0)).eval()
    few_test = parts["test"].subset(torch.arange(20))
    found = Rater(model, CARD, parts["train"])(few_test)
    ((images, _),) = _loader(few_test)
    similarity = model.head.similarities(model.features(images)).flatten(1).amax(1)
    assert torch.allclose(found["nearest"], 1 - similarity.detach(), atol=1e-5)
    assert torch.allclose(found["nearest"], 1 - 0.1 * model(images).detach().amax(1), atol=1e-5)
    assert "energy_fitted" not in found  # no held-out images, no temperature


def test_left_out_classes_take_the_place_of_the_sets(parts):
    from dnc_lib.heads import SoftmaxHead

    torch.manual_seed(0)
    model = ImageClassifier(Small(), SoftmaxHead(9, 2)).eval()
    left_out = parts["test"].subset(torch.arange(60), "left out")
    found = measure(model, CARD, {**parts, "left_out": left_out})
    assert {key.split("_")[0] + "_left_out" for key in found} == {"auroc_left_out", "fpr95_left_out"}
    assert len(found) == 12  # six scores, and no means over sets
    assert found["auroc_left_out_knn"] == pytest.approx(50, abs=12)  # they are of the known kinds


def _loader(data):
    from dnc_lib.data import DeviceLoader

    return DeviceLoader(data, len(data), CARD.mean, CARD.std)
