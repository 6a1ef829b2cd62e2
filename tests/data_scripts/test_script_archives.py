"""Members that would leave, links, damage, and folders that appear whole or not at all."""

import hashlib
import io
import ntpath
import os
import shutil
import stat
import tarfile
import zipfile

import miniatures
import pytest
from _archives import Archive, extract_tar, extract_zip, plan_tar, plan_zip, verify
from _console import DataError, run, size, table
from _disk import files_below, need_room, recover, staged
from hypothesis import example, given
from hypothesis import strategies as st
from miniatures import write_tar, write_zip

EVIL = ["../x", "a/../../x", "/etc/x", "a/..", "..\\x", "\\x", "C:\\x", "c:x", "a\\..\\..\\x"]
EVIL += ["1:/x", "::/x", "?:\\x", "./1:x", "a/b:x"]  # any character names a drive; folders before it may be dropped


def take_all(name: str) -> str:
    return name


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_that_leave_are_refused_even_if_unwanted(tmp_path, name, kind):
    files = {"good.png": b"good", name: b"bad"}
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for each, content in files.items():
                archive.writestr(each, content)
        plan = plan_zip
    else:
        write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
        plan = plan_tar
    with pytest.raises(DataError) as error:
        plan(path, lambda each: each if each == "good.png" else None)
    assert str(error.value) == f"a.{kind}: member {name!r} would leave the target folder; nothing of it was kept"


@given(st.text(alphabet="ab1?./\\:", min_size=1, max_size=12))
@example("1:/x")
@example("::/x")
@example("?:\\x")
@example("::")
@example("./1:x")
@example("a/1:/x")
@example("//host/share/x")
def test_whatever_is_accepted_stays_below_the_folder(name):
    from pathlib import PurePosixPath, PureWindowsPath

    from _archives import refuse_unsafe

    try:
        refuse_unsafe("a.zip", name)
    except DataError:
        return
    parts = name.replace("\\", "/").split("/")
    for end in ("/".join(parts[i:]) for i in range(len(parts)) if parts[i]):  # whatever folders before it are dropped
        assert not ntpath.splitdrive(end)[0]
        for flavour in (PurePosixPath, PureWindowsPath):
            path = flavour("target") / end
            assert path.parts[:1] == ("target",)
            assert ".." not in path.parts


LINKS = [
    (tarfile.SYMTYPE, "/etc", "symbolic link"),
    (tarfile.SYMTYPE, "../..", "symbolic link"),
    (tarfile.SYMTYPE, "inside", "symbolic link"),
    (tarfile.LNKTYPE, "../../x", "hard link"),
    (tarfile.CHRTYPE, "", "device"),
    (tarfile.FIFOTYPE, "", "device"),
]


@pytest.mark.parametrize(("kind", "to", "word"), LINKS)
def test_links_and_devices_in_a_tar(tmp_path, kind, to, word):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a/link")
        info.type, info.linkname = kind, to
        tar.addfile(info)
    with pytest.raises(DataError) as error:
        plan_tar(path, take_all)
    assert str(error.value) == f"a.tar: member 'a/link' is a {word}, no plain file; nothing of it was kept"


def test_links_in_a_zip(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="member 'a/link' is a symbolic link, no plain file"):
        plan_zip(path, take_all)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_what_is_planned_comes_out_whole(tmp_path, kind):
    files = {f"top/{i % 3}/{i}.bin": os.urandom(1000 * i) for i in range(20)}
    path, out = tmp_path / f"a.{kind}", tmp_path / "out"
    out.mkdir()
    if kind == "zip":
        members = plan_zip(write_zip(path, files), lambda name: name.removeprefix("top/") if "/1/" in name else None)
        extract_zip(path, members, out)
    else:
        write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
        members = plan_tar(path, lambda name: name.removeprefix("top/") if "/1/" in name else None)
        extract_tar(path, members, out)
    wanted = {name.removeprefix("top/"): content for name, content in files.items() if "/1/" in name}
    assert {name: (out / name).read_bytes() for name in files_below(out)} == wanted
    assert {member.target: member.size for member in members} == {name: len(each) for name, each in wanted.items()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9])
def test_truncated_archives_are_named(tmp_path, kind, kept):
    files = {f"{i}.bin": os.urandom(5000) for i in range(30)}
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        write_zip(path, files)
    else:
        write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(DataError, match=rf"^a\.{kind} is cut short or damaged \(.*\); fetch it again$") as error:
        (plan_zip if kind == "zip" else plan_tar)(path, take_all)
    assert "\n" not in str(error.value)


def test_a_tar_cut_between_members_is_no_whole_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.bin": b"x" * 512 for i in range(4)})
    path.write_bytes(path.read_bytes()[:3072])  # three members, no end marker
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 3  # the library alone sees nothing wrong
    with pytest.raises(DataError, match=r"a\.tar is cut short or damaged \(it has no end marker\)"):
        plan_tar(path, take_all)


def test_flipped_bits_in_a_zip_are_found_when_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored, so only the CRC can tell
        archive.writestr("a.bin", b"x" * 4000)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip is cut short or damaged \(Bad CRC-32 for file 'a.bin'\)"):
        extract_zip(path, plan_zip(path, take_all), tmp_path)


def test_nothing_of_the_data_set_or_the_same_twice(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x/a.png": b"1", "y/a.png": b"2"})
    with pytest.raises(DataError, match=r"^a.zip holds nothing of this data set: is it the right file\?$"):
        plan_zip(path, lambda _: None)
    with pytest.raises(DataError, match=r"^a.zip holds a.png twice; it is not the published file$"):
        plan_zip(path, lambda name: name[2:])


# --- verified -------------------------------------------------------------------------------------------------------


def test_verify_by_each_algorithm_and_without_any(tmp_path, capsys):
    path = tmp_path / "a.zip"
    path.write_bytes(b"content")
    for algorithm in ("md5", "sha1", "sha256"):
        checksum = f"{algorithm}:{hashlib.new(algorithm, b'content').hexdigest()}"
        verify(path, Archive("a.zip", 7, checksum))
        assert capsys.readouterr().out == f"a.zip: {checksum} as expected\n"
    seen = hashlib.sha256(b"content").hexdigest()
    verify(path, Archive("a.zip"))
    assert capsys.readouterr().out == (
        f"a.zip: no checksum is published; seen sha256:{seen} (to pin it: --sha256 {seen})\n"
    )
    verify(path, Archive("a.zip", 99, "md5:of another file"), pin=seen.upper())  # the user's word stands


def test_verify_says_what_is_wrong(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"content")
    with pytest.raises(DataError) as error:
        verify(path, Archive("a.zip", checksum=f"md5:{'0' * 32}"))
    assert str(error.value) == (
        f"{path} is damaged or another file: expected md5:{'0' * 32}, found md5:9a0364b9e99bb480dd25e1f0284c8555; "
        f"fetch it again"
    )
    with pytest.raises(DataError, match=r"has 7 bytes of 6: it is not the published file; fetch it again$"):
        verify(path, Archive("a.zip", 6))


# --- whole or not at all --------------------------------------------------------------------------------------------


def test_staged_swaps_in_only_what_is_whole(tmp_path):
    target = tmp_path / "set"
    with staged(target) as folder:
        (folder / "a").write_text("first")
        assert not target.exists()
    assert (target / "a").read_text() == "first"

    def stopped():
        with staged(target) as folder:
            (folder / "a").write_text("second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (target / "a").read_text() == "first"
    with staged(target) as folder:
        (folder / "b").write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in target.iterdir()] == ["b"]


def test_recover_undoes_what_a_killed_run_left(tmp_path):
    old, partial, target = tmp_path / ".set.old", tmp_path / ".set.partial", tmp_path / "set"
    for folder in (old, partial):
        folder.mkdir()
        (folder / "a").write_text(folder.name)
    recover(target)  # killed between the two renames: the old one comes back
    assert (target / "a").read_text() == ".set.old"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    old.mkdir()
    recover(target)  # killed after them: the new one stays
    assert (target / "a").read_text() == ".set.old"
    assert not old.exists()


def test_room_counts_blocks_and_looks_at_the_disk_of_a_folder_to_be(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)

    def fake(path):
        asked.append(path)
        return usage._replace(free=1_000_000)

    monkeypatch.setattr(shutil, "disk_usage", fake)
    need_room(tmp_path / "not" / "yet", 1_000_000 - 4096, files=1)
    assert asked == [tmp_path]
    with pytest.raises(DataError) as error:
        need_room(tmp_path / "not" / "yet", 1_000_000 - 4096, files=2)
    assert str(error.value) == (
        f"{tmp_path / 'not' / 'yet'} needs 1.0 MB but its disk has 1.0 MB free: make room, or choose another disk "
        f"with --data-root"
    )


def test_files_below_passes_over_what_starts_with_a_dot(tmp_path):
    for name in ("a/b/c.png", "a/.hidden/d.png", ".e.png", "f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    assert files_below(tmp_path) == {"a/b/c.png": 2, "f.png": 2}


# --- said -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "status", "says"),
    [
        (DataError("what to do"), 2, "error: what to do\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: Permission denied (/x); what was half done is"),
        (KeyboardInterrupt(), 130, "stopped: what was half done is removed"),
    ],
)
def test_how_a_run_ends(capsys, stop, status, says):
    def work():
        raise stop

    assert run(work) == status
    assert capsys.readouterr().err.startswith(says)


def test_sizes_and_tables():
    assert [size(n) for n in (0, 999, 1000, 147_897_477_120, 2e12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "147.9 GB",
        "2.0 TB",
    ]
    assert table("a set", ("split", "images"), [("train", 1_281_167), ("val", 50)]).splitlines() == [
        "a set",
        "split     images",
        "-----  ---------",
        "train  1,281,167",
        "val           50",
    ]


def test_contents_are_read_once_in_order(tmp_path):
    """The big tar is read forwards: no offset is asked for that lies before one already read, headers apart."""
    path = write_tar(tmp_path / "a.tar", {f"{i}.bin": os.urandom(200_000) for i in range(8)})

    class Watched(io.FileIO):
        read_bytes = 0

        def readinto(self, buffer):
            got = super().readinto(buffer)
            Watched.read_bytes += got
            return got

        def read(self, n=-1):
            got = super().read(n)
            Watched.read_bytes += len(got)
            return got

    from _archives import tar_members

    with Watched(path) as file:
        for _, content in tar_members(file, "a.tar"):
            while content.read(1 << 16):
                pass
    assert Watched.read_bytes < 1.05 * path.stat().st_size


def test_miniatures_are_small(tmp_path):
    miniatures.make_imagenet(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000
