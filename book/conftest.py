"""For `pytest --nbval book`: a chapter whose data is not at hand is skipped, with the reason."""

import os
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import book as tools

for name, value in tools.DEFAULTS.items():  # kernels inherit them
    os.environ.setdefault(name, value)
missing_data = cache(tools.missing_data)


def pytest_collection_modifyitems(items) -> None:
    """Mark the cells of such chapters."""
    for item in items:
        if item.path.suffix == ".ipynb" and (reason := missing_data(item.path)):
            item.add_marker(pytest.mark.skip(reason=f"{item.path.name} {reason}"))
