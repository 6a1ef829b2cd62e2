import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnc_lib.data import data_root
from dnc_lib.data.scene_layouts import CAMVID, CITYSCAPES, UNKNOWN, value_table
from dnc_lib.data.scenes import Scenes, open_scenes
from dnc_lib.metrics import IGNORED


@pytest.fixture
def write(tree, tmp_path):
    """Writes files below the data root: ``write("camvid", {"train/1.png": array, ...})`` gives the data root."""

    def at(dataset, files):
        tree(files, tmp_path / dataset)
        return tmp_path

    return at


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The data scripts' miniatures, and a way to lay one out: ``scripts.prepare("camvid")`` gives the data root."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "data_scripts"))
    import miniatures

    archives = tmp_path / "archives"
    archives.mkdir()
    names = "Idx\tRatio\tTrain\tVal\tName\n" + "".join(
        f"{i} \t0.1\t9\t1\tthing {i}, any {i} \n" for i in range(1, 151)
    )
    object_info = {"ADEChallengeData2016/objectInfo150.txt": names.encode()}

    class Scripts:
        def prepare(self, name):
            make = {
                "camvid": miniatures.make_camvid,
                "ade20k": lambda folder: miniatures.make_ade20k(folder, miniatures.ade20k_files() | object_info),
                "cityscapes": miniatures.make_cityscapes,
                "coco_stuff10k": miniatures.make_coco_stuff,
            }[name]
            script = sys.modules[{"coco_stuff10k": "coco_stuff"}.get(name, name)]
            root = tmp_path / "data"
            assert script.main(["--archives", str(archives), "--data-root", str(root)], make(archives)) == 0
            return root

    return Scripts()


def noise(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def numbers(*values, height=6, width=8):
    """A mask (H, W) of these values in turn."""
    return np.resize(np.array(values, dtype=np.uint8), (height, width))


def own(count=2, classes="cat\ndog\n", held_out="test"):
    """The files of someone's own data set."""
    files = {"classes.txt": classes.encode()}
    for part in ("train", held_out):
        for i in range(count):
            files[f"images/{part}/{i}.png"] = noise(seed=i)
            files[f"masks/{part}/{i}.png"] = numbers(0, 1, 255)
    return files


def files_of(data):
    return [(image.name, mask.name) for image, mask in zip(data.images, data.masks, strict=True)]


def fails(error, says, call, *args):
    """That ``call`` raises ``error`` with exactly this message."""
    with pytest.raises(error, match=f"^{re.escape(says)}$"):
        call(*args)


# --- the published data sets, as their scripts lay them out ---------------------------------------------------------


def test_camvid(scripts):
    parts = open_scenes("camvid", scripts.prepare("camvid"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "validation": 2, "test": 1}
    train = parts["train"]
    assert train.classes == (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    assert [part.name for part in parts.values()] == ["camvid, training", "camvid, validation", "camvid, test"]
    image, mask = train.read(1)
    assert (image.mode, image.size, mask.dtype) == ("RGB", (12, 8), np.uint8)
    assert np.array_equal(mask, np.resize([*range(11), IGNORED], (8, 12)))
    assert train.colours.tolist() == [list(colour) for colour in CAMVID.values()]
    assert (train.indexable, train.num_classes) == (True, 11)


def test_ade20k(scripts):
    parts = open_scenes("ade20k", scripts.prepare("ade20k"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "test": 2}
    assert parts["train"].classes == tuple(f"thing {i}" for i in range(1, 151))
    _, mask = parts["test"].read(0)
    assert np.array_equal(mask, np.resize([IGNORED, *range(150)], (10, 16)))
    assert parts["train"].colours is None


def test_cityscapes(scripts):
    root = scripts.prepare("cityscapes")
    parts = open_scenes("cityscapes", root)
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "test": 2}
    train = parts["train"]
    assert (train.num_classes, train.classes[0], train.classes[18]) == (19, "road", "bicycle")
    assert train.colours.shape == (19, 3)
    assert {path.parent.name for path in train.images} == {"aachen", "bochum"}
    by_train_ids = [part.read(i)[1] for part in parts.values() for i in range(len(part))]
    assert set(np.unique(by_train_ids[0])) == {*range(19), IGNORED}
    for path in root.rglob("*_labelTrainIds.png"):  # as they come from the publisher there are none
        path.unlink()
    parts = open_scenes("cityscapes", root)
    by_label_ids = [part.read(i)[1] for part in parts.values() for i in range(len(part))]
    assert all(np.array_equal(one, other) for one, other in zip(by_train_ids, by_label_ids, strict=True))
    assert parts["train"].masks[0].name.endswith("_gtFine_labelIds.png")


def test_the_classes_of_cityscapes_are_those_of_its_script(scripts):
    import cityscapes

    assert {name: label for name, (label, _) in CITYSCAPES.items()} == cityscapes.CLASSES
    assert list(CITYSCAPES) == list(cityscapes.CLASSES)


def test_coco_stuff10k(scripts):
    parts = open_scenes("coco_stuff10k", scripts.prepare("coco_stuff10k"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "test": 2}
    assert parts["train"].num_classes == 171
    assert (parts["train"].classes[0], parts["train"].classes[170]) == ("person", "wood")
    _, mask = parts["test"].read(1)
    assert np.array_equal(mask, np.resize([IGNORED, *range(171)], (10, 24)))


def test_camvid_as_it_is_here():
    """The true data set: 701 scenes of 480x360, all of whose labels are known."""
    if not (data_root() / "camvid").is_dir():
        pytest.skip(f"camvid not found under {data_root()} (set DNC_DATA to where it is)")
    parts = open_scenes("camvid")
    assert {name: len(part) for name, part in parts.items()} == {"train": 367, "validation": 101, "test": 233}
    seen = np.zeros(256, dtype=np.int64)
    for part in parts.values():
        for i in range(0, len(part), 40):
            image, mask = part.read(i)
            assert (image.size, mask.shape) == ((480, 360), (360, 480))
            seen += np.bincount(mask.ravel(), minlength=256)
    assert (seen[:11] > 0).all()
    assert seen[11:IGNORED].sum() == 0
    assert 0.2 < seen[3] / seen.sum() < 0.4  # much road


# --- one's own ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_ones_own(write, held_out):
    parts = open_scenes("pets", write("pets", own(3, held_out=held_out)))
    assert list(parts) == ["train", "test"]
    assert parts["train"].classes == ("cat", "dog")
    assert parts["test"].name == "pets, test"
    image, mask = parts["train"].read(2)
    assert np.array_equal(np.asarray(image), noise(seed=2))
    assert np.array_equal(mask, numbers(0, 1, IGNORED))
    assert files_of(parts["train"]) == [("0.png", "0.png"), ("1.png", "1.png"), ("2.png", "2.png")]
    assert parts["train"].path(1) == str(parts["train"].images[1])


def test_val_beside_test_is_for_validation(write):
    files = own() | {name.replace("test", "val"): content for name, content in own(1).items()}
    parts = open_scenes("pets", write("pets", files))
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "test": 2, "validation": 1}
    assert parts["validation"].images[0].parent.name == "val"


def test_images_of_any_form_in_folders_of_their_own_with_masks_of_a_palette(write):
    palette = Image.fromarray(numbers(0, 1, 255))
    palette.putpalette([200, 0, 0, 0, 255, 0, *[7] * 762])
    assert palette.mode == "P"
    files = own(1) | {
        "images/train/b/two.JPG": noise(),
        "masks/train/b/two.png": palette,
        "images/train/a/one.webp": Image.fromarray(noise()).convert("L"),
        "masks/train/a/one.png": numbers(1),
        "images/train/.trash/x.png": noise(),
        "images/train/._0.png": b"not an image",
        "masks/train/notes.txt": b"hello",
    }
    train = open_scenes("pets", write("pets", files))["train"]
    assert [path.name for path in train.images] == ["0.png", "one.webp", "two.JPG"]
    assert np.array_equal(train.read(2)[1], numbers(0, 1, IGNORED))
    image, _ = train.read(1)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_a_mask_of_one_bit_holds_the_numbers_0_and_1(write):
    files = own(1) | {"masks/train/0.png": Image.fromarray(numbers(0, 1).astype(bool))}
    assert np.array_equal(open_scenes("pets", write("pets", files))["train"].read(0)[1], numbers(0, 1))


def test_a_name_ends_at_a_tab(write):
    files = own() | {"classes.txt": b"cat\tFelis catus\n  dog \n\n"}
    assert open_scenes("pets", write("pets", files))["train"].classes == ("cat", "dog")


# --- parts, samples, digests ----------------------------------------------------------------------------------------


def test_subsets_samples_and_splits(write):
    train = open_scenes("pets", write("pets", own(20)))["train"]
    some = train.subset(torch.tensor([7, 2]), "two")
    assert (some.name, [path.stem for path in some.images], some.classes) == ("two", ["15", "10"], train.classes)
    assert train.subset([0]).name == "pets, training"
    drawn = train.sample(8, seed=1)
    assert len(set(drawn.images)) == 8
    assert drawn.images == tuple(sorted(drawn.images))
    assert drawn.images == train.sample(8, seed=1).images != train.sample(8, seed=2).images
    rest, held = train.split(5)
    assert (len(rest), len(held), held.name) == (15, 5, "pets, training, held out")
    assert sorted(rest.images + held.images) == sorted(train.images)
    assert all(image.stem == mask.stem for image, mask in zip(held.images, held.masks, strict=True))
    fails(ValueError, "pets, training: cannot draw 21 of 20 images", train.sample, 21)
    fails(ValueError, "pets, training: cannot hold out 20 of 20 images", train.split, 20)


def test_a_digest_tells_content_apart_and_not_places(write, tmp_path):
    first = open_scenes("pets", write("pets", own(3)))["train"]
    again = open_scenes("elsewhere/pets", write("elsewhere/pets", own(3)))["train"]
    assert first.digest() == again.digest()
    assert first.subset([1, 0, 2]).digest() == first.digest()
    changed = [
        first.subset([0, 1]),
        open_scenes("more", write("more", own(3) | {"masks/train/1.png": numbers(*range(2), height=6)}))["train"],
        open_scenes("other", write("other", own(3, classes="cat\nowl\n")))["train"],
    ]
    assert len({data.digest() for data in [first, *changed]}) == 4
    assert len(first.digest()) == 16


def test_channel_stats_are_those_of_the_pixels(write):
    colours = np.array([[10, 100, 200], [50, 60, 70], [0, 0, 255]], dtype=np.uint8)
    files = own(3)
    for i, colour in enumerate(colours):
        files[f"images/train/{i}.png"] = np.full((6, 8, 3), colour, dtype=np.uint8)
    mean, std = open_scenes("pets", write("pets", files))["train"].channel_stats()
    np.testing.assert_allclose(mean, colours.mean(0) / 255, atol=1e-6)
    np.testing.assert_allclose(std, colours.std(0) / 255, atol=1e-5)


def test_a_table_of_values():
    table = value_table([7, 3], [0, 7, 9])
    assert (table[7], table[3], table[0], table[9], table[1]) == (0, 1, IGNORED, IGNORED, UNKNOWN)
    assert (table.shape, (table == UNKNOWN).sum()) == ((256,), 252)


# --- bad input ------------------------------------------------------------------------------------------------------


def read_after(write, changes):
    """What reading the training scene of a changed data set gives."""
    root = write("pets", own(1) | changes)
    return root / "pets", lambda: open_scenes("pets", root)["train"].read(0)


def test_a_mask_of_another_size(write):
    where, read = read_after(write, {"masks/train/0.png": numbers(0, 1, height=5)})
    fails(
        ValueError,
        f"{where}/masks/train/0.png is 8x5 but its image {where}/images/train/0.png is 8x6: bring both to one size",
        read,
    )


def test_unknown_numbers_are_counted(write):
    where, read = read_after(write, {"masks/train/0.png": numbers(0, 1, 9, 200)})
    fails(
        ValueError,
        f"{where}/masks/train/0.png has numbers that stand for nothing in pets, training: 9 (12 pixels), "
        f"200 (12 pixels); classes are 0, 1, no class is 255",
        read,
    )
    where, read = read_after(write, {"masks/train/0.png": numbers(*range(2, 10))})
    with pytest.raises(ValueError, match=r"training: 2 \(6 pixels\), .*, 6 \(6 pixels\), \.\.\.; classes are 0, 1"):
        read()


def test_a_mask_that_is_a_picture(write):
    for content, has in [
        (noise(), "3 channels (RGB)"),
        (Image.fromarray(noise()).convert("RGBA"), "4 channels (RGBA)"),
        (Image.fromarray(numbers(0, 1).astype(np.uint16)), "numbers of more than 8 bits (I;16)"),
    ]:
        where, read = read_after(write, {"masks/train/0.png": content})
        fails(
            ValueError,
            f"{where}/masks/train/0.png has {has}, but a mask has one number of 8 bits a pixel, its class: save it "
            f"as a grey or palette PNG file",
            read,
        )


@pytest.mark.parametrize("name", ["images/train/0.png", "masks/train/0.png"])
def test_files_that_cannot_be_read(write, name):
    png = io.BytesIO()
    Image.fromarray(noise(90, 90)[..., 0]).save(png, "PNG")
    for content in (b"", b"no image", png.getvalue()[:2000]):
        where, read = read_after(write, {name: content})
        says = f"^{re.escape(str(where / name))} cannot be read as an image .*; remove or replace it$"
        with pytest.raises(ValueError, match=says):
            read()


def test_an_image_without_a_mask_and_a_mask_without_an_image(write):
    root = write("pets", own(3))
    pets = root / "pets"
    (pets / "masks/train/1.png").unlink()
    says = f"{pets}/images/train/1.png has no mask: {pets}/masks/train/1.png is missing"
    fails(FileNotFoundError, says, open_scenes, "pets", root)
    (pets / "masks/train/2.png").unlink()
    fails(FileNotFoundError, says + " (and 1 more like it)", open_scenes, "pets", root)
    for i in (1, 2):
        (pets / f"images/train/{i}.png").unlink()
    (pets / "images/test/0.png").unlink()
    says = f"{pets}/masks/test/0.png has no image: nothing called 0 is in {pets}/images/test"
    fails(FileNotFoundError, says, open_scenes, "pets", root)


def test_two_images_of_one_name(write):
    root = write("pets", own() | {"images/train/1.jpg": noise()})
    pets = root / "pets/images/train"
    says = f"{pets}/1.jpg and {pets}/1.png have one name: rename or remove one of them"
    fails(ValueError, says, open_scenes, "pets", root)


def test_folders_that_are_missing_or_empty(write, tmp_path):
    root = write("pets", own(1))
    (root / "pets/masks/test/0.png").unlink()
    says = f"{root}/pets/masks/test is empty: no file there ends in .png"
    fails(FileNotFoundError, says, open_scenes, "pets", root)
    (root / "pets/masks/test").rmdir()
    fails(FileNotFoundError, f"the folder {root}/pets/masks/test is missing", open_scenes, "pets", root)
    needs = "images/{train,test}/, masks/{train,test}/ and classes.txt"
    says = f"{root}/toys is no data set of scenes: it needs {needs}"
    (root / "toys").mkdir()
    fails(FileNotFoundError, says, open_scenes, "toys", root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names 0 classes; it must be 1 to 255"),
        ("\n".join(map(str, range(256))), "names 256 classes; it must be 1 to 255"),
        ("cat\n\ndog\n", "line 2 is empty; each line names a class"),
        ("cat\ndog\ncat\n", "names 'cat' twice"),
    ],
)
def test_bad_names(write, text, says):
    root = write("pets", own(1, classes=text))
    with pytest.raises(ValueError, match=f"^{re.escape(str(root / 'pets/classes.txt'))}:? {re.escape(says)}$"):
        open_scenes("pets", root)


def test_names_that_are_missing_or_no_text(write):
    root = write("pets", own(1) | {"classes.txt": b"caf\xe9\n"})
    path = root / "pets/classes.txt"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is no text in UTF-8 .*; save it as such$"):
        open_scenes("pets", root)
    path.unlink()
    fails(FileNotFoundError, f"{path} is missing: it names the classes", open_scenes, "pets", root)


def test_bad_names_of_ade20k(scripts):
    root = scripts.prepare("ade20k")
    path = root / "ade20k/objectInfo150.txt"
    path.write_text("Idx\tRatio\tName\n1\t0.1\twall\n3\t0.2\tsky\n")
    says = f"{path}: line 3 should begin with 2 and a tab, and end with a name"
    fails(ValueError, says, open_scenes, "ade20k", root)


def test_bad_lists_of_coco_stuff10k(scripts):
    root = scripts.prepare("coco_stuff10k")
    folder = root / "coco_stuff10k"
    missing, listing = folder / "annotations/COCO_train2014_000000000113.png", folder / "imageLists/train.txt"
    missing.unlink()
    fails(FileNotFoundError, f"{missing} is missing, but {listing} names it", open_scenes, "coco_stuff10k", root)
    for stray in ("../images/COCO_train2014_000000000113", "/COCO", "1:COCO", "a\\COCO"):
        listing.write_text(f"{stray}\n")
        says = f"{listing} names {stray!r}: it should name images of {folder / 'images'}, without a path"
        fails(ValueError, says, open_scenes, "coco_stuff10k", root)
    listing.write_text("\n")
    says = f"{listing} is empty: it should name images, one a line"
    fails(ValueError, says, open_scenes, "coco_stuff10k", root)
    listing.unlink()
    says = f"{listing} is missing: it says which images the part has"
    fails(FileNotFoundError, says, open_scenes, "coco_stuff10k", root)


@pytest.mark.parametrize(("name", "script"), [("camvid", "camvid"), ("coco_stuff10k", "coco_stuff")])
def test_a_data_set_that_is_not_at_hand(tmp_path, name, script):
    says = (
        f"{name} not found: there is no {tmp_path / name}. Say where it is with --data-root or DNC_DATA, or prepare "
        f"it: python data_scripts/{script}.py"
    )
    fails(FileNotFoundError, says, open_scenes, name, tmp_path)
    assert (Path(__file__).resolve().parents[2] / "data_scripts" / f"{script}.py").is_file()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("camvids", " Did you mean camvid?"), ("cityscape", " Did you mean cityscapes?"), ("zebra", ""), ("", "")],
)
def test_an_unknown_data_set(tmp_path, name, hint):
    says = (
        f"unknown data set of scenes {name!r}.{hint} Known: ade20k, camvid, cityscapes, coco_stuff10k, digit_scenes, "
        f"or a folder with images/{{train,test}}/, masks/{{train,test}}/ and classes.txt at {tmp_path / name}"
    )
    fails(ValueError, says, open_scenes, name, tmp_path)


def test_images_and_masks_that_do_not_match_in_number():
    some = (Path("a.png"),)
    fails(ValueError, "mine: 1 images but 0 masks", Scenes, some, (), ("cat",), "mine", value_table([0]))
    fails(ValueError, "mine: no images", Scenes, (), (), ("cat",), "mine", value_table([0]))
