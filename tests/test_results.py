"""What the book keeps: every record fits the schema, every claim can be judged, every number has its source."""

import dataclasses
import re
from pathlib import Path

import pytest

from dnc_lib import ledger, recipes
from dnc_lib.recipes import Recipe
from dnc_lib.records import read_manifest, validate
from dnc_lib.statistics import VERDICTS, verdict
from dnc_lib.tasks import task_of

BOOK = Path(__file__).resolve().parents[1] / "book"
RESULTS = BOOK / "results"
FILES = sorted([*RESULTS.glob("*.json"), *RESULTS.glob("screening/*.json")])  # other folders: not trainings

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RESULTS).as_posix())


@pytest.fixture(scope="module")
def records():
    return ledger.load_results(RESULTS)


@pytest.fixture(scope="module")
def claims():
    return ledger.load_claims(BOOK / "claims.yaml")


@pytest.fixture(scope="module")
def literature():
    return ledger.load_literature(BOOK / "literature.yaml")


def test_there_are_results():
    assert len(FILES) >= 10


@each_file
def test_fits_the_schema(path):
    validate(read_manifest(path), path.name)


@each_file
def test_recipe_exists_and_its_fields_are_known(path):
    manifest = read_manifest(path)
    assert manifest["recipe"]["name"] in recipes.NAMES
    known = {field.name for field in dataclasses.fields(Recipe)}
    for changes in (manifest["recipe"], *manifest.get("arms", {}).values()):
        assert set(changes) <= known


@each_file
def test_recipe_is_one_that_could_be_run(path):
    manifest = read_manifest(path)
    for changes in manifest.get("arms", {"": {}}).values():
        fields = {**manifest["recipe"], **changes}
        Recipe(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


@each_file
def test_is_no_smoke_run_and_of_a_known_commit(path):
    manifest = read_manifest(path)
    assert manifest.get("profile", "full") == "full"
    assert manifest["code"]["commit"], "run from a checkout, so that others can find the code that ran"


@each_file
def test_curve_and_summary_are_those_of_the_trainings(path):
    manifest = read_manifest(path)
    metric = task_of(Recipe.from_dict(manifest["recipe"]), 1).metric
    if manifest.get("kind") == "comparison":
        for arm, summary in manifest["summary"].items():
            values = [entry[metric] for entry in manifest["results"] if entry["arm"] == arm]
            assert summary["n"] == len(values)
            assert summary["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    else:
        assert [record["epoch"] for record in manifest["curve"]] == list(range(1, len(manifest["curve"]) + 1))
        if not ("validation" in manifest["data"] or "refresh" in manifest):  # the last epoch saw the test images
            assert manifest["curve"][-1][metric] == pytest.approx(manifest["final"][metric], abs=0.02)


@each_file
def test_no_place_and_no_name_in_it(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|work)/", text)
    assert "hostname" not in text


# --- claims ---------------------------------------------------------------------------------------------------------


def test_every_claim_has_a_verdict_on_every_recipe(claims, records):
    for claim in claims:
        for found in ledger.judge(claim, records):
            assert found.verdict in VERDICTS
            assert found.verdict == verdict(found.differences, claim.margin, claim.pairs)
            assert (found.n == 0) == (found.verdict == "not run")
            assert found.n == len(set(found.seeds))


def test_decided_verdicts_have_the_pairs_they_asked_for(claims, records):
    for found in (found for claim in claims for found in ledger.judge(claim, records)):
        if found.verdict in ("held here", "contradicted on this recipe", "equivalent"):
            assert found.n >= found.claim.pairs


def test_no_two_claims_say_the_same(claims):
    told = [(claim.dataset, claim.arms, claim.metric) for claim in claims]
    assert len(set(told)) == len(told)


def test_claims_use_the_margins_that_the_book_set(claims):
    little = "cifar10_anchors"  # asks whether pictures cost little, which is more than a difference that we can see
    assert {claim.margin for claim in claims if claim.metric == "accuracy" and claim.id != little} <= {0.3}
    assert {claim.margin for claim in claims if claim.metric == "miou"} <= {1.0}
    assert all(claim.pairs >= 6 for claim in claims)  # five cannot reach p = 0.05 by sign flips


def test_sources_are_in_the_bibliography(claims, literature):
    keys = set(re.findall(r"^@\w+\{(\w+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    for entry in (*claims, *literature):
        assert entry.source in keys | {"this book"} or entry.source.endswith("model zoo"), entry.id


# --- literature -----------------------------------------------------------------------------------------------------


def test_recipes_that_would_reproduce_a_number_exist(literature):
    for entry in literature:
        assert entry.recipe in recipes.NAMES, entry.id
        assert recipes.get(entry.recipe).dataset == entry.dataset


def test_published_numbers_are_ones_that_could_be(literature):
    assert len(literature) > 30
    for entry in literature:
        assert entry.arm in ("softmax", "dnc")
        assert entry.metric == ("accuracy" if entry.dataset in ("cifar10", "cifar100", "imagenet") else "miou")
        assert entry.value is None or 30 < entry.value < 100
    assert len({(e.dataset, e.network, e.arm, e.source, e.note) for e in literature}) == len(literature)


def test_what_the_paper_says_of_images_is_recalled_and_what_zoos_say_is_seen(literature):
    for entry in literature:
        assert entry.verified == ("recalled" if entry.source == "wang2023visual" else "seen")
        assert ("(recalled)" in entry.text) == (entry.verified == "recalled" and entry.value is not None)
        assert entry.text.startswith("not known") == (entry.value is None)


def test_every_claim_of_others_about_softmax_has_its_published_differences(claims, literature):
    rows = ledger.ledger(claims, [], literature)
    others = [claim for claim in claims if claim.source != "this book"]
    for claim in (claim for claim in others if claim.arms == ("dnc", "softmax")):
        assert any(row.published for row in rows if row.claim is claim), claim.id
