"""What all tests share."""

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def cifar10():
    """CIFAR-10's training and test images; tests that need it are skipped where it is not at hand."""
    from dnc_lib import data

    try:
        return data.load("cifar10")
    except FileNotFoundError:
        pytest.skip(f"cifar10 not found under {data.data_root()} (set DNC_DATA to where it is)")
