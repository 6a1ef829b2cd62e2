"""MATLAB files, in which two of the data sets keep their labels."""

import io

import numpy as np
from _console import DataError


def read_mat(content: bytes, variable: str, name: str, *, squeeze: bool = False) -> np.ndarray:
    """One variable of a .mat file.

    Args:
        content: of the file.
        variable: which.
        name: of the file, for messages.
        squeeze: drop the dimensions of one that MATLAB gives to everything.

    Raises:
        DataError: if it cannot be read, or lacks the variable, or scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError("scipy, which reads MATLAB files, is not installed: pip install scipy") from error
    try:
        found = loadmat(io.BytesIO(content), variable_names=[variable], squeeze_me=squeeze)
    except Exception as error:  # a damaged file fails a decoder in any way it likes
        raise DataError(f"{name} cannot be read ({error}); fetch the archive again") from error
    if variable not in found:
        raise DataError(f"{name} has no variable {variable}; it is not the published file")
    return found[variable]
