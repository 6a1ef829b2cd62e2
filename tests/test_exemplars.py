import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import random_images, write_class_folders

from dnc_lib.data import DeviceLoader
from dnc_lib.data.digit_scenes import make_digit_scenes
from dnc_lib.data.picture_loader import PictureLoader
from dnc_lib.data.pictures import open_pictures
from dnc_lib.data.scene_loader import SceneLoader
from dnc_lib.evaluation import embed_dataset
from dnc_lib.exemplars import Exemplar, Exemplars, find_exemplars, model_digest, nearest_exemplars
from dnc_lib.metrics import IGNORED
from dnc_lib.models import ImageClassifier, Segmenter


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow(embeddings, labels, subcentroids):
    """The same by loops: of all pairs of a class the closest first, each image and each sub-centroid once."""
    classes, number, _ = subcentroids.shape
    index = torch.full((classes, number), -1)
    for c in range(classes):
        pairs = [
            (float(embeddings[n] @ subcentroids[c, k]), n, k)
            for n in range(len(labels))
            if labels[n] == c
            for k in range(number)
        ]
        taken = set()
        for _, n, k in sorted(pairs, reverse=True):
            if index[c, k] < 0 and n not in taken:
                index[c, k] = n
                taken.add(n)
    return index


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_slow_reference(seed):
    embeddings, subcentroids = unit(60, 8, seed=seed), unit(5, 4, 8, seed=seed + 100)
    labels = torch.randint(5, (60,), generator=torch.Generator().manual_seed(seed))
    index, similarity = nearest_exemplars(embeddings, labels, subcentroids)
    assert torch.equal(index, slow(embeddings, labels, subcentroids))
    torch.testing.assert_close(similarity, (embeddings[index] * subcentroids).sum(-1))


def test_every_exemplar_is_of_its_class_and_none_comes_twice():
    labels = torch.arange(40) % 4
    index, _ = nearest_exemplars(unit(40, 6), labels, unit(4, 10, 6, seed=1))
    assert sorted(index.flatten().tolist()) == list(range(40))  # as many places as images: all are used
    assert torch.equal(labels[index], torch.arange(4)[:, None].expand(4, 10))


def test_a_sub_centroid_that_is_an_image_finds_it():
    embeddings, labels = unit(30, 6), torch.arange(30) % 3
    chosen = torch.tensor([[0, 3], [1, 4], [2, 5]])
    index, similarity = nearest_exemplars(embeddings, labels, embeddings[chosen])
    assert torch.equal(index, chosen)
    torch.testing.assert_close(similarity, torch.ones(3, 2))


def test_fewer_images_than_sub_centroids_leave_gaps():
    index, similarity = nearest_exemplars(unit(3, 6), torch.tensor([0, 0, 2]), unit(3, 4, 6, seed=1))
    assert (index >= 0).sum(1).tolist() == [2, 0, 1]
    assert torch.equal(similarity.isnan(), index < 0)


def test_no_images_at_all():
    index, similarity = nearest_exemplars(torch.zeros(0, 6), torch.zeros(0).long(), unit(3, 4, 6))
    assert (index == -1).all()
    assert similarity.isnan().all()


def test_half_precision_embeddings_will_do():
    embeddings, labels, subcentroids = unit(30, 6), torch.arange(30) % 3, unit(3, 2, 6, seed=1)
    index, _ = nearest_exemplars(embeddings.half(), labels, subcentroids)
    assert index.shape == (3, 2)


def test_bad_input():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\] for 2 classes, found 2"):
        nearest_exemplars(unit(3, 6), torch.arange(3), unit(2, 4, 6))
    with pytest.raises(ValueError, match=r"embeddings must be \(N, D\).* got \(3, 6\), \(3,\), \(2, 4, 5\)"):
        nearest_exemplars(unit(3, 6), torch.zeros(3).long(), unit(2, 4, 5))
    with pytest.raises(ValueError, match=r"labels \(N,\)"):
        nearest_exemplars(unit(3, 6), torch.zeros(2).long(), unit(2, 4, 6))


# --- of a data set --------------------------------------------------------------------------------------------------


def tiny_segmenter(classes=11, number=3, head="dnc"):
    torch.manual_seed(0)
    settings = {"num_subcentroids": number, "memory_size": 0} if head != "softmax" else {}
    return Segmenter.build("tiny_resnet8", "fcn", classes, head, channels=16, head_settings=settings).eval()


MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)


def scene_loader(scenes, **settings):
    return SceneLoader(scenes, settings.pop("batch_size", 2), MEAN, STD, **settings)


@torch.no_grad()
def all_pixels(model, scenes):
    """Every labelled place of every scene, kept: unit embedding, class, scene, row and column, by plain loops."""
    rows = []
    for n, (images, masks) in enumerate(scene_loader(scenes, batch_size=1)):
        embedded = model.embed(images)[0]
        h, w = embedded.shape[1:]
        for i in range(h):
            for j in range(w):
                row, column = int((i + 0.5) * masks.shape[1] / h), int((j + 0.5) * masks.shape[2] / w)
                if (label := int(masks[0, row, column])) != IGNORED:
                    rows.append((embedded[:, i, j], label, n, row, column))
    return rows


@pytest.fixture(scope="module")
def scenes():
    whole = make_digit_scenes(8, 1, 54)["train"]
    masks = whole.masks.copy()
    masks[:, :9] = IGNORED
    return replace(whole, masks=masks)


def test_pixel_exemplars_agree_with_a_search_that_keeps_everything(scenes):
    model = tiny_segmenter()
    found = find_exemplars(model, scene_loader(scenes), scenes)
    pixels = all_pixels(model, scenes)
    assert found.classes == scenes.classes
    several = 0
    for c, own in enumerate(found.cases):
        vectors = model.head.subcentroids[c]
        pairs = sorted(
            ((float(vectors[k] @ e), n, k, row, column) for e, label, n, row, column in pixels if label == c
             for k in range(3)), reverse=True,
        )  # fmt: skip
        enough = len({pair[1] for pair in pairs}) >= 3
        several += enough
        chosen, taken = {}, set()
        for similarity, n, k, row, column in pairs:  # closest pairs first, no scene twice
            if k not in chosen and n not in taken:
                chosen[k] = (n, similarity, row, column)
                taken.add(n)
        for similarity, n, k, row, column in pairs:  # too few scenes: then the nearest of any
            if k not in chosen:
                chosen[k] = (n, similarity, row, column)
        for k, exemplar in enumerate(own):
            if k not in chosen:
                assert exemplar is None
                continue
            n, similarity, row, column = chosen[k]
            assert (exemplar.image, exemplar.row, exemplar.column) == (n, row, column)
            assert exemplar.similarity == pytest.approx(similarity, abs=1e-5)
            assert exemplar.name == f"image {n}"
            assert scenes.masks[exemplar.image][exemplar.row, exemplar.column] == c
        if enough:
            assert len({exemplar.image for exemplar in own}) == 3
    assert several >= 5


def test_pixel_exemplars_at_another_size_than_the_scenes(scenes):
    model = tiny_segmenter()
    found = find_exemplars(model, scene_loader(scenes, image_size=32), scenes)
    cases = [case for own in found.cases for case in own if case]
    assert max(case.row for case in cases) > 31  # in the scene's own pixels, not the network's
    for c, own in enumerate(found.cases):
        for case in filter(None, own):
            assert scenes.masks[case.image][case.row, case.column] == c


def test_the_batch_size_changes_nothing(scenes):
    model = tiny_segmenter()
    first, second = (find_exemplars(model, scene_loader(scenes, batch_size=b), scenes) for b in (1, 8))
    places = [[[case and (case.image, case.row, case.column) for case in own] for own in each.cases]
              for each in (first, second)]  # fmt: skip
    assert places[0] == places[1]


def test_a_class_that_no_scene_shows_has_no_exemplar(scenes):
    masks = scenes.masks.copy()
    masks[masks == 3] = IGNORED
    found = find_exemplars(tiny_segmenter(), scene_loader(replace(scenes, masks=masks)), replace(scenes, masks=masks))
    assert found.cases[3] == (None, None, None)
    assert None not in found.cases[10]


def test_one_scene_serves_several_sub_centroids_where_there_is_no_other(scenes):
    one = scenes.subset(torch.tensor([2]))
    found = find_exemplars(tiny_segmenter(), scene_loader(one, batch_size=1), one)
    assert [case.image for case in found.cases[10]] == [0, 0, 0]


def test_image_exemplars_are_nearest_exemplars():
    data = random_images(40)
    torch.manual_seed(0)
    settings = {"num_subcentroids": 3, "memory_size": 0}
    model = ImageClassifier.build("tiny_resnet8", 4, head_settings=settings).eval()
    found = find_exemplars(model, DeviceLoader(data, 7, MEAN, STD), data)
    embeddings, labels = embed_dataset(model, DeviceLoader(data, 40, MEAN, STD))
    index, similarity = nearest_exemplars(embeddings, labels, model.head.subcentroids)
    assert [[case.image for case in own] for own in found.cases] == index.tolist()
    values = [case.similarity for own in found.cases for case in own]
    assert values == pytest.approx(similarity.flatten().tolist(), abs=1e-5)
    assert found.cases[0][0].row is None
    assert found.cases[0][0].name == f"image {index[0, 0]}"


def test_images_that_run_out_leave_gaps():
    data = random_images(8)  # two of each class
    model = ImageClassifier.build("tiny_resnet8", 4, head_settings={"num_subcentroids": 3, "memory_size": 0})
    found = find_exemplars(model, DeviceLoader(data, 8, MEAN, STD), data)
    assert [sum(case is None for case in own) for own in found.cases] == [1, 1, 1, 1]


def test_pictures_are_named_by_their_files(tmp_path):
    write_class_folders(tmp_path / "mine")
    train, _ = open_pictures("mine", tmp_path)
    model = ImageClassifier.build("tiny_resnet8", 3, head_settings={"memory_size": 0})
    found = find_exemplars(model, PictureLoader(train, 5, MEAN, STD, image_size=20), train)
    for name, own in zip(train.classes, found.cases, strict=True):
        for case in own:
            assert case.name == f"{name}/{case.name.rpartition('/')[2]}"
            assert (tmp_path / "mine" / "train" / case.name).is_file()


def test_exemplars_come_back_from_json(scenes):
    masks = scenes.masks.copy()
    masks[masks == 3] = IGNORED
    scenes = replace(scenes, masks=masks)
    found = find_exemplars(tiny_segmenter(), scene_loader(scenes), scenes)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert Exemplars.from_dict(json.loads(text)) == found


def test_classes_of_one_name_are_kept_apart():
    case = Exemplar(3, "a.png", 0.5)
    twins = Exemplars(("crane", "crane"), ((case,), (None,)), "d", "m")
    assert Exemplars.from_dict(twins.to_dict()) == twins


def test_the_digest_changes_with_what_decides_an_embedding():
    model = tiny_segmenter()
    before = model_digest(model)
    model.head.wins += 1
    assert model_digest(model) == before
    model.head.subcentroids[0, 0] *= -1
    after = model_digest(model)
    assert after != before
    next(model.backbone.parameters()).data += 1e-3
    assert model_digest(model) != after


def test_what_cannot_be_searched(scenes):
    with pytest.raises(
        ValueError,
        match=r"^a SoftmaxHead has no sub-centroids, so no training image stands for a class: train with head dnc "
        r"\(or frozen\) to get explanations$",
    ):
        find_exemplars(tiny_segmenter(head="softmax"), scene_loader(scenes), scenes)
    fewer = scenes.subset(torch.arange(3))
    with pytest.raises(ValueError, match=r"the loader gave 3 images, but .* has 8: give all of them once"):
        find_exemplars(tiny_segmenter(), scene_loader(fewer, batch_size=1), scenes)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\] for 4 classes, found 10"):
        find_exemplars(tiny_segmenter(4), scene_loader(scenes), scenes)
