import json
import os
from pathlib import Path

import pytest
import torch

import dnc_lib
from dnc_lib import load_pretrained, pretrained
from dnc_lib.checkpoints import read_model
from dnc_lib.data import DeviceLoader, load
from dnc_lib.evaluation import evaluate
from dnc_lib.exemplars import model_digest
from dnc_lib.pretrained import available

NAME = "cifar10_resnet20_dnc"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MANIFEST = Path(dnc_lib.__file__).parents[1] / "book" / "results" / f"{NAME}_seed0.json"

shipped = pytest.mark.skipif(NAME not in available(), reason=f"{NAME} is not among the weights of this checkout")


def the_manifest():
    if not MANIFEST.is_file():
        pytest.skip(f"no {MANIFEST.name}: the results are in the repository, not in the installed package")
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


@shipped
def test_the_shipped_model_loads_with_its_card():
    model = load_pretrained(NAME)
    assert not model.training
    assert model.card.classes == CLASSES
    assert model.card.backbone == "cifar_resnet20"
    assert model.card.head == "dnc"
    assert model.card.image_size == 32
    # CIFAR-10's well-known statistics, on the scale 0..1
    torch.testing.assert_close(
        torch.tensor(model.card.mean), torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(
        torch.tensor(model.card.std), torch.tensor([0.2470, 0.2435, 0.2616]), atol=2e-3, rtol=0
    )
    scores = model(torch.zeros(2, 3, 32, 32))
    assert scores.shape == (2, 10)
    assert torch.isfinite(scores).all()


@shipped
def test_the_shipped_model_is_small_and_without_a_memory():
    model = load_pretrained(NAME)
    assert model.head.memory.size == 0
    path = Path(dnc_lib.__file__).parent / "weights" / f"{NAME}.safetensors"
    assert path.stat().st_size < 2e6
    assert read_model(path)[1] == model.card
    torch.testing.assert_close(model.head.subcentroids.norm(dim=-1), torch.ones(10, model.head.num_subcentroids))


@shipped
def test_the_shipped_model_is_that_of_the_manifest():
    manifest = the_manifest()
    card = load_pretrained(NAME).card
    assert manifest["recipe"]["backbone"] == card.backbone
    assert manifest["recipe"]["head"] == card.head
    for key, value in card.head_settings.items():
        assert manifest["recipe"][key] == value


@shipped
@pytest.mark.slow
def test_the_accuracy_on_the_real_test_images_is_that_of_the_manifest(cifar10):
    manifest, (_, test) = the_manifest(), cifar10
    if manifest["data"]["test"]["digest"] != test.digest():
        pytest.skip("the CIFAR-10 at hand is not the one of the manifest (other digest)")
    model = load_pretrained(NAME)
    result = evaluate(model, DeviceLoader(test, 500, model.card.mean, model.card.std))
    assert result["images"] == 10_000
    assert result["accuracy"] == pytest.approx(manifest["final"]["accuracy"], abs=0.1)


@shipped
def test_every_shipped_file_can_be_read():
    for name in available():
        load_pretrained(name)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown pretrained model 'nope'. There are: "):
        load_pretrained("nope")
    if NAME in available():
        with pytest.raises(ValueError, match=f"Did you mean {NAME}"):
            load_pretrained("cifar10_resnet20")


@pytest.mark.parametrize("name", ["", "../weights", os.sep, "../../etc/passwd"])
def test_a_name_is_not_a_path(name):
    with pytest.raises(ValueError, match="unknown pretrained model"):
        load_pretrained(name)


def test_without_the_folder_there_is_nothing_but_no_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained.resources, "files", lambda _: tmp_path)
    assert available() == []
    with pytest.raises(ValueError, match=r"unknown pretrained model 'a'. There are: none"):
        load_pretrained("a")


@shipped
def test_the_shipped_exemplars_are_of_the_shipped_model():
    exemplars = pretrained.pretrained_exemplars(NAME)
    assert exemplars.model == model_digest(load_pretrained(NAME))
    assert exemplars.data == the_manifest()["data"]["train"]["digest"]
    assert list(exemplars.classes) == CLASSES
    images = [case.image for own in exemplars.cases for case in own]
    assert len(set(images)) == 40


@shipped
def test_the_shipped_exemplars_are_what_the_search_finds(cifar10):
    """Among 400 training images that hold all of them: each is found again, at the similarity it says."""
    exemplars = pretrained.pretrained_exemplars(NAME)
    train, _ = cifar10
    theirs = torch.tensor([[case.image for case in own] for own in exemplars.cases])
    some = torch.cat([theirs.flatten(), torch.arange(0, 50_000, 139)]).unique()
    part = train.subset(some)
    found = pretrained.pretrained_exemplars(NAME, part)  # other images than the shipped numbers count in
    assert pretrained.pretrained_exemplars(NAME, train) == exemplars
    again = torch.tensor([[some[case.image] for case in own] for own in found.cases])
    assert torch.equal(again, theirs)
    said = [case.similarity for own in exemplars.cases for case in own]
    assert [case.similarity for own in found.cases for case in own] == pytest.approx(said, abs=1e-3)


@shipped
def test_exemplars_among_images_of_other_classes_are_refused():
    train, _ = load("digits")
    with pytest.raises(
        ValueError,
        match=rf"^digits, training has other classes than {NAME}, which knows airplane, automobile, .*, truck$",
    ):
        pretrained.pretrained_exemplars(NAME, train)


def test_an_unknown_name_has_no_exemplars():
    with pytest.raises(ValueError, match=r"unknown pretrained model 'cifar10_resnet20'\. Did you mean"):
        pretrained.pretrained_exemplars("cifar10_resnet20")
