import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc_lib.checkpoints import ModelCard, read_model, save_model
from dnc_lib.data import DeviceLoader, load
from dnc_lib.heads import CosineHead, SoftmaxHead, SubCentroidHead
from dnc_lib.loading import make_card, prepare_data
from dnc_lib.models import ImageClassifier
from dnc_lib.new_classes import (
    _Reading,
    card_with,
    class_means,
    extended_head,
    measure,
    nearest_neighbours,
    neighbour_votes,
    trade_off_area,
    with_new_classes,
)

DIM, OLD, K = 16, 3, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def classifier(head="dnc", **settings):
    torch.manual_seed(0)  # of the untrained network, in a test's own process
    model = ImageClassifier.build("tiny_resnet8", OLD, head, head_settings=settings or None)
    return model.eval()


def complaint(function, *args, **settings):
    """What it says when it refuses."""
    with pytest.raises(ValueError, match=r".") as error:
        function(*args, **settings)
    return str(error.value)


def shots(number=5, new=2, seed=1):
    images = torch.randn(number * new, 3, 8, 8, generator=generator(seed))
    return images, torch.arange(number * new) % new


# --- a model with new classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["dnc", "frozen", "cosine"])
def test_old_classes_keep_their_vectors_to_the_last_bit_and_their_scores_up_to_rounding(head):
    model = classifier(head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = shots()
    larger = with_new_classes(model, images, labels, ["truck", "ship"])
    asked = torch.randn(20, 3, 8, 8, generator=generator(2))
    with torch.no_grad():
        old, new = model(asked), larger(asked)
    assert new.shape == (20, OLD + 2)
    vectors = "prototypes" if head == "cosine" else "subcentroids"
    assert torch.equal(getattr(larger.head, vectors)[:OLD], before[f"head.{vectors}"])
    torch.testing.assert_close(new[:, :OLD], old, rtol=0, atol=1e-5)  # a product with more columns rounds otherwise
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_old_sub_centroids_stay_and_new_ones_are_the_estimate():
    model = classifier()
    images, labels = shots(30)
    larger = with_new_classes(model, images, labels, ["truck", "ship"])
    assert torch.equal(larger.head.subcentroids[:OLD], model.head.subcentroids)
    alone = SubCentroidHead(model.head.dim, 2, K, memory_size=0)
    alone.norm.load_state_dict(model.head.norm.state_dict())
    with torch.no_grad():
        alone.estimate(model.features(images), labels)
    assert torch.equal(larger.head.subcentroids[OLD:], alone.subcentroids)
    assert larger.head.subcentroids.shape == (OLD + 2, K, model.head.dim)


def test_features_do_as_well_as_images():
    model = classifier()
    images, labels = shots()
    with torch.no_grad():
        features = model.features(images)
    one, two = (with_new_classes(model, each, labels, ["truck", "ship"]) for each in (images, features))
    assert torch.equal(one.head.subcentroids, two.head.subcentroids)


def test_it_shares_nothing_with_the_old_model():
    model = classifier()
    larger = with_new_classes(model, *shots(), ["truck", "ship"])
    ours, theirs = ({v.data_ptr() for v in m.state_dict().values() if v.numel()} for m in (model, larger))
    assert not ours & theirs
    assert not larger.training
    assert with_new_classes(model.train(), *shots(), ["truck", "ship"]).training
    assert model.training


@pytest.mark.parametrize("number", [1, 2, 3])
def test_fewer_shots_than_sub_centroids_are_each_one_and_nothing_else(number):
    """What is left over repeats a shot: a random direction there could win images by chance."""
    model = classifier()
    images, labels = shots(number)
    larger = with_new_classes(model, images, labels, ["truck", "ship"])
    with torch.no_grad():
        embedded = model.embed(images)
    for c in range(2):
        own, vectors = embedded[labels == c], larger.head.subcentroids[OLD + c]
        torch.testing.assert_close((vectors @ own.T).amax(1), torch.ones(K))  # each is a shot
        torch.testing.assert_close((own @ vectors.T).amax(1), torch.ones(number))  # and each shot is there


def test_one_sub_centroid_is_the_mean_direction():
    model = classifier()
    images, labels = shots(9)
    larger = with_new_classes(model, images, labels, ["truck", "ship"], num_subcentroids=1)
    with torch.no_grad():
        means = class_means(model.embed(images), labels, 2)
    torch.testing.assert_close(larger.head.subcentroids[OLD:], means[:, None].expand(-1, K, -1))


def test_a_prototype_head_gets_the_mean_direction():
    model = classifier("cosine")
    images, labels = shots(9)
    larger = with_new_classes(model, images, labels, ["truck", "ship"])
    with torch.no_grad():
        torch.testing.assert_close(larger.head.prototypes[OLD:], class_means(model.embed(images), labels, 2))
    assert isinstance(larger.head.prototypes, torch.nn.Parameter)


def test_the_new_classes_are_found():
    """Well-separated features: old classes at their sub-centroids, new ones elsewhere."""
    head = SubCentroidHead(DIM, OLD, K, memory_size=0)
    places = 8 * unit(OLD + 2, DIM, seed=3)
    x = places.repeat_interleave(20, 0) + 0.1 * torch.randn(20 * (OLD + 2), DIM, generator=generator(4))
    y = torch.arange(OLD + 2).repeat_interleave(20)
    head.estimate(x[y < OLD], y[y < OLD])
    larger = extended_head(head, x[y >= OLD], y[y >= OLD] - OLD, 2)
    assert (larger(x).argmax(1) == y).all()
    assert larger.num_classes == OLD + 2


@pytest.mark.parametrize("spread", ["none", "frame"])
def test_saved_and_read_back(tmp_path, spread):
    settings = {"num_subcentroids": 2, "memory_size": 8, "spread": spread}
    model = classifier("dnc", **settings)
    card = ModelCard("tiny_resnet8", "dnc", settings, ["a", "b", "c"], [0.5] * 3, [0.2] * 3, 8)
    names = [f"new {c}" for c in range(14)]  # 17 classes of 2 are more than 32 dimensions hold at right angles
    images = torch.randn(28, 3, 8, 8, generator=generator(1))
    larger = with_new_classes(model, images, torch.arange(28) % 14, names)
    save_model(larger, card_with(card, names), tmp_path / "larger.safetensors")
    again, its_card = read_model(tmp_path / "larger.safetensors")
    assert its_card.classes == ["a", "b", "c", *names]
    with torch.no_grad():
        assert torch.equal(again(images), larger(images))


def test_more_classes_can_follow_and_training_can_go_on():
    model = classifier()
    twice = with_new_classes(with_new_classes(model, *shots(), ["a", "b"]), *shots(seed=5), ["c", "d"])
    assert twice.head.num_classes == OLD + 4
    x, y = torch.randn(14, twice.head.dim, generator=generator()), torch.arange(14) % (OLD + 4)
    twice.head.update(x, y)
    assert twice.head.usage().shape == (OLD + 4, K)
    assert set(twice.head.diagnostics()) == {"drift", "usage", "within_class_cosine"}
    assert twice.head.subcentroids.shape == twice.head.origin.shape


IMAGES, LABELS = shots()
BAD = [
    ({"names": []}, "names must be those of the new classes, each once, got []"),
    ({"names": ["a", "a"]}, "names must be those of the new classes, each once, got ['a', 'a']"),
    (
        {"images": IMAGES[0]},
        "images must be (S, 3, H, W), or features (S, 32), and labels (S,), got (3, 8, 8) and (10,)",
    ),
    (
        {"labels": LABELS[:4]},
        "images must be (S, 3, H, W), or features (S, 32), and labels (S,), got (10, 3, 8, 8) and (4,)",
    ),
    ({"labels": LABELS + 1}, "labels must lie in [0, 1] for 2 classes, found 2"),
    ({"labels": LABELS.float()}, "labels must be integers, got torch.float32"),
    ({"names": ["a", "b", "c"]}, "new class 'c' has no image: give at least one of each"),
    ({"num_subcentroids": 5}, "num_subcentroids must be 1 to 4, the head's K, got 5"),
    ({"num_subcentroids": 0}, "num_subcentroids must be 1 to 4, the head's K, got 0"),
    (
        {"images": torch.ones(10, 32)},
        "the images of new class 0 have no direction to be found in: are they blank?",
    ),
    (
        {"images": torch.full((10, 32), torch.nan)},
        "features contain NaN or infinity; has the training diverged, or mixed precision overflowed?",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input(changes, message):
    given = {"model": classifier(), "images": IMAGES, "labels": LABELS, "names": ["a", "b"]}
    assert complaint(with_new_classes, **{**given, **changes}) == message


def test_heads_that_take_no_class():
    assert complaint(with_new_classes, classifier("softmax"), *shots(), ["a", "b"]) == (
        "a SoftmaxHead scores classes by a learned matrix, in which a new class has no row: compare its features "
        "with class_means instead"
    )
    assert complaint(with_new_classes, classifier(scale_by="layernorm"), *shots(), ["a", "b"]) == (
        "this head puts its scores through a LayerNorm over the classes, which has learned a gain and a bias of "
        "each: a new class has none. Train with scale_by='temperature'"
    )


def test_a_name_that_is_taken():
    card = ModelCard("tiny_resnet8", "dnc", {}, ["cat", "dog"], [0.5] * 3, [0.2] * 3, 8)
    said = complaint(card_with, card, ["owl", "cat"])
    assert said == "the model has a class 'cat' already: give the new one another name"


# --- ways to read features ------------------------------------------------------------------------------------------


def test_class_means_of_long_and_short_vectors():
    x = torch.tensor([[100.0, 0.0], [0.0, 0.5], [-3.0, 0.0]])
    means = class_means(x, torch.tensor([0, 0, 2]), 4)
    half = 0.5**0.5
    torch.testing.assert_close(means, torch.tensor([[half, half], [0, 0], [-1, 0], [0, 0]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_votes_agree_with_a_loop(seed, neighbours):
    queries, references = unit(9, 5, seed=seed), unit(30, 5, seed=seed + 1)
    labels = torch.arange(30) % 4
    near, index = nearest_neighbours(queries, references, neighbours)
    votes = neighbour_votes(near, labels[index], 4)
    for m in range(9):
        order = sorted(range(30), key=lambda n: -float(queries[m] @ references[n]))[:neighbours]
        counts = torch.bincount(labels[order], minlength=4)
        assert torch.equal(votes[m].round().long(), counts)
        best = counts == counts.max()
        near = {c: sum(float(queries[m] @ references[n]) for n in order if labels[n] == c) for c in range(4)}
        assert votes[m].argmax() == max(best.nonzero().flatten().tolist(), key=near.get)


def test_all_vote_where_there_are_few():
    near, index = nearest_neighbours(unit(2, 3), unit(4, 3, seed=1), 50)
    assert index.sort().values.tolist() == [[0, 1, 2, 3]] * 2
    assert neighbour_votes(near, torch.tensor([0, 1, 1, 1])[index], 2).argmax(1).tolist() == [1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_area_is_the_one_under_the_curve_of_offsets(seed):
    truth = torch.randint(0, 5, (60,), generator=generator(seed))
    truth[:2] = torch.tensor([0, 4])
    scores = torch.randn(60, 5, generator=generator(seed + 1)) + 1.5 * F.one_hot(truth, 5)
    is_old = truth < 3
    lead = (scores[:, :3].amax(1) - scores[:, 3:].amax(1)).sort().values
    offsets = [-100.0, *((lead[1:] + lead[:-1]) / 2).tolist(), 100.0]
    points = []
    for offset in offsets:
        shifted = scores + torch.tensor([0.0, 0, 0, offset, offset])
        right = (shifted.argmax(1) == truth).double()
        points.append((float(right[~is_old].mean()), float(right[is_old].mean())))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert trade_off_area(scores, truth, 3) == pytest.approx(area, abs=1e-6)


def test_the_area_does_not_mind_an_offset():
    truth = torch.arange(50) % 5
    scores = torch.randn(50, 5, generator=generator()) + 2 * F.one_hot(truth, 5)
    moved = scores + torch.tensor([0.0, 0, 0, 3, 3])
    assert trade_off_area(moved, truth, 3) == pytest.approx(trade_off_area(scores, truth, 3))
    assert trade_off_area(scores, truth, 3) > 0.5
    assert trade_off_area(F.one_hot(truth, 5).float(), truth, 3) == 1


def test_ways_to_read_a_large_part_in_common():
    """All features share a long vector: of raw directions it is nearly all, of centred ones nothing."""
    truth = torch.arange(200) % 5
    rare = 0.3 * F.one_hot(truth, 8) + 0.05 * torch.randn(200, 8, generator=generator())
    read = {}
    for shift in (0.0, 100.0):
        x = rare + torch.tensor([0.0] * 7 + [shift])
        seen, labels = x[truth < 3], truth[truth < 3]
        reading = _Reading(SoftmaxHead(8, 3), (seen, labels), x, 3, 2)
        ways = dict(reading(x[truth >= 3], truth[truth >= 3] - 3))
        read[shift] = {way: (scores.argmax(1) == truth).double().mean() for way, scores in ways.items()}
    torch.testing.assert_close(read[0.0]["centred"], read[100.0]["centred"], rtol=0, atol=0.02)
    assert read[0.0]["centred"] > 0.97
    assert set(read[0.0]) == {"", "means", "centred", "knn"}


# --- measure --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight():
    """A network for eight digits, its sub-centroids estimated; its card and data."""
    recipe = quick(leave_out=(3, 8))
    parts = prepare_data(recipe)
    card = make_card(recipe, parts)
    torch.manual_seed(0)
    model = card.build().eval()
    loader = DeviceLoader(parts["train"], 300, card.mean, card.std)
    with torch.no_grad():
        model.train()  # a pass gives the BatchNorms their statistics
        for images, _ in loader:
            model.features(images)
    model.eval().refresh(loader)
    return model, card, parts


def test_measure_is_what_a_user_gets(eight):
    """The head's own way, all left-out training images: by the public function and by hand."""
    model, card, parts = eight
    result = measure(model, card, parts, dataset="digits", shots=(5, 10), draws=2)
    train, test = load("digits")
    normalise = lambda data: next(iter(DeviceLoader(data, len(data), card.mean, card.std)))  # noqa: E731
    images, labels = normalise(train.without([0, 1, 2, 4, 5, 6, 7, 9]))
    larger = with_new_classes(model, images, labels, ["3", "8"])
    asked, truth = normalise(test)
    order = torch.tensor([0, 1, 2, 8, 3, 4, 5, 6, 9, 7])  # where each digit is in the larger model
    with torch.no_grad():
        right = larger(asked).argmax(1) == order[truth]
        before = model(asked).argmax(1) == order[truth]
    is_new = (truth == 3) | (truth == 8)
    assert result["new_classes_all"] == pytest.approx(100 * right[is_new].double().mean().item())
    assert result["old_classes_all"] == pytest.approx(100 * right[~is_new].double().mean().item())
    assert result["every_class_all"] == pytest.approx(100 * right.double().mean().item())
    assert result["old_classes_before"] == pytest.approx(100 * before[~is_new].double().mean().item())
    assert result["old_classes_before"] >= result["old_classes_all"]


def test_measure_has_its_keys_and_repeats(eight):
    model, card, parts = eight
    first = measure(model, card, parts, dataset="digits", shots=(5, 10), draws=3)
    names = {
        f"{what}_{shot}{way}"
        for what in ("new_classes", "old_classes", "harmonic", "every_class", "area")
        for shot in (5, 10, "all")
        for way in ("", "_one", "_means", "_centred", "_knn")
    }
    assert set(first) == names | {"new_classes", "new_classes_sd", "old_classes_before"}
    assert first["new_classes"] == first["new_classes_10"]
    assert all(0 <= value <= 100 for value in first.values())
    assert first == measure(model, card, parts, dataset="digits", shots=(5, 10), draws=3)
    assert first["new_classes"] > 20  # a fifth of the test images are new, and untrained features see shapes


def test_every_kind_of_head_can_be_measured(eight):
    model, card, parts = eight
    dim = model.head.dim
    for head, ways in ((SoftmaxHead(dim, 8), 3), (CosineHead(dim, 8), 3)):
        result = measure(ImageClassifier(model.backbone, head), card, parts, dataset="digits", shots=(10,), draws=1)
        assert len(result) == 3 + 2 * 5 * (1 + ways)
        same = result["new_classes_10"] == result["new_classes_10_means"]
        assert same or isinstance(head, CosineHead)
        assert result["new_classes_sd"] == 0


def test_what_cannot_be_measured(eight):
    model, card, parts = eight
    full = dataclasses.replace(card, classes=[str(digit) for digit in range(10)])
    said = complaint(measure, model, full, parts, dataset="digits")
    assert said == "the model knows all classes of digits: train it with leave_out"
    other = dataclasses.replace(card, classes=["cat", "dog"])
    said = complaint(measure, model, other, parts, dataset="digits")
    assert said == "the model's classes are not those of digits, in their order: cat, dog"
    few = int((load("digits")[0].labels == 3).sum())
    said = complaint(measure, model, card, parts, dataset="digits", shots=(500,))
    assert said == f"new class 0 has {few} training images to draw from, fewer than 500 shots"
