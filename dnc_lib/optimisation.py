"""What a recipe says of optimising: optimiser, parameter groups and learning-rate schedule, all torch's own."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import lr_scheduler

from .recipes import Recipe

#: Where a warm-up starts, as a share of the learning rate.
WARMUP_START = 1e-3


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over the model's learnable parameters, in up to three groups (see :func:`parameter_groups`)."""
    groups = parameter_groups(recipe, model)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.learning_rate)
    return torch.optim.SGD(groups, recipe.learning_rate, recipe.sgd_momentum, nesterov=recipe.nesterov)


def parameter_groups(recipe: Recipe, model: nn.Module) -> list[dict]:
    """The learnable parameters by how they are decayed and how fast they learn.

    Without ``decay_norms`` vectors and scalars (norms, biases) go free of weight decay, and so do the tables that a
    timm model names itself (Swin's relative positions). With ``norm_bias_rate`` the biases of BatchNorm learn that
    many times faster, with ``backbone_rate`` so does the whole backbone.

    Returns:
        Groups for a torch optimiser; those that would be empty are left out.
    """
    spared = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            spared |= {f"{prefix}.{name}".lstrip(".") for name in module.no_weight_decay()}
    fast = {
        id(module.bias)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.bias is not None and recipe.norm_bias_rate != 1
    }
    bias_decay = recipe.weight_decay / recipe.norm_bias_rate if recipe.decay_norms else 0.0
    kinds = {  # its weight decay, and its learning rate over the recipe's
        "decayed": (recipe.weight_decay, 1.0),
        "free": (0.0, 1.0),
        # decay times rate stays what it is elsewhere: these learn faster, they do not shrink faster
        "norm biases": (bias_decay, recipe.norm_bias_rate),
    }
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = not recipe.decay_norms and (parameter.ndim <= 1 or name in spared)
        kind = "norm biases" if id(parameter) in fast else "free" if bare else "decayed"
        slow = recipe.backbone_rate if name.startswith("backbone.") else 1.0
        groups.setdefault((slow, kind), []).append(parameter)
    return [
        {"params": groups[slow, kind], "weight_decay": decay, "lr": recipe.learning_rate * rate * slow}
        for slow in sorted({slow for slow, _ in groups}, reverse=True)
        for kind, (decay, rate) in kinds.items()
        if (slow, kind) in groups
    ]


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate after each of ``steps`` optimiser steps an epoch, warm-up first where the recipe has one."""
    warmup = recipe.warmup_epochs * steps
    total = recipe.epochs * steps
    if not warmup:
        return _main_schedule(recipe, optimizer, total, steps, 0)
    rise = lr_scheduler.LinearLR(optimizer, WARMUP_START, total_iters=warmup)
    rest = _main_schedule(recipe, optimizer, total - warmup, steps, recipe.warmup_epochs)
    return lr_scheduler.SequentialLR(optimizer, [rise, rest], [warmup])


def _main_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, total: int, steps: int, done: int
) -> lr_scheduler.LRScheduler:
    """The schedule over ``total`` steps that begin after ``done`` epochs of ``steps`` each."""
    if recipe.schedule == "step":
        milestones = [max(epoch - done, 0) * steps for epoch in recipe.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones, recipe.decay)
    if recipe.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            pct_start=0.25 if total != 4 else 0.5,  # torch divides by 0.25 * total - 1
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=1000,
        )
    if recipe.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, total, recipe.min_learning_rate)
    if recipe.schedule == "poly":
        floor = recipe.min_learning_rate / recipe.learning_rate
        return lr_scheduler.LambdaLR(
            optimizer, lambda step: floor + (1 - floor) * max(1 - step / total, 0.0) ** recipe.power
        )
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
