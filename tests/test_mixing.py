import numpy as np
import pytest
import torch

from dnc_lib.mixing import Mixer


def batch(count=8, classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % classes


def test_labels_stay_shares_of_one():
    images, labels = batch()
    for smoothing in (0.0, 0.1):
        mixed, targets = Mixer(4, 1.0, 1.0, label_smoothing=smoothing, seed=1)(images, labels, 3)
        assert mixed.shape == images.shape
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert targets.min() >= smoothing / 4 - 1e-6


def test_mixup_is_the_weighted_mean_of_two_images_and_of_their_labels():
    images, labels = batch()
    mixed, targets = Mixer(4, 1.0, 0.0)(images, labels, 0)
    share = targets[0, labels[0]]  # images are mixed with those of the batch in reverse; labels 0 and 3
    assert torch.allclose(mixed[0], share * images[0] + (1 - share) * images[7], atol=1e-5)
    assert targets[0, labels[7]] == pytest.approx(1 - float(share))


def test_cutmix_takes_a_rectangle_of_the_other_image():
    images, labels = batch()
    mixed, targets = Mixer(4, 0.0, 1.0, seed=2)(images, labels, 1)
    taken = (mixed[0] == images[7]).all(0)
    kept = (mixed[0] == images[0]).all(0)
    assert (taken | kept).all()
    assert float(targets[0, labels[7]]) == pytest.approx(float(taken.float().mean()))


def test_what_is_mixed_depends_on_seed_step_and_rank_alone():
    images, labels = batch()
    one = Mixer(4, 1.0, 1.0, seed=5)(images, labels, 7)
    np.random.seed(99)  # noqa: NPY002
    again = Mixer(4, 1.0, 1.0, seed=5)(images, labels, 7)
    assert torch.equal(one[0], again[0])
    for others in ({"seed": 6}, {"seed": 5, "rank": 1}):
        other = Mixer(4, 1.0, 1.0, **others)(images, labels, 7)
        assert not torch.equal(one[0], other[0])


def test_the_callers_numbers_and_images_are_left_alone():
    images, labels = batch()
    before = images.clone()
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand(4)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    Mixer(4, 1.0, 1.0)(images, labels, 0)
    assert (np.random.rand(4) == expected).all()  # noqa: NPY002
    assert torch.equal(images, before)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_share_of_mixed_batches(probability):
    one, other = (Mixer(4, 1.0, 0.0, probability, seed=1, rank=rank) for rank in (0, 1))
    mixed = [one.mixes(step) for step in range(2000)]
    assert mixed == [other.mixes(step) for step in range(2000)]  # or ranks would disagree on who updates
    assert abs(np.mean(mixed) - probability) < 0.04  # four deviations


def test_an_odd_batch_is_refused():
    images, labels = batch(7)
    with pytest.raises(ValueError, match="need an even number of images a process and pass, got 7"):
        Mixer(4, 1.0, 0.0)(images, labels, 0)
