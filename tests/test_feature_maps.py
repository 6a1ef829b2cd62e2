import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dnc_lib.backbones import build_backbone, feature_width
from dnc_lib.feature_maps import (
    dense_settings,
    feature_maps,
    input_multiple,
    map_strides,
    map_widths,
    without_place,
)

SWIN, VIT, LITE0 = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "tf_efficientnet_lite0"

#: name: widths, strides, what the sides of an image must be multiples of
KNOWN = {
    "resnet50": ([256, 512, 1024, 2048], [4, 8, 16, 32], 1),
    LITE0: ([24, 40, 112, 1280], [4, 8, 16, 32], 1),
    "mobilenetv3_small_100": ([16, 24, 48, 1024], [4, 8, 16, 32], 1),
    "convnext_atto": ([40, 80, 160, 320], [4, 8, 16, 32], 32),
    SWIN: ([96, 192, 384, 768], [4, 8, 16, 32], 4),
    VIT: ([192] * 4, [16] * 4, 16),
    "regnety_002": ([24, 56, 152, 368], [4, 8, 16, 32], 1),
    "tiny_resnet8": ([8, 16, 32], [1, 2, 4], 1),
    "cifar_resnet20": ([16, 32, 64], [1, 2, 4], 1),
    "cifar_resnet18": ([64, 128, 256, 512], [1, 2, 4, 8], 1),
    "cifar_fast_narrow": ([32, 64, 128], [4, 8, 16], 1),
}


def lively(backbone: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics and scales that differ, so that no layer is the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.bias is not None:
            for weight in (module.weight, module.bias):
                nn.init.normal_(weight, 0.5, 0.2, generator=generator)
    return backbone.eval()


@functools.cache
def dense(name: str, output_stride: int | None = None, **changes) -> nn.Module:
    """A backbone for dense use, built once. Read it, do not change it."""
    torch.manual_seed(0)
    return lively(build_backbone(name, **{**dense_settings(name, output_stride), **changes}))


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_told_of_the_maps_is_what_comes(name):
    widths, strides, multiple = KNOWN[name]
    backbone = dense(name)
    assert map_widths(backbone) == widths
    assert map_strides(backbone) == strides
    assert input_multiple(backbone) == multiple
    with torch.no_grad():
        maps = feature_maps(backbone, torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, w, 64 // s, 96 // s) for w, s in zip(widths, strides, strict=True)]


@pytest.mark.parametrize(
    ("name", "side", "changes"),
    [
        ("resnet18", 32, {}),
        (LITE0, 32, {}),
        ("mobilenetv3_small_100", 32, {}),  # a 1x1 convolution and its activation after the pooling
        ("mobilenetv4_conv_small", 32, {}),  # the same, with BatchNorm
        ("convnext_atto", 32, {}),  # a LayerNorm after the pooling
        (SWIN, 32, {}),
        (VIT, 16, {"global_pool": "avg"}),  # the norm comes after the pooling
        ("eva02_tiny_patch14_224", 14, {}),  # so it does here
        ("cifar_resnet20", 4, {}),
        ("cifar_fast_narrow", 16, {}),
    ],
)
def test_of_an_image_with_a_single_place_the_last_map_is_the_pooled_feature(name, side, changes):
    backbone = dense(name, **changes)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        last = feature_maps(backbone, images)[-1]
        pooled = backbone(images)
    assert last.shape == (3, feature_width(backbone), 1, 1)
    torch.testing.assert_close(last.flatten(1), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18", LITE0, SWIN, "cifar_resnet20", "convnext_atto", "mobilenetv3_small_100"]
)
def test_the_mean_of_the_last_map_is_the_pooled_feature_unless_a_nonlinear_layer_stands_between(name):
    backbone = dense(name)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        mean, pooled = feature_maps(backbone, images)[-1].mean((2, 3)), backbone(images)
    between = name in ("convnext_atto", "mobilenetv3_small_100")
    assert torch.allclose(mean, pooled, rtol=1e-4, atol=1e-5) is not between


def test_a_transformer_gives_the_patches_in_place_and_no_class_token():
    backbone = dense(VIT)
    images = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        tokens = backbone.forward_features(images)  # (1, 1 + 3 * 2, 192), the final norm passed
        last = feature_maps(backbone, images)[-1]
    for row in range(3):
        for column in range(2):
            torch.testing.assert_close(last[0, :, row, column], tokens[0, 1 + 2 * row + column])


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilation_adds_places_between_those_that_were_there(name, stride):
    """Every 32/stride-th place of the dilated network's map is the ordinary network's (Chen et al. 2017)."""
    plain, dilated = dense(name), build_backbone(name, **dense_settings(name, stride)).eval()
    dilated.load_state_dict(plain.state_dict())
    assert max(map_strides(dilated)) == stride
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        few, many = feature_maps(plain, images)[-1], feature_maps(dilated, images)[-1]
    step = 32 // stride
    torch.testing.assert_close(many[:, :, ::step, ::step], few, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many[:, :, 1::step, 1::step], few, rtol=1e-2)


@pytest.mark.parametrize("output_stride", [None, 16, 8])
@pytest.mark.parametrize("name", [*KNOWN, "deit_tiny_patch16_224"])
def test_a_classifiers_state_dict_fits_name_by_name(name, output_stride):
    try:
        given_settings = dense_settings(name, output_stride)
    except ValueError:
        assert output_stride is not None  # not every backbone can; that is tested below
        return
    classifier = build_backbone(name).state_dict()
    backbone = build_backbone(name, **given_settings)
    assert {k: v.shape for k, v in backbone.state_dict().items()} == {k: v.shape for k, v in classifier.items()}
    backbone.load_state_dict(classifier)


def test_a_swin_classifier_of_small_images_keeps_its_tables():
    classifier = build_backbone(SWIN, img_size=64).state_dict()
    backbone = build_backbone(SWIN, img_size=64, **dense_settings(SWIN)).eval()
    backbone.load_state_dict(classifier)
    with torch.no_grad():
        assert feature_maps(backbone, torch.randn(1, 3, 96, 160))[-1].shape == (1, 768, 3, 5)


@pytest.mark.parametrize("name", [name for name in KNOWN if name != VIT])
def test_every_parameter_has_a_place_in_the_dense_path(name):
    assert without_place(dense(name)) == []


def test_a_parameter_without_place_is_named_and_truly_idle():
    backbone = build_backbone(
        "poolformerv2_s12"
    ).eval()  # its norm after the pooling is not one of those that are applied by place
    idle = without_place(backbone)
    assert idle == ["head.norm.weight", "head.norm.bias"]
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        before = feature_maps(backbone, images)
        for key, parameter in backbone.named_parameters():
            if key in idle:
                parameter.add_(1)
        assert all(torch.equal(a, b) for a, b in zip(before, feature_maps(backbone, images), strict=True))
        backbone.stages[-1].blocks[-1].norm2.weight.add_(1)
        assert not torch.equal(before[-1], feature_maps(backbone, images)[-1])


def test_freezing_hides_nothing_and_is_left_as_it_was():
    backbone = build_backbone("tiny_resnet8")
    backbone.extra = nn.Linear(2, 2)
    backbone.extra.weight.requires_grad_(False)
    backbone.conv.weight.requires_grad_(False)
    with torch.inference_mode():
        assert without_place(backbone) == ["extra.weight", "extra.bias"]
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == ["conv.weight", "extra.weight"]


def test_asking_leaves_no_trace():
    backbone = build_backbone(LITE0).train()
    backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    noise = torch.random.get_rng_state()
    map_widths(backbone), map_strides(backbone), without_place(backbone)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert torch.equal(torch.random.get_rng_state(), noise)


def test_in_training_the_maps_update_the_running_statistics_and_carry_gradients():
    backbone = build_backbone("mobilenetv4_conv_small").train()
    sum(x.square().mean() for x in feature_maps(backbone, torch.randn(2, 3, 64, 64))).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in backbone.conv_head.parameters())
    assert backbone.norm_head.running_mean.abs().sum() > 0


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["tiny_resnet8", "resnet18", LITE0, "cifar_resnet18"]), st.integers(1, 90), st.integers(1, 90))
def test_backbones_that_pad_take_any_size_and_lose_no_border(name, height, width):
    strides = [4, 8, 16, 32] if name == "resnet18" else KNOWN[name][1]
    with torch.no_grad():
        maps = feature_maps(dense(name), torch.randn(1, 3, height, width))
    assert [x.shape[2:] for x in maps] == [(-(-height // s), -(-width // s)) for s in strides]
    assert all(torch.isfinite(x).all() for x in maps)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (SWIN, (66, 64), r"SwinTransformer takes .* multiples of 4, got 66 x 64: pad them to 68 x 64$"),
        (VIT, (64, 65), r"VisionTransformer takes .* multiples of 16, got 64 x 65: pad them to 64 x 80$"),
        ("convnext_atto", (1, 32), r"ConvNeXt takes .* multiples of 32, got 1 x 32: pad them to 32 x 32$"),
    ],
)
def test_a_size_that_cannot_be_says_what_to_pad_to(name, size, message):
    with pytest.raises(ValueError, match=message):
        feature_maps(dense(name), torch.randn(1, 3, *size))


def test_a_backbone_built_for_one_size_names_the_remedy():
    backbone = build_backbone(SWIN).eval()
    assert map_widths(backbone) == KNOWN[SWIN][0]  # asked of the one size that it takes
    with pytest.raises(
        ValueError,
        match=r"^this SwinTransformer takes images of 224 x 224 only, got 64 x 96: build it with the settings that "
        r"dense_settings gives$",
    ):
        feature_maps(backbone, torch.randn(1, 3, 64, 96))


def test_a_module_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"Flatten gives no feature maps: take a backbone that has timm's forward_"):
        feature_maps(nn.Flatten(), torch.randn(1, 3, 8, 8))


def test_settings_for_dense_use():
    assert dense_settings("resnet50") == {}
    assert dense_settings("resnet50", 8) == {"output_stride": 8}
    assert dense_settings(LITE0, 16) == {"output_stride": 16}
    assert dense_settings(SWIN) == {"strict_img_size": False}
    assert dense_settings(VIT) == {"dynamic_img_size": True}
    assert dense_settings("tiny_resnet8") == dense_settings("cifar_resnet18") == dense_settings("cifar_fast") == {}
    assert dense_settings("nobody_knows", 8) == {}  # build_backbone refuses it, with the nearest names


@pytest.mark.parametrize("name", [SWIN, "mobilenetv3_small_100", VIT])
def test_an_output_stride_that_cannot_be_names_what_can(name):
    with pytest.raises(
        ValueError,
        match=rf"^{name} cannot be built with output stride 8: leave output_stride out and take the decoder upernet, "
        r"which uses every scale, or a ResNet, whose stride can be 8, 16 or 32$",
    ):
        dense_settings(name, 8)


def test_an_output_stride_that_no_network_has_is_refused():
    with pytest.raises(ValueError, match="resnet18 cannot be built with output stride 7"):
        dense_settings("resnet18", 7)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet18", "cifar_fast", "tiny_resnet8"])
def test_networks_for_small_images_have_one_stride(name):
    with pytest.raises(
        ValueError, match=f"^{name} is made for small images and has a fixed stride: leave output_str"
    ):
        dense_settings(name, 8)


def test_a_backbone_of_one_size_is_refused():
    with pytest.raises(ValueError, match=r"^mixer_s16_224 takes images of one size only, and segmentation needs any"):
        dense_settings("mixer_s16_224")
