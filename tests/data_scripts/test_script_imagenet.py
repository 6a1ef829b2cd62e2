import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import imagenet
import miniatures
import pytest
from _disk import files_below
from miniatures import SCRIPTS, VAL_IDS, WNIDS, inner_tar, make_imagenet, train_images, val_images

HERE = Path(__file__).parent


def expected() -> dict[str, bytes]:
    """Every image, by its place."""
    files = {f"train/{wnid}/{name}": each for wnid, images in train_images().items() for name, each in images.items()}
    for (name, content), label in zip(val_images().items(), VAL_IDS, strict=True):
        files[f"val/{WNIDS[label - 1]}/{name}"] = content
    return files


def images_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder) if name.endswith(".JPEG")}


def prepare(archives, *options, spec=None) -> int:
    return imagenet.main(["--archives", str(archives), *options], spec or miniatures.imagenet_spec(archives))


def test_class_folders_byte_for_byte(root, archives, capsys):
    make_imagenet(archives)
    assert prepare(archives) == 0
    assert images_in(root / "imagenet") == expected()
    assert (root / "imagenet" / "classes.txt").read_text().splitlines() == [
        "n01440764\ttench, Tinca tinca",
        "n02100735\tEnglish setter",
        "n02119789\tkit fox, Vulpes macrotis",
        "n15075141\ttoilet tissue, toilet paper",
    ]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert lines[0] == ["split", "images", "classes", "fewest", "most", "size"]
    assert lines[2][:5] == ["train", "12", "4", "3", "3"]
    assert lines[3][:5] == ["val", "8", "4", "2", "2"]
    assert sorted(path.name for path in (root / "imagenet").iterdir()) == [
        "classes.txt",
        "prepared.json",
        "train",
        "val",
    ]


def test_the_second_run_does_nothing(root, archives, capsys):
    make_imagenet(archives)
    assert prepare(archives) == 0
    before = {path: path.stat().st_mtime_ns for path in (root / "imagenet").rglob("*")}
    spec = miniatures.imagenet_spec(archives)
    shutil.rmtree(archives)  # not even the archives are wanted
    capsys.readouterr()
    assert prepare(archives, spec=spec) == 0
    assert "is whole, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (root / "imagenet").rglob("*")} == before


DRIVER = """
import os, signal, sys
sys.path[:0] = [{here!r}]
import miniatures, _imagenet, imagenet
calls, copy = 0, _imagenet.copy

def interrupted(source, target, member):
    global calls
    calls += 1
    if calls == {moment}:
        target.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.{signal})
    copy(source, target, member)

_imagenet.copy = interrupted
sys.exit(imagenet.main(["--archives", {archives!r}], miniatures.imagenet_spec(miniatures.Path({archives!r}))))
"""


def interrupted(archives, moment, signal):
    code = DRIVER.format(here=str(HERE), archives=str(archives), moment=moment, signal=signal)
    return subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("moment", "whole"), [(8, 2), (17, 4)])  # in the third class; in the validation images
def test_killed_in_the_middle_the_next_run_ends_whole(root, archives, moment, whole):
    make_imagenet(archives)
    done = interrupted(archives, moment, "SIGKILL")
    assert done.returncode == -9
    folder = root / "imagenet"
    classes = {path: path.stat().st_ino for path in (folder / "train").iterdir() if not path.name.startswith(".")}
    assert len(classes) == whole
    assert list(folder.rglob(".*.partial"))  # kill -9 leaves it no time to clean up
    assert prepare(archives) == 0
    assert images_in(folder) == expected()
    assert not [path for path in folder.rglob(".*") if path.is_dir()]
    assert {path: path.stat().st_ino for path in classes} == classes  # what was whole was passed over


def test_terminated_it_cleans_up_and_says_so(root, archives):
    make_imagenet(archives)
    done = interrupted(archives, 8, "SIGTERM")
    assert done.returncode == 143
    assert done.stderr.strip() == (
        "stopped: what was half done is removed, what was whole stays; run it again to go on"
    )
    assert not list((root / "imagenet").rglob(".*.partial"))
    assert len(list((root / "imagenet" / "train").iterdir())) == 2


def test_archives_are_verified_once(root, archives, capsys):
    make_imagenet(archives)
    assert prepare(archives) == 0
    shutil.rmtree(root / "imagenet" / "train" / WNIDS[2])
    capsys.readouterr()
    assert prepare(archives) == 0
    out = capsys.readouterr().out
    assert "as expected" not in out
    assert images_in(root / "imagenet") == expected()
    os.utime(archives / imagenet.VAL.name, (1, 1))  # another file now, for all that is known
    shutil.rmtree(root / "imagenet" / "val")
    assert prepare(archives) == 0
    assert capsys.readouterr().out.count("as expected") == 1


def test_a_tree_unpacked_by_other_means_is_taken_over(root, archives):
    make_imagenet(archives)
    for name, content in expected().items():
        path = root / "imagenet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = {path: path.stat().st_ino for path in (root / "imagenet").rglob("*.JPEG")}
    assert prepare(archives) == 0
    assert {path: path.stat().st_ino for path in (root / "imagenet").rglob("*.JPEG")} == before
    assert set(json.loads((root / "imagenet" / "prepared.json").read_text())["train"]) == set(WNIDS)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_tree_that_differs_is_replaced_only_when_asked(root, archives, capsys, split):
    make_imagenet(archives)
    mine = root / "imagenet" / split / WNIDS[0] / "my own.JPEG"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert prepare(archives) == 2
    error = capsys.readouterr().err
    assert error.endswith("to make it anew and replace it, add --replace\n")
    assert f"is not what ILSVRC2012_img_{split}.tar" in error
    assert mine.read_bytes() == b"mine"
    assert prepare(archives, "--replace") == 0
    assert images_in(root / "imagenet") == expected()


def test_a_pinned_archive_does_not_pass_for_the_published_one_later(root, archives, capsys):
    spec = make_imagenet(archives)
    path = archives / imagenet.VAL.name
    path.write_bytes(path.read_bytes() + bytes(512))  # another file, with the same images
    pin = hashlib.sha256(path.read_bytes()).hexdigest()
    assert prepare(archives, f"--sha256={imagenet.VAL.name}={pin}", spec=spec) == 0
    shutil.rmtree(root / "imagenet" / "val")
    capsys.readouterr()
    assert prepare(archives, spec=spec) == 2
    assert f"{path} has {path.stat().st_size:,} bytes of {spec.val.size:,}" in capsys.readouterr().err


def test_only_validation(root, archives, capsys):
    spec = make_imagenet(archives)
    (archives / imagenet.TRAIN.name).unlink()
    assert prepare(archives, "--only", "val", spec=spec) == 0
    assert {name for name in images_in(root / "imagenet")} == {name for name in expected() if name.startswith("val")}
    assert imagenet.main(["--check", "--only", "val"], spec) == 0
    assert imagenet.main(["--check"], spec) == 2
    assert capsys.readouterr().err == (
        f"error: {root / 'imagenet' / 'train'} is not there: run this script without --check\n"
    )


# --- check ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda path: path.unlink(),
            r"train/n01440764 has 2 files of [\d,]+ bytes, not 3 of [\d,]+: run this script",
        ),
        (lambda path: path.write_bytes(b""), r"n01440764_10.JPEG is empty: run this script with --replace to make"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            r"train/n01440764 has 3 files of [\d,]+ bytes, not 3",
        ),
        (lambda path: shutil.rmtree(path.parent), r"train/n01440764 is missing: run this script without --check to"),
    ],
)
def test_check_finds_what_is_wrong_and_replace_mends_it(root, archives, capsys, harm, message):
    spec = make_imagenet(archives)
    assert prepare(archives) == 0
    assert imagenet.main(["--check"], spec) == 0
    harm(root / "imagenet" / "train" / "n01440764" / "n01440764_10.JPEG")
    capsys.readouterr()
    assert imagenet.main(["--check"], spec) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert prepare(archives, "--replace") == 0
    assert images_in(root / "imagenet") == expected()


def test_check_of_a_tree_without_notes_counts(root, archives, capsys):
    spec = make_imagenet(archives)
    assert prepare(archives) == 0
    (root / "imagenet" / "prepared.json").unlink()
    assert imagenet.main(["--check"], spec) == 0
    next((root / "imagenet" / "val" / WNIDS[0]).iterdir()).unlink()
    assert imagenet.main(["--check"], spec) == 2
    assert "val has 7 images of 4 classes, not 8 of 4" in capsys.readouterr().err


def test_damaged_notes(root, archives, capsys):
    make_imagenet(archives)
    (root / "imagenet").mkdir(parents=True)
    (root / "imagenet" / "prepared.json").write_text('{"train": {}')
    assert prepare(archives) == 2
    assert "prepared.json is damaged" in capsys.readouterr().err


# --- bad archives ---------------------------------------------------------------------------------------------------


def refused(root, archives, capsys, spec=None) -> str:
    """The one line of a run that is refused, which leaves no image and nothing half done."""
    assert prepare(archives, spec=spec) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(root.rglob(".*.partial"))
    return error


def test_missing_archives_are_named_with_where_to_get_them(root, archives, capsys):
    spec = make_imagenet(archives)
    for archive in (imagenet.TRAIN, imagenet.VAL):
        (archives / archive.name).unlink()
    assert refused(root, archives, capsys, spec) == (
        f"error: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar not found in {archives}: register at "
        f"https://image-net.org/download.php, download it there (ILSVRC 2012), and say where it lies with "
        f"--archives\n"
    )


def test_a_download_cut_short_is_named_before_anything_is_read(root, archives, capsys):
    spec = make_imagenet(archives)
    path = archives / imagenet.TRAIN.name
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:5000])
    assert refused(root, archives, capsys, spec) == (
        f"error: {path} has 5,000 bytes of {whole:,}: the download was cut short; fetch it again\n"
    )


def test_a_wrong_checksum_says_both(root, archives, capsys):
    spec = make_imagenet(archives)
    path = archives / imagenet.VAL.name
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    error = refused(root, archives, capsys, spec)
    assert f"{path} is damaged or another file: expected {spec.val.checksum}, found md5:" in error
    assert error.endswith("; fetch it again\n")
    assert not (root / "imagenet" / "val").exists()


@pytest.mark.parametrize("kept", [0.1, 0.4, 0.7])
def test_a_truncated_train_tar_is_named(root, archives, capsys, kept):
    make_imagenet(archives)
    path = archives / imagenet.TRAIN.name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert refused(root, archives, capsys).startswith("error: ILSVRC2012_img_train.tar is cut short or damaged (")


def test_a_train_tar_that_ends_between_two_classes_is_named(root, archives, capsys):
    make_imagenet(archives)
    path = archives / imagenet.TRAIN.name
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:third])
    error = refused(root, archives, capsys)
    assert error == "error: ILSVRC2012_img_train.tar is cut short or damaged (it has no end marker); fetch it again\n"


@pytest.mark.parametrize("between", [False, True])
def test_a_truncated_inner_tar_is_named_and_leaves_no_class(root, archives, capsys, between):
    made = {f"{wnid}.tar": inner_tar(images) for wnid, images in sorted(train_images().items())}
    with tarfile.open(fileobj=io.BytesIO(made["n02100735.tar"])) as tar:
        last = tar.getmembers()[2].offset
    made["n02100735.tar"] = made["n02100735.tar"][: last if between else last + 600]
    make_imagenet(archives, train=made)
    error = refused(root, archives, capsys)
    assert error.startswith("error: ILSVRC2012_img_train.tar, n02100735.tar is cut short or damaged (")
    assert [path.name for path in (root / "imagenet" / "train").iterdir()] == ["n01440764"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../n01440764_1.JPEG", "would leave the target folder"),
        ("/etc/n01440764_1.JPEG", "would leave the target folder"),
        ("./1:n01440764_1.JPEG", "would leave the target folder"),
        ("deep/n01440764_1.JPEG", "which is no image of ImageNet"),
        ("n01440764_1.exe", "which is no image of ImageNet"),
    ],
)
def test_a_stranger_in_an_inner_tar(root, archives, capsys, name, message):
    images = train_images()
    images["n01440764"][name] = b"bad"
    make_imagenet(archives, train={f"{wnid}.tar": inner_tar(each) for wnid, each in sorted(images.items())})
    error = refused(root, archives, capsys)
    assert "ILSVRC2012_img_train.tar, n01440764.tar" in error
    assert message in error
    assert not list((root / "imagenet" / "train").iterdir())


def test_classes_that_the_devkit_does_not_know_or_that_lack(root, archives, capsys):
    made = {f"{wnid}.tar": inner_tar(images) for wnid, images in sorted(train_images().items())}
    make_imagenet(archives, train={**made, "n99999999.tar": inner_tar({"n99999999_1.JPEG": b"x"})})
    assert refused(root, archives, capsys) == (
        "error: ILSVRC2012_img_train.tar holds n99999999.tar, which is no class of the devkit: it is not the "
        "published file\n"
    )
    del made["n02100735.tar"]
    make_imagenet(archives, train=made)
    assert refused(root, archives, capsys) == (
        "error: ILSVRC2012_img_train.tar lacks 1 classes, n02100735 first: it is not the published file\n"
    )


def test_validation_images_without_a_label_or_missing(root, archives, capsys):
    made = val_images()
    make_imagenet(archives, val={**made, "ILSVRC2012_val_00000009.JPEG": b"x"})
    assert "holds ILSVRC2012_val_00000009.JPEG, for which the devkit has no label" in refused(root, archives, capsys)
    del made["ILSVRC2012_val_00000003.JPEG"]
    make_imagenet(archives, val=made)
    assert "ILSVRC2012_img_val.tar holds 7 of 8 images" in refused(root, archives, capsys)
    assert not (root / "imagenet" / "val").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data/meta.mat": None}, " holds no data/meta.mat: is it the right file?"),
        ({"data/meta.mat": b"MATLAB? no"}, ", meta.mat cannot be read ("),
        (
            {"data/ILSVRC2012_validation_ground_truth.txt": b"1\n7\n"},
            " is not in the form of the 2012 devkit (KeyError",
        ),
        (
            {"data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n"},
            " has 4 classes and 2 validation labels, not 4 and",
        ),
    ],
)
def test_a_devkit_in_another_form(root, archives, capsys, change, message):
    files = miniatures.devkit_files()
    for name, content in change.items():
        del files[f"ILSVRC2012_devkit_t12/{name}"]
        if content is not None:
            files[f"ILSVRC2012_devkit_t12/{name}"] = content
    make_imagenet(archives, devkit=files)
    assert f"ILSVRC2012_devkit_t12.tar.gz{message}" in refused(root, archives, capsys)


@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_a_truncated_devkit(root, archives, capsys, kept):
    make_imagenet(archives)
    path = archives / imagenet.DEVKIT.name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "ILSVRC2012_devkit_t12.tar.gz is cut short or damaged (" in refused(root, archives, capsys)


def test_no_room(root, archives, capsys, monkeypatch):
    make_imagenet(archives)
    usage = shutil.disk_usage(archives)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3000))
    error = refused(root, archives, capsys)
    assert error.startswith(f"error: {root / 'imagenet' / 'train'} needs ")
    assert error.endswith("its disk has 3.0 kB free: make room, or choose another disk with --data-root\n")
    assert not (root / "imagenet" / "train").exists()


def test_a_disk_that_fills_up_leaves_nothing_half_done(root, archives, capsys, monkeypatch):
    import errno

    import _imagenet

    make_imagenet(archives)
    calls, copy = [], _imagenet.copy

    def full(source, target, member):
        calls.append(member)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copy(source, target, member)

    with monkeypatch.context() as patch:
        patch.setattr(_imagenet, "copy", full)
        error = refused(root, archives, capsys)
    assert error.startswith("error: No space left on device (")
    assert error.endswith("what was half done is removed\n")
    assert prepare(archives) == 0
    assert images_in(root / "imagenet") == expected()


def test_one_run_at_a_time(root, archives, capsys):
    from _disk import locked

    make_imagenet(archives)
    with locked(root, "imagenet"):
        assert refused(root, archives, capsys) == (
            f"error: another run is preparing imagenet in {root}: wait for it, or stop it\n"
        )
    assert prepare(archives) == 0


def test_the_script_itself_runs_and_explains_itself(archives):
    done = subprocess.run([sys.executable, SCRIPTS / "imagenet.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "ILSVRC2012_img_train.tar (147.9 GB)" in done.stdout
