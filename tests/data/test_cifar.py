import pickle

import numpy as np
import pytest
import torch

from dnc_lib.data import load


@pytest.mark.parametrize("place", ["cifar10", "."])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_the_root_or_in_its_own_folder(tmp_path, arrays, place, save):
    (tmp_path / place).mkdir(exist_ok=True)
    save(tmp_path / place / "cifar10.npz", **arrays)
    train, test = load("cifar10", tmp_path)
    assert np.array_equal(train.images, arrays["x_train"])
    assert train.labels.tolist() == arrays["y_train"].tolist()
    assert train.labels.dtype == torch.long
    assert test.classes == tuple(f"thing{c}" for c in range(10))
    assert test.name == "cifar10, test"


def test_npz_without_class_names_and_with_labels_in_a_column(tmp_path, arrays):
    del arrays["classes"]
    arrays["y_train"] = arrays["y_train"].reshape(-1, 1).astype(np.int64)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    train, _ = load("cifar10", tmp_path)
    assert train.classes == tuple("0123456789")
    assert train.labels.shape == (20,)


@pytest.mark.parametrize("kept", [0, 10, 1000, 60_000])
def test_a_truncated_npz(tmp_path, arrays, kept):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cifar10.npz is damaged or no .npz file .* fetch it again"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_with_flipped_bits(tmp_path, arrays, save):
    path = tmp_path / "cifar10.npz"
    save(path, **arrays)
    content = bytearray(path.read_bytes())
    content[3000:3040] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cifar10.npz is damaged or no .npz file"):
        load("cifar10", tmp_path)


def test_another_file_under_the_name_of_an_npz(tmp_path, arrays):
    with open(tmp_path / "cifar10.npz", "wb") as file:
        np.save(file, arrays["x_train"])
    with pytest.raises(ValueError, match=r"cifar10.npz is damaged or no .npz file"):
        load("cifar10", tmp_path)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_pickles_are_not_opened(tmp_path, arrays):
    path = tmp_path / "cifar10.npz"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"damaged or no .npz file"):
        load("cifar10", tmp_path)
    arrays["classes"] = np.array([Trap()] * 10, dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"damaged or no .npz file"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_array_is_named(tmp_path, arrays, key):
    del arrays[key]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(ValueError, match=f"lacks {key}; it needs x_train, y_train, x_test, y_test"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": lambda x: x / 255}, "x_train must be uint8 and y_train integers, got float64 and uint8"),
        ({"y_test": lambda y: y.astype(float)}, "x_test must be uint8 and y_test integers, got uint8 and float64"),
        ({"x_train": lambda x: x.transpose(0, 3, 1, 2)}, r"cifar10, training: images must be uint8 \(N, H, W, 3\)"),
        ({"y_train": lambda y: y[:-1]}, "cifar10, training: 20 images but 19 labels"),
        ({"y_test": lambda y: y + 1}, "cifar10, test: label 10 is out of range for 10 classes"),
        ({"y_test": lambda y: y.astype(int) - 1}, "cifar10, test: label -1 is out of range for 10 classes"),
        ({"x_test": lambda x: x[:0], "y_test": lambda y: y[:0]}, "cifar10, test: no images"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, changes, message):
    arrays |= {key: change(arrays[key]) for key, change in changes.items()}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load("cifar10", tmp_path)


def test_class_folders(tmp_path, tree, grey):
    names = [f"{part}/{name}/{i}.png" for part in ("train", "test") for name in "ab" for i in (1, 2)]
    files = {name: grey(60, 40, 50) for name in names}
    tree(files, tmp_path / "cifar10")
    train, _ = load("cifar10", tmp_path)
    assert train.images.shape == (4, 32, 32, 3)
    assert train.classes == ("a", "b")


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_batches_with_another_digest_are_never_unpickled(tmp_path, name, folder):
    where = tmp_path / name / folder
    where.mkdir(parents=True)
    files = ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6)), "train", "test", "meta"]
    for file in files:
        (where / file).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=rf"{name} at .* is not what its publishers' digests say .* fetch it again"):
        load(name, tmp_path)


def test_a_download_without_a_network_says_so(tmp_path, monkeypatch):
    import torchvision

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unreachable)
    with pytest.raises(FileNotFoundError, match=r"cifar10 could not be fetched \(no route to host\)"):
        load("cifar10", tmp_path, download=True)
