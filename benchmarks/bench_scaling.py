"""Time and memory of the head as classes, sub-centroids, width and memory grow, beside a softmax head of that size.

The arithmetic is written down first, in `expected_bytes`, and every byte held must agree with it. Each axis is walked
by itself from one base point, ImageNet with ResNet-50: C = 1000, K = 4, D = 2048, a memory of 12,800.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import _common  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from _common import finish, heading, interleaved, mark, parser, table
from _measured import best_and_median, held_bytes, machine, peak_growth, speeds, write

from dnc_lib import SoftmaxHead, SubCentroidHead

BASE = {"classes": 1000, "subcentroids": 4, "dim": 2048, "memory": 12_800}
AXES = {
    "classes": (10, 100, 1000, 10_000, 21_841),
    "subcentroids": (1, 2, 4, 8, 16),
    "dim": (64, 128, 256, 512, 1024, 2048),
    "memory": (0, 1600, 12_800, 64_000, 256_000),
}


#: ImageNet-21k with the batch alone: nearly every class has no sample at an update.
MOSTLY_ABSENT = {**BASE, "classes": 21_841, "memory": 0}


def grid() -> list[dict[str, int]]:
    """Every point of every axis, the base once."""
    points = [BASE, MOSTLY_ABSENT] + [{**BASE, axis: value} for axis, values in AXES.items() for value in values]
    return [point for index, point in enumerate(points) if point not in points[:index]]


def expected_bytes(point: dict[str, int]) -> dict[str, int]:
    """What the heads must hold, by arithmetic: float32 is 4 bytes, half precision 2, a label or a counter 8."""
    c, k, d, m = (point[axis] for axis in AXES)
    return {
        "sub-centroids": 4 * c * k * d,
        "their start": 4 * c * k * d,
        "memory": m * (2 * d + 8) + 8,
        "counters": c * k * (8 + 1) + 8,
        "norm": 2 * 4 * d,
        "softmax": 4 * c * (d + 1),
    }


def measured_bytes(head: SubCentroidHead, softmax: SoftmaxHead) -> dict[str, int]:
    """The same, counted on the heads' parameters and buffers."""
    parts = held_bytes(head)
    return {
        "sub-centroids": parts["subcentroids"],
        "their start": parts.get("origin", 0),
        "memory": sum(size for name, size in parts.items() if name.startswith("memory.")),
        "counters": sum(parts[name] for name in ("wins", "moved", "updates")),
        "norm": parts["norm.weight"] + parts["norm.bias"],
        "softmax": sum(held_bytes(softmax).values()),
    }


def build(point: dict[str, int], device: str) -> SubCentroidHead:
    """A head of that size whose memory is full, as it is for nearly all of a run."""
    head = SubCentroidHead(point["dim"], point["classes"], point["subcentroids"], memory_size=point["memory"])
    head = head.to(device)
    for first in range(0, point["memory"], 4096):
        number = min(4096, point["memory"] - first)
        labels = torch.randint(point["classes"], (number,), device=device)
        head.memory.push(F.normalize(torch.randn(number, point["dim"], device=device), dim=1), labels)
    return head


def turns(point: dict[str, int], batch: int, device: str) -> tuple[dict[str, Callable], Callable, dict[str, int]]:
    """What is timed, by name; what drops softmax's gradient; the bytes that the two heads hold.

    ``score``: scores of a batch, no gradient. ``gradient``: scores, cross-entropy, backward to the features and to
    whatever the head learns. ``update``: `head.update`, and for softmax the optimiser's step on its weight.
    ``update, classes that occur``: the same update on a head that knows only the classes in batch and memory.
    """
    torch.manual_seed(0)
    x = torch.randn(batch, point["dim"], device=device)
    labels = torch.randint(point["classes"], (batch,), device=device)
    dnc, softmax = build(point, device), SoftmaxHead(point["dim"], point["classes"]).to(device)
    optimizer = torch.optim.SGD(softmax.parameters(), 1e-6, momentum=0.9)

    def score(head: torch.nn.Module) -> None:
        with torch.no_grad():
            head(x)

    def gradient(head: torch.nn.Module) -> None:
        head.zero_grad(set_to_none=True)
        features = x.detach().requires_grad_()
        F.cross_entropy(head(features), labels).backward()

    present, inverse = torch.cat([labels, dnc.memory.stored()[1]]).unique(return_inverse=True)
    few = SubCentroidHead(point["dim"], len(present), point["subcentroids"], memory_size=0).to(device)
    few.memory = type(dnc.memory)(point["memory"], point["dim"]).to(device)
    few.memory.push(dnc.memory.stored()[0], inverse[batch:])
    functions = {
        "dnc score": lambda: score(dnc),
        "dnc gradient": lambda: gradient(dnc),
        "dnc update": lambda: dnc.update(x, labels),
        "dnc update, classes that occur": lambda: few.update(x, inverse[:batch]),
        "dnc copy of the sub-centroids": lambda: dnc.subcentroids.clone(),
        "softmax score": lambda: score(softmax),
        "softmax gradient": lambda: gradient(softmax),
        "softmax update": optimizer.step,
    }
    return functions, optimizer.zero_grad, {**measured_bytes(dnc, softmax), "classes that occur": len(present)}


def measure(point: dict[str, int], batch: int, rounds: int, device: str, clock: str) -> dict:
    """One record of the grid: sizes, bytes held, seconds, bytes borrowed at the peak of each turn."""
    functions, forget, held = turns(point, batch, device)
    times = interleaved(list(functions.values()), rounds, device, clock)
    peaks = {}
    for name, function in functions.items():
        if name == "softmax gradient":
            forget()  # it lives on from turn to turn: count it here
        peaks[name] = peak_growth(function, device)
    occur = held.pop("classes that occur")
    seconds = {name: best_and_median(taken) for name, taken in zip(functions, times, strict=True)}
    return {**point, "classes that occur": occur, "held_bytes": held, "seconds": seconds, "peak_bytes": peaks}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    options.add_argument("--batch", type=int, default=256, help="images a step (default 256)")
    options.add_argument("--shape", type=int, nargs=4, metavar=("C", "K", "D", "M"), help="one point, not the grid")
    options.add_argument("--output", type=Path, help="write a JSON record here")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    device, clock = arguments.device, arguments.clock
    heading(f"The heads alone, batch {arguments.batch}: best milliseconds, megabytes", device, clock)
    points = [dict(zip(AXES, arguments.shape, strict=True))] if arguments.shape else grid()
    best = speeds(device, clock)
    print(
        f"at best {best['flops'] / 1e9:.0f} GFLOP/s in a matrix product, {best['bytes'] / 1e9:.1f} GB/s in a copy\n"
    )
    measured, passed = [], []

    def rows() -> Iterator[tuple[str, ...]]:
        for point in points:
            record = measure(point, arguments.batch, arguments.rounds, device, clock)
            measured.append(record)
            passed.append(record["held_bytes"] == expected_bytes(point))
            parts = itertools.product(("dnc", "softmax"), ("score", "gradient", "update"))
            times = (f"{1000 * record['seconds'][' '.join(part)]['best']:.1f}" for part in parts)
            dnc = sum(size for name, size in record["held_bytes"].items() if name != "softmax")
            held = (f"{dnc / 1e6:.1f}", f"{record['held_bytes']['softmax'] / 1e6:.1f}")
            peak = max(size for name, size in record["peak_bytes"].items() if name.startswith("dnc"))
            yield (*map(str, point.values()), *times, *held, f"{peak / 1e6:.1f}", mark(passed[-1]))

    columns = ("C", "K", "D", "M", "score", "gradient", "update", "sm score", "gradient", "update")
    table((*columns, "MB held", "sm MB", "MB more", "bytes as counted"), rows(), first=6)
    print("\nsm: softmax, and the two columns after it. MB more: the most that a turn of DNC adds for a moment.")
    if arguments.output:
        record = {"kind": "scaling", **machine(device, clock), "batch": arguments.batch, "rounds": arguments.rounds}
        write(arguments.output, {**record, "speeds": best, "base": BASE, "points": measured})
    finish(passed)


if __name__ == "__main__":
    main()
