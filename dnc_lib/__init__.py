"""Deep nearest centroids (Wang, Han, Zhou, Liu; ICLR 2023): a class is a few of its own samples' centroids.

What users and notebooks import from here is loaded on first use. So ``import dnc_lib`` stays quick, and does not load
torch, which reads some settings of its process only when it loads.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

_HOMES = {
    "SubCentroidHead": ".heads",
    "SoftmaxHead": ".heads",
    "CosineHead": ".heads",
    "ImageClassifier": ".models",
    "Segmenter": ".models",
    "NearestSubCentroids": ".classic",
    "sinkhorn": ".sinkhorn",
    "train": ".training",
    "load_pretrained": ".pretrained",
}

__all__ = ["__version__", "recipes", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    elif name == "recipes":
        value = importlib.import_module(".recipes", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """Whose ``sinkhorn`` is the function, although importing the module of that name binds the module there."""

    def __setattr__(self, name, value):
        if name == "sinkhorn" and isinstance(value, types.ModuleType):
            value = value.sinkhorn
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
