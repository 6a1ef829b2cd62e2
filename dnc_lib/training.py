"""``train(recipe) -> Run``: the loop, on accelerate."""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch.optim import lr_scheduler
from tqdm import tqdm

from .checkpoints import ModelCard, save_model
from .data import DeviceLoader, LabelledImages, load
from .evaluation import evaluate
from .heads import SubCentroidHead
from .models import ImageClassifier
from .recipes import Recipe
from .recipes.base import START_KEPT
from .runs import METRICS, MODEL, Run, describe_code, describe_machine, peak_memory


def train(
    recipe: Recipe,
    data_root: str | Path | None = None,
    output: str | Path = "runs",
    *,
    progress: bool = True,
    download: bool = False,
) -> Run:
    """Train a classifier by a recipe and leave a run folder.

    With several processes (``accelerate launch``) every batch is shared out and the features are gathered for the
    update, so that each process keeps the same sub-centroids.

    Args:
        recipe: what to train and how.
        data_root: see :func:`dnc_lib.data.data_root`.
        output: the run folder is ``output/<recipe>_<head>_seed<seed>``.
        progress: show a bar with loss, accuracy, images a second and the time left.
        download: fetch the data set if it is not there.

    Returns:
        The run; ``run.manifest["final"]`` has the last epoch's held-out accuracy in percent.

    Raises:
        FileExistsError: where the run folder holds a run.
        FileNotFoundError: where the data is not at hand.
        FloatingPointError: where the loss is no longer a number.
        ValueError: as recipes, data and models do.
    """
    accelerator = _accelerator(recipe.precision)
    started = time.time()
    run = Run(Path(output) / f"{recipe.name}_{recipe.head}_seed{recipe.seed}")
    if (run.folder / METRICS).exists():
        raise FileExistsError(f"{run.folder} holds a run already; choose another --output or remove it")
    accelerator.wait_for_everyone()
    parts = prepare_data(recipe, data_root, download=download)
    loaders, card = make_loaders(recipe, parts, accelerator)
    updates = len(loaders["train"]) * recipe.epochs - recipe.update_after
    start_kept = recipe.start_kept(max(updates, 0)) if recipe.head == "dnc" else None
    if accelerator.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        if start_kept is not None and start_kept > START_KEPT:
            _warn_start_kept(recipe, updates, start_kept)

    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the caller's random numbers go on as if nothing had been
        torch.manual_seed(recipe.seed)
        model = card.build().to(accelerator.device, memory_format=torch.channels_last)
        run.manifest = _describe(recipe, parts, model, accelerator)
        if start_kept is not None:
            run.manifest["start_kept"] = start_kept
        with tqdm(
            total=recipe.epochs * len(loaders["train"]) * min(recipe.batch_size, len(parts["train"])),
            unit=" images",
            unit_scale=True,
            smoothing=0.05,
            disable=not progress or not accelerator.is_main_process,
            desc=f"{recipe.name} {recipe.head}",
        ) as bar:
            curve = _fit(recipe, accelerator, model, loaders, run, bar)
        if recipe.refresh and recipe.head == "dnc":  # frozen sub-centroids never move
            run.manifest["refresh"] = _refresh(model, loaders, accelerator.reduce)
        final = evaluate(model, loaders["test"], accelerator.reduce)

    best = max(curve, key=lambda record: record["accuracy"])
    run.manifest |= {
        "final": {key: final[key] for key in ("accuracy", "top5", "loss")},
        "best": {"epoch": best["epoch"], "accuracy": best["accuracy"]},
        "curve": curve,
        "seconds": time.time() - started,
        "peak_memory_bytes": peak_memory(accelerator.device),
    }
    if accelerator.is_main_process:
        save_model(model, card, run.folder / MODEL)
        run.save_manifest()
    accelerator.wait_for_everyone()
    return run


def prepare_data(
    recipe: Recipe, data_root: str | Path | None = None, *, download: bool = False
) -> dict[str, LabelledImages]:
    """The images that a recipe uses: ``train``, ``test``, and ``validation`` where it holds some out."""
    train_part, test = load(recipe.dataset, data_root, image_size=recipe.image_size, download=download)
    parts = {"train": train_part, "test": test}
    if recipe.validation:
        parts["train"], parts["validation"] = train_part.split(recipe.validation)
    if recipe.train_limit:
        parts["train"] = parts["train"].sample(recipe.train_limit, recipe.seed)
    return parts


def make_loaders(
    recipe: Recipe, parts: dict[str, LabelledImages], accelerator: Accelerator
) -> tuple[dict[str, DeviceLoader], ModelCard]:
    """Loaders for the parts, and the card of the model. ``held_out`` is what epochs are judged by: the validation
    images where there are any, else the test images."""
    processes = accelerator.num_processes
    if recipe.batch_size % processes:
        raise ValueError(f"batch_size {recipe.batch_size} cannot be shared out evenly over {processes} processes")
    mean, std = parts["train"].channel_stats()
    share = {"rank": accelerator.process_index, "world_size": processes}
    loaders = {
        "train": DeviceLoader(
            parts["train"],
            recipe.batch_size // processes,
            mean,
            std,
            accelerator.device,
            shuffle=True,
            pad=recipe.pad,
            flip=recipe.flip,
            seed=recipe.seed,
            **share,
        )
    }
    for part in set(parts) - {"train"}:
        loaders[part] = DeviceLoader(parts[part], 500, mean, std, accelerator.device, **share)
    loaders["held_out"] = loaders.get("validation", loaders["test"])
    if recipe.refresh:  # whole on every process, so that all estimate the same sub-centroids
        loaders["train_plain"] = DeviceLoader(parts["train"], 500, mean, std, accelerator.device)
    card = ModelCard(
        recipe.backbone,
        recipe.head,
        recipe.head_settings(),
        list(parts["train"].classes),
        mean.tolist(),
        std.tolist(),
        parts["train"].images.shape[1],
    )
    return loaders, card


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate after each of ``steps`` optimiser steps an epoch."""
    total = steps * recipe.epochs
    if recipe.schedule == "step":
        return lr_scheduler.MultiStepLR(optimizer, [epoch * steps for epoch in recipe.milestones], recipe.decay)
    if recipe.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            recipe.learning_rate,
            total_steps=total,
            pct_start=0.25 if total != 4 else 0.5,  # torch divides by 0.25 * total - 1
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=1000,
        )
    if recipe.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, total)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _accelerator(precision: str) -> Accelerator:
    # Accelerate keeps one state a process and refuses a second precision; a notebook may well train twice.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=precision, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )


def _describe(
    recipe: Recipe, parts: dict[str, LabelledImages], model: ImageClassifier, accelerator: Accelerator
) -> dict:
    """What is known of a run before it starts."""
    return {
        "recipe": recipe.to_dict(),
        "data": {
            part: {"name": data.name, "images": len(data), "digest": data.digest()} for part, data in parts.items()
        },
        "code": describe_code(),
        "processes": accelerator.num_processes,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **describe_machine(accelerator.device),
    }


def _fit(
    recipe: Recipe,
    accelerator: Accelerator,
    model: ImageClassifier,
    loaders: dict[str, DeviceLoader],
    run: Run,
    bar: tqdm,
) -> list[dict]:
    """All epochs; their records, which the run's metrics get one by one."""
    started = time.time()
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        recipe.sgd_momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    scheduler = make_schedule(recipe, optimizer, len(loaders["train"]))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    curve = []
    for epoch in range(1, recipe.epochs + 1):
        record = {"epoch": epoch, "learning_rate": scheduler.get_last_lr()[0]}
        record |= _train_epoch(recipe, accelerator, wrapped, optimizer, scheduler, loaders["train"], bar)
        _share_statistics(model.backbone, accelerator)
        held_out = evaluate(model, loaders["held_out"], accelerator.reduce)
        record |= {key: held_out[key] for key in ("accuracy", "top5", "loss")} | {"seconds": time.time() - started}
        if isinstance(model.head, SubCentroidHead):
            record |= model.head.diagnostics()
            model.head.reset_usage()
        curve.append(record)
        if accelerator.is_main_process:
            run.add_metrics(record)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # what follows is measured in full precision
    return curve


def _train_epoch(recipe, accelerator, model, optimizer, scheduler, loader, bar) -> dict[str, float]:
    """One pass over the training images; mean loss and accuracy of its batches."""
    model.train()
    head = accelerator.unwrap_model(model).head
    total_loss, total_correct, seen = 0.0, 0.0, 0
    for step, (images, labels) in enumerate(loader):
        with accelerator.autocast():
            scores, features = model(images, return_features=True)
            loss = F.cross_entropy(scores.float(), labels, label_smoothing=recipe.label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            scheduler.step()
        optimizer.zero_grad()
        if isinstance(head, SubCentroidHead) and loader.epoch * len(loader) + step >= recipe.update_after:
            _check_loss(loss, recipe, loader.epoch, step)
            head.update(*accelerator.gather((features.detach(), labels)))
        total_loss += loss.detach() * len(labels)
        total_correct += (scores.detach().argmax(1) == labels).sum()
        seen += len(labels)
        bar.update(len(labels) * accelerator.num_processes)
        if step % 20 == 0 or step == len(loader) - 1:  # reading the loss waits for the device: seldom
            _check_loss(total_loss, recipe, loader.epoch, step)
            bar.set_postfix(
                loss=f"{float(total_loss) / seen:.3f}", accuracy=f"{100 * float(total_correct) / seen:.1f}%"
            )
    sums = torch.tensor([float(total_loss), float(total_correct), float(seen)], device=accelerator.device)
    loss, correct, count = accelerator.reduce(sums).tolist()
    return {"train_loss": loss / count, "train_accuracy": 100 * correct / count}


def _check_loss(loss: torch.Tensor, recipe: Recipe, epoch: int, step: int) -> None:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value} at step {step} of epoch {epoch + 1}: "
            f"lower learning_rate ({recipe.learning_rate}) or try precision='no'"
        )


def _share_statistics(backbone: torch.nn.Module, accelerator: Accelerator) -> None:
    """Average the running statistics of BatchNorm over the processes: each saw its own share of every batch."""
    if accelerator.num_processes == 1:
        return
    for buffer in backbone.buffers():
        if buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer.clone(), "mean"))


def _refresh(model: ImageClassifier, loaders: dict[str, DeviceLoader], reduce: Callable) -> dict:
    """Estimate the sub-centroids anew on the training images; take that back where held-out accuracy falls."""
    before = evaluate(model, loaders["held_out"], reduce)["accuracy"]
    state = {key: value.clone() for key, value in model.head.state_dict().items()}
    model.refresh(loaders["train_plain"])
    after = evaluate(model, loaders["held_out"], reduce)["accuracy"]
    if after < before:
        model.head.load_state_dict(state)
    return {"held_out_before": before, "held_out_after": after, "kept": after >= before}


def _warn_start_kept(recipe: Recipe, updates: int, kept: float) -> None:
    """Say that the momentum leaves much of the random start in place."""
    advice = (
        f"{START_KEPT ** (1 / updates):.4f} or less would move them" if updates > 0 else "update_after is too late"
    )
    warnings.warn(
        f"momentum {recipe.momentum} over {max(updates, 0)} updates keeps {kept:.0%} of the random start: "
        f"these sub-centroids are mostly random; {advice}",
        stacklevel=3,
    )
