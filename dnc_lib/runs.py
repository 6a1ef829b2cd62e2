"""A run folder: manifest, metrics and model."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .checkpoints import ModelCard, read_model
from .models import Model
from .recipes import Recipe

MANIFEST, METRICS, MODEL, BEST = "manifest.json", "metrics.jsonl", "model.safetensors", "best.safetensors"

#: Which training image or pixel each sub-centroid stands for, once that was asked.
EXEMPLARS = "exemplars.json"
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors")


@dataclass
class Run:
    """A training that was done: where it lies and what it recorded.

    Attributes:
        folder: holds ``manifest.json``, ``metrics.jsonl``, ``model.safetensors`` (the last epoch's, which is the
            result) and ``best.safetensors`` (of the epoch with the highest held-out accuracy, or mIoU for scenes).
        manifest: see :func:`describe_machine` and :func:`dnc_lib.training.train`.
    """

    folder: Path
    manifest: dict = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a run folder.

        Raises:
            FileNotFoundError: where there is no manifest.
            ValueError: where it is damaged.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            if (Path(folder) / METRICS).is_file():
                raise FileNotFoundError(
                    f"the run in {folder} has not ended, so it has no {MANIFEST} yet: wait, or go on with it by "
                    f"`dnc train --resume`"
                )
            raise FileNotFoundError(f"{folder} is no run folder: it has no {MANIFEST}; `dnc train` writes one")
        try:
            run = cls(Path(folder), json.loads(path.read_text(encoding="utf-8")))
            run.recipe  # noqa: B018 (a manifest without a whole recipe is damaged too)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged or from another version ({error})") from error
        return run

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained by."""
        return Recipe.from_dict(self.manifest["recipe"])

    def metrics(self) -> list[dict]:
        """One record an epoch.

        Raises:
            FileNotFoundError: where there are none.
            ValueError: where they are damaged.
        """
        path = self.folder / METRICS
        if not path.is_file():
            raise FileNotFoundError(f"no metrics at {path}")
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error})") from error

    def model(self, device: str | torch.device = "cpu") -> tuple[Model, ModelCard]:
        """The trained model, in evaluation mode, and its card."""
        return read_model(self.folder / MODEL, device)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: the manifest is written last."""
        return (self.folder / MANIFEST).is_file()

    def reset_metrics(self, records: list[dict]) -> None:
        """Begin the metrics with these records, those of a resumed run."""
        (self.folder / METRICS).write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")

    def add_metrics(self, record: dict) -> None:
        """Append one epoch's record."""
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_manifest(self) -> None:
        """Write the manifest, under a temporary name first."""
        write_json(self.manifest, self.folder / MANIFEST)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Inside, no other process that asks for the same path gets it, even where this one is killed.

    The lock is a hidden file beside ``path``, which goes with this process. Where the system knows no such locks
    (Windows, some network file systems) nobody is kept out.

    Raises:
        BlockingIOError: where another process has it.
    """
    try:
        import fcntl  # of Unix alone
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is writing {path}: wait for its end, or choose another --output"
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def warn_changed(before: dict, now: dict, what: str) -> None:
    """Say so where what goes on began under other circumstances than the manifest will tell of."""
    names = {"code": "code", "versions": "packages", "device_name": "device", "threads": "number of threads"}
    changed = [name for key, name in names.items() if before.get(key) != now[key]]
    if changed:
        warnings.warn(
            f"{what} began with another {', '.join(changed)}; its manifest will tell of the present one alone",
            stacklevel=3,
        )


def write_json(value: dict, path: Path) -> None:
    """Write a record as people and ``git diff`` read it, under a temporary name first."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def describe_code() -> dict:
    """Commit of the package's checkout and whether it had changes; ``None`` where it is installed without git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20)
            if done.returncode == 0:
                return done.stdout.strip()
        return None

    # Installed into an environment that lies inside some other checkout, git would tell that one's commit.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--", __file__) else None
    changes = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
    return {"commit": commit, "dirty": bool(changes) if commit else None}


def describe_machine(device: torch.device) -> dict:
    """Versions and hardware, without names that tell whose they are."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"versions": versions, "device": device.type, "device_name": name, "threads": torch.get_num_threads()}


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes: of the GPU where there is one, else resident memory of the process; ``None`` on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
