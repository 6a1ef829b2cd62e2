"""dnc_lib.heads: scores, gradients, the update against a slow float64 reference, estimates, state, bad input."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.special import logsumexp
from tracing import LargestTensor, OperatorCount

from dnc_lib import CosineHead, SoftmaxHead, SubCentroidHead, grouping
from dnc_lib.heads import HEADS, build_head
from dnc_lib.sinkhorn import ASSIGNMENTS

settings.register_profile("core", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("core")

C, K, D = 5, 3, 16


def make(**changes) -> SubCentroidHead:
    """A small head whose LayerNorm is not the identity, so that a test notices where it is left out."""
    head = SubCentroidHead(D, C, **{"num_subcentroids": K, "momentum": 0.9, "memory_size": 40, **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head.norm.weight.add_(0.3 * torch.randn(D, generator=generator))
        head.norm.bias.add_(0.3 * torch.randn(D, generator=generator))
    return head


def batch(number: int = 30, seed: int = 0, classes: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw features (N, D), far from unit length, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(number, D, generator=generator) + 1
    return x, torch.randint(classes, (number,), generator=generator)


def state(head) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    """Bit for bit the same state, except for the entries named."""
    assert found.keys() == expected.keys()
    changed = [name for name in found if not torch.equal(found[name], expected[name])]
    assert set(changed) == set(but)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same state up to rounding: counts and labels equal; products of other shapes may add in another order."""
    assert found.keys() == expected.keys()
    for name, values in found.items():
        atol = {torch.float32: 1e-6, torch.half: 1e-3}.get(values.dtype, 0)
        torch.testing.assert_close(values, expected[name], rtol=0, atol=atol)


def assert_unit(head) -> None:
    lengths = head.subcentroids.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


# Scores


def test_a_score_is_the_cosine_to_the_nearest_sub_centroid_over_the_temperature():
    head, (x, _) = make(temperature=0.2), batch()
    x = x.double()
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + head.norm.eps).sqrt()
    normed = normed * head.norm.weight + head.norm.bias
    unit = normed / normed.norm(dim=1, keepdim=True)
    cosines = torch.einsum("nd,ckd->nck", unit, head.subcentroids.double())
    torch.testing.assert_close(head(x.float()).double(), cosines.amax(2) / 0.2, rtol=0, atol=1e-5)
    torch.testing.assert_close(head.similarities(x.float()).double(), cosines, rtol=0, atol=1e-6)
    torch.testing.assert_close(head.embed(x.float()).double(), unit, rtol=0, atol=1e-6)
    assert torch.equal(head(x.float()).argmax(1), cosines.flatten(1).argmax(1) // K)  # the nearest case decides


def test_the_cosine_heads_scores():
    head, (x, _) = CosineHead(D, C, temperature=0.2), batch()
    expected = F.cosine_similarity(head.embed(x)[:, None], head.prototypes[None], dim=2) / 0.2
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-5)
    longer = copy.deepcopy(head)
    with torch.no_grad():
        longer.prototypes.mul_(7)
    torch.testing.assert_close(longer(x), head(x), rtol=0, atol=1e-5)


def test_the_softmax_heads_scores():
    head, (x, _) = SoftmaxHead(D, C), batch()
    torch.testing.assert_close(head(x), x @ head.linear.weight.T + head.linear.bias)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (2, 5, 7), (1, 1, 1, 1)])
def test_any_leading_shape(name, shape):
    head = build_head(name, D, C, num_subcentroids=K)
    x = torch.randn(*shape, D)
    scores = head(x)
    assert scores.shape == (*shape, C)
    torch.testing.assert_close(scores.reshape(-1, C), head(x.reshape(-1, D)), rtol=0, atol=1e-5)


def test_pixels_are_samples():
    x, labels = batch(2 * 4 * 5)
    labels[3], labels[17] = 255, 255
    pixels, flat = make(ignore_index=255), make(ignore_index=255)
    pixels.update(x.view(2, 4, 5, D), labels.view(2, 4, 5))
    flat.update(x[labels != 255], labels[labels != 255])
    assert_close(state(pixels), state(flat))


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-5, 5))
def test_the_size_and_level_of_the_features_do_not_matter(seed, size, level):
    head, (x, _) = SubCentroidHead(D, C), batch(5, seed % 1000)
    torch.testing.assert_close(head(size * x + level), head(x), rtol=0, atol=2e-2 if size < 0.1 else 1e-3)


# Gradients


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("softmax", {"linear.weight", "linear.bias"}),
        ("cosine", {"norm.weight", "norm.bias", "prototypes"}),
        ("frozen", {"norm.weight", "norm.bias"}),
        ("dnc", {"norm.weight", "norm.bias"}),
    ],
)
def test_what_learns_and_what_must_not(name, learned):
    head, (x, labels) = build_head(name, D, C, num_subcentroids=K), batch()
    x.requires_grad_()
    F.cross_entropy(head(x), labels).backward()
    assert {key for key, parameter in head.named_parameters() if parameter.grad.abs().sum() > 0} == learned
    assert set(dict(head.named_parameters())) == learned
    assert not any(buffer.requires_grad for buffer in head.buffers())
    assert torch.isfinite(x.grad).all()
    assert (x.grad.abs().sum(1) > 0).all()


def test_nothing_learned_depends_on_the_number_of_classes():
    few, many = (sum(p.numel() for p in SubCentroidHead(D, c).parameters()) for c in (2, 1000))
    assert few == many == 2 * D


def test_an_update_takes_no_gradient_and_gives_none():
    head, (x, labels) = make(), batch()
    loss = F.cross_entropy(head(x.requires_grad_()), labels)
    head.update(x, labels)
    loss.backward()  # though the sub-centroids have moved meanwhile
    untouched, (same, _) = make(), batch()
    F.cross_entropy(untouched(same.requires_grad_()), labels).backward()
    assert torch.equal(x.grad, same.grad)
    assert not head.subcentroids.requires_grad
    assert not head.memory.embeddings.requires_grad
    parameters = {name: p.clone() for name, p in head.named_parameters()}
    head.update(x, labels)
    assert all(torch.equal(p, parameters[name]) for name, p in head.named_parameters())


# The update, against a slow reference


def reference_step(head: SubCentroidHead, x: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sub-centroids and wins after one update, class by class in float64, from the head's state before it."""
    unit = head.embed(x).detach().double().numpy()
    p, wins, labels = head.subcentroids.double().numpy().copy(), head.wins.numpy().copy(), labels.numpy()
    if head.correct_only:
        correct = (unit @ p.reshape(C * K, D).T).argmax(1) // K == labels
        unit, labels = unit[correct], labels[correct]
    for sample, label in zip(unit, labels, strict=True):
        wins[label, (p[label] @ sample).argmax()] += 1
    past, past_labels = head.memory.stored()
    unit = np.concatenate([unit, past.double().numpy()])
    labels = np.concatenate([labels, past_labels.numpy()])
    for c in range(C):
        own = unit[labels == c]
        scores = own @ p[c].T
        plan = scores / head.epsilon
        if head.assignment == "sinkhorn" and len(own):
            for _ in range(head.iterations):
                plan = plan - logsumexp(plan, axis=0)
                plan = plan - logsumexp(plan, axis=1, keepdims=True)
        chosen = plan.argmax(1) if len(own) else np.zeros(0, dtype=int)
        for k in range(K):
            given_to_it = own[chosen == k]
            if len(given_to_it):
                mean = given_to_it.mean(0)
                mean /= np.linalg.norm(mean)
                kept = 0.0 if head.start == "data" and not head.moved[c, k] else head.momentum
                p[c, k] = kept * p[c, k] + (1 - kept) * mean
                p[c, k] /= np.linalg.norm(p[c, k])
    return p, wins


@pytest.mark.parametrize("assignment", ["sinkhorn", "nearest"])
@pytest.mark.parametrize("start", ["random", "data"])
@pytest.mark.parametrize("correct_only", [False, True])
@pytest.mark.parametrize(("momentum", "memory_size"), [(0.9, 40), (0.5, 0), (0.0, 7), (0.999, 1000)])
def test_the_update_equals_the_reference(assignment, start, correct_only, momentum, memory_size):
    changes = {"assignment": assignment, "start": start, "correct_only": correct_only}
    head = make(momentum=momentum, memory_size=memory_size, **changes)
    for step in range(10):
        x, labels = batch(30, seed=step, classes=C - 1)  # the last class never comes
        expected, wins = reference_step(head, x, labels)
        head.update(x, labels)
        np.testing.assert_allclose(head.subcentroids.numpy(), expected, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(head.wins.numpy(), wins)
        assert_unit(head)
    assert torch.equal(head.subcentroids[C - 1], head.origin[C - 1])
    assert not head.moved[C - 1].any()
    assert int(head.updates) == 10
    if not correct_only:
        assert len(head.memory) == min(300, memory_size)
        assert int(head.wins.sum()) == 300


def test_random_assignment_follows_no_score():
    head, (x, labels) = make(assignment="random", momentum=0.0, memory_size=0), batch(3000)
    unit = head.embed(x).detach()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    head.update(x, labels)
    assert torch.equal(torch.rand(1), expected)  # the head draws from a generator of its own
    for c in range(C):  # a third of a class drawn at random has nearly the mean of the whole class
        assert (head.subcentroids[c] @ F.normalize(unit[labels == c].mean(0), dim=0)).min() > 0.9
    balanced = make(momentum=0.0, memory_size=0)
    balanced.update(x, labels)
    assert head.diagnostics()["within_class_cosine"] > 0.85 > balanced.diagnostics()["within_class_cosine"]


def test_only_what_is_classified_correctly_is_remembered():
    head, (x, labels) = make(correct_only=True), batch(200)
    correct = head(x).argmax(1) == labels
    head.update(x, labels)
    assert 0 < correct.sum() < 200
    assert len(head.memory) == min(int(correct.sum()), 40)
    expected = head.embed(x[correct]).half()[-len(head.memory) :]
    rows = {tuple(row) for row in expected.tolist()}
    assert {tuple(row) for row in head.memory.stored()[0].tolist()} == rows
    assert_unit(head)


def test_nothing_correct_changes_nothing():
    head, (x, _) = make(correct_only=True), batch()
    wrong = (head(x).argmax(1) + 1) % C
    before = state(head)
    head.update(x, wrong)
    assert_same(state(head), before)


def test_the_momentum_is_the_share_kept():
    head = SubCentroidHead(4, 1, 1, momentum=0.75, memory_size=0)
    head.subcentroids.copy_(torch.tensor([[[0.5, 0.5, -0.5, -0.5]]]))
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0]])  # LayerNorm and length make it (.5, -.5, .5, -.5), at right angles
    head.update(x, torch.tensor([0]))
    expected = F.normalize(0.75 * torch.tensor([0.5, 0.5, -0.5, -0.5]) + 0.25 * 0.5 * x[0], dim=0)
    torch.testing.assert_close(head.subcentroids[0, 0], expected, rtol=0, atol=1e-5)


def test_the_memory_takes_part():
    x, labels = batch()
    without, with_memory = make(memory_size=0), make()
    for head in (without, with_memory):
        head.update(x, labels)
    assert torch.equal(without.subcentroids, with_memory.subcentroids)  # at first it is empty
    for head in (without, with_memory):
        head.update(*batch(30, seed=9))
    assert (without.subcentroids - with_memory.subcentroids).abs().max() > 1e-3


def test_frozen_never_moves_but_counts():
    head = build_head("frozen", D, C, num_subcentroids=K, momentum=0.0, memory_size=40, start="data")
    before = state(head)
    for seed in range(5):
        head.update(*batch(30, seed))
    assert_same(state(head), before, but=("wins", "updates"))
    assert int(head.wins.sum()) == 150
    assert head.memory.size == 0
    assert head.diagnostics()["drift"] == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_samples_does_not_matter(seed):
    x, labels = batch(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    one, other = make(), make()
    one.update(x, labels)
    other.update(x[order], labels[order])
    torch.testing.assert_close(one.subcentroids, other.subcentroids, rtol=0, atol=1e-6)
    assert torch.equal(one.wins, other.wins)


def test_names_of_classes_do_not_matter():
    x, labels = batch(40)
    names = torch.tensor([3, 0, 4, 1, 2])
    one, other = make(), make()
    other.subcentroids[names] = one.subcentroids.clone()
    for head, called in ((one, labels), (other, names[labels])):
        head.update(x, called)
        head.update(*batch(0))
    torch.testing.assert_close(other.subcentroids[names], one.subcentroids, rtol=0, atol=1e-6)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_one_sample_and_one_sub_centroid(assignment):
    head = SubCentroidHead(D, C, 1, momentum=0.0, memory_size=0, assignment=assignment)
    x = torch.randn(1, D)
    head.update(x, torch.tensor([2]))
    torch.testing.assert_close(head.subcentroids[2, 0], head.embed(x)[0].detach(), rtol=0, atol=1e-6)
    assert torch.equal(head.subcentroids[[0, 1, 3, 4]], head.origin[[0, 1, 3, 4]])


@pytest.mark.parametrize("start", ["random", "data"])
def test_samples_that_cancel_out_or_have_no_direction_move_nothing(start):
    x = torch.randn(1, D)
    for momentum in (0.0, 0.5):
        head = SubCentroidHead(D, C, 1, momentum=momentum, memory_size=0, start=start)
        head.update(torch.cat([x, -x]), torch.tensor([0, 0]))  # their mean is zero
        head.update(torch.ones(3, D), torch.tensor([1, 1, 1]))  # LayerNorm leaves nothing of a constant
        head.estimate(torch.ones(3, D), torch.tensor([1, 1, 1]))
        assert_unit(head)
        torch.testing.assert_close(head.subcentroids, head.origin, rtol=0, atol=1e-6)


def test_opposite_directions_with_equal_weights_stay():
    head = SubCentroidHead(2, 1, 1, momentum=0.5, memory_size=0)  # of width 2, LayerNorm leaves two directions
    x = torch.tensor([[3.0, 1.0]])
    head.subcentroids.copy_(-head.embed(x).detach()[None])
    before = head.subcentroids.clone()
    head.update(x, torch.tensor([0]))
    assert_unit(head)
    torch.testing.assert_close(head.subcentroids, before)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_distances_are_float32(dtype):
    head, (x, labels) = make(), batch()
    x = x.to(dtype)
    plain, under = make(), make()
    for each in (plain, under):
        each.update(*batch(seed=1))
    plain.update(x, labels)
    with torch.autocast("cpu", dtype):
        scores = head(x)
        under.update(x, labels)
        estimated = make()
        estimated.estimate(x, labels)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, head(x.float()))
    assert_same(state(under), state(plain))
    directly = make()
    directly.estimate(x, labels)
    assert_same(state(estimated), state(directly))
    assert CosineHead(D, C).to(torch.float32)(x).dtype == torch.float32


def test_training_under_autocast_gives_finite_gradients():
    head, layer, (x, labels) = make(), torch.nn.Linear(D, D), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(head(layer(x)), labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in (*head.parameters(), *layer.parameters()))


def test_a_head_in_float64():
    head, (x, labels) = make().double(), batch()
    head.update(x.double(), labels)
    head.update(*batch(seed=1))
    assert head.subcentroids.dtype == torch.float64
    assert (head.subcentroids.norm(dim=-1) - 1).abs().max() < 1e-12
    assert head.memory.embeddings.dtype == torch.float64  # module.double() means all of it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_in_half_precision(dtype):
    head, (x, labels) = make(momentum=0.5).to(dtype), batch()
    assert head(x.to(dtype)).dtype == dtype
    head.update(x.to(dtype), labels)
    head.estimate(x.to(dtype), labels)
    assert head.subcentroids.dtype == dtype
    torch.testing.assert_close(head.subcentroids.float().norm(dim=-1), torch.ones(C, K), rtol=0, atol=1e-2)


# State


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_state_goes_whole_through_a_file_and_training_goes_on_as_if_nothing_had_been(tmp_path, assignment):
    head = make(start="data", assignment=assignment)
    for seed in range(4):
        head.update(*batch(17, seed))  # past the end of the memory of 40
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    reloaded = make(start="data", assignment=assignment)
    reloaded.subcentroids.zero_()
    reloaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    for seed in range(4, 9):
        head.update(*batch(17, seed))
        reloaded.update(*batch(17, seed))
    assert_same(state(reloaded), state(head))
    assert reloaded.diagnostics() == head.diagnostics()
    assert {"memory.written", "memory.embeddings", "memory.labels", "subcentroids"} <= state(head).keys()


def test_a_head_without_memory_goes_through_a_file_too(tmp_path):
    head = make(memory_size=0)
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    reloaded = make(memory_size=0, seed=5)
    reloaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert_same(state(reloaded), state(head))


def test_a_copy_goes_its_own_way():
    head = make()
    twin = copy.deepcopy(head)
    before = state(head)
    twin.update(*batch())
    assert_same(state(head), before)


def test_equal_seeds_start_alike_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.subcentroids, same.subcentroids)
    assert not torch.equal(one.subcentroids, other.subcentroids)
    assert_unit(one)


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"num_subcentroids": 4}, r"size mismatch for subcentroids.*\[5, 3, 16\].*\[5, 4, 16\]"),
        ({"memory_size": 41}, r"size mismatch for memory\.embeddings.*\[40, 16\].*\[41, 16\]"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_by_name(changes, entry):
    with pytest.raises(RuntimeError, match=entry):
        make(**changes).load_state_dict(make().state_dict())


# Estimates


def clusters(number: int, seed: int, spread: float = 0.15) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres (C, K, D) with zero mean over D, features (C K number, D) around them in random order, labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(C, K, D, generator=generator)
    centres = F.normalize(centres - centres.mean(-1, keepdim=True), dim=-1)
    x = centres.repeat_interleave(number, 1) + spread / math.sqrt(D) * torch.randn(
        C, K * number, D, generator=generator
    )
    order = torch.randperm(C * K * number, generator=generator)
    return centres, x.flatten(0, 1)[order], torch.arange(C).repeat_interleave(K * number)[order]


@pytest.mark.parametrize("seed", range(10))
def test_an_estimate_finds_clean_clusters(seed):
    centres, x, labels = clusters(50, seed)
    head = SubCentroidHead(D, C, K)
    head.estimate(x, labels)
    cosines = torch.einsum("ckd,cjd->ckj", centres, head.subcentroids)
    assert cosines.amax(2).min() > 0.995  # every cluster has a sub-centroid in its middle
    assert_unit(head)
    assert (head(x).argmax(1) == labels).float().mean() > 0.99


def test_an_estimate_is_from_scratch_and_empties_the_memory():
    x, labels = batch(200)
    fresh, used = make(), make(seed=3)
    for seed in range(3):
        used.update(*batch(30, seed))
    for head in (fresh, used):
        head.estimate(x, labels)
    assert torch.equal(fresh.subcentroids, used.subcentroids)
    assert len(used.memory) == 0
    assert used.moved.all()


def test_an_estimate_without_rounds_takes_samples():
    head, (x, labels) = make(), batch(200)
    head.estimate(x, labels, rounds=0)
    cosines = torch.einsum("ckd,nd->ckn", head.subcentroids, head.embed(x).detach())
    nearest = cosines.max(-1)
    torch.testing.assert_close(nearest.values, torch.ones(C, K), rtol=0, atol=1e-5)
    assert torch.equal(labels[nearest.indices], torch.arange(C)[:, None].expand(C, K))
    assert len(nearest.indices.unique()) == C * K


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_what_an_estimate_cannot_fill_stays(assignment):
    head, (x, _) = make(num_subcentroids=4, assignment=assignment), batch(30)
    labels = torch.tensor([0, 0] + [1] * 27 + [2])  # two of class 0, plenty of 1, one of 2, none of 3 and 4
    head.estimate(x, labels)
    moved = (head.subcentroids != head.origin).any(-1)
    assert moved.sum(1).tolist() == [2, 4, 1, 0, 0]
    assert torch.equal(head.moved, moved)
    assert_unit(head)
    unit = head.embed(x).detach()
    torch.testing.assert_close(head.subcentroids[2, 0], unit[-1], rtol=0, atol=1e-6)
    found = (head.subcentroids[0, :2] @ unit[:2].T).sort(1).values[:, 1]  # the two of class 0, one each
    torch.testing.assert_close(found, torch.ones(2), rtol=0, atol=1e-5)
    assert not torch.equal(head.subcentroids[0, 0], head.subcentroids[0, 1])


def test_an_estimate_does_not_depend_on_the_order_of_samples():
    x, labels = batch(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    one, other = make(), make()
    one.estimate(x, labels)
    other.estimate(x[order], labels[order])
    torch.testing.assert_close(one.subcentroids, other.subcentroids, rtol=0, atol=1e-5)


def test_more_rounds_bring_sub_centroids_nearer_to_their_samples():
    x, labels = batch(400)
    nearness = []
    for rounds in (0, 1, 10):
        head = make(assignment="nearest")
        head.estimate(x, labels, rounds=rounds)
        own = head.similarities(x).detach()[torch.arange(400), labels]  # (N, K)
        nearness.append(own.amax(1).mean().item())
    assert nearness == sorted(nearness)
    assert nearness[2] > nearness[0] + 0.02


def test_an_estimate_leaves_ignored_labels_out():
    x, labels = batch(100)
    spoilt = labels.clone()
    spoilt[::3] = -100
    one, other = make(), make()
    one.estimate(x, spoilt)
    other.estimate(x[spoilt != -100], labels[spoilt != -100])
    assert_close(state(one), state(other))


def test_new_classes_without_training():
    _, x, labels = clusters(50, seed=0)
    head = SubCentroidHead(D, C, K)
    old = labels < 4
    head.estimate(x[old], labels[old])
    before = head.subcentroids.clone()
    head.estimate(x[~old], labels[~old])  # class 4 alone, and the others stay
    assert torch.equal(head.subcentroids[:4], before[:4])
    assert (head(x).argmax(1) == labels).float().mean() > 0.99


# Nothing to do


@pytest.mark.parametrize("method", ["update", "estimate"])
@pytest.mark.parametrize("name", HEADS)
def test_an_empty_batch_or_only_ignored_labels_change_nothing(method, name):
    head = build_head(name, D, C, num_subcentroids=K, memory_size=10)
    head.update(*batch())
    before = state(head)
    getattr(head, method)(torch.zeros(0, D), torch.zeros(0, dtype=torch.long))
    getattr(head, method)(torch.zeros(2, 0, 3, D), torch.zeros(2, 0, 3, dtype=torch.long))
    getattr(head, method)(torch.randn(4, D), torch.full((4,), -100))
    getattr(head, method)(torch.full((4, D), torch.nan), torch.full((4,), -100))  # ignored pixels may hold anything
    assert_same(state(head), before)


def test_heads_without_sub_centroids_do_nothing_at_an_update():
    for head in (SoftmaxHead(D, C), CosineHead(D, C)):
        before = state(head)
        head.update(*batch())
        head.estimate(*batch())
        assert_same(state(head), before)
        assert head.diagnostics() == {}


# Diagnostics


def test_diagnostics_of_known_configurations():
    head = SubCentroidHead(D, 2, 4, memory_size=0)
    assert head.diagnostics()["drift"] == pytest.approx(0, abs=1e-6)
    assert head.diagnostics()["usage"] == 0  # nothing counted yet
    head.subcentroids.copy_(torch.eye(D)[:8].view(2, 4, D))
    head.origin.copy_(head.subcentroids)
    assert head.diagnostics()["within_class_cosine"] == pytest.approx(0, abs=1e-6)
    head.origin.neg_()
    assert head.diagnostics()["drift"] == pytest.approx(2)
    head.subcentroids.copy_(torch.eye(D)[0].expand(2, 4, D))
    assert head.diagnostics()["within_class_cosine"] == pytest.approx(1)
    for wins, usage in (([[5, 5, 5, 5], [1, 1, 1, 1]], 1.0), ([[9, 0, 0, 0], [0, 0, 0, 0]], 0.25)):
        head.wins.copy_(torch.tensor(wins))
        assert head.diagnostics()["usage"] == pytest.approx(usage, abs=1e-6)
    head.wins.copy_(torch.tensor([[3, 3, 0, 0], [2, 2, 2, 2]]))
    assert head.diagnostics()["usage"] == pytest.approx((0.5 + 1) / 2, abs=1e-6)
    torch.testing.assert_close(head.usage(), torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]]))
    head.reset_usage()
    assert not head.usage().any()
    assert SubCentroidHead(D, 2, 1).diagnostics()["within_class_cosine"] == 1


def test_the_head_says_its_settings():
    text = repr(make(correct_only=True))
    for part in ("dim=16", "num_classes=5", "num_subcentroids=3", "momentum=0.9", "temperature=0.1", "correct_only"):
        assert part in text


# What an update may allocate


def test_an_update_makes_nothing_with_samples_and_classes_in_its_shape(monkeypatch):
    monkeypatch.setattr(grouping, "CPU_BLOCK", 1 << 14)
    num_classes, number, dim = 1000, 500, 32
    head = SubCentroidHead(dim, num_classes, 4, memory_size=4000)
    for _ in range(10):
        head.update(torch.randn(number, dim), torch.randint(num_classes, (number,)))
    x, labels = torch.randn(number, dim), torch.randint(num_classes, (number,))
    with LargestTensor() as largest:
        head.update(x, labels)
    # the sub-centroids are 128,000 numbers, the memory too; (N, C, K) would be 18 million
    assert largest.numel <= num_classes * 4 * dim, largest.shape


# How many operators an update calls


def filled(num_classes: int, memory_size: int, dim: int) -> SubCentroidHead:
    """A head with a full memory, as it is for nearly all of a run."""
    head = SubCentroidHead(dim, num_classes, 4, memory_size=memory_size)
    labels = torch.arange(memory_size) % num_classes
    head.memory.push(F.normalize(torch.randn(memory_size, dim), dim=1), labels)
    return head


def operators(head: SubCentroidHead, number: int = 128) -> OperatorCount:
    x, labels = torch.randn(number, head.dim), torch.randint(head.num_classes, (number,))
    with OperatorCount() as count:
        head.update(x, labels)
    return count


@pytest.mark.parametrize("memory_size", [0, 1000, 12_800])
@pytest.mark.parametrize("dim", [64, 512])
def test_an_update_of_few_classes_calls_few_operators(memory_size, dim, monkeypatch):
    """A batch of 128 at C = 10 and K = 4, where calls are the cost: by block and sorting it took 200 to 470."""
    count = operators(filled(10, memory_size, dim))
    large = memory_size * dim > 1 << 22  # on a CPU such a memory is read by blocks that stay in the cache
    assert count.calls <= (320 if large else 105)
    assert count.kernels <= (210 if large else 70)
    assert count.waits == 0  # but for one tolist, which calls no operator here
    monkeypatch.setattr(grouping, "CPU_BLOCK", grouping.DEVICE_BLOCK)
    monkeypatch.setattr(grouping, "CPU_PRODUCTS", grouping.DEVICE_PRODUCTS)
    count = operators(filled(10, memory_size, dim))  # an accelerator's blocks hold it all
    assert count.calls <= 105
    assert count.kernels <= 70


def test_an_update_of_many_classes_calls_no_operator_for_each():
    for memory_size, bound in ((0, 105), (1000, 215)):
        count = operators(filled(1000, memory_size, 64))
        assert count.calls <= bound, memory_size
        assert count.waits <= 1, count.names  # which classes have samples


@pytest.mark.parametrize("settings", [{}, {"start": "data"}, {"frozen": True}, {"assignment": "nearest"}])
def test_the_same_update_by_rows_and_by_tiles(settings, monkeypatch):
    """However the samples are grouped, the sub-centroids move alike."""
    results = []
    for block, products in ((grouping.CPU_BLOCK, grouping.CPU_PRODUCTS), (1 << 30, 0), (40, 0)):
        monkeypatch.setattr(grouping, "CPU_BLOCK", block)
        monkeypatch.setattr(grouping, "CPU_PRODUCTS", products)
        head = make(**settings)
        for seed in range(5):
            head.update(*batch(30, seed))
        results.append(head)
    for other in results[1:]:
        torch.testing.assert_close(other.subcentroids, results[0].subcentroids, rtol=0, atol=1e-6)
        assert torch.equal(other.wins, results[0].wins)
        assert torch.equal(other.moved, results[0].moved)


# Bad input


def message(call) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    return str(error.value)


@pytest.mark.parametrize("name", HEADS)
def test_features_of_another_width(name):
    head = build_head(name, D, C)
    assert message(lambda: head(torch.randn(4, 9))) == (
        "features must be (..., 16), got (4, 9): the last dimension must be the head's dim=16"
    )
    assert message(lambda: head(torch.tensor(1.0))).startswith("features must be (..., 16), got ()")


@pytest.mark.parametrize("method", ["update", "estimate"])
@pytest.mark.parametrize(
    ("x", "labels", "expected"),
    [
        (
            torch.randn(4, 9),
            torch.zeros(4, dtype=torch.long),
            "features must be (..., 16), got (4, 9): the last dimension must be the head's dim=16",
        ),
        (
            torch.randn(4, D),
            torch.zeros(5, dtype=torch.long),
            "labels must have the features' leading shape (4,), got (5,)",
        ),
        (
            torch.randn(2, 3, 3, D),
            torch.zeros(2, 3, dtype=torch.long),
            "labels must have the features' leading shape (2, 3, 3), got (2, 3)",
        ),
        (torch.randn(4, D), torch.tensor([0, 1, 5, 2]), "labels must lie in [0, 4] for 5 classes, found 5"),
        (torch.randn(4, D), torch.tensor([0, 1, -1, 2]), "labels must lie in [0, 4] for 5 classes, found -1"),
        (torch.randn(4, D), torch.zeros(4), "labels must be integers, got torch.float32"),
        (torch.randn(4, D), torch.zeros(4, dtype=torch.bool), "labels must be integers, got torch.bool"),
        (
            torch.full((4, D), torch.nan),
            torch.zeros(4, dtype=torch.long),
            "features contain NaN or infinity; has the training diverged, or mixed precision overflowed?",
        ),
        (
            torch.full((4, D), torch.inf),
            torch.zeros(4, dtype=torch.long),
            "features contain NaN or infinity; has the training diverged, or mixed precision overflowed?",
        ),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(method, x, labels, expected):
    head = make()
    before = state(head)
    assert message(lambda: getattr(head, method)(x, labels)) == expected
    assert_same(state(head), before)


@pytest.mark.parametrize("method", ["update", "estimate"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_none_is_found_wherever_it_stands(method, wrong, dtype):
    x, labels = batch(5)
    for place in (0, 7, D - 1):
        for changes in ({}, {"correct_only": True}):
            head, spoilt = make(**changes), x.to(dtype)
            spoilt[3, place] = wrong
            before = state(head)
            assert message(lambda: getattr(head, method)(spoilt, labels)).startswith("features contain NaN or inf")  # noqa: B023
            assert_same(state(head), before)
            spoilt_label = labels.clone()
            spoilt_label[3] = -100
            getattr(head, method)(spoilt, spoilt_label)  # ignored, it does no harm
            assert_unit(head)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integers_are_labels(dtype):
    x, labels = batch()
    one, other = make(ignore_index=255), make(ignore_index=255)
    if dtype == torch.uint8:
        labels[:3] = 255
    one.update(x, labels)
    other.update(x, labels.to(dtype))
    assert_same(state(other), state(one))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"momentum": 1}, "momentum must lie in [0, 1), got 1; to stand still use frozen=True"),
        ({"momentum": -0.1}, "momentum must lie in [0, 1), got -0.1; to stand still use frozen=True"),
        ({"momentum": math.nan}, "momentum must lie in [0, 1), got nan; to stand still use frozen=True"),
        ({"assignment": "kmeans"}, "assignment must be one of sinkhorn, nearest, random, got 'kmeans'"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"memory_size": -1}, "memory_size must be 0 or more, got -1"),
        ({"num_subcentroids": 0}, "num_subcentroids must be 1 or more, got 0"),
        ({"start": "zero"}, "start must be 'random' or 'data', got 'zero'"),
        ({"epsilon": 0}, "epsilon must be positive and iterations 1 or more, got 0 and 3"),
        ({"iterations": 0}, "epsilon must be positive and iterations 1 or more, got 0.05 and 0"),
    ],
)
def test_settings_out_of_range(changes, expected):
    assert message(lambda: make(**changes)) == expected


@pytest.mark.parametrize("head", [SoftmaxHead, CosineHead, SubCentroidHead])
def test_a_width_or_number_of_classes_that_cannot_be(head):
    assert message(lambda: head(0, 5)) == "dim and num_classes must be 1 or more, got 0 and 5"
    assert message(lambda: head(16, 0)) == "dim and num_classes must be 1 or more, got 16 and 0"


def test_heads_by_name():
    kinds = {name: type(build_head(name, D, C, temperature=0.3, ignore_index=255)) for name in HEADS}
    dnc = {"frozen": SubCentroidHead, "dnc": SubCentroidHead}
    assert kinds == {"softmax": SoftmaxHead, "cosine": CosineHead, **dnc}
    assert build_head("frozen", D, C).frozen
    assert not build_head("dnc", D, C).frozen
    assert build_head("cosine", D, C, temperature=0.3).temperature == 0.3
    assert all(build_head(name, D, C, ignore_index=255).ignore_index == 255 for name in HEADS)
    assert message(lambda: build_head("prototype", D, C)) == (
        "head must be one of softmax, cosine, frozen, dnc, got 'prototype'"
    )


def test_a_blank_image_does_not_wreck_the_gradient():
    """A row without direction: all features equal, as a dead ReLU leaves them."""
    torch.manual_seed(0)
    for build in (lambda: SubCentroidHead(16, 3, memory_size=0), lambda: CosineHead(16, 3)):
        head, x = build(), torch.randn(8, 16)
        x[3] = 0.0
        x.requires_grad_(True)
        F.cross_entropy(head(x), torch.arange(8) % 3).backward()
        assert torch.isfinite(x.grad).all()
        assert head.norm.bias.grad.abs().max() < 10
        others = [i for i in range(8) if i != 3]
        assert torch.allclose(head.embed(x)[others].norm(dim=1), torch.ones(7), atol=1e-6)
        assert (head.embed(x)[3] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"start": "data"}, {"assignment": "random"}, {"frozen": True}])
def test_classes_without_samples_are_not_walked_and_nothing_changes(settings, monkeypatch):
    """Many classes, few samples: the update sees those that occur alone. It is that of a head of these classes."""
    monkeypatch.setattr(grouping, "CPU_BLOCK", 2000)
    monkeypatch.setattr(grouping, "CPU_PRODUCTS", 0)
    torch.manual_seed(0)
    occur = torch.tensor([3, 40, 41, 97])
    many = SubCentroidHead(16, 100, 3, momentum=0.5, memory_size=30, **settings)
    few = SubCentroidHead(16, 4, 3, momentum=0.5, memory_size=30, **settings)
    few.subcentroids.copy_(many.subcentroids[occur])
    before = many.subcentroids.clone()
    for _ in range(4):
        x, labels = torch.randn(20, 16), torch.randint(0, 4, (20,))
        many.update(x, occur[labels])
        few.update(x, labels)
    for name in ("subcentroids", "moved", "wins"):
        assert torch.equal(getattr(many, name)[occur], getattr(few, name)), name
    rest = torch.ones(100, dtype=torch.bool)
    rest[occur] = False
    assert torch.equal(many.subcentroids[rest], before[rest])
    assert many.wins[rest].sum() == 0
    assert len(many.memory) == len(few.memory)


# --- several learned prototypes -------------------------------------------------------------------------------------


def test_learned_prototypes_score_by_the_nearest_of_a_class():
    head = CosineHead(16, 3, temperature=0.2, num_prototypes=4)
    assert head.prototypes.shape == (12, 16)
    x = torch.randn(7, 16)
    cosines = F.cosine_similarity(head.embed(x)[:, None], head.prototypes[None], dim=2).view(7, 3, 4)
    torch.testing.assert_close(head(x), cosines.amax(2) / 0.2)
    torch.testing.assert_close(head.class_vectors().norm(dim=2), torch.ones(3, 4))


def test_learned_prototypes_and_sub_centroids_of_the_same_directions_score_alike():
    learned, moved = CosineHead(16, 3, num_prototypes=4), SubCentroidHead(16, 3, num_subcentroids=4)
    moved.subcentroids.copy_(learned.class_vectors())
    x = torch.randn(5, 2, 16)
    torch.testing.assert_close(learned(x), moved(x))


def test_the_gradient_moves_the_winner_of_each_class_and_no_other():
    head = CosineHead(8, 2, num_prototypes=3)
    x = torch.randn(1, 8)
    head(x).sum().backward()
    moved = head.prototypes.grad.norm(dim=1).view(2, 3) > 0
    nearest = (head.embed(x) @ head.class_vectors().flatten(0, 1).T).view(2, 3).argmax(1)
    assert moved.sum(1).tolist() == [1, 1]
    assert moved.long().argmax(1).tolist() == nearest.tolist()


def test_one_learned_prototype_is_the_head_of_before():
    torch.manual_seed(0)
    head = build_head("cosine", 8, 3, num_prototypes=1)
    assert head.prototypes.shape == (3, 8)  # as in models saved before there could be several
    assert head.diagnostics() == {}
    assert set(build_head("cosine", 8, 3, num_prototypes=2).diagnostics()) == {"within_class_cosine"}


@pytest.mark.parametrize("name", HEADS)
def test_a_setting_that_no_head_has_is_refused_by_every_head(name):
    with pytest.raises(ValueError, match=r"temprature.*Did you mean temperature"):
        build_head(name, 8, 3, temprature=0.2)
    build_head(name, 8, 3, temperature=0.2, momentum=0.9, num_prototypes=2, memory_size=0)  # arms share one set


def test_no_prototype_is_refused():
    with pytest.raises(ValueError, match="num_prototypes"):
        CosineHead(8, 3, num_prototypes=0)
