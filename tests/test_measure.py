"""Measures beside the accuracy, asked of the models that a comparison kept."""

import copy
import json
import re
import sys
import types
from pathlib import Path

import pytest
from helpers import quick

from dnc_lib.comparisons import compare
from dnc_lib.records import load_results, read_manifest, validate
from dnc_lib.runs import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import measure as tool

ARMS = {"softmax": {"head": "softmax"}, "dnc momentum=0.9": {"head": "dnc", "momentum": 0.9}}

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two arms and two seeds on digits, 200 training images held out, and its models."""
    folder = tmp_path_factory.mktemp("compared")
    recipe = quick(epochs=1, train_limit=300, validation=200)
    compare(recipe, ARMS, (0, 1), folder / "pairs.json", keep=folder / "kept", progress=False)
    return folder


@pytest.fixture
def answers(monkeypatch):
    """Stands for the module hidden_classes; change ``answers.values`` to change what it measures."""
    module = types.ModuleType("dnc_lib.hidden_classes")
    module.values, module.asked = {"nmi": 40.0, "purity": 70.0}, []

    def measure(model, card, parts, details=None):
        module.asked.append((type(model.head).__name__, tuple(card.classes), sorted(parts)))
        own = {"of_subcentroids": 1.0} if hasattr(model.head, "subcentroids") else {}
        return {**module.values, **own}

    module.measure = measure
    monkeypatch.setitem(sys.modules, "dnc_lib.hidden_classes", module)
    return module


def measured(compared, output, what, **settings):
    return tool.measure(compared / "pairs.json", compared / "kept", output, what, **settings)


def test_a_manifest_of_the_same_kind_with_more_in_it(compared, tmp_path, capsys):
    output = tmp_path / "results" / "pairs.json"
    found, before = measured(compared, output, ["calibration"], details=True), read_manifest(compared / "pairs.json")
    assert read_manifest(output) == json.loads(json.dumps(found))
    validate(found)
    for entry, old in zip(found["results"], before["results"], strict=True):
        assert {key: entry[key] for key in ("arm", "seed", "train_loss")} == {
            key: old[key] for key in ("arm", "seed", "train_loss")
        }
        assert entry["validation_accuracy"] == old["validation_accuracy"] != old["accuracy"]
        assert entry["accuracy"] == pytest.approx(old["accuracy"])  # both on the test images
        assert entry["accuracy"] * 599 / 100 == pytest.approx(round(entry["accuracy"] * 599 / 100), abs=1e-6)
        assert 0 < entry["ece"] < 100
        assert entry["nll_before"] > 0
    for arm, summary in found["summary"].items():
        scores = [entry["accuracy"] for entry in found["results"] if entry["arm"] == arm]
        assert summary["mean"] == pytest.approx(sum(scores) / 2)
    assert found["paired"][0]["n"] == 2
    assert "ece" in found["measured"]["calibration"]["keys"]
    assert {key: found[key] for key in ("recipe", "data", "arms", "code")} == {
        key: before[key] for key in ("recipe", "data", "arms", "code")
    }
    details = json.loads((output.parent / "details" / "pairs.json").read_text())
    assert sum(details["arms"]["dnc momentum=0.9"]["1"]["bins"]["counts"]) == 599
    assert capsys.readouterr().out.count("seed") == 4
    records = load_results(output.parent)  # the folder of details is none of its business
    assert [record.seed for record in records] == [0, 0, 1, 1]
    assert all("ece" in record.scores for record in records)


def test_asked_again_it_keeps_what_others_measured(compared, tmp_path, answers):
    output = tmp_path / "pairs.json"
    answers.values = {"nmi": 40.0, "gone": 1.0}
    first = copy.deepcopy(measured(compared, output, ["hidden_classes"]))
    assert answers.asked[0] == ("SoftmaxHead", tuple("0123456789"), ["test", "train", "validation"])
    second = measured(compared, output, ["calibration"])
    assert {each["nmi"] for each in second["results"]} == {40.0}
    assert set(second["measured"]) == {"hidden_classes", "calibration"}
    answers.values = {"nmi": 50.0}
    third = measured(compared, output, ["hidden_classes"])
    assert {each["nmi"] for each in third["results"]} == {50.0}
    assert not [each for each in third["results"] if "gone" in each]  # what it no longer measures goes
    assert [each["ece"] for each in third["results"]] == [each["ece"] for each in second["results"]]
    for one, other in zip(first["results"], third["results"], strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert one["validation_accuracy"] == other["validation_accuracy"]


def test_measures_of_another_training_are_not_taken_over(compared, tmp_path, answers):
    output = tmp_path / "pairs.json"
    earlier = measured(compared, output, ["hidden_classes"])
    earlier["results"][0]["seconds"] += 1
    write_json(earlier, output)
    again = measured(compared, output, ["calibration"])
    assert ["nmi" in each for each in again["results"]] == [False, True, True, True]


def test_goes_on_with_the_trainings_that_are_missing(compared, tmp_path, answers):
    output = tmp_path / "pairs.json"
    whole = copy.deepcopy(measured(compared, output, ["hidden_classes", "calibration"], details=True))
    details = json.loads((tmp_path / "details" / "pairs.json").read_text())
    fewer = copy.deepcopy(whole)
    del fewer["results"][2]
    write_json(fewer, output)
    answers.asked.clear()
    again = measured(compared, output, ["hidden_classes", "calibration"], details=True, go_on=True)
    assert len(answers.asked) == 1
    assert again["results"] == whole["results"]
    assert again["measured"] == whole["measured"]
    assert json.loads((tmp_path / "details" / "pairs.json").read_text()) == details
    measured(compared, output, ["hidden_classes"])
    assert len(answers.asked) == 5  # all anew
    measured(compared, tmp_path / "new.json", ["hidden_classes"], go_on=True)
    assert len(answers.asked) == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmi": None}, "hidden_classes: nmi of 'softmax', seed 0, is no number: None"),
        ({"nmi": float("nan")}, "hidden_classes: nmi of 'softmax', seed 0, is no number: nan"),
        ({"nmi": True}, "hidden_classes: nmi of 'softmax', seed 0, is no number: True"),
        ({"accuracy": 1.0}, "hidden_classes: the name accuracy is taken; an entry has it already"),
    ],
)
def test_measures_that_are_none_are_refused(compared, tmp_path, answers, values, message):
    answers.values = values
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measured(compared, tmp_path / "pairs.json", ["hidden_classes"])
    assert not (tmp_path / "pairs.json").exists()


def test_other_data_is_refused(compared, tmp_path):
    manifest = read_manifest(compared / "pairs.json")
    manifest["data"]["test"]["digest"] = "0" * 16
    write_json(manifest, tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"^digits, test: digest \w{16}, but the models .* with 0{16}: set DNC_DATA"):
        tool.measure(tmp_path / "other.json", compared / "kept", tmp_path / "out.json", ["calibration"])


def test_classes_left_out_come_as_a_part(compared):
    recipe = quick(train_limit=300, leave_out=(3, 7))
    from dnc_lib.loading import prepare_data

    recorded = {name: {"digest": data.digest()} for name, data in prepare_data(recipe).items()}
    parts = tool._parts(recipe, recorded)
    assert sorted(parts["left_out"].labels.unique().tolist()) == [3, 7]
    assert parts["test"].num_classes == 8
    assert len(parts["left_out"]) + len(parts["test"]) == 599


def test_command_line(compared, tmp_path, capsys):
    arguments = [str(compared / "pairs.json"), str(tmp_path / "nowhere"), str(tmp_path / "out.json"), "--what"]
    with pytest.raises(SystemExit) as stopped:
        tool.main([*arguments, "calibration"])
    missing = tmp_path / "nowhere" / "softmax_seed0.safetensors"
    again = f"run the comparison anew with --keep {tmp_path / 'nowhere'}"
    assert stopped.value.code == f"measure: no model at {missing}: {again}"
    with pytest.raises(SystemExit) as stopped:
        tool.main([*arguments, "beauty"])
    assert stopped.value.code == 2
    assert "invalid choice: 'beauty'" in capsys.readouterr().err
    assert "--details" in tool.__doc__


def test_every_name_is_a_module_with_measure():
    from importlib.util import find_spec

    for name in tool.WHAT:
        spec = find_spec(f"dnc_lib.{name}")
        assert spec is not None
        assert "\ndef measure(" in Path(spec.origin).read_text(encoding="utf-8")


def test_the_model_of_another_training_is_refused(tmp_path, answers):
    """Where the manifest's accuracy is that on the test images, it tells."""
    manifest, kept = tmp_path / "pairs.json", tmp_path / "kept"
    compare(quick(epochs=1, train_limit=100), {"dnc": {}}, [0], manifest, keep=kept, progress=False)
    found = tool.measure(manifest, kept, tmp_path / "out.json", ["hidden_classes"])
    accuracy = found["results"][0]["accuracy"]
    values = json.loads(manifest.read_text())
    values["results"][0]["accuracy"] += 1
    write_json(values, manifest)
    message = (
        f"{kept}/dnc_seed0.safetensors has an accuracy of {accuracy:.2f}, but {manifest} says {accuracy + 1:.2f}: it "
        f"is another training's model; name the folder of this one"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tool.measure(manifest, kept, tmp_path / "out.json", ["hidden_classes"])
