"""From a classifier to a segmenter, every way, on plates of handwritten digits: the trial of the chapter on transfer.

    python tools/plates.py --seeds 100 101 102 --output book/results/transfer/plates.json

About half a minute of one core a seed. What is finished lies beside the output, with `.part` after its name, until
all seeds are there; called again, it goes on with those that are missing.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: beside other work its threads spin

import torch

from dnc_lib import plates
from dnc_lib.data import load
from dnc_lib.runs import describe_code, describe_machine, write_json
from dnc_lib.training import GENERATION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(torch.device("cpu"))
    head = {
        "kind": "plates",
        "data": load("digits")[0].digest(),
        "code": describe_code(),
        "generation": GENERATION,
        "hardware": f"{machine['device_name']} CPU, 1 thread",
        "versions": machine["versions"],
    }
    part = arguments.output.with_name(arguments.output.name + ".part")
    before = next((each for each in (part, arguments.output) if each.is_file()), None)
    before = json.loads(before.read_text(encoding="utf-8")) if before else {"results": []}
    changed = [key for key in ("data", "generation") if before.get(key, head[key]) != head[key]]
    if changed:
        parser.error(f"{arguments.output} was made with another {' and '.join(changed)}: move it away")
    results, judged = list(before["results"]), plates.judged_plates()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        if any(each["seed"] == seed for each in results):
            continue
        started = time.perf_counter()
        found = plates.trial(seed, judged)
        results.append({"seed": seed, "miou": found, "seconds": time.perf_counter() - started})
        write_json(head | {"results": results}, part)
        print(f"seed {seed}: {results[-1]['seconds']:.0f} s", flush=True)  # the scores are for the chapter to tell
    if part.is_file():
        os.replace(part, arguments.output)


if __name__ == "__main__":
    main()
