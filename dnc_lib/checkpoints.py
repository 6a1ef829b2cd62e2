"""Models on disk as safetensors: written atomically, read without executing anything in them."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .models import ImageClassifier

#: Entries of a head that an exported model leaves out: its memory speaks of past training only.
_MEMORY = "head.memory."


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
        image_size: side in pixels.
        backbone_settings: passed on to the backbone, for instance ``{"drop_path_rate": 0.3}``.
    """

    backbone: str
    head: str
    head_settings: dict
    classes: list[str]
    mean: list[float]
    std: list[float]
    image_size: int
    backbone_settings: dict = field(default_factory=dict)

    def build(self, memory: bool = True) -> ImageClassifier:
        """A new model of this kind, without its weights; ``memory=False`` gives it a memory of size 0."""
        settings = self.head_settings if memory else {**self.head_settings, "memory_size": 0}
        return ImageClassifier.build(
            self.backbone, len(self.classes), self.head, head_settings=settings, **self.backbone_settings
        )


def save_model(model: ImageClassifier, card: ModelCard, path: str | Path, *, memory: bool = True) -> None:
    """Write weights, sub-centroids and card to one safetensors file, under a temporary name first.

    Args:
        model: what to save.
        card: how to build it again.
        path: of the file.
        memory: keep the head's memory, to go on training; exports leave it out.

    Raises:
        OSError: where it cannot be written.
    """
    path = Path(path)
    state = {key: value for key, value in model.state_dict().items() if memory or not key.startswith(_MEMORY)}
    state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save_file(state, part, metadata={"card": json.dumps(asdict(card)), "memory": json.dumps(memory)})
        os.replace(part, path)
    except SafetensorError as error:  # a full disk, for instance
        raise OSError(f"{path} cannot be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def read_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[ImageClassifier, ModelCard]:
    """The model in a file written by :func:`save_model`, in evaluation mode, with its card.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a truncated or foreign file, or weights that do not fit the card.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); copy or train it again") from error
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
