"""From a classifier to a segmenter: which learned parameters are carried, which are new, which have no place."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from .model_files import read_tensors

#: The file of a run folder that holds its result.
_MODEL = "model.safetensors"

#: What a head learns for each class: a softmax head's matrix, a cosine head's prototypes.
_OF_CLASSES = ("head.linear.", "head.prototypes")


@dataclass(frozen=True)
class Source:
    """A classifier's learned state and how its backbone is made.

    Attributes:
        backbone: its name.
        settings: of the backbone, all of them: the image size that a transformer was trained at decides the shapes of
            its tables.
        state: the whole state dict.
        num_classes: C of the classifier.
        normalisation: mean and deviation (3,) of the images that it was trained on, where they are known.
        digest: SHA-256 of its file, the first 16 digits; empty for a model at hand.
    """

    backbone: str
    settings: dict
    state: dict[str, Tensor]
    num_classes: int
    normalisation: tuple[list[float], list[float]] | None = None
    digest: str = ""


@dataclass(frozen=True)
class Transfer:
    """What became of every learned parameter, as numbers of parameters by the name of the tensor.

    Sub-centroids and running statistics are no parameters: they are estimated, the one anew for the segmenter's
    classes, the other carried. The auxiliary branch serves training alone and is not counted.

    Attributes:
        carried: of the classifier, at work in the segmenter.
        new: of the segmenter, learned from scratch.
        without_place: of the classifier, with no place in the dense path.
        class_matrix: of the classifier's class matrix or prototypes; none where it has sub-centroids.
        digest: of the classifier's file, where it came from one.
    """

    carried: dict[str, int] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    without_place: dict[str, int] = field(default_factory=dict)
    class_matrix: dict[str, int] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    def counts(self) -> dict[str, int]:
        """How many parameters of each kind."""
        kinds = ("carried", "new", "without_place", "class_matrix")
        return {kind: sum(getattr(self, kind).values()) for kind in kinds}

    def __str__(self) -> str:
        lines = [f"{kind.replace('_', ' '):<14} {count:>12,}" for kind, count in self.counts().items()]
        lost = [*self.without_place, *self.class_matrix]
        return "\n".join([*lines, f"left behind: {', '.join(lost) or 'nothing'}"])


def read_source(path: str | Path) -> Source:
    """The classifier in a run folder or a file.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a file that holds no classifier.
    """
    path = Path(path)
    path = path / _MODEL if path.is_dir() else path
    state, metadata = read_tensors(path)
    try:
        card = json.loads(metadata["card"])
        if card.get("decoder"):
            raise ValueError(f"{path} holds a segmenter already, not a classifier: go on with it as it is")
        settings, images = dict(card["backbone_settings"]), (card["mean"], card["std"])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return Source(card["backbone"], settings, state, len(card["classes"]), images, digest)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} has no model card: it was not written by dnc_lib") from error


def carry(source: Source, model: nn.Module) -> Transfer:
    """Put a classifier's backbone, and its head's norm where the widths agree, into a model; say what became of every
    learned parameter.

    Args:
        source: the classifier.
        model: a new :class:`~dnc_lib.models.Segmenter`, or a new classifier of other classes; filled in place.

    Raises:
        ValueError: where the backbones do not agree; nothing is changed.
    """
    state, own = model.state_dict(), dict(model.named_parameters())
    backbone = {key: value for key, value in source.state.items() if key.startswith("backbone.")}
    _check_backbone(source, backbone, {key: value for key, value in state.items() if key.startswith("backbone.")})
    norm = {
        key: value
        for key, value in source.state.items()
        if key.startswith("head.norm.") and key in state and state[key].shape == value.shape
    }
    model.load_state_dict({**state, **backbone, **norm})
    idle = {f"backbone.{name}" for name in getattr(model, "idle", ())}
    learned = _learned(source, own, idle)
    at_work = {key for key, parameter in own.items() if parameter.requires_grad}
    carried = {key: count for key, count in learned.items() if key in at_work and key in {**backbone, **norm}}
    new = {key: own[key].numel() for key in own if key in at_work - set(carried) and not key.startswith("auxiliary.")}
    left = {key: count for key, count in learned.items() if key not in carried}
    of_classes = {key: count for key, count in left.items() if key.startswith(_OF_CLASSES)}
    without_place = {key: count for key, count in left.items() if key not in of_classes}
    return Transfer(carried, new, without_place, of_classes, source.digest)


def _check_backbone(source: Source, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Raise ``ValueError`` unless both have the same entries of the same shapes."""
    strange = [key for key, value in ours.items() if key not in theirs or theirs[key].shape != value.shape]
    strange += [key for key in theirs if key not in ours]
    if strange:
        raise ValueError(
            f"the classifier's backbone, {source.backbone}, does not fit the model's: they differ in "
            f"{', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}"
        )


def _learned(source: Source, own: dict[str, nn.Parameter], idle: set[str]) -> dict[str, int]:
    """The classifier's learned parameters and their sizes.

    Buffers (running statistics, sub-centroids) are none, and neither is a layer that is set from data and never
    learns: in a new model it is frozen without being idle.
    """
    fixed = {key for key, parameter in own.items() if not parameter.requires_grad and key not in idle}
    return {
        key: value.numel()
        for key, value in source.state.items()
        if (key.startswith("backbone.") and key in own and key not in fixed)
        or key.startswith(("head.norm.", *_OF_CLASSES))
    }
