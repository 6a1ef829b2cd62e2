import json
import shutil

import numpy as np
import pytest
import torch
from helpers import trained
from PIL import Image
from scene_runs import trained_scenes

from dnc_lib.exemplars import Exemplar, Exemplars
from dnc_lib.explain import Case, Explanation, check_pixel, explain
from dnc_lib.explain_figure import explanation_figure
from dnc_lib.metrics import IGNORED
from dnc_lib.models import ImageClassifier, Segmenter, evaluating
from dnc_lib.open_runs import open_run
from dnc_lib.places import axes
from dnc_lib.predictions import predict_labels


def made_up(model, names=None):
    """Exemplars that were not searched: image c of class c, sub-centroid k at row k."""
    number, each = model.head.subcentroids.shape[:2]
    place = (lambda k: (k, 2 * k)) if isinstance(model, Segmenter) else (lambda k: ())
    cases = tuple(tuple(Exemplar(c, f"{c}.png", 0.5, *place(k)) for k in range(each)) for c in range(number))
    return Exemplars(tuple(names or (f"class{c}" for c in range(number))), cases, "data", "model")


def images(*size, seed=0):
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return Segmenter.build(
        "tiny_resnet8", "fcn", 5, channels=16, head_settings={"num_subcentroids": 4, "memory_size": 0}
    )


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ImageClassifier.build("tiny_resnet8", 5, head_settings={"num_subcentroids": 4, "memory_size": 0})


# --- the evidence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_of_an_image_all_similarities_agree_with_the_head(classifier, seed):
    image, exemplars = images(16, 16, seed=seed), made_up(classifier)
    why = explain(classifier, image, exemplars, cases=9)
    with torch.no_grad(), evaluating(classifier):
        similarity = classifier.head.similarities(classifier.features(image[None]))[0]  # (C, K)
        scores = classifier(image[None])[0]
    assert why.predicted == int(scores.argmax())
    assert why.runner_up == int(scores.topk(2).indices[1])
    assert why.shares == pytest.approx(scores.softmax(0).tolist(), abs=1e-5)
    assert len(why.cases) == 8  # all there are
    for label in (why.predicted, why.runner_up):
        own = why.of(label)
        assert [case.similarity for case in own] == pytest.approx(sorted(similarity[label].tolist())[::-1], abs=1e-5)
        for case in own:
            assert case.similarity == pytest.approx(float(similarity[label, case.subcentroid]), abs=1e-5)
            assert case.exemplar is exemplars.cases[label][case.subcentroid]
    best = similarity.amax(1).sort(descending=True).values
    assert why.margin == pytest.approx(float(best[0] - best[1]), abs=1e-5)
    assert (why.at, why.centre, why.map_class) == (None, None, None)


@pytest.mark.parametrize("at", [(0, 0), (13, 30), (39, 55)])
def test_of_a_pixel_it_is_the_place_that_it_lies_in(segmenter, at):
    image = images(20, 28)  # the network sees half of the scene's 40 x 56
    why = explain(segmenter, image, made_up(segmenter), at=at, size=(40, 56))
    with torch.no_grad(), evaluating(segmenter):
        embedded = segmenter.embed(image[None])[0]
        similarity = torch.einsum("ckd,dhw->hwck", segmenter.head.subcentroids, embedded)
    h, w = similarity.shape[:2]
    row, column = at[0] * h // 40, at[1] * w // 56  # the grid is even here
    own = similarity[row, column]
    assert why.predicted == int(own.amax(1).argmax())
    assert why.of(why.predicted)[0].similarity == pytest.approx(float(own.max()), abs=1e-5)
    assert why.at == at
    down, across = axes((40, 56), (20, 28), (h, w))
    assert (down.place(why.centre[0]), across.place(why.centre[1])) == (row, column)
    assert max(abs(a - b) for a, b in zip(at, why.centre, strict=True)) <= max(40 // h, 56 // w)
    assert why.map_class == predict_labels(segmenter, image, (40, 56))[at]


def test_the_label_map_may_say_something_else_and_then_it_is_said(segmenter):
    exemplars, image = made_up(segmenter), images(32, 32, seed=4)
    both = [explain(segmenter, image, exemplars, at=(row, column)) for row in range(0, 32, 3) for column in range(32)]
    differing = [why for why in both if why.map_class != why.predicted]
    assert 0 < len(differing) < len(both)
    why = differing[0]
    assert why.caveat == (
        f"The label map, which blends the scores of neighbouring places, has class{why.map_class} at this pixel: it "
        f"lies near a border"
    )
    assert why.caveat in why.lines()
    assert all(other.caveat == "" for other in both if other.map_class == other.predicted)


def test_without_a_pixel_it_is_the_centre(segmenter):
    assert explain(segmenter, images(20, 30), made_up(segmenter)).at == (10, 15)


def test_the_caller_keeps_mode_and_gradients(segmenter):
    segmenter.train()
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    explain(segmenter, images(16, 16), made_up(segmenter))
    assert segmenter.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())


# --- in words, as data, as a figure ---------------------------------------------------------------------------------

CASES = (
    Case(1, 3, 0.9, Exemplar(7, "a.png", 0.95, 12, 30)),
    Case(1, 0, 0.4, Exemplar(2, "b.png", 0.8, 1, 2)),
    Case(0, 2, 0.75, None),
)
WHY = Explanation(("sky", "tree"), 4, 1, 0, (0.2, 0.8), CASES, (20, 40), (5, 6), (4, 6), 1, 0)


def test_in_words():
    assert WHY.rule == (
        "IF the pixel is nearer to case 3 of tree (a.png, row 12, column 30) than to any of the other 7 cases "
        "THEN tree"
    )
    assert WHY.change == (
        "It would be sky if its similarity to case 2 of sky (no training image is left to show it) were more than "
        "0.150 higher"
    )
    assert WHY.lines("c.png") == [
        "c.png, row 5, column 6 (labelled sky): tree 80.0 %, then sky 20.0 %",
        WHY.rule,
        WHY.change,
        "   0.900  case 3 of tree (a.png, row 12, column 30)",
        "   0.400  case 0 of tree (b.png, row 1, column 2)",
        "   0.750  case 2 of sky (no training image is left to show it)",
    ]
    fields = {"at": None, "centre": None, "map_class": None, "truth": None}
    whole = Explanation(**{**vars(WHY), **fields})
    assert whole.rule.startswith("IF it is nearer to")
    assert whole.lines()[0] == "tree 80.0 %, then sky 20.0 %"
    assert Explanation(**{**vars(WHY), "truth": IGNORED}).subject("c.png") == "c.png, row 5, column 6 (not labelled)"


def test_as_data():
    data = json.loads(json.dumps(WHY.to_dict(), allow_nan=False))
    assert data["predicted"] == "tree"
    assert data["runner_up"] == "sky"
    assert data["margin"] == pytest.approx(0.15)
    assert data["at"] == [5, 6]
    assert data["map_class"] == "tree"
    assert data["truth"] == "sky"
    assert data["shares"] == [{"class": "tree", "share": 0.8}, {"class": "sky", "share": 0.2}]
    assert data["cases"][0] == {
        "class": "tree", "label": 1, "subcentroid": 3, "similarity": 0.9,
        "exemplar": {"image": 7, "name": "a.png", "similarity": 0.95, "row": 12, "column": 30},
    }  # fmt: skip
    assert data["cases"][2]["exemplar"] is None
    assert "truth" not in Explanation(**{**vars(WHY), "truth": None}).to_dict()


def test_the_figure_shows_each_training_image_once_and_the_picture():
    asked = []

    def read(i):
        asked.append(i)
        return Image.new("RGB", (40, 20), {7: (255, 0, 255), 2: (0, 255, 0)}[i])

    drawn = np.asarray(explanation_figure(WHY, Image.new("RGB", (40, 20), (0, 255, 255)), read, "c.png"))
    assert sorted(asked) == [2, 7]
    areas = {colour: int((drawn == colour).all(2).sum()) for colour in ((255, 0, 255), (0, 255, 0), (0, 255, 255))}
    assert min(areas.values()) > 5000
    assert (drawn[[0, -1]] == 255).all()  # nothing runs out of the figure
    assert (drawn[:, [0, -1]] == 255).all()


def test_a_longer_bar_is_a_larger_similarity():
    drawn = np.asarray(explanation_figure(WHY, Image.new("RGB", (40, 20)), lambda i: Image.new("RGB", (40, 20))))
    bars = [
        row for row in (drawn == (213, 94, 0)).all(2) if row.sum() > 80
    ]  # of both cases of the class, side by side
    lengths = np.flatnonzero(np.diff(np.pad(bars[0].astype(int), 1)))
    first, second = lengths[1] - lengths[0], lengths[3] - lengths[2]
    assert first / second == pytest.approx(0.9 / 0.4, rel=0.05)


def test_long_names_do_not_run_out_of_the_figure():
    long = Exemplar(0, "a_file_with_a_name_that_does_not_end_for_quite_a_while_and_then_some.png", 0.9, 1, 2)
    names = ("sky " * 30, "tree " * 40)
    why = Explanation(**{**vars(WHY), "classes": names, "cases": (Case(1, 0, 0.9, long), Case(0, 0, 0.1, long))})
    drawn = np.asarray(
        explanation_figure(why, Image.new("RGB", (9, 9)), lambda i: Image.new("RGB", (9, 9)), "x" * 300)
    )
    assert (drawn[:, -1] == 255).all()
    assert (drawn[:, :10] == 255).all()


# --- of real runs ---------------------------------------------------------------------------------------------------


def test_a_test_image_of_digits_is_explained_by_training_images(tmp_path):
    opened = open_run(shutil.copytree(trained().folder, tmp_path / "run"))
    exemplars = opened.exemplars()
    test, train = opened.parts["test"], opened.parts["train"]
    right = 0
    for i in range(20):
        why = explain(opened.model, opened.prepare(Image.fromarray(test.images[i].numpy())), exemplars)
        right += why.predicted == int(test.labels[i])
        nearest = why.of(why.predicted)[0]
        assert int(train.labels[nearest.exemplar.image]) == why.predicted
    assert right >= 17


def test_an_exemplar_is_as_near_to_its_sub_centroid_as_it_says():
    opened = open_run(trained_scenes().folder)
    train = opened.parts["train"]
    for c, own in enumerate(opened.exemplars().cases):
        for k, case in enumerate(own):
            if case is not None and k == 0:
                image = opened.prepare(train.read(case.image)[0])
                at = case.row, case.column
                why = explain(opened.model, image, made_up(opened.model), at=at, size=train.masks.shape[1:], cases=3)
                assert why.centre == (case.row, case.column)
                if c in (why.predicted, why.runner_up):
                    (found,) = [each for each in why.of(c) if each.subcentroid == k]
                    assert found.similarity == pytest.approx(case.similarity, abs=1e-4)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_explained(segmenter, classifier):
    exemplars = made_up(segmenter)
    with pytest.raises(
        ValueError, match=r"^row 20 lies outside the image, which has 20 rows and 30 columns, counted from 0$"
    ):
        explain(segmenter, images(20, 30), exemplars, at=(20, 3))
    with pytest.raises(ValueError, match=r"^column -1 lies outside the image"):
        check_pixel((3, -1), (20, 30))
    with pytest.raises(
        ValueError, match=r"this model classifies whole images: there is no pixel \(1, 2\) to explain"
    ):
        explain(classifier, images(16, 16), made_up(classifier), at=(1, 2))
    with pytest.raises(ValueError, match=r"image must be one image \(3, h, w\), got \(1, 3, 16, 16\)"):
        explain(classifier, images(16, 16)[None], made_up(classifier))
    with pytest.raises(ValueError, match="cases must be 1 or more, got 0"):
        explain(classifier, images(16, 16), made_up(classifier), cases=0)
    other = Exemplars(exemplars.classes[:4], exemplars.cases[:4], "", "")
    with pytest.raises(ValueError, match="the exemplars are another model's: this one has 5 x 4 sub-centroids"):
        explain(segmenter, images(16, 16), other)
    for head, name in (("softmax", "SoftmaxHead"), ("cosine", "CosineHead")):
        with pytest.raises(ValueError, match=f"^a {name} has no sub-centroids, so no training image stands for"):
            explain(ImageClassifier.build("tiny_resnet8", 5, head), images(16, 16), exemplars)
    single = ImageClassifier.build("tiny_resnet8", 1, head_settings={"memory_size": 0})
    with pytest.raises(ValueError, match="with a single class there is nothing to explain"):
        explain(single, images(16, 16), made_up(single))
