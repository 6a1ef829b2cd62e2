import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import quick, trained, write_class_folders
from PIL import Image
from scene_runs import trained_on_files, trained_scenes

from dnc_lib import open_runs
from dnc_lib.__main__ import main
from dnc_lib.anchoring import anchor
from dnc_lib.exemplars import Exemplar, Exemplars
from dnc_lib.explain import Case, Explanation, check_pixel, explain
from dnc_lib.explain_figure import explanation_figure
from dnc_lib.heat_maps import HeatMap
from dnc_lib.metrics import IGNORED
from dnc_lib.models import ImageClassifier, Segmenter, evaluating
from dnc_lib.open_runs import open_run
from dnc_lib.places import axes
from dnc_lib.predictions import predict_labels
from dnc_lib.training import train


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


# --- heat maps ------------------------------------------------------------------------------------------------------


def test_the_maps_of_a_case_share_out_its_similarity(classifier):
    image, gallery = images(16, 16), [images(16, 16, seed=10 + i) for i in range(5)]
    why = explain(classifier, image, made_up(classifier), look=gallery.__getitem__)
    with torch.no_grad(), evaluating(classifier):
        x, *others = classifier.embed(torch.stack([image, *gallery]))
    for case in why.cases:
        assert float(case.here.values.mean()) == pytest.approx(case.similarity, abs=1e-5)
        assert float(case.there.values.mean()) == pytest.approx(float(x @ others[case.exemplar.image]), abs=1e-5)
        assert case.here.exact
        assert case.there.exact
    assert why.map_note == "The heat maps show what each place adds; the mean over the places is the similarity"
    assert explain(classifier, image, made_up(classifier)).map_note == ""


def test_of_an_anchored_model_both_maps_share_out_the_same_number(tmp_path):
    opened = open_run(shutil.copytree(trained().folder, tmp_path / "run"))
    exemplars, _ = anchor(opened.model, opened.loader("train"))
    train = opened.parts["train"]

    def look(i):
        return opened.prepare(Image.fromarray(train.images[i].numpy()))

    image = opened.prepare(Image.fromarray(opened.parts["test"].images[0].numpy()))
    for case in explain(opened.model, image, exemplars, look=look).cases:
        for heat in (case.here, case.there):
            assert float(heat.values.mean()) == pytest.approx(case.similarity, abs=1e-4)


def test_of_a_pixel_the_map_has_its_similarity_where_it_lies(segmenter):
    image = images(20, 28)
    why = explain(segmenter, image, made_up(segmenter), at=(3, 20), look=lambda i: images(24, 24, seed=i))
    for case in why.cases:
        down, across = axes((20, 28), (20, 28), tuple(case.here.values.shape))
        there = case.here.values[down.place(3), across.place(20)]
        assert float(there) == pytest.approx(case.similarity, abs=1e-5)
        assert case.there.on_pixels().shape == (24, 24)
    assert why.map_note == "The heat maps show each place's own similarity to the case"


def test_without_places_it_says_so():
    settings = {"num_subcentroids": 2, "memory_size": 0}
    model = ImageClassifier.from_timm("vit_tiny_patch16_224", 3, head_settings=settings, img_size=32, depth=1)
    why = explain(model, images(32, 32), made_up(model), look=lambda i: images(32, 32))
    assert all(case.maps == {} for case in why.cases)
    assert (
        why.lines()[-1]
        == why.map_note
        == why.to_dict()["no_maps"]
        == (
            "VisionTransformer classifies by its class token and pools no places: there is no map of where its "
            "similarity comes from"
        )
    )
    explanation_figure(why, Image.new("RGB", (32, 32)), lambda i: Image.new("RGB", (32, 32)))


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


def heat(*rows):
    return HeatMap(torch.tensor(rows), 0.5, 0.0, (4, 4), (4, 4))


def mapped(cases=CASES, **fields):
    """The explanation with maps: the left half of the image is hot, of exemplars the upper half."""
    here, there = heat([1.0, 0.0], [1.0, 0.0]), heat([1.0, 1.0], [0.0, 0.0])
    cases = tuple(case._replace(here=here, there=case.exemplar and there) for case in cases)
    return Explanation(**{**vars(WHY), "cases": cases, "at": None, "centre": None, "map_class": None, **fields})


def test_the_maps_as_data():
    data = json.loads(json.dumps(mapped().to_dict(), allow_nan=False))
    first, _, last = data["cases"]
    assert first["maps"]["here"]["values"] == [[1, 0], [1, 0]]
    assert first["maps"]["there"]["values"] == [[1, 1], [0, 0]]
    assert first["maps"]["here"]["exact"] is True
    assert list(last["maps"]) == ["here"]  # it has no exemplar
    assert "no_maps" not in data


def test_the_figure_shows_the_hot_half_of_each_picture():
    white = Image.new("RGB", (32, 32), "white")
    plain = np.asarray(explanation_figure(mapped(), white, lambda i: white)).astype(int)
    orange, blue = plain[..., 0] > plain[..., 2] + 60, plain[..., 2] > plain[..., 0] + 60
    top, left = 117, 220  # of the large map, beside the picture
    for hot, down in ((orange, 0), (blue, 247)):
        large = hot[top + down : top + down + 192, left : left + 192]
        assert large[:, :60].all()
        assert not large[:, -30:].any()
    case = orange[top : top + 128, 568 : 568 + 128]
    assert case[:40, :100].all()
    assert not case[-20:].any()


def test_the_maps_lie_on_what_the_model_sees():
    """Of a wide picture the model sees the middle; the map must not be stretched over all of it."""
    asked = []

    def see(picture):
        asked.append(picture.size)
        return picture.crop((20, 0, 40, 20))

    wide = Image.new("RGB", (60, 20), "white")
    explanation_figure(mapped(), wide, lambda i: wide, see=see)
    assert asked == [(60, 20)] * 3  # the picture, and two exemplars


def test_a_map_that_misses_the_similarity_says_so_in_the_figure(monkeypatch):
    said = []
    monkeypatch.setattr("dnc_lib.explain_figure.wrapped", lambda text, *_: said.append(text) or [text])
    rough = HeatMap(torch.ones(2, 2), 0.5, 0.25, (4, 4), (4, 4))
    far = HeatMap(torch.ones(2, 2), 0.1, 0.0, (4, 4), (4, 4))  # the exemplar is not the sub-centroid
    near = [case._replace(there=heat([case.similarity] * 2, [case.similarity] * 2)) for case in CASES]
    near = [case._replace(there=case.there and HeatMap(case.there.values, case.similarity, 0.0, (4, 4), (4, 4)))
            for case in near]  # fmt: skip
    white = Image.new("RGB", (8, 8), "white")
    for cases, words in (
        ([case._replace(here=rough, there=None) for case in CASES], "to first order, so the mean of a map misses"),
        ([case._replace(here=far, there=far) for case in CASES], "of a case's image, to the explained image itself"),
        ([case._replace(here=case.there) for case in near], "the mean of a map is the bar beside it"),
    ):
        why = Explanation(**{**vars(mapped()), "cases": tuple(cases)})
        explanation_figure(why, white, lambda i: white)
        assert words in said[-1]


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


def test_a_head_that_learns_how_to_weigh_the_classes_is_refused():
    settings = {"memory_size": 0, "scale_by": "layernorm"}
    model = ImageClassifier.build("tiny_resnet8", 5, head_settings=settings)
    with pytest.raises(
        ValueError,
        match=r"^this model's class scores go through a LayerNorm over the classes, whose learned gain and bias "
        r"decide too: its prediction need not be the class of the nearest case, so no case explains it; train with "
        r"scale_by temperature to get explanations$",
    ):
        explain(model, images(16, 16), made_up(model))


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(trained().folder, tmp_path / "run", ignore=shutil.ignore_patterns("exemplars.json"))


@pytest.fixture
def streets(tmp_path):
    """A copy of a run on scenes on disk and of its data, and the words that say where that is."""
    folder = trained_on_files().folder
    copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("exemplars.json"))
    shutil.copytree(folder.parent / "streets", tmp_path / "streets")
    return copy, ["--data-root", tmp_path, "--workers", 0]


def asked(capsys, *words, status=0):
    """What ``dnc explain`` says, on stdout and on stderr."""
    assert main(["explain", *map(str, words), "--quiet"]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out.splitlines(), err.splitlines()


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "CMYK", "P", "1"])
@pytest.mark.parametrize("size", [(8, 8), (300, 41)])
def test_images_of_every_mode_and_size_are_explained(capsys, run, tmp_path, mode, size):
    grey = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[::-1]) * 5
    picture = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(grey.astype(np.uint8)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    lines, errors = asked(capsys, run, path, "--output", tmp_path / "why.png")
    assert errors == []
    assert lines[0].startswith(f"{path}: ")
    why = json.loads((tmp_path / "why.json").read_text())
    assert why["size"] == [size[1], size[0]]
    assert why["cases"][0]["maps"]["here"]["exact"] is True


def test_pictures_of_class_folders_are_shown_as_the_model_sees_them(capsys, tmp_path):
    write_class_folders(tmp_path / "mine", size=30)
    recipe = quick(dataset="mine", reader="files", backbone="resnet18", image_size=64, crop_pct=0.75, epochs=1,
                   batch_size=12, num_subcentroids=2)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run this short says that it is
        folder = train(recipe, tmp_path, tmp_path / "runs", progress=False).folder
    wide = Image.new("RGB", (90, 30), (40, 40, 40))
    wide.paste((200, 60, 60), (30, 0, 60, 30))
    wide.save(tmp_path / "wide.png")
    words = [folder, tmp_path / "wide.png", "--output", tmp_path / "why.png", "--data-root", tmp_path, "--workers", 0]
    assert asked(capsys, *words)[1] == []
    why = json.loads((tmp_path / "why.json").read_text())
    assert why["size"] == [30, 90]
    for case in why["cases"]:
        assert case["exemplar"]["name"].endswith(".png")
        assert case["maps"]["here"]["places"] == [2, 2]
        values = case["maps"]["here"]["values"]
        assert np.mean(values) == pytest.approx(case["similarity"], abs=1e-4)
    assert {case["class"] for case in why["cases"]} == {why["predicted"], why["runner_up"]}
    with Image.open(tmp_path / "why.png") as drawn:
        assert drawn.width > 1000


def test_what_is_no_image(capsys, run, tmp_path):
    (tmp_path / "a.png").write_text("not one")
    where = "--output", tmp_path / "why.png"
    for which, words in (
        (tmp_path / "a.png", f"dnc: {tmp_path}/a.png cannot be read as an image (no format that Pillow knows)"),
        (tmp_path / "b.png", f"dnc: there is no image {tmp_path}/b.png"),
        (tmp_path, f"dnc: {tmp_path} is a folder: name the images in it, for instance {tmp_path}/*.png"),
        (99999, "dnc: there is no test image 99999: digits, test has 360, counted from 0"),
    ):
        lines, errors = asked(capsys, run, which, *where, status=2)
        assert lines == []
        assert len(errors) == 1
        assert re.fullmatch(re.escape(words).replace("360", r"\d+"), errors[0])
    assert not (tmp_path / "why.png").exists()


def test_exemplars_are_made_once_and_not_searched_anew(capsys, run, tmp_path, monkeypatch):
    words = [run, 3, "--output", tmp_path / "why.png"]
    assert not (run / "exemplars.json").exists()
    first, errors = asked(capsys, *words)
    assert errors == []
    kept = (run / "exemplars.json").read_bytes()

    def searched(*_, **__):
        raise AssertionError("searched anew")

    monkeypatch.setattr(open_runs, "find_exemplars", searched)
    again, errors = asked(capsys, *words)
    assert (again, errors) == (first, [])
    assert (run / "exemplars.json").read_bytes() == kept


def test_an_exemplar_that_cannot_be_read_when_it_is_shown(capsys, streets, tmp_path):
    folder, where = streets
    words = [folder, 0, "--output", tmp_path / "why.png", *where]
    asked(capsys, *words)
    why = json.loads((tmp_path / "why.json").read_text())
    shown = tmp_path / "streets" / "images" / "train" / why["cases"][0]["exemplar"]["name"]
    size = shown.stat().st_size
    shown.write_bytes(b"x" * size)  # of the same length: the data's digest does not see it
    (tmp_path / "why.png").unlink()
    lines, errors = asked(capsys, *words, status=2)
    assert lines == []
    (line,) = errors
    assert line.startswith(f"dnc: {shown} ")
    assert "no format that Pillow knows" in line
    assert not (tmp_path / "why.png").exists()
    shown.unlink()  # and now it has moved: another takes its place
    (shown.parents[2] / "masks" / "train" / shown.name).unlink()
    lines, errors = asked(capsys, *words)
    (line,) = errors
    assert line == (
        f"dnc: warning: the training image {shown.name}, an exemplar, is not where it was (put it back to get the "
        f"same exemplars again): the exemplars are searched anew"
    )
    assert (tmp_path / "why.png").exists()


def test_the_command_imports_what_it_needs(run, tmp_path):
    script = (
        "import sys; from dnc_lib.__main__ import main\n"
        "def heavy(): print(*sorted({'timm', 'matplotlib', 'sklearn'} & set(sys.modules)), '.', file=sys.stderr)\n"
        "main(['recipes']); heavy(); main(sys.argv[1:]); heavy()"
    )
    words = ["explain", run, 0, "--output", tmp_path / "why.png", "--quiet"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True)
    before, after = done.stderr.splitlines()
    assert before == "."
    assert "matplotlib" not in after
    assert (tmp_path / "why.png").exists()
