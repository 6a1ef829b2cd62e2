"""Downloads over a real connection, on this machine, that break off, change and fail."""

import os

import pytest
from _archives import Archive
from _console import DataError
from _download import fetch, obtain, pins

CONTENT = os.urandom(300_000)


@pytest.fixture
def served(server):
    (server.folder / "a.zip").write_bytes(CONTENT)
    return server


def test_whole_at_once(served, tmp_path):
    fetch(f"{served.url}/a.zip", tmp_path / "to" / "a.zip")
    assert (tmp_path / "to" / "a.zip").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a.zip"]


def test_taken_up_where_it_broke_off(served, tmp_path):
    served.cut = [100_000, 50_000]
    fetch(f"{served.url}/a.zip", tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert served.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_taken_up_by_a_later_run(served, tmp_path):
    served.cut = [100_000, 0, 0]
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(f"{served.url}/a.zip", tmp_path / "a.zip", tries=2, pause=0)
    assert not (tmp_path / "a.zip").exists()
    served.requests.clear()
    fetch(f"{served.url}/a.zip", tmp_path / "a.zip", pause=0)
    assert served.requests == ["bytes=100000-"]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["the file", "no ranges", "no tag"])
def test_started_again_where_going_on_would_mix_two_files(served, tmp_path, change):
    served.cut = [100_000, 0, 0]
    if change == "no tag":
        served.etag = None
    with pytest.raises(DataError):
        fetch(f"{served.url}/a.zip", tmp_path / "a.zip", tries=2, pause=0)
    new = CONTENT
    if change == "the file":
        new, served.etag = CONTENT[::-1], '"two"'
        (served.folder / "a.zip").write_bytes(new)
    served.ranges = change != "no ranges"
    fetch(f"{served.url}/a.zip", tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == new


def test_a_part_longer_than_the_file_is_thrown_away(served, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"more")
    (tmp_path / "a.zip.part.etag").write_text('"one"')
    fetch(f"{served.url}/a.zip", tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_from_a_folder_of_this_machine(tmp_path):
    (tmp_path / "a.zip").write_bytes(CONTENT)
    fetch((tmp_path / "a.zip").as_uri(), tmp_path / "to" / "a.zip")
    assert (tmp_path / "to" / "a.zip").read_bytes() == CONTENT


def test_what_cannot_be_had_says_what_to_do(served, tmp_path):
    with pytest.raises(DataError) as error:
        fetch(f"{served.url}/b.zip", tmp_path / "b.zip")  # at once: a missing file does not come by waiting
    assert str(error.value) == (
        f"{served.url}/b.zip cannot be fetched (HTTP Error 404: Not Found): see that there is a network, or put "
        f"b.zip into {tmp_path} by hand"
    )
    assert len(served.requests) == 1
    with pytest.raises(DataError, match=r"cannot be fetched \(<urlopen error .*Connection refused"):
        fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", tries=2, pause=0)
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch((tmp_path / "none.zip").as_uri(), tmp_path / "a.zip")


def test_a_download_that_fails_the_check_is_deleted_a_file_of_the_user_is_not(served, tmp_path):
    wrong = Archive("a.zip", checksum=f"md5:{'0' * 32}", url=f"{served.url}/a.zip")
    with pytest.raises(DataError, match="expected md5:0"):
        obtain(wrong, tmp_path, "nowhere")
    assert not (tmp_path / "a.zip").exists()
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match="expected md5:0"):
        obtain(wrong, tmp_path, "nowhere")
    assert (tmp_path / "a.zip").read_bytes() == b"mine"


def test_what_is_there_is_not_fetched_and_a_mirror_serves(served, tmp_path):
    archive = Archive("a.zip", url="http://127.0.0.1:9/a.zip")
    assert obtain(archive, tmp_path, "", mirror=f"{served.url}/") == tmp_path / "a.zip"
    obtain(archive, tmp_path, "")
    assert len(served.requests) == 1
    with pytest.raises(DataError, match=r"^b.zip is not in .*: ask them$"):
        obtain(Archive("b.zip"), tmp_path, "ask them")


def test_pins():
    one, two = Archive("a.zip"), Archive("b.zip")
    hexes = "0123456789ABCDEF" * 4
    assert pins([hexes], (one,)) == {"a.zip": hexes.lower()}
    assert pins([f"b.zip={hexes}"], (one, two)) == {"b.zip": hexes.lower()}
    for wrong, message in [
        (hexes, f"--sha256 {hexes}: write it as FILE=HEX, where FILE is one of a.zip, b.zip"),
        (f"c.zip={hexes}", f"--sha256 c.zip={hexes}: write it as FILE=HEX, where FILE is one of a.zip, b.zip"),
        ("a.zip=12", "--sha256 a.zip=12: a SHA-256 has 64 hexadecimal digits, this has 2 characters"),
        (
            f"a.zip={'g' * 64}",
            f"--sha256 a.zip={'g' * 64}: a SHA-256 has 64 hexadecimal digits, this has 64 characters",
        ),
    ]:
        with pytest.raises(DataError) as error:
            pins([wrong], (one, two))
        assert str(error.value) == message
