import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dnc_lib.heads import SubCentroidHead
from dnc_lib.spreading import SPREADS, check_spread, spread_out


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(20, 40), st.sampled_from(SPREADS), st.integers(0, 99))
def test_they_stay_unit_vectors_of_the_same_shape(classes, number, dim, how, seed):
    before = unit(classes, number, dim, seed=seed)
    after = spread_out(before, how)
    assert after.shape == before.shape
    torch.testing.assert_close(after.norm(dim=-1), torch.ones(classes, number))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(20, 40), st.integers(0, 99))
def test_a_frame_is_orthonormal_and_none_is_nearer(classes, number, dim, seed):
    before = unit(classes, number, dim, seed=seed).flatten(0, 1).double()
    after = spread_out(before.view(classes, number, dim), "frame").flatten(0, 1)
    torch.testing.assert_close(after @ after.T, torch.eye(len(after)).double())
    distance = (after - before).norm()
    other = torch.linalg.qr(torch.randn(dim, len(after), generator=torch.Generator().manual_seed(seed)).double())[0].T
    nudged = torch.linalg.qr((after + 0.01 * other).T)[0].T  # a frame close by
    nudged *= (nudged * after).sum(1, keepdim=True).sign()
    for frame in (other, nudged):
        assert distance <= (frame - before).norm() + 1e-9


def test_merged_sub_centroids_come_apart_when_what_they_share_is_taken_away():
    shared = unit(1, 1, 16)
    close = F.normalize(shared + 0.2 * unit(3, 2, 16, seed=1), dim=-1)
    after = spread_out(close, "centred").flatten(0, 1)
    cosines = (after @ after.T)[~torch.eye(6, dtype=torch.bool)]
    assert (close.flatten(0, 1) @ close.flatten(0, 1).T).min() > 0.8
    assert abs(cosines.mean() + 1 / 5) < 0.05  # the mean of 6 directions that sum to nothing


def test_where_all_are_alike_there_is_no_way_apart():
    alike = unit(1, 1, 8).expand(2, 3, 8)
    assert torch.equal(spread_out(alike, "centred"), alike)
    one = unit(1, 1, 8)
    assert torch.equal(spread_out(one, "centred"), one)


@pytest.mark.parametrize("how", SPREADS)
def test_the_head_keeps_them_so_after_every_update(how):
    head = SubCentroidHead(24, 5, 3, momentum=0.5, memory_size=0, spread=how)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(40, 24, generator=generator) + 2  # all in one cone
        head.update(x, torch.arange(40) % 5)
    flat = head.subcentroids.flatten(0, 1)
    off = (flat @ flat.T)[~torch.eye(15, dtype=torch.bool)]
    assert (how == "frame") == (off.abs().max() < 1e-5)
    if how == "centred":
        assert off.mean() < 0


def test_frozen_ones_are_left_alone():
    head = SubCentroidHead(24, 5, 3, spread="frame", frozen=True)
    before = head.subcentroids.clone()
    head.update(torch.randn(40, 24), torch.arange(40) % 5)
    assert torch.equal(head.subcentroids, before)


def test_bad_input():
    with pytest.raises(ValueError, match="spread must be one of none, centred, frame, got 'far'"):
        check_spread("far", 2, 2, 8)
    wanted = r"10 x 4 sub-centroids cannot all be at right angles in 16 dimensions: spread='frame' needs C \* K <= D"
    with pytest.raises(ValueError, match=wanted):
        SubCentroidHead(16, 10, 4, spread="frame")
