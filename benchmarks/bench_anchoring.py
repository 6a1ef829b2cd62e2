"""Anchoring over all training images of CIFAR-10 against one evaluation pass over them."""

import _common  # noqa: F401  (before torch)
import torch
from _common import ANCHORING_AT_MOST, finish, heading, interleaved, mark, parser, table

from dnc_lib import ImageClassifier, recipes
from dnc_lib.anchoring import anchor
from dnc_lib.data import DeviceLoader, LabelledImages
from dnc_lib.evaluation import evaluate
from dnc_lib.loading import EVALUATION_BATCH

CLASSES = 10


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=50_000, help="training images (default 50,000)")
    options.add_argument("--recipe", default="cifar10_resnet20", help="a recipe (default cifar10_resnet20)")
    options.add_argument("--rounds", type=int, default=5, help="passes of each (default 5)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = recipes.get(arguments.recipe)
    size = recipe.image_size
    heading(
        f"{arguments.images:,} images of {size} x {size}, {recipe.backbone}, K = {recipe.num_subcentroids}",
        arguments.device,
        arguments.clock,
    )
    torch.manual_seed(0)
    pixels = torch.randint(
        0, 256, (arguments.images, size, size, 3), dtype=torch.uint8
    )  # noise costs what pictures do
    names = tuple(str(c) for c in range(CLASSES))
    data = LabelledImages(pixels, torch.arange(arguments.images) % CLASSES, names, "noise")
    loader = DeviceLoader(data, EVALUATION_BATCH, [0.5] * 3, [0.25] * 3, arguments.device)
    model = ImageClassifier.build(recipe.backbone, CLASSES, head_settings=recipe.head_settings())
    model = model.to(arguments.device, memory_format=torch.channels_last).eval()
    start = model.head.subcentroids.clone()

    def anchoring() -> None:
        model.head.subcentroids.copy_(start)
        anchor(model, loader)

    passes = [lambda: evaluate(model, loader), anchoring]
    times = [torch.tensor(each) for each in interleaved(passes, arguments.rounds, arguments.device, arguments.clock)]
    ratio = (times[1].min() / times[0].min()).item()
    held = ratio <= ANCHORING_AT_MOST
    rows = [
        ("evaluation", f"{times[0].min().item():.2f}", f"{times[0].median().item():.2f}", "", "", ""),
        (
            "anchoring",
            f"{times[1].min().item():.2f}",
            f"{times[1].median().item():.2f}",
            f"{ratio:.3f}",
            f"{ANCHORING_AT_MOST}",
            mark(held),
        ),
    ]
    table(("pass", "best s", "median s", "times evaluation", "at most", ""), rows)
    finish([held])


if __name__ == "__main__":
    main()
