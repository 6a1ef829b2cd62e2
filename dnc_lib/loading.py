"""What a recipe reads: its data, cut into parts, and a loader for each part."""

from pathlib import Path

import torch
from accelerate import Accelerator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from .backbones import build_backbone, pretrained_normalisation, size_settings
from .checkpoints import ModelCard
from .data import DeviceLoader, LabelledImages, load
from .data.picture_loader import Augmentation, PictureLoader
from .data.pictures import Pictures, open_pictures
from .data.scene_loader import SceneLoader
from .data.scene_transforms import SceneAugmentation
from .data.scenes import Scenes, open_scenes
from .models import Model
from .norms import norm_group, set_norms
from .recipes import Recipe
from .transfer import Source, carry, read_source

#: Images a batch where nothing is learned from them.
EVALUATION_BATCH = 250

#: Training images from which a whitening layer is made.
START_IMAGES = 5000

#: What a recipe says of starting from ImageNet's weights.
IMAGENET = "imagenet"

Data = LabelledImages | Pictures | Scenes
Parts = dict[str, Data]
Loader = DeviceLoader | PictureLoader | SceneLoader
Loaders = dict[str, Loader]


def prepare_data(recipe: Recipe, data_root: str | Path | None = None, *, download: bool = False) -> Parts:
    """The images that a recipe uses: ``train``, ``test``, and ``validation`` where it holds some out, or the data set
    itself does.

    Args:
        recipe: names the data set and its reader.
        data_root: see :func:`dnc_lib.data.data_root`.
        download: fetch the data set if it is not there.

    Raises:
        FileNotFoundError: where the data is not at hand.
        ValueError: for data that is damaged, or smaller than what the recipe holds out or limits itself to.
    """
    if recipe.reader == "scenes":
        parts = open_scenes(recipe.dataset, data_root)
    else:
        if recipe.reader == "files":
            train, test = open_pictures(recipe.dataset, data_root)
        else:
            train, test = load(recipe.dataset, data_root, image_size=recipe.image_size, download=download)
        parts = {"train": train, "test": test}
        if recipe.leave_out:
            parts = {name: data.without(recipe.leave_out) for name, data in parts.items()}
    if recipe.validation:
        parts["train"], parts["validation"] = parts["train"].split(recipe.validation)
    if recipe.train_limit:
        parts["train"] = parts["train"].sample(recipe.train_limit)
    return parts


def make_card(recipe: Recipe, parts: Parts) -> ModelCard:
    """What it takes to build the recipe's model again and to feed it."""
    train, size = parts["train"], recipe.image_size
    backbone_settings = {"drop_path_rate": recipe.drop_path} if recipe.drop_path else {}
    dense = {}
    if recipe.weights == IMAGENET:
        mean, std = pretrained_normalisation(recipe.backbone)
    elif recipe.weights:
        source = _read_weights(recipe)
        mean, std = source.normalisation
        backbone_settings = {**source.settings, **backbone_settings}
    elif recipe.reader == "files":
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    else:
        mean, std = (each.tolist() for each in train.channel_stats())
    if recipe.reader == "memory":
        size = train.images.shape[1]
    if recipe.decoder:
        dense = {
            "decoder": recipe.decoder,
            "decoder_settings": {"channels": recipe.channels, "output_stride": recipe.output_stride or None},
            "colours": [] if train.colours is None else [list(map(int, colour)) for colour in train.colours],
        }
    else:
        backbone_settings |= size_settings(recipe.backbone, size)
    return ModelCard(
        recipe.backbone,
        recipe.head,
        recipe.head_settings(),
        list(train.classes),
        list(mean),
        list(std),
        size,
        backbone_settings,
        **dense,
    )


def build_model(recipe: Recipe, card: ModelCard, parts: Parts, accelerator: Accelerator) -> Model:
    """A new model on the accelerator's device, its random numbers from the recipe's seed; the caller's go on.

    The backbone begins as the recipe says. A first layer that is set from data, and that no weights come for, gets it
    from training images.

    Raises:
        FileNotFoundError: for weights that are nowhere.
        ValueError: for a backbone that takes no ``drop_path``, or weights that do not exist or do not fit.
    """
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(recipe.seed)
        try:
            model = card.build(auxiliary=recipe.auxiliary > 0)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            raise ValueError(f"the backbone {card.backbone} has no drop path: set drop_path to 0") from error
        if recipe.weights == IMAGENET:
            # Made for the same size of images, so that timm fits tables of positions to it.
            begun = build_backbone(recipe.backbone, pretrained=True, **card.backbone_settings)
            model.backbone.load_state_dict(begun.state_dict())
        elif recipe.weights:
            model.transfer = carry(_read_weights(recipe), model)
        elif hasattr(model.backbone, "start_from"):
            model.backbone.start_from(_start_images(recipe, card, parts["train"]))
    images, sharing = norms_of(recipe, accelerator)
    if sharing > 1 or recipe.norm_images:
        model = set_norms(model, images, sharing, accelerator.process_index, accelerator.num_processes)
    return model.to(accelerator.device, memory_format=torch.channels_last)


def norms_of(recipe: Recipe, accelerator: Accelerator) -> tuple[int, int]:
    """How many images a BatchNorm sees at once in training, and how many processes share it.

    Raises:
        ValueError: where so many processes cannot do what the recipe says, or share norms on the CPU.
    """
    processes, cuda = accelerator.num_processes, accelerator.device.type == "cuda"
    share = recipe.batch_size // (processes * recipe.accumulate)
    # A process has a few scenes at a time, too few for a BatchNorm of its own; the CPU knows no norm that is shared.
    together = bool(recipe.decoder) and cuda
    images, sharing = norm_group(share, processes, recipe.norm_images, together=together)
    if sharing > 1 and not cuda:
        raise ValueError(
            f"norm_images {recipe.norm_images} are those of {sharing} processes together, and processes share norms "
            f"on GPUs alone: take fewer processes, or norm_images {share}"
        )
    return images, sharing


def _read_weights(recipe: Recipe) -> Source:
    """The classifier that a recipe begins with.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a file that holds no classifier.
    """
    try:
        return read_source(recipe.weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"weights {recipe.weights!r}: {error}; say {IMAGENET}, or the run folder or file of a classifier"
        ) from error


def _start_images(recipe: Recipe, card: ModelCard, train: Data) -> Tensor:
    """Some training images (N, 3, H, W), normalised, without augmentation.

    Raises:
        ValueError: for images that are not all of one size in memory.
    """
    if recipe.reader != "memory":
        raise ValueError(
            f"{recipe.backbone} sets its first layer from images in memory, and reader {recipe.reader} has none: "
            f"take another backbone, or the weights of a classifier with this one"
        )
    some = train.subset(torch.arange(min(START_IMAGES, len(train))))
    ((images, _),) = DeviceLoader(some, len(some), card.mean, card.std)
    return images


def make_loaders(
    recipe: Recipe, parts: Parts, card: ModelCard, accelerator: Accelerator, workers: int = 0
) -> Loaders:
    """A loader for each part, each process its share of the images.

    ``held_out`` is what epochs are judged by: the validation images where there are any, else the test images.

    Args:
        recipe: batch size, augmentation, seed.
        parts: see :func:`prepare_data`.
        card: mean and deviation of the images, and their size.
        accelerator: the processes and this one's device.
        workers: processes that read pictures, for each of the training processes; images in memory need none.

    Raises:
        ValueError: for a batch that cannot be shared out, or not mixed in pairs, or fewer images than a step takes.
    """
    processes = accelerator.num_processes
    share, rest = divmod(recipe.batch_size, processes * recipe.accumulate)
    if rest:
        raise ValueError(
            f"batch_size {recipe.batch_size} cannot be shared out evenly over {processes} processes"
            + f" and {recipe.accumulate} passes" * (recipe.accumulate > 1)
        )
    ranked = {"rank": accelerator.process_index, "world_size": processes}

    def loader(part: str, **settings):
        return make_loader(recipe, parts[part], card, accelerator.device, workers=workers, **settings)

    loaders = {part: loader(part, **ranked) for part in parts if part != "train"}
    loaders["train"] = loader("train", training=True, batch_size=share, **ranked)
    if len(loaders["train"]) < recipe.accumulate:
        raise ValueError(
            f"{len(parts['train'])} training images make fewer than the {recipe.accumulate} passes of one step: "
            f"lower batch_size or accumulate"
        )
    images = min(share, len(parts["train"]) // processes)
    if (recipe.mixup or recipe.cutmix) and images % 2:
        raise ValueError(
            f"Mixup and CutMix need an even number of images a process and pass, got {images}: change batch_size"
        )
    loaders["held_out"] = loaders.get("validation", loaders["test"])
    if (
        recipe.refresh or recipe.refresh_epochs or recipe.anchor
    ):  # whole on every process, so that all estimate the same sub-centroids
        loaders["train_plain"] = loader("train")
    return loaders


def make_loader(
    recipe: Recipe,
    data: Data,
    card: ModelCard,
    device: torch.device | str,
    *,
    training: bool = False,
    batch_size: int = EVALUATION_BATCH,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """A loader for one part, by the recipe's reader; shuffled and augmented for ``training``, else as it is."""
    shares = {"shuffle": training, "seed": recipe.seed, "rank": rank, "world_size": world_size}
    if recipe.reader == "memory":
        varied = {"pad": recipe.pad, "flip": recipe.flip} if training else {}
        return DeviceLoader(data, batch_size, card.mean, card.std, device, **varied, **shares)
    if recipe.reader == "scenes":
        names = ("crop_size", "scale", "class_share", "flip", "color_jitter")
        varied = {name: getattr(recipe, name) for name in names} if training else None
        return SceneLoader(
            data,
            batch_size if training else 1,  # scenes may differ in size
            card.mean,
            card.std,
            device,
            augmentation=varied and SceneAugmentation(**varied, shorter_side=recipe.image_size),
            image_size=recipe.image_size,
            workers=workers,
            **shares,
        )
    names = ("crop_scale", "flip", "rand_augment", "color_jitter", "random_erasing", "interpolation")
    return PictureLoader(
        data,
        batch_size,
        card.mean,
        card.std,
        device,
        image_size=recipe.image_size,
        augmentation=Augmentation(**{name: getattr(recipe, name) for name in names}) if training else None,
        crop_pct=recipe.crop_pct,
        interpolation=recipe.interpolation,
        workers=workers,
        **shares,
    )
