"""A full run on a part of a published data set: warned of, recorded, and kept out of verdicts."""

import json
import warnings

import pytest
from helpers import quick, write_class_folders

from dnc_lib import train
from dnc_lib.comparisons import compare
from dnc_lib.records import flatten, validate

LACKS = "not the whole of imagenet: 36 of 1,281,167 train images, 18 of 50,000 test images, 3 of 1,000 classes"
COUNTS = LACKS.partition(", 3 of")[0]  # what an older manifest still tells


@pytest.fixture
def root(tmp_path):
    write_class_folders(tmp_path / "imagenet")
    return tmp_path


def recipe():
    return quick(dataset="imagenet", image_size=8, epochs=1, batch_size=12, momentum=0.01)


def test_a_run_on_three_classes_is_no_result_of_imagenet(root):
    with pytest.warns(UserWarning, match=f"^{LACKS}: the result is recorded as partial and takes part in no verdict"):
        run = train(recipe(), root, root / "runs", progress=False)
    manifest = json.loads(json.dumps(run.manifest))
    validate(manifest)
    assert manifest["partial"] == LACKS
    assert [record.apart for record in flatten(manifest, "manifest.json")] == [LACKS]
    del manifest["partial"]  # as one of before there was the word
    assert [record.apart for record in flatten(manifest, "manifest.json")] == [COUNTS]


def test_a_comparison_says_so_too_and_a_try_is_not_warned_of(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compare(recipe(), {"softmax": {"head": "softmax"}}, [0], root / "smoke.json", root, profile="smoke",
                progress=False)  # fmt: skip
    with pytest.warns(UserWarning, match=LACKS):
        manifest = compare(recipe(), {"softmax": {"head": "softmax"}}, [0], root / "full.json", root, progress=False)
    validate(json.loads(json.dumps(manifest)))
    assert [record.apart for record in flatten(manifest, "full.json")] == [LACKS]


def test_a_whole_data_set_is_recorded_without_the_word(tmp_path):
    run = train(quick(epochs=1, momentum=0.5), output=tmp_path, progress=False)
    assert "partial" not in run.manifest
    assert [record.apart for record in flatten(run.manifest, "manifest.json")] == [""]
