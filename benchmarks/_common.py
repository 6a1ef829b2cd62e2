"""What the benchmarks share: the bounds, all in one place, a stopwatch that is fair on a busy machine, a table."""

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence

# Before torch loads: threads that spin while they wait measure what else the machine does. So this file comes first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

#: Assignment and update: speed against the plain loop over classes, at least this; (C, N, D) -> ratio on a CPU.
ASSIGNMENT_SHAPES = {
    (10, 12_800, 512): 0.9,
    (100, 12_800, 2048): 0.9,
    (1000, 12_800, 2048): 2.0,
    (1000, 25_600, 768): 2.0,
}
#: The same on a GPU, where a loop over classes waits for launches: by number of classes.
ASSIGNMENT_GPU = {10: 0.9, 100: 0.9, 1000: 30.0}
#: The whole of ``update``, from raw features: it may never cost more than the loop does.
ASSIGNMENT_RAW = 0.9
#: Anchoring, which finds images and embeds them again, may take so many times an evaluation pass.
ANCHORING_AT_MOST = 1.1
#: A DNC training step may take so many times the softmax step of the same network.
STEP_AT_MOST = 1.05
#: The same for a segmenter; and what a DNC step may hold at its peak, in times of what softmax's holds.
SEGMENTATION_STEP_AT_MOST = 1.05
SEGMENTATION_MEMORY_AT_MOST = 1.1
#: Share of a segmenter's DNC step that the update of the head may take.
UPDATE_AT_MOST = 0.05
#: The confusion matrix: speed against torchmetrics', with its checks and without.
CONFUSION_AT_LEAST = 1.0
#: 256,000 embeddings of 2048: bytes, in the buffers and as growth of the process.
MEMORY_AT_MOST = 1.1e9


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="wall, or cpu: this process's own processor time, for a busy machine, with --threads 1",
    )
    return made


def interleaved(
    functions: Sequence[Callable[[], object]], rounds: int, device: str, clock: str = "wall"
) -> list[list[float]]:
    """Seconds that each function takes, in turn, ``rounds`` times, after two unmeasured turns.

    In turn, because whatever else runs on the machine then disturbs all of them alike.
    """
    now, times = CLOCKS[clock], [[] for _ in functions]
    for turn in range(-2, rounds):
        for function, taken in zip(functions, times, strict=True):
            _wait(device)
            started = now()
            function()
            _wait(device)
            if turn >= 0:
                taken.append(now() - started)
    return times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def heading(title: str, device: str, clock: str = "wall") -> None:
    """Title, machine, versions, clock."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    print(f"{title}\n{device} ({name}), {threads}, torch {torch.__version__}, {clock} clock\n", flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], first: int = 0) -> None:
    """Print rows of text under their columns, each row as soon as it is there.

    Args:
        columns: headings, which set the widths.
        rows: cells.
        first: width of the first column, where its cells are wider than its heading.
    """
    widths = [max(first, len(columns[0])), *(max(len(column), 6) for column in columns[1:])]
    for row in itertools.chain((columns, ["-" * width for width in widths]), rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip(), flush=True)


def mark(passed: bool) -> str:
    """A bound's outcome in words."""
    return "PASS" if passed else "BELOW BOUND"


def finish(passed: Sequence[bool]) -> None:
    """Say whether every bound held, and leave with 0 or 1."""
    missed = len(passed) - sum(passed)
    print(f"\nBELOW BOUND: {missed} of {len(passed)}" if missed else "\nPASS: every bound held")
    sys.exit(1 if missed else 0)
