import io
import os
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from dnc_lib.data import load
from dnc_lib.data.pictures import open_pictures


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form)
    return buffer.getvalue()


def photo(seed, height=40, width=60, form="JPEG"):
    """An image file of soft blotches."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return encoded(blotches.resize((width, height), Image.Resampling.BICUBIC), form)


@pytest.fixture
def files():
    """Three classes of different size, as ImageNet names them, in a training and a held-out part."""
    counts = {"n01440764": 4, "n01443537": 3, "n01484850": 2}
    names = [f"{label}/{label}_{i}.JPEG" for label, count in counts.items() for i in range(count)]
    return {
        **{f"train/{name}": photo(i) for i, name in enumerate(names)},
        **{f"val/{label}/ILSVRC2012_val_{i}.JPEG": photo(100 + i) for i, label in enumerate(counts)},
    }


def pack(path, files, mode="w"):
    """A tar file of the given files, in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def part(files, name, prefix=""):
    return {
        prefix + path.removeprefix(name + "/"): content for path, content in files.items() if path.startswith(name)
    }


def by_class(files):
    grouped = {}
    for name, content in files.items():
        grouped.setdefault(os.path.dirname(name), {})[os.path.basename(name)] = content
    return grouped


def shards(root, name, files, size=4):
    """WebDataset shards, as its own writer lays them out."""
    classes = sorted({os.path.dirname(path) for path in files})
    members = list(files.items())
    for s in range(0, len(members), size):
        content = {}
        for i, (path, image) in enumerate(members[s : s + size], s):
            content[f"{i:06d}.cls"] = str(classes.index(os.path.dirname(path))).encode()
            content[f"{i:06d}.jpg"] = image
            content[f"{i:06d}.json"] = b"{}"
        pack(root / f"{name}-{s // size:04d}.tar", content)


def pixels(data):
    return [(np.asarray(image).tobytes(), label) for image, label in map(data.read, range(len(data)))]


def test_folders(tree, files):
    root = tree(files)
    train, test = open_pictures(root.name, root.parent)
    assert train.classes == test.classes == ("n01440764", "n01443537", "n01484850")
    assert train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert test.labels.tolist() == [0, 1, 2]
    assert (len(train), train.num_classes, train.indexable) == (9, 3, True)
    assert (train.name, test.name) == ("pets, training", "pets, test")
    image, label = train.read(4)
    assert (image.mode, image.size, label) == ("RGB", (60, 40), 1)
    assert np.array_equal(image, Image.open(root / "train/n01443537/n01443537_0.JPEG"))


def test_the_data_root_of_the_environment(tree, files, monkeypatch):
    root = tree(files)
    monkeypatch.setenv("DNC_DATA", str(root.parent))
    assert len(open_pictures(root.name)[0]) == 9


def test_the_order_is_that_of_the_images_in_memory(tree, grey):
    names = ["b/10.png", "b/2.png", "a/x-1.png", "a/x/1.png", "a/x/0.png", "a/.x/0.png", "a/._1.png", "c/1.gif"]
    root = tree({f"train/{name}": grey(20 * i) for i, name in enumerate(names)} | {"test/a/1.png": grey(0)})
    data, (loaded, _) = open_pictures(root.name, root.parent)[0], load(root.name, root.parent)
    assert data.classes == loaded.classes
    assert torch.equal(data.labels, loaded.labels)
    levels = [data.read(i)[0].getpixel((0, 0))[0] for i in range(len(data))]
    assert levels == loaded.images[:, 0, 0, 0].tolist()


def test_timms_readers_find_the_same(tree, files, tmp_path):
    root = tree(files)
    data = open_pictures(root.name, root.parent)[0]
    for reader in (
        ReaderImageFolder(str(root / "train")),
        ReaderImageInTar(str(pack(tmp_path / "t.tar", part(files, "train")))),
    ):
        assert len(reader) == len(data)
        for i in range(len(data)):
            file, label = reader[i]
            assert (reader.filename(i), int(label)) == (os.fsdecode(data.names[i]), int(data.labels[i]))
            assert np.array_equal(Image.open(file), data.read(i)[0])


def layouts(files, root):
    """The same pictures in all forms."""
    for name in ("train", "val"):
        members = part(files, name)
        pack(root / "tar" / f"{name}.tar", dict(reversed(members.items())))
        pack(root / "dotted" / f"{name}.tar", {f"./{path}": content for path, content in members.items()})
        tars = {
            f"{label}.tar": pack(root / "tars" / name / f"{label}.tar", inside)
            for label, inside in by_class(members).items()
        }
        pack(root / "nested" / f"{name}.tar", {label: path.read_bytes() for label, path in tars.items()})
        shards(root / "shards", name, members)
        shards(root / "named", f"imagenet1k-{'validation' if name == 'val' else name}", members)
    (root / "shards" / "classes.txt").write_text("n01440764\ttench\nn01443537\tgoldfish\nn01484850\n")


@pytest.mark.parametrize("form", ["tar", "dotted", "tars", "nested", "shards", "named", "wds/shards"])
def test_every_form_holds_the_same_pictures(tree, files, tmp_path, form):
    root = tree(files)
    layouts(files, tmp_path)
    for expected, found in zip(open_pictures(root.name, tmp_path), open_pictures(form, tmp_path), strict=True):
        assert found.classes == (("0", "1", "2") if form == "named" else expected.classes)
        assert torch.equal(found.labels, expected.labels)
        assert pixels(found) == pixels(expected)


def test_a_tar_file_has_the_digest_of_its_folder(tree, files, tmp_path):
    root = tree(files)
    layouts(files, tmp_path)
    digests = [open_pictures(form, tmp_path)[0].digest() for form in (root.name, "tar", "nested", "tars")]
    assert len(set(digests)) == 1
    assert len(digests[0]) == 16


def test_what_webdataset_itself_writes(files, tmp_path):
    wds = pytest.importorskip("webdataset")
    for name in ("train", "val"):
        members = part(files, name)
        classes = sorted({os.path.dirname(path) for path in members})
        with (
            warnings.catch_warnings(),
            wds.ShardWriter(str(tmp_path / f"{name}-%04d.tar"), maxcount=4, verbose=0) as sink,
        ):
            for i, (path, image) in enumerate(members.items()):
                sink.write({"__key__": f"{i:06d}", "jpg": image, "cls": classes.index(os.path.dirname(path))})
    data = open_pictures(f"wds/{tmp_path.name}", tmp_path.parent)[0]
    from timm.data.readers.reader_wds import ReaderWds

    reader = ReaderWds(str(tmp_path), split="train-{0000..0002}.tar|9")
    assert pixels(data) == [(np.asarray(image).tobytes(), label) for image, label in reader]


def test_the_digest_follows_names_labels_and_sizes(tree, files):
    root = tree(files)

    def digest():
        return open_pictures(root.name, root.parent)[0].digest()

    first = digest()
    assert digest() == first
    path = root / "train/n01440764/n01440764_0.JPEG"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    longer = digest()
    path.write_bytes(content)
    assert digest() == first
    path.rename(path.with_name("other.JPEG"))
    renamed = digest()
    path.with_name("other.JPEG").rename(root / "train/n01443537/n01440764_0.JPEG")
    moved = digest()
    assert len({first, longer, renamed, moved}) == 4


def test_parts_of_a_data_set(tree, files):
    root = tree(files)
    train = open_pictures(root.name, root.parent)[0]
    some = train.sample(6)
    assert some.labels.bincount().tolist() == [2, 2, 2]
    assert pixels(some) == [pixels(train)[train.names.tolist().index(name)] for name in some.names.tolist()]
    rest, held = train.split(3, seed=1)
    assert held.labels.tolist() == [0, 1, 2]
    assert held.name == "pets, training, held out"
    assert sorted([*rest.names, *held.names]) == sorted(train.names)
    assert rest.digest() != train.digest()
    assert train.subset(torch.tensor([2, 0]), "two").names.tolist() == [train.names[2], train.names[0]]
    for size, message in ((10, "cannot draw 10 of 9 images"), (0, "cannot draw 0 of 9 images")):
        with pytest.raises(ValueError, match=message):
            train.sample(size)
    with pytest.raises(ValueError, match="pets, training: cannot hold out 9 of 9 images"):
        train.split(9)


def test_parts_are_drawn_as_from_images_in_memory(tree, files):
    root = tree(files)
    data, (loaded, _) = open_pictures(root.name, root.parent)[0], load(root.name, root.parent)
    assert torch.equal(data.sample(5, seed=3).labels, loaded.sample(5, seed=3).labels)
    pictures = [np.asarray(data.split(4, seed=3)[1].read(i)[0]) for i in range(4)]
    assert np.array_equal(np.stack(pictures), loaded.split(4, seed=3)[1].images)


def test_channel_statistics(tree):
    half = np.zeros((30, 50, 3), dtype=np.uint8)
    half[:15, :, 0], half[:, :, 2] = 255, 51
    root = tree({"train/a/1.png": half, "train/a/2.png": half, "test/a/1.png": half})
    mean, std = open_pictures(root.name, root.parent)[0].channel_stats()
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.0, 0.2]), atol=0.02, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.5, 0.001, 0.001]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),  # ImageNet has 22 of these
        (encoded(Image.new("L", (8, 8), 77), "JPEG"), (77, 77, 77)),
        (encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG"), (1, 2, 3)),  # and one PNG that is named .JPEG
        (encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("I;16", (8, 8), 257 * 100), "PNG"), (100, 100, 100)),
    ],
)
def test_what_is_named_jpeg_and_is_something_else(tree, content, expected):
    root = tree({"train/a/1.JPEG": content, "test/a/1.JPEG": content})
    image, _ = open_pictures(root.name, root.parent)[0].read(0)
    assert image.mode == "RGB"
    assert image.getpixel((4, 4)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("content", [b"", b"not an image", photo(0)[:400], photo(0)[: len(photo(0)) // 2]])
def test_a_corrupt_image_is_named(tree, tmp_path, content):
    files = {"train/a/1.jpg": photo(0), "train/a/2.jpg": content, "test/a/1.jpg": photo(0)}
    root = tree(files)
    train = open_pictures(root.name, root.parent)[0]
    train.read(0)
    where = rf"{root}/train/a/2\.jpg"
    with pytest.raises(
        ValueError, match=rf"^{where} cannot be read as an image \(.*\); remove or replace it$"
    ) as error:
        train.read(1)
    assert "0x" not in str(error.value)  # no address of a thing in memory
    for name in ("train", "test"):
        pack(tmp_path / "packed" / f"{name}.tar", part(files, name))
    where = rf"{tmp_path}/packed/train\.tar: a/2\.jpg"
    with pytest.raises(ValueError, match=rf"^{where} cannot be read as an image \(.*\); remove or replace it$"):
        open_pictures("packed", tmp_path)[0].read(1)


def test_a_file_that_went_away_is_named(tree, files):
    root = tree(files)
    train = open_pictures(root.name, root.parent)[0]
    (root / "train/n01440764/n01440764_0.JPEG").unlink()
    with pytest.raises(ValueError, match=r"n01440764_0.JPEG cannot be read as an image \(.*No such file"):
        train.read(0)


def test_a_set_travels_to_other_processes(tree, files, tmp_path):
    tree(files)
    layouts(files, tmp_path)
    for form in ("pets", "tar", "shards"):
        data = open_pictures(form, tmp_path)[0]
        assert pixels(pickle.loads(pickle.dumps(data))) == pixels(data)


def test_unlabelled_test_pictures_are_no_held_out_part(tree, files):
    root = tree(files | {"test/ILSVRC2012_test_1.JPEG": photo(1)})
    assert len(open_pictures(root.name, root.parent)[1]) == 3


def test_names_that_are_not_ascii(tree):
    root = tree({"train/köttur/mynd ýsa.jpg": photo(1), "test/köttur/1.jpg": photo(2)})
    train = open_pictures(root.name, root.parent)[0]
    assert train.path(0).endswith("köttur/mynd ýsa.jpg")
    train.read(0)


def test_folders_that_do_not_fit(tree, tmp_path):
    one = {"train/a/1.jpg": photo(1)}

    def opening(files, name):
        tree(files, tmp_path / name)
        return open_pictures(name, tmp_path)

    with pytest.raises(
        FileNotFoundError, match=r"no data set 'imagenet': .*imagenet is not there; put train and val"
    ):
        open_pictures("imagenet", tmp_path)
    with pytest.raises(
        FileNotFoundError, match="one has no part test or val or validation; looked for class folders"
    ):
        opening(one, "one")
    with pytest.raises(
        FileNotFoundError, match=r"two has no part train; looked for class folders NAME/, a file NAME.tar"
    ):
        opening({"val/a/1.jpg": photo(1)}, "two")
    with pytest.raises(ValueError, match=r"three: val has classes that train lacks: b$"):
        opening({**one, "val/a/1.jpg": photo(1), "val/b/1.jpg": photo(1)}, "three")
    with pytest.raises(ValueError, match="four: train has no images for b: put some there or remove it"):
        opening({**one, "train/b/notes.txt": b"", "val/a/1.jpg": photo(1)}, "four")
    with pytest.raises(FileNotFoundError, match=r"no images in val of .*five \(read: "):
        opening({**one, "val/a/notes.txt": b""}, "five")
    with pytest.raises(FileNotFoundError, match=r"one has no part train; looked for shards NAME-0000.tar"):
        open_pictures("wds/one", tmp_path)


def test_tar_files_that_do_not_fit(files, tmp_path):
    def opening(train, name="set"):
        path = pack(tmp_path / name / "train.tar", train)
        pack(tmp_path / name / "val.tar", part(files, "val"))
        return path, lambda: open_pictures(name, tmp_path)

    path, read = opening(part(files, "train"))
    whole = path.read_bytes()  # cut within a picture, or exactly behind one
    for damaged in (whole[: len(whole) // 2], whole[: 1024 + 512 * (len(photo(0)) // 512)], b"no tar file" * 100):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"train.tar cannot be read as an uncompressed tar file \(.*\); fetch it"
        ):
            read()
    pack(path, part(files, "train"), "w:gz")
    with pytest.raises(ValueError, match=r"train.tar cannot be read as an uncompressed tar file"):
        read()
    _, read = opening({"ILSVRC2012_val_1.JPEG": photo(1)}, "flat")
    with pytest.raises(
        ValueError, match=r"train.tar: ILSVRC2012_val_1.JPEG lies in no class folder, so its class is not"
    ):
        read()
    _, read = opening({"n1.tar": b"no tar file" * 100}, "broken")
    with pytest.raises(ValueError, match=r"broken/train.tar cannot be read as an uncompressed tar file"):
        read()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (None, r"train-0000.tar: 0.jpg has no 0.cls beside it, so its class is not known"),
        (b"cat", r"train-0000.tar: 0.cls holds 'cat', which is no class number \(0 or more\)"),
        (b"-1", r"train-0000.tar: 0.cls holds '-1', which is no class number \(0 or more\)"),
        (b"1", r"train has no images for 0: put some there or remove it"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, number, message):
    pack(tmp_path / "set" / "train-0000.tar", {"0.jpg": photo(0)} | ({} if number is None else {"0.cls": number}))
    pack(tmp_path / "set" / "val-0000.tar", {"0.jpg": photo(0), "0.cls": b"0"})
    with pytest.raises(ValueError, match=message):
        open_pictures("set", tmp_path)


def test_class_numbers_beyond_the_list_of_names(tmp_path):
    pack(tmp_path / "set" / "train-0000.tar", {"0.jpg": photo(0), "0.cls": b"2"})
    (tmp_path / "set" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"0.cls holds '2', which is no class number \(0 to 1\)"):
        open_pictures("set", tmp_path)
