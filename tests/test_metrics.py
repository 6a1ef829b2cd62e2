import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from dnc_lib.metrics import (
    IGNORED,
    ConfusionMatrix,
    bootstrap_miou,
    bootstrap_miou_difference,
    class_iou,
    confusion,
    predicted_classes,
    purity,
    top_k_correct,
)

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
LABELS = torch.tensor([1, 0, 0, 2])


@pytest.mark.parametrize(("k", "correct"), [(1, 2), (2, 3), (3, 4), (5, 4)])
def test_top_k_by_hand(k, correct):
    assert int(top_k_correct(SCORES, LABELS, k)) == correct


def test_top_1_is_the_argmax():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    assert top_k_correct(scores, labels) == (scores.argmax(1) == labels).sum()


def test_top_k_of_nothing_is_nothing():
    assert int(top_k_correct(torch.zeros(0, 3), torch.zeros(0).long(), 2)) == 0


def test_purity_by_hand():
    # C = 2, K = 2. Sub-centroid 0 of class 0 wins two of its own and one stranger; 1 wins nothing; and so on.
    winners = torch.tensor([0, 0, 0, 2, 3, 3])
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    result = purity(winners, labels, num_subcentroids=2, num_classes=2)
    torch.testing.assert_close(result, torch.tensor([[2 / 3, torch.nan], [1.0, 0.0]]), equal_nan=True)


def test_purity_weighted_by_wins_is_the_accuracy():
    generator = torch.Generator().manual_seed(0)
    winners, labels = torch.randint(12, (500,), generator=generator), torch.randint(4, (500,), generator=generator)
    wins = torch.bincount(winners, minlength=12).view(4, 3)
    accuracy = (winners // 3 == labels).double().mean()
    torch.testing.assert_close((purity(winners, labels, 3, 4) * wins).nansum().double() / 500, accuracy)


# Confusion matrices


def labelled_pixels(classes: int, count: int, seed: int, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels (N,), some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(classes, (count,), generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    labels[torch.rand(count, generator=generator) < ignored] = IGNORED
    return predictions, labels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    classes=st.sampled_from([2, 11, 150, 254, 255]),
    count=st.integers(0, 300),
    seed=st.integers(0, 10_000),
    types=st.tuples(*[st.sampled_from([torch.uint8, torch.int32, torch.int64])] * 2),
    parts=st.integers(1, 4),
)
def test_the_streamed_matrix_is_scikit_learns(classes, count, seed, types, parts):
    predictions, labels = labelled_pixels(classes, count, seed)
    matrix = ConfusionMatrix(classes)
    for batch in zip(predictions.to(types[0]).chunk(parts), labels.to(types[1]).chunk(parts), strict=True):
        kept = [each.clone() for each in batch]
        matrix.update(*batch)
        assert all(map(torch.equal, batch, kept))  # what is given stays as it is, whatever its type
    kept = labels != IGNORED
    if not kept.any():  # of which scikit-learn makes no matrix
        assert not matrix.matrix.any()
        return
    expected = confusion_matrix(labels[kept], predictions[kept], labels=range(classes))
    assert matrix.matrix.dtype == torch.int64
    assert np.array_equal(matrix.matrix.numpy(), expected)
    assert matrix.pixels() == kept.sum()


def test_one_class_alone():
    assert confusion(torch.zeros(5).long(), torch.tensor([0, 0, IGNORED, 0, IGNORED]), 1).tolist() == [[3]]


@pytest.mark.parametrize("seed", range(3))
def test_the_measures_are_scikit_learns(seed):
    predictions, labels = labelled_pixels(7, 400, seed)
    predictions[labels == 3] = 3  # one class found whole
    matrix = ConfusionMatrix(7)
    matrix.update(predictions.view(4, 10, 10), labels.view(4, 10, 10))
    kept = labels != IGNORED
    truth, found = labels[kept], predictions[kept]
    assert matrix.iou().numpy() == pytest.approx(jaccard_score(truth, found, average=None))
    assert matrix.miou() == pytest.approx(jaccard_score(truth, found, average="macro"))
    assert matrix.pixel_accuracy() == pytest.approx(accuracy_score(truth, found))


def test_iou_by_hand_and_a_class_that_is_nowhere():
    matrix = ConfusionMatrix(4)  # class 3 is neither true nor predicted; class 2 is predicted alone
    matrix.update(torch.tensor([[0, 0, 1], [1, 2, 3]]), torch.tensor([[0, 0, 0], [1, 1, IGNORED]]))
    assert matrix.matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = matrix.iou()
    torch.testing.assert_close(
        iou, torch.tensor([2 / 3, 1 / 3, 0, torch.nan], dtype=torch.float64), equal_nan=True, rtol=0, atol=1e-12
    )
    assert matrix.miou() == pytest.approx(1 / 3)  # over three classes: the fourth does not count as 0
    assert matrix.pixel_accuracy() == pytest.approx(3 / 5)
    assert torch.equal(class_iou(matrix.matrix.expand(2, 4, 4)).isnan(), torch.tensor([[False] * 3 + [True]] * 2))


def test_an_empty_matrix_has_no_measures():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long))
    matrix.update(torch.zeros(2, dtype=torch.long), torch.full((2,), IGNORED))
    assert matrix.pixels() == 0
    assert all(map(math.isnan, [matrix.miou(), matrix.pixel_accuracy(), *matrix.iou().tolist()]))


def test_reduce_replaces_the_matrix_by_the_sum_over_processes():
    one, other, whole = (ConfusionMatrix(5) for _ in range(3))
    predictions, labels = labelled_pixels(5, 200, 0)
    one.update(predictions[:90], labels[:90])
    other.update(predictions[90:], labels[90:])
    whole.update(predictions, labels)
    one.reduce(lambda matrix: matrix + other.matrix)
    assert torch.equal(one.matrix, whole.matrix)


def test_what_is_predicted_where_no_label_is_does_not_matter():
    labels = torch.tensor([0, 1, IGNORED, IGNORED, IGNORED])
    for wild in (IGNORED, -100, 10**12):
        predictions = torch.tensor([0, 1, wild, 0, wild])
        assert torch.equal(confusion(predictions, labels, 2), torch.eye(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([0, 3], [0, 1], "predictions must lie in [0, 2] for 3 classes, found 3"),
        ([0, -1], [0, 1], "predictions must lie in [0, 2] for 3 classes, found -1"),
        ([0, 2**33], [0, 1], f"predictions must lie in [0, 2] for 3 classes, found {2**33}"),
        ([0, 1], [0, 3], "labels must lie in [0, 2] for 3 classes, or be 255 for no class, found 3"),
        ([0, 1], [0, 254], "labels must lie in [0, 2] for 3 classes, or be 255 for no class, found 254"),
        ([0, 1], [0, -1], "labels must lie in [0, 2] for 3 classes, or be 255 for no class, found -1"),
        ([9, 1], [0, 256], "labels must lie in [0, 2] for 3 classes, or be 255 for no class, found 256"),
        ([0, 1], [0, 2**32], f"labels must lie in [0, 2] for 3 classes, or be 255 for no class, found {2**32}"),
        ([0.0, 1.0], [0, 1], "predictions must be integers, got torch.float32"),
        ([0, 1], [True, False], "labels must be integers, got torch.bool"),
        (
            [[0, 1]],
            [0, 1],
            "predictions and labels must have one shape, got (1, 2) and (2,): resize the scores, not the labels, "
            "before you take the best class",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_and_counts_nothing(predictions, labels, expected):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        matrix.update(torch.tensor(predictions), torch.tensor(labels))
    assert str(error.value) == expected
    assert not matrix.matrix.any()


@pytest.mark.parametrize("classes", [0, -1, 256])
def test_as_many_classes_as_eight_bits_tell_from_no_class(classes):
    expected = f"num_classes must lie in [1, 255], got {classes}: 255 is no class"
    for call in (lambda: ConfusionMatrix(classes), lambda: confusion(LABELS, LABELS, classes)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            call()
        assert str(error.value) == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_predicted_class_is_the_argmax(layout):
    scores = torch.randn(2, 9, 5, 7, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    assert torch.equal(predicted_classes(scores), scores.argmax(1))


# Bootstrap over images


def matrices_of_images(number: int, classes: int, accuracy: float, seed: int) -> torch.Tensor:
    """(N, C, C): a model that is right by chance; the images (and what is hard in them) are the same for all."""
    images = torch.Generator().manual_seed(99)
    luck = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(number):
        labels = torch.randint(classes, (400,), generator=images)
        hard = 0.5 * torch.rand((), generator=images)
        right = torch.rand(400, generator=luck) < accuracy - hard
        wrong = torch.randint(classes, (400,), generator=luck)
        result.append(confusion(torch.where(right, labels, wrong), labels, classes))
    return torch.stack(result)


def test_two_images_are_drawn_as_often_as_chance_has_it():
    good, bad = torch.tensor([[9, 1], [0, 10]]), torch.tensor([[5, 5], [5, 5]])
    drawn = bootstrap_miou(torch.stack([good, bad]), samples=20_000, seed=1)
    possible = [class_iou(matrix).mean().item() for matrix in (2 * bad, good + bad, 2 * good)]
    shares = [torch.isclose(drawn, torch.tensor(value, dtype=torch.float64)).double().mean() for value in possible]
    assert sum(shares) == 1
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)  # four standard errors


def test_images_that_are_all_alike_leave_no_doubt():
    one = torch.tensor([[4, 1, 0], [2, 6, 0], [0, 0, 0]])  # a class that is nowhere stays out of every draw's mean
    drawn = bootstrap_miou(one.expand(20, 3, 3), samples=50)
    torch.testing.assert_close(drawn, class_iou(one).nanmean().expand(50), rtol=0, atol=1e-12)


def test_an_interval_narrows_with_the_number_of_images():
    spread = [bootstrap_miou(matrices_of_images(number, 4, 0.9, 0), 500).std().item() for number in (10, 160)]
    assert 2.5 < spread[0] / spread[1] < 6.5  # the square root of 16 is 4


def test_a_paired_difference_is_that_of_the_same_draws_and_narrower_than_an_unpaired_one():
    first, second = (matrices_of_images(40, 4, accuracy, seed) for seed, accuracy in enumerate((0.92, 0.9)))
    difference = bootstrap_miou_difference(first, second, 500, seed=3)
    assert torch.equal(difference, bootstrap_miou(first, 500, seed=3) - bootstrap_miou(second, 500, seed=3))
    unpaired = bootstrap_miou(first, 500, seed=3) - bootstrap_miou(second, 500, seed=4)
    assert difference.std() < 0.5 * unpaired.std()
    assert not bootstrap_miou_difference(first, first, 20).any()


def test_draws_repeat_by_their_seed():
    matrices = matrices_of_images(10, 3, 0.8, 0)
    assert torch.equal(bootstrap_miou(matrices, 30, seed=1), bootstrap_miou(matrices, 30, seed=1))
    assert not torch.equal(bootstrap_miou(matrices, 30, seed=1), bootstrap_miou(matrices, 30, seed=2))


def test_matrices_that_cannot_be_drawn_from():
    matrices = matrices_of_images(4, 3, 0.8, 0)
    for wrong, shape in ((matrices[0], "(3, 3)"), (matrices[:0], "(0, 3, 3)"), (matrices[:, :2], "(4, 2, 3)")):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            bootstrap_miou(wrong)
        assert str(error.value) == f"matrices must be (N, C, C), one for each of N images, got {shape}"
    with pytest.raises(ValueError, match="samples must be 1 or more, got 0"):
        bootstrap_miou(matrices, 0)
    expected = (
        "the two models must have been evaluated on the same images in the same order: "
        "their labelled pixels of each class differ"
    )
    for other in (matrices.flip(0), matrices[:3], matrices_of_images(4, 2, 0.8, 0)):
        with pytest.raises(ValueError, match=expected):
            bootstrap_miou_difference(matrices, other)
