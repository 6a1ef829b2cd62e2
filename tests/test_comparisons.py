import json
import re
import warnings

import pytest
from helpers import quick, random_images

from dnc_lib import comparisons, records
from dnc_lib.comparisons import compare, fit_once, kept_path, summarize
from dnc_lib.runs import held
from dnc_lib.training import make_accelerator, train

pytestmark = pytest.mark.filterwarnings("ignore:momentum .* of the random start")

ARMS = {"softmax": {"head": "softmax"}, "dnc": {"head": "dnc"}}
BRIEF = {"epochs": 1, "train_limit": 200}


def brief(output, arms=ARMS, seeds=(0, 1), **changes):
    return compare(quick(**{**BRIEF, **changes}), arms, seeds, output, progress=False)


@pytest.fixture
def pretended(monkeypatch):
    """Trainings that take no time: the accuracy tells arm and seed. Gives the list of those done."""
    done = []

    def pretend(recipe, *_, **__):
        done.append((recipe.head, recipe.num_subcentroids, recipe.seed))
        return {"accuracy": 90.0 + recipe.seed + (recipe.head == "dnc"), "seconds": 1.0}

    monkeypatch.setattr(comparisons, "fit_once", pretend)
    return done


def test_results_are_those_of_single_trainings(tmp_path):
    manifest = brief(tmp_path / "pairs.json")
    assert [(each["arm"], each["seed"]) for each in manifest["results"]] == [
        ("softmax", 0), ("dnc", 0), ("softmax", 1), ("dnc", 1),
    ]  # fmt: skip
    alone = train(quick(**BRIEF, head="dnc", seed=1), output=tmp_path / "runs", progress=False).manifest
    result = manifest["results"][3]
    for key in ("accuracy", "top5", "loss", "drift", "usage", "train_loss"):
        assert result[key] == alone["curve"][-1][key]
    assert result["accuracy"] == alone["final"]["accuracy"]
    assert result["start_kept"] == alone["start_kept"]
    assert manifest["data"] == alone["data"]
    assert json.loads((tmp_path / "pairs.json").read_text())["results"] == manifest["results"]


def test_arms_of_a_seed_begin_with_the_same_backbone_and_see_the_same_batches(monkeypatch):
    seen = {}
    step = comparisons.Fitting._train_step

    def watching(fitting, batches):
        if fitting.steps_done == 0:
            first = fitting.model.backbone.conv.weight.detach().clone()
            batch = next(iter(fitting.loaders["train"]))[0]
            seen[fitting.recipe.head, fitting.recipe.seed] = (first, batch)
        step(fitting, batches)

    monkeypatch.setattr(comparisons.Fitting, "_train_step", watching)
    parts = {"train": random_images(64), "test": random_images(16, seed=1)}
    for head in ("softmax", "cosine", "frozen", "dnc"):
        for seed in (0, 1):
            recipe = quick(epochs=1, batch_size=16, head=head, seed=seed)
            fit_once(recipe, parts, make_accelerator("no"))
    for head in ("cosine", "frozen", "dnc"):
        assert all((one == other).all() for one, other in zip(seen["softmax", 0], seen[head, 0], strict=True))
    assert all((one != other).any() for one, other in zip(seen["dnc", 0], seen["dnc", 1], strict=True))


def test_it_goes_on_with_what_is_missing(tmp_path, pretended):
    output = tmp_path / "pairs.json"
    brief(output, seeds=[0])
    brief(output, seeds=[0, 2])
    more = brief(output, ARMS | {"K = 1": {"head": "dnc", "num_subcentroids": 1}}, seeds=[2])
    assert pretended == [
        ("softmax", 4, 0), ("dnc", 4, 0), ("softmax", 4, 2), ("dnc", 4, 2), ("dnc", 1, 2),
    ]  # fmt: skip
    assert more["summary"]["dnc"] == {"n": 2, "mean": 92.0, "sd": pytest.approx(2**0.5)}
    assert more["summary"]["K = 1"] == {"n": 1, "mean": 93.0, "sd": None}
    assert [pair["arms"] for pair in more["paired"]] == [["dnc", "softmax"]]  # the others have one seed in common


def test_a_crash_loses_one_training(tmp_path, monkeypatch, pretended):
    pretend = comparisons.fit_once

    def fails(recipe, *words, **settings):
        if recipe.seed == 1:
            raise KeyboardInterrupt
        return pretend(recipe, *words, **settings)

    monkeypatch.setattr(comparisons, "fit_once", fails)
    with pytest.raises(KeyboardInterrupt):
        brief(tmp_path / "pairs.json")
    assert len(json.loads((tmp_path / "pairs.json").read_text())["results"]) == 2
    monkeypatch.setattr(comparisons, "fit_once", pretend)
    assert len(brief(tmp_path / "pairs.json")["results"]) == 4
    assert len(pretended) == 4


def test_another_comparison_is_not_overwritten(tmp_path, pretended):
    output = tmp_path / "pairs.json"
    brief(output)
    for changes in ({"epochs": 2}, {"learning_rate": 0.5}):
        with pytest.raises(ValueError, match=r"pairs.json holds another comparison: name another output"):
            brief(output, **changes)
    with pytest.raises(ValueError, match="holds another comparison"):
        brief(output, {"dnc": {"head": "dnc", "momentum": 0.5}})
    for damaged in ("{", "[]", '{"kind": "comparison"}'):
        output.write_text(damaged)
        with pytest.raises(ValueError, match=r"pairs.json is damaged or no comparison"):
            brief(output)
        assert output.read_text() == damaged


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"arms": {}}, "a comparison needs one arm and one seed or more"),
        ({"seeds": []}, "a comparison needs one arm and one seed or more"),
        ({"arms": {"a": {"speed": 1}}}, "a recipe has no field speed. Did you mean seed?"),
    ],
)
def test_refusals(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        brief(tmp_path / "pairs.json", **words)
    assert not list(tmp_path.iterdir())


def test_the_summary_is_arithmetic():
    results = [
        {"arm": arm, "seed": seed, "accuracy": accuracy}
        for arm, accuracies in {"a": (1.0, 2.0, 3.0), "b": (2.0, 4.0, 6.0), "c": (5.0,)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    made = summarize(results, ["a", "b", "c", "d"])
    assert made["summary"] == {
        "a": {"n": 3, "mean": 2.0, "sd": 1.0},
        "b": {"n": 3, "mean": 4.0, "sd": 2.0},
        "c": {"n": 1, "mean": 5.0, "sd": None},
    }
    assert made["paired"] == [{"arms": ["b", "a"], "n": 3, "mean": 2.0, "sd": 1.0, "p": 0.25}]  # 2 of 2^3 flips


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (
            {"softmax": {"head": "softmax"}, "small": {"train_limit": 100, "validation": 50}},
            "arm 'small' changes validation, train_limit, which all arms share: make that a comparison of its own",
        ),
        ({"a": {"seed": 3}}, "arm 'a' changes seed"),
        ({"a": {"dataset": "cifar10"}}, "arm 'a' changes dataset"),
        ({"a": {"precision": "bf16"}}, "arm 'a' changes precision"),
        (
            {"dnc": {"head": "dnc"}, "K = 4": {"num_subcentroids": 4}},
            "the arms 'dnc' and 'K = 4' are the same training",
        ),
        ({"a": {"refresh": True}}, "arm 'a': a comparison does not refresh sub-centroids; `dnc train` does"),
    ],
)
def test_arms_that_would_not_be_what_they_say(tmp_path, pretended, arms, message):
    changes = {"train_limit": 0, "validation": 0 if "small" in arms else 100}
    with pytest.raises(ValueError, match=message):
        brief(tmp_path / "pairs.json", arms, **changes)
    assert not pretended
    assert not list(tmp_path.iterdir())


def test_a_seed_out_of_range_is_told_before_the_first_training(tmp_path, pretended):
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        brief(tmp_path / "pairs.json", seeds=[0, -1])
    assert not pretended


def test_a_complete_comparison_is_given_back(tmp_path, pretended):
    first = brief(tmp_path / "pairs.json")
    assert brief(tmp_path / "pairs.json") == json.loads(json.dumps(first))
    assert len(pretended) == 4


def test_arms_of_several_numbers_go_on_too(tmp_path, pretended):
    arms = {"steps": {"schedule": "step", "milestones": (1, 2)}}
    brief(tmp_path / "pairs.json", arms, seeds=[0])
    assert brief(tmp_path / "pairs.json", arms, seeds=[0, 1])["summary"]["steps"]["n"] == 2


def test_a_field_that_came_later_is_no_other_comparison(tmp_path, pretended):
    output = tmp_path / "pairs.json"
    before = brief(output, seeds=[0])
    del before["recipe"]["clip_norm"]
    output.write_text(json.dumps(before))
    assert len(brief(output, seeds=[0, 1])["results"]) == 4
    before["recipe"]["wheels"] = 4
    output.write_text(json.dumps(before))
    with pytest.raises(ValueError, match="is damaged or no comparison"):
        brief(output, seeds=[0, 1])


def test_other_code_between_two_seeds_is_called_out(tmp_path, pretended):
    output = tmp_path / "pairs.json"
    before = brief(output, seeds=[0])
    before["code"]["commit"] = "0" * 40
    output.write_text(json.dumps(before))
    with pytest.warns(
        UserWarning, match=r"pairs.json began with another code; its manifest will tell of the present"
    ):
        brief(output, seeds=[1])


def test_one_process_an_output(tmp_path, pretended):
    with held(tmp_path / "pairs.json"):
        with pytest.raises(BlockingIOError, match=r"another process is writing .*pairs.json: wait for its end"):
            brief(tmp_path / "pairs.json")
        brief(tmp_path / "others.json")
    brief(tmp_path / "pairs.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others.json", "pairs.json"]


def test_the_measure_of_bf16_is_that_of_train(tmp_path):
    arms = {"dnc": {"head": "dnc"}}
    (result,) = brief(tmp_path / "pairs.json", arms, seeds=[0], precision="bf16", learning_rate=0.3)["results"]
    alone = train(quick(**BRIEF, precision="bf16", learning_rate=0.3), output=tmp_path, progress=False).manifest
    assert result["loss"] == alone["final"]["loss"]
    assert result["loss"] != alone["curve"][-1]["loss"]  # under autocast


def test_manifests_of_both_kinds_fit_the_schema(tmp_path):
    records.validate(brief(tmp_path / "pairs.json"))
    records.validate(json.loads((tmp_path / "pairs.json").read_text()))
    records.validate(train(quick(**BRIEF), output=tmp_path, progress=False).manifest)


# --- models that are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        ("dnc, K = 1", "dnc,_K_=_1_seed3.safetensors"),
        ("../up", ".._up_seed3.safetensors"),
        ('a\\b:c*d?e"f<g>h|i\0', "a_b_c_d_e_f_g_h_i__seed3.safetensors"),
    ],
)
def test_a_kept_model_lies_in_its_folder_whatever_its_arm_is_called(tmp_path, arm, name):
    assert kept_path(tmp_path, arm, 3) == tmp_path / name


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("a b", "a_b"), "the models of the arms 'a b' and 'a_b' would be kept in one file: rename an arm"),
        (("A", "a"), "the models of the arms 'A' and 'a' would be kept in one file: rename an arm"),
        (("x" * 300, "y"), "the name of the arm 'xxxxxxxxxxxxxxxxxxxx'... is too long for a file's: shorten it"),
    ],
)
def test_arms_whose_models_would_overwrite_each_other_are_told_of_first(tmp_path, pretended, arms, message):
    both = {arm: {"num_subcentroids": k + 1} for k, arm in enumerate(arms)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compare(quick(**BRIEF), both, [0], tmp_path / "pairs.json", keep=tmp_path / "kept", progress=False)
    assert pretended == []


def test_where_no_model_can_be_written_nothing_is_trained(tmp_path, pretended):
    (tmp_path / "file").write_text("")
    for keep, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        message = f"--keep {keep}: no model can be written there ({reason}); name another folder"
        with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
            compare(quick(**BRIEF), ARMS, [0], tmp_path / "pairs.json", keep=keep, progress=False)
    assert pretended == []


def test_the_models_of_another_comparison_are_not_overwritten(tmp_path, pretended):
    (tmp_path / "dnc_seed1.safetensors").write_bytes(b"a model")
    message = f"{tmp_path}/dnc_seed1.safetensors is another comparison's model: name another --keep, or move it away"
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        compare(quick(**BRIEF), ARMS, [0, 1], tmp_path / "pairs.json", keep=tmp_path, progress=False)
    assert pretended == []
    compare(quick(**BRIEF), ARMS, [0], tmp_path / "pairs.json", keep=tmp_path, progress=False)
    with pytest.warns(UserWarning, match="lacks the models of 2 of"):  # killed after a model, before its result
        compare(quick(**BRIEF), ARMS, [0, 1], tmp_path / "pairs.json", keep=tmp_path, progress=False)
    assert len(pretended) == 4


def test_what_trainings_done_before_lack_is_told(tmp_path, pretended):
    output, keep = tmp_path / "pairs.json", tmp_path / "kept"
    brief(output)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compare(quick(**BRIEF), ARMS, [0, 1], output, keep=keep, also=["anchor"], progress=False)
    assert [str(each.message) for each in told] == [
        f"{keep} lacks the models of 4 of the trainings done before; to keep all, begin anew with another output",
        "2 of the trainings done before have no accuracy_anchor; to measure all, begin anew with another output",
    ]
