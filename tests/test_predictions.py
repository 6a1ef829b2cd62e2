import numpy as np
import pytest
import torch
from scene_runs import trained_scenes

from dnc_lib.evaluation import evaluate_segmentation, segmentation_counts
from dnc_lib.inference import segment
from dnc_lib.metrics import IGNORED
from dnc_lib.models import ImageClassifier, Segmenter
from dnc_lib.pixels import labels_at
from dnc_lib.predictions import class_shares, predict_labels, predict_shares, record_scenes, save_records

LOOKS = [{}, {"window": (20, 24), "stride": (10, 24)}, {"flip": True, "scales": (0.5, 1.5)}]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Segmenter.build("tiny_resnet8", "fcn", 5, channels=16, head_settings={"memory_size": 0}).eval()


def scenes(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        labels = torch.randint(0, 4, (1, *size), generator=generator)
        labels[:, 0] = IGNORED
        yield torch.randn(1, 3, 24, 32, generator=generator), labels


def test_shares_are_the_softmax_of_the_scores():
    torch.manual_seed(0)
    model = ImageClassifier.build("tiny_resnet8", 5)
    image = torch.randn(3, 16, 16)
    shares = predict_shares(model, image)
    with torch.no_grad():
        expected = model.eval()(image[None]).softmax(1)[0]
    assert shares == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("looks", LOOKS)
def test_a_label_map_is_the_best_class_at_the_images_own_size(model, looks):
    image = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(1))
    labels = predict_labels(model, image, (47, 63), **looks)
    with torch.no_grad():
        scores = segment(model, image[None], size=(47, 63), **looks)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, scores[0].argmax(0).numpy())


def test_shares_of_a_map():
    labels = np.array([[2, 2, 2], [0, 0, 4]], dtype=np.uint8)
    assert class_shares(labels, "abcde") == [(2, "c", 0.5), (0, "a", 2 / 6), (4, "e", 1 / 6)]


@pytest.mark.parametrize("looks", LOOKS)
def test_records_agree_with_the_evaluation(model, looks):
    data = list(scenes((24, 32), (24, 32), (24, 32)))
    records = record_scenes(model, data, **looks)
    expected = evaluate_segmentation(model, data, **looks)
    measures = records.measures()
    shares = measures.pop("shares")
    assert measures["loss"] == pytest.approx(expected.pop("loss"), rel=1e-5)
    measures.pop("loss")
    assert measures == expected
    assert measures["iou"][4] is not None or records.counts.sum((0, 1))[4] == 0
    assert sum(shares) == pytest.approx(100)
    assert torch.equal(torch.from_numpy(records.counts).long(), segmentation_counts(model, data, **looks))


def test_the_kept_labels_are_every_other_pixel_of_the_map(model):
    ((image, mask),) = scenes((40, 60))
    ((kept,)) = record_scenes(model, [(image, mask)]).labels
    whole = torch.from_numpy(predict_labels(model, image[0], (40, 60)))
    assert kept.shape == (20, 30)
    assert np.array_equal(kept, labels_at(whole[None], (20, 30))[0].numpy())
    assert np.array_equal(kept, whole[1::2, 1::2].numpy())


def test_the_file_of_one_size_and_of_several(model, tmp_path):
    one, several = ((24, 32),) * 3, ((24, 32), (26, 35))
    for name, sizes in (("one", one), ("several", several)):
        records = record_scenes(model, scenes(*sizes))
        save_records(records, [None] * len(sizes), tmp_path / "deep" / f"{name}.npz")
    with np.load(tmp_path / "deep" / "one.npz", allow_pickle=False) as file:
        assert set(file) == {"counts", "names", "labels"}
        assert file["labels"].shape == (3, 12, 16)
        assert file["labels"].dtype == np.uint8
        assert file["counts"].shape == (3, 5, 5)
        assert file["counts"].dtype == np.int32
        assert file["counts"].sum((1, 2)).tolist() == [23 * 32] * 3  # no class is not counted
        assert file["names"].tolist() == ["image 0", "image 1", "image 2"]
    with np.load(tmp_path / "deep" / "several.npz", allow_pickle=False) as file:
        assert set(file) == {"counts", "names", "labels_0", "labels_1"}
        assert (file["labels_0"].shape, file["labels_1"].shape) == ((12, 16), (13, 17))
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["one.npz", "several.npz"]


def test_a_file_that_cannot_be_written_leaves_nothing(model, tmp_path, monkeypatch):
    records = record_scenes(model, scenes((24, 32)))

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        save_records(records, [None], tmp_path / "one.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_records_of_a_run_say_what_its_manifest_says():
    from dnc_lib.open_runs import open_run

    run = trained_scenes()
    opened = open_run(run.folder)
    measures = record_scenes(opened.model, opened.loader("test")).measures()
    assert measures["miou"] == pytest.approx(run.manifest["final"]["miou"], abs=1e-6)
    assert measures["iou"] == pytest.approx(run.manifest["final"]["iou"], abs=1e-6)


def test_nothing_to_record(model):
    with pytest.raises(ValueError, match="the loader gave no images: nothing to record"):
        record_scenes(model, [])
    blank = [(torch.zeros(1, 3, 16, 16), torch.full((1, 16, 16), IGNORED))]
    with pytest.raises(ValueError, match="no pixel has a label: every one is 255"):
        record_scenes(model, blank)
