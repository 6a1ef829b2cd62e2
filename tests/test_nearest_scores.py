"""dnc_lib.nearest_scores: the same numbers and gradients as when all is written out, and far less kept."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import LargestTensor

from dnc_lib import SubCentroidHead, nearest_scores
from dnc_lib.nearest_scores import _gathered, _multiplied


@pytest.fixture
def by_blocks(monkeypatch):
    """Small inputs take the path of large ones: blocks of about 20 rows, nothing written out."""
    monkeypatch.setattr(nearest_scores, "WRITTEN_OUT", 0)
    monkeypatch.setattr(nearest_scores, "CPU_BLOCK", 300)


def written_out(x, vectors):
    """(..., D) and (C, K, D) to (..., C), as the definition says it."""
    return torch.einsum("...d,ckd->...ck", x, vectors).amax(-1)


def drawn(rows=70, dim=8, classes=5, each=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1)
    return x, F.normalize(torch.randn(classes, each, dim, generator=generator, dtype=dtype), dim=-1)


def gradient(call, x, weights):
    x = x.detach().clone().requires_grad_()
    scores = call(x)
    scores.backward(weights)
    return scores.detach(), x.grad


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 9),
    classes=st.integers(1, 6),
    each=st.sampled_from([1, 2, 7, 256, 300]),
    block=st.integers(1, 500),
    seed=st.integers(0, 1000),
)
def test_scores_and_gradients_are_those_of_the_definition(rows, dim, classes, each, block, seed):
    x, vectors = drawn(rows, dim, classes, each, seed)
    weights = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    expected = gradient(lambda x: written_out(x, vectors), x, weights)
    for limit in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nearest_scores, "WRITTEN_OUT", limit)
            patch.setattr(nearest_scores, "CPU_BLOCK", block)
            found = gradient(lambda x: nearest_scores.nearest_scores(x, vectors), x, weights)
            with torch.no_grad():
                unasked = nearest_scores.nearest_scores(x, vectors)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(unasked, expected[0], rtol=0, atol=1e-6)
        if dim > 1:  # of one number every vector is 1 or -1, and all tie
            torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backward", [_gathered, _multiplied])
def test_the_gradient_is_that_of_finite_differences(by_blocks, monkeypatch, backward):
    monkeypatch.setattr(nearest_scores, "_gathered", backward)
    x, vectors = drawn(rows=33, dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nearest_scores.nearest_scores(x, vectors), x)


@pytest.mark.parametrize("each", [3, 256, 300])
def test_both_ways_back_agree(each):
    _, vectors = drawn(each=each)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(40, 5, generator=generator)
    winners = torch.randint(each, (40, 5), generator=generator)
    winners[:, 0] = each - 1
    winners = winners.to(torch.uint8 if each <= 256 else torch.int32)
    expected = torch.zeros(40, 8)
    for row in range(40):
        for c in range(5):
            expected[row] += weights[row, c] * vectors[c, int(winners[row, c])]
    for way in (_gathered, _multiplied):
        torch.testing.assert_close(way(weights, winners, vectors), expected, rtol=0, atol=1e-5)


def test_where_two_tie_the_first_wins(by_blocks):
    """Equally near to the first row, the two vectors point to its two sides."""
    vectors = torch.tensor([[[0.6, 0.8], [0.6, -0.8]]])
    _, found = gradient(lambda x: nearest_scores.nearest_scores(x, vectors), torch.eye(2), torch.ones(2, 1))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.6, 0.8]]))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_an_update_before_the_backward_pass_does_not_reach_into_it(monkeypatch, limit):
    monkeypatch.setattr(nearest_scores, "WRITTEN_OUT", limit)
    x, vectors = drawn()
    expected = gradient(lambda x: written_out(x, vectors), x, torch.ones(70, 5))[1]
    x.requires_grad_()
    scores = nearest_scores.nearest_scores(x, vectors)
    vectors.copy_(-vectors)
    scores.backward(torch.ones(70, 5))
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 8), (2, 3, 0, 8), (8,), (3, 4, 5, 8)])
def test_leading_dimensions_are_free(by_blocks, shape):
    _, vectors = drawn()
    x = torch.randn(shape, requires_grad=True)
    scores = nearest_scores.nearest_scores(x, vectors)
    assert scores.shape == (*shape[:-1], 5)
    torch.testing.assert_close(scores, written_out(x, vectors))
    scores.sum().backward()
    assert x.grad.shape == shape


def test_a_map_that_lies_channels_first(by_blocks):
    _, vectors = drawn()
    maps = torch.randn(2, 8, 5, 6).requires_grad_()  # (B, D, h, w)
    scores = nearest_scores.nearest_scores(maps.movedim(1, -1), vectors)
    torch.testing.assert_close(scores, written_out(maps.movedim(1, -1), vectors))
    expected = torch.autograd.grad(written_out(maps.movedim(1, -1), vectors).square().sum(), maps)[0]
    torch.testing.assert_close(torch.autograd.grad(scores.square().sum(), maps)[0], expected)


def test_vectors_that_learn_get_their_gradient(by_blocks):
    x, vectors = drawn()
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    nearest_scores.nearest_scores(x, ours).square().sum().backward()
    written_out(x, theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_there_is_no_second_derivative(by_blocks):
    x, vectors = drawn()
    x.requires_grad_()
    (first,) = torch.autograd.grad(nearest_scores.nearest_scores(x, vectors).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# What is made, and what is kept


def kept_bytes(call) -> int:
    """Bytes that the graph of a forward pass holds for the backward pass, each storage once."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    del result
    return sum(storages.values())


def test_one_byte_a_row_and_class_is_kept(by_blocks):
    rows, dim, classes, each = 500, 6, 7, 10
    x, vectors = drawn(rows, dim, classes, each)
    x.requires_grad_()
    assert kept_bytes(lambda: nearest_scores.nearest_scores(x, vectors)) == rows * classes + 4 * vectors.numel()
    assert kept_bytes(lambda: written_out(x, vectors)) > 4 * rows * classes * each


@pytest.mark.parametrize("backward", [_gathered, _multiplied])
def test_nothing_with_rows_classes_and_vectors_in_its_shape_is_made(monkeypatch, backward):
    monkeypatch.setattr(nearest_scores, "_gathered", backward)
    rows, dim, classes, each = 8000, 4, 9, 10
    monkeypatch.setattr(nearest_scores, "WRITTEN_OUT", 0)
    monkeypatch.setattr(nearest_scores, "CPU_BLOCK", 60_000)
    x, vectors = drawn(rows, dim, classes, each)
    x.requires_grad_()
    with LargestTensor() as largest:
        nearest_scores.nearest_scores(x, vectors).sum().backward()
    assert largest.numel == rows * classes, largest.shape
    with LargestTensor() as largest, torch.no_grad():
        nearest_scores.nearest_scores(x, vectors)
    assert largest.numel == rows * classes, largest.shape


# In the head


def test_many_pixels_are_scored_as_few_are(monkeypatch):
    torch.manual_seed(0)
    head = SubCentroidHead(16, 6, 10, memory_size=0)
    x = torch.randn(2, 5, 7, 16, requires_grad=True)
    labels = torch.randint(6, (70,))
    results = []
    for limit in (10**9, 0):
        monkeypatch.setattr(nearest_scores, "WRITTEN_OUT", limit)
        monkeypatch.setattr(nearest_scores, "CPU_BLOCK", 500)
        scores = head(x)
        loss = F.cross_entropy(scores.flatten(0, 2), labels)
        results.append((scores.detach(), *torch.autograd.grad(loss, (x, *head.parameters()))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores, head.similarities(x).amax(-1) / head.temperature)


def test_scores_and_gradients_stay_in_float32_under_autocast(by_blocks):
    torch.manual_seed(0)
    head = SubCentroidHead(16, 6, 10, memory_size=0)
    x = torch.randn(50, 16)
    expected = gradient(head, x, torch.ones(50, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient(head, x, torch.ones(50, 6))
    assert found[0].dtype == torch.float32
    assert all(map(torch.equal, found, expected))
