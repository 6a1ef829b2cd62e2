"""Training images a second and peak memory of a network with each head, by real steps: what a full run costs here.

A step is forward, cross-entropy, backward, optimiser, `head.update`, on one batch of noise that lies on the device
already: reading and augmenting real images is not in it. The memory of past embeddings is full, as it is for nearly
all of a run.

    python benchmarks/bench_throughput.py --backbone resnet50 --batch 8 --output FILE                      one process
    python benchmarks/bench_throughput.py --precision bf16 --channels-last --batch 256 --processes 8       eight GPUs
"""

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path

import _common  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from _common import finish, heading, interleaved, mark, parser, table
from _measured import best_and_median, held_bytes, machine, peak_growth, write
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from dnc_lib import ImageClassifier, SubCentroidHead, recipes
from dnc_lib.fitting import keep_buffers_apart

PRECISIONS = {"no": None, "bf16": torch.bfloat16}


class Arm:
    """A network with one head, its optimiser and a batch of noise, ready to take steps.

    Args:
        head: name of the head.
        options: of this script.
        device: where.
        processes: how many train together; gradients are averaged and embeddings gathered if more than one.
    """

    def __init__(self, head: str, options: argparse.Namespace, device: str, processes: int):
        torch.manual_seed(0)
        self.options, self.device, self.processes = options, device, processes
        settings = {"num_subcentroids": options.subcentroids, "memory_size": options.memory}
        model = ImageClassifier.build(options.backbone, options.classes, head, head_settings=settings)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = model.to(device, memory_format=layout)
        self.head = model.head
        size, classes = options.image_size, options.classes
        self.images = torch.randn(options.batch, 3, size, size, device=device).to(memory_format=layout)
        self.labels = torch.arange(options.batch, device=device) % classes
        if isinstance(self.head, SubCentroidHead):
            self._fill(self.head)
        self.features = torch.randn(options.batch * processes, self.head.dim, device=device)
        if options.compile:
            model.backbone.compile()
        self.stepped = DistributedDataParallel(self.model) if processes > 1 else self.model
        keep_buffers_apart(self.stepped)
        make = {"sgd": _sgd, "adamw": torch.optim.AdamW}[options.optimizer]
        self.optimizer = make(self.model.parameters(), lr=1e-4)  # noise teaches nothing: stay near the start

    def _fill(self, head: SubCentroidHead) -> None:
        """Fill the memory with unit vectors."""
        for first in range(0, head.memory.size, 4096):
            number = min(4096, head.memory.size - first)
            x = F.normalize(torch.randn(number, head.dim, device=self.device), dim=1)
            head.memory.push(x, torch.randint(self.options.classes, (number,), device=self.device))

    def step(self) -> None:
        """One training step, whole."""
        precision = PRECISIONS[self.options.precision]
        context = torch.autocast(torch.device(self.device).type, precision) if precision else contextlib.nullcontext()
        with context:
            scores, features = self.stepped(self.images, return_features=True)
            loss = F.cross_entropy(scores, self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self.head, SubCentroidHead):
            self.head.update(*self._gathered(features.detach().float(), self.labels))

    def _gathered(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The features and labels of all processes, so that each moves its sub-centroids alike."""
        if self.processes == 1:
            return features, labels
        gathered = []
        for each in (features, labels):
            parts = [torch.empty_like(each) for _ in range(self.processes)]
            distributed.all_gather(parts, each)
            gathered.append(torch.cat(parts))
        return gathered[0], gathered[1]

    def update(self) -> None:
        """The update alone, over the samples of all processes."""
        self.head.update(self.features, self.labels.repeat(self.processes))

    def held(self) -> int:
        """Bytes of parameters, buffers and the optimiser's state."""
        state = [each for per in self.optimizer.state.values() for each in per.values() if torch.is_tensor(each)]
        return sum(held_bytes(self.model).values()) + sum(each.numel() * each.element_size() for each in state)


def _sgd(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)


def expected_difference(options: argparse.Namespace, dim: int) -> int:
    """Learnable numbers that softmax has and DNC has not: its weight and bias, less the norm's gain and bias."""
    return options.classes * (dim + 1) - 2 * dim


def worker(rank: int, options: argparse.Namespace, folder: str) -> None:
    """Measure in one process, as `rank` of several; the first writes what it found."""
    torch.set_num_threads(options.threads)
    device, processes = options.device, options.processes
    if processes > 1:
        device = f"cuda:{rank}" if device.startswith("cuda") else device
        if device.startswith("cuda"):
            torch.cuda.set_device(rank)
        backend = "nccl" if device.startswith("cuda") else "gloo"
        distributed.init_process_group(
            backend, init_method=Path(folder, "meeting").as_uri(), rank=rank, world_size=processes
        )
    arms = {head: Arm(head, options, device, processes) for head in options.head}
    names, functions = [], []
    for head, arm in arms.items():
        names, functions = [*names, (head, "step")], [*functions, arm.step]
        if isinstance(arm.head, SubCentroidHead):
            names, functions = [*names, (head, "update")], [*functions, arm.update]
    times = dict(zip(names, interleaved(functions, options.rounds, device, options.clock), strict=True))
    results = {head: result(arm, times, head) for head, arm in arms.items()}
    if processes > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    if rank == 0:
        Path(folder, "record.json").write_text(json.dumps(results))


def result(arm: Arm, times: dict[tuple[str, str], list[float]], head: str) -> dict:
    """What one head's steps came to; images a second are those of the median step, over all processes."""
    seconds = {part: best_and_median(times[head, part]) for part in ("step", "update") if (head, part) in times}
    images = arm.options.batch * arm.processes
    return {
        "seconds": seconds,
        "images_per_second": {which: images / value for which, value in seconds["step"].items()},
        "learnable": sum(each.numel() for each in arm.model.parameters()),
        "dim": arm.head.dim,
        "held_bytes": arm.held(),
        # without the buckets that DistributedDataParallel keeps, of the size of the gradients
        "peak_bytes": arm.held() + peak_growth(arm.step, arm.device),
    }


def options() -> argparse.Namespace:
    """The command line; a recipe sets what is not given."""
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--recipe", choices=recipes.NAMES, help="take backbone, image size, batch and K, M from it")
    made.add_argument("--backbone", help="default resnet50")
    made.add_argument("--image-size", type=int, help="default 224")
    made.add_argument("--classes", type=int, default=1000)
    made.add_argument("--batch", type=int, help="images a process and step (default 8)")
    made.add_argument("--head", nargs="+", default=["softmax", "dnc"], choices=("softmax", "cosine", "frozen", "dnc"))
    made.add_argument("--subcentroids", type=int, help="K (default 4)")
    made.add_argument("--memory", type=int, help="past embeddings kept (default 12800)")
    made.add_argument("--precision", choices=PRECISIONS, default="no", help="no: float32; bf16: autocast")
    made.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    made.add_argument("--channels-last", action="store_true")
    made.add_argument("--compile", action="store_true", help="torch.compile on the backbone")
    made.add_argument("--processes", type=int, default=1, help="train together, one device each (CPU: gloo)")
    made.add_argument("--rounds", type=int, default=5, help="steps of each (default 5, after two unmeasured)")
    made.add_argument("--output", type=Path, help="write a JSON record here")
    given = made.parse_args()
    recipe = recipes.get(given.recipe) if given.recipe else None
    fields = {"backbone": "resnet50", "image_size": 224, "batch": 8, "subcentroids": 4, "memory": 12_800}
    names = {"batch": "batch_size", "subcentroids": "num_subcentroids", "memory": "memory_size"}
    for field, default in fields.items():
        if getattr(given, field) is None:
            setattr(given, field, getattr(recipe, names.get(field, field)) if recipe else default)
    if given.processes > 1 and given.clock == "cpu":
        made.error("several processes wait for one another, which --clock cpu does not see; use --clock wall")
    return given


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    sizes = f"{given.image_size} px, batch {given.batch}, C {given.classes}, memory {given.memory:,}"
    several = f", {given.processes} processes" if given.processes > 1 else ""
    heading(f"Training steps of {given.backbone}, {sizes}, {given.precision}{several}", given.device, given.clock)
    with tempfile.TemporaryDirectory() as folder:
        if given.processes > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
            torch.multiprocessing.spawn(worker, (given, folder), nprocs=given.processes)
        else:
            worker(0, given, folder)
        heads = json.loads(Path(folder, "record.json").read_text())
    show(heads)
    if given.output:
        asked = {key: value for key, value in vars(given).items() if key not in ("output", "device", "clock", "head")}
        write(given.output, {"kind": "throughput", **machine(given.device, given.clock), **asked, "heads": heads})
    if {"softmax", "dnc"} <= set(heads):
        softmax, dnc = heads["softmax"], heads["dnc"]
        expected = expected_difference(given, dnc["dim"])
        counted = softmax["learnable"] - dnc["learnable"]
        print(f"\nlearnable numbers that DNC saves: {counted:,}; expected {expected:,}: {mark(counted == expected)}")
        finish([counted == expected])


def show(heads: dict[str, dict]) -> None:
    """The table of one record."""
    first = next(iter(heads.values()))["seconds"]["step"]["best"]
    rows = []
    for name, each in heads.items():
        step, update = each["seconds"]["step"], each["seconds"].get("update")
        rows.append(
            (
                name,
                *(f"{1000 * step[which]:.1f}" for which in ("best", "median")),
                f"{each['images_per_second']['median']:.2f}",
                f"{step['best'] / first:.3f}",
                f"{1000 * update['best']:.1f}" if update else "",
                f"{100 * update['best'] / step['best']:.1f}" if update else "",
                f"{each['held_bytes'] / 1e6:.0f}",
                f"{each['peak_bytes'] / 1e6:.0f}",
            )
        )
    columns = (
        "head",
        "best ms",
        "median ms",
        "images/s",
        "times first",
        "update ms",
        "% of step",
        "MB held",
        "MB peak",
    )
    table(columns, rows, first=8)


if __name__ == "__main__":
    main()
