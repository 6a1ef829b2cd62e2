"""A DNC training step against the softmax step of the same network: forward, backward, optimiser, and the update."""

from collections.abc import Callable

import _common  # noqa: F401  (before torch)
import torch
import torch.nn.functional as F
from _common import STEP_AT_MOST, finish, heading, interleaved, mark, parser, table

from dnc_lib import ImageClassifier, SubCentroidHead, recipes

CLASSES = 10


def training_step(recipe: recipes.Recipe, arm: str, device: str) -> Callable[[], None]:
    """One step as the recipe trains, on one batch of noise; the memory is full, as it is for nearly all of a run."""
    torch.manual_seed(recipe.seed)
    model = ImageClassifier.build(recipe.backbone, CLASSES, arm, head_settings=recipe.head_settings())
    model = model.to(device, memory_format=torch.channels_last)
    if isinstance(model.head, SubCentroidHead):
        memory = model.head.memory
        x = F.normalize(torch.randn(memory.size, model.head.dim, device=device), dim=1)
        memory.push(x, torch.arange(memory.size, device=device) % CLASSES)
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate / 100,  # noise teaches nothing: stay where numbers are ordinary
        recipe.sgd_momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    size = recipe.image_size
    images = torch.randn(recipe.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=device) % CLASSES

    def step() -> None:
        scores, features = model(images, return_features=True)
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.head.update(features.detach(), labels)

    return step


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=25, help="steps of each (default 25)")
    options.add_argument("--recipe", default="cifar10_resnet20", help="a recipe (default cifar10_resnet20)")
    options.add_argument("--batch", type=int, help="images a step (default: the recipe's)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = recipes.get(arguments.recipe, **({"batch_size": arguments.batch} if arguments.batch else {}))
    heading(
        f"A training step of {recipe.backbone}, batch {recipe.batch_size}, a full memory of {recipe.memory_size:,}",
        arguments.device,
        arguments.clock,
    )
    arms = ("softmax", "dnc")
    steps = [training_step(recipe, arm, arguments.device) for arm in arms]
    times = [
        1000 * torch.tensor(each) for each in interleaved(steps, arguments.rounds, arguments.device, arguments.clock)
    ]
    ratio = (times[1].min() / times[0].min()).item()
    rows = [
        ("softmax", f"{times[0].min().item():.1f}", f"{times[0].median().item():.1f}", "", "", ""),
        (
            "dnc",
            f"{times[1].min().item():.1f}",
            f"{times[1].median().item():.1f}",
            f"{ratio:.3f}",
            f"{STEP_AT_MOST}",
            mark(ratio <= STEP_AT_MOST),
        ),
    ]
    table(("head", "best ms", "median ms", "times softmax", "at most", ""), rows)
    print("\nThe ratio is of the best steps, which other processes disturbed least.")
    finish([ratio <= STEP_AT_MOST])


if __name__ == "__main__":
    main()
