"""A segmenter's DNC training step against the softmax step of the same network: its time, its peak memory, and the
share of it that the head's update takes.

One batch of noise, and labels in blocks, as things lie in a scene. The memory of past embeddings is full, as it is
for nearly all of a run, and every pixel that enters the update is one that the head classifies correctly, as nearly
all are late in a run: then `correct_only` costs most.
"""

import argparse
import contextlib

import _common  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from _common import (
    SEGMENTATION_MEMORY_AT_MOST,
    SEGMENTATION_STEP_AT_MOST,
    UPDATE_AT_MOST,
    finish,
    heading,
    interleaved,
    mark,
    parser,
    table,
)
from _measured import held_bytes, peak_growth

from dnc_lib import Segmenter, SubCentroidHead, recipes
from dnc_lib.metrics import IGNORED
from dnc_lib.tasks import Segmentation

BLOCK = 16  # pixels: side of the blocks that have one label


class Arm:
    """A segmenter with one head, its optimiser and a batch, ready to take steps.

    Args:
        head: name of the head.
        recipe: of a segmentation; its network, losses and update.
        classes: C.
        options: of this script.
    """

    def __init__(self, head: str, recipe: recipes.Recipe, classes: int, options: argparse.Namespace):
        torch.manual_seed(0)
        device, (height, width), batch = options.device, recipe.crop_size, recipe.batch_size
        model = Segmenter.build(
            recipe.backbone,
            recipe.decoder,
            classes,
            head,
            output_stride=recipe.output_stride or None,
            channels=recipe.channels,
            auxiliary=recipe.auxiliary > 0,
            head_settings=recipe.head_settings(),
        )
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.head, self.bf16 = self.model.head, recipe.precision == "bf16"
        self.task = Segmentation(classes, recipe.auxiliary, recipe.pixels)
        # noise teaches nothing: stay where numbers are ordinary
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        make = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.SGD
        self.optimizer = make(learned, recipe.learning_rate / 100, weight_decay=recipe.weight_decay)
        self.images = torch.randn(batch, 3, height, width, device=device).to(memory_format=torch.channels_last)
        blocks = torch.randint(classes, (batch, -(-height // BLOCK), -(-width // BLOCK)), device=device)
        blocks[torch.rand(blocks.shape, device=device) < 0.05] = IGNORED
        labels = blocks.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
        self.labels = labels[:, :height, :width].contiguous()
        self.samples = None
        if isinstance(self.head, SubCentroidHead):
            self._fill_memory(classes)

    def _fill_memory(self, classes: int) -> None:
        memory, device = self.head.memory, self.images.device
        x = F.normalize(torch.randn(memory.size, self.head.dim, device=device), dim=1)
        memory.push(x, torch.arange(memory.size, device=device) % classes)

    def step(self) -> None:
        """One training step, whole."""
        device = self.images.device.type
        with torch.autocast(device, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            outcome = self.task.step(self.model, self.images, self.labels)
        outcome.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.head, SubCentroidHead):
            self.outcome = outcome._replace(loss=None, features=outcome.features.float())
            self.update()

    def update(self) -> None:
        """What a step does for the head alone: draw pixels, and move the sub-centroids by as many."""
        _, labels = self.task.samples(self.outcome, seed=0)
        self.head.update(self._classified(labels), labels)

    def _classified(self, labels: torch.Tensor) -> torch.Tensor:
        """Features (B, P, D) that the head takes for what the labels (B, P) say: beside a sub-centroid of theirs."""
        if self.samples is None:
            near = self.head.subcentroids[labels.clamp_max(self.head.num_classes - 1), 0]
            self.samples = near + 0.3 / self.head.dim**0.5 * torch.randn_like(near)
        return self.samples

    def held(self) -> int:
        """Bytes of parameters, buffers and the optimiser's state."""
        state = [each for per in self.optimizer.state.values() for each in per.values() if torch.is_tensor(each)]
        return sum(held_bytes(self.model).values()) + sum(each.numel() * each.element_size() for each in state)


def measure(recipe: recipes.Recipe, classes: int, options: argparse.Namespace) -> tuple[list[list[str]], list[bool]]:
    """Rows of the table for this number of classes, and whether each bound holds."""
    softmax, dnc = (Arm(head, recipe, classes, options) for head in ("softmax", "dnc"))
    calls = [softmax.step, dnc.step, dnc.update]
    best = [1000 * min(times) for times in interleaved(calls, options.rounds, options.device, options.clock)]
    held = [arm.held() for arm in (softmax, dnc)]
    added = [peak_growth(arm.step, options.device) for arm in (softmax, dnc)]
    peak = [(each + more) / 1e6 for each, more in zip(held, added, strict=True)]
    time_ratio, peak_ratio, share = best[1] / best[0], peak[1] / peak[0], best[2] / best[1]
    bounds = [
        time_ratio <= SEGMENTATION_STEP_AT_MOST,
        peak_ratio <= SEGMENTATION_MEMORY_AT_MOST,
        share <= UPDATE_AT_MOST,
    ]

    def row(what: str, one: str, other: str, ratio: float, bound: float, passed: bool) -> list[str]:
        return [f"{classes} classes: {what}", one, other, f"{ratio:.3f}", f"{bound}", mark(passed)]

    return [
        row("step, ms", f"{best[0]:.1f}", f"{best[1]:.1f}", time_ratio, SEGMENTATION_STEP_AT_MOST, bounds[0]),
        row("of it the update, ms", "", f"{best[2]:.1f}", share, UPDATE_AT_MOST, bounds[2]),
        row("peak, MB", f"{peak[0]:.1f}", f"{peak[1]:.1f}", peak_ratio, SEGMENTATION_MEMORY_AT_MOST, bounds[1]),
        [f"{classes} classes: of it made by the step, MB", *(f"{each / 1e6:.1f}" for each in added),
         f"{added[1] / added[0]:.3f}", "", ""],
    ], bounds  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--recipe", default="camvid_fcn_efficientnet", help="(default camvid_fcn_efficientnet)")
    options.add_argument("--classes", type=int, nargs="+", default=[19, 150], help="how many (default 19 and 150)")
    options.add_argument("--batch", type=int, default=4, help="images a step (default 4)")
    options.add_argument("--crop", type=int, help="side of the square crop (default: the recipe's)")
    options.add_argument("--output-stride", type=int, help="of the backbone (default: the recipe's)")
    options.add_argument("--rounds", type=int, default=10, help="steps of each (default 10)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = {"batch_size": arguments.batch, "output_stride": arguments.output_stride}
    changes["crop_size"] = (arguments.crop,) * 2 if arguments.crop else None
    recipe = recipes.get(arguments.recipe, **{key: value for key, value in changes.items() if value})
    height, width = recipe.crop_size
    heading(
        f"A training step of {recipe.decoder} on {recipe.backbone}, {recipe.batch_size} x {height} x {width}, "
        f"K {recipe.num_subcentroids}, a full memory of {recipe.memory_size:,}",
        arguments.device,
        arguments.clock,
    )
    passed = []

    def rows():
        for classes in arguments.classes:
            lines, bounds = measure(recipe, classes, arguments)
            passed.extend(bounds)
            yield from lines

    table(("what", "softmax", "dnc", "ratio", "at most", ""), rows(), first=40)
    print("\nTimes are the best steps'. The peak is what the arm holds and what its step adds, at the worst moment.")
    finish(passed)


if __name__ == "__main__":
    main()
