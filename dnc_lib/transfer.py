"""From a classifier to a segmenter: which learned parameters are carried, which are new, which have no place."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from .model_files import read_tensors

#: The file of a run folder that holds its result.
_MODEL = "model.safetensors"

#: Settings of a backbone that speak of the images it classified, not of its parameters.
_OF_IMAGES = ("img_size",)


@dataclass(frozen=True)
class Source:
    """A classifier's learned state and how its backbone is made.

    Attributes:
        backbone: its name.
        settings: of the backbone.
        state: the whole state dict.
        num_classes: C of the classifier.
        normalisation: mean and deviation (3,) of the images that it was trained on, where they are known.
    """

    backbone: str
    settings: dict
    state: dict[str, Tensor]
    num_classes: int
    normalisation: tuple[list[float], list[float]] | None = None


@dataclass(frozen=True)
class Transfer:
    """What became of every learned parameter, as numbers of parameters by the name of the tensor.

    Attributes:
        carried: of the classifier, at work in the segmenter.
        new: of the segmenter, learned from scratch.
        without_place: of the classifier, with no place in the dense path.
        classifier: of the classifier's class matrix or prototypes; none where it has sub-centroids.
    """

    carried: dict[str, int] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    without_place: dict[str, int] = field(default_factory=dict)
    classifier: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many parameters of each kind."""
        kinds = ("carried", "new", "without_place", "classifier")
        return {kind: sum(getattr(self, kind).values()) for kind in kinds}

    def __str__(self) -> str:
        lines = [f"{kind.replace('_', ' '):<14} {count:>12,}" for kind, count in self.counts().items()]
        lost = [*self.without_place, *self.classifier]
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
        settings = {key: value for key, value in card["backbone_settings"].items() if key not in _OF_IMAGES}
        return Source(card["backbone"], settings, state, len(card["classes"]), (card["mean"], card["std"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no model card: it was not written by dnc_lib") from error


def carry(source: Source, segmenter: nn.Module) -> Transfer:
    """Put the classifier's backbone, and its head's norm where the widths agree, into a segmenter; say what became
    of every learned parameter.

    Raises:
        ValueError: where the backbones do not agree.
    """
    own = dict(segmenter.named_parameters())
    state = segmenter.state_dict()
    backbone = {key: value for key, value in source.state.items() if key.startswith("backbone.")}
    wanted = [key for key in state if key.startswith("backbone.")]
    strange = [key for key in wanted if key not in backbone or backbone[key].shape != state[key].shape]
    strange += [key for key in backbone if key not in state]
    if strange:
        raise ValueError(f"the classifier's backbone does not fit the segmenter's: {', '.join(strange[:3])}")
    norm = {
        key: value
        for key, value in source.state.items()
        if key.startswith("head.norm.") and key in state and state[key].shape == value.shape
    }
    segmenter.load_state_dict({**state, **backbone, **norm})
    learned = _learned(source, segmenter)
    at_work = {key for key, parameter in own.items() if parameter.requires_grad}
    carried = {key: count for key, count in learned.items() if key in at_work and key in {**backbone, **norm}}
    new = {key: own[key].numel() for key in own if key in at_work - set(carried) and not key.startswith("auxiliary.")}
    left = {key: count for key, count in learned.items() if key not in carried}
    of_classes = {key: count for key, count in left.items() if key.startswith(("head.linear.", "head.prototypes"))}
    without_place = {key: count for key, count in left.items() if key not in of_classes}
    return Transfer(carried, new, without_place, of_classes)


def _learned(source: Source, segmenter: nn.Module) -> dict[str, int]:
    """The classifier's learned parameters and their sizes; buffers (running statistics, sub-centroids) are none."""
    parameters = {f"backbone.{name}" for name, _ in segmenter.backbone.named_parameters()}
    return {
        key: value.numel()
        for key, value in source.state.items()
        if key in parameters or key.startswith(("head.norm.", "head.linear.", "head.prototypes"))
    }
