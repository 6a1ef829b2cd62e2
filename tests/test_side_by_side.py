"""Comparisons beside each other: the ledger's rule, and what their number costs."""

import doctest

import pytest

from dnc_lib import side_by_side as module
from dnc_lib.records import Record
from dnc_lib.side_by_side import adjusted, differences, outcome, side_by_side
from dnc_lib.statistics import PAIRS, VERDICTS, holm, paired

UP = [0.5, 0.6, 0.4, 0.5, 0.7, 0.5]


def test_every_verdict_has_a_word():
    assert set(module.WORDS) == set(VERDICTS)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([], "not run yet"),
        (UP[:5], "too early"),
        (UP, "above"),
        ([-d for d in UP], "below"),
        ([0.01, -0.02, 0.0, 0.02, -0.01, 0.01], "level"),
        ([3.0, -2.0, 1.0, -1.0, 2.0, -3.0], "open"),
    ],
)
def test_outcome(differences, said):
    assert outcome(differences, margin=0.3) == said


def test_the_number_of_pairs_is_the_books():
    assert outcome(UP[: PAIRS - 1], 0.3) == "too early"
    assert outcome(UP[:3], 0.3, pairs=3) == "above"


def test_holm_pays_for_the_rows_that_have_an_interval():
    rows = [UP, [], [0.1], [0.2, -0.1, 0.3, 0.2, 0.1, 0.4]]
    ours = [paired(row, [0.0] * len(row)).p_t for row in (rows[0], rows[3])]
    assert adjusted(rows) == [holm(ours)[0], None, None, holm(ours)[1]]
    assert adjusted(rows)[0] == pytest.approx(2 * ours[0])


def test_table_says_what_was_compared():
    text = side_by_side({"a - b": UP, "a - c": UP[:3], "a - d": [], "a - e": [1.0]}, margin=0.3)
    head, first, second, third, fourth, last = text.splitlines()
    assert head.split() == ["mean", "95", "%", "interval", "pairs", "p", "Holm"]
    found = paired(UP, [0.0] * 6)
    assert first.split()[3:8] == [f"{found.mean:+.2f}", f"{found.low:+.2f}", "to", f"{found.high:+.2f}", "6"]
    assert first.endswith("  above")
    assert "0.031" in first  # six equal signs
    assert second.endswith("  too early")
    assert third.endswith("  not run yet")
    assert fourth.split() == ["a", "-", "e", "+1.00", "none", "1", "too", "early"]
    assert last == "2 comparisons"


def test_example_in_the_docstring():
    ran = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert ran.attempted
    assert not ran.failed


def record(arm, seed, generation=3, **scores):
    data = {"train": "x"}
    return Record("cifar10_short", "cifar10", arm, seed, scores, data, "", None, 1.0, "f", generation=generation)


def test_differences_are_those_of_the_ledgers_pairs():
    records = [record("dnc", seed, auroc=80.0 + seed, other=70.0) for seed in range(4)]
    records += [record("softmax", 0, auroc=70.0), record("softmax", 1), record("softmax", 3, 1, auroc=60.0)]
    found = differences(records, "cifar10_short", ("dnc", "auroc"), ("softmax", "auroc"))
    assert found == [10.0]  # seed 1 was not asked, 2 has no twin, 3 is of other code
    assert differences(records, "cifar10_short", ("dnc", "auroc"), ("dnc", "other")) == [10.0, 11.0, 12.0, 13.0]
    assert differences(records, "cifar10_short", ("dnc", "auroc"), ("frozen", "auroc")) == []
