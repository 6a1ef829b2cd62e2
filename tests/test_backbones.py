import pytest
import torch
from torch import nn

from dnc_lib.backbones import CifarResNet, build_backbone, feature_width
from dnc_lib.models import ImageClassifier


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear_head(width: int, classes: int = 10) -> int:
    return width * classes + classes


def resnet_parameters(blocks: int, width: int = 16) -> int:
    """The original network's parameters by arithmetic, convolutions and BatchNorms, without the classifier."""
    total, before = 3 * width * 9 + 2 * width, width
    for stage in range(3):
        after = width * 2**stage
        for block in range(blocks):
            total += (before if block == 0 else after) * after * 9 + after * after * 9 + 4 * after
        before = after
    return total


@pytest.mark.parametrize(
    ("depth", "published", "exact"), [(20, 0.27e6, 269_722), (32, 0.46e6, 464_154), (56, 0.85e6, 853_018)]
)
def test_cifar_resnets_have_the_parameters_of_the_original_paper(depth, published, exact):
    backbone = build_backbone(f"cifar_resnet{depth}")
    total = count(backbone) + linear_head(64)
    assert total == exact
    assert total == resnet_parameters((depth - 2) // 6) + linear_head(64)
    assert abs(total - published) < 0.01e6  # He et al. 2016, table 6 (0.46M is 464k)


def test_resnet50_on_cifar10_has_the_parameters_of_the_design():
    softmax = ImageClassifier.build("cifar_resnet50", 10, "softmax")
    dnc = ImageClassifier.build("cifar_resnet50", 10, "dnc", head_settings={"memory_size": 0})
    assert round(count(softmax) / 1e6, 2) == 23.52
    assert round(count(dnc) / 1e6, 2) == 23.50
    assert count(softmax) - count(softmax.backbone) == linear_head(2048)
    assert count(dnc) - count(dnc.backbone) == 2 * 2048  # the LayerNorm: nothing depends on the classes


@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "cifar_resnet20", "tiny_resnet8", "cifar_resnet18", "cifar_resnet50"]
)
def test_the_width_told_is_the_width_given(name):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, feature_width(backbone))


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_resnet50", "cifar_resnet101"])
def test_the_3x3_stem_keeps_the_resolution(name):
    backbone = build_backbone(name).eval()
    seen = {}
    for stage in ("layer1", "layer4"):
        getattr(backbone, stage).register_forward_hook(
            lambda _, __, y, stage=stage: seen.update({stage: y.shape[2:]})
        )
    with torch.no_grad():
        backbone(torch.randn(1, 3, 32, 32))
    assert seen == {"layer1": (32, 32), "layer4": (4, 4)}
    assert backbone.conv1.kernel_size == (3, 3)
    assert backbone.conv1.stride == (1, 1)


def test_stages_of_the_original_network_halve_the_resolution_and_double_the_width():
    backbone = CifarResNet(20).eval()
    shapes = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    with torch.no_grad():
        backbone(torch.randn(1, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_the_shortcut_adds_no_parameter_and_passes_the_image_through():
    block = CifarResNet(8).stages[1][0]
    assert not any("shortcut" in name for name, _ in block.named_parameters())
    nn.init.zeros_(block.bn2.weight)  # the block's own branch is silent: what comes out is the shortcut
    x = torch.rand(1, 16, 8, 8)
    y = block.eval()(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("depth", [0, 2, 9, 18, 51])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6n\+2 .* got {depth}"):
        CifarResNet(depth)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet18", "resnet18"])
def test_grey_images(name):
    backbone = build_backbone(name, in_chans=1).eval()
    with torch.no_grad():
        assert backbone(torch.randn(1, 1, 32, 32)).shape == (1, feature_width(backbone))


def test_unknown_names_meet_the_nearest():
    with pytest.raises(ValueError, match=r"unknown backbone 'cifar_resnet21'; did you mean .*cifar_resnet20"):
        build_backbone("cifar_resnet21")
    with pytest.raises(ValueError, match=r"timm.list_models\(\) lists what there is"):
        build_backbone("@@@")


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet18", "tiny_resnet8"])
def test_cifar_variants_have_no_pretrained_weights(name):
    with pytest.raises(ValueError, match=f"no pretrained weights for {name}; use pretrained=False"):
        build_backbone(name, pretrained=True)


def test_a_timm_model_without_weights_says_so():
    with pytest.raises(ValueError, match="no pretrained weights for resnet200"):
        build_backbone("resnet200", pretrained=True)


def test_a_backbone_that_does_not_tell_its_width_is_refused():
    with pytest.raises(ValueError, match="Flatten does not tell its feature width; give it a num_features"):
        feature_width(nn.Flatten())
