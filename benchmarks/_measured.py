"""What a measured record holds besides its numbers: the machine, its two speeds, bytes held and bytes borrowed."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _common import interleaved
from torch import nn

from dnc_lib.runs import describe_code, describe_machine


def machine(device: str, clock: str) -> dict:
    """Code, versions, device, threads and clock: what a number needs beside it to mean something."""
    facts = {"code": describe_code(), **describe_machine(torch.device(device)), "clock": clock}
    if device == "cpu":
        facts["device_name"] = _processor() or facts["device_name"]
    return facts


def _processor() -> str:
    """The processor's own name, where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def speeds(device: str, clock: str, side: int = 2048, numbers: int = 1 << 26, rounds: int = 5) -> dict[str, float]:
    """What this device does at best, the two slopes of an arithmetic line.

    Args:
        device: where.
        clock: see :func:`_common.interleaved`.
        side: of the square float32 matrices that are multiplied.
        numbers: float32 numbers that are copied; far more than any cache holds.
        rounds: the best of so many.

    Returns:
        ``flops``: floating-point operations a second of a matrix product (a multiply-add is two);
        ``bytes``: bytes read and written a second by a copy.
    """
    a, b = torch.randn(2, side, side, device=device)
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    product, copy = interleaved((lambda: a @ b, lambda: target.copy_(source)), rounds, device, clock)
    return {"flops": 2 * side**3 / min(product), "bytes": 8 * numbers / min(copy)}


def held_bytes(module: nn.Module) -> dict[str, int]:
    """Bytes of each parameter and buffer, by name."""
    return {name: each.numel() * each.element_size() for name, each in module.state_dict().items()}


def peak_growth(function: Callable[[], object], device: str) -> int:
    """The most bytes of tensors that ``function`` adds while it runs, to what is held when it starts.

    On a CPU every allocation is counted by torch's profiler, to the byte; resident memory would also show what the
    allocator keeps for later. The profiler does not see the size of what was there before and is given back, so drop
    such things first. On CUDA the allocator's own high-water mark is used.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the profiler's C++ half writes to the error stream when it starts and stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def best_and_median(seconds: list[float]) -> dict[str, float]:
    """The turn least disturbed, and the middle one."""
    return {"best": min(seconds), "median": torch.tensor(seconds, dtype=torch.float64).median().item()}


def write(path: Path, record: dict) -> None:
    """One record, one JSON file, readable by people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)
    print(f"\nwritten: {path.name}")
