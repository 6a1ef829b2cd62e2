"""What the chapters from the audit to road scenes say of recorded runs: one rule, claims that exist, any records.

The records of the book grow. So the cells that read them are run here with none, with a few and with more than there
are, and may neither fail nor print a verdict that the rule would not give.
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path

import matplotlib
import pytest
from test_sentences import markdown, outcomes

from dnc_lib import ledger
from dnc_lib import records as records_module
from dnc_lib.side_by_side import EARLY, WORDS
from dnc_lib.statistics import PAIRS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import book as tools  # noqa: E402

CHAPTERS = ("audit", "knowing", "new_classes", "sub_categories", "transfer", "road_scenes", "pixels")
OF_RECORDS = ("audit", "knowing", "new_classes", "sub_categories")  # whose cells of records need no training before
FOREIGN = ("digits", "uniform", "gaussian", "textures", "shuffled")

#: By these a cell is known that reads records.
READS = re.compile(
    r"\b(?:load_results|runs_of|side_by_side|differences|effect|values_of|by_seed|judge|adjusted)\(|"
    r"\bshow\([A-Z{]|\b(?:values|mean)\(arm"
)

#: Names that cells of records take from cells that train, or show images.
LENT = {
    "knowing": {"rated": dict.fromkeys(FOREIGN), "draw_reliability": lambda *_: None},
    "new_classes": {
        "WAYS": {"": "own", "_one": "one", "_means": "means", "_centred": "centred", "_knn": "neighbours"}
    },
    "sub_categories": {"HEADINGS": {"nmi": "own", "nmi_kmeans": "k-means", "purity": "purity", "fine_knn": "k-NN"}},
}


def cells(chapter: str) -> list:
    return [cell for cell in tools.read(ROOT / "book" / f"{chapter}.ipynb").cells if cell.cell_type == "code"]


def of_records(chapter: str) -> list:
    return [cell for cell in cells(chapter) if READS.search(cell.source)]


# --- one rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", tools.chapters(), ids=lambda path: path.stem)
def test_no_chapter_has_a_threshold_of_pairs_of_its_own(path):
    for cell in tools.read(path).cells:
        if cell.cell_type == "code" and "exercise" not in " ".join(tools.tags(cell)):
            assert not re.search(r"^\s*(?:PAIRS|LEAST_PAIRS|MIN_PAIRS)\s*=\s*\d", cell.source, re.MULTILINE)
            assert not re.search(r"\b(?:outcome|side_by_side)\([^)]*\bpairs=\s*\d", cell.source)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_verdicts_come_from_the_ledgers_rule(chapter):
    sources = "\n".join(cell.source for cell in cells(chapter))
    assert re.search(r"from dnc_lib\.(?:side_by_side|ledger) import|ledger\.(?:judge|say)", sources)
    assert "statistics.verdict(" not in sources  # by `outcome` and `judge` alone, which know the number of pairs


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_claims_that_a_chapter_names_exist(chapter):
    known = {claim.id for claim in ledger.load_claims(ROOT / "book" / "claims.yaml")}
    sources = "\n".join(cell.source for cell in cells(chapter))
    named = set(re.findall(r"claims\[\"(\w+)\"\]|\.id == \"(\w+)\"", sources))
    for each in (name for pair in named for name in pair if name):
        assert each in known, each
    for start in re.findall(r"\.id\.startswith\(\"(\w+)\"\)", sources):
        assert any(each.startswith(start) for each in known), start
    assert named or chapter in ("audit", "transfer", "road_scenes", "pixels")


@pytest.mark.parametrize("chapter", [each for each in CHAPTERS if each != "transfer"])  # its records are whole
def test_tables_of_growing_records_are_not_compared_to_the_letter(chapter):
    for cell in cells(chapter):
        if re.search(r"print\(.*\b(?:side_by_side|say)\(", cell.source):
            assert "nbval-ignore-output" in tools.tags(cell), cell.source[:200]


def test_the_audit_says_too_early_of_few_pairs_and_nothing_else():
    shown = [
        output["data"]["text/html"]
        for cell in cells("audit")
        if "does it matter?" in cell.source
        for output in cell.outputs
    ]
    (table,) = shown
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    rows = [row for row in rows if row]
    assert len(rows) > 10
    for *_, pairs, p, holm, said in rows:
        if not pairs:
            assert said == "not run yet"
        else:
            assert (said == EARLY) == (int(pairs) < PAIRS)
            assert (p == holm == "") == (pairs == "1") or p  # beside every interval stands p


# --- any records ----------------------------------------------------------------------------------------------------


def imports_of(source: str) -> str:
    """The import statements of a cell."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("!", "%"))))
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


def grown(found: list) -> list:
    """As many seeds again, and an arm that no chapter knows."""
    more = [dataclasses.replace(each, seed=each.seed + 100) for each in found]
    new = [dataclasses.replace(each, arm="dnc num_subcentroids=3") for each in found if each.arm == "dnc"]
    return [*found, *more, *new]


def few(found: list) -> list:
    """One seed, and half of the arms."""
    arms = sorted({(each.recipe, each.arm) for each in found})[::2]
    return [each for each in found if each.seed == 0 and (each.recipe, each.arm) in arms]


WAYS = {"none": lambda found: [], "few": few, "all": list, "grown": grown}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chapter", OF_RECORDS)
def test_cells_of_records_take_what_is_there(chapter, way, monkeypatch, capsys):
    matplotlib.use("Agg", force=True)
    monkeypatch.chdir(ROOT / "book")
    found = WAYS[way](ledger.load_results("results"))
    for module in (ledger, records_module):
        monkeypatch.setattr(module, "load_results", lambda folder: found)
    space = {"display": lambda *_: None}
    for cell in cells(chapter):
        tags = tools.tags(cell)
        if "exercise" in " ".join(tags) or {"solution", "wrong", "colab"} & set(tags):
            continue
        exec(imports_of(cell.source), space)
    space |= LENT.get(chapter, {})
    run = 0
    for cell in cells(chapter):
        if "parameters" in tools.tags(cell) or (READS.search(cell.source) or "audit = yaml" in cell.source):
            if chapter == "audit" and "def four_clusters" in cell.source:
                continue
            exec(cell.source, space)
            run += 1
    space["plt"].close("all")
    assert run > 3
    said = capsys.readouterr().out
    if way == "none":
        assert "not run yet" in said
        decided = [word for word in WORDS.values() if word not in ("not run yet", "open")]
        assert not re.search(rf"  (?:{'|'.join(decided)})$", said, re.MULTILINE)
    if way == "few":
        assert not re.search(r"  (?:above|below|level|open)$", said, re.MULTILINE)  # one pair decides nothing


# --- markdown -------------------------------------------------------------------------------------------------------

#: Sentences that set one arm over another and yet are no outcome: a claim, the legend of a figure, a condition.
NO_OUTCOMES = ("*a class added from ten images is recognised better", "Dots above the line are images", "If ")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_order_of_arms_is_typed(chapter):
    for text in markdown(chapter):
        typed = [each for each in outcomes(text) if not each.startswith(NO_OUTCOMES)]
        assert not typed, f"{chapter} types an outcome that a record could contradict: let a cell print it"
