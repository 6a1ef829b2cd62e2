"""The audit of the released code: each finding as an experiment, written afresh from its description.

What was read, at which commit, stands in ``book/audit.yaml``; ``READ`` names the commit of the head. The test of a
finding records what it costs on CIFAR-10, from the runs in ``book/results/ablation_subset.json``, as a property of
the test (``pytest --junitxml``), and says "not run yet" where there are none.
"""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dnc_lib
from dnc_lib import SubCentroidHead, released, sinkhorn, statistics
from dnc_lib.recipes import parse_arm

BOOK = Path(__file__).resolve().parents[1] / "book"
READ = (
    "05831d539dc5574fa2a5e3b944541227aae3ab25"  # of ChengHan111/DNC: mmcls/models/heads/SubCentroids_head_Formal.py
)
READ_CONFIGS = "f2bd8a56b1ccef001ced1e6d58ab947fe29d26ed"  # and its configs/resnet
READ_README = "127207c8810b66f29140b5b7e7292cd525b6524b"
AUDIT = yaml.safe_load((BOOK / "audit.yaml").read_text(encoding="utf-8"))
FINDINGS = {each["id"]: each for each in AUDIT["findings"]}
RUNS = BOOK / "results" / "ablation_subset.json"


def differences(manifest: dict, first: str, second: str) -> list[float]:
    """First minus second, in points, for each seed that both arms have; arms are found by what they change."""
    scores = []
    for arm in (first, second):
        names = [name for name, changes in manifest.get("arms", {}).items() if changes == parse_arm(arm)]
        results = (each for each in manifest.get("results", []) if each["arm"] in names)
        scores.append({each["seed"]: each["accuracy"] for each in results})
    return [scores[0][seed] - scores[1][seed] for seed in sorted(scores[0].keys() & scores[1].keys())]


def in_words(found: list[float]) -> str:
    if not found:
        return "not run yet"
    paired = statistics.paired(found, [0.0] * len(found))
    return f"{paired.mean:+.2f} points, {paired.low:+.2f} to {paired.high:+.2f}, {paired.n} pairs"


@pytest.fixture
def cost(record_property):
    """Record what a finding costs, arm by arm; no finding may go without its arms."""

    def record(finding: str) -> None:
        manifest = json.loads(RUNS.read_text(encoding="utf-8")) if RUNS.is_file() else {}
        for first, second in FINDINGS[finding]["arms"]:
            found = differences(manifest, first, second)
            assert all(math.isfinite(each) for each in found)
            record_property(f"CIFAR-10, {first} against {second}", in_words(found))

    return record


@pytest.fixture(scope="module")
def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    """Four clean clusters: embeddings (256, 64) and the sub-centroids (4, 64) in their middles, all crosswise."""
    p = torch.zeros(4, 64)
    p[0, 0], p[1, 1], p[2, 0], p[3, 1] = 1, 1, -1, -1
    noise = 0.05 * torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    return F.normalize(p[torch.arange(256) % 4] + noise, dim=1), p


def share(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a == b).double().mean())


# --- 1: the assignment is no optimal transport ----------------------------------------------------------------------


def test_solver_returns_the_farthest_and_draws_at_random(clusters, cost):
    """READ, AGD_torch_no_grad_gpu: dual variables dropped, similarity as cost, Gumbel's rule on the plan itself."""
    x, p = clusters
    scores = x @ p.T
    plan = released.plan(scores)
    assert share(plan.argmax(1), scores.argmin(1)) == 1  # the index: the farthest, always
    assert share(plan.argmax(1), scores.argmax(1)) == 0
    drawn = [released.draw(plan, torch.Generator().manual_seed(seed)) for seed in range(40)]
    hits = [share(each, scores.argmax(1)) for each in drawn]
    assert 0.15 < min(hits) < max(hits) < 0.35
    assert abs(sum(hits) / 40 - 0.25) < 0.012  # four standard errors: 40 * 256 throws of a fair die
    assert share(sinkhorn(scores, torch.zeros(256, dtype=torch.long), 1).argmax(1), scores.argmax(1)) == 1
    cost("solver")


@pytest.mark.parametrize(
    ("carry", "as_cost", "logarithm", "index_right", "drawn_right"),
    [
        (True, True, False, 0, 0.25),  # the dual variables alone: a balanced plan, to the farthest
        (False, False, False, 1, 0.25),  # the sign alone: the index is right, and moves nothing
        (False, True, True, 0, 0),  # the logarithm alone: what is drawn is now the farthest
        (True, False, False, 1, 0.25),  # a perfect plan, and still a fair die
        (False, False, True, 1, 1),
        (True, False, True, 1, 1),
    ],
)
def test_what_each_repair_does(clusters, carry, as_cost, logarithm, index_right, drawn_right):
    x, p = clusters
    scores = x @ p.T
    plan = released.plan(scores, carry=carry, as_cost=as_cost)
    assert share(plan.argmax(1), scores.argmax(1)) == index_right
    drawn = released.draw(plan, torch.Generator().manual_seed(1), logarithm=logarithm)
    assert share(drawn, scores.argmax(1)) == pytest.approx(drawn_right, abs=0.09 if 0 < drawn_right < 1 else 0)
    if carry:
        assert torch.allclose(plan.sum(0), torch.full((4,), 0.25, dtype=torch.float64))


def test_only_dual_variables_balance_a_class_that_likes_one(clusters):
    x, p = clusters
    scores = 0.1 * (x @ p.T) + torch.tensor([0.3, 0, 0, 0])
    shares = [released.plan(scores, carry=carry, as_cost=False).argmax(1).bincount() for carry in (False, True)]
    assert shares[0].tolist() == [256]
    assert shares[1].tolist() == [64] * 4


@given(st.integers(2, 60), st.integers(2, 6), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_plan_as_released_ranks_by_distance_whatever_the_scores(n, k, seed):
    scores = 2 * torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) - 1
    plan = released.plan(scores)
    assert plan.sum() == pytest.approx(1)
    assert torch.equal(plan.argsort(1), (-scores.double()).argsort(1))  # float64: scores that differ stay apart
    assert torch.equal(released.plan(scores, as_cost=False), released.plan(-scores))
    assert torch.allclose(released.plan(scores, rounds=0), plan)  # rounds that keep nothing change nothing


@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_plan_with_dual_variables_kept_has_the_right_masses(n, k, seed):
    scores = 0.01 * torch.rand(n, k, generator=torch.Generator().manual_seed(seed))  # gentle: few rounds are enough
    plan = released.plan(scores, carry=True, as_cost=False, rounds=300)
    assert torch.allclose(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(plan.sum(0), torch.full((k,), 1 / k, dtype=torch.float64), rtol=0.02)


def test_gumbels_rule_draws_from_a_plan_by_its_logarithm_only():
    plan = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).repeat(20_000, 1) / 20_000
    drawn = [
        released.draw(plan, torch.Generator().manual_seed(0), logarithm=flag).bincount() for flag in (True, False)
    ]
    assert torch.allclose(drawn[0] / 20_000, torch.tensor([0.7, 0.2, 0.1]), atol=0.015)
    assert torch.allclose(drawn[1] / 20_000, torch.ones(3) / 3, atol=0.015)


def test_random_assignment_pulls_all_four_to_the_class_mean(clusters):
    x = clusters[0][:, 2:] + torch.cat([0.4 * torch.eye(4).repeat(64, 1), torch.ones(256, 58) / 20], 1)
    x = F.normalize(x.repeat(50, 1), dim=1)  # 12,800 samples in four parts, with something in common
    index = released.draw(released.plan(x[:, :4]), torch.Generator().manual_seed(0))
    apart = torch.arange(len(x)) % 4
    cosines = []
    for each in (index, apart):
        targets = F.normalize(torch.stack([x[each == k].sum(0) for k in range(4)]), dim=1)
        cosines.append((targets @ targets.T)[~torch.eye(4, dtype=torch.bool)])
    assert cosines[0].min() > 0.999
    assert cosines[1].max() < 0.9


# --- 2: on CIFAR the sub-centroids hardly move ----------------------------------------------------------------------


def test_sub_centroids_hardly_move_on_cifar(cost):
    """READ, forward_train: one update in 1000 batches; READ_CONFIGS: batch 8 x 16, 200 epochs."""
    updates = math.ceil(50_000 / (8 * 16)) * 200 // 1000
    assert updates == 78
    assert round(0.999**updates, 3) == 0.925  # the weight that the start keeps
    start, target = F.normalize(torch.randn(2, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    now = start.clone()
    for _ in range(updates):
        now = F.normalize(0.999 * now + 0.001 * target, dim=0)
    assert math.degrees(math.acos(float(now @ start))) == pytest.approx(4.5, abs=0.2)  # of 90: cosine 0.997
    assert math.ceil(1_281_167 / 256) * 100 // 1000 == 500  # ImageNet, ResNet: 0.999 ** 500 = 0.61, no longer little
    assert round(0.999**500, 3) == 0.606
    cost("movement")


def test_our_head_moves_as_that_simulation_says():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    head = SubCentroidHead(32, 1, num_subcentroids=1, momentum=0.999, memory_size=0)
    start, target = head.subcentroids[0, 0].double(), F.normalize(head.embed(x).detach().mean(0), dim=0).double()
    now = start.clone()
    for _ in range(78):
        head.update(x, torch.zeros(64, dtype=torch.long))
        now = F.normalize(0.999 * now + 0.001 * target, dim=0)
    assert torch.allclose(head.subcentroids[0, 0].double(), now, atol=1e-5)
    assert 0.99 < now @ start < 0.999


# --- 3: the class scores pass a LayerNorm that learns ---------------------------------------------------------------


def test_layernorm_learns_by_class_and_the_prediction_may_leave_the_nearest_case(cost):
    """READ, forward: mask_norm over the classes stands between similarities and scores."""
    head = SubCentroidHead(16, 10, scale_by="layernorm")
    plain = sum(q.numel() for q in SubCentroidHead(16, 10).parameters())
    assert sum(q.numel() for q in head.parameters()) - plain == 2 * 10
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    nearest = head.similarities(x).amax(-1)
    assert torch.equal(head(x).argmax(1), nearest.argmax(1))  # gain 1 and bias 0, as at the start: the same
    with torch.no_grad():
        head.class_norm.bias[3] = 0.5  # as a class that is frequent earns it
    strays = head(x).argmax(1) != nearest.argmax(1)
    assert 0.02 < strays.double().mean() < 0.5
    assert set(head(x).argmax(1)[strays].tolist()) == {3}
    cost("layernorm")


def test_layernorm_forgets_how_far_everything_is():
    close = torch.tensor([[0.9, 0.5, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0, -0.1, -0.2]])
    norm = nn.LayerNorm(10)
    sure = [norm(scores).softmax(1).max().item() for scores in (close, close / 10, close + 0.05)]
    assert max(sure) - min(sure) < 0.01
    assert (close / 0.1).softmax(1).max() > 3 * (close / 10 / 0.1).softmax(1).max()
    # With gain 1 the largest probability has a ceiling: the standardised gap is at most C / sqrt(C - 1).
    ceiling = 1 / (1 + 9 * math.exp(-10 / math.sqrt(9)))
    assert norm(F.one_hot(torch.tensor([0]), 10).float()).softmax(1).max().item() == pytest.approx(ceiling, abs=1e-3)


def test_records_of_the_nearest_case_are_whole():
    """What ``tools/nearest_case.py`` measured of trained models; the accuracy is that of the same run's manifest."""
    path = BOOK / "results" / "audit" / "nearest_case.json"
    records = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert len({(each["arm"], each["seed"]) for each in records}) == len(records) >= 3
    runs = json.loads(RUNS.read_text(encoding="utf-8"))["results"] if RUNS.is_file() else []
    known = {(each["arm"], each["seed"]): each["accuracy"] for each in runs}
    for each in records:
        assert parse_arm(each["arm"])["scale_by"] == "layernorm"
        assert abs(each["accuracy"] - each["accuracy_nearest_case"]) <= each["strays"] <= 100
        assert each["accuracy"] == pytest.approx(known.get((each["arm"], each["seed"]), each["accuracy"]), abs=0.05)


# --- 4: the memory fills, serves once, and is dropped ---------------------------------------------------------------


def test_memory_serves_once_and_its_loss_does_not_reach_the_backbone(cost):
    """READ, forward_train: features gathered without a gradient; a full list is scored, moved by, and emptied."""
    torch.manual_seed(0)
    backbone, norm, cases = nn.Linear(8, 16), nn.LayerNorm(16), F.normalize(torch.randn(3, 4, 16), dim=-1)
    kept, reached = [], []
    for _ in range(7):
        features, labels = backbone(torch.randn(5, 8)), torch.randint(3, (5,))
        kept.append((features.detach(), labels))
        if len(kept) == 3:
            features, labels = (torch.cat(each) for each in zip(*kept, strict=True))
            kept = []
        backbone.zero_grad(), norm.zero_grad()
        scores = torch.einsum("nd,ckd->nck", F.normalize(norm(features), dim=-1), cases).amax(-1)
        F.cross_entropy(scores, labels).backward()
        reached.append((backbone.weight.grad is not None, norm.weight.grad is not None, len(kept)))
    assert reached == [(full not in (3, 6), True, full % 3) for full in range(1, 8)]
    assert round(1000 * 128 * 2048 * 4 / 1e9, 2) == 1.05  # GB of that list on CIFAR-10 with ResNet-50
    cost("memory")


def test_our_memory_is_a_ring_that_serves_every_update():
    head = SubCentroidHead(8, 2, memory_size=6)
    for step in range(1, 5):
        head.update(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))
        assert len(head.memory) == min(4 * step, 6)


# --- 5: what it takes to run ----------------------------------------------------------------------------------------


def test_one_sample_of_a_class_stops_the_solver_and_not_ours(cost):
    """READ, AGD_torch_no_grad_gpu: the weight of the entropy is 0.05 / (3 ln N)."""
    assert released.entropy_weight(256) == pytest.approx(0.003006, abs=1e-6)
    alone = torch.tensor([[0.9, 0.1, 0.0, 0.2]])
    with pytest.raises(ZeroDivisionError):
        released.plan(alone)
    assert torch.allclose(sinkhorn(alone, torch.zeros(1, dtype=torch.long), 1).sum(1), torch.ones(1))
    head = SubCentroidHead(8, 2, momentum=0.5)
    start = head.subcentroids.clone()
    head.update(torch.randn(1, 8), torch.tensor([1]))  # on the CPU, without a process group
    assert torch.equal(head.subcentroids[0], start[0])
    assert (head.subcentroids[1] != start[1]).any(1).sum() == 1
    cost("running")


def test_gathering_needs_a_process_group_even_alone():
    """READ, concat_all_gather: asked for in every training step."""
    assert not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="process group"):
        torch.distributed.get_world_size()


# --- 6: what was not released ---------------------------------------------------------------------------------------


def test_what_was_not_released_is_here(cost):
    """READ_README and the stored list of files; every name in the column `here` exists."""
    missing = {each["item"] for each in AUDIT["release"] if each["there"] == "no"}
    assert missing == {"segmentation", "real images as sub-centroids", "tables of results"}
    from dnc_lib.anchoring import anchor
    from dnc_lib.exemplars import find_exemplars

    assert callable(anchor)
    assert callable(find_exemplars)
    assert {"Segmenter", "SubCentroidHead", "sinkhorn"} <= set(dir(dnc_lib))
    assert {"cifar10_coarse", "cifar100_coarse"} <= set(dnc_lib.data.NAMES)
    assert list(BOOK.glob("results/*.json"))
    cost("release")


# --- the data file and the chapter ----------------------------------------------------------------------------------


def test_every_finding_says_what_was_read_and_where():
    assert [each["number"] for each in AUDIT["findings"]] == [1, 2, 3, 4, 5, 6]
    read = {each["file"]: each["commit"] for each in AUDIT["read"]}
    assert read["README.md"] == READ_README
    assert READ_CONFIGS in read.values()
    for each in AUDIT["findings"]:
        assert read[each["file"]] == each["commit"], each["id"]
        assert each["commit"] in (READ, READ_README)
        assert len(each["found"].split()) > 20
    for each in (*AUDIT["read"], AUDIT["schedule"]):
        assert re.fullmatch(r"[0-9a-f]{40}", each["commit"])


def test_every_arm_is_one_that_can_be_run():
    from dnc_lib import recipes

    pairs = [pair for each in AUDIT["findings"] for pair in each["arms"]] + AUDIT["beside"] + AUDIT["together"]
    assert len(pairs) > 10
    for pair in pairs:
        first, second = (recipes.get("cifar10_subset", **parse_arm(arm)) for arm in pair)
        assert first != second


def test_costs_are_found_by_what_an_arm_changes_and_never_made_up():
    arms = {"plain": {"head": "dnc"}, "dice": {"head": "dnc", "assignment": "random"}, "other": {"head": "frozen"}}
    scores = {"plain": (70.0, 71.0, 72.0), "dice": (70.5, 71.0, 72.25), "other": (60.0,)}
    results = [
        {"arm": arm, "seed": seed, "accuracy": score} for arm in arms for seed, score in enumerate(scores[arm])
    ]
    manifest = {"arms": arms, "results": results[1:]}  # seed 0 of the first arm is missing
    assert differences(manifest, "dnc assignment=random", "dnc") == [0.0, 0.25]
    assert differences(manifest, "frozen", "dnc") == []
    assert differences(manifest, "softmax", "dnc") == []
    assert in_words([]) == in_words(differences({}, "dnc", "frozen")) == "not run yet"
    assert in_words([0.5]) == "+0.50 points, -inf to +inf, 1 pairs"
    assert in_words([0.0, 0.25]) == "+0.12 points, -1.46 to +1.71, 2 pairs"


def test_the_chapter_names_the_commit_and_keeps_a_place_for_a_reply():
    chapter = json.loads((BOOK / "audit.ipynb").read_text(encoding="utf-8"))
    sources = "\n".join("".join(cell["source"]) for cell in chapter["cells"])
    shown = json.dumps([output for cell in chapter["cells"] for output in cell.get("outputs", [])])
    assert READ[:10] in shown
    assert AUDIT["repository"] in shown
    for place in ("A place for the authors' reply", "Where this audit loses", "not run yet"):
        assert place in sources
    assert "the paper's code" not in sources
