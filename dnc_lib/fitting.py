"""Fit a model: the loop over steps and epochs, and its whole state between two steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import repeat

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .anchoring import anchor
from .heads import SubCentroidHead
from .loading import Loaders
from .mixing import Mixer
from .models import Model
from .optimisation import make_optimizer, make_schedule
from .recipes import Recipe
from .tasks import Outcome, task_of

#: Steps between two looks at the loss: reading it waits for the device.
LOOK_EVERY = 20


@dataclass
class Clock:
    """Where the time of a training goes, in seconds; it goes on over a resumed run.

    Attributes:
        training: in training steps, waiting for data included.
        waiting: of that, waiting for data.
        elsewhere: evaluating, saving.
        images: that training steps saw, over all processes.
    """

    training: float = 0.0
    waiting: float = 0.0
    elsewhere: float = 0.0
    images: int = 0

    @property
    def seconds(self) -> float:
        """All together."""
        return self.training + self.elsewhere

    def report(self) -> dict[str, float]:
        """For a manifest: ``seconds``, ``wait_share`` (0..1, of training) and ``images_per_second`` (of training)."""
        training = max(self.training, 1e-9)
        return {
            "seconds": self.seconds,
            "wait_share": self.waiting / training,
            "images_per_second": self.images / training,
        }


class Fitting:
    """A training in progress: model, optimiser, schedule, place in the data, and what was recorded so far.

    All randomness is a function of (seed, step, rank): the loader's of the epoch and the image, dropout's and
    Mixup's of the step. So the state between two steps is whole without the state of any random generator.

    Args:
        recipe: what to do.
        model: trained in place.
        loaders: see :func:`dnc_lib.loading.make_loaders`.
        accelerator: processes, device and precision.
        evaluate_every: epochs between two looks at the held-out images; the last one is always looked at.

    Attributes:
        epoch: epochs finished.
        step: optimiser steps done in this one.
        steps: of an epoch.
        task: images or pixels, see :mod:`dnc_lib.tasks`.
        curve: one record an epoch.
        held_out: all that the last look at the held-out images gave.
        clock: where the time went.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        loaders: Loaders,
        accelerator: Accelerator,
        evaluate_every: int = 1,
    ):
        self.recipe, self.model, self.loaders, self.accelerator = recipe, model, loaders, accelerator
        self.evaluate_every = evaluate_every
        self.task = task_of(recipe, model.head.num_classes, getattr(model, "multiple", 1))
        self.epoch, self.step, self.curve, self.held_out, self.clock = 0, 0, [], {}, Clock()
        self.steps = len(loaders["train"]) // recipe.accumulate
        optimizer = make_optimizer(recipe, model)
        self.scheduler = make_schedule(recipe, optimizer, self.steps)
        self.rate = self.scheduler.get_last_lr()[0]
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        keep_buffers_apart(self.wrapped)
        if recipe.compile:
            self.wrapped = torch.compile(self.wrapped)
        self.sums = torch.zeros(3, dtype=torch.float64 if accelerator.device.type != "mps" else torch.float32)
        self.sums = self.sums.to(accelerator.device)  # loss, correct, labels of this epoch, on this process
        self.mixer = None
        if recipe.mixup or recipe.cutmix:
            self.mixer = Mixer(
                model.head.num_classes,
                recipe.mixup,
                recipe.cutmix,
                recipe.mix_probability,
                recipe.label_smoothing,
                recipe.seed,
                accelerator.process_index,
            )

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the beginning."""
        return self.epoch * self.steps + self.step

    @property
    def updates(self) -> int:
        """Steps of the whole training that may move the sub-centroids; on average, where batches are mixed."""
        moving = self.recipe.epochs - max(self.recipe.refresh_epochs, self.recipe.anchor_epochs)
        steps = -(-max(moving * self.steps - self.recipe.update_after, 0) // self.recipe.update_every)
        return steps if self.mixer is None else round(steps * (1 - self.recipe.mix_probability))

    def fit(
        self,
        bar: tqdm | None = None,
        after_step: Callable[[], None] = lambda: None,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Train from here to the last epoch.

        Args:
            bar: progress, counted in images.
            after_step: called between steps, where the state is whole.
            after_epoch: called when an epoch's record is in ``curve``.

        Raises:
            FloatingPointError: where the loss is no longer a number.
            ValueError: as data and models do, and after an epoch in which nothing had a label.
        """
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the caller's random numbers go on as if nothing had been
            while self.epoch < self.recipe.epochs:
                self._train_epoch(bar, after_step)
                started = time.perf_counter()
                self._finish_epoch()
                self.clock.elsewhere += time.perf_counter() - started
                self.curve[-1]["seconds"] = self.clock.seconds
                self._elsewhere(after_epoch)
        if self.recipe.head == "dnc":
            self.model.head.frozen = False
        # Accelerate makes the model's forward autocast; what follows is measured in full precision.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def state_dict(self) -> dict:
        """Everything that the rest of the training depends on, as tensors, numbers and strings. All ranks call it."""
        self.share_statistics()
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "step": self.step,
            "rate": self.rate,
            "sums": self.accelerator.reduce(self.sums.clone()),
            "curve": self.curve,
            "clock": asdict(self.clock),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go to where :meth:`state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.rate, self.curve = (state[key] for key in ("epoch", "step", "rate", "curve"))
        self.clock = Clock(**state["clock"])
        if self.accelerator.is_main_process:  # they are those of all processes together
            self.sums.copy_(state["sums"])

    def share_statistics(self) -> None:
        """Average the running statistics of BatchNorm over the processes: each saw its own share of every batch."""
        if self.accelerator.num_processes > 1:
            for name, buffer in self.model.named_buffers():
                if buffer.is_floating_point() and not name.startswith("head."):  # the head's are the same everywhere
                    buffer.copy_(self.accelerator.reduce(buffer.clone(), "mean"))

    def _train_epoch(self, bar: tqdm | None, after_step: Callable[[], None]) -> None:
        """The steps of this epoch that are not done yet."""
        self._settle()
        self.wrapped.train()
        loader = self.loaders["train"]
        loader.epoch, loader.skip = self.epoch, self.step * self.recipe.accumulate
        batches = iter(loader)
        while self.step < self.steps:
            started = time.perf_counter()
            self._train_step(batches)
            self.step += 1
            if self.step % LOOK_EVERY == 0 or self.step == self.steps:
                self._look(bar)
            self.clock.training += time.perf_counter() - started
            if bar is not None:
                bar.update(self.images_a_step)
            self._elsewhere(after_step)
        batches.close()

    def _settle(self) -> None:
        """In the last epochs, as far as the recipe says so: estimate the sub-centroids anew, or put them at training
        images, before the first step, and let them stand still."""
        recipe, head, left = self.recipe, self.model.head, self.recipe.epochs - self.epoch
        if recipe.head != "dnc":
            return
        head.frozen = left <= max(recipe.refresh_epochs, recipe.anchor_epochs)
        if not head.frozen or self.step:
            return
        started = time.perf_counter()
        self.share_statistics()
        if left <= recipe.refresh_epochs:
            self.task.refresh(self.model, self.loaders["train_plain"])
        if left <= recipe.anchor_epochs:
            anchor(self.model, self.loaders["train_plain"])
        if self.accelerator.num_processes > 1:
            broadcast(head.subcentroids)
        self.clock.elsewhere += time.perf_counter() - started

    def _elsewhere(self, deed: Callable[[], None]) -> None:
        """Do it, and count its time as none of the training's."""
        started = time.perf_counter()
        deed()
        self.clock.elsewhere += time.perf_counter() - started

    @property
    def images_a_step(self) -> int:
        """Over all processes; the only batch of a small data set may be a short one."""
        loader = self.loaders["train"]
        share = min(loader.batch_size, loader.num_images // loader.world_size)
        return share * self.recipe.accumulate * self.accelerator.num_processes

    def _train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One optimiser step, then one update of the sub-centroids."""
        recipe, accelerator, passes = self.recipe, self.accelerator, self.recipe.accumulate
        parts, weights = (self._wait_for(batches) for _ in range(passes)), repeat(1 / passes)
        if not self.task.even and passes * accelerator.num_processes > 1:
            parts = list(parts)
            weights = self._weights([labels for _, labels in parts])
        entropy = (recipe.seed, self.steps_done, accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))  # of dropout and drop path
        mixed = self.mixer is not None and self.mixer.mixes(self.steps_done)
        seen = []
        for part, ((images, labels), weight) in enumerate(zip(parts, weights, strict=False)):
            targets, smoothing = None, recipe.label_smoothing
            if mixed:  # timm smooths the labels that it mixes
                images, targets = self.mixer(images, labels, self.steps_done * passes + part)
                smoothing = 0.0
            with nullcontext() if part == passes - 1 else accelerator.no_sync(self.wrapped):
                with accelerator.autocast():
                    outcome = self.task.step(self.wrapped, images, labels, targets, smoothing)
                accelerator.backward(outcome.loss * weight)
            loss, correct, count = outcome.loss.detach(), outcome.correct, outcome.count
            self.sums += torch.stack([loss * count, correct, count]).to(self.sums)
            seen.append(outcome)
        if recipe.clip_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.clock.images += self.images_a_step
        moving = self.steps_done - recipe.update_after
        if not mixed and moving >= 0 and moving % recipe.update_every == 0:
            self._update_head(seen)

    def _wait_for(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The next batch; the time it takes to come is noted."""
        started = time.perf_counter()
        batch = next(batches)
        self.clock.waiting += time.perf_counter() - started
        return batch

    def _weights(self, parts: list[Tensor]) -> Tensor:
        """What the loss of each pass, a mean over its own samples, counts, so that the step goes down the mean over
        the samples of all passes and processes. (Gradients are averaged over the processes, hence their number.)"""
        counts = torch.stack([self.task.count(labels) for labels in parts]).float()
        total = self.accelerator.reduce(counts.sum())
        return counts * self.accelerator.num_processes / total.clamp_min(1)

    def _update_head(self, seen: list[Outcome]) -> None:
        """Move the sub-centroids towards what the step saw on all processes; all keep the same ones, bit for bit."""
        head = self.model.head
        if not isinstance(head, SubCentroidHead):
            return
        samples = [self.task.samples(each, self.recipe.seed * 1_000_003 + self.steps_done) for each in seen]
        features, labels = (torch.cat(part) for part in zip(*samples, strict=True))
        if self.accelerator.num_processes > 1:
            features, labels = (self._gather(part) for part in (features, labels))
        try:
            head.update(features, labels)
        except ValueError:  # where the features are no numbers, the loss tells of it in words about training
            self._check_loss(self.sums[0])
            raise
        if self.accelerator.num_processes > 1 and not head.frozen:
            # Each rank has computed the same, up to the order in which its GPU adds; the main one's is taken.
            broadcast(head.subcentroids)

    def _gather(self, part: Tensor) -> Tensor:
        """The rows of all processes, in the order in which one process alone would have seen them: rank r has every
        world-size-th image, from the r-th on. So the memory drops the same ones, however many processes there are."""
        rows = self.accelerator.gather(part).unflatten(0, (self.accelerator.num_processes, -1))
        return rows.transpose(0, 1).flatten(0, 1)

    def _look(self, bar: tqdm | None) -> None:
        """Read the loss, which waits for the device."""
        self._check_loss(self.sums[0])
        if bar is not None:
            loss, correct, count = self.sums.tolist()
            if count:  # of scenes, the first crops may show nothing that has a label
                bar.set_postfix(loss=f"{loss / count:.3f}", accuracy=f"{100 * correct / count:.1f}%")

    def _check_loss(self, loss: Tensor) -> None:
        value = float(loss)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.step} of epoch {self.epoch + 1}: "
                f"lower learning_rate ({self.recipe.learning_rate}) or try precision='no'"
            )

    def _finish_epoch(self) -> None:
        """Record the epoch and go to the next."""
        loss, correct, count = self.accelerator.reduce(self.sums).tolist()
        if not count:
            raise ValueError(
                f"no pixel of {self.steps} steps had a label, so there was nothing to learn: do the training masks "
                f"hold more than the number of no class, and crops of {self.recipe.crop_size} some of it?"
            )
        record = {
            "epoch": self.epoch + 1,
            "learning_rate": self.rate,
            "train_loss": loss / count,
            "train_accuracy": 100 * correct / count,
        }
        self.share_statistics()
        last = self.epoch + 1 == self.recipe.epochs
        if last or (self.evaluate_every and (self.epoch + 1) % self.evaluate_every == 0):
            self.held_out = self.task.evaluate(self.model, self.loaders["held_out"], self.accelerator.reduce)
            record |= {key: self.held_out[key] for key in self.task.measures}
        record |= self.model.head.diagnostics()
        if isinstance(self.model.head, SubCentroidHead):
            self.model.head.reset_usage()
        self.curve.append(record)
        self.sums.zero_()
        self.epoch, self.step, self.rate = self.epoch + 1, 0, self.scheduler.get_last_lr()[0]


def keep_buffers_apart(wrapped: torch.nn.Module) -> None:
    """Let no buffer travel at a forward pass of several processes.

    Sub-centroids and memory are the same everywhere by construction, and BatchNorm's statistics are shared when they
    are needed.

    They travel once, when the model is wrapped. Not an argument of ``DistributedDataParallel``, because the old one
    warns from torch 2.13 on and the new one is unknown before; the attribute behind it does neither.

    Args:
        wrapped: the model as it is trained; one process's is left as it is.
    """
    if isinstance(wrapped, DistributedDataParallel):
        new = hasattr(wrapped, "forward_sync_buffers")
        setattr(wrapped, "forward_sync_buffers" if new else "broadcast_buffers", False)
