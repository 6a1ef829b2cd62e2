import itertools

import pytest
import torch

from dnc_lib.data import DeviceLoader, LabelledImages

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def numbered(count, size=4):
    """Images that tell their own index: all pixels of image i have red i, and so does its label."""
    images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    images[..., 0] = torch.arange(count)[:, None, None]
    return LabelledImages(images, torch.arange(count), tuple(map(str, range(count))), "numbered")


def pictures(loader):
    """Batches back to uint8 (B, H, W, 3)."""
    for images, _ in loader:
        yield ((images.permute(0, 2, 3, 1) * STD + MEAN) * 255).round().to(torch.uint8)


def everything(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def seen(loader):
    """Labels of a pass over :func:`numbered` images, which are their indices."""
    return everything(loader)[1].tolist()


def test_batches_are_normalised_and_in_order(noise):
    data = noise(23)
    loader = DeviceLoader(data, 10, MEAN, STD)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [10, 10, 3]
    assert len(loader) == 3
    images, labels = everything(loader)
    assert images.shape == (23, 3, 8, 8)
    expected = (data.images.float() / 255 - MEAN) / STD
    torch.testing.assert_close(images.permute(0, 2, 3, 1), expected)
    assert torch.equal(labels, data.labels)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)


def test_the_data_sets_own_statistics_give_zero_and_one(noise):
    data = noise(200)
    images, _ = everything(DeviceLoader(data, 64, *data.channel_stats()))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
def test_unshuffled_every_image_comes_once(batch_size):
    loader = DeviceLoader(numbered(40), batch_size, MEAN, STD)
    assert seen(loader) == list(range(40))
    assert len(list(loader)) == len(loader)


def test_shuffled_every_image_comes_at_most_once_and_the_short_batch_is_dropped():
    loader = DeviceLoader(numbered(40), 12, MEAN, STD, shuffle=True)
    labels = seen(loader)
    assert len(labels) == 36
    assert len(set(labels)) == 36
    assert len(loader) == 3


def test_a_data_set_smaller_than_the_batch_is_one_batch():
    loader = DeviceLoader(numbered(5), 12, MEAN, STD, shuffle=True)
    assert len(loader) == 1
    assert sorted(seen(loader)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shuffle", [False, True])
def test_images_and_labels_stay_together(shuffle):
    for images, labels in DeviceLoader(numbered(40), 8, MEAN, STD, shuffle=shuffle, flip=True):
        reds = ((images[:, 0] * STD[0] + MEAN[0]) * 255).round().long()
        assert torch.equal(reds, labels[:, None, None].expand_as(reds))


def test_an_epoch_depends_on_seed_and_epoch_alone(noise):
    data = noise(50)
    settings = {"shuffle": True, "pad": 2, "flip": True}
    first = DeviceLoader(data, 10, MEAN, STD, seed=3, **settings)
    epochs = [everything(first) for _ in range(3)]
    assert first.epoch == 3
    torch.manual_seed(99)
    second = DeviceLoader(data, 25, MEAN, STD, seed=3, **settings)  # another batch size, straight into epoch 2
    second.epoch = 2
    images, labels = everything(second)
    assert torch.equal(images, epochs[2][0])
    assert torch.equal(labels, epochs[2][1])
    other = everything(DeviceLoader(data, 10, MEAN, STD, seed=4, **settings))
    assert not torch.equal(other[0], epochs[0][0])


def test_each_epoch_has_its_own_order():
    loader = DeviceLoader(numbered(40), 10, MEAN, STD, shuffle=True)
    orders = [tuple(seen(loader)) for _ in range(4)]
    assert len(set(orders)) == 4


def test_the_global_generator_is_left_alone(noise):
    state = torch.get_rng_state()
    everything(DeviceLoader(noise(20), 5, MEAN, STD, shuffle=True, pad=1, flip=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_flips_mirror_about_half_of_the_images(noise):
    data = noise(400)
    flipped = 0
    (batch,) = pictures(DeviceLoader(data, 400, MEAN, STD, flip=True))
    for picture, image in zip(batch, data.images, strict=True):
        mirrored = torch.equal(picture, image.flip(1))
        assert mirrored or torch.equal(picture, image)
        flipped += mirrored
    assert 150 < flipped < 250


@pytest.mark.parametrize("flip", [False, True])
def test_crops_agree_with_a_slow_reference(noise, flip):
    pad, data = 2, noise(300)
    colour = (MEAN * 255).round().to(torch.uint8)
    (batch,) = pictures(DeviceLoader(data, 300, MEAN, STD, pad=pad, flip=flip))
    found = []
    for picture, image in zip(batch, data.images, strict=True):
        padded = colour.expand(8 + 2 * pad, 8 + 2 * pad, 3).clone()
        padded[pad:-pad, pad:-pad] = image
        matches = []
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                crop = padded[top : top + 8, left : left + 8]
                for turned in [False, True] if flip else [False]:
                    if torch.equal(picture, crop.flip(1) if turned else crop):
                        matches.append((top, left, turned))
        assert len(matches) == 1
        found += matches
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(5))
    assert len(set(found)) > 20  # rows, columns and mirrors are drawn apart
    if flip:
        assert 100 < sum(turned for _, _, turned in found) < 200


def test_the_padding_is_nothing_after_the_normalisation():
    black = LabelledImages(torch.zeros(64, 8, 8, 3, dtype=torch.uint8), torch.zeros(64).long(), ("a",))
    images, _ = everything(DeviceLoader(black, 64, MEAN, STD, pad=4))
    border = (images - (-MEAN / STD)[:, None, None]).abs() > 1e-3  # not the black of the image
    assert border.any()
    assert images[border].abs().max() < 0.5 / 255 / STD.min() + 1e-6


def test_ranks_partition_the_images():
    shares = [seen(DeviceLoader(numbered(41), 4, MEAN, STD, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(41))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shuffled_ranks_take_as_many_steps_and_never_the_same_image():
    loaders = [DeviceLoader(numbered(41), 4, MEAN, STD, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    assert {len(loader) for loader in loaders} == {3}
    shares = [seen(loader) for loader in loaders]
    assert {len(share) for share in shares} == {12}
    assert len(set(itertools.chain(*shares))) == 36


def test_two_ranks_see_together_what_one_sees_alone(noise):
    data, settings = noise(40), {"shuffle": True, "pad": 1, "flip": True, "seed": 5}
    alone, _ = everything(DeviceLoader(data, 8, MEAN, STD, **settings))
    parts = [everything(DeviceLoader(data, 4, MEAN, STD, rank=rank, world_size=2, **settings))[0] for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), alone)


@pytest.mark.parametrize("skip", [0, 1, 4])
def test_a_pass_goes_on_where_it_was(noise, skip):
    settings = {"shuffle": True, "pad": 2, "flip": True, "seed": 3, "rank": 1, "world_size": 2}
    whole, resumed = (DeviceLoader(noise(50), 6, MEAN, STD, **settings) for _ in range(2))
    expected = [list(whole), list(whole)]
    resumed.skip = skip
    for epoch, first in enumerate((skip, 0)):  # the pass after it is whole again
        batches = list(resumed)
        assert len(batches) == 4 - first
        for pair, wanted in zip(batches, expected[epoch][first:], strict=True):
            assert all(map(torch.equal, pair, wanted))
    assert (resumed.skip, resumed.epoch, len(resumed), resumed.can_skip) == (0, 2, 4, True)


def test_skipping_more_than_a_pass(noise):
    loader = DeviceLoader(noise(20), 5, MEAN, STD)
    loader.skip = 5
    with pytest.raises(ValueError, match="skip must be 0 to 4, the batches of a pass, got 5"):
        next(iter(loader))


def test_images_need_not_be_square():
    images = torch.arange(2 * 4 * 6 * 3, dtype=torch.uint8).view(2, 4, 6, 3)
    data = LabelledImages(images, torch.tensor([0, 1]), ("a", "b"))
    (batch,) = pictures(DeviceLoader(data, 2, MEAN, STD))
    assert torch.equal(batch, images)
    (batch,) = pictures(DeviceLoader(data, 2, MEAN, STD, pad=1, flip=True))
    assert batch.shape == images.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 4, "pad": -1}, "pad must be 0 or more, got -1"),
        ({"batch_size": 4, "world_size": 9}, "noise: 8 images cannot be shared out over 9 processes"),
    ],
)
def test_settings_out_of_range(noise, settings, message):
    with pytest.raises(ValueError, match=message):
        DeviceLoader(noise(8), mean=MEAN, std=STD, **settings)


def test_a_pass_over_some_images_in_the_order_asked_for():
    loader = DeviceLoader(numbered(12), 3, MEAN, STD)
    loader.only = torch.tensor([7, 2, 5, 11])
    assert [labels.tolist() for _, labels in loader] == [[7, 2, 5], [11]]
    assert seen(loader) == list(range(12))  # the pass after it is whole again
