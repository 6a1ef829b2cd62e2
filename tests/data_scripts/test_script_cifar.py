"""CIFAR in torchvision's form, in miniature, with torchvision told of the miniature's digests."""

import shutil

import cifar
import miniatures
import pytest
from miniatures import make_cifar

from dnc_lib import data

MADE = ["cifar10", "cifar100"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_fetched_verified_and_read_by_the_package(root, server, monkeypatch, capsys, name):
    spec = make_cifar(server.folder, monkeypatch, name)
    assert cifar.main(["--mirror", server.url], [spec]) == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert rows[0].split()[:5] == [name, "train", "20", str(spec.classes), str(20 // spec.classes)]
    train, test = data.load(name)
    assert train.images.shape == (20, 32, 32, 3)
    assert test.labels.tolist() == [i % spec.classes for i in range(10)]
    assert train.classes == tuple(f"thing{c}" for c in range(spec.classes))
    base = root / name / spec.published.base_folder
    assert sorted(path.name for path in base.parent.iterdir()) == [base.name]
    server.requests.clear()
    assert cifar.main(["--mirror", server.url], [spec]) == 0
    assert f"{name} in {root} is whole, nothing to do" in capsys.readouterr().out
    assert server.requests == []


def test_check_replace_and_what_a_harmed_batch_says(root, archives, monkeypatch, capsys):
    spec = make_cifar(archives, monkeypatch)
    options = ["--archives", str(archives)]
    assert cifar.main(["--check"], [spec]) == 2
    assert capsys.readouterr().err == f"error: cifar10 not found in {root}: run this script without --check\n"
    assert cifar.main(options, [spec]) == 0
    assert cifar.main(["--check"], [spec]) == 0
    batch = root / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    for harm in (lambda: batch.write_bytes(batch.read_bytes()[:-1]), batch.unlink):
        harm()
        capsys.readouterr()
        assert cifar.main(["--check"], [spec]) == 2
        assert "is not what its publishers' digests say" in capsys.readouterr().err
        assert cifar.main(options, [spec]) == 2
        assert f"to make it anew and replace {batch.parent}, add --replace" in capsys.readouterr().err
        assert cifar.main([*options, "--replace"], [spec]) == 0
        assert cifar.main(["--check"], [spec]) == 0


def test_another_batch_in_a_good_archive_is_never_unpickled(root, archives, monkeypatch, capsys):
    """The archive's own digest is right, a batch's is not: nothing is kept."""
    spec = make_cifar(archives, monkeypatch)
    wrong = [["data_batch_1", "0" * 32], *spec.published.train_list[1:]]
    monkeypatch.setattr(spec.published, "train_list", wrong)
    assert cifar.main(["--archives", str(archives)], [spec]) == 2
    assert capsys.readouterr().err == (
        "error: cifar-10-python.tar.gz: data_batch_1 is missing or not what was published; nothing of it was kept\n"
    )
    assert not (root / "cifar10" / "cifar-10-batches-py").exists()


@pytest.mark.parametrize("name", ["cifar-10-batches-py/../../x", "/x"])
def test_an_archive_that_would_leave(root, archives, monkeypatch, capsys, name):
    spec = make_cifar(archives, monkeypatch)
    path = miniatures.write_tar(archives / "cifar-10-python.tar.gz", {name: b"bad"}, "w:gz")
    digest = __import__("hashlib").md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(spec.published, "tgz_md5", digest)
    assert cifar.main(["--archives", str(archives)], [spec]) == 2
    assert f"member {name!r} would leave the target folder" in capsys.readouterr().err


def test_a_wrong_archive_is_named(root, archives, monkeypatch, capsys):
    spec = make_cifar(archives, monkeypatch)
    path = archives / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-10])
    assert cifar.main(["--archives", str(archives)], [spec]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is damaged or another file: expected md5:{spec.published.tgz_md5}, found")
    assert not (root / "cifar10").exists()


def test_no_room(root, archives, monkeypatch, capsys):
    spec = make_cifar(archives, monkeypatch)
    usage = shutil.disk_usage(archives)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    assert cifar.main(["--archives", str(archives)], [spec]) == 2
    assert "its disk has 10 bytes free" in capsys.readouterr().err
    assert not (root / "cifar10").exists()


def test_names(root, capsys):
    assert cifar.main(["cifar11", "--check"]) == 2
    assert capsys.readouterr().err == "error: cifar11 is neither cifar10 nor cifar100\n"


def test_too_few_images(root, archives, monkeypatch, capsys):
    spec = make_cifar(archives, monkeypatch)
    assert cifar.main(["--archives", str(archives)], [spec]) == 0
    assert cifar.main(["--check"], [cifar.SPECS[0]]) == 2
    assert capsys.readouterr().err == (
        f"error: cifar10 in {root}: train has 20 images of 10 classes, not 50,000 of 10, as many of each\n"
    )


def test_the_defaults_are_the_published_ones():
    ten, hundred = cifar.SPECS
    assert (ten.train, ten.test, ten.classes) == (50_000, 10_000, 10)
    assert (hundred.train, hundred.test, hundred.classes) == (50_000, 10_000, 100)
    assert ten.archive.url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert ten.archive.checksum == "md5:c58f30108f718f92721af3b95e74349a"
    assert hundred.archive.checksum == "md5:eb9058c3a382ffc7106e4002c42a8d85"
    assert len(ten.digests()) == 7
    assert len(hundred.digests()) == 3


def test_cifar10_at_hand_passes(cifar10, capsys):
    assert cifar.main(["cifar10", "--check"]) == 0
    assert "cifar10 train  50,000       10    5,000" in capsys.readouterr().out
