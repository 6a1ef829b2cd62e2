import pytest
import torch
import torch.nn.functional as F

from dnc_lib.exemplars import nearest_exemplars


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
