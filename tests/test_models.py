from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dnc_lib.checkpoints import ModelCard, read_model, save_model
from dnc_lib.data import DeviceLoader, load
from dnc_lib.evaluation import evaluate, evaluate_segmentation
from dnc_lib.heads import CosineHead, SoftmaxHead, SubCentroidHead
from dnc_lib.models import ImageClassifier, Segmenter, evaluating

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


# --- segmenters -----------------------------------------------------------------------------------------------------

SWIN, VIT = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"
SMALL = {  # backbone: its settings, the decoder
    "tiny_resnet8": ({}, "fcn"),
    "cifar_resnet20": ({}, "deeplabv3"),
    SWIN: ({"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}, "upernet"),
    VIT: ({"depth": 4}, "upernet"),
}


def segmenter(name: str = "tiny_resnet8", head: str = "dnc", classes: int = 3, **changes) -> Segmenter:
    torch.manual_seed(0)
    settings, decoder = SMALL[name]
    return Segmenter.build(name, decoder, classes, head, channels=8, **settings, **changes).eval()


SEGMENTERS = {name: segmenter(name) for name in SMALL}


def scores_of(model: Segmenter, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(SMALL)), st.integers(1, 70), st.integers(1, 70))
def test_any_image_size_gives_scores_of_that_size(name, height, width):
    images = torch.randn(1, 3, height, width)
    scores = scores_of(SEGMENTERS[name], images)
    assert scores.shape == (1, 3, height, width)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize(("name", "multiple"), [(SWIN, 4), (VIT, 16), ("tiny_resnet8", 1)])
def test_padding_is_as_if_the_image_had_a_border_of_zeros(name, multiple):
    model, images = SEGMENTERS[name], torch.randn(1, 3, 37, 50)
    assert model.multiple == multiple
    padded = F.pad(images, (0, -50 % multiple, 0, -37 % multiple))
    assert torch.equal(scores_of(model, images), scores_of(model, padded)[:, :, :37, :50])


@pytest.mark.parametrize("head", ["dnc", "softmax", "cosine", "frozen"])
def test_scores_are_made_at_the_decoders_resolution_and_then_brought_to_the_images(head):
    model, images = segmenter(head=head), torch.randn(2, 3, 20, 28)
    with torch.no_grad():
        features = model.features(images)
        small = model.head(features.movedim(1, -1)).movedim(-1, 1)
    assert features.shape == (2, 8, 5, 7)
    expected = F.interpolate(small, (20, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores_of(model, images), expected)


def test_at_every_place_the_prediction_is_the_nearest_sub_centroid():
    model, images = SEGMENTERS["tiny_resnet8"], torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        unit = model.embed(images)  # (B, D, h, w)
        scores = model.head(model.features(images).movedim(1, -1))  # (B, h, w, C)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2, 4, 6))
    nearest = torch.einsum("bdhw,ckd->bhwck", unit, model.head.subcentroids).flatten(3).argmax(3)
    assert torch.equal(scores.argmax(3), nearest // model.head.num_subcentroids)


def test_embed_of_a_segmenter_is_raw_under_softmax():
    model, images = segmenter(head="softmax"), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.embed(images), model.features(images))


def test_the_head_of_a_segmenter_has_ten_sub_centroids_and_leaves_255_out():
    head = segmenter().head
    assert (head.num_subcentroids, head.ignore_index) == (10, 255)
    assert segmenter(head_settings={"num_subcentroids": 2}).head.num_subcentroids == 2


def test_with_features_come_the_auxiliary_scores():
    model = segmenter(auxiliary=True)
    images = torch.randn(2, 3, 18, 22)
    with torch.no_grad():
        scores, features, beside = model(images, return_features=True)
        assert segmenter()(images, return_features=True)[2] is None
    assert scores.shape == beside.shape == (2, 3, 18, 22)
    assert torch.equal(features, model.features(images).detach())
    assert not torch.allclose(scores, beside)


def card_of(head: str, **changes) -> ModelCard:
    settings = {"classes": list("abc"), "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 0}
    return ModelCard("tiny_resnet8", head, {"memory_size": 8, "ignore_index": 255, **changes}, **settings)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("head", ["dnc", "softmax", "cosine", "frozen"])
def test_a_saved_segmenter_gives_the_same_scores_without_its_auxiliary_branch(head, memory, tmp_path):
    model = segmenter(head=head, auxiliary=True, head_settings={"memory_size": 8, "ignore_index": 255})
    card = replace(card_of(head), decoder="fcn", decoder_settings={"channels": 8, "output_stride": None})
    with torch.no_grad():
        for value in model.state_dict().values():  # unlike any new model
            if value.is_floating_point():
                value += 0.1 * torch.rand_like(value)
    save_model(model, card, tmp_path / "s.safetensors", memory=memory)
    again, read = read_model(tmp_path / "s.safetensors")
    assert isinstance(again, Segmenter)
    assert read == card
    assert again.auxiliary is None
    assert model.auxiliary is not None
    images = torch.randn(1, 3, 21, 33)
    assert torch.equal(scores_of(again, images), scores_of(model, images))
    state = again.state_dict()
    assert set(state) == {
        key for key in model.state_dict() if not key.startswith(("auxiliary.", *(["head.memory."] * (not memory))))
    } | ({key for key in state if key.startswith("head.memory.")})


def colours(numbers: list[int], count: int = 4, size: int = 24) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One batch of images in vertical stripes, one colour a class, in a random order."""
    palette = torch.tensor([[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 0], [0, 2, 2], [2, 0, 2]]).float()
    generator = torch.Generator().manual_seed(sum(numbers))
    labels = torch.empty(count, size, size, dtype=torch.long)
    for i in range(count):
        order = torch.tensor(numbers)[torch.randperm(len(numbers), generator=generator)]
        labels[i] = order[torch.arange(size) * len(numbers) // size].expand(size, size)
    images = palette[labels].permute(0, 3, 1, 2) + 0.1 * torch.randn(count, 3, size, size, generator=generator)
    return [(images, labels)]


def test_refresh_of_a_segmenter_brings_classes_that_it_never_saw():
    """Without a step: the sub-centroids of a random network's places, once for three classes, once for six."""
    torch.manual_seed(0)
    model = Segmenter.build("tiny_resnet8", "fcn", 6, channels=32, head_settings={"ignore_index": 255}).train()
    every = colours([0, 1, 2, 3, 4, 5])
    with torch.no_grad():
        for _ in range(20):  # no step: only the running statistics of the BatchNorms settle
            model(every[0][0])
    weights = [parameter.clone() for parameter in model.parameters()]
    model.refresh(colours([0, 1, 2]))
    assert evaluate_segmentation(model, colours([0, 1, 2]))["pixel_accuracy"] > 85
    assert max(evaluate_segmentation(model, every)["iou"][3:]) < 10
    model.refresh(every)
    assert min(evaluate_segmentation(model, every)["iou"]) > 75
    assert all(map(torch.equal, model.parameters(), weights))
    assert model.training


def test_refresh_leaves_unlabelled_pixels_out_and_takes_masks_of_their_own_size():
    model = segmenter(classes=6)
    ((images, labels),) = colours([0, 1, 2])
    seen = []
    model.head.estimate = lambda x, y: seen.append((x, y))
    hidden = labels.clone()
    hidden[:, :12] = 255  # the upper half
    fine = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint8)
    model.refresh([(images, fine)], pixels=7)
    ((x, y),) = seen
    assert x.shape == (len(y), model.head.dim)
    assert set(y.tolist()) <= {0, 1, 2}
    assert 0 < len(y) <= 7 * 3 * len(images)


def test_refresh_of_a_padded_image_gives_each_place_its_own_label():
    """37 pixels are three patches of 16, the last of which has its middle in the padding."""
    model = segmenter(VIT, classes=4, head_settings={"num_subcentroids": 1, "ignore_index": 255})
    seen = []
    model.head.estimate = lambda x, y: seen.append(y.tolist())
    rows = (torch.arange(37) // 16).view(1, 37, 1).expand(1, 37, 16)  # 0 for the first patch, 1, 2
    size = SEGMENTERS[VIT].features(torch.randn(1, 3, 37, 16)).shape[2:]
    assert tuple(size) == (3, 1)
    model.refresh([(torch.randn(1, 3, 37, 16), rows)])
    assert sorted(seen[0]) == [0, 1]


def test_what_a_segmenter_cannot_be_refreshed_with():
    with pytest.raises(ValueError, match="the loader gave no batch: nothing to estimate sub-centroids from"):
        segmenter().refresh([])
    with pytest.raises(ValueError, match="refresh needs a SubCentroidHead; a SoftmaxHead has nothing to estimate"):
        segmenter(head="softmax").refresh(colours([0]))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\] for 3 classes, found 5"):
        segmenter().refresh(colours([0, 5]))


def test_unknown_parts_of_a_segmenter():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet_18'; did you mean .*resnet18"):
        Segmenter.build("resnet_18", "fcn", 3)
    with pytest.raises(ValueError, match="unknown decoder 'unet': choose one of fcn, deeplabv3, upernet"):
        Segmenter.build("tiny_resnet8", "unet", 3)
    with pytest.raises(ValueError, match="head must be one of softmax, cosine, frozen, dnc, got 'svm'"):
        Segmenter.build("tiny_resnet8", "fcn", 3, "svm")
