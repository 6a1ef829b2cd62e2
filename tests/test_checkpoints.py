import json
import pickle
from dataclasses import replace

import pytest
import torch
from helpers import small_disk
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dnc_lib import model_files
from dnc_lib.checkpoints import ModelCard, load_state, read_model, save_model

CARD = ModelCard(
    backbone="tiny_resnet8",
    head="dnc",
    head_settings={"num_subcentroids": 3, "memory_size": 16, "momentum": 0.9, "assignment": "nearest"},
    classes=["cat", "dog", "snow owl", "鳥"],
    mean=[0.1, 0.2, 0.3],
    std=[0.4, 0.5, 0.6],
    image_size=8,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = CARD.build()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    _, features = model(images, return_features=True)
    model.head.update(features, labels)
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_round_trip(model, path):
    save_model(model, CARD, path)
    again, card = read_model(path)
    assert card == CARD
    assert not again.training
    state = again.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert again.head.momentum == 0.9
    assert again.head.assignment == "nearest"
    assert len(again.head.memory) == 8


def test_a_string_will_do_for_a_path(model, path):
    save_model(model, CARD, str(path))
    read_model(str(path))


@pytest.mark.parametrize("head", ["softmax", "cosine", "frozen"])
def test_every_arm(head, path):
    card = replace(CARD, head=head)
    save_model(card.build(), card, path)
    assert type(read_model(path)[0].head) is type(card.build().head)


def test_exports_leave_the_memory_out(model, path):
    save_model(model, CARD, path, memory=False)
    assert not any(key.startswith("head.memory") for key in load_file(path))
    again, card = read_model(path)
    assert card == CARD
    assert len(again.head.memory) == 0
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(again(images), model.eval()(images))


def test_no_memory_at_all(path):
    card = replace(CARD, head_settings={"memory_size": 0})
    save_model(card.build(), card, path)
    read_model(path)


def test_going_on_where_it_stopped(model, path):
    save_model(model, CARD, path)
    again, _ = read_model(path)
    x, labels = torch.randn(12, again.head.dim), torch.arange(12) % 4
    for head in (model.head, again.head):
        head.update(x, labels)
    assert torch.equal(model.head.subcentroids, again.head.subcentroids)
    assert torch.equal(model.head.memory.embeddings, again.head.memory.embeddings)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize(
    "save", [lambda path: path.write_bytes(pickle.dumps(Trap())), lambda path: torch.save(Trap(), path)]
)
def test_a_hostile_pickle_is_not_executed(path, save):
    save(path)
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        read_model(path)


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file(model, path, share):
    save_model(model, CARD, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or no safetensors file .* train it again"):
        read_model(path)


def test_no_file(path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*model.safetensors"):
        read_model(path)


def test_a_foreign_file(path):
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="has no model card: it was not written by dnc_lib"):
        read_model(path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"backbone": "tiny_resnet8"}',
        json.dumps({**CARD.__dict__, "colour": "red"}),
        json.dumps({**CARD.__dict__, "backbone": "tiny_resnet9"}),
        json.dumps({**CARD.__dict__, "backbone": 5}),
        json.dumps({**CARD.__dict__, "head": "svm"}),
        json.dumps({**CARD.__dict__, "head_settings": {"wheels": 4}}),
        json.dumps({**CARD.__dict__, "head_settings": {"momentum": 2}}),
        json.dumps({**CARD.__dict__, "classes": None}),
        json.dumps({**CARD.__dict__, "classes": []}),
    ],
)
def test_a_card_that_cannot_be_built(model, path, text):
    save_file(model.state_dict(), path, metadata={"card": text})
    with pytest.raises(ValueError, match=r"the model card in .*model.safetensors cannot be built"):
        read_model(path)


def test_weights_of_another_shape_say_which(model, path):
    save_model(model, replace(CARD, classes=["a", "b", "c"]), path)
    with pytest.raises(ValueError, match=r"head\.\w+ has shape \(4, 3(, 32)?\), the model wants \(3, 3(, 32)?\)"):
        read_model(path)


def test_weights_that_are_missing_or_unknown_are_named(model):
    state = model.state_dict()
    state["head.norm.scale"] = state.pop("head.norm.weight")
    with pytest.raises(ValueError, match=r"mine does not fit .*missing head.norm.weight; unknown head.norm.scale"):
        load_state(model, state, "mine")
    with pytest.raises(ValueError, match=r"missing backbone.conv.weight, .* \.\.\."):
        load_state(model, {}, "mine")


def test_a_model_that_does_not_fit_is_left_as_it_was(model):
    before = model.head.subcentroids.clone()
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    state["head.norm.weight"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"head.norm.weight"):
        load_state(model, state, "mine")
    assert torch.equal(model.head.subcentroids, before)


def test_a_failure_in_the_middle_leaves_the_old_file(model, path, monkeypatch):
    save_model(model, CARD, path)
    old = path.read_bytes()

    def full(state, part, metadata):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(model_files, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(model, CARD, path)
    assert path.read_bytes() == old
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_card_is_readable_by_anyone(model, path):
    save_model(model, CARD, path)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["card"])["classes"] == CARD.classes


def test_a_full_disk_is_an_os_error(tmp_path, model, monkeypatch):
    save_model(model, CARD, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with small_disk(), pytest.raises(OSError, match=r"model.safetensors cannot be written"):
        save_model(model, CARD, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
