"""Deep nearest centroids (Wang, Han, Zhou, Liu; ICLR 2023): a class is a few of its own samples' centroids.

What users and notebooks import from here is loaded on first use, so ``import dnc_lib`` stays quick.
"""

import importlib

# The function shares its module's name, so it is bound here and now: a later import of the module then leaves it be.
from .sinkhorn import sinkhorn

__version__ = "0.1.0"

_HOMES = {
    "SubCentroidHead": ".heads",
    "SoftmaxHead": ".heads",
    "CosineHead": ".heads",
    "ImageClassifier": ".models",
    "Segmenter": ".models",
    "NearestSubCentroids": ".classic",
    "train": ".training",
    "load_pretrained": ".pretrained",
}

__all__ = ["__version__", "recipes", "sinkhorn", *_HOMES]


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
