"""Assignment and update of the sub-centroids, against a careful plain loop over the classes.

Both do the same mathematics on the same unit embeddings: own-class scores, three Sinkhorn iterations in log space,
the hard assignment, the means, the momentum. The loop sorts the samples by class once and copies nothing else.
"""

import itertools
from collections.abc import Iterator

import _common  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from _common import (
    ASSIGNMENT_GPU,
    ASSIGNMENT_RAW,
    ASSIGNMENT_SHAPES,
    finish,
    heading,
    interleaved,
    mark,
    parser,
    table,
)

from dnc_lib import SubCentroidHead

K, MOMENTUM, EPSILON, ITERATIONS = 4, 0.999, 0.05, 3


def plain_loop(x: torch.Tensor, labels: torch.Tensor, subcentroids: torch.Tensor) -> None:
    """One update, class by class, in place: x (N, D) unit embeddings, labels (N,), subcentroids (C, K, D)."""
    order = torch.argsort(labels)
    counts = torch.bincount(labels, minlength=len(subcentroids)).tolist()
    for p, own in zip(subcentroids, x[order].split(counts), strict=True):
        if len(own) == 0:
            continue
        log_plan = own @ p.T / EPSILON  # (N_c, K)
        for _ in range(ITERATIONS):
            log_plan = (log_plan - log_plan.logsumexp(0)).log_softmax(1)
        chosen = F.one_hot(log_plan.argmax(1), K).to(x.dtype)
        means = F.normalize(chosen.T @ own, dim=1)  # (K, D)
        target = F.normalize(MOMENTUM * p + (1 - MOMENTUM) * means, dim=1)
        p.copy_(torch.where(chosen.any(0)[:, None], target, p))


def samples(num_classes: int, number: int, dim: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw features (N, D) and random labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, dim, generator=generator)
    return x.to(device), torch.randint(num_classes, (number,), generator=generator).to(device)


@torch.no_grad()
def measure(shape: tuple[int, int, int], raw: bool, rounds: int, device: str, clock: str) -> list[torch.Tensor]:
    """Milliseconds of the loop and of the head, (rounds,) each; first makes sure that both agree.

    Args:
        shape: C, N, D.
        raw: begin with raw features, which ``head.update`` checks and both normalise, not with unit embeddings.
        rounds: turns of each.
        device: where.
        clock: see :func:`_common.interleaved`.
    """
    num_classes, number, dim = shape
    x, labels = samples(num_classes, number, dim, device)
    head = SubCentroidHead(dim, num_classes, K, MOMENTUM, memory_size=0, epsilon=EPSILON, iterations=ITERATIONS)
    head = head.to(device)
    plain = head.subcentroids.clone()

    def loop() -> None:
        plain_loop(head.embed(x) if raw else unit, labels, plain)

    def ours() -> None:
        head.update(x, labels) if raw else head._learn(unit, labels)

    unit = head.embed(x)
    loop()
    ours()
    difference = (plain - head.subcentroids).abs().max().item()
    # One sample in thousands may be a tie that rounding settles; its share of a step is far below this.
    assert difference < 1e-3, f"the loop and the head differ by {difference}"
    return [1000 * torch.tensor(times) for times in interleaved((loop, ours), rounds, device, clock)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9, help="turns of each (default 9)")
    options.add_argument("--shape", type=int, nargs=3, metavar=("C", "N", "D"), help="one shape, without a bound")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    heading(
        "Assignment and update against a plain loop over classes, K = 4, 3 iterations",
        arguments.device,
        arguments.clock,
    )
    shapes = {tuple(arguments.shape): 0.0} if arguments.shape else ASSIGNMENT_SHAPES
    passed = []

    def rows() -> Iterator[tuple[str, ...]]:
        for raw, (shape, on_cpu) in itertools.product((False, True), shapes.items()):
            bound = on_cpu if arguments.device == "cpu" or arguments.shape else ASSIGNMENT_GPU[shape[0]]
            bound = min(bound, ASSIGNMENT_RAW) if raw else bound
            loop, ours = measure(shape, raw, arguments.rounds, arguments.device, arguments.clock)
            ratio = (loop.min() / ours.min()).item()
            passed.append(ratio >= bound)
            times = (f"{each.item():.1f}" for each in (loop.min(), ours.min(), loop.median(), ours.median()))
            name = "raw features" if raw else "embeddings"
            yield (name, *map(str, shape), *times, f"{ratio:.2f}", f"{bound:.1f}", mark(passed[-1]))

    times = ("loop, best", "head, best", "loop, median", "head, median")
    table(("from", "C", "N", "D", *times, "faster", "at least", ""), rows(), first=12)
    print("\nTimes in milliseconds. The ratio is of the best turns, which other processes disturbed least.")
    print("From raw features: both normalise them first, and the head checks them; most of that time is shared.")
    finish(passed)


if __name__ == "__main__":
    main()
