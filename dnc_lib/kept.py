"""Where the trained models of a comparison are kept, and that they can be, before the first training."""

import os
import re
import tempfile
from pathlib import Path

#: Bytes in a file's name, at most: file systems allow 255, and a file has a longer name while it is written.
_LONGEST = 220

#: What a file's name has no place for, here or elsewhere.
_UNFIT = re.compile(r'[ /\\:*?"<>|\x00-\x1f]')


def kept_path(folder: str | Path, arm: str, seed: int) -> Path:
    """Where :func:`dnc_lib.comparisons.compare` keeps a model: ``<arm>_seed<N>.safetensors``, with ``_`` for spaces
    and for what some systems have no place for in a file's name."""
    return Path(folder) / f"{_UNFIT.sub('_', arm)}_seed{seed}.safetensors"


def check_kept(keep: Path, arms: list[str], new: list[tuple[int, str]]) -> None:
    """Make the folder of models before the first training: after it would be hours too late to hear of trouble.

    Args:
        keep: the folder.
        arms: of the comparison, all of them.
        new: (seed, arm) of trainings whose models may not be there yet.

    Raises:
        ValueError: for arms whose names would be one file's, or too long for one.
        FileExistsError: where a model of these new ones, (seed, arm), is there already.
        OSError: where nothing can be written.
    """
    names = {}
    for arm in arms:
        name = kept_path(keep, arm, 0).name
        if (twin := names.setdefault(name.lower(), arm)) != arm:  # some systems know no capitals
            raise ValueError(f"the models of the arms {twin!r} and {arm!r} would be kept in one file: rename an arm")
        if len(os.fsencode(name)) > _LONGEST:
            raise ValueError(f"the name of the arm {arm[:20]!r}... is too long for a file's: shorten it")
    for seed, arm in new:
        if (path := kept_path(keep, arm, seed)).exists():
            raise FileExistsError(f"{path} is another comparison's model: name another --keep, or move it away")
    try:
        keep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=keep):
            pass
    except OSError as error:
        raise OSError(
            f"--keep {keep}: no model can be written there ({error.strerror}); name another folder"
        ) from error
