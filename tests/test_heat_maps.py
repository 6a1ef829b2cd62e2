"""A heat map's mean is the similarity: by hand, for every way to pool, and not for what only looks like it."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dnc_lib.heads import CosineHead, NormalizedHead, SubCentroidHead
from dnc_lib.heat_maps import (
    LISTED,
    TOLERANCE,
    HeatMap,
    NoPlaces,
    enlarged,
    heat_maps,
    held_norm,
    scene_maps,
    similarity_maps,
)
from dnc_lib.models import ImageClassifier, Segmenter, evaluating


def classifier(name, head="dnc", seed=0, **settings):
    """Untrained, but with a norm whose gain and bias are far from 1 and 0."""
    torch.manual_seed(seed)
    model = ImageClassifier.build(name, 4, head, head_settings={"memory_size": 0}, **settings)
    with torch.no_grad():
        model.head.norm.weight.normal_(1, 0.5)
        model.head.norm.bias.normal_(0, 0.5)
    return model


def images(number=2, side=32, seed=0):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


def directions(number, width, seed=1):
    return F.normalize(torch.randn(number, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def embedded(model, batch):
    with torch.no_grad(), evaluating(model):
        return model.embed(batch)


# --- the mean is the similarity -------------------------------------------------------------------------------------

EXACT = {
    "cifar_resnet8": {},  # this package's, an average
    "tiny_resnet8": {},
    "cifar_fast_narrow": {},  # a maximum
    "resnet18": {"in_chans": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "mixer_s32_224": {"img_size": 64},  # tokens
}


@pytest.mark.parametrize("name", EXACT)
def test_the_mean_is_the_similarity(name):
    model = classifier(name, **EXACT[name])
    batch = images(side=64 if EXACT[name] else 32)
    targets = directions(2, model.head.dim)
    maps = similarity_maps(model, batch, targets)
    wanted = (embedded(model, batch) * targets).sum(1)
    assert maps.values.dim() == 3
    assert maps.values.shape[1] == maps.values.shape[2] > 1
    assert torch.allclose(maps.similarity, wanted, atol=1e-5)
    assert torch.allclose(maps.values.mean((1, 2)), wanted, atol=1e-5)
    assert maps.values.flatten(1).std(1).min() > 1e-4  # it says where: it is no constant
    assert maps.gap.abs().max() < 1e-5


def test_by_hand_where_places_are_averaged():
    model = classifier("tiny_resnet8").double()
    batch, targets = images(3, 16).double(), directions(3, 32).double()
    maps = similarity_maps(model, batch, targets)
    backbone, norm = model.backbone.eval(), model.head.norm.requires_grad_(False)
    with torch.no_grad():
        last = backbone.stages(F.relu(backbone.bn(backbone.conv(batch))))  # (3, 32, 4, 4)
    for n in range(3):
        f = last[n].mean((1, 2))
        mean, std = f.mean(), (f.var(unbiased=False) + norm.eps).sqrt()
        length = ((f - mean) / std * norm.weight + norm.bias).norm()
        for i in range(4):
            for j in range(4):
                g = last[n, :, i, j]
                # the norm takes away the place's own mean, but divides by the spread and the length of the pooled
                # feature: an average of such numbers is the same of the average
                there = float(((g - g.mean()) / std * norm.weight + norm.bias) @ targets[n] / length)
                assert float(maps.values[n, i, j]) == pytest.approx(there, abs=1e-12)


def test_by_hand_where_the_largest_place_wins():
    """Only the place that won a channel has a share of it."""
    model = classifier("cifar_fast_narrow").double()
    batch, targets = images(1).double(), directions(1, 128).double()
    (values,) = similarity_maps(model, batch, targets).values
    with torch.no_grad():
        last = model.backbone.eval().forward_features(batch)[0]  # (128, h, w)
        weights, constant, _ = held_norm(model.head, last.amax((1, 2))[None], targets)
    by_hand = torch.zeros_like(values)
    for d, winner in enumerate(last.flatten(1).argmax(1).tolist()):
        by_hand.view(-1)[winner] += float(weights[0, d] * last[d].max()) * values.numel()
    assert torch.allclose(values, by_hand + constant, atol=1e-10)


def test_norms_of_each_place_alone_would_not_do():
    """The plausible mistakes miss the similarity by far more than the tolerance."""
    model = classifier("cifar_resnet8")
    batch, targets = images(4), directions(4, 64)
    maps = similarity_maps(model, batch, targets)
    backbone = model.backbone.eval()
    with torch.no_grad():
        last = backbone.stages(F.relu(backbone.bn(backbone.conv(batch))))
        cosines = model.head.embed(last.movedim(1, -1)) @ targets[0]  # each place by its own norm
        assert (cosines.mean((1, 2)) - maps.similarity)[0].abs() > 100 * TOLERANCE
    features = last.mean((2, 3)).requires_grad_()
    similarity = (model.head.embed(features) * targets).sum(1)
    (gradient,) = torch.autograd.grad(similarity.sum(), features)  # nothing is held
    free = torch.einsum("nd,ndhw->nhw", gradient, last.detach())
    assert ((free.mean((1, 2)) - maps.similarity).abs() > 100 * TOLERANCE).all()


def test_with_nothing_held_gradient_times_feature_says_nothing():
    """Why the norm's statistics are held: without a bias the similarity does not know the feature's length."""
    head = SubCentroidHead(16, 3, memory_size=0).double()
    head.norm.eps = 0.0
    features = torch.randn(5, 16, dtype=torch.double, requires_grad=True)
    similarity = (head.embed(features) * directions(5, 16).double()).sum(1)
    (gradient,) = torch.autograd.grad(similarity.sum(), features)
    assert (gradient * features).sum(1).abs().max() < 1e-12
    assert similarity.abs().min() > 1e-3


def test_the_affine_form_is_the_similarity_itself():
    head = SubCentroidHead(24, 3, memory_size=0).double()
    with torch.no_grad():
        head.norm.weight.normal_(1, 0.5)
        head.norm.bias.normal_(0, 0.5)
    features, targets = torch.randn(7, 24).double() * 5 + 2, directions(7, 24).double()
    with torch.no_grad():
        weights, constant, similarity = held_norm(head, features, targets)
        wanted = (head.embed(features) * targets).sum(1)
    assert torch.allclose(similarity, wanted, atol=1e-12)
    assert torch.allclose((weights * features).sum(1) + constant, wanted, atol=1e-12)
    assert weights.sum(1).abs().max() < 1e-12  # what all channels share does not count
    blank = held_norm(NormalizedHead(8, 2), torch.ones(1, 8), directions(1, 8))  # no direction, no similarity
    assert all(each.isfinite().all() for each in blank)
    assert float(blank[2].detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["convnext_atto", "poolformer_s12"])
def test_a_norm_after_the_pooling_leaves_a_gap_and_it_is_told(name):
    model = classifier(name)
    batch, targets = images(1, 64), directions(1, model.head.dim)
    maps = similarity_maps(model, batch, targets)
    assert torch.allclose(maps.similarity, (embedded(model, batch) * targets).sum(1), atol=1e-5)
    (heat,) = heat_maps(model, batch, targets)
    assert not heat.exact
    assert heat.gap == pytest.approx(float(heat.values.mean()) - heat.similarity, abs=1e-6)
    assert heat.note == (
        f"what each place adds, to first order: the mean over the places misses it by {abs(heat.gap):.3f}"
    )


# --- one image, several targets; the model is left alone ------------------------------------------------------------


def test_one_image_against_several_targets_is_one_by_one():
    model, batch = classifier("cifar_resnet8", "cosine"), images(1)
    targets = directions(3, 64)
    together = similarity_maps(model, batch, targets)
    for n in range(3):
        alone = similarity_maps(model, batch, targets[n : n + 1])
        assert torch.allclose(together.values[n], alone.values[0], atol=1e-6)
    assert not torch.allclose(together.values[0], together.values[1], atol=1e-2)


def test_in_the_middle_of_a_training_nothing_changes():
    model = classifier("cifar_resnet8").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        maps = similarity_maps(model, images(), directions(2, 64))
    assert not maps.values.requires_grad
    assert model.training
    assert model.backbone.bn.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_two_images_explain_each_other_to_the_same_sum():
    """The cosine of two images can be shared out over the places of either."""
    model, batch = classifier("cifar_fast_narrow"), images(2)
    x = embedded(model, batch)
    first, second = (float(heat.values.mean()) for heat in heat_maps(model, batch, x.flip(0)))
    assert first == pytest.approx(second, abs=1e-5)
    assert first == pytest.approx(float(x[0] @ x[1]), abs=1e-5)


# --- scenes ---------------------------------------------------------------------------------------------------------


def test_of_a_scene_each_place_has_a_similarity_of_its_own():
    torch.manual_seed(0)
    model = Segmenter.build("tiny_resnet8", "fcn", 5, channels=16, head_settings={"memory_size": 0})
    model.multiple = 8  # as if it cut patches
    image = images(1, 20)[0]
    targets = model.head.subcentroids[1, :2]
    maps = scene_maps(model, image, targets)
    places = embedded(model, image[None])[0]
    for heat, target in zip(maps, targets, strict=True):
        assert torch.allclose(heat.values, torch.einsum("d,dhw->hw", target, places), atol=1e-6)
        assert heat.similarity == pytest.approx(float(heat.values.max()))
        assert (heat.seen, heat.padded) == ((20, 20), (24, 24))
        assert heat.of_scene
        assert heat.note == "each place's own similarity to the case"
        assert heat.on_pixels().shape == (20, 20)
        whole = enlarged(heat.values[None], (24, 24))[0]
        assert torch.equal(heat.on_pixels(), whole[:20, :20])


# --- as data --------------------------------------------------------------------------------------------------------


def test_as_plain_values():
    heat = HeatMap(torch.tensor([[0.123456, 1.0], [0.0, -0.5]]), 0.2, 0.0, (8, 8), (8, 8))
    data = json.loads(json.dumps(heat.to_dict(), allow_nan=False))
    assert data == {
        "similarity": 0.2, "exact": True, "gap": 0.0, "places": [2, 2], "values": [[0.1235, 1.0], [0.0, -0.5]],
        "note": "what each place adds; the mean over the places is the similarity",
    }  # fmt: skip
    large = HeatMap(torch.rand(2 * LISTED, 20), 0.2, 0.0, (8, 8), (8, 8), of_scene=True).to_dict()
    assert large["places"] == [2 * LISTED, 20]
    assert (len(large["values"]), len(large["values"][0])) == (LISTED, 20)


def test_enlarged_keeps_the_middles_and_the_mean():
    values = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    large = enlarged(values, (12, 12))[0]
    assert torch.allclose(
        large[1::3, 1::3], values[0], atol=1e-6
    )  # the middle pixel of three is the middle of its place
    assert float(large.mean()) == pytest.approx(float(values.mean()), abs=1e-5)


# --- what has no map ------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """Ends in a feature, and nobody knows of what."""

    num_features = 12

    def forward(self, x):
        return x.flatten(1)[:, :12]


class Told(Flat):
    """The same with timm's two halves."""

    def __init__(self, last):
        super().__init__()
        self.last, self.weight = last, nn.Parameter(torch.zeros(1))

    def forward_features(self, x):
        return self.last(x)

    def forward_head(self, x, pre_logits=False):
        return x.flatten(2).mean(2) if x.dim() == 4 else x.mean(1)


def test_what_has_no_places():
    vit = classifier("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(
        NoPlaces, match=r"^VisionTransformer classifies by its class token and pools no places: there"
    ):
        similarity_maps(vit, images(), directions(2, vit.head.dim))
    head = SubCentroidHead(12, 2, memory_size=0)
    for backbone, words in (
        (Flat(), r"^Flat does not tell what it pools: give it timm's forward_features and forward_head$"),
        (Told(lambda x: x.flatten(1)), r"^Told ends in no map over places: there is nothing to show where$"),
        (Told(lambda x: [x]), r"^Told ends in no map over places"),
        (
            Told(lambda x: x.flatten(1)[:, :84].view(-1, 7, 12)),
            r"^Told gives 7 tokens in no grid that it tells: there",
        ),
    ):
        with pytest.raises(NoPlaces, match=words):
            similarity_maps(ImageClassifier(backbone, head), images(), directions(2, 12))
    fits = Told(lambda x: x.flatten(1)[:, :48].view(-1, 4, 12))  # four tokens are two by two
    assert similarity_maps(ImageClassifier(fits, head), images(), directions(2, 12)).values.shape == (2, 2, 2)


def test_what_cannot_be_mapped():
    with pytest.raises(ValueError, match=r"^a SoftmaxHead compares no directions: there is no similarity to map$"):
        similarity_maps(ImageClassifier.build("tiny_resnet8", 3, "softmax"), images(), directions(2, 32))
    model = ImageClassifier.build("tiny_resnet8", 3, "cosine")
    for batch, targets in (
        (images(3), directions(2, 32)),
        (images(2), directions(2, 31)),
        (images(1), torch.ones(32)),
    ):
        with pytest.raises(
            ValueError, match=r"^targets must be \(N, 32\) for images \(N, 3, H, W\) or \(1, 3, H, W\)"
        ):
            similarity_maps(model, batch, targets)
    assert isinstance(model.head, CosineHead)
