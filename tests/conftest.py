"""What all tests share."""

import os

# Before torch loads: on tensors as small as a test's, threads wait for one another more than they work; and on a busy
# machine they should not spin while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import matplotlib
import pytest

matplotlib.use("Agg")

# No test asserts on a clock: how long an example takes says what else the machine does.
hypothesis.settings.register_profile(
    "no clock",
    hypothesis.settings.get_profile(hypothesis.settings.get_current_profile_name()),  # under CI: derandomised
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("no clock")


@pytest.fixture(scope="session")
def cifar10():
    """CIFAR-10's training and test images; tests that need it are skipped where it is not at hand."""
    from dnc_lib import data

    try:
        return data.load("cifar10")
    except FileNotFoundError:
        pytest.skip(f"cifar10 not found under {data.data_root()} (set DNC_DATA to where it is)")


def pytest_configure(config):
    """Show what Python shows: from 3.12 on it warns of workers forked beside OpenMP's threads, but in tests only."""
    config.addinivalue_line("filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning")
