"""What the tests of the data scripts share: miniatures are made by `miniatures.py`, which also finds the scripts."""

import pytest
from miniatures import Server


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data root, named by DNC_DATA."""
    folder = tmp_path / "data"
    monkeypatch.setenv("DNC_DATA", str(folder))
    return folder


@pytest.fixture
def archives(tmp_path):
    """A folder for archives."""
    folder = tmp_path / "archives"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tmp_path):
    """A server on this machine of the folder ``served``; see :class:`miniatures.Server`."""
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as running:
        yield running
