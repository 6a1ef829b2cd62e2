"""Claims, records and verdicts, against manifests made here: what pairs, what is refused, and what is said of it."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dnc_lib import ledger, plots, recipes, records
from dnc_lib.claims import as_printed, entry_changes
from dnc_lib.recipes import parse_arm
from dnc_lib.records import arm_fields, canonical_arm, read_manifest, validate
from dnc_lib.statistics import VERDICTS, paired, verdict

NAME = "cifar10_resnet20"
CLAIM = ledger.Claim("c", "DNC is better.", "this book", "seen", "cifar10", ("dnc", "softmax"), "accuracy", 0.3, 6)
ENTRY = (
    "- id: a\n  statement: s\n  source: this book\n  verified: seen\n  dataset: cifar10\n  arms: [dnc, softmax]\n"
    "  metric: accuracy\n  margin: 0.3\n  pairs: 6\n"
)


def exactly(message: str) -> str:
    """A pattern that this message matches and no other."""
    return f"^{re.escape(message)}$"


def circumstances(**changes) -> dict:
    """What every manifest records beside its recipe and its outcome."""
    part = {"name": "cifar10", "digest": "0123456789abcdef"}
    return {
        "data": {"train": {**part, "images": 50_000}, "test": {**part, "images": 10_000}},
        "code": {"commit": "a" * 40, "dirty": False},
        "versions": {"python": "3.11", "torch": "2.6", "timm": "1.0", "numpy": "2.0"},
        "device": "cuda",
        "device_name": "Some GPU",
        "threads": 2,
        "processes": 1,
        "seconds": 60.0,
        "peak_memory_bytes": 1000,
        **changes,
    }


def run(head: str, accuracy: float, seed: int = 0, recipe: dict | None = None, **changes) -> dict:
    """The manifest of one training; ``recipe`` changes fields of it."""
    fields = recipes.get(NAME, head=head, seed=seed, **(recipe or {})).to_dict()
    final = {"accuracy": accuracy, "top5": 99.0, "loss": 0.5}
    epoch = {"epoch": 1, "learning_rate": 0.1, "seconds": 60.0, "train_accuracy": 90.0, "train_loss": 0.3, **final}
    outcome = {"final": final, "best": {"epoch": 1, "accuracy": accuracy}, "curve": [epoch], "parameters": 100}
    return json.loads(json.dumps({"recipe": fields, **outcome, **circumstances(**changes)}))


def comparison(scores: dict[str, list[float]], seeds=None, recipe: dict | None = None, **changes) -> dict:
    """The manifest of a comparison: of each arm its accuracies, seed by seed."""
    count = len(next(iter(scores.values())))
    results = [
        {"arm": arm, "seed": seed, "accuracy": value, "top5": 99.0, "loss": 0.5, "seconds": 10.0}
        for arm, values in scores.items()
        for seed, value in zip(seeds or range(count), values, strict=True)
    ]
    head = {
        "kind": "comparison",
        "profile": "full",
        "recipe": recipes.get(NAME, **(recipe or {})).to_dict(),
        "arms": {arm: parse_arm(arm) for arm in scores},
        "results": results,
        "summary": {arm: {"n": count, "mean": float(np.mean(v)), "sd": 0.1} for arm, v in scores.items()},
        "paired": [],
    }
    return json.loads(json.dumps({**head, **circumstances(**changes)}))


@pytest.fixture
def write(tmp_path):
    """Write manifests into a folder of results and read them back as records."""

    def do(*manifests, folder="results"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number, manifest in enumerate(manifests):
            (tmp_path / folder / f"m{number}.json").write_text(json.dumps(manifest))
        return ledger.load_results(tmp_path / folder)

    return do


# --- manifests become records ---------------------------------------------------------------------------------------


def test_a_run_becomes_one_record(write):
    (record,) = write(run("dnc", 90.5, seed=3, device="cpu", device_name="x86_64", threads=1))
    assert (record.recipe, record.arm, record.seed, record.dataset) == (NAME, "dnc", 3, "cifar10")
    assert record.scores == {"accuracy": 90.5, "top5": 99.0, "loss": 0.5}
    assert record.hardware == "x86_64 CPU, 1 thread"
    assert record.commit == "a" * 40
    assert (record.file, record.apart, record.seconds) == ("m0.json", "", 60.0)


def test_a_comparison_becomes_a_record_an_arm_and_seed(write):
    found = write(
        comparison({"softmax": [1.0, 2.0], "dnc num_subcentroids=1": [3.0, 4.0]}, seeds=[5, 7], processes=8)
    )
    assert [(r.arm, r.seed, r.scores["accuracy"]) for r in found] == [
        ("softmax", 5, 1.0),
        ("softmax", 7, 2.0),
        ("dnc num_subcentroids=1", 5, 3.0),
        ("dnc num_subcentroids=1", 7, 4.0),
    ]
    assert {r.hardware for r in found} == {"8 x Some GPU"}
    assert {r.seconds for r in found} == {10.0}


def test_what_concerns_another_head_does_not_rename_an_arm(write):
    moved = {"momentum": 0.5, "correct_only": False, "update_after": 7, "refresh": True, "validation": 5}
    found = write(*(run(head, 90.0, recipe=moved) for head in ("softmax", "cosine", "frozen", "dnc")))
    assert [r.arm for r in found] == [
        "softmax",
        "cosine",
        "frozen",
        "dnc momentum=0.5 correct_only=False update_after=7 refresh=True",
    ]


def test_temperature_is_the_cosine_heads_concern_and_not_the_softmax_heads(write):
    found = write(*(run(head, 90.0, recipe={"temperature": 0.2}) for head in ("softmax", "cosine", "frozen", "dnc")))
    arms = ["softmax", "cosine temperature=0.2", "frozen temperature=0.2", "dnc temperature=0.2"]
    assert [r.arm for r in found] == arms


def test_a_training_of_other_length_is_another_recipe(write):
    found = write(run("dnc", 80.0, recipe={"epochs": 3}), run("softmax", 90.0))
    assert [r.recipe for r in found] == [f"{NAME} epochs=3", NAME]
    assert ledger.judge(CLAIM, found)[0].verdict == "not run"


def test_a_comparison_whose_base_is_changed_says_so_in_its_arms(write):
    found = write(comparison({"softmax": [1.0], "dnc": [2.0]}, recipe={"momentum": 0.9}))
    assert [r.arm for r in found] == ["softmax", "dnc momentum=0.9"]


def test_smoke_runs_are_left_out_and_full_ones_are_not(write):
    assert len(write(run("dnc", 90.0, profile="smoke"), run("softmax", 90.0, profile="full"))) == 1


@pytest.mark.parametrize(
    ("recipe", "folder", "reason"),
    [
        ({"validation": 5000}, "results", "5000 training images held out"),
        ({"train_limit": 100}, "results", "trained on 100 images"),
        ({}, "results/screening", "screening"),
        ({"train_limit": 100}, "results/screening", "screening, trained on 100 images"),
    ],
)
def test_screening_is_kept_apart_and_in_no_verdict(write, tmp_path, recipe, folder, reason):
    write(*(run(head, 90.0, recipe=recipe) for head in ("dnc", "softmax")), folder=folder)
    found = ledger.load_results(tmp_path / "results")
    assert [r.apart for r in found] == [reason] * 2
    assert [(v.verdict, v.n) for v in ledger.judge(CLAIM, found)] == [("not run", 0)]
    for name in {r.recipe for r in found}:
        assert ledger.pairs(found, name, CLAIM.arms) == []


def test_other_folders_are_not_looked_into(write, tmp_path):
    write(run("dnc", 90.0))
    (tmp_path / "results" / "speed").mkdir()
    (tmp_path / "results" / "speed" / "measured.json").write_text("[1, 2]")
    (tmp_path / "results" / "README.md").write_text("# Records")
    assert len(ledger.load_results(tmp_path / "results")) == 1


def test_a_field_that_came_later_counts_as_its_default(write):
    old = run("dnc", 90.0)
    del old["recipe"]["precision"], old["recipe"]["refresh"]
    assert [(r.recipe, r.arm) for r in write(old)] == [(NAME, "dnc")]


def test_a_changed_checkout_and_one_without_git_show_in_the_commit(write):
    codes = [{"commit": "b" * 40, "dirty": True}, {"commit": None, "dirty": None}]
    assert [r.commit for r in write(*(run("dnc", 1.0, s, code=c) for s, c in enumerate(codes)))] == [
        "b" * 40 + "+",
        None,
    ]


def test_an_arms_name_can_be_read_back():
    for head in ("softmax", "cosine", "frozen", "dnc"):
        assert canonical_arm(head, NAME) == head
    name = "dnc correct_only=False momentum=0.9 num_subcentroids=4 start=data"
    assert canonical_arm(name, NAME) == "dnc momentum=0.9 correct_only=False start=data"  # 4 is the recipe's own


def test_every_setting_of_the_head_is_an_arms_business():
    settings = recipes.get(NAME).head_settings()
    assert set(settings) - {"seed"} < set(arm_fields("dnc"))
    assert arm_fields("softmax") == ()
    assert "seed" not in arm_fields("dnc")


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_runs_and_comparisons_pair_by_seed(write):
    found = write(
        comparison({"softmax": [1.0, 2.0], "dnc": [3.0, 4.0]}, seeds=[4, 2]),
        run("dnc", 5.0, seed=1),
        run("softmax", 6.0, seed=1),
        run("dnc", 7.0, seed=9),  # alone
    )
    couples = ledger.pairs(found, NAME, ["dnc", "softmax"])
    assert [(a.seed, a.scores["accuracy"], b.scores["accuracy"]) for a, b in couples] == [
        (1, 5.0, 6.0),
        (2, 4.0, 2.0),
        (4, 3.0, 1.0),
    ]


def test_an_arm_is_found_under_any_spelling(write):
    found = write(comparison({"dnc num_subcentroids=1 momentum=0.9": [1.0], "dnc": [2.0]}))
    arms = ["dnc momentum=0.9 num_subcentroids=1", "dnc num_subcentroids=4"]
    assert len(ledger.pairs(found, NAME, arms)) == 1


def test_the_same_result_twice_counts_once(write):
    found = write(comparison({"dnc": [1.0], "softmax": [2.0]}), comparison({"dnc": [1.0], "softmax": [2.0]}))
    assert len(ledger.pairs(found, NAME, CLAIM.arms)) == 1


def test_two_results_that_disagree_are_refused(write):
    found = write(comparison({"dnc": [1.0], "softmax": [2.0]}), run("dnc", 1.5))
    message = (
        "m0.json and m1.json both hold seed 0 of cifar10_resnet20, arm dnc, with different scores: keep one of them"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        ledger.judge(CLAIM, found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": circumstances()["data"] | {"test": circumstances()["data"]["test"] | {"digest": "f" * 16}}},
         "seed 0: test data"),
        ({"device": "cpu"}, "seed 0: device cuda and cpu"),
        ({"processes": 8}, "seed 0: processes 1 and 8"),
        ({"generation": 2}, "seed 0: generation of the code 1 and 2"),
        ({"device": "cpu", "processes": 2}, "seed 0: device cuda and cpu, processes 1 and 2"),
    ],
)  # fmt: skip
def test_what_differs_in_more_than_the_arm_is_no_pair_and_is_named(write, changes, told):
    found = write(run("dnc", 1.0), run("softmax", 2.0, **changes), run("dnc", 1.5, 1), run("softmax", 1.25, 1))
    assert [a.seed for a, _ in ledger.pairs(found, NAME, CLAIM.arms)] == [1]
    assert ledger.unlike(found, NAME, CLAIM.arms) == [told]
    (said,) = ledger.judge(CLAIM, found)
    assert (said.n, said.mean, said.unlike) == (1, 0.25, (told,))


def test_an_entry_of_a_comparison_may_have_been_made_by_other_code(write):
    manifest = comparison({"softmax": [90.0, 91.0], "dnc": [91.0, 92.0]})
    other = {"commit": "b" * 40, "dirty": False}
    manifest["results"][0] |= {"code": other, "generation": 2}
    found = write(manifest)
    assert {r.commit for r in found} == {"b" * 40, manifest["code"]["commit"]}
    assert ledger.unlike(found, NAME, CLAIM.arms) == ["seed 0: generation of the code 1 and 2"]


# --- verdicts -------------------------------------------------------------------------------------------------------

NOISE = [0.05, -0.05, 0.02, -0.02, 0.04, -0.04]


@pytest.mark.parametrize(
    ("shift", "count", "expected"),
    [
        (0.5, 6, "held here"),
        (0.5, 5, "inconclusive"),
        (-0.5, 6, "contradicted on this recipe"),
        (0.0, 6, "equivalent"),
        (0.0, 1, "inconclusive"),
    ],
)
def test_verdicts(write, shift, count, expected):
    second = [90.0 + 0.3 * seed for seed in range(count)]  # a seed's own luck, which pairing takes out
    first = [value + shift + noise for value, noise in zip(second, NOISE, strict=False)]
    (found,) = ledger.judge(CLAIM, write(comparison({"softmax": second, "dnc": first})))
    assert (found.verdict, found.n, found.recipe) == (expected, count, NAME)
    assert found.seeds == tuple(range(count))
    assert (found.first, found.second) == (tuple(first), tuple(second))
    assert found.hardware == ("Some GPU",)
    assert found.commits == ("a" * 40,)


def test_wide_spread_is_inconclusive_however_many_pairs(write):
    noise = [3.0, -3.0, 2.5, -2.5, 2.0, -2.0, 1.0]
    found = write(comparison({"softmax": [90.0] * 7, "dnc": [90.0 + each for each in noise]}))
    assert ledger.judge(CLAIM, found)[0].verdict == "inconclusive"


def test_swapping_the_arms_turns_the_verdict_round(write):
    found = write(comparison({"softmax": [90.0 + n for n in NOISE], "dnc": [91.0] * 6}))
    turned = dataclasses.replace(CLAIM, arms=("softmax", "dnc"))
    (a,), (b,) = ledger.judge(CLAIM, found), ledger.judge(turned, found)
    assert (a.verdict, b.verdict) == ("held here", "contradicted on this recipe")
    assert (a.mean, a.low, a.high, a.p) == pytest.approx((-b.mean, -b.high, -b.low, b.p))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(80, 95), st.floats(80, 95)), min_size=1, max_size=9))
def test_the_verdict_is_that_of_the_statistics(couples):
    first, second = [a for a, _ in couples], [b for _, b in couples]
    found = records.flatten(comparison({"dnc": first, "softmax": second}), "m.json")
    (judged,) = ledger.judge(CLAIM, found)
    expected = paired(first, second)
    assert judged.verdict == verdict(judged.differences, CLAIM.margin, CLAIM.pairs)
    assert (judged.n, judged.mean, judged.p) == (expected.n, expected.mean, expected.p)
    assert (judged.low, judged.high) == ((expected.low, expected.high) if len(couples) > 1 else (None, None))


def test_each_recipe_has_its_own_verdict(write):
    found = write(
        comparison({"softmax": [90.0], "dnc": [91.0]}),
        comparison({"softmax": [80.0], "dnc": [79.0]}, recipe={"epochs": 3}),
        run("softmax", 85.0, recipe={"epochs": 4}),  # no pair
    )
    assert [(v.recipe, v.n, v.mean) for v in ledger.judge(CLAIM, found)] == [
        (NAME, 1, 1.0),
        (f"{NAME} epochs=3", 1, -1.0),
    ]


def test_a_sentence_tells_what_the_verdict_rests_on(write):
    found = write(comparison({"softmax": [90.0 + n for n in NOISE], "dnc": [90.5] * 6}))
    (said,) = ledger.judge(CLAIM, found)
    assert ledger.say(said) == (
        f"On {NAME}, dnc is 0.50 points above softmax (6 pairs, 95 % interval {said.low:+.2f} to {said.high:+.2f}, "
        f"sign-flip p = 0.031): held here."
    )
    assert ledger.say(ledger.Verdict(CLAIM, NAME)) == f"On {NAME}: dnc against softmax was not run."
    (below,) = ledger.judge(dataclasses.replace(CLAIM, arms=("softmax", "dnc")), found)
    assert "0.50 points below" in ledger.say(below)
    assert ledger.say(below).endswith(": contradicted on this recipe.")
    (one,) = ledger.judge(CLAIM, write(run("dnc", 92.0), run("softmax", 91.0)))
    assert ledger.say(one) == f"On {NAME}, dnc is 1.00 points above softmax (1 pair): inconclusive."
    aside = dataclasses.replace(one, beside="trained on 10 images")
    assert ledger.say(aside) == f"{ledger.say(one)} It stands beside the others: trained on 10 images."


def test_claims_that_share_runs_are_a_family_and_pay_for_their_number(write):
    scores = {"softmax": [90.0 + n for n in NOISE], "dnc": [90.5] * 6, "cosine": [90.2 - n for n in NOISE]}
    apart = {"frozen": [89.0 + 3 * n for n in NOISE], "dnc momentum=0.5": [89.1 - n for n in NOISE]}
    found = write(comparison(scores | apart))
    arms = (("dnc", "softmax"), ("frozen", "dnc momentum=0.5"), ("dnc", "cosine"))
    claims = [dataclasses.replace(CLAIM, id=str(place), arms=both) for place, both in enumerate(arms)]
    verdicts = [each for claim in claims for each in ledger.judge(claim, found)]
    (family,) = ledger.families(verdicts)
    assert [each.claim.id for each in family.verdicts] == ["0", "2"]
    plain = [stats.ttest_1samp(each.differences, 0).pvalue for each in family.verdicts]
    assert [each.p_t for each in family.verdicts] == pytest.approx(plain)
    low, high = min(plain), max(plain)
    assert sorted(family.adjusted) == pytest.approx(sorted([2 * low, max(2 * low, high)]))
    bridge = dataclasses.replace(CLAIM, id="bridge", arms=("cosine", "frozen"))  # joins the two
    (family,) = ledger.families([*verdicts, *ledger.judge(bridge, found)])
    assert {each.claim.id for each in family.verdicts} == {"0", "1", "2", "bridge"}


def test_whether_a_claim_was_there_first_is_asked_of_the_whole_entry():
    entry = ENTRY.replace("id: a", f"id: {CLAIM.id}").replace("statement: s", f"statement: {CLAIM.statement}")
    assert entry_changes(CLAIM, entry) == []
    assert entry_changes(CLAIM, ENTRY) is None  # another claim alone was there
    assert entry_changes(CLAIM, "") is None
    assert entry_changes(CLAIM, entry.replace("margin: 0.3", "margin: 1.0")) == ["margin"]
    other = entry.replace("[dnc, softmax]", "[dnc, cosine]").replace("pairs: 6", "pairs: 3")
    assert entry_changes(CLAIM, other) == ["arms", "pairs"]


def test_runs_that_helped_to_choose_stand_beside_the_others(write):
    manifests = [run("dnc", 70.0), run("softmax", 71.0)]
    for each in manifests:
        each["recipe"] = recipes.cifar10_subset(head=each["recipe"]["head"]).to_dict()
    found = write(*manifests)
    (said,) = ledger.judge(CLAIM, found)
    assert said.beside == "10,000 training images, its test images helped to choose settings"
    assert not found[0].apart


def test_runs_without_some_classes_say_nothing_of_the_accuracy_on_all(write):
    few = comparison({"softmax": [90.0], "dnc": [91.0]})
    few["recipe"] = recipes.get(NAME, leave_out=(3,)).to_dict()
    for entry in few["results"]:
        entry["new_classes"] = 50.0
    found = write(few)
    assert ledger.judge(CLAIM, found) == [ledger.Verdict(CLAIM, "")]
    (verdict,) = ledger.judge(dataclasses.replace(CLAIM, metric="new_classes"), found)
    assert (verdict.n, verdict.recipe) == (1, f"{NAME} leave_out=(3,)")


def test_results_of_another_data_set_are_not_asked(write):
    found = write(comparison({"softmax": [90.0], "dnc": [91.0]}))
    assert ledger.judge(dataclasses.replace(CLAIM, dataset="cifar100"), found)[0].verdict == "not run"


def test_a_claim_whose_arms_a_recipe_does_not_tell_apart_is_not_run_there(write):
    found = write(comparison({"dnc": [90.0, 91.0]}))
    claim = dataclasses.replace(CLAIM, arms=("dnc num_subcentroids=4", "dnc"))
    assert ledger.judge(claim, found) == [ledger.Verdict(claim, "")]


def test_a_metric_that_was_not_measured(write):
    found = write(comparison({"softmax": [90.0], "dnc": [91.0]}))
    claim = dataclasses.replace(CLAIM, metric="auroc")
    assert ledger.judge(claim, found) == [ledger.Verdict(claim, "")]  # these runs were not asked for it
    half = comparison({"softmax": [90.0], "dnc": [91.0]})
    half["results"][0]["auroc"] = 80.0
    with pytest.raises(ValueError, match=r"^m0\.json has no auroc, which the claim c is about$"):
        ledger.judge(claim, write(half))


def test_no_result_at_all(write):
    assert ledger.judge(CLAIM, write()) == [ledger.Verdict(CLAIM, "")]
    assert ledger.Verdict(CLAIM, "").verdict == verdict([], 0.3, 6) == "not run"


# --- the ledger -----------------------------------------------------------------------------------------------------


def published(arm, value, source="wang2023visual", verified="seen", recipe="cifar10_resnet50", network="ResNet-50"):
    name = f"{recipe}_{arm}_{source}"
    return ledger.Published(name, "cifar10", network, arm, "accuracy", value, source, verified, recipe, "")


def test_published_differences_stand_beside_ours_and_alone(write):
    found = write(comparison({"softmax": [90.0], "dnc": [91.0]}))
    literature = [
        published("softmax", 95.55),
        published("dnc", 95.78, verified="recalled"),
        published("softmax", 95.5, source="zoo"),  # without a twin: no difference
        published("softmax", 90.0, recipe=NAME, network="ResNet-20"),
        published("dnc", None, recipe=NAME, network="ResNet-20"),
    ]
    rows = ledger.ledger([CLAIM], found, literature)
    assert [(row.recipe, row.ours.verdict) for row in rows] == [
        ("cifar10_resnet50", "not run"),
        (NAME, "inconclusive"),
    ]
    assert [d.text for d in rows[0].published] == ["+0.23 (recalled)"]
    assert rows[0].published[0].value == 0.23
    assert [d.text for d in rows[1].published] == ["not known"]


def test_a_claim_with_nothing_at_all_has_a_row():
    (row,) = ledger.ledger([CLAIM], [], [])
    assert (row.recipe, row.published, row.ours.verdict) == ("", (), "not run")


def test_a_recalled_number_is_never_printed_without_the_word():
    assert as_printed(1.25, "recalled") == "1.25 (recalled)"
    assert as_printed(1.5, "seen", signed=True) == "+1.5"
    assert as_printed(39.9, "seen") == "39.9"  # with as many digits as the source gives, where they are not zeros
    assert published("dnc", 95.0, verified="recalled").text == "95.0 (recalled)"
    assert as_printed(None, "recalled") == "not known"


# --- bad files ------------------------------------------------------------------------------------------------------


def test_no_folder(tmp_path):
    message = f"no folder of results at {tmp_path / 'none'}; `dnc train` and `dnc compare` write manifests"
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        ledger.load_results(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "PATH is damaged (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)): "
              "restore it or run it again"),
        ('{"final": NaN}', "PATH is damaged (NaN is no number): restore it or run it again"),
        ("[]", "PATH is no manifest; `dnc train` and `dnc compare` write manifests"),
        ("{}", "m.json is no whole manifest (KeyError: 'recipe'); `dnc train` and `dnc compare` write manifests"),
    ],
)  # fmt: skip
def test_damaged_manifests(tmp_path, text, message):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=exactly(message.replace("PATH", str(tmp_path / "m.json")))):
        ledger.load_results(tmp_path)


def test_a_manifest_from_elsewhere(write):
    manifest = run("dnc", 90.0)
    manifest["recipe"]["wheels"] = 4
    with pytest.raises(ValueError, match=r"^m0\.json: a recipe has no field wheels; another version wrote it$"):
        write(manifest)
    del manifest["recipe"]["wheels"]
    manifest["recipe"]["epochs"] = 0
    with pytest.raises(ValueError, match=r"^m0\.json: epochs must be 1 or more, got 0$"):
        write(manifest)
    manifest["recipe"] |= {"epochs": 1, "name": "cifar10_resnet21"}
    with pytest.raises(
        ValueError, match=r"^m0\.json: there is no recipe 'cifar10_resnet21'; `dnc recipes` lists all$"
    ):
        write(manifest)


def test_a_comparison_that_names_an_arm_it_does_not_have(write):
    manifest = comparison({"dnc": [1.0]})
    manifest["results"][0]["arm"] = "cosine"
    with pytest.raises(ValueError, match=r"^m0\.json is no whole manifest \(KeyError: 'cosine'\)"):
        write(manifest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- id: [a", "PATH, line 1 is damaged (expected ',' or ']', but got '<stream end>')"),
        ("id: a", "PATH must hold a list of entries, each beginning with '- id:'"),
        ("", "PATH must hold a list of entries, each beginning with '- id:'"),
        ("- a", "PATH: entry 1: lacks arms, dataset, id, margin, metric, pairs, source, statement, verified"),
        (ENTRY.replace("  margin: 0.3\n", ""), "PATH: a: lacks margin"),
        (ENTRY + "  colour: red\n", "PATH: a: has unknown colour"),
        (ENTRY.replace("margin", "margins"), "PATH: a: lacks margin and has unknown margins"),
        (ENTRY.replace("0.3", "small"), "PATH: a: margin must be a number, got 'small'"),
        (ENTRY.replace("pairs: 6", "pairs: 6.5"), "PATH: a: pairs must be a whole number, got 6.5"),
        (ENTRY.replace("0.3", "-0.3"), "PATH: a: margin must be 0 or more and pairs 1 or more"),
        (ENTRY.replace("pairs: 6", "pairs: 0"), "PATH: a: margin must be 0 or more and pairs 1 or more"),
        (ENTRY.replace("[dnc, softmax]", "[dnc]"), "PATH: a: arms must be two texts, got ['dnc']"),
        (ENTRY.replace("[dnc, softmax]", "dnc"), "PATH: a: arms must be two texts, got 'dnc'"),
        (ENTRY.replace("[dnc,", "[dmc,"),
         "PATH: a: arm 'dmc': 'dmc' is neither a head (softmax, cosine, frozen, dnc) nor field=value of a recipe"),
        (ENTRY.replace("[dnc,", "[momentum=0.9,"), "PATH: a: arm 'momentum=0.9' names no head"),
        (ENTRY.replace("softmax]", "softmax momentum=0.9]"),
         "PATH: a: arm 'softmax momentum=0.9' changes momentum, which does not concern the head softmax"),
        (ENTRY.replace("[dnc,", "[dnc epochs=3,"),
         "PATH: a: arm 'dnc epochs=3' changes epochs, which does not concern the head dnc"),
        (ENTRY.replace("[dnc,", "[dnc momentum=high,"), "PATH: a: momentum must be float, got 'high'"),
        (ENTRY.replace("verified: seen", "verified: sure"), "PATH: a: verified must be seen or recalled, got 'sure'"),
        (ENTRY + ENTRY, "PATH: a: this id is there twice"),
    ],
)  # fmt: skip
def test_damaged_claims(tmp_path, text, message):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=exactly(message.replace("PATH", str(path)))):
        ledger.load_claims(path)


def test_no_claims(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^there is no file .*claims\.yaml$"):
        ledger.load_claims(tmp_path / "claims.yaml")


def test_claims_are_read_as_they_stand(tmp_path):
    (tmp_path / "claims.yaml").write_text(ENTRY)
    (claim,) = ledger.load_claims(tmp_path / "claims.yaml")
    assert claim == dataclasses.replace(CLAIM, id="a", statement="s")


# --- the schema -----------------------------------------------------------------------------------------------------


def change(manifest: dict, place: str, value) -> dict:
    """A manifest with one entry changed, or removed where the value is ``...``."""
    *way, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inside = manifest
    for key in way:
        inside = inside[key]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return manifest


def test_both_kinds_fit_the_schema():
    validate(run("dnc", 90.0))
    validate(run("dnc", 90.0, profile="full", wait_share=0.02, images_per_second=1200.0, kind="run"))
    validate(comparison({"softmax": [90.0, 91.0], "dnc": [90.0, 92.0]}))


def test_an_epoch_that_was_not_evaluated_fits():
    manifest = run("dnc", 90.0)
    for key in ("accuracy", "top5", "loss"):
        del manifest["curve"][0][key]
    validate(manifest)


@pytest.mark.parametrize(
    ("kind", "place", "value", "message"),
    [
        ("run", "final", ..., ": 'final' is a required property"),
        ("run", "final.accuracy", 101.0, " at final.accuracy: 101.0 is greater than the maximum of 100"),
        ("run", "curve.0.epoch", 0, " at curve[0].epoch: 0 is less than the minimum of 1"),
        ("run", "recipe.seed", ..., " at recipe: 'seed' is a required property"),
        ("run", "recipe.head", "svm", " at recipe.head: 'svm' is not one of ['softmax', 'cosine', 'frozen', 'dnc']"),
        ("run", "code.dirty", ..., " at code: 'dirty' is a required property"),
        ("run", "code.commit", "main", " at code.commit: 'main' does not match '^[0-9a-f]{40}$'"),
        ("run", "data.test", ..., " at data: 'test' is a required property"),
        ("run", "profile", "half", " at profile: 'half' is not one of ['full', 'smoke']"),
        ("run", "kind", "walk", " at kind: 'run' was expected"),
        ("comparison", "results.0.seed", ..., " at results[0]: 'seed' is a required property"),
        ("comparison", "results.0.seed", "0", " at results[0].seed: '0' is not of type 'integer'"),
        ("comparison", "arms.dnc.head", "svm",
         " at arms.dnc.head: 'svm' is not one of ['softmax', 'cosine', 'frozen', 'dnc']"),
        ("comparison", "summary", ..., ": 'summary' is a required property"),
        ("comparison", "versions.torch", 2, " at versions.torch: 2 is not of type 'string'"),
    ],
)  # fmt: skip
def test_what_the_schema_refuses(kind, place, value, message):
    manifest = run("dnc", 90.0) if kind == "run" else comparison({"dnc": [90.0]})
    with pytest.raises(ValueError, match=exactly("the manifest does not fit the schema" + message)):
        validate(change(manifest, place, value))


@pytest.mark.parametrize("thing", [[], 3, None, {}, {"kind": "comparison"}])
def test_what_is_no_manifest_does_not_fit(thing):
    with pytest.raises(ValueError, match=r"^it does not fit the schema"):
        validate(thing, "it")


def test_the_schema_is_one():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json.loads(records.SCHEMA.read_text()))


def test_without_jsonschema(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ImportError, match=exactly("checking a manifest needs jsonschema: pip install jsonschema")):
        validate(run("dnc", 90.0))


def test_a_manifest_that_training_wrote_fits_and_is_read():
    from helpers import trained

    manifest = read_manifest(trained().folder / "manifest.json")
    validate(manifest)
    (record,) = records.flatten({**manifest, "profile": "full"}, "digits.json")
    assert record.recipe.startswith("digits_resnet8 epochs=6")
    assert record.arm == "dnc momentum=0.97"
    assert record.scores["accuracy"] == manifest["final"]["accuracy"]


def test_a_comparison_that_was_really_run_fits_and_is_judged(tmp_path):
    from helpers import quick

    from dnc_lib.comparisons import compare

    arms = {name: parse_arm(name) for name in ("dnc", "dnc num_subcentroids=1")}
    manifest = compare(quick(epochs=1), arms, [3], tmp_path / "c.json", progress=False)
    validate(read_manifest(tmp_path / "c.json"))
    claim = dataclasses.replace(CLAIM, dataset="digits", arms=("dnc", "dnc num_subcentroids=1"))
    moved = dataclasses.replace(claim, arms=("dnc momentum=0.97", "dnc momentum=0.97 num_subcentroids=1"))
    found = ledger.load_results(tmp_path)
    assert ledger.judge(claim, found)[0].verdict == "not run"  # these runs had another momentum than the recipe
    (judged,) = ledger.judge(moved, found)
    assert (judged.seeds, judged.recipe, judged.verdict) == ((3,), "digits_resnet8 epochs=1", "inconclusive")
    assert [*judged.first, *judged.second] == [result["accuracy"] for result in manifest["results"]]


# --- the forest plot ------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(write):
    noisy = [90.0 + 9 * noise for noise in (1, -1, 1, -1, 1, -1)]
    found = write(
        comparison({"softmax": [90.0 + n for n in NOISE], "dnc": [90.5] * 6, "cosine": noisy, "frozen": [85.0] * 6})
    )
    claims = [
        CLAIM,
        dataclasses.replace(CLAIM, id="wide", arms=("cosine", "softmax")),
        dataclasses.replace(CLAIM, id="far", arms=("frozen", "softmax")),
        dataclasses.replace(CLAIM, id="nowhere", dataset="cifar100"),
    ]
    literature = [published("softmax", 95.0, recipe=NAME), published("dnc", 95.4, verified="recalled", recipe=NAME)]
    yield ledger.ledger(claims, found, literature)
    plt.close("all")


def test_the_forest_shows_every_row_in_words(rows):
    words = [text.get_text() for text in plots.forest(rows).axes[0].texts]
    assert [word for word in words if word in {row.claim.id for row in rows}] == ["c", "wide", "far", "nowhere"]
    decided = ("held here, 6 pairs", "inconclusive, 6 pairs", "contradicted on this recipe, 6 pairs")
    for expected in (*decided, "not run", "recalled"):
        assert expected in words


def test_the_forest_draws_means_and_published_differences_where_they_are(rows):
    lines = plots.forest(rows).axes[0].lines
    dots = [line.get_xdata()[0] for line in lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert dots == pytest.approx([0.5, 0.0], abs=1e-6)  # the third mean lies beyond the axis
    diamonds = [line.get_xdata()[0] for line in lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert diamonds == pytest.approx([0.4])


def test_the_forest_marks_what_leaves_the_axis(rows):
    lines = plots.forest(rows, reach=2.0).axes[0].lines
    ends = sorted(line.get_xdata()[0] for line in lines if line.get_marker() in ("<", ">"))
    assert ends == [-2.0, -2.0, 2.0]  # the wide interval leaves on both sides, the far one on one


def test_every_verdict_has_a_colour_that_is_no_arms():
    assert set(plots.VERDICT_COLOURS) == set(VERDICTS)
    assert not set(plots.VERDICT_COLOURS.values()) & set(plots.ARM_COLOURS.values())


def test_nothing_here_knows_the_books_folders():
    for name in ("ledger", "records", "claims"):
        text = (Path(records.__file__).parent / f"{name}.py").read_text()
        assert "book/" not in text
        assert "results/" not in text
