"""dnc_lib.memory: a ring, past its end too, whose state is whole in its buffers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import OperatorCount

from dnc_lib.memory import EmbeddingMemory

settings.register_profile("core", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("core")


def numbered(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` embeddings of 3 that say which they are, and labels that say it too; exact in half precision."""
    labels = torch.arange(first, first + count)
    return labels[:, None].float() * torch.tensor([1.0, 2.0, -1.0]), labels


def content(memory: EmbeddingMemory) -> list[int]:
    """The numbers stored, in order, after checking that embeddings and labels belong together."""
    embeddings, labels = memory.stored()
    assert embeddings.dtype == torch.float16
    assert torch.equal(embeddings, numbered(0, 1000)[0][labels].half())
    return sorted(labels.tolist())


@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
def test_the_last_ones_stay(size, pushes):
    memory, seen = EmbeddingMemory(size, 3), 0
    for count in pushes:
        memory.push(*numbered(seen, count))
        seen += count
        assert content(memory) == list(range(max(0, seen - size), seen))
        assert len(memory) == min(seen, size)
    assert int(memory.written) == seen


@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=6), st.lists(st.integers(0, 30), max_size=4))
def test_reloaded_it_goes_on_where_it_stopped(size, before, after):
    memory, seen = EmbeddingMemory(size, 3), 0
    for count in before:
        memory.push(*numbered(seen, count))
        seen += count
    reloaded = EmbeddingMemory(size, 3)
    reloaded.load_state_dict(copy.deepcopy(memory.state_dict()))
    for count in after:
        for each in (memory, reloaded):
            each.push(*numbered(seen, count))
        seen += count
    for name, buffer in memory.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], buffer), name


def test_what_others_write_is_seen():
    """How much was pushed is kept beside the buffer, to spare reading it from a device; the buffer has the say."""
    memory = EmbeddingMemory(4, 3)
    memory.push(*numbered(0, 3))
    fuller, twin = EmbeddingMemory(4, 3), copy.deepcopy(memory)
    fuller.push(*numbered(0, 6))
    memory.load_state_dict(fuller.state_dict())
    assert len(memory) == 4
    memory.push(*numbered(6, 1))
    assert content(memory) == [3, 4, 5, 6]
    memory.written.fill_(2)  # as a broadcast to the other ranks does
    assert len(memory) == 2
    memory.written = torch.tensor(1)  # as a move to another device does
    assert len(memory) == 1
    assert len(twin) == 3
    for _ in range(3):  # as many changes as there were before the copy
        twin.written.fill_(4)
    assert len(twin) == 4
    with torch.inference_mode():
        made = EmbeddingMemory(4, 3)
        made.push(*numbered(0, 3))
        made.written.fill_(1)
        assert len(made) == 1


def test_pushing_does_not_read_from_the_device():
    memory = EmbeddingMemory(4, 3)
    memory.push(*numbered(0, 3))
    with OperatorCount() as count:
        for first in (3, 5):
            memory.push(*numbered(first, 2))
            memory.stored()
    assert count.waits == 0
    assert content(memory) == [3, 4, 5, 6]


def test_one_push_larger_than_the_ring_keeps_the_newest():
    memory = EmbeddingMemory(4, 3)
    memory.push(*numbered(0, 3))
    memory.push(*numbered(3, 11))
    assert content(memory) == [10, 11, 12, 13]
    memory.push(*numbered(14, 2))
    assert content(memory) == [12, 13, 14, 15]


def test_only_what_was_written_is_given_back():
    memory = EmbeddingMemory(100, 3)
    assert [len(each) for each in memory.stored()] == [0, 0]
    memory.push(*numbered(0, 7))
    assert [len(each) for each in memory.stored()] == [7, 7]


def test_a_memory_of_nothing():
    memory = EmbeddingMemory(0, 3)
    memory.push(*numbered(0, 5))
    assert len(memory) == 0
    assert memory.stored()[0].shape == (0, 3)
    assert int(memory.written) == 0


def test_clear_forgets_and_starts_anew():
    memory = EmbeddingMemory(4, 3)
    memory.push(*numbered(0, 6))
    memory.clear()
    assert len(memory) == 0
    assert (memory.labels == -1).all()
    memory.push(*numbered(6, 2))
    assert content(memory) == [6, 7]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_precision_goes_in(dtype):
    memory = EmbeddingMemory(4, 3)
    x, labels = numbered(0, 6)
    memory.push(x.to(dtype), labels.to(torch.uint8))
    assert content(memory) == [2, 3, 4, 5]


def test_no_graph_is_kept():
    memory = EmbeddingMemory(4, 3)
    memory.push(numbered(0, 2)[0].requires_grad_(), torch.arange(2))
    assert not memory.embeddings.requires_grad


def test_it_is_all_buffers():
    memory = EmbeddingMemory(4, 3)
    assert list(memory.parameters()) == []
    assert set(memory.state_dict()) == {"embeddings", "labels", "written"}


def test_the_promised_size():
    memory = EmbeddingMemory(1000, 2048)  # a 256th of 256,000
    assert 256 * sum(each.numel() * each.element_size() for each in memory.buffers()) <= 1.1e9


def test_negative_size():
    with pytest.raises(ValueError, match=r"^memory_size must be 0 or more, got -1$"):
        EmbeddingMemory(-1, 3)


def test_a_checkpoint_of_another_size_is_refused_by_name():
    with pytest.raises(RuntimeError, match=r"size mismatch for embeddings.*\[8, 3\].*\[4, 3\]"):
        EmbeddingMemory(4, 3).load_state_dict(EmbeddingMemory(8, 3).state_dict())


def test_it_says_its_size():
    assert repr(EmbeddingMemory(4, 3)) == "EmbeddingMemory(size=4, dim=3)"
