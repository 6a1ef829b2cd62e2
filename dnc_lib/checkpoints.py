"""Models on disk: their weights, and the card that says how to build them again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from .model_files import read_tensors, write_tensors
from .models import ImageClassifier, Model, Segmenter

#: Entries of a head that an exported model leaves out: its memory speaks of past training only.
_MEMORY = "head.memory."

#: What serves the training alone, so that no file has it.
_AUXILIARY = "auxiliary."


@dataclass(frozen=True)
class ModelCard:
    """What it takes to build a model again and to feed it.

    Attributes:
        backbone: name for :func:`dnc_lib.backbones.build_backbone`.
        head: name for :func:`dnc_lib.heads.build_head`.
        head_settings: of the head.
        classes: the C names.
        mean: (3,) of the images on the scale 0..1.
        std: (3,).
        image_size: side in pixels; of a segmenter the shorter side that images are brought to, 0 for their own.
        backbone_settings: passed on to the backbone, for instance ``{"drop_path_rate": 0.3}``.
        decoder: name for :func:`dnc_lib.decoders.build_decoder`; empty for a classifier of whole images.
        decoder_settings: of :meth:`dnc_lib.models.Segmenter.build`: ``channels``, ``output_stride``.
        colours: (C, 3) to paint the classes with, 0..255; empty where the data set has none.
    """

    backbone: str
    head: str
    head_settings: dict
    classes: list[str]
    mean: list[float]
    std: list[float]
    image_size: int
    backbone_settings: dict = field(default_factory=dict)
    decoder: str = ""
    decoder_settings: dict = field(default_factory=dict)
    colours: list[list[int]] = field(default_factory=list)

    def build(self, memory: bool = True, auxiliary: bool = False) -> Model:
        """A new model of this kind, without its weights.

        Args:
            memory: of the size that the settings say; else 0.
            auxiliary: with the branch that serves a segmenter's training alone.
        """
        settings = {"head_settings": self.head_settings if memory else {**self.head_settings, "memory_size": 0}}
        if not self.decoder:
            return ImageClassifier.build(
                self.backbone, len(self.classes), self.head, **settings, **self.backbone_settings
            )
        settings |= {**self.decoder_settings, "auxiliary": auxiliary}
        return Segmenter.build(
            self.backbone, self.decoder, len(self.classes), self.head, **settings, **self.backbone_settings
        )


def save_model(model: Model, card: ModelCard, path: str | Path, *, memory: bool = True) -> None:
    """Write weights, sub-centroids and card to one safetensors file, under a temporary name first.

    Args:
        model: what to save.
        card: how to build it again.
        path: of the file.
        memory: keep the head's memory, to go on training; exports leave it out.

    Raises:
        OSError: where it cannot be written.
    """
    left_out = (_AUXILIARY,) if memory else (_AUXILIARY, _MEMORY)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(left_out)}
    write_tensors(state, {"card": json.dumps(asdict(card)), "memory": json.dumps(memory)}, path)


def read_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[Model, ModelCard]:
    """The model in a file written by :func:`save_model`, in evaluation mode, with its card.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a truncated or foreign file, or weights that do not fit the card.
    """
    state, metadata = read_tensors(path)
    if "card" not in metadata:
        raise ValueError(f"{path} has no model card: it was not written by dnc_lib")
    try:
        card = ModelCard(**json.loads(metadata["card"]))
        with_memory = bool(json.loads(metadata.get("memory", "true")))
        model = card.build(memory=with_memory)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the model card in {path} cannot be built ({error})") from error
    load_state(model, state, f"{path}", allow_missing="" if with_memory else _MEMORY)
    return model.to(device).eval(), card


def load_state(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str, allow_missing: str = "") -> None:
    """Put a state dict into a model, or say exactly what does not fit.

    Args:
        model: filled in place.
        state: name to tensor.
        source: where it comes from, for the error.
        allow_missing: prefix of entries that may be absent.

    Raises:
        ValueError: naming the first entry of another shape, or those missing and unknown.
    """
    own = model.state_dict()
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise ValueError(
                f"{source}: {key} has shape {tuple(value.shape)}, the model wants {tuple(own[key].shape)}: "
                f"it was trained with another width, number of classes or sub-centroids"
            )
    missing = [key for key in own if key not in state and not (allow_missing and key.startswith(allow_missing))]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        raise ValueError(
            f"{source} does not fit the model: "
            + "; ".join(
                f"{what} {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
                for what, keys in (("missing", missing), ("unknown", unknown))
                if keys
            )
        )
    model.load_state_dict(state, strict=False)
