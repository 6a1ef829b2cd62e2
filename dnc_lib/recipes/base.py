"""What a recipe is: everything that decides the outcome of a training, frozen."""

import dataclasses
import difflib
import inspect
import math
import re
from dataclasses import dataclass

from ..heads import HEADS, SCALES
from ..metrics import IGNORED
from ..sinkhorn import ASSIGNMENTS
from ..spreading import SPREADS

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "one_cycle", "cosine", "poly", "constant")
PRECISIONS = ("no", "bf16", "fp16")

_CHOICES = {
    "head": HEADS,
    "reader": ("memory", "files", "scenes"),
    "decoder": ("", "fcn", "deeplabv3", "upernet"),
    "output_stride": (0, 8, 16, 32),
    "interpolation": ("bilinear", "bicubic"),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "assignment": ASSIGNMENTS,
    "start": ("random", "data"),
    "spread": SPREADS,
    "scale_by": SCALES,
    "precision": PRECISIONS,
}
_RANGES = (
    (
        "1 or more",
        lambda x: x >= 1,
        (
            *("epochs", "evaluate_every", "batch_size", "accumulate", "num_subcentroids", "channels", "pixels"),
            "num_prototypes",
            "update_every",
        ),
    ),
    (
        "0 or more",
        lambda x: x >= 0,
        (
            *("seed", "weight_decay", "warmup_epochs", "min_learning_rate", "clip_norm", "pad", "color_jitter"),
            *(
                "mixup",
                "cutmix",
                "memory_size",
                "norm_images",
                "update_after",
                "validation",
                "train_limit",
                "auxiliary",
                "image_size",
                "anchor_epochs",
                "refresh_epochs",
            ),
        ),
    ),
    (
        "above 0",
        lambda x: x > 0,
        ("learning_rate", "norm_bias_rate", "backbone_rate", "decay", "power", "temperature", "epsilon"),
    ),
    (
        "0 or more and below 1",
        lambda x: 0 <= x < 1,
        ("sgd_momentum", "momentum", "label_smoothing", "drop_path", "random_erasing"),
    ),
    ("between 0 and 1", lambda x: 0 <= x <= 1, ("mix_probability",)),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("crop_pct", "class_share")),
    ("two numbers, 0 < low <= high <= 1", lambda x: len(x) == 2 and 0 < x[0] <= x[1] <= 1, ("crop_scale",)),
    ("two numbers, 0 < low <= high", lambda x: len(x) == 2 and 0 < x[0] <= x[1], ("scale",)),
    ("height and width, or nothing", lambda x: not x or (len(x) == 2 and min(x) > 0), ("crop_size", "window")),
)

#: Fields of several numbers: their type, what is allowed in them, and how to say it.
TUPLES = {tuple[int, ...]: ((int,), "a tuple of int"), tuple[float, ...]: ((float, int), "a tuple of float")}

#: A random start that keeps more of its weight than this is called out.
START_KEPT = 0.05


@dataclass(frozen=True)
class Recipe:
    """A training, whole. Field names are command-line options: ``momentum`` is ``--momentum``.

    Attributes:
        name: of the recipe.
        dataset: see :func:`dnc_lib.data.load`.
        reader: ``memory`` (all images of one size, on the device), ``files`` (pictures of any size, read and cut
            while training goes on) or ``scenes`` (the same, with a label for every pixel).
        image_size: side in pixels; of scenes the shorter side at the test, 0 for their own.
        backbone: see :func:`dnc_lib.backbones.build_backbone`.
        weights: where the backbone begins: empty for random, ``imagenet``, or a classifier's run folder or file.
        decoder: for pixels, ``fcn``, ``deeplabv3`` or ``upernet``; empty where images are classified.
        channels: of the decoder, D.
        output_stride: of the backbone, 8, 16 or 32 where it can dilate its convolutions; 0 leaves it as it is.
        auxiliary: for pixels, weight of the loss of the auxiliary branch; 0 for none.
        drop_path: share of residual branches dropped in training (stochastic depth), rising to this with depth.
        head: ``softmax``, ``cosine`` (learned prototypes), ``frozen`` (random, never moved) or ``dnc``.
        seed: of weights, sub-centroids, order and augmentation.
        epochs: passes over the training images.
        evaluate_every: epochs between two looks at the held-out images; the last one always has one.
        batch_size: images an optimiser step, over all processes together.
        accumulate: forward and backward passes a step, each on its part of the batch.
        norm_images: images that a BatchNorm sees at once in training, on any number of GPUs: each takes its images in
            such parts, or several share their norms (which the CPU cannot); 0 for all that a process has in a pass,
            and of scenes, where a GPU has few, those of all GPUs.
        optimizer: ``sgd`` or ``adamw``.
        learning_rate: the highest.
        sgd_momentum: of SGD, not of the sub-centroids.
        nesterov: look ahead, SGD's variant.
        weight_decay: on learnable parameters.
        decay_norms: weight decay on norms, biases and position tables too.
        norm_bias_rate: the learning rate of BatchNorm's biases is this many times higher.
        backbone_rate: the learning rate of the backbone is this many times that of the rest.
        clip_norm: longest gradient allowed; 0 for any.
        schedule: ``step`` (times ``decay`` at ``milestones``), ``one_cycle``, ``cosine``, ``poly`` or ``constant``.
        warmup_epochs: the learning rate rises in a line from a thousandth during so many epochs.
        min_learning_rate: where ``cosine`` and ``poly`` end.
        milestones: epochs after which ``step`` lowers the learning rate.
        decay: its factor.
        power: of ``poly``.
        pad: for images in memory, random crop after padding by so many pixels.
        flip: mirror half of the images.
        crop_scale: for pictures, share of the area that a random crop takes, lowest and highest.
        crop_size: for scenes, height and width of the random crop.
        scale: for scenes, lowest and highest factor by which they are resized before the crop.
        class_share: for scenes, the share that one class may have of a crop, where ten tries find such a crop.
        window: for scenes, height and width of the sliding window at the test; empty for the whole image at once.
        crop_pct: for pictures, side of the test image's central crop over its shorter side.
        interpolation: for pictures, ``bilinear`` or ``bicubic``.
        rand_augment: for pictures, timm's words, as ``rand-m9-mstd0.5-inc1``; empty for none.
        color_jitter: for pictures and scenes, strength.
        random_erasing: for pictures, share of them that lose a rectangle.
        label_smoothing: share of each label spread over all classes.
        mixup: strength (alpha) of Mixup; 0 for none.
        cutmix: strength of CutMix; 0 for none.
        mix_probability: share of batches that are mixed; mixed ones never move sub-centroids.
        num_subcentroids: K, of each class.
        num_prototypes: learned prototypes of each class, of the head ``cosine``.
        momentum: mu, the share of the old sub-centroid kept at an update.
        temperature: of every head but softmax.
        memory_size: past embeddings that take part in the update; 0 for none.
        assignment: ``sinkhorn``, ``nearest`` or ``random``.
        epsilon: entropy of the Sinkhorn assignment.
        correct_only: only correctly classified samples enter update and memory.
        start: ``random`` or ``data``.
        pixels: for scenes, how many of each class and image enter the update, at most.
        spread: ``centred`` or ``frame`` keeps the sub-centroids apart, ``none`` does not.
        scale_by: scores are similarities over the ``temperature``, or through a ``layernorm`` over the classes that
            learns (as released).
        update_after: optimiser steps during which the sub-centroids stand still.
        update_every: optimiser steps from one update of the sub-centroids to the next.
        refresh_epochs: in each of the last so many epochs they are estimated anew from all training images at its
            beginning, and stand still.
        anchor_epochs: the same, but each is put at the embedding of its nearest training image.
        anchor: after training, put each at the embedding of its nearest training image and keep which it is.
        refresh: after training, estimate them anew; kept only where the held-out score does not fall.
        validation: training images held out, in the place of a data set's own validation images; 0 for none.
        train_limit: train on so many images, classes even (scenes: at random); 0 for all.
        leave_out: numbers of classes that are left out, in training and test; the others close ranks.
        precision: ``no``, ``bf16`` or ``fp16``.
        compile: let torch compile the model.
    """

    name: str
    dataset: str
    backbone: str
    reader: str = "memory"
    image_size: int = 32
    weights: str = ""
    decoder: str = ""
    channels: int = 512
    output_stride: int = 0
    auxiliary: float = 0.0
    drop_path: float = 0.0
    head: str = "dnc"
    seed: int = 0
    epochs: int = 200
    evaluate_every: int = 1
    batch_size: int = 128
    accumulate: int = 1
    norm_images: int = 0
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    sgd_momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norms: bool = True
    norm_bias_rate: float = 1.0
    backbone_rate: float = 1.0
    clip_norm: float = 0.0
    schedule: str = "step"
    warmup_epochs: int = 0
    min_learning_rate: float = 0.0
    milestones: tuple[int, ...] = (100, 150)
    decay: float = 0.1
    power: float = 0.9
    pad: int = 4
    flip: bool = True
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_size: tuple[int, ...] = ()
    scale: tuple[float, ...] = (0.5, 2.0)
    class_share: float = 0.75
    window: tuple[int, ...] = ()
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    rand_augment: str = ""
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    num_subcentroids: int = 4
    num_prototypes: int = 1
    momentum: float = 0.999
    temperature: float = 0.1
    memory_size: int = 12_800
    assignment: str = "sinkhorn"
    epsilon: float = 0.05
    pixels: int = 20
    correct_only: bool = False
    start: str = "random"
    spread: str = "none"
    scale_by: str = "temperature"
    update_after: int = 0
    update_every: int = 1
    refresh_epochs: int = 0
    anchor_epochs: int = 0
    anchor: bool = False
    refresh: bool = False
    validation: int = 0
    train_limit: int = 0
    leave_out: tuple[int, ...] = ()
    precision: str = "no"
    compile: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                known = ", ".join(str(each) or "nothing" for each in allowed)
                raise ValueError(f"{field} must be one of {known}, got {getattr(self, field)!r}")
        for rule, holds, fields in _RANGES:
            for field in fields:
                if not holds(getattr(self, field)):
                    raise ValueError(f"{field} must be {rule}, got {getattr(self, field)}")
        if self.refresh and not self.validation:
            raise ValueError("refresh needs held-out images to judge it by: set validation to their number")
        for field in ("anchor_epochs", "refresh_epochs"):
            if getattr(self, field) > self.epochs:
                raise ValueError(f"{field} {getattr(self, field)} are more than the {self.epochs} epochs there are")
        if self.head != "dnc" and (self.anchor or self.anchor_epochs or self.refresh_epochs):
            raise ValueError(f"head {self.head} has no sub-centroids that move: to anchor or estimate some, take dnc")
        if self.anchor_epochs and not self.anchor:
            raise ValueError("anchor_epochs ends in anchored sub-centroids: set anchor too")
        if len(set(self.leave_out)) < len(self.leave_out) or min(self.leave_out, default=0) < 0:
            raise ValueError(f"leave_out must be different class numbers from 0, got {self.leave_out}")
        if self.leave_out and self.reader == "scenes":
            raise ValueError("leave_out is for whole images, not for scenes: their pixels of a class have no images")
        self._check_reader()
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts")
        if self.norm_images and (self.batch_size // self.accumulate) % self.norm_images:
            raise ValueError(
                f"norm_images {self.norm_images} do not divide the {self.batch_size // self.accumulate} images of a "
                f"pass: take a number that does, or 0"
            )
        if self.warmup_epochs and (self.schedule == "one_cycle" or self.warmup_epochs >= self.epochs):
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} does not fit: one_cycle warms up by itself, and other schedules "
                f"need more epochs than that, got {self.epochs}"
            )
        if self.head == "dnc" and (self.mixup or self.cutmix) and self.mix_probability == 1:
            raise ValueError(
                "mixed batches never move sub-centroids, and with mix_probability 1 all are mixed: lower it, or use "
                "head frozen"
            )

    def _check_reader(self) -> None:
        """Raise ``ValueError`` for fields that the reader does not serve."""
        for field in ("rand_augment", "random_erasing", "color_jitter"):
            readers = ("files", "scenes") if field == "color_jitter" else ("files",)
            if self.reader not in readers and getattr(self, field):
                raise ValueError(
                    f"{field} is for pictures: it needs reader {' or '.join(readers)}, got {self.reader}"
                )
        if (self.reader == "scenes") != bool(self.decoder):
            raise ValueError(
                f"reader scenes and a decoder belong together, got reader {self.reader} and decoder {self.decoder!r}"
            )
        if self.reader != "scenes":
            for field in ("crop_size", "window", "auxiliary", "output_stride"):
                if getattr(self, field):
                    raise ValueError(f"{field} is for scenes: it needs reader scenes, got {self.reader}")
            if self.image_size < 1:
                raise ValueError(f"image_size must be 1 or more, got {self.image_size}")
            return
        if not self.crop_size:
            raise ValueError("scenes are cut: set crop_size to height and width")
        if self.mixup or self.cutmix or self.label_smoothing:
            raise ValueError("mixup, cutmix and label_smoothing are for whole images, not for scenes: set them to 0")

    def replace(self, **changes) -> "Recipe":
        """The same with some fields changed.

        Raises:
            ValueError: for a field that does not exist, with the nearest one, or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"a recipe has no field {', '.join(unknown)}.{hint} It has: {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def head_settings(self) -> dict:
        """The fields that concern the head."""
        names = ("num_subcentroids", "momentum", "temperature", "memory_size", "assignment", "epsilon")
        names = (*names, "correct_only", "start", "spread", "scale_by", "seed")
        settings = {name: getattr(self, name) for name in names}
        if self.head == "cosine":
            settings["num_prototypes"] = self.num_prototypes
        return settings | ({"ignore_index": IGNORED} if self.decoder else {})

    def start_kept(self, updates: int) -> float:
        """Weight of a sub-centroid's random start after so many updates: momentum to their number."""
        estimated = self.refresh_epochs > 0 or self.anchor or (self.start == "data" and updates > 0)
        return 0.0 if estimated else self.momentum**updates

    def to_dict(self) -> dict:
        """Plain values, for a manifest; :meth:`from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Recipe":
        """The recipe of a manifest, whose JSON knows no tuples; fields that it lacks have their defaults.

        Raises:
            TypeError: for fields that no recipe has.
            ValueError: for values out of range.
        """
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def field_help() -> dict[str, str]:
    """What the docstring of :class:`Recipe` says of each field, as plain text, for the command line."""
    described = (inspect.getdoc(Recipe) or "").partition("Attributes:\n")[2]
    one_line_each = re.sub(r"\n {8,}", " ", re.sub(r":\w+:`|`", "", described))
    return dict(re.findall(r"^ +(\w+): (.+?)\.?$", one_line_each, re.MULTILINE))


def parse_arm(text: str) -> dict:
    """An arm as the command line names it: a head, or ``field=value``, or several of both: ``"dnc momentum=0.99"``.

    Raises:
        ValueError: for an unknown field or head, or a value that is none of the field's.
    """
    fields, changes = {field.name: field for field in dataclasses.fields(Recipe)}, {}
    for word in text.split():
        name, is_field, value = word.partition("=")
        if not is_field and name in HEADS:
            changes["head"] = name
        elif name in fields and is_field:
            changes[name] = _parse(fields[name], value)
        else:
            raise ValueError(
                f"arm {text!r}: {word!r} is neither a head ({', '.join(HEADS)}) nor field=value of a recipe"
            )
    return changes


def _parse(field: dataclasses.Field, text: str) -> object:
    """The value that a text says, of the field's type."""
    try:
        if field.type is bool:
            return {"true": True, "false": False}[text.lower()]
        if field.type in TUPLES:
            number = TUPLES[field.type][0][0]
            return tuple(number(part) for part in text.split(",") if part)
        return field.type(text)
    except (ValueError, KeyError) as error:
        wanted = "true or false" if field.type is bool else field.type.__name__
        wanted = "numbers, by commas" if field.type in TUPLES else wanted
        raise ValueError(f"{field.name} must be {wanted}, got {text!r}") from error


def _check_type(field: dataclasses.Field, value: object) -> None:
    """Raise ``ValueError`` unless the value is of the field's type; a whole number will do for a float."""
    if field.type in TUPLES:
        number, wanted = TUPLES[field.type]
        fits = isinstance(value, tuple) and all(type(each) in number for each in value)
    else:
        fits = type(value) is field.type or (field.type is float and type(value) is int)
        fits, wanted = fits and value not in (math.inf, -math.inf), field.type.__name__
    if not fits:
        raise ValueError(f"{field.name} must be {wanted}, got {value!r}")
