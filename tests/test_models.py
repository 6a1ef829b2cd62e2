import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dnc_lib.data import DeviceLoader, load
from dnc_lib.evaluation import evaluate
from dnc_lib.heads import CosineHead, SoftmaxHead, SubCentroidHead
from dnc_lib.models import ImageClassifier, evaluating

FAMILIES = {  # name: (side of the images, settings)
    "resnet18": (32, {}),
    "convnext_atto": (32, {}),
    "tf_efficientnet_lite0": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "window_size": 2}),
    "mobilenetv3_small_050": (32, {}),  # its head widens the features
    "mobilenetv4_conv_small": (32, {}),  # so does this
    "regnety_002": (32, {}),
    "densenet121": (32, {}),
    "levit_128s": (224, {}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_any_timm_model_becomes_a_dnc_in_one_line(name):
    size, settings = FAMILIES[name]
    model = ImageClassifier.from_timm(name, num_classes=5, head_settings={"memory_size": 16}, **settings)
    images, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 3])
    before = model.head.subcentroids.clone()
    scores, features = model(images, return_features=True)
    assert scores.shape == (4, 5)
    assert features.shape == (4, model.head.dim)

    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = F.cross_entropy(scores, labels)
    loss.backward()
    optimizer.step()
    model.head.update(features, labels)

    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learned if name.startswith("head.")} == {"head.norm.weight", "head.norm.bias"}
    without = [name for name in learned if model.get_parameter(name).grad is None]
    assert not without, f"no gradient reached {without}"
    assert sum(model.get_parameter(name).grad.abs().sum() for name in learned) > 0
    moved = (model.head.subcentroids - before).flatten(1).norm(dim=1) > 0
    assert moved.tolist() == [True, True, True, True, False]  # class 4 had no sample
    assert torch.isfinite(loss)
    assert model.head.memory.stored()[1].tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("head", "kind", "learned"),
    [
        ("dnc", SubCentroidHead, {"norm.weight", "norm.bias"}),
        ("frozen", SubCentroidHead, {"norm.weight", "norm.bias"}),
        ("cosine", CosineHead, {"norm.weight", "norm.bias", "prototypes"}),
        ("softmax", SoftmaxHead, {"linear.weight", "linear.bias"}),
    ],
)
def test_what_learns_in_each_arm(head, kind, learned):
    model = ImageClassifier.build("tiny_resnet8", 3, head)
    assert type(model.head) is kind
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert {name for name, parameter in model.head.named_parameters() if parameter.grad is not None} == learned
    assert {name for name, _ in model.head.named_parameters()} == learned
    for name, buffer in model.named_buffers():
        assert not buffer.requires_grad, name


def test_the_sub_centroids_get_no_gradient_and_are_no_parameter():
    model = ImageClassifier.build("tiny_resnet8", 3)
    names = dict(model.named_parameters())
    assert not any("subcentroids" in name or "memory" in name for name in names)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert model.head.subcentroids.grad is None


def test_the_prediction_is_the_nearest_sub_centroid():
    model = ImageClassifier.build("tiny_resnet8", 3).eval()
    images = torch.randn(16, 3, 8, 8)
    nearest = (model.embed(images) @ model.head.subcentroids.flatten(0, 1).T).argmax(1)
    assert torch.equal(model(images).argmax(1), nearest // model.head.num_subcentroids)


def test_embed_is_of_unit_length_but_raw_under_softmax():
    images = torch.randn(4, 3, 8, 8)
    lengths = ImageClassifier.build("tiny_resnet8", 3).embed(images).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(4))
    softmax = ImageClassifier.build("tiny_resnet8", 3, "softmax").eval()
    assert torch.equal(softmax.embed(images), softmax.features(images))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_backbone_without_pooling_is_refused(name):
    settings = {"img_size": 32} if name.startswith("vit") else {}
    model = ImageClassifier.from_timm(name, 3, global_pool="", **settings).eval()
    with pytest.raises(ValueError, match=r"must end in pooled features \(B, \d+\), got \(1, .*global pooling"):
        model(torch.randn(1, 3, 32, 32))


def test_a_backbone_whose_width_is_not_what_it_said_is_refused():
    model = ImageClassifier(nn.Flatten(), SubCentroidHead(10, 3))
    with pytest.raises(ValueError, match=r"dim=10"):
        model(torch.randn(2, 3, 4, 4))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet_18'; did you mean .*resnet18"):
        ImageClassifier.from_timm("resnet_18", 10)
    with pytest.raises(ValueError, match="head must be one of softmax, cosine, frozen, dnc, got 'svm'"):
        ImageClassifier.build("tiny_resnet8", 10, "svm")
    with pytest.raises(ValueError, match="num_classes"):
        ImageClassifier.build("tiny_resnet8", 0)


# --- refresh --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    train, test = load("digits")
    mean, std = train.channel_stats()
    return DeviceLoader(train, 500, mean, std), DeviceLoader(test, 500, mean, std)


def test_refresh_makes_even_an_untrained_network_useful(digits):
    train, test = digits
    torch.manual_seed(0)
    model = ImageClassifier.build("tiny_resnet8", 10)
    model.train()
    for images, _ in train:  # no step: only the running statistics of the BatchNorms settle
        model.features(images)
    before = evaluate(model, test)["accuracy"]
    model.refresh(train)
    after = evaluate(model, test)["accuracy"]
    assert before < 30
    assert after > 65
    torch.testing.assert_close(model.head.subcentroids.norm(dim=-1), torch.ones(10, 4))


def test_refresh_brings_classes_that_training_never_saw(digits):
    train, test = digits
    torch.manual_seed(0)
    model = ImageClassifier.build("tiny_resnet8", 10, head_settings={"momentum": 0.9, "memory_size": 256})
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for _ in range(6):
        for images, labels in train:
            old = labels < 7
            scores, features = model(images[old], return_features=True)
            loss = F.cross_entropy(scores, labels[old])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.head.update(features.detach(), labels[old])

    def accuracy_of_new():
        hits = [(model.eval()(images).argmax(1) == labels)[labels >= 7] for images, labels in test]
        return torch.cat(hits).float().mean().item()

    assert accuracy_of_new() < 0.35
    model.refresh(train)
    assert accuracy_of_new() > 0.7


def test_refresh_restores_every_module_to_its_mode(digits):
    model = ImageClassifier.build("tiny_resnet8", 10).train()
    model.backbone.bn.eval()  # a BatchNorm that someone holds still
    statistics = model.backbone.stages[0][0].bn1.running_mean.clone()
    model.refresh(digits[1])
    assert model.training
    assert model.head.training
    assert not model.backbone.bn.training
    assert torch.equal(model.backbone.stages[0][0].bn1.running_mean, statistics)
    model.eval().refresh(digits[1])
    assert not model.training


def test_modes_are_restored_after_an_error_too():
    model = ImageClassifier.build("tiny_resnet8", 10).train()

    def fails():
        with evaluating(model) as device:
            assert not model.training
            assert device == torch.device("cpu")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert model.training


@pytest.mark.parametrize("head", ["softmax", "cosine"])
def test_refresh_needs_sub_centroids(head, digits):
    model = ImageClassifier.build("tiny_resnet8", 10, head)
    with pytest.raises(ValueError, match=r"refresh needs a SubCentroidHead; a .*Head has nothing to estimate"):
        model.refresh(digits[0])


def test_refresh_needs_images():
    with pytest.raises(ValueError, match="the loader gave no batch"):
        ImageClassifier.build("tiny_resnet8", 10).refresh([])


def test_refresh_on_labels_out_of_range_changes_nothing():
    model = ImageClassifier.build("tiny_resnet8", 3)
    before = model.head.subcentroids.clone()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\] for 3 classes, found 7"):
        model.refresh([(torch.randn(2, 3, 8, 8), torch.tensor([0, 7]))])
    assert torch.equal(model.head.subcentroids, before)
