import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from dnc_lib.data.picture_loader import Augmentation, PictureLoader
from dnc_lib.data.pictures import open_pictures

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
EVERYTHING = {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "interpolation": "random"}


@pytest.fixture
def data(tree):
    """21 pictures of three classes and many sizes; each has its own red, ``12 * i``."""
    rng = np.random.default_rng(0)
    files = {}
    for i in range(21):
        blotches = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(blotches).resize((40 + 3 * i, 60 - i), Image.Resampling.BICUBIC)).copy()
        picture[..., 0] = 12 * i
        files[f"train/{'abc'[i % 3]}/{i:02d}.png"] = picture
    root = tree(files | {"val/a/0.png": picture})
    return open_pictures(root.name, root.parent)[0]


def loader(data, batch_size=4, **settings):
    return PictureLoader(data, batch_size, MEAN, STD, image_size=settings.pop("image_size", 24), **settings)


def training(data, batch_size=4, augmentation=None, **settings):
    augmentation = Augmentation(**(EVERYTHING if augmentation is None else augmentation))
    return loader(data, batch_size, augmentation=augmentation, **{"shuffle": True, "seed": 3, **settings})


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )


def everything(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def who(data, batches):
    """The numbers of unaugmented pictures, told from their red."""
    reds = {int(12 * i): n for n, i in enumerate(int(name[2:4]) for name in data.names.tolist())}
    images = torch.cat([images for images, _ in batches])
    return [reds[int(red)] for red in ((images[:, 0, 12, 12] * STD[0] + MEAN[0]) * 255).round()]


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_resized_cut_and_normalised_as_timm_does(data, workers):
    batches = list(loader(data, workers=workers, crop_pct=0.8, interpolation="bicubic"))
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 1]
    images, labels = everything(batches)
    assert torch.equal(labels, data.labels)
    assert images.dtype == torch.float32
    transform = create_transform(
        24, crop_pct=0.8, interpolation="bicubic", mean=tuple(MEAN.tolist()), std=tuple(STD.tolist())
    )
    expected = torch.stack([transform(data.read(i)[0]) for i in range(len(data))])
    torch.testing.assert_close(images, expected)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augmentation", [{}, EVERYTHING, {"color_jitter": 0.4}])
def test_workers_change_nothing(data, augmentation):
    alone, helped = training(data, augmentation=augmentation), training(data, augmentation=augmentation, workers=2)
    for _ in range(2):  # the second pass goes to workers that are still there
        assert same(list(alone), list(helped))
    assert alone.epoch == helped.epoch == 2


def test_an_epoch_depends_on_seed_and_epoch_alone(data):
    first = training(data)
    epochs = [everything(first) for _ in range(3)]
    second = training(data, 10, workers=1)  # another batch size, straight into epoch 2
    second.epoch = 2
    images, labels = everything(second)
    assert torch.equal(images, epochs[2][0][:20])
    assert torch.equal(labels, epochs[2][1][:20])
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(everything(training(data, seed=4))[0], epochs[0][0])


def test_epochs_differ_in_augmentation_too(data):
    varied = training(data, shuffle=False)
    first = everything(varied)
    varied.epoch = 1
    second = everything(varied)
    assert torch.equal(first[1], second[1])
    changed = (first[0] != second[0]).flatten(1).any(1)
    assert changed.all()


def test_pictures_of_a_batch_are_augmented_apart(data):
    twice = data.subset(torch.zeros(8, dtype=torch.long))
    images, _ = everything(training(twice, 8))
    assert len(torch.unique(images, dim=0)) == 8


def test_two_processes_see_together_what_one_sees_alone(data):
    alone, labels = everything(training(data, 8))
    parts = [everything(training(data, 4, rank=rank, world_size=2)) for rank in (0, 1)]
    assert torch.equal(torch.stack([images for images, _ in parts], 1).flatten(0, 1)[: len(alone)], alone)
    assert torch.equal(torch.stack([labels for _, labels in parts], 1).flatten()[: len(alone)], labels)


def test_held_out_pictures_come_once_over_all_processes(data):
    parts = [who(data, list(loader(data, 4, rank=rank, world_size=2))) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(21))


def test_shuffled_the_short_batch_is_dropped_unless_it_is_the_only_one(data):
    numbers = who(data, batches := list(loader(data, 4, shuffle=True)))
    assert [len(labels) for _, labels in batches] == [4] * 5
    assert len(set(numbers)) == 20
    assert numbers != sorted(numbers)
    (only,) = loader(data, 64, shuffle=True)
    assert len(only[1]) == 21


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [0, 2, 5])
def test_a_pass_goes_on_where_it_was(data, skip, workers):
    whole, resumed = training(data), training(data, workers=workers)
    expected = [list(whole), list(whole)]
    resumed.skip = skip
    assert same(list(resumed), expected[0][skip:])
    assert (resumed.skip, resumed.epoch) == (0, 1)
    assert same(list(resumed), expected[1])
    assert resumed.can_skip


def test_what_is_skipped_is_not_read(data):
    first = who(data, list(loader(data)))[:4]
    for i in first:
        open(data.path(i), "wb").close()
    rest = loader(data)
    rest.skip = 1
    assert len(list(rest)) == 5


def test_skipping_more_than_a_pass(data):
    rest = loader(data)
    rest.skip = 7
    with pytest.raises(ValueError, match="skip must be 0 to 6, the batches of a pass, got 7"):
        next(iter(rest))


def test_a_pass_given_up_leaves_no_trace(data):
    given_up, whole = training(data, workers=2), training(data)
    next(iter(given_up))
    assert given_up.epoch == 0
    assert same(list(given_up), list(whole))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_numbers_are_left_alone(data, workers):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)

    def draw():
        return random.random(), np.random.rand(), float(torch.rand(1))  # noqa: NPY002

    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    found = [draw()]
    list(training(data, workers=workers))
    assert [*found, draw()] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named(data, workers):
    path = data.path(9)
    with open(path, "r+b") as file:
        file.truncate(200)
    batches = iter(loader(data, workers=workers))
    assert len([next(batches), next(batches)]) == 2  # the pictures before it arrive
    with pytest.raises(ValueError, match=rf"^{path} cannot be read as an image \(.*\); remove or replace it$"):
        next(batches)


def test_workers_may_be_started_afresh(data):
    """As on macOS and Windows, where a worker gets a pickled copy instead of a fork."""
    views = training(data).views
    assert torch.equal(pickle.loads(pickle.dumps(views))[0, 3][0], views[0, 3][0])
    (spawned,) = DataLoader(
        views, batch_sampler=[[(0, 3)]], num_workers=1, multiprocessing_context="spawn", collate_fn=tuple
    )
    assert torch.equal(spawned[0][0], views[0, 3][0])
    assert spawned[0][1] == views[0, 3][1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_copied_ahead_to_a_gpu_are_the_same(data, workers):
    on_cpu, on_gpu = training(data), training(data, workers=workers, device="cuda")
    for (images, labels), (there, labels_there) in zip(on_cpu, on_gpu, strict=True):
        assert there.device.type == labels_there.device.type == "cuda"
        assert there.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(there.cpu(), images)
        assert torch.equal(labels_there.cpu(), labels)
    assert on_gpu.epoch == 1


def test_crops_take_the_asked_share_of_the_area(tree):
    """A picture whose red grows with the column: a crop's red tells how much of the width it took."""
    ramp = np.zeros((64, 64, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(64) * 4
    root = tree({f"train/a/{i}.png": ramp for i in range(50)} | {"val/a/0.png": ramp})
    data = open_pictures(root.name, root.parent)[0]

    def widths(**augmentation):
        images, _ = everything(training(data, 50, augmentation=augmentation, image_size=32))
        reds = (images[:, 0] * STD[0] + MEAN[0]) * 255
        return (reds.amax((1, 2)) - reds.amin((1, 2))) / 4, reds[:, 0, 0] > reds[:, 0, -1]

    small, mirrored = widths(crop_scale=(0.1, 0.1))
    assert small.max() < 64 * (0.1 * 4 / 3) ** 0.5 + 2
    large, plain = widths(crop_scale=(0.9, 1.0), flip=False)
    assert large.min() > 64 * (0.9 * 3 / 4) ** 0.5 - 5
    assert not plain.any()
    assert 10 < mirrored.sum() < 40


def test_erased_places_are_noise_after_the_normalisation(tree):
    """Noise of deviation 1, which no picture of one colour could hold, and more than a uint8 could carry."""
    flat = Image.new("RGB", (64, 64), (102, 128, 153))  # the mean: zero after the normalisation
    root = tree({f"train/a/{i}.png": flat for i in range(60)} | {"val/a/0.png": flat})
    data = open_pictures(root.name, root.parent)[0]
    images, _ = everything(training(data, 60, augmentation={"random_erasing": 0.5}, image_size=32))
    erased = images.abs() > 0.02
    touched = erased.flatten(1).any(1)
    assert 15 < touched.sum() < 45
    noise = images[erased]
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert float(noise.abs().max()) > 3
    share = erased[touched].float().mean((1, 2, 3))
    assert share.max() < 0.36


def test_rand_augment_changes_pictures(data):
    plain = everything(training(data, augmentation={}))[0]
    strong = everything(training(data, augmentation={"rand_augment": "rand-m9-n2-p1"}))[0]
    assert ((plain - strong).flatten(1).abs().amax(1) > 0.05).float().mean() > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"image_size": 0}, "image_size must be 1 or more, got 0"),
        ({"crop_pct": 1.2}, "crop_pct must be a share of the picture's side, above 0 and up to 1, got 1.2"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear, bicubic, box, .*, got 'cubic'"),
        ({"world_size": 22}, "pets, training: 21 images cannot be shared out over 22 processes"),
    ],
)
def test_settings_out_of_range(data, settings, message):
    with pytest.raises(ValueError, match=message):
        loader(data, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale must be two shares, 0 < least <= largest <= 1, got \(0.5, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be two shares"),
        ({"color_jitter": -1.0}, "color_jitter must be 0 or more, got -1.0"),
        ({"color_jitter": 0.4, "rand_augment": "rand-m9"}, "timm leaves color_jitter out beside rand_augment"),
        ({"random_erasing": 2.0}, "random_erasing must be a share, 0 to 1, got 2.0"),
        ({"interpolation": "fine"}, "interpolation must be one of nearest, .*, random, got 'fine'"),
        ({"rand_augment": "much"}, "rand_augment 'much' is not known to timm; a good one is 'rand-m9-mstd0.5-inc1'"),
        ({"rand_augment": "rand-q9"}, "rand_augment 'rand-q9' is not known to timm"),
    ],
)
def test_augmentations_out_of_range(data, settings, message):
    with pytest.raises(ValueError, match=message):
        training(data, augmentation=settings)
