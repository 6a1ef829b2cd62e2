"""What the chapters say of recorded runs follows from the records: cells print the verdicts, nobody types them."""

import re
import sys
from pathlib import Path

import pytest

from dnc_lib import ledger
from dnc_lib.plates import as_records
from dnc_lib.records import read_manifest
from dnc_lib.statistics import VERDICTS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import book as tools  # noqa: E402

RULE = {"can_we_see": "## 7. A margin, and five verdicts"}  # chapter: section that explains the verdicts' words
STARTS = (
    "intro", "nearest_centroids", "sub_centroids", "balanced_assignment", "distances", "loop_by_hand", "can_we_see",
    "cifar10", "explaining", "explorer",
)  # fmt: skip
OF_RECORDS = ("intro", "can_we_see", "cifar10")  # these tell what recorded runs say of claims

#: A verdict's words. Two are also plain English: "equivalent" counts where it is marked as a word of the rule, "not
#: run" also after a verb.
TYPED = re.compile(
    r"\b(?:was|were|is|are|been|yet) not run\b|[*`]not run[*`]|"
    r"\binconclusive\b|\bheld here\b|\bcontradicted\b|[*`]equivalent[*`]"
)
#: An arm, however it is written.
ARM = re.compile(r"`(softmax|cosine|frozen|dnc)\b[^`]*`|\b([Ss]oftmax|DNC)\b")
#: Words that set one arm over another.
OVER = re.compile(
    r"\b(better|worse|best|worst|ahead|beats?|wins?|lost|loses?|outperforms?|higher|lower|on top|"
    r"(more|less) accurate|points? (above|below|behind))\b"
)
#: A sentence that tells whose claim it is, what it asks or what it orders the reader to do, and not what came out.
NO_OUTCOME = re.compile(r"\?\s*$|\b(claims?|paper|reports|predict|suppose|guess)\b", re.IGNORECASE)
#: What `dnc_lib.ledger.say` makes.
SAID = re.compile(
    r"On [a-z][\w=(), ]*?(?:: [\w=. ]+ against [\w=. ]+ was not run\.|"
    r", [\w=. ]+ is [\d.]+ points[\w ]* (?:above|below) [^:]*\): (?:" + "|".join(VERDICTS) + r")\.)"
)


def sentences(text: str) -> list[str]:
    """Those of a markdown cell; tables, code and formulas are none."""
    plain = re.sub(r"```.*?```|\$\$.*?\$\$", "", text, flags=re.DOTALL)
    plain = "\n".join("" if line.startswith(("|", "#")) else line for line in plain.split("\n"))
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d\.)\s)", plain)
    return [s for part in parts for s in re.split(r"(?<=[.?!:])[*)]*\s+(?=[*(\"A-Z`])", " ".join(part.split())) if s]


def outcomes(text: str) -> list[str]:
    """Sentences of a markdown cell that set one arm over another."""
    said = [s for s in sentences(text) if OVER.search(s) and not NO_OUTCOME.search(s)]
    return [s for s in said if len({"".join(found).lower() for found in ARM.findall(s)}) > 1]


def markdown(chapter: str) -> list[str]:
    """The markdown cells of a chapter, the section that explains the rule left out."""
    cells, skipping = [], False
    for cell in tools.read(tools.BOOK / f"{chapter}.ipynb").cells:
        if cell.cell_type != "markdown":
            continue
        if re.search(r"^## ", cell.source, re.MULTILINE):
            skipping = RULE.get(chapter, "\0") in cell.source
        if not skipping:
            cells.append(cell.source)
    return cells


def printed(chapter: str) -> str:
    """All that the cells of a chapter print, spaces and line breaks alike."""
    cells = tools.read(tools.BOOK / f"{chapter}.ipynb").cells
    texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    return " ".join(" ".join(texts).split())


@pytest.fixture(scope="module")
def verdicts():
    """Claim -> all verdicts on it, from the records as they are now."""
    results = tools.BOOK / "results"
    records = ledger.load_results(results) + as_records(read_manifest(results / "transfer" / "plates.json"))
    claims = ledger.load_claims(tools.BOOK / "claims.yaml")
    return {claim.id: ledger.judge(claim, records) for claim in claims}


@pytest.mark.parametrize("chapter", STARTS)
def test_no_verdict_is_typed(chapter):
    assert {name: RULE[name] in "".join(c.source for c in tools.read(tools.BOOK / f"{name}.ipynb").cells)
            for name in RULE} == dict.fromkeys(RULE, True)  # fmt: skip
    for text in markdown(chapter):
        found = TYPED.search(text)
        assert not found, f"{chapter} says {found[0]!r} in words of its own: let `say` print it\n{text}"


@pytest.mark.parametrize("chapter", OF_RECORDS)
def test_no_order_of_arms_is_typed(chapter):
    for text in markdown(chapter):
        assert not outcomes(text), f"{chapter} types an outcome that a record could contradict: let a cell print it"


def test_what_these_two_tests_look_for_is_found():
    assert TYPED.search("Until those are run, the verdict is the one that a tested function will give: *not run*.")
    assert TYPED.search("On this recipe the claim was contradicted.")
    assert TYPED.search("The two are *equivalent*.")
    assert TYPED.search("DNC against softmax was not run on CIFAR-100.")
    assert not TYPED.search("The two ways of writing it are equivalent.")
    assert not TYPED.search("Where scripts do not run, here is a picture.")
    once = "Softmax, on this seed, is ahead of DNC by half a point. Before you conclude anything, read on."
    assert outcomes(once) == ["Softmax, on this seed, is ahead of DNC by half a point."]
    assert outcomes("On photographs `frozen` does better than `dnc`.")
    assert not outcomes("The paper's claim is that DNC is better than softmax.")
    assert not outcomes("Does DNC do better than softmax?")
    assert not outcomes("Both `softmax` and `cosine` learn their vectors.")


def test_every_sentence_that_a_chapter_prints_is_what_the_records_say_now(verdicts):
    now = {ledger.say(found) for each in verdicts.values() for found in each}
    recipes = {found.recipe for each in verdicts.values() for found in each}
    for each in verdicts.values():  # and a chapter may say that a claim was not run on a recipe
        absent = recipes - {found.recipe for found in each}
        now |= {ledger.say(ledger.Verdict(each[0].claim, recipe)) for recipe in absent}
    seen = 0
    for path in tools.chapters():
        for sentence in SAID.findall(printed(path.stem)):
            if sentence.startswith("On digits, "):  # trained by the chapter itself
                continue
            seen += 1
            assert any(each.startswith(sentence) for each in now), f"{path.stem}: `make refresh`: {sentence}"
    assert seen >= 10


def test_all_sentences_have_the_form_that_this_file_looks_for(verdicts):
    for each in verdicts.values():
        for found in each:
            match = SAID.match(ledger.say(found))
            assert match, ledger.say(found)
            assert ledger.say(found)[match.end() :].startswith(" It stands beside" if found.beside else ""), match[0]


@pytest.mark.parametrize(
    ("chapter", "claims"),
    [
        ("cifar10", ["cifar10_dnc_softmax"]),
        ("can_we_see", ["cifar10_dnc_softmax", "cifar10_dnc_cosine", "cifar10_dnc_frozen"]),
    ],
)
def test_no_recipe_is_left_out(chapter, claims, verdicts):
    text = printed(chapter)
    for claim in claims:
        for found in verdicts[claim]:
            assert ledger.say(found) in text, f"{chapter} does not tell of {found.recipe}: `make refresh`"


def test_the_first_page_answers_its_five_questions(verdicts):
    text = printed("intro")
    answers = ("cifar10_dnc_softmax", "cifar10_dnc_learned", "cifar10_k4_k1", "cifar10_anchors", "camvid_dnc_softmax")
    for number, claim in enumerate(answers, 1):
        counted = [found for found in verdicts[claim] if not found.beside] or verdicts[claim]
        said = [found for found in counted if f"({number}) {ledger.say(found)}" in text]
        assert len(said) == 1, f"question {number} has no answer of now: `make refresh`"
        assert said[0].n == max(found.n for found in counted), "a recipe with fewer pairs speaks"


def test_set_up_names_the_chapters_that_need_data():
    titles = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "CamVid": "camvid"}
    text = (tools.BOOK / "setup.md").read_text("utf8")
    rows = re.findall(r"^\| (\S+) \| (.*\.ipynb.*) \|$", text, re.MULTILINE)
    told = {titles[data]: set(re.findall(r"\((\w+)\.ipynb\)", chapters)) for data, chapters in rows}
    needed: dict[str, set] = {}
    for path in tools.chapters():
        for name in tools.read(path).metadata.get("dnc", {}).get("needs", []):
            needed.setdefault(name, set()).add(path.stem)
    assert told == needed
