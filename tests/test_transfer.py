import copy
import functools
import json
import re

import pytest
import torch
import torch.distributed
from helpers import quick, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dnc_lib.checkpoints import ModelCard, read_model, save_model
from dnc_lib.decoders import build_auxiliary, build_decoder
from dnc_lib.feature_maps import map_widths
from dnc_lib.heads import SoftmaxHead, build_head
from dnc_lib.loading import build_model, make_card
from dnc_lib.models import ImageClassifier, Segmenter
from dnc_lib.pretrained import load_pretrained
from dnc_lib.runs import MODEL
from dnc_lib.training import make_accelerator
from dnc_lib.transfer import Source, carry, read_source

SWIN, LITE0, VIT = "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0", "vit_tiny_patch16_224"

#: Backbones as their classifiers are made, the large ones made small.
SMALL = {
    "tiny_resnet8": {},
    "cifar_resnet20": {},
    "resnet18": {},
    SWIN: {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
    LITE0: {},
    VIT: {"global_pool": "map", "depth": 4},  # it pools by attention, which has no place
    "cifar_fast_narrow": {},  # its first layer is set from data and never learns
}

#: backbone, decoder, settings of the segmenter
CASES = [
    ("tiny_resnet8", "fcn", {}),
    ("tiny_resnet8", "upernet", {}),
    ("cifar_resnet20", "deeplabv3", {}),
    ("resnet18", "fcn", {"output_stride": 8}),
    ("resnet18", "deeplabv3", {"output_stride": 16}),
    ("resnet18", "upernet", {}),
    (SWIN, "upernet", {}),
    (SWIN, "fcn", {}),
    (LITE0, "fcn", {"output_stride": 16}),
    (LITE0, "upernet", {}),
    (VIT, "upernet", {}),
    ("cifar_fast_narrow", "upernet", {}),
]
#: Enough where the decoder makes no difference.
ONE_A_FAMILY = [("tiny_resnet8", "fcn"), (SWIN, "upernet"), (LITE0, "upernet"), (VIT, "upernet")]
each_case = pytest.mark.parametrize(("name", "decoder", "changes"), CASES, ids=[f"{n}-{d}" for n, d, _ in CASES])

#: What each head learns for its classes, all of which is lost.
OF_CLASSES = {
    "dnc": [],
    "frozen": [],
    "cosine": ["head.prototypes"],
    "softmax": ["head.linear.weight", "head.linear.bias"],
}


@functools.cache
def classifier(name: str, head: str = "dnc") -> ImageClassifier:
    """A classifier of 5 classes whose running statistics, norms and weights all differ from those of a new one."""
    torch.manual_seed(1)
    model = ImageClassifier.from_timm(name, 5, head, head_settings={"memory_size": 16}, **SMALL[name])
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not key.startswith("head.memory"):
                value += 0.1 * torch.rand_like(value)
    return model


def segmenter(name: str, decoder: str, head: str = "dnc", **changes) -> Segmenter:
    """A segmenter of 3 classes from that classifier."""
    return copy.deepcopy(_segmenter(name, decoder, head, tuple({"channels": 8, **changes}.items())))


@functools.cache
def _segmenter(name: str, decoder: str, head: str, changes: tuple) -> Segmenter:
    torch.manual_seed(2)
    return Segmenter.from_classifier(classifier(name, head), decoder, 3, **dict(changes))


def card_of(name: str, head: str, **changes) -> ModelCard:
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in SMALL[name].items()}
    card = {"classes": list("abcde"), "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32}
    head_settings = {"memory_size": 16} if head in ("dnc", "frozen") else {}
    return ModelCard(name, head, head_settings, **{**card, "backbone_settings": settings, **changes})


def learned(model: nn.Module) -> dict[str, int]:
    """Names and sizes of all that a model learns, the auxiliary branch aside."""
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("auxiliary.")
    }


# --- nothing is lost without being named ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decoder", "changes", "head"),
    [
        *((*case, "dnc") for case in CASES),
        *((*case, head) for head in ("frozen", "cosine", "softmax") for case in CASES if case[:2] in ONE_A_FAMILY),
    ],
)
def test_every_learned_parameter_is_carried_or_named(name, decoder, changes, head):
    theirs = classifier(name, head)
    model = segmenter(name, decoder, head, **changes)
    report = model.transfer
    kinds = [report.carried, report.without_place, report.class_matrix]
    assert sum(map(len, kinds)) == len({key for kind in kinds for key in kind})  # none twice
    assert {key: count for kind in kinds for key, count in kind.items()} == learned(theirs)
    assert {**report.carried, **report.new} == learned(model)
    assert not set(report.carried) & set(report.new)
    assert sorted(report.class_matrix) == sorted(OF_CLASSES[head])
    norms = [] if head == "softmax" else ["head.norm.weight", "head.norm.bias"]  # their width is the backbone's
    idle = [key for key in learned(theirs) if key.startswith("backbone.attn_pool.")]
    assert bool(idle) == (name == VIT)
    assert sorted(report.without_place) == sorted(norms + idle)
    counts = report.counts()
    assert counts["carried"] + counts["without_place"] + counts["class_matrix"] == sum(learned(theirs).values())
    assert counts["carried"] + counts["new"] == sum(learned(model).values())


@each_case
def test_the_backbone_is_the_classifiers_bit_by_bit(name, decoder, changes):
    ours, theirs = segmenter(name, decoder, **changes).state_dict(), classifier(name).state_dict()
    backbone = [key for key in theirs if key.startswith("backbone.")]
    assert backbone == [key for key in ours if key.startswith("backbone.")]
    assert all(torch.equal(ours[key], theirs[key]) for key in backbone)  # running statistics too


@pytest.mark.parametrize(("name", "decoder"), [("tiny_resnet8", "fcn"), ("resnet18", "upernet"), (LITE0, "upernet")])
def test_a_dnc_classifier_loses_nothing_where_the_widths_agree(name, decoder):
    model = segmenter(name, decoder, channels=classifier(name).head.dim)
    assert model.transfer.without_place == model.transfer.class_matrix == {}
    assert torch.equal(model.head.norm.weight, classifier(name).head.norm.weight)
    assert torch.equal(model.head.norm.bias, classifier(name).head.norm.bias)
    assert str(model.transfer).endswith("left behind: nothing")


@pytest.mark.parametrize(("old", "new"), [("softmax", "softmax"), ("dnc", "softmax"), ("cosine", "dnc")])
def test_between_heads_of_different_kinds(old, new):
    theirs = classifier("tiny_resnet8", old)
    model = Segmenter.from_classifier(theirs, "fcn", 3, new, channels=32)
    report = model.transfer
    assert sorted(report.class_matrix) == sorted(OF_CLASSES[old])
    assert ("head.norm.weight" in report.carried) == (old != "softmax" and new != "softmax")
    assert ("head.norm.weight" in report.without_place) == (old == "dnc" and new == "softmax")
    assert ("head.linear.weight" in report.new) == (new == "softmax")
    assert {**report.carried, **report.new} == learned(model)


def test_a_layer_that_is_set_from_data_moves_along_and_is_no_learned_parameter():
    model = segmenter("cifar_fast_narrow", "fcn")
    whitening = "backbone.whitening.weight"
    assert torch.equal(model.state_dict()[whitening], classifier("cifar_fast_narrow").state_dict()[whitening])
    report = model.transfer
    assert not any(whitening in kind for kind in (report.carried, report.new, report.without_place))


def test_the_report_in_words():
    model = segmenter("tiny_resnet8", "fcn", "softmax", channels=8)
    carried = sum(p.numel() for p in model.backbone.parameters())
    new = sum(p.numel() for p in model.decoder.parameters()) + 2 * 8  # the new head's norm
    assert model.transfer.counts() == {"carried": carried, "new": new, "without_place": 0, "class_matrix": 165}
    assert str(model.transfer) == (
        f"carried        {carried:>12,}\n"
        f"new            {new:>12,}\n"
        f"without place             0\n"
        f"class matrix            165\n"
        f"left behind: head.linear.weight, head.linear.bias"
    )


def test_a_model_made_without_a_classifier_has_no_report():
    assert Segmenter.build("tiny_resnet8", "fcn", 3, channels=8).transfer is None


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["dnc", "cosine", "softmax"]), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_the_sums_hold_for_any_width_and_number_of_classes(head, channels, classes, auxiliary):
    theirs = classifier("tiny_resnet8", head)
    model = Segmenter.from_classifier(theirs, "fcn", classes, channels=channels, auxiliary=auxiliary)
    counts = model.transfer.counts()
    assert counts["carried"] + counts["without_place"] + counts["class_matrix"] == sum(learned(theirs).values())
    assert counts["carried"] + counts["new"] == sum(learned(model).values())
    assert ("head.norm.weight" in model.transfer.carried) == (channels == theirs.head.dim and head != "softmax")


# --- everything that is carried learns ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decoder", "changes", "auxiliary"),
    [*((*case, False) for case in CASES), *((*case, True) for case in CASES if case[:2] in ONE_A_FAMILY)],
)
def test_everything_that_learns_gets_a_gradient_and_nothing_else_does(name, decoder, changes, auxiliary):
    model = segmenter(name, decoder, auxiliary=auxiliary, **changes).train()
    scores, _, beside = model(torch.randn(2, 3, 64, 64), return_features=True)
    loss = scores.square().mean() + (0 if beside is None else beside.square().mean())
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == (key.removeprefix("backbone.") not in model.idle and "whitening" not in key)
        assert (parameter.grad is not None) == parameter.requires_grad, key
    reached = [key for key in model.transfer.carried if model.get_parameter(key).grad.abs().sum() > 0]
    assert len(reached) > 0.9 * len(model.transfer.carried)  # a bias before a norm may well have a gradient of zero


def with_idle_layer() -> Segmenter:
    """Of a backbone with a layer that no map passes."""
    backbone = copy.deepcopy(classifier("tiny_resnet8").backbone)
    backbone.unused = nn.Linear(2, 2)
    widths = map_widths(backbone)
    side = build_auxiliary(widths, 8)
    branch = nn.ModuleDict({"decoder": side, "head": SoftmaxHead(side.width, 3)})
    decoder = build_decoder("fcn", widths, channels=8)
    return Segmenter(backbone, decoder, build_head("dnc", 8, 3, memory_size=0), branch)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def two_steps(model: Segmenter) -> None:
    """As several processes train: a parameter without a gradient makes the second step fail."""
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        scores, _, beside = wrapped(torch.randn(2, 3, 16, 16), return_features=True)
        (scores.square().mean() + beside.square().mean()).backward()


def test_several_processes_find_no_parameter_without_a_gradient(process_group):
    model = with_idle_layer()
    assert model.idle == ("unused.weight", "unused.bias")
    two_steps(model)


def test_had_the_idle_ones_not_been_frozen_they_would(process_group):
    model = with_idle_layer().requires_grad_(True)
    with pytest.raises(RuntimeError, match="did not receive grad"):
        two_steps(model)


# --- where a classifier comes from ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_resnet8", "resnet18", SWIN, LITE0])
def test_from_a_file_as_from_the_model_itself(name, tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_model(classifier(name), card_of(name, "dnc"), path)
    from_file = Segmenter.from_classifier(path, "upernet", channels=8)
    from_text = Segmenter.from_classifier(str(path), "upernet", channels=8)
    assert from_file.head.num_classes == 5  # the classifier's, if no number is given
    model = Segmenter.from_classifier(classifier(name), "upernet", channels=8)
    assert from_file.transfer == from_text.transfer == model.transfer
    state = from_file.state_dict()
    for key in model.transfer.carried:
        assert torch.equal(state[key], classifier(name).state_dict()[key]), key


SMALL_IMAGES = {SWIN: {**SMALL[SWIN], "img_size": 64}, VIT: {"img_size": 64, "depth": 4}}


@pytest.mark.parametrize(("name", "small"), SMALL_IMAGES.items())
def test_a_transformer_trained_on_small_images_keeps_its_tables(name, small, tmp_path):
    """Their shapes follow the image size, so a segmenter must be built for the same one."""
    theirs = ImageClassifier.from_timm(name, 5, **small)
    path = tmp_path / "classifier.safetensors"
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in small.items()}
    save_model(theirs, ModelCard(name, "dnc", {}, list("abcde"), [0.5] * 3, [0.2] * 3, 64, settings), path)
    model = Segmenter.from_classifier(path, "fcn", channels=8).eval()
    assert set(model.transfer.without_place) == {"head.norm.weight", "head.norm.bias"}
    assert Segmenter.from_classifier(theirs, "fcn", channels=8).transfer == model.transfer
    with torch.no_grad():
        assert model(torch.randn(1, 3, 80, 50)).shape == (1, 5, 80, 50)


def test_from_a_run_folder():
    run = trained()
    model = Segmenter.from_classifier(run.folder, "fcn", 11, channels=8)
    theirs, card = read_model(run.folder / MODEL)
    assert model.transfer.counts()["carried"] == sum(p.numel() for p in theirs.backbone.parameters())
    assert torch.equal(model.backbone.conv.weight, theirs.backbone.conv.weight)
    assert model.transfer == Segmenter.from_classifier(theirs, "fcn", 11, channels=8).transfer
    assert read_source(run.folder).normalisation == (card.mean, card.std)


def test_from_the_model_that_ships_with_the_package():
    model = Segmenter.from_classifier(load_pretrained("cifar10_resnet20_dnc"), "fcn", 3, channels=64)
    assert model.transfer.without_place == {}


def test_a_recipe_begins_with_a_run():
    """``weights`` of a recipe: training goes by the same door."""
    run = trained()
    recipe = quick(weights=str(run.folder), head="softmax")
    accelerator = make_accelerator("no")
    data = {"train": _Images()}
    model = build_model(recipe, make_card(recipe, data), data, accelerator)
    theirs, card = read_model(run.folder / MODEL)
    assert all(
        torch.equal(value, theirs.backbone.state_dict()[key]) for key, value in model.backbone.state_dict().items()
    )
    assert make_card(recipe, data).mean == card.mean


class _Images:
    classes, images = ("a", "b"), torch.zeros(4, 8, 8, 3, dtype=torch.uint8)


def test_the_segmenter_has_its_own_copy():
    theirs = classifier("tiny_resnet8")
    model = segmenter("tiny_resnet8", "fcn")
    before = theirs.backbone.conv.weight.clone()
    with torch.no_grad():
        model.backbone.conv.weight.zero_()
    assert torch.equal(theirs.backbone.conv.weight, before)


def test_settings_of_the_backbone_can_be_changed():
    model = segmenter(SWIN, "fcn", drop_path_rate=0.5)
    rates = [module.drop_prob for module in model.backbone.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == 0.5


# --- bad input ------------------------------------------------------------------------------------------------------


def refused(given, message: str, error: type = ValueError, **settings) -> None:
    with pytest.raises(error) as caught:
        Segmenter.from_classifier(given, "fcn", **{"channels": 8, **settings})
    assert str(caught.value) == message


def test_a_segmenter_is_no_classifier(tmp_path):
    model = segmenter("tiny_resnet8", "fcn")
    refused(model, "from_classifier takes an ImageClassifier, a run folder or a file, got a Segmenter")
    path = tmp_path / "segmenter.safetensors"
    save_model(model, card_of("tiny_resnet8", "dnc", decoder="fcn", decoder_settings={"channels": 8}), path)
    refused(path, f"{path} holds a segmenter already, not a classifier: go on with it as it is")


def test_a_model_that_does_not_tell_how_it_was_made():
    theirs = ImageClassifier(classifier("tiny_resnet8").backbone, build_head("dnc", 32, 5))
    refused(
        theirs,
        "this classifier does not tell how its backbone was made: make it with ImageClassifier.build or from_timm, "
        "or give its file",
    )


def test_no_such_file(tmp_path):
    path = tmp_path / "none.safetensors"
    refused(path, f"no model at {path}", FileNotFoundError)
    refused(tmp_path, f"no model at {tmp_path / MODEL}", FileNotFoundError)  # a folder without a finished run


@pytest.mark.parametrize("metadata", [None, {"card": "[1, 2]"}, {"card": "{}"}, {"card": "{"}, {"card": "null"}])
def test_a_foreign_file(metadata, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    refused(path, f"{path} has no model card: it was not written by dnc_lib")


def test_a_truncated_file(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_model(classifier("tiny_resnet8"), card_of("tiny_resnet8", "dnc"), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=r"cut\.safetensors is truncated or no safetensors file \(.*\); copy or train"
    ):
        Segmenter.from_classifier(path, "fcn")


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_classes_is_never_guessed(count):
    refused(
        classifier("tiny_resnet8"), f"dim and num_classes must be 1 or more, got 8 and {count}", num_classes=count
    )


def test_another_backbone_is_refused_and_nothing_is_changed():
    model = Segmenter.build("cifar_resnet20", "fcn", 3, channels=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = classifier("tiny_resnet8")
    message = (
        "the classifier's backbone, tiny_resnet8, does not fit the model's: they differ in backbone.conv.weight, "
        "backbone.bn.weight, backbone.bn.bias ..."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        carry(Source("tiny_resnet8", {}, theirs.state_dict(), 5), model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_classifier_with_a_layer_too_many_is_refused():
    theirs = classifier("tiny_resnet8")
    state = {**theirs.state_dict(), "backbone.more.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"they differ in backbone\.more\.weight$"):
        carry(Source("tiny_resnet8", {}, state, 5), Segmenter.build("tiny_resnet8", "fcn", 3, channels=8))


def test_a_card_of_an_unknown_backbone(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_model(classifier("tiny_resnet8"), card_of("tiny_resnet8", "dnc"), path)
    state = read_source(path).state
    card = {"backbone": "tiny_resnet9", "backbone_settings": {}, "classes": ["a"], "mean": [0], "std": [1]}
    save_file(state, path, metadata={"card": json.dumps(card)})
    with pytest.raises(ValueError, match=r"^unknown backbone 'tiny_resnet9'; did you mean tiny_resnet8"):
        Segmenter.from_classifier(path, "fcn")
