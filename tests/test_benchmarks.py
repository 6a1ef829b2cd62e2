"""benchmarks/: that they run, on sizes too small to say anything about speed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = {
    "bench_assignment.py": ["--shape", "3", "60", "16", "--rounds", "1"],
    "bench_memory.py": ["--size", "300", "--dim", "16", "--classes", "5", "--batch", "20"],
    "bench_step.py": ["--recipe", "digits_resnet8", "--batch", "8", "--rounds", "1"],
}


def test_every_benchmark_is_tried():
    assert {path.name for path in FOLDER.glob("[a-z]*.py")} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_marks_its_bounds(name):
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), "--threads", "1", "--device", "cpu", *TINY[name]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stderr == ""
    passed = "PASS: every bound held" in done.stdout
    assert done.returncode == (0 if passed else 1)
    # so small a step may miss its bound: the update costs as much as the network; the other two cannot
    assert passed or (name == "bench_step.py" and "BELOW BOUND: 1 of 1" in done.stdout)
