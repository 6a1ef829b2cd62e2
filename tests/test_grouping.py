"""dnc_lib.grouping: the two products by class, equal to what a gather would give, without a large tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import LargestTensor

from dnc_lib import grouping
from dnc_lib.grouping import HIGHEST, ClassRows, ClassTiles, block_length, few_rows, group_rows

settings.register_profile("core", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("core")


def expected(x, labels, vectors, assignment):
    """Own-class scores (N, K), sums (C, K, D) and counts (C, K), by the plainest means, in float64."""
    x, vectors = x.double(), vectors.double()
    scores = (x[:, None] * vectors[labels]).sum(-1)
    sums, counts = torch.zeros_like(vectors), torch.zeros(vectors.shape[:2], dtype=torch.float64)
    sums.index_put_((labels, assignment), x, accumulate=True)
    counts.index_put_((labels, assignment), torch.ones(len(x), dtype=torch.float64), accumulate=True)
    return scores, sums, counts


@st.composite
def problems(draw):
    """x (N, D), labels (N,) even or very uneven, vectors (C, K, D), assignment (N,)."""
    number, dim = draw(st.integers(0, 300)), draw(st.integers(1, 9))
    num_classes, k = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    unevenness = draw(st.sampled_from([1.0, 3.0, 20.0]))
    labels = (torch.rand(number, generator=generator) ** unevenness * num_classes).long()
    x, vectors = torch.randn(number, dim, generator=generator), torch.randn(num_classes, k, dim, generator=generator)
    return x, labels, vectors, torch.randint(k, (number,), generator=generator)


@given(problems(), st.sampled_from([1, 40, 1 << 18]))
def test_both_products(problem, block):
    x, labels, vectors, assignment = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CPU_BLOCK", block)
        tiles = ClassTiles(x, labels, len(vectors))
        scores, sums, counts = expected(x, labels, vectors, assignment)
        torch.testing.assert_close(tiles.own_scores(vectors).double(), scores, rtol=0, atol=1e-5)
        found, numbers = torch.ones(vectors.shape), torch.ones(vectors.shape[:2])  # they are added to what is there
        tiles.add_sums(assignment, found, numbers)
        torch.testing.assert_close(found.double(), 1 + sums, rtol=0, atol=1e-4)
        assert torch.equal(numbers.double(), 1 + counts)
        assert len(tiles) == len(x)


@given(problems(), st.sampled_from([0, 16]), st.sampled_from([1, 40, 1 << 19]))
def test_few_rows_need_no_tiles(problem, few_classes, block):
    x, labels, vectors, assignment = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "FEW_CLASSES", few_classes)  # by one product with all classes, or by own vectors
        patch.setattr(grouping, "CPU_BLOCK", block)
        for rows, tolerance in ((ClassRows(x, labels), 1e-4), (ClassRows(x.half(), labels), 1e-1)):
            scores, sums, counts = expected(x, labels, vectors, assignment)
            close = {"rtol": 0, "atol": tolerance}
            torch.testing.assert_close(rows.own_scores(vectors).double(), scores, **close)
            found, numbers = torch.ones(vectors.shape), torch.ones(vectors.shape[:2])
            rows.add_sums(assignment, found, numbers)
            torch.testing.assert_close(found.double(), 1 + sums, rtol=0, atol=1e-4 if tolerance < 1e-2 else 2e-1)
            assert torch.equal(numbers.double(), 1 + counts)


def test_which_way_suits():
    """A batch of few classes meets all vectors, one of many classes its own; what is large is grouped."""
    cpu = torch.device("cpu")
    assert few_rows(128, (10, 4, 512), cpu)
    assert few_rows(1128, (10, 4, 512), cpu)
    assert few_rows(12_928, (10, 4, 64), cpu)
    assert few_rows(128, (1000, 4, 512), cpu)
    assert not few_rows(12_928, (10, 4, 512), cpu)
    assert not few_rows(12_800, (1000, 4, 2048), cpu)
    assert few_rows(12_928, (10, 4, 512), torch.device("cuda"))
    assert not few_rows(256_000, (1000, 4, 2048), torch.device("cuda"))
    labels = torch.arange(128) % 10
    assert isinstance(group_rows(torch.zeros(128, 64), labels, (10, 4, 64)), ClassRows)
    assert isinstance(group_rows(torch.zeros(128, 64), labels, (10**6, 4, 64)), ClassRows)
    assert isinstance(group_rows(torch.zeros(128, 9000), labels, (100, 4, 9000)), ClassTiles)


@given(problems())
def test_padding_stays_below_half(problem):
    _, labels, vectors, _ = problem
    tiles = ClassTiles(torch.zeros(len(labels), 1), labels, len(vectors))
    assert tiles.num_tiles * tiles.height <= 1.5 * len(labels)
    assert tiles.height <= HIGHEST


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_multiplied_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    x, vectors = torch.randn(50, 64, generator=generator).to(dtype), torch.randn(3, 4, 64, generator=generator)
    labels, assignment = torch.arange(50) % 3, torch.arange(50) % 4
    scores, sums, _ = expected(x, labels, vectors, assignment)
    tiles = ClassTiles(x, labels, 3)
    found = torch.zeros(vectors.shape)
    tiles.add_sums(assignment, found, torch.zeros(3, 4))
    assert tiles.own_scores(vectors).dtype == torch.float32
    torch.testing.assert_close(tiles.own_scores(vectors).double(), scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.double(), sums, rtol=0, atol=1e-4)


def test_float64_stays_float64():
    tiles = ClassTiles(torch.rand(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.long), 1)
    assert tiles.own_scores(torch.rand(1, 3, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integers_are_labels(dtype):
    x, labels, vectors = torch.rand(20, 4), torch.arange(20) % 3, torch.rand(3, 2, 4)
    found = ClassTiles(x, labels.to(dtype), 3).own_scores(vectors)
    assert torch.equal(found, ClassTiles(x, labels, 3).own_scores(vectors))


def test_no_rows():
    tiles = ClassTiles(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 3)
    assert tiles.own_scores(torch.rand(3, 2, 4)).shape == (0, 2)
    sums, counts = torch.zeros(3, 2, 4), torch.zeros(3, 2)
    tiles.add_sums(torch.zeros(0, dtype=torch.long), sums, counts)
    assert not sums.any()
    assert not counts.any()


@pytest.mark.parametrize("num_classes", [1, 1000])
def test_neither_product_makes_a_large_tensor(num_classes, monkeypatch):
    monkeypatch.setattr(grouping, "CPU_BLOCK", 1 << 14)
    number, dim, k = 4000, 64, 4
    x, labels = torch.randn(number, dim).half(), torch.randint(num_classes, (number,))
    vectors, assignment = torch.randn(num_classes, k, dim), torch.randint(k, (number,))
    sums, counts = torch.zeros(num_classes, k, dim), torch.zeros(num_classes, k)
    with LargestTensor() as largest:
        tiles = ClassTiles(x, labels, num_classes)
        tiles.own_scores(vectors)
        tiles.add_sums(assignment, sums, counts)
    # a block of rows, the scores with their padding, or the sums themselves; a float32 copy of x has 256,000 numbers
    assert largest.numel <= max(1 << 14, 1.5 * number * k, sums.numel()), largest.shape


def test_block_length(monkeypatch):
    monkeypatch.setattr(grouping, "CPU_BLOCK", 100)
    cpu = torch.device("cpu")
    assert [block_length(each, cpu) for each in (0, 1, 30, 100, 101)] == [100, 100, 3, 1, 1]
    assert block_length(1 << 20, torch.device("cuda")) == 64
