"""``train(recipe) -> Run``: one training, from its data to a run folder, whatever interrupts it."""

import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from .anchoring import anchor
from .checkpoints import ModelCard, save_model
from .data.whole import missing
from .fitting import LOOK_EVERY, Fitting
from .loading import Parts, build_model, make_card, make_loaders, norms_of, prepare_data
from .recipes import Recipe
from .recipes.base import START_KEPT
from .runs import (
    BEST,
    EXEMPLARS,
    METRICS,
    MODEL,
    Run,
    describe_code,
    describe_machine,
    held,
    peak_memory,
    warn_changed,
    write_json,
)
from .signals import Stopped, watch_for_stop
from .snapshots import Snapshots

PROFILES = ("full", "smoke")

#: Counts the changes of code after which a training gives other results than rounding explains. A test holds short
#: trainings to their recorded losses; whoever changes what they compute counts on here, and records them anew.
GENERATION = 1


def train(
    recipe: Recipe,
    data_root: str | Path | None = None,
    output: str | Path = "runs",
    *,
    resume: bool = False,
    profile: str = "full",
    workers: int = 0,
    snapshot_seconds: float = 600.0,
    progress: bool = True,
    download: bool = False,
) -> Run:
    """Train a model by a recipe and leave a run folder.

    With several processes (``accelerate launch``) every batch is shared out and the features are gathered for the
    update, so that each process keeps the same sub-centroids.

    A run that was killed goes on with ``resume`` from its last snapshot and ends where it would have ended; on the
    CPU bit for bit. SIGTERM, which schedulers send before they kill, makes it write a snapshot and stop.

    Args:
        recipe: what to train and how.
        data_root: see :func:`dnc_lib.data.data_root`.
        output: the run folder is ``output/<recipe>_<head>_seed<seed>``.
        resume: go on where this run stopped; begin where there is nothing yet; return it where it is finished.
        profile: ``"full"``, or ``"smoke"`` for a run that shows that everything works, whose score is no result.
        workers: processes that read pictures; images in memory need none.
        snapshot_seconds: least time between two snapshots.
        progress: show a bar with loss, accuracy, images a second and the time left.
        download: fetch the data set if it is not there.

    Returns:
        The run; ``run.manifest["final"]`` has the last epoch's scores on the test images, in percent: ``accuracy``,
        or for scenes ``miou`` and ``pixel_accuracy``, with the ``iou`` of each class. Where the recipe anchors,
        ``run.manifest["anchoring"]`` has the score ``before`` and ``after``, and the mean ``similarity`` of a
        sub-centroid to the image that it was put at; the run folder keeps which images they are.

    Raises:
        FileExistsError: where the run folder holds a run and ``resume`` is off.
        BlockingIOError: where another process is at work in it.
        FileNotFoundError: where the data is not at hand.
        FloatingPointError: where the loss is no longer a number.
        ValueError: as recipes, data and models do; for a run of another recipe or other data in the folder.
        Stopped: after SIGTERM, when the snapshot is written.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    accelerator = make_accelerator(recipe.precision)
    run = Run(Path(output) / f"{recipe.name}_{recipe.head}_seed{recipe.seed}")
    snapshots = Snapshots(run.folder / "snapshots")
    if resume and run.finished:
        return _finished(run, recipe, snapshots)
    if not resume and (run.finished or (run.folder / METRICS).exists() or snapshots.paths()):
        raise FileExistsError(
            f"{run.folder} holds a run already; go on with it by --resume, choose another --output or remove it"
        )
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    parts = prepare_data(recipe, data_root, download=download)
    card = make_card(recipe, parts)
    loaders = make_loaders(recipe, parts, card, accelerator, workers)

    with held(run.folder) if accelerator.is_main_process else nullcontext():
        model = build_model(recipe, card, parts, accelerator)
        fitting = Fitting(recipe, model, loaders, accelerator, recipe.evaluate_every)
        learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        run.manifest = describe(recipe, parts, accelerator, profile) | {"parameters": learned}
        if recipe.decoder:
            run.manifest["classes"] = card.classes
        if model.transfer is not None:  # a path says little; what lay there, more
            run.manifest["began_with"] = {"digest": model.transfer.digest, **model.transfer.counts()}
        if recipe.head == "dnc":
            run.manifest["start_kept"] = recipe.start_kept(fitting.updates)
            if accelerator.is_main_process:
                _warn_start_kept(recipe, fitting.updates)
        keeper = _Keeper(run, fitting, card, snapshots, snapshot_seconds)
        fitting.clock.elsewhere += time.perf_counter() - started
        keeper.begin(resume)
        with watch_for_stop() as stop_wanted, _bar(fitting, progress) as bar:
            keeper.stop_wanted = stop_wanted
            fitting.fit(bar, keeper.after_step, keeper.after_epoch)
        started = time.perf_counter()
        if recipe.refresh and recipe.head == "dnc":  # frozen sub-centroids never move
            run.manifest["refresh"] = _refresh(fitting)
        task, exemplars = fitting.task, None
        final = task.evaluate(model, loaders["test"], accelerator.reduce)
        if recipe.anchor:
            exemplars, moved = anchor(model, loaders["train_plain"])
            before, final = final, task.evaluate(model, loaders["test"], accelerator.reduce)
            run.manifest["anchoring"] = {
                "similarity": moved,
                "before": before[task.metric],
                "after": final[task.metric],
            }
        fitting.clock.elsewhere += time.perf_counter() - started

        best = max((each for each in fitting.curve if task.metric in each), key=lambda each: each[task.metric])
        run.manifest |= {
            "final": {key: final[key] for key in (*task.measures, *task.details)},
            "best": {"epoch": best["epoch"], task.metric: best[task.metric]},
            "curve": fitting.curve,
            **fitting.clock.report(),
            "peak_memory_bytes": peak_memory(accelerator.device),
        }
        if accelerator.is_main_process:
            save_model(model, card, run.folder / MODEL)
            if exemplars is not None:
                write_json(exemplars.to_dict(), run.folder / EXEMPLARS)
            run.save_manifest()
            snapshots.remove()
        accelerator.wait_for_everyone()
    return run


def make_accelerator(precision: str) -> Accelerator:
    """Processes, device and precision."""
    # Accelerate keeps one state a process and refuses a second precision; a notebook may well train twice.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision)


def describe(recipe: Recipe, parts: Parts, accelerator: Accelerator, profile: str = "full") -> dict:
    """What is known of a run, or of a comparison, before it starts, for its manifest.

    A full one on less than the whole data set is said to be partial, and warned of: it takes part in no verdict.
    """
    partial = missing(
        recipe.dataset,
        {part: len(data) for part, data in parts.items()},
        train_limit=recipe.train_limit,
        validation=recipe.validation,
        leave_out=recipe.leave_out,
        classes=parts["train"].num_classes,
    )
    if partial and profile == "full" and accelerator.is_main_process:
        warnings.warn(
            f"{partial}: the result is recorded as partial and takes part in no verdict; profile smoke is for tries",
            stacklevel=3,
        )
    return {
        "profile": profile,
        "recipe": recipe.to_dict(),
        "data": {
            part: {"name": data.name, "images": len(data), "digest": data.digest()} for part, data in parts.items()
        },
        **({"partial": partial} if partial else {}),
        "norm_images": norms_of(recipe, accelerator)[0],
        "code": describe_code(),
        "generation": GENERATION,
        "processes": accelerator.num_processes,
        **describe_machine(accelerator.device),
    }


class _Keeper:
    """Keeps what a training leaves while it goes on: metrics, the best model, snapshots to go on from."""

    def __init__(self, run: Run, fitting: Fitting, card: ModelCard, snapshots: Snapshots, seconds: float):
        self.run, self.fitting, self.card, self.snapshots, self.seconds = run, fitting, card, snapshots, seconds
        self.stop_wanted = lambda: False
        self.main, self.processes = fitting.accelerator.is_main_process, fitting.accelerator.num_processes

    def begin(self, resume: bool) -> None:
        """Make the folder, or go to where its last snapshot was taken."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        if resume:
            with self.fitting.accelerator.main_process_first():  # which puts damaged ones aside
                state = self.snapshots.load()
            if state is not None:
                self._go_on(state)
        if self.main:
            for part in self.run.folder.glob(".*.*.safetensors"):  # a process was killed while it wrote them
                part.unlink(missing_ok=True)
            self.run.reset_metrics(self.fitting.curve)
        self.saved = time.monotonic()

    def _go_on(self, state: dict) -> None:
        """Be where the snapshot was taken."""
        before, now = state.get("manifest"), self.run.manifest
        try:
            before = {**before, "recipe": Recipe.from_dict(before["recipe"]).to_dict()}  # fields that came later
            _check_same(before, now, self.run.folder)
            self.fitting.load_state_dict(state["fitting"])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the snapshot in {self.snapshots.folder} is of another version of dnc_lib "
                f"({type(error).__name__}: {reason}); go on with that version, or choose another --output"
            ) from error
        if self.main:
            warn_changed(before, now, f"the run in {self.run.folder}")

    def after_step(self) -> None:
        """Write a snapshot when it is time to; stop after it when asked to."""
        stop, due = self.stop_wanted(), time.monotonic() - self.saved >= self.seconds
        if self.processes > 1:  # all do the same, and agree on it now and then: it costs a message
            if self.fitting.steps_done % LOOK_EVERY:
                return
            wishes = torch.tensor([stop, due], dtype=torch.float32, device=self.fitting.accelerator.device)
            stop, due = (self.fitting.accelerator.reduce(wishes) > 0).tolist()
        if stop or due:
            state = {"manifest": self.run.manifest, "fitting": self.fitting.state_dict()}
            if self.main:
                self._save(state, stop)
            self.saved = time.monotonic()
        if stop:
            raise Stopped(
                f"stopped at step {self.fitting.step} of epoch {self.fitting.epoch + 1}, as asked; "
                f"the snapshot in {self.snapshots.folder} holds everything: go on with --resume"
            )

    def _save(self, state: dict, stop: bool) -> None:
        """Write a snapshot. Without one the training may well go on; only to stop needs it."""
        try:
            self.snapshots.save(state, self.fitting.steps_done)
        except OSError as error:
            if stop:
                raise
            warnings.warn(f"{error}: the training goes on, and tries again", stacklevel=2)

    def after_epoch(self) -> None:
        """Note the epoch, and its model where it is the best so far."""
        if self.main:
            *before, record = self.fitting.curve
            self.run.add_metrics(record)
            metric = self.fitting.task.metric
            if metric in record and all(record[metric] > each.get(metric, -1) for each in before):
                save_model(self.fitting.model, self.card, self.run.folder / BEST, memory=False)


def _check_same(before: dict, now: dict, folder: Path) -> None:
    """A run goes on with the recipe and the data that it began with."""
    for key in ("recipe", "data", "processes"):
        if before[key] != now[key]:
            changed = (
                [name for name in now[key] if before[key].get(name) != now[key][name]] if key != "processes" else []
            )
            what = "number of processes" if key == "processes" else key
            raise ValueError(
                f"the run in {folder} began with another {what}{': ' * bool(changed)}{', '.join(changed)}; "
                f"go on with the same, or choose another --output"
            )


def _finished(run: Run, recipe: Recipe, snapshots: Snapshots) -> Run:
    """The run that is already there, if it is one of this recipe."""
    run = Run.load(run.folder)
    if run.recipe != recipe:
        raise ValueError(f"{run.folder} holds a finished run of another recipe; choose another --output")
    snapshots.remove()  # where it was killed between its last two deeds
    return run


def _bar(fitting: Fitting, progress: bool) -> tqdm:
    recipe, images = fitting.recipe, fitting.images_a_step
    return tqdm(
        total=recipe.epochs * fitting.steps * images,
        initial=fitting.steps_done * images,
        unit=" images",
        unit_scale=True,
        smoothing=0.05,
        disable=not progress or not fitting.accelerator.is_main_process,
        desc=f"{recipe.name} {recipe.head}",
    )


def _refresh(fitting: Fitting) -> dict:
    """Estimate the sub-centroids anew on the training images; take that back where the held-out score falls."""
    model, loaders, task = fitting.model, fitting.loaders, fitting.task

    def score() -> float:
        return task.evaluate(model, loaders["held_out"], fitting.accelerator.reduce)[task.metric]

    before = score()
    state = {key: value.clone() for key, value in model.head.state_dict().items()}
    task.refresh(model, loaders["train_plain"])
    after = score()
    if after < before:
        model.head.load_state_dict(state)
    return {"held_out_before": before, "held_out_after": after, "kept": after >= before}


def _warn_start_kept(recipe: Recipe, updates: int) -> None:
    """Say so where the momentum leaves much of the random start in place."""
    kept = recipe.start_kept(updates)
    if kept <= START_KEPT:
        return
    advice = (
        f"{START_KEPT ** (1 / updates):.4f} or less would move them" if updates > 0 else "update_after is too late"
    )
    warnings.warn(
        f"momentum {recipe.momentum} over {updates} updates keeps {kept:.0%} of the random start: "
        f"these sub-centroids are mostly random; {advice}",
        stacklevel=3,
    )
