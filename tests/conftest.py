"""What all tests share."""

import os

# Before torch loads: on tensors as small as a test's, threads wait for one another more than they work; and on a busy
# machine they should not spin while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

os.environ["MPLBACKEND"] = "Agg"

import pytest


def pytest_ignore_collect(collection_path, config):
    """Asked for what needs a GPU, read no other file: it may import what a bare machine lacks."""
    if config.option.markexpr != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("pytest.mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True


try:
    import hypothesis
except ImportError:  # a bare machine with a GPU, where only what needs one is run
    pass
else:  # No test asserts on a clock: how long an example takes says what else the machine does.
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
