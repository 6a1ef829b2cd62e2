import gc
import pickle
import random
import re
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dnc_lib.data.scene_loader import SceneLoader
from dnc_lib.data.scene_transforms import SceneAugmentation
from dnc_lib.data.scenes import open_scenes
from dnc_lib.metrics import IGNORED

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


@pytest.fixture
def data(tree):
    """13 scenes of 36x30; the mask's first pixel is the scene's number, the rest noise of 16 classes."""
    rng = np.random.default_rng(0)
    files = {"classes.txt": "".join(f"class {c}\n" for c in range(16)).encode()}
    for part, count in (("train", 13), ("test", 1)):
        for i in range(count):
            mask = rng.integers(0, 16, (30, 36), dtype=np.uint8)
            mask[0, 0] = i
            files[f"images/{part}/{i:02d}.png"] = rng.integers(0, 256, (30, 36, 3), dtype=np.uint8)
            files[f"masks/{part}/{i:02d}.png"] = mask
    root = tree(files)
    return open_scenes(root.name, root.parent)["train"]


@pytest.fixture
def sizes(tree):
    """Scenes of 40x30, 30x60 and 41x41."""
    files = {"classes.txt": b"here\nthere\n"}
    for part in ("train", "test"):
        for i, (width, height) in enumerate([(40, 30), (30, 60), (41, 41)]):
            files[f"images/{part}/{i}.png"] = np.full((height, width, 3), 80 * i, dtype=np.uint8)
            files[f"masks/{part}/{i}.png"] = (np.arange(height * width) % 2).reshape(height, width).astype(np.uint8)
    root = tree(files, None)
    return open_scenes(root.name, root.parent)["test"]


def loader(data, batch_size=4, **settings):
    return SceneLoader(data, batch_size, MEAN, STD, **settings)


def training(data, batch_size=4, crop_size=(24, 28), **settings):
    return loader(
        data, batch_size, augmentation=SceneAugmentation(crop_size), **{"shuffle": True, "seed": 3, **settings}
    )


def everything(batches):
    images, masks = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(masks)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )


def who(batches):
    """The numbers of scenes that were not augmented."""
    return [int(number) for _, masks in batches for number in masks[:, 0, 0]]


# --- what comes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_scenes_are_normalised_and_come_in_order(data, workers):
    batches = list(loader(data, workers=workers))
    assert [len(masks) for _, masks in batches] == [4, 4, 4, 1]
    assert who(batches) == list(range(13))
    images, masks = everything(batches)
    assert (images.dtype, masks.dtype) == (torch.float32, torch.long)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    for i in range(13):
        image, mask = data.read(i)
        expected = (F.pil_to_tensor(image) / 255 - MEAN[:, None, None]) / STD[:, None, None]
        torch.testing.assert_close(images[i], expected)
        assert np.array_equal(masks[i], mask)


def test_the_image_is_resized_and_the_mask_keeps_its_resolution(sizes):
    shapes = [(tuple(images.shape[2:]), tuple(masks.shape[1:])) for images, masks in loader(sizes, 1, image_size=20)]
    assert shapes == [((20, 26), (30, 40)), ((40, 20), (60, 30)), ((20, 20), (41, 41))]
    plain = [tuple(images.shape[2:]) for images, _ in loader(sizes, 1)]
    assert plain == [(30, 40), (60, 30), (41, 41)]


def test_scenes_of_one_size_can_share_a_batch_and_others_cannot(sizes):
    both = loader(sizes, 3)
    with pytest.raises(
        ValueError, match="scenes of 40x30 and 30x60 cannot share a batch: evaluate them with batch_size 1"
    ):
        list(both)
    ((images, masks),) = loader(sizes, 3, augmentation=SceneAugmentation((64, 48)))
    assert (images.shape, masks.shape) == ((3, 3, 64, 48), (3, 64, 48))


def test_what_is_beyond_a_scene_is_the_mean_colour_and_no_class(data):
    settings = {"crop_size": (90, 100)}
    for images, masks in training(data, **settings):
        beyond = (masks == IGNORED)[:, None].expand_as(images)
        assert 0.3 < beyond.float().mean() < 1
        limit = (0.5 / 255 / STD + 1e-6)[None, :, None, None].expand_as(images)
        assert (images.abs()[beyond] <= limit[beyond]).all()
        assert images[~beyond].abs().mean() > 0.3


def test_image_and_mask_are_augmented_together(tree):
    mask = np.repeat(np.arange(6, dtype=np.uint8), 100).reshape(20, 30).T.repeat(3, 0).repeat(3, 1).copy()
    picture = np.repeat(40 * mask[..., None], 3, 2)
    files = {"classes.txt": "".join(f"{c}\n" for c in range(6)).encode()}
    for part in ("train", "test"):
        files |= {f"images/{part}/0.png": picture, f"masks/{part}/0.png": mask}
    root = tree(files)
    scenes = open_scenes(root.name, root.parent)["train"]
    augmentation = SceneAugmentation((50, 40), color_jitter=0)
    turns = SceneLoader(scenes, 1, torch.zeros(3), torch.ones(3), augmentation=augmentation, shuffle=True)
    for _ in range(8):
        ((images, masks),) = turns
        near = (images[:, 0] * 255 / 40).round().long()
        labelled = masks != IGNORED
        assert (near == masks)[labelled].float().mean() > 0.9
        assert (near - masks)[labelled].abs().max() <= 5


# --- order, workers, processes, resuming ----------------------------------------------------------------------------


def test_workers_change_nothing(data):
    alone, helped = training(data), training(data, workers=2)
    for _ in range(2):
        assert same(list(alone), list(helped))
    assert alone.epoch == helped.epoch == 2


def test_an_epoch_depends_on_seed_and_epoch_alone(data):
    first = training(data)
    epochs = [everything(first) for _ in range(3)]
    second = training(data, 6, workers=1)
    second.epoch = 2
    images, masks = everything(second)
    assert torch.equal(images, epochs[2][0])
    assert torch.equal(masks, epochs[2][1])
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(everything(training(data, seed=4))[0], epochs[0][0])


def test_scenes_of_a_batch_and_of_two_epochs_are_augmented_apart(data):
    one = data.subset(torch.zeros(8, dtype=torch.long))
    images, _ = everything(training(one, 8))
    assert len(torch.unique(images, dim=0)) == 8
    varied = training(data, shuffle=False)
    first = everything(varied)[0]
    varied.epoch = 1
    assert (first != everything(varied)[0]).flatten(1).any(1).all()


def test_two_processes_see_together_what_one_sees_alone(data):
    alone = everything(training(data, 12))
    parts = [everything(training(data, 6, rank=rank, world_size=2)) for rank in (0, 1)]
    for whole, halves in zip(alone, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.stack(halves, 1).flatten(0, 1), whole)
    parts = [who(loader(data, rank=rank, world_size=2)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(13))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_a_pass_goes_on_where_it_was(data, skip, workers):
    whole, resumed = training(data), training(data, workers=workers)
    expected = [list(whole), list(whole)]
    resumed.skip = skip
    assert same(list(resumed), expected[0][skip:])
    assert (resumed.skip, resumed.epoch) == (0, 1)
    assert same(list(resumed), expected[1])


def test_what_is_skipped_is_not_read(data):
    for i in range(4):
        data.masks[i].write_bytes(b"")
    rest = loader(data)
    rest.skip = 1
    assert who(rest) == list(range(4, 13))


def test_the_callers_random_numbers_are_left_alone(data):
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    def reset():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    reset()
    expected = [draw(), draw()]
    reset()
    first = draw()
    list(training(data))
    assert [first, draw()] == expected


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named_and_a_worker_says_it_as_it_is(data, workers):
    Image.new("L", (36, 30), 16).save(data.masks[5])
    says = (
        f"{data.masks[5]} has numbers that stand for nothing in pets, training: 16 (1080 pixels); "
        f"classes are 0 to 15, no class is 255"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        list(loader(data, workers=workers))


def test_a_loader_that_failed_is_freed_at_once(data):
    """Left to the garbage collector, its workers would be waited for."""
    data.masks[0].write_bytes(b"")
    broken = loader(data)
    gone = weakref.ref(broken)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="cannot be read"):
            next(iter(broken))
        del broken
        assert gone() is None
    finally:
        gc.enable()


def test_workers_may_be_started_afresh(data):
    """As on macOS and Windows, where a worker gets a pickled copy instead of a fork."""
    views = training(data).views
    again = pickle.loads(pickle.dumps(views))
    assert all(torch.equal(one, other) for one, other in zip(again[0, 3], views[0, 3], strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_copied_ahead_to_a_gpu_are_the_same(data, workers):
    for (images, masks), (there, masks_there) in zip(
        training(data), training(data, workers=workers, device="cuda"), strict=True
    ):
        assert there.device.type == masks_there.device.type == "cuda"
        assert there.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(there.cpu(), images)
        assert torch.equal(masks_there.cpu(), masks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"image_size": -1}, "image_size must be 0 or more, got -1"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"world_size": 14}, "pets, training: 13 images cannot be shared out over 14 processes"),
    ],
)
def test_settings_out_of_range(data, settings, message):
    with pytest.raises(ValueError, match=message):
        loader(data, **settings)
