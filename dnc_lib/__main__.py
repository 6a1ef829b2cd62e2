"""The ``dnc`` command."""

import argparse
import os
import sys
import warnings
from pathlib import Path

# Before torch loads, which reads it once: a thread that waits sleeps instead of holding a core that others could use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from . import recipes
from .command_line import parser, recipe_of
from .heads import HEADS
from .signals import Stopped

#: Of so many arms `dnc compare` prints every pair; of more, those with the first.
MANY_ARMS = 6

#: What torch says, and what to do about it.
_ADVICE = {
    "DataLoader worker": "a process that reads pictures died, often for want of memory; try fewer --workers",
    **dict.fromkeys(
        ("out of memory", "can't allocate memory"),
        "lower --batch-size or --memory-size, or raise --accumulate; look at large scenes through a --window",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run ``dnc``; a wrong input is one line on stderr and exit status 2."""
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"dnc: warning: {message}", file=sys.stderr)
            return _COMMANDS[options.command](options)
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"dnc: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:  # the status of a process that SIGTERM ended, so that a scheduler is not misled
        print(f"dnc: {stopped}", file=sys.stderr)
        return 143
    except RuntimeError as error:
        if not (advice := next((text for sign, text in _ADVICE.items() if sign in str(error)), "")):
            raise
        print(f"dnc: {' '.join(str(error).split())[:200]}: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dnc: stopped", file=sys.stderr)
        return 130


def _recipes(options: argparse.Namespace) -> int:
    rows = [("recipe", "data set", "backbone", "epochs", "what to expect")]
    for name in recipes.NAMES:
        recipe = recipes.get(name)
        expect = " ".join(recipes.describe(name).split("\n\n")[-1].split())
        rows.append((name, recipe.dataset, recipe.backbone, str(recipe.epochs), expect))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
    return 0


def _train(options: argparse.Namespace) -> int:
    recipe = recipe_of(options)
    from .training import train  # timm loads here, not for `dnc recipes`

    run = train(
        recipe,
        options.data_root,
        options.output,
        resume=options.resume,
        profile=options.profile,
        workers=options.workers,
        snapshot_seconds=options.snapshot_seconds,
        progress=not options.quiet,
        download=options.download,
    )
    final, seconds, waiting = (run.manifest.get(key) for key in ("final", "seconds", "wait_share"))
    waited = "" if waiting is None else f", {waiting:.0%} of the training steps waiting for data"
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        score = f"mIoU {final['miou']:.2f}" if recipe.decoder else f"accuracy {final['accuracy']:.2f}"
        anchors = run.manifest.get("anchoring")
        before = (
            "" if anchors is None else f" (before its sub-centroids became training images {anchors['before']:.2f})"
        )
        print(f"{run.folder}: {score} %{before} in {seconds:.0f} s{waited}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    recipe = recipe_of(options)
    if hasattr(options, "field_seed"):
        raise ValueError("a comparison takes --seeds, for all of its arms, not --seed")
    arms = {name: recipes.parse_arm(name) for name in options.arm or HEADS}
    from .comparisons import compare

    manifest = compare(
        recipe,
        arms,
        options.seeds,
        options.output,
        options.data_root,
        also=options.also,
        keep=options.keep,
        profile=options.profile,
        workers=options.workers,
        progress=not options.quiet,
        download=options.download,
    )
    measure = "mIoU " if recipe.decoder else ""
    for arm, each in manifest["summary"].items():
        spread = "" if each["sd"] is None else f" ± {each['sd']:.2f}"
        print(f"{arm}: {measure}{each['mean']:.2f}{spread} % over {each['n']} seeds")
    everything = len(manifest["summary"]) <= MANY_ARMS
    for each in manifest["paired"]:
        first, second = each["arms"]
        if not everything and second != next(iter(manifest["arms"])):
            continue  # of thirty arms there are hundreds of pairs: those with the first one, the rest in the file
        print(f"{first} minus {second}: {each['mean']:+.2f} points, p = {each['p']:.3g} over {each['n']} pairs")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    opened = _open(options)
    looks = _looks(options, opened)
    if opened.segments:
        return _evaluate_scenes(options, opened, looks)
    from .evaluation import evaluate

    result = evaluate(opened.model, opened.loader("test"))
    print(
        f"accuracy {result['accuracy']:.2f} %  top-5 {result['top5']:.2f} %  loss {result['loss']:.4f}  "
        f"on {result['images']} images"
    )
    return 0


def _evaluate_scenes(options: argparse.Namespace, opened, looks: dict) -> int:
    from .predictions import record_scenes, save_records

    if options.output and options.output.suffix != ".npz":
        raise ValueError(f"--output {options.output}: name a .npz file")
    records = record_scenes(opened.model, opened.loader("test"), **looks, progress=opened.progress)
    result = records.measures()
    print(
        f"mIoU {result['miou']:.2f} %  pixel accuracy {result['pixel_accuracy']:.2f} %  loss {result['loss']:.4f}  "
        f"on {result['images']} images"
    )
    width = max(map(len, (*opened.card.classes, "class")))
    print(f"{'class':<{width}}   IoU %  share of pixels %")
    for name, iou, share in zip(opened.card.classes, result["iou"], result["shares"], strict=True):
        print(f"{name:<{width}}  {'none' if iou is None else f'{iou:.2f}':>6}  {share:17.2f}")
    if options.output:
        save_records(records, opened.parts["test"], options.output)
        print(options.output)
    return 0


def _predict(options: argparse.Namespace) -> int:
    opened = _open(options)
    looks = _looks(options, opened)
    if opened.segments:
        return _predict_scenes(options, opened, looks)
    from .predictions import predict_shares

    for which in options.image:
        name, picture, _ = opened.picture(which)
        shares = predict_shares(opened.model, opened.prepare(picture))
        first, *second = sorted(zip(shares, opened.card.classes, strict=True), key=lambda pair: -pair[0])[:2]
        then = "".join(f", then {label} {100 * share:.1f} %" for share, label in second)
        print(f"{name}: {first[1]} {100 * first[0]:.1f} %{then}", flush=True)
    return 0


def _predict_scenes(options: argparse.Namespace, opened, looks: dict) -> int:
    from .painting import class_colours, label_map, painted
    from .predictions import class_shares, predict_labels

    folder = options.output or Path("predictions")
    stems = {which: folder / Path(which).stem for which in options.image}
    if len(set(stems.values())) < len(stems):
        raise ValueError(f"some of these images have one name, and would overwrite each other in {folder}")
    colours = class_colours(len(opened.card.classes), opened.card.colours)
    folder.mkdir(parents=True, exist_ok=True)
    for which, stem in stems.items():
        name, picture, _ = opened.picture(which)
        labels = predict_labels(opened.model, opened.prepare(picture), (picture.height, picture.width), **looks)
        shares = class_shares(labels, opened.card.classes)
        legend = [(f"{label}: {_percent(share)} %", colours[c]) for c, label, share in shares]
        label_map(labels, colours).save(f"{stem}_labels.png")
        painted(picture, labels, colours, legend).save(f"{stem}_overlay.png")
        print(f"{name}: {', '.join(f'{label} {_percent(share)} %' for _, label, share in shares)}")
        print(f"  {stem}_labels.png, {stem}_overlay.png", flush=True)
    return 0


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.001 else "<0.1"


def _explain(options: argparse.Namespace) -> int:
    from .explain import check_nearest, check_pixel, explain
    from .explain_figure import explanation_figure
    from .open_runs import read_picture
    from .painting import as_seen
    from .runs import write_json

    opened = _open(options)
    check_nearest(opened.model)
    if options.at and not opened.segments:
        raise ValueError(f"--at is for pixels; {options.folder} classifies whole images")
    figure = options.output or Path(f"{Path(options.image).stem}_explained.png")
    if figure.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--output {figure}: name a figure, .png, .jpg or .webp")
    name, picture, truth = opened.picture(options.image)
    size = (picture.height, picture.width)
    at = None
    if opened.segments:
        at = tuple(options.at or (side // 2 for side in size))
        check_pixel(at, size)  # before the exemplars are searched, which may take long
    label = None if truth is None else int(truth if at is None else truth[at])

    def read(number: int):
        return read_picture(opened.parts["train"], number)[0]

    def see(picture):
        return as_seen(opened.prepare(picture).cpu().numpy(), opened.card.mean, opened.card.std)

    why = explain(
        opened.model,
        opened.prepare(picture),
        opened.exemplars(),
        at=at,
        size=size,
        cases=options.cases,
        truth=label,
        look=lambda number: opened.prepare(read(number)),
    )
    drawn = explanation_figure(why, picture, read, name, None if opened.segments else see)
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(figure)
    write_json({"run": opened.run.folder.name, "image": name} | why.to_dict(), figure.with_suffix(".json"))
    for line in why.lines(name):
        print(line)
    if at and not options.at:
        print("(the pixel is the image's centre; --at ROW COLUMN asks about another)")
    print(f"{figure}, {figure.with_suffix('.json')}")
    return 0


def _open(options: argparse.Namespace):
    """The run that a command is about."""
    from .open_runs import open_run

    manner = {"workers": options.workers, "download": options.download, "progress": not options.quiet}
    return open_run(options.folder, options.data_root, **manner)


def _looks(options: argparse.Namespace, opened) -> dict:
    """How scenes are looked at: what was given, and the recipe's window.

    Raises:
        ValueError: for anything given where whole images are classified.
    """
    names = ("window", "stride", "flip", "scales")
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if opened.segments:
        return {"window": opened.recipe.window or None} | given
    if given or options.output:
        name = next(iter(given), "output")
        raise ValueError(f"--{name} is for scenes; {options.folder} classifies whole images")
    return {}


_COMMANDS = {
    "recipes": _recipes,
    "train": _train,
    "compare": _compare,
    "evaluate": _evaluate,
    "predict": _predict,
    "explain": _explain,
}


if __name__ == "__main__":
    sys.exit(main())
