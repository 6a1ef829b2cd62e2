"""The run plan: read, checked, held against the records; and the tool that works it off, on digits."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dnc_lib import recipes, run_plan
from dnc_lib.command_line import parser as make_parser
from dnc_lib.comparisons import compare, merge
from dnc_lib.records import canonical_arm, load_results, read_manifest, validate
from dnc_lib.run_plan import Entry, load_plan, status

ROOT = Path(__file__).resolve().parents[1]
PLAN, RESULTS = ROOT / "book" / "runs.yaml", ROOT / "book" / "results"
SMALL = """\
- id: small
  decides: whether this works
  result: small.json
  recipe: digits_resnet8
  changes: epochs=1 train_limit=200
  arms: [softmax, dnc momentum=0.9]
  seeds: 2
  minutes: 0.1
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("runs_tool", ROOT / "tools" / "runs.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "tools"))  # it imports its neighbour, measure
    spec.loader.exec_module(module)
    return module


def plan_of(folder: Path, text: str = SMALL) -> list[Entry]:
    (folder / "runs.yaml").write_text(text)
    return load_plan(folder / "runs.yaml")


# --- the book's plan ------------------------------------------------------------------------------------------------


def test_every_entry_of_the_book_can_be_asked_for_its_status():
    records = load_results(RESULTS)
    for entry in load_plan(PLAN):
        found = status(entry, records, RESULTS)
        assert found.total == (len(entry.trainings()) or 1)
        assert found.state in ("done", "partial", "not run", "stale")


def test_every_comparison_among_the_results_is_declared():
    """What has a file in results/ and takes part in verdicts can be run again by the plan."""
    declared = set()
    for entry in load_plan(PLAN):
        if entry.recipe:
            name = run_plan.canonical_recipe(entry.base())
            declared |= {(name, canonical_arm(arm, entry.recipe, entry.base())) for arm in entry.arms}
    found = {(each.recipe, each.arm) for each in load_results(RESULTS) if not each.apart}
    once = {(recipe, arm) for recipe, arm in found - declared if recipe == "cifar10_subset"}  # looked at once
    assert found - declared == once
    records = [each for each in load_results(RESULTS) if (each.recipe, each.arm) in once]
    assert {each.seed for each in records} <= {0}


def test_claims_of_a_recipe_are_to_have_the_same_number_of_pairs():
    """Seeds by rule: an entry gives all its arms the same ones, and no arm of a claim stands in two entries."""
    for entry in load_plan(PLAN):
        assert len({seed for _, seed in entry.trainings()}) * len(entry.arms) == len(entry.trainings())


def test_the_table_of_results_is_made_from_the_plan(tool):
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert tool.with_table(page) == page
    for entry in load_plan(PLAN):
        assert f"| {entry.id} |" in page


def test_the_commands_in_the_table_can_be_given():
    parser = make_parser()
    for entry in load_plan(PLAN):
        if entry.recipe:
            words = entry.as_command.replace("<arm>", "dnc").replace("<seed>", "0")
            options = parser.parse_args(shlex.split(words)[1:] + ([] if entry.single else ["--output", "x.json"]))
            assert options.recipe == entry.recipe


# --- reading and refusing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("seeds: 2", "seed: 2"), "seed"),
        (("  minutes: 0.1\n", ""), "minutes"),
        (("minutes: 0.1", "minutes: 0"), "minutes"),
        (("digits_resnet8", "digits_resnet9"), "digits_resnet8"),
        (("dnc momentum=0.9", "dnc momentun=0.9"), "momentun"),
        (("  minutes", "  measure: [weather]\n  minutes"), "weather"),
        (("  minutes", "  device: tpu\n  minutes"), "device"),
        (("  minutes", "  command: ls\n  minutes"), "command"),
        (("arms: [softmax, dnc momentum=0.9]", "arms: []"), "arms"),
    ],
)
def test_a_damaged_entry_is_refused_by_its_name(tmp_path, change, word):
    assert change[0] in SMALL
    with pytest.raises(ValueError, match=f"small.*{word}"):
        plan_of(tmp_path, SMALL.replace(*change))


def test_an_id_may_be_there_once(tmp_path):
    with pytest.raises(ValueError, match=r"small.*twice"):
        plan_of(tmp_path, SMALL + SMALL)
    with pytest.raises(FileNotFoundError):
        load_plan(tmp_path / "nowhere.yaml")


# --- working it off -------------------------------------------------------------------------------------------------


def test_what_is_missing_is_known_arm_by_arm_and_seed_by_seed(tmp_path, monkeypatch):
    (entry,) = plan_of(tmp_path)
    assert entry.trainings() == [("softmax", 0), ("dnc momentum=0.9", 0), ("softmax", 1), ("dnc momentum=0.9", 1)]
    assert status(entry, [], tmp_path).state == "not run"
    results = tmp_path / "results"
    results.mkdir()
    arms = {arm: recipes.parse_arm(arm) for arm in entry.arms}
    compare(entry.base(), arms, [0], results / "any_name.json", progress=False)
    found = status(entry, load_results(results), results)
    assert (found.state, found.missing, found.minutes) == ("partial", tuple(entry.trainings()[2:]), 0.2)
    monkeypatch.setattr(run_plan, "GENERATION", run_plan.GENERATION + 1)  # code that trains otherwise came later
    found = status(entry, load_results(results), results)
    assert (found.stale, len(found.missing), found.state) == (2, 4, "not run")
    compare(entry.base(), arms, [1], results / "any_name.json", progress=False)
    assert status(entry, load_results(results), results).state == "stale"


def test_the_tool_runs_what_is_missing_and_a_second_call_nothing(tmp_path, tool, monkeypatch, capsys):
    plan_of(tmp_path)
    monkeypatch.setattr(tool, "PLAN", tmp_path / "runs.yaml")
    monkeypatch.setattr(tool.statuses, "__defaults__", (tool.RESULTS, tmp_path / "runs.yaml"))
    results = tmp_path / "results"
    results.mkdir()
    tool.work([], 0.0, "cpu", results, tmp_path / "state")
    assert "the time is up" in capsys.readouterr().out
    assert not list(results.glob("*.json"))
    tool.work([], 1.0, "cpu", results, tmp_path / "state")
    assert capsys.readouterr().out.count("2 trainings") == 2
    manifest = read_manifest(results / "small.json")
    validate(manifest)
    assert [(each["arm"], each["seed"]) for each in manifest["results"]] == load_plan(
        tmp_path / "runs.yaml"
    )[0].trainings()
    before = (results / "small.json").read_bytes()
    tool.work([], 1.0, "cpu", results, tmp_path / "state")
    assert "trainings" not in capsys.readouterr().out
    assert (results / "small.json").read_bytes() == before
    with pytest.raises(SystemExit, match="nonsense"):
        tool.work(["nonsense"], 1.0, "cpu", results, tmp_path / "state")


def test_a_run_with_a_file_of_its_own(tmp_path, tool, monkeypatch):
    plan_of(tmp_path, SMALL.replace("small.json", "small_{arm}_seed{seed}.json").replace("seeds: 2", "seeds: [3]"))
    monkeypatch.setattr(tool.statuses, "__defaults__", (tool.RESULTS, tmp_path / "runs.yaml"))
    (tmp_path / "results").mkdir()
    tool.work(["small"], 1.0, "cpu", tmp_path / "results", tmp_path / "state")
    names = {path.name for path in (tmp_path / "results").glob("*.json")}
    assert names == {"small_softmax_seed3.json", "small_dnc_momentum=0.9_seed3.json"}
    assert tool.statuses(tmp_path / "results")[0].state == "done"


def test_two_manifests_of_one_comparison_become_one(tmp_path):
    (entry,) = plan_of(tmp_path)
    arms = {arm: recipes.parse_arm(arm) for arm in entry.arms}
    whole = compare(entry.base(), arms, [0, 1], tmp_path / "whole.json", progress=False)
    first = compare(entry.base(), arms, [0], tmp_path / "first.json", progress=False)
    second = compare(entry.base(), {"softmax": arms["softmax"]}, [1], tmp_path / "second.json", progress=False)
    other = {"dnc momentum=0.9": arms["dnc momentum=0.9"]}
    third = compare(entry.base(), other, [1], tmp_path / "third.json", progress=False)
    made = json.loads(json.dumps(merge(merge(first, second), third)))
    validate(made)
    scores = {(each["arm"], each["seed"]): each["accuracy"] for each in made["results"]}
    assert scores == {(each["arm"], each["seed"]): each["accuracy"] for each in whole["results"]}
    assert made["paired"][0]["mean"] == pytest.approx(whole["paired"][0]["mean"])
    with pytest.raises(ValueError, match="two comparisons"):
        merge(first, {**second, "recipe": {**second["recipe"], "epochs": 2}})
    with pytest.raises(ValueError, match="two comparisons"):
        merge(first, {**second, "arms": {"softmax": {"head": "cosine"}}})


# --- declared means reproducible ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_on_record_can_be_had_again(cifar10):
    """One training of the plan, run again: a recipe that drifted from its records would miss by points."""
    entry = next(each for each in load_plan(PLAN) if each.id == "ablation")
    records = [each for each in load_results(RESULTS) if each.recipe == "cifar10_ablation" and each.arm == "softmax"]
    if not records:
        pytest.skip("cifar10_ablation has no records yet")
    from dnc_lib.comparisons import fit_once
    from dnc_lib.loading import prepare_data
    from dnc_lib.training import make_accelerator

    recipe = entry.base().replace(head="softmax", seed=records[0].seed)
    parts = prepare_data(recipe)
    assert {part: data.digest() for part, data in parts.items()} == records[0].data
    result = fit_once(recipe, parts, make_accelerator("no"))
    for key in ("accuracy", "train_accuracy"):
        assert result[key] == pytest.approx(records[0].scores[key], abs=1.5)


def test_the_tool_says_what_it_can_do():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "runs.py"), "status"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for entry in load_plan(PLAN):
        assert entry.id in done.stdout
    assert "hours left on one CPU core" in done.stdout
