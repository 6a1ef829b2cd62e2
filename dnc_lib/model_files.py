"""Tensors and what is said of them in one safetensors file: written atomically, read without executing anything."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: str | Path) -> None:
    """Write a file, under a temporary name first.

    Args:
        tensors: by name, on any device.
        metadata: words that travel with them.
        path: of the file.

    Raises:
        OSError: where it cannot be written.
    """
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save_file(tensors, part, metadata=metadata)
        os.replace(part, path)
    except SafetensorError as error:  # a full disk, for instance
        raise OSError(f"{path} cannot be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, by name, and the words that travel with them.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a truncated or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); copy or train it again") from error
