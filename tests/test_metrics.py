import pytest
import torch

from dnc_lib.metrics import purity, top_k_correct

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
