"""How often a trained model does not predict the class of the nearest sub-centroid, on the test images of CIFAR-10.

    python tools/nearest_case.py MODELS --output book/results/audit/nearest_case.json [--data-root DIR]

MODELS is a folder that `dnc compare cifar10_... --keep MODELS` has filled. Models whose scores go through a LayerNorm
are measured; in all others the two are the same by construction.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: see dnc_lib/__main__.py

import torch

from dnc_lib.checkpoints import read_model
from dnc_lib.data import load
from dnc_lib.data.loader import DeviceLoader
from dnc_lib.recipes import Recipe

NAME = re.compile(r"(?P<arm>.+)_seed(?P<seed>\d+)\.safetensors")
#: A file's name has `_` for the spaces of an arm: those before the name of a recipe's field.
AS_SPACE = re.compile(rf"_(?=(?:{'|'.join(field.name for field in dataclasses.fields(Recipe))})=)")


@torch.no_grad()
def measure(model: torch.nn.Module, loader) -> dict:
    """Shares in percent of the test images: not predicted as their nearest case, and right by either."""
    model.eval()
    images = strays = by_score = by_case = 0
    for x, labels in loader:
        features = model.features(x)
        predicted = model.head(features).argmax(-1)
        case = model.head.similarities(features).amax(-1).argmax(-1)
        images += len(labels)
        strays += int((predicted != case).sum())
        by_score += int((predicted == labels).sum())
        by_case += int((case == labels).sum())
    shares = {"strays": strays, "accuracy": by_score, "accuracy_nearest_case": by_case}
    return {"images": images} | {key: round(100 * value / images, 4) for key, value in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data-root")
    arguments = parser.parse_args()
    _, test = load("cifar10", arguments.data_root)
    results = []
    for path in sorted(arguments.models.glob("*.safetensors")):
        named = NAME.fullmatch(path.name)
        if not named or "scale_by=layernorm" not in path.name:
            continue
        model, card = read_model(path)
        found = measure(model, DeviceLoader(test, 500, card.mean, card.std))
        arm = AS_SPACE.sub(" ", named["arm"])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        results.append({"arm": arm, "seed": int(named["seed"]), "model": digest, **found})
        print(f"{arm}, seed {named['seed']}: {found['strays']:.2f} % not the nearest case")
    if not results:
        parser.error(f"no model with scale_by=layernorm in {arguments.models}: `dnc compare ... --keep` leaves them")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps({"dataset": "cifar10", "results": results}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
