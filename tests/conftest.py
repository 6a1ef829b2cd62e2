"""What all tests share."""

import os

# Before torch loads: on tensors as small as a test's, threads wait for one another more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
