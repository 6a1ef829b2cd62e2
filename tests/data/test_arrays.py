import numpy as np
import pytest
import torch

from dnc_lib.data import LabelledImages


def images(count=4):
    return torch.zeros(count, 8, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images().float(), torch.zeros(4).long(), r"cats: images must be uint8 \(N, H, W, 3\), got torch.float32"),
        (
            images().permute(0, 3, 1, 2),
            torch.zeros(4).long(),
            r"uint8 \(N, H, W, 3\), got torch.uint8 \(4, 3, 8, 8\)",
        ),
        (images()[..., 0], torch.zeros(4).long(), r"got torch.uint8 \(4, 8, 8\)"),
        (images(), torch.zeros(3).long(), "cats: 4 images but 3 labels"),
        (images(), torch.zeros(4), r"cats: labels must be int64 \(N,\), got torch.float32 \(4,\)"),
        (images(), torch.zeros(4, 1).long(), r"cats: labels must be int64 \(N,\), got torch.int64 \(4, 1\)"),
        (images(), torch.tensor([0, 1, 2, 0]), "cats: label 2 is out of range for 2 classes"),
        (images(), torch.tensor([0, 1, -1, 0]), "cats: label -1 is out of range for 2 classes"),
        (images(0), torch.zeros(0).long(), "cats: no images"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(pixels, labels, ("a", "b"), "cats")


def test_sample_and_split_are_balanced_and_disjoint(noise):
    data = noise(103, classes=4)
    everything = {image.numpy().tobytes() for image in data.images}
    assert len(everything) == 103
    rest, held = data.split(20, seed=1)
    assert (len(rest), len(held)) == (83, 20)
    assert torch.bincount(held.labels).tolist() == [5, 5, 5, 5]
    parts = [{image.numpy().tobytes() for image in part.images} for part in (rest, held)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == everything
    assert held.name == "noise, held out"
    drawn = data.sample(42, seed=1)
    counts = torch.bincount(drawn.labels)
    assert counts.sum() == 42
    assert counts.max() - counts.min() <= 1


def test_labels_stay_with_their_images(noise):
    data = noise(60)
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)}
    for part in (*data.split(13), data.sample(21)):
        for image, label in zip(part.images, part.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_a_small_class_gives_what_it_has(noise):
    data = noise(40)
    labels = torch.zeros(40, dtype=torch.long)
    labels[:3] = 1
    held = LabelledImages(data.images, labels, ("many", "few"), "odd").split(10)[1]
    assert torch.bincount(held.labels).tolist() == [7, 3]


def test_draws_repeat_by_seed_and_leave_the_global_generator_alone(noise):
    data = noise(60)
    state = torch.get_rng_state()
    assert torch.equal(data.sample(20, seed=3).images, data.sample(20, seed=3).images)
    assert not torch.equal(data.sample(20, seed=3).images, data.sample(20, seed=4).images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [0, -1, 41])
def test_too_many_or_none(noise, size):
    data = noise(40)
    with pytest.raises(ValueError, match=f"noise: cannot draw {size} of 40 images"):
        data.sample(size)
    with pytest.raises(ValueError, match="noise: cannot hold out"):
        data.split(min(size, 40))


def test_channel_stats_agree_with_numpy(noise):
    data = noise(2100, size=4)  # more than one chunk
    mean, std = data.channel_stats()
    pixels = data.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_a_constant_channel_does_not_divide_by_zero():
    mean, std = LabelledImages(images(), torch.zeros(4).long(), ("a",)).channel_stats()
    assert mean.tolist() == [0, 0, 0]
    assert (std > 0).all()


def test_the_digest_names_images_and_labels(noise):
    data = noise(10)
    assert data.digest() == noise(10).digest()
    assert len(data.digest()) == 16
    other = data.images.clone()
    other[9, 7, 7, 2] ^= 1
    assert LabelledImages(other, data.labels, data.classes).digest() != data.digest()
    assert LabelledImages(data.images, data.labels.flip(0), data.classes).digest() != data.digest()
    turned = LabelledImages(data.images.view(10, 4, 16, 3), data.labels, data.classes)
    assert turned.digest() != data.digest()
