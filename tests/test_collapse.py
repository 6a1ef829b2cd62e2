"""Are these prototypes one? Against cases whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc_lib.collapse import collapse, within_class_cosine
from dnc_lib.heads import SubCentroidHead


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_copies_are_one_and_right_angles_are_several():
    one = torch.randn(5, 1, 16, generator=generator(0)).expand(5, 4, 16)
    found = collapse(3 * one)  # lengths do not matter
    assert (found.effective, found.within_class_cosine, found.merged) == (pytest.approx(1), pytest.approx(1), 1.0)
    found = collapse(torch.eye(12).view(3, 4, 12))
    assert (found.effective, found.within_class_cosine, found.merged) == (pytest.approx(4), pytest.approx(0), 0.0)


def test_a_class_that_is_one_and_a_class_that_is_not():
    vectors = torch.eye(8).view(2, 4, 8).clone()
    vectors[0] = vectors[0, :1]
    found = collapse(vectors)
    assert found.merged == 0.5
    assert found.effective == pytest.approx((1 + 4) / 2)
    assert found.within_class_cosine == pytest.approx(0.5)


def test_two_directions_among_four_vectors_count_as_two():
    first, second = torch.eye(2)
    assert collapse(torch.stack([first, first, second, second])[None]).effective == pytest.approx(2)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_turning_and_reordering_change_nothing_and_the_range_is_kept(classes, number, dim, seed):
    vectors = torch.randn(classes, number, dim, generator=generator(seed), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed + 1), dtype=torch.float64)).Q
    found, other = collapse(vectors), collapse(vectors[:, torch.randperm(number, generator=generator(seed))] @ turn)
    assert found.effective == pytest.approx(other.effective)
    assert found.within_class_cosine == pytest.approx(other.within_class_cosine)
    assert 1 - 1e-9 <= found.effective <= min(number, dim) + 1e-9
    unit = F.normalize(vectors, dim=-1)
    pairs = [float(c[i] @ c[j]) for c in unit for i in range(number) for j in range(number) if i != j]
    assert found.within_class_cosine == pytest.approx(sum(pairs) / len(pairs) if pairs else 1.0)


def test_a_head_logs_the_same_number():
    head = SubCentroidHead(16, 3, num_subcentroids=4)
    found = collapse(head.class_vectors())
    assert head.diagnostics()["within_class_cosine"] == pytest.approx(found.within_class_cosine, abs=1e-6)
    assert within_class_cosine(head.subcentroids) == pytest.approx(found.within_class_cosine, abs=1e-6)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 3, 4), torch.ones(3, 4), torch.full((1, 2, 3), math.nan), torch.ones(0, 2, 3)]
)
def test_what_has_no_direction_is_refused(wrong):
    with pytest.raises(ValueError, match="prototypes"):
        collapse(wrong)
