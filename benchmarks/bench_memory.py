"""The memory of past embeddings at full size: what it holds, what the process grows by, what an update adds."""

import threading
import time

import _common  # noqa: F401  (before torch)
import psutil
import torch
import torch.nn.functional as F
from _common import MEMORY_AT_MOST, finish, heading, mark, parser, table

from dnc_lib import SubCentroidHead


class PeakWatch:
    """The largest resident size of this process while the ``with`` block runs, looked at every 2 ms."""

    def __enter__(self) -> "PeakWatch":
        self.peak, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Bytes of main memory that this process holds."""
    return psutil.Process().memory_info().rss


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.set_defaults(device="cpu")
    options.add_argument("--size", type=int, default=256_000, help="embeddings kept (default 256000)")
    options.add_argument("--dim", type=int, default=2048, help="their width (default 2048)")
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--batch", type=int, default=256)
    arguments = options.parse_args()
    size, dim, classes, batch = arguments.size, arguments.dim, arguments.classes, arguments.batch
    torch.set_num_threads(arguments.threads)
    heading(f"A memory of {size:,} embeddings of {dim}", "cpu")

    SubCentroidHead(dim, classes, memory_size=batch).update(torch.randn(batch, dim), torch.arange(batch) % classes)
    head = SubCentroidHead(dim, classes, memory_size=0)
    before = resident()
    memory = type(head.memory)(size, dim)
    for first in range(0, size, batch):
        number = min(batch, size - first)
        memory.push(F.normalize(torch.randn(number, dim), dim=1), torch.randint(classes, (number,)))
    held = sum(buffer.numel() * buffer.element_size() for buffer in memory.buffers())
    grown = resident() - before
    assert len(memory) == size

    head.memory = memory
    x, labels = torch.randn(batch, dim), torch.randint(classes, (batch,))
    before, started = resident(), time.perf_counter()
    with PeakWatch() as watch:
        head.update(x, labels)
    seconds, added = time.perf_counter() - started, watch.peak - before

    passed = [held <= MEMORY_AT_MOST, grown <= MEMORY_AT_MOST]
    bound = f"{MEMORY_AT_MOST / 1e9:.2f}"
    rows = [
        ("in the buffers", f"{held / 1e9:.3f}", bound, mark(passed[0])),
        ("growth of the process", f"{grown / 1e9:.3f}", bound, mark(passed[1])),
        (f"at most more during an update, batch {batch}, C {classes}, K 4", f"{added / 1e9:.3f}", "", ""),
    ]
    table(("what", "GB", "at most", ""), rows, first=max(len(row[0]) for row in rows))
    print(f"\nthe update took {seconds:.2f} s; a float32 copy of the memory would add {4 * size * dim / 1e9:.2f} GB")
    finish(passed)


if __name__ == "__main__":
    main()
