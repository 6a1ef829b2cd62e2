import io

import numpy as np
import pytest
from PIL import Image

from dnc_lib.data import load


def read(root, **settings):
    return load(root.name, root.parent, **settings)


def pixel(root, **settings):
    """The colour in the middle of the only training image."""
    return read(root, **settings)[0].images[0, 4, 4].tolist()


@pytest.mark.parametrize("part", ["test", "val"])
def test_class_folders_with_test_or_val(tree, grey, part):
    root = tree({"train/dog/1.png": grey(1), "train/cat/2.JPG": grey(2), f"{part}/cat/3.bmp": grey(3)})
    train, test = read(root)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1]
    assert test.labels.tolist() == [0]
    assert test.images.unique().tolist() == [3]


def test_folders_in_folders_are_read_and_hidden_ones_are_not(tree, grey):
    root = tree(
        {
            "train/cat/monday/1.png": grey(1),
            "train/cat/.hidden/2.png": grey(2),
            "train/cat/._1.png": b"a resource fork",
            "train/.ipynb_checkpoints/1.png": grey(3),
            "test/.ipynb_checkpoints/1.png": grey(3),
            "test/cat/1.png": grey(4),
            "test/cat/notes.txt": b"passed over",
        }
    )
    train, test = read(root)
    assert train.classes == ("cat",)
    assert train.images.unique().tolist() == [1]
    assert test.images.unique().tolist() == [4]


def test_sizes_that_differ_need_one_to_be_given(tree, grey):
    root = tree({"train/a/1.png": grey(1, 8, 8), "train/a/2.png": grey(1, 8, 9), "test/a/1.png": grey(1)})
    with pytest.raises(ValueError, match=r"a/2.png is 9x8 but .*a/1.png is 8x8: give image_size"):
        read(root)
    assert read(root, image_size=6)[0].images.shape == (2, 6, 6, 3)


def test_image_size_takes_the_shorter_side_and_cuts_the_centre(tree):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200  # the centre square
    root = tree({"train/a/1.png": wide, "test/a/1.png": wide})
    assert read(root, image_size=10)[0].images.unique().tolist() == [200]
    small = read(root, image_size=5)[0].images[0]
    assert small.shape == (5, 5, 3)
    assert small[:, 2].unique().tolist() == [200]


@pytest.mark.parametrize("side", [(1, 400), (400, 1), (3, 7), (1, 1)])
def test_odd_shapes_come_out_square(tree, grey, side):
    root = tree({"train/a/1.png": grey(9, *side), "test/a/1.png": grey(9, *side)})
    train, _ = read(root, image_size=16)
    assert train.images.shape == (1, 16, 16, 3)
    assert train.images.unique().tolist() == [9]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),  # nothing is there: the page is white, not black
        ("LA", (0, 0), [255, 255, 255]),
        ("I;16", 257 * 100, [100, 100, 100]),
        ("I;16", 65535, [255, 255, 255]),
    ],
)
def test_other_modes_become_rgb(tree, mode, colour, expected):
    image = Image.new(mode, (8, 8), colour)
    root = tree({"train/a/1.png": image, "test/a/1.png": image})
    assert pixel(root) == expected


def test_palettes(tree):
    palette = Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4)
    assert palette.mode == "P"
    assert pixel(tree({"train/a/1.png": palette, "test/a/1.png": palette})) == [200, 100, 50]


def test_cmyk(tree):
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixel(tree({"train/a/1.jpg": ink, "test/a/1.jpg": ink}))
    assert red > 240
    assert max(green, blue) < 15


def test_grey_without_an_agreed_range_is_refused(tree):
    image = Image.new("F", (8, 8), 0.5)
    with pytest.raises(ValueError, match=r"1.tif cannot be read as an image \(its grey values are floating-point"):
        read(tree({"train/a/1.tif": image, "test/a/1.tif": image}))
    image = Image.new("I", (8, 8), 70_000)
    with pytest.raises(ValueError, match=r"2.tif cannot be read as an image \(its grey values do not fit 16 bits"):
        read(tree({"train/a/1.tif": Image.new("L", (8, 8)), "train/a/2.tif": image}))


def jpeg(size=64):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"not an image", jpeg()[:700], jpeg()[: len(jpeg()) // 2]])
def test_a_corrupt_image_is_named(tree, content):
    root = tree({"train/a/1.jpg": jpeg(), "train/a/broken.jpg": content, "test/a/1.jpg": jpeg()})
    with pytest.raises(ValueError, match=r"train/a/broken.jpg cannot be read as an image .*; remove or replace it"):
        read(root)


def test_a_decompression_bomb_is_refused_by_name(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    root = tree({"train/a/1.jpg": jpeg(), "test/a/1.jpg": jpeg()})
    with pytest.raises(ValueError, match=r"train/a/1.jpg cannot be read as an image"):
        read(root)


def test_trees_that_do_not_fit(tree, grey, tmp_path):
    one = {"train/a/1.png": grey(1)}
    with pytest.raises(FileNotFoundError, match=r"has train/ but neither test/ nor val/: put held-out images there"):
        read(tree(one, tmp_path / "one"))
    strangers = {**one, "test/a/1.png": grey(1), "test/b/1.png": grey(1)}
    with pytest.raises(ValueError, match=r"test has classes that .*train lacks: b"):
        read(tree(strangers, tmp_path / "two"))
    with pytest.raises(FileNotFoundError, match=r"no images in the class folders of .*test"):
        read(tree({**one, "test/a/notes.txt": b""}, tmp_path / "three"))
    with pytest.raises(ValueError, match="train has no images for b: put some there or remove the folder"):
        read(tree({**one, "train/b/notes.txt": b"", "test/a/1.png": grey(1)}, tmp_path / "four"))
    with pytest.raises(FileNotFoundError, match="train has no class folders"):
        read(tree({"train/1.png": grey(1), "test/a/1.png": grey(1)}, tmp_path / "five"))
    with pytest.raises(ValueError, match="image_size must be 1 or more, got 0"):
        read(tree({**one, "test/a/1.png": grey(1)}, tmp_path / "six"), image_size=0)


def test_a_class_may_be_missing_from_the_test_images(tree, grey):
    _, test = read(tree({"train/a/1.png": grey(1), "train/b/1.png": grey(2), "test/b/1.png": grey(3)}))
    assert test.labels.tolist() == [1]
    assert test.num_classes == 2
