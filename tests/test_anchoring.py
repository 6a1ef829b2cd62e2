import json

import pytest
import torch
import torch.nn.functional as F
from helpers import quick, random_images, trained

from dnc_lib.__main__ import main
from dnc_lib.anchoring import anchor
from dnc_lib.comparisons import compare
from dnc_lib.data import DeviceLoader
from dnc_lib.data.digit_scenes import make_digit_scenes
from dnc_lib.data.scene_loader import SceneLoader
from dnc_lib.evaluation import embed_dataset
from dnc_lib.exemplars import Exemplars, find_exemplars, model_digest
from dnc_lib.metrics import IGNORED
from dnc_lib.models import ImageClassifier, Segmenter
from dnc_lib.open_runs import open_run
from dnc_lib.pixels import labels_at
from dnc_lib.recipes import digits_resnet8
from dnc_lib.training import train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")

STATS = ([0.5] * 3, [0.25] * 3)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ImageClassifier.build("cifar_resnet8", 4, head_settings={"num_subcentroids": 3, "memory_size": 0})


def test_each_sub_centroid_is_the_embedding_of_the_image_that_was_nearest(classifier):
    data = random_images(40, 4, 8)
    loader = DeviceLoader(data, 16, *STATS)
    before = find_exemplars(classifier, loader, data)
    start = classifier.head.subcentroids.clone()
    exemplars, moved = anchor(classifier, loader)
    embeddings, labels = embed_dataset(classifier, loader)
    for c, own in enumerate(exemplars.cases):
        assert len({case.image for case in own}) == 3  # an image stands for one sub-centroid alone
        for k, case in enumerate(own):
            assert (case.image, case.similarity) == (before.cases[c][k].image, 1.0)
            assert labels[case.image] == c
            torch.testing.assert_close(classifier.head.subcentroids[c, k], embeddings[case.image])
    torch.testing.assert_close(
        torch.tensor(moved), F.cosine_similarity(start, classifier.head.subcentroids, dim=-1).mean()
    )
    assert exemplars.model == model_digest(classifier) != before.model
    assert (classifier.head.moved).all()


def test_to_anchor_again_changes_nothing(classifier):
    loader = DeviceLoader(random_images(40, 4, 8), 16, *STATS)
    first, _ = anchor(classifier, loader)
    again, moved = anchor(classifier, loader)
    assert [[case.image for case in own] for own in again.cases] == [[c.image for c in own] for own in first.cases]
    assert moved == pytest.approx(1, abs=1e-5)


def test_a_sub_centroid_without_an_image_stays(classifier):
    data = random_images(40, 4, 8).subset(torch.tensor([0, 1, 2, 4, 5, 6]))  # class 3 has none, the others have two
    before = classifier.head.subcentroids.clone()
    exemplars, _ = anchor(classifier, DeviceLoader(data, 4, *STATS))
    left = torch.tensor([[case is None for case in own] for own in exemplars.cases])
    assert left.sum(1).tolist() == [1, 1, 1, 3]
    assert torch.equal((classifier.head.subcentroids == before).all(-1), left)
    assert torch.equal(classifier.head.moved, ~left)


def test_pixels_of_scenes():
    torch.manual_seed(0)
    model = Segmenter.build("cifar_resnet8", "fcn", 11, channels=16, head_settings={"num_subcentroids": 2}).eval()
    scenes = make_digit_scenes(12, 1, 54)["train"]
    loader = SceneLoader(scenes, 1, *STATS)
    exemplars, _ = anchor(model, loader)
    found = {}
    with torch.no_grad():
        for number, (images, masks) in enumerate(loader):
            embedded = model.embed(images)[0]
            places = labels_at(masks, embedded.shape[1:], model.multiple, images.shape[2:])[0]
            found[number] = embedded[:, places != IGNORED].T  # (places, D)
    shown = [(c, k, case) for c, own in enumerate(exemplars.cases) for k, case in enumerate(own) if case is not None]
    assert len(shown) > 11
    for c, k, case in shown:
        assert (found[case.image] @ model.head.subcentroids[c, k]).max() == pytest.approx(1, abs=1e-5)
        assert scenes.read(case.image)[1][case.row, case.column] == c


def test_a_training_that_ends_in_anchors(tmp_path):
    """The run folder says which images they are, and `dnc explain` reads that."""
    run = train(quick(epochs=2, train_limit=400, anchor=True), output=tmp_path, progress=False)
    report = run.manifest["anchoring"]
    assert run.manifest["final"]["accuracy"] == report["after"]
    assert run.manifest["curve"][-1]["accuracy"] == report["before"]
    assert 0 < report["similarity"] < 1
    opened = open_run(run.folder)
    stored = Exemplars.from_dict(json.loads((run.folder / "exemplars.json").read_text()))
    assert opened.exemplars() == stored  # nothing is searched: the digests agree
    assert all(case.similarity == 1 for own in stored.cases for case in own)
    embeddings, _ = embed_dataset(opened.model, opened.loader("train"))
    chosen = torch.tensor([[case.image for case in own] for own in stored.cases])
    torch.testing.assert_close(embeddings[chosen], opened.model.head.subcentroids)


def test_the_command_tells_the_accuracy_before_and_after(tmp_path, capsys):
    words = ["train", "digits_resnet8", "--epochs", "1", "--train-limit", "200", "--anchor", "--quiet"]
    assert main([*words, "--momentum", "0.5", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "digits_resnet8_dnc_seed0" / "manifest.json").read_text())["anchoring"]
    wanted = (
        f"accuracy {report['after']:.2f} % (before its sub-centroids became training images {report['before']:.2f})"
    )
    assert wanted in capsys.readouterr().out


def test_in_the_last_epochs_they_stand_at_images_and_the_network_goes_on(monkeypatch, tmp_path):
    from dnc_lib import fitting

    seen = []

    def watching(model, loader, **settings):
        seen.append(model.head.updates.item())
        return anchor(model, loader, **settings)

    monkeypatch.setattr(fitting, "anchor", watching)
    moved = []
    update = fitting.Fitting._update_head

    def watched(self, outcomes):
        before = self.model.head.subcentroids.clone()
        update(self, outcomes)
        moved.append(not torch.equal(before, self.model.head.subcentroids))

    monkeypatch.setattr(fitting.Fitting, "_update_head", watched)
    recipe = quick(epochs=3, train_limit=200, anchor=True, anchor_epochs=2, memory_size=0)
    run = train(recipe, output=tmp_path, progress=False)
    steps = len(moved) // 3
    assert moved == [True] * steps + [False] * (2 * steps)
    assert len(seen) == 2  # at the beginning of each of the last two epochs
    assert run.manifest["start_kept"] == 0
    assert run.model()[0].head.frozen is False


def test_estimated_anew_in_the_last_epochs(tmp_path):
    """Random until then, and sub-centroids of the data afterwards: no update ever moved them."""
    recipe = quick(epochs=3, train_limit=200, update_after=10**6, refresh_epochs=1, memory_size=0)
    with_refresh = train(recipe, output=tmp_path / "one", progress=False)
    without = train(recipe.replace(refresh_epochs=0), output=tmp_path / "two", progress=False)
    assert abs(without.manifest["curve"][-1]["drift"]) < 1e-6
    assert with_refresh.manifest["curve"][1]["drift"] == pytest.approx(0, abs=1e-6)
    assert with_refresh.manifest["curve"][2]["drift"] > 0.2
    assert with_refresh.manifest["start_kept"] == 0


def test_seldom_updates():
    """Every fourth step, from the first that may move them on."""
    from dnc_lib import fitting
    from dnc_lib.comparisons import fit_once
    from dnc_lib.training import make_accelerator

    counted = []
    update = fitting.Fitting._update_head
    parts = {"train": random_images(64), "test": random_images(16, seed=1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fitting.Fitting, "_update_head", lambda self, s: (counted.append(self.steps_done), update(self, s))
        )
        result = fit_once(
            quick(epochs=3, batch_size=16, update_every=4, update_after=2), parts, make_accelerator("no")
        )
    assert counted == [2, 6, 10]
    assert result["start_kept"] == pytest.approx(0.97**3)


def test_what_else_a_comparison_measures_and_keeps(tmp_path):
    from dnc_lib.checkpoints import read_model
    from dnc_lib.evaluation import evaluate
    from dnc_lib.loading import make_loader, prepare_data
    from dnc_lib.records import load_results, validate

    arms = {"softmax": {"head": "softmax"}, "dnc momentum=0.9": {"head": "dnc", "momentum": 0.9}}
    arms["dnc anchor=true"] = {"head": "dnc", "anchor": True}
    recipe = quick(epochs=1, train_limit=200)
    settings = {"progress": False, "also": ("refresh", "anchor"), "keep": tmp_path / "kept"}
    manifest = compare(recipe, arms, [0], tmp_path / "pairs.json", **settings)
    validate(manifest)
    softmax, dnc, anchored = manifest["results"]
    assert not {"accuracy_refresh", "accuracy_anchor"} & set(softmax)
    assert anchored["anchoring"]["after"] == anchored["accuracy"]
    parts = prepare_data(recipe)
    for name, wanted in (
        ("softmax_seed0", softmax),
        ("dnc_momentum=0.9_seed0", dnc),
        ("dnc_anchor=true_seed0", anchored),
    ):
        model, card = read_model(tmp_path / "kept" / f"{name}.safetensors")
        test, train_part = (make_loader(recipe, parts[part], card, "cpu") for part in ("test", "train"))
        assert evaluate(model, test)["accuracy"] == wanted["accuracy"]
        if name.startswith("dnc_momentum"):
            model.refresh(train_part)
            assert evaluate(model, test)["accuracy"] == wanted["accuracy_refresh"]
    assert [record.arm for record in load_results(tmp_path)] == [
        "softmax",
        "dnc momentum=0.9",
        "dnc momentum=0.97 anchor=True",
    ]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="a SoftmaxHead has no sub-centroids"):
        anchor(trained("softmax").model()[0], DeviceLoader(random_images(40, 10, 8), 16, *STATS))
    shuffled = DeviceLoader(random_images(40, 10, 8), 20, *STATS, shuffle=True)
    with pytest.raises(
        ValueError,
        match=r"^exemplars need the training images in order: give a loader that does not shuffle$",
    ):
        anchor(trained().model()[0], shuffled)
    for changes, message in (
        ({"anchor_epochs": 1}, "anchor_epochs ends in anchored sub-centroids: set anchor too"),
        ({"refresh_epochs": 99}, "refresh_epochs 99 are more than the 12 epochs there are"),
        ({"anchor": True, "head": "frozen"}, "head frozen has no sub-centroids that move: to anchor or estimate"),
        ({"leave_out": (1, 1)}, "leave_out must be different class numbers from 0, got"),
        ({"spread": "wide"}, "spread must be one of none, centred, frame, got 'wide'"),
        ({"scale_by": "norm"}, "scale_by must be one of temperature, layernorm, got 'norm'"),
    ):
        with pytest.raises(ValueError, match=message):
            digits_resnet8(epochs=12, **changes)
    with pytest.raises(ValueError, match="also must be of refresh, anchor, got 'shuffle'"):
        compare(quick(), {"dnc": {}}, [0], tmp_path / "x.json", also=("shuffle",))
