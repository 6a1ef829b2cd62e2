import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dnc_lib.backbones import build_backbone
from dnc_lib.decoders import DECODERS, FCN, AuxiliaryDecoder, DeepLabV3, UPerNet, build_auxiliary, build_decoder
from dnc_lib.feature_maps import dense_settings

WIDTHS = (4, 6, 8, 10)
ONE_VALUE = (
    "^BatchNorm sees one value a channel here, since this decoder averages each image to a single place: train with "
    r"at least two images a process and pass \(batch_size, accumulate\)$"
)


def maps_of(batch: int = 2, sizes=((16, 24), (8, 12), (4, 6), (2, 3)), widths=WIDTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, w, *size, generator=generator)
        for w, size in zip(widths[-len(sizes) :], sizes, strict=True)
    ]


def made(name: str, widths=WIDTHS, **changes):
    torch.manual_seed(0)
    return build_decoder(name, widths, **{"channels": 12, **changes})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def block(in_width: int, width: int, side: int = 3) -> int:
    """Parameters of a convolution without bias and its BatchNorm."""
    return in_width * width * side**2 + 2 * width


def test_parameters_by_arithmetic():
    widths, d = (256, 512, 1024, 2048), 512
    with torch.device("meta"):
        assert count(build_decoder("fcn", widths)) == block(2048, d) + block(d, d) + block(2048 + d, d)
        branches = 2 * block(2048, d, 1) + 3 * block(2048, d)
        assert count(build_decoder("deeplabv3", widths)) == branches + block(5 * d, d)
        pyramid = 4 * block(2048, d, 1) + block(2048 + 4 * d, d)
        levels = sum(block(width, d, 1) for width in widths[:3]) + 3 * block(d, d)
        assert count(build_decoder("upernet", widths)) == pyramid + levels + block(4 * d, d)
        assert count(build_auxiliary(widths)) == block(1024, 256)


@pytest.mark.parametrize(
    ("name", "widths", "published"),
    [
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768), 60),
        ("swin_base_patch4_window7_224", (128, 256, 512, 1024), 121),
    ],
)
def test_upernet_on_swin_has_the_parameters_published(name, widths, published):
    """Liu et al. 2021, table 3, ADE20K, in millions: with the auxiliary branch, and classifiers of 150 classes."""
    with torch.device("meta"):
        parts = (
            build_backbone(name, **dense_settings(name)),
            build_decoder("upernet", widths),
            build_auxiliary(widths),
            nn.Conv2d(512, 150, 1),
            nn.Conv2d(256, 150, 1),
        )
    assert round(sum(map(count, parts)) / 1e6) == published


@pytest.mark.parametrize("name", DECODERS)
def test_the_embedding_has_the_width_told_and_every_parameter_learns(name):
    decoder = made(name).train()
    y = decoder(maps_of())
    assert decoder.width == 12
    assert y.shape == (2, 12, *((16, 24) if name == "upernet" else (2, 3)))
    (y * torch.randn_like(y)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


def test_what_each_decoder_looks_at():
    for name, seen in (("fcn", {3}), ("deeplabv3", {3}), ("upernet", {0, 1, 2, 3})):
        maps = [x.requires_grad_() for x in maps_of()]
        made(name).eval()(maps).square().sum().backward()
        assert {i for i, x in enumerate(maps) if x.grad is not None} == seen, name
    maps = [x.requires_grad_() for x in maps_of()]
    build_auxiliary(WIDTHS).eval()(maps).square().sum().backward()
    assert [i for i, x in enumerate(maps) if x.grad is not None] == [2]


def places_reached(decoder, size: int) -> set[tuple[int, int]]:
    """Offsets from the middle of a square map to places of the embedding that a change there reaches."""
    decoder = decoder.eval().double()
    x = torch.randn(1, WIDTHS[-1], size, size, dtype=torch.float64)
    other = x.clone()
    other[:, :, size // 2, size // 2] += 5
    front = [torch.zeros(1, width, size, size, dtype=torch.float64) for width in WIDTHS[:-1]]
    with torch.no_grad():
        changed = (decoder([*front, other]) - decoder([*front, x])).abs().amax((0, 1)) > 1e-12
    return {(int(r) - size // 2, int(c) - size // 2) for r, c in changed.nonzero()}


def test_fcn_sees_as_far_as_three_convolutions_of_3x3():
    near = {(r, c) for r in range(-3, 4) for c in range(-3, 4)}
    assert places_reached(made("fcn", channels=32), 15) == near


def test_deeplab_sees_at_three_distances_and_the_whole_image():
    decoder = made("deeplabv3", channels=32, rates=(2, 4, 6))
    assert len(places_reached(decoder, 31)) == 31 * 31  # by its pooled branch
    decoder.branches.convs[-1][1].weight.data.zero_()  # that branch silent, nine points at each rate remain,
    spread = {(s * r, t * r) for r in (2, 4, 6) for s in (-1, 0, 1) for t in (-1, 0, 1)}
    around = {(r + i, c + j) for r, c in spread for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert places_reached(decoder, 31) == around  # widened by the 3x3 convolution after them


def test_deeplab_ends_in_one_3x3_convolution_over_five_branches():
    decoder = made("deeplabv3").eval()
    assert decoder.branches.project[0].weight.shape == (12, 5 * 12, 3, 3)
    assert [conv[0].dilation[0] for conv in list(decoder.branches.convs)[1:4]] == [12, 24, 36]
    assert [m.p for m in decoder.modules() if isinstance(m, nn.Dropout)] == []  # torchvision's, of 0.5, is gone
    assert decoder.dropout.p == 0.1


def test_upernet_is_its_formula():
    """The layout written out with functions alone, in evaluation mode: BatchNorm begins as x / sqrt(1 + eps)."""
    decoder = made("upernet").eval()
    maps = maps_of()

    def layer(part, x, padding):
        return F.relu(F.conv2d(x, part[0].weight, padding=padding) / (1 + 1e-5) ** 0.5)

    def to(x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    last = maps[3]
    grids = [
        to(layer(decoder.pooled[i], F.adaptive_avg_pool2d(last, s), 0), last) for i, s in enumerate((1, 2, 3, 6))
    ]
    top = layer(decoder.top, torch.cat([last, *grids], 1), 1)
    third = layer(decoder.lateral[2], maps[2], 0) + to(top, maps[2])
    second = layer(decoder.lateral[1], maps[1], 0) + to(third, maps[1])
    first = layer(decoder.lateral[0], maps[0], 0) + to(second, maps[0])
    levels = [layer(decoder.smooth[i], x, 1) for i, x in enumerate((first, second, third))]
    expected = layer(decoder.fuse, torch.cat([to(x, first) for x in (*levels, top)], 1), 1)
    with torch.no_grad():
        torch.testing.assert_close(decoder(maps), expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(DECODERS),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_any_number_and_size_of_maps(name, batch, sizes):
    widths = WIDTHS[-len(sizes) :]
    decoder = made(name, widths, channels=5).eval()
    with torch.no_grad():
        y = decoder(maps_of(batch, sizes, widths))
    assert y.shape == (batch, 5, *(sizes[0] if name == "upernet" else sizes[-1]))
    assert torch.isfinite(y).all()


def test_images_of_a_batch_do_not_mix_in_evaluation():
    for name in DECODERS:
        decoder, maps = made(name).eval(), maps_of(3)
        with torch.no_grad():
            together = decoder(maps)
            alone = torch.cat([decoder([x[i : i + 1] for x in maps]) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["deeplabv3", "upernet"])
def test_one_image_a_step_is_refused_where_batchnorm_cannot_be(name):
    decoder = made(name).train()
    with pytest.raises(ValueError, match=ONE_VALUE):
        decoder(maps_of(1))
    decoder.eval()(maps_of(1))
    decoder.train()(maps_of(2))
    for module in decoder.modules():  # frozen statistics need no batch
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    decoder(maps_of(1))


def test_fcn_trains_on_one_image_unless_its_map_is_a_single_place():
    for decoder in (made("fcn").train(), build_auxiliary(WIDTHS).train()):
        decoder(maps_of(1))
        with pytest.raises(ValueError, match=ONE_VALUE):
            decoder(maps_of(1, ((1, 1),) * 4))


def test_dropout_silences_whole_channels_in_training_alone():
    torch.manual_seed(0)
    for decoder in (made("fcn", channels=400), build_auxiliary(WIDTHS, channels=400)):
        maps = maps_of(4)
        silent = (decoder.train()(maps) == 0).all(3).all(2).float().mean().item()
        assert 0.07 < silent < 0.14  # a tenth, and a few channels whose ReLU is dark everywhere
        decoder.eval()
        with torch.no_grad():
            assert torch.equal(decoder(maps), decoder(maps))
            assert (decoder(maps) == 0).all(3).all(2).float().mean() < 0.04


@pytest.mark.parametrize("name", DECODERS)
def test_convolutions_begin_as_the_public_baselines(name):
    """Kaiming normal, fan out: variance 2 / (width * side^2); BatchNorm begins as the identity."""
    decoder = made(name, (32, 64), channels=64)
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones(64))


def test_the_auxiliary_decoder_takes_the_only_map_if_there_is_no_other():
    decoder = build_auxiliary((7,), channels=3).eval()
    assert isinstance(decoder, AuxiliaryDecoder)
    assert decoder(maps_of(1, ((4, 5),), (7,))).shape == (1, 3, 4, 5)
    assert build_auxiliary(WIDTHS).width == 256


def test_names_and_kinds():
    kinds = {name: type(build_decoder(name, (4, 4), channels=4)) for name in DECODERS}
    assert kinds == {"fcn": FCN, "deeplabv3": DeepLabV3, "upernet": UPerNet}
    with pytest.raises(ValueError, match=r"^unknown decoder 'unet': choose one of fcn, deeplabv3, upernet$"):
        build_decoder("unet", WIDTHS)


@pytest.mark.parametrize("name", ["fcn", "upernet"])
def test_rates_without_dilated_branches_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} has no dilated branches: leave rates out, or take deeplabv3$"):
        build_decoder(name, WIDTHS, rates=(6, 12, 18))


@pytest.mark.parametrize("name", DECODERS)
def test_maps_that_are_not_those_built_for_are_refused(name):
    with pytest.raises(ValueError, match=r"^a decoder needs at least one feature map: widths is empty$"):
        build_decoder(name, [])
    with pytest.raises(
        ValueError, match=r"^this decoder was built for maps of widths \(4, 6, 8, 10\), got \(6, 8, 10\)$"
    ):
        made(name)(maps_of()[1:])
