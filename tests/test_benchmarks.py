"""benchmarks/: that they run, on sizes too small to say anything about speed."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnc_lib import recipes
from dnc_lib.metrics import IGNORED

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SCENES = "digit_scenes_fcn"
#: So small a step may miss its bound: the update costs as much as the network, a call as much as what it counts.
MAY_MISS = ("bench_anchoring.py", "bench_step.py", "bench_segmentation.py", "bench_confusion.py")
TINY = {
    "bench_anchoring.py": ["--images", "100", "--recipe", "digits_resnet8", "--rounds", "1"],
    "bench_assignment.py": ["--shape", "3", "60", "16", "--rounds", "1"],
    "bench_confusion.py": ["--scene", "3", "20", "30", "--rounds", "1"],
    "bench_memory.py": ["--size", "300", "--dim", "16", "--classes", "5", "--batch", "20"],
    "bench_scaling.py": ["--shape", "7", "3", "16", "50", "--batch", "8", "--rounds", "1"],
    "bench_segmentation.py": ["--recipe", SCENES, "--classes", "3", "--batch", "1", "--crop", "32", "--rounds", "1"],
    "bench_step.py": ["--recipe", "digits_resnet8", "--batch", "8", "--rounds", "1"],
    "bench_throughput.py": ["--recipe", "digits_resnet8", "--batch", "4", "--classes", "10", "--rounds", "1"],
}


def test_every_benchmark_is_tried():
    assert {path.name for path in FOLDER.glob("[a-z]*.py")} == set(TINY)


@pytest.mark.parametrize(("chosen", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_what_benchmarks_share_sets_how_threads_wait(chosen, found):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment.update({} if chosen is None else {"OMP_WAIT_POLICY": chosen})
    script = "import os, sys; sys.path.insert(0, sys.argv[1]); import _common; print(os.environ['OMP_WAIT_POLICY'])"
    command = [sys.executable, "-c", script, str(FOLDER)]
    assert subprocess.run(command, capture_output=True, text=True, env=environment).stdout == f"{found}\n"


@pytest.mark.parametrize("name", [*TINY, "_common.py"])
def test_a_benchmark_does_so_before_torch_loads(name):
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    setting = 'os.environ.setdefault("OMP_WAIT_POLICY"' if name == "_common.py" else "import _common "
    assert next(i for i, line in enumerate(lines) if line.startswith(setting)) < lines.index("import torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_marks_its_bounds(name):
    if name == "bench_confusion.py":
        pytest.importorskip("torchmetrics", reason="bench_confusion.py compares with torchmetrics")
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), "--threads", "1", "--device", "cpu", *TINY[name]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stderr == ""
    passed = "PASS: every bound held" in done.stdout
    assert done.returncode == (0 if passed else 1)
    assert passed or (name in MAY_MISS and "BELOW BOUND: " in done.stdout)


def test_without_torchmetrics_its_benchmark_says_what_to_install():
    script = FOLDER / "bench_confusion.py"
    hidden = f"import runpy, sys; sys.modules['torchmetrics'] = None; sys.path.insert(0, {str(FOLDER)!r}); "
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}runpy.run_path({str(script)!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "bench_confusion.py compares with torchmetrics, which is not installed: pip install torchmetrics\n"
    )


# --- the measured records of the chapter on cost --------------------------------------------------------------------

RECORDS = sorted((FOLDER.parent / "book" / "results" / "benchmarks").glob("*.json"))
MACHINE = {"code", "versions", "device", "device_name", "threads", "clock"}
sys.path.insert(0, str(FOLDER))
import _measured  # noqa: E402
import bench_scaling  # noqa: E402
import bench_segmentation  # noqa: E402
import bench_throughput  # noqa: E402


def each_record_of(kind: str):
    chosen = [path for path in RECORDS if path.stem.startswith(kind)]
    return pytest.mark.parametrize("path", chosen, ids=lambda path: path.stem)


def run(name: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / name), "--threads", "1", "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_scaling_record_is_there():
    assert "scaling_cpu.json" in {path.name for path in RECORDS}


@each_record_of("")
def test_a_record_says_on_what_it_was_measured(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record.keys() >= MACHINE
    assert record["kind"] == path.stem.partition("_")[0]
    assert {"python", "torch", "timm"} <= record["versions"].keys()
    assert record["device_name"]


@each_record_of("scaling")
def test_a_scaling_record_holds_the_whole_grid_and_every_byte_of_it(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    shapes = [{axis: point[axis] for axis in bench_scaling.AXES} for point in record["points"]]
    assert shapes == bench_scaling.grid()
    assert {point["classes"] for point in shapes} >= {10, 1000, 21_841}
    for shape, point in zip(shapes, record["points"], strict=True):
        expected = bench_scaling.expected_bytes(shape)
        assert {part: point["held_bytes"][part] for part in expected} == expected
        assert point["peak_bytes"]["softmax score"] == 4 * record["batch"] * shape["classes"]
        assert all(0 < each["best"] <= each["median"] for each in point["seconds"].values())


@each_record_of("throughput")
def test_a_throughput_record_agrees_with_itself(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    for each in record["heads"].values():
        images = record["batch"] * record["processes"]
        for which in ("best", "median"):
            assert each["images_per_second"][which] == pytest.approx(images / each["seconds"]["step"][which])
        assert each["peak_bytes"] > each["held_bytes"] > 4 * each["learnable"]
    saved = record["heads"]["softmax"]["learnable"] - record["heads"]["dnc"]["learnable"]
    assert saved == record["classes"] * (record["heads"]["dnc"]["dim"] + 1) - 2 * record["heads"]["dnc"]["dim"]


@pytest.mark.parametrize("numbers", [1000, 123_457])
def test_peak_growth_counts_to_the_byte(numbers):
    """Two tensors at once, then one of them with a third, smaller: the first pair is the peak."""

    def function() -> None:
        first, second = torch.empty(numbers), torch.empty(numbers, dtype=torch.float64)
        del first
        third = torch.empty(numbers, dtype=torch.int8)
        del second, third

    assert _measured.peak_growth(function, "cpu") == 4 * numbers + 8 * numbers


def test_peak_growth_leaves_out_what_is_held_already():
    held = torch.empty(50_000)
    assert _measured.peak_growth(lambda: held.add_(1), "cpu") < 100
    assert _measured.peak_growth(lambda: held + 1, "cpu") == pytest.approx(4 * 50_000, abs=100)


def test_every_point_of_the_grid_leaves_an_axis_or_is_the_far_corner():
    points = bench_scaling.grid()
    assert len({tuple(point.values()) for point in points}) == len(points)
    away = [sum(point[axis] != value for axis, value in bench_scaling.BASE.items()) for point in points]
    assert away.count(0) == 1
    assert [point for point, number in zip(points, away, strict=True) if number > 1] == [bench_scaling.MOSTLY_ABSENT]


def test_a_segmenters_step_moves_what_it_should_and_its_update_costs_all_that_it_can():
    """Every pixel of the update is classified correctly, so that `correct_only` leaves none out."""
    options = argparse.Namespace(device="cpu")
    recipe = recipes.get(SCENES, batch_size=2, crop_size=(32, 32), correct_only=True)
    for head in ("softmax", "dnc"):
        arm = bench_segmentation.Arm(head, recipe, 5, options)
        before = {name: each.clone() for name, each in arm.model.state_dict().items()}
        arm.step()
        after = arm.model.state_dict()
        assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith("decoder."))
        if head == "dnc":
            _, labels = arm.task.samples(arm.outcome, seed=0)
            used = labels != IGNORED
            assert used.sum() > 5
            assert torch.equal(arm.head(arm.samples).argmax(-1)[used], labels[used])
            assert int(before["head.memory.written"]) == recipe.memory_size
            assert int(after["head.memory.written"]) == recipe.memory_size + used.sum()
            assert not torch.equal(before["head.subcentroids"], after["head.subcentroids"])


def test_a_step_with_every_head_moves_what_it_should():
    """The step that is timed is a real one: parameters move, and the sub-centroids of the classes seen."""
    arguments = ["x", "--recipe", "digits_resnet8", "--batch", "4", "--classes", "10", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        options = bench_throughput.options()
    assert (options.backbone, options.image_size) == ("tiny_resnet8", 8)
    for head in ("softmax", "dnc"):
        arm = bench_throughput.Arm(head, options, "cpu", 1)
        before = {name: each.clone() for name, each in arm.model.state_dict().items()}
        arm.step()
        after = arm.model.state_dict()
        assert not torch.equal(before["backbone.conv.weight"], after["backbone.conv.weight"])
        if head == "dnc":
            assert before["head.memory.written"] == options.memory  # full, as it is for nearly all of a run
            assert not torch.equal(before["head.subcentroids"], after["head.subcentroids"])


@pytest.mark.slow
def test_two_processes_train_together_and_are_counted_together(tmp_path):
    words = ["--recipe", "digits_resnet8", "--batch", "4", "--classes", "10", "--rounds", "1", "--processes", "2"]
    done = run("bench_throughput.py", *words, "--output", str(tmp_path / "throughput_two.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "throughput_two.json").read_text(encoding="utf-8"))
    assert record["processes"] == 2
    for each in record["heads"].values():
        assert each["images_per_second"]["best"] == pytest.approx(8 / each["seconds"]["step"]["best"])


@pytest.mark.slow
def test_processor_time_of_one_process_does_not_time_two():
    done = run("bench_throughput.py", "--processes", "2", "--clock", "cpu")
    assert done.returncode == 2
    message = "several processes wait for one another, which --clock cpu does not see; use --clock wall"
    assert message in done.stderr
