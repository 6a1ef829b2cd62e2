import pytest
import torch
from helpers import small_disk

from dnc_lib.snapshots import Snapshots

STATE = {"step": 3, "weights": {"a": torch.arange(5.0)}, "curve": [{"epoch": 1, "loss": 0.5}]}


def state(step):
    return {**STATE, "step": step}


def test_what_is_saved_is_loaded(tmp_path):
    snapshots = Snapshots(tmp_path / "snapshots")
    assert snapshots.load() is None
    path = snapshots.save(STATE, 3)
    again = snapshots.load()
    assert again["curve"] == STATE["curve"]
    assert torch.equal(again["weights"]["a"], STATE["weights"]["a"])
    assert snapshots.paths() == [path]


def test_the_newest_two_are_kept(tmp_path):
    snapshots = Snapshots(tmp_path)
    for step in (9, 10, 11, 100):
        snapshots.save(state(step), step)
    assert [path.name[:14] for path in snapshots.paths()] == ["step0000000100", "step0000000011"]
    assert snapshots.load()["step"] == 100


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty"])
def test_a_damaged_one_is_reported_and_the_one_before_used(tmp_path, damage):
    snapshots = Snapshots(tmp_path)
    snapshots.save(state(1), 1)
    path = snapshots.save(state(2), 2)
    content = bytearray(path.read_bytes())
    if damage == "one byte":
        content[len(content) // 2] ^= 1
    else:
        content = content[: len(content) // 2] if damage == "truncated" else b""
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step0000000002\..*pt is damaged; going on from the one before it"):
        assert snapshots.load()["step"] == 1
    snapshots.save(state(3), 3)  # the damaged one is not counted among those kept
    assert [path.name[:14] for path in snapshots.paths()] == ["step0000000003", "step0000000001"]


def test_all_damaged_is_as_if_there_were_none(tmp_path):
    snapshots = Snapshots(tmp_path)
    snapshots.save(state(1), 1).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="is damaged"):
        assert snapshots.load() is None


def test_a_failure_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path)
    snapshots.save(state(1), 1)

    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("dnc_lib.snapshots.os.fsync", fails)
    with pytest.raises(OSError, match="no space left"):
        snapshots.save(state(2), 2)
    assert len(list(tmp_path.iterdir())) == 1
    assert snapshots.load()["step"] == 1


def test_nothing_in_it_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    snapshots = Snapshots(tmp_path)
    snapshots.save({"evil": Evil()}, 1)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        snapshots.load()


def test_removing_takes_the_folder_and_what_a_crash_left(tmp_path):
    folder = tmp_path / "snapshots"
    snapshots = Snapshots(folder)
    snapshots.remove()
    snapshots.save(state(1), 1)
    (folder / ".77.part").write_bytes(b"half")
    snapshots.remove()
    assert not folder.exists()
    snapshots.save(state(1), 1)
    (folder / "notes.txt").write_text("mine")
    snapshots.remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(tmp_path):
    snapshots = Snapshots(tmp_path)
    snapshots.save({"step": 1}, 1)
    with small_disk(), pytest.raises(OSError, match=r"no snapshot could be written into .*; make room there"):
        snapshots.save({"step": torch.zeros(100_000)}, 2)
    assert snapshots.load() == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no snapshot could be written into .*file/snapshots"):
        Snapshots(tmp_path / "file" / "snapshots").save({"step": 1}, 1)


def test_what_killed_processes_left_goes_with_the_next_snapshot(tmp_path):
    (tmp_path / ".77.part").write_bytes(b"half")
    snapshots = Snapshots(tmp_path)
    saved = snapshots.save(state(1), 1)
    assert list(tmp_path.iterdir()) == [saved]
