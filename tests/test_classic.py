"""dnc_lib.classic: an estimator like any other of scikit-learn's, with nearest centroid and 1-NN at its two ends."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import check_estimator

from dnc_lib.classic import ASSIGNMENTS, METRICS, NearestSubCentroids


@pytest.fixture(scope="module")
def digits():
    """Training and test halves of scikit-learn's digits: (898, 64), (899, 64) and their labels."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:898], order[898:]
    return X[train], X[test], y[train], y[test]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize(("metric", "k"), [("euclidean", 1), ("euclidean", 3), ("cosine", 1)])
def test_check_estimator(assignment, metric, k):
    estimator = NearestSubCentroids(k, assignment=assignment, metric=metric, n_init=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite tells which of its checks it skips
        check_estimator(estimator)


def test_check_estimator_of_the_default():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(NearestSubCentroids())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.integers(2, 6),
    dim=st.integers(1, 12),
    samples=st.integers(12, 60),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    assignment=st.sampled_from([name for name in ASSIGNMENTS if name != "exemplars"]),
)
def test_one_subcentroid_is_the_nearest_centroid_classifier(seed, num_classes, dim, samples, scale, assignment):
    rng = np.random.default_rng(seed)
    X, queries = scale * rng.normal(size=(samples, dim)), scale * rng.normal(size=(30, dim))
    y = rng.integers(num_classes, size=samples)
    assume(len(np.unique(y)) > 1)
    ours = NearestSubCentroids(assignment=assignment).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of features without spread
        theirs = NearestCentroid().fit(X, y)
    np.testing.assert_allclose(ours.subcentroids_, theirs.centroids_, atol=1e-12 * scale)
    two_nearest = np.sort(pairwise_distances(queries, theirs.centroids_), axis=1)[:, :2]
    no_tie = two_nearest[:, 1] - two_nearest[:, 0] > 1e-9 * scale
    np.testing.assert_array_equal(ours.predict(queries)[no_tie], theirs.predict(queries)[no_tie])


@pytest.mark.parametrize("metric", METRICS)
def test_all_exemplars_are_the_nearest_neighbour_rule(digits, metric):
    X, queries, y, _ = digits
    ours = NearestSubCentroids(len(X), assignment="exemplars", metric=metric, random_state=0).fit(X, y)
    theirs = KNeighborsClassifier(1, metric=metric, algorithm="brute").fit(X, y)
    assert len(ours.subcentroids_) == len(X)
    np.testing.assert_array_equal(ours.predict(queries), theirs.predict(queries))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_attributes_and_methods_agree(digits, assignment, metric):
    X, queries, y, _ = digits
    model = NearestSubCentroids(3, assignment=assignment, metric=metric, n_init=2, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.subcentroid_classes_, np.repeat(np.arange(10), 3))
    assert model.subcentroids_.shape == (30, 64)
    assert model.n_features_in_ == 64
    if metric == "cosine":
        np.testing.assert_allclose(np.linalg.norm(model.subcentroids_, axis=1), 1)

    distances = pairwise_distances(queries, model.subcentroids_, metric=metric)
    nearest_distance, nearest_index = model.nearest(queries)
    np.testing.assert_allclose(nearest_distance, distances.min(axis=1), atol=1e-12)
    predicted = model.classes_[model.subcentroid_classes_[nearest_index]]
    np.testing.assert_array_equal(predicted, model.predict(queries))

    scores = model.decision_function(queries)  # (N, C)
    np.testing.assert_allclose(scores[:, 7], -distances[:, model.subcentroid_classes_ == 7].min(axis=1), atol=1e-12)
    np.testing.assert_array_equal(model.classes_[scores.argmax(axis=1)], predicted)


def test_two_classes_get_one_score_whose_sign_decides():
    X, y = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array(["cat", "cat", "dog", "dog"])
    model = NearestSubCentroids().fit(X, y)
    np.testing.assert_allclose(model.decision_function([[0.5], [10.5], [5.0]]), [-10.0, 10.0, -1.0])
    np.testing.assert_array_equal(model.predict([[0.5], [10.5], [5.0]]), ["cat", "dog", "cat"])


@pytest.mark.parametrize("assignment", ["kmeans", "sinkhorn", "nearest"])
def test_finds_the_two_shapes_of_a_class(assignment):
    """Class 0 lies left and right of class 1: one centroid cannot tell them apart, two can."""
    X, blob = make_blobs([60, 60, 60], centers=[[-5, 0], [5, 0], [0, 0]], cluster_std=0.5, random_state=0)
    y = (blob == 2).astype(int)
    assert NearestSubCentroids(1).fit(X, y).score(X, y) < 0.8
    model = NearestSubCentroids(2, assignment=assignment, random_state=0).fit(X, y)
    assert model.score(X, y) == 1
    left, right = sorted(model.subcentroids_[:2, 0])
    assert left == pytest.approx(-5, abs=0.2)
    assert right == pytest.approx(5, abs=0.2)


def test_sinkhorn_balances_where_kmeans_does_not():
    """90 samples in one place, 10 in another: k-means splits 90/10, a balanced assignment 50/50."""
    X, group = make_blobs([90, 10], centers=[[0, 0], [10, 0]], cluster_std=0.5, random_state=0)
    y = np.zeros(100)

    def sizes(assignment):
        model = NearestSubCentroids(2, assignment=assignment, random_state=0)
        return sorted(np.bincount(_last_groups(model, X, y), minlength=2))

    assert sizes("kmeans") == [10, 90] == sorted(np.bincount(group))
    smaller, larger = sizes("sinkhorn")
    assert larger <= 55
    assert smaller + larger == 100


def _last_groups(model, X, y):
    """The groups whose means the sub-centroids of a one-class problem are."""
    if model.assignment == "kmeans":
        return model.fit(X, y).nearest(X)[1]
    given, assign = [], model._assign
    model._assign = lambda scores: given.append(assign(scores)) or given[-1]
    model.fit(X, y)
    return given[-1]


@pytest.mark.parametrize("assignment", ["kmeans", "sinkhorn"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_unit_of_the_features_plays_no_part(digits, assignment, metric):
    X, queries, y, _ = digits
    model = NearestSubCentroids(3, assignment=assignment, metric=metric, n_init=2, random_state=0)
    expected = model.fit(X, y).predict(queries)
    np.testing.assert_array_equal(model.fit(1024 * X, y).predict(1024 * queries), expected)


def test_cosine_does_not_see_length(digits):
    X, queries, y, _ = digits
    model = NearestSubCentroids(2, metric="cosine", random_state=0).fit(X, y)
    lengths = np.random.default_rng(0).uniform(0.1, 10, size=(len(queries), 1))
    np.testing.assert_array_equal(model.predict(queries), model.predict(lengths * queries))


def test_cosine_alternation_is_spherical_kmeans(digits):
    """At the end each sub-centroid is the unit-length mean of the samples nearest to it."""
    X, _, y, _ = digits
    model = NearestSubCentroids(3, assignment="nearest", metric="cosine", random_state=0).fit(X[y == 1], y[y == 1])
    unit = normalize(X[y == 1])
    group = (unit @ model.subcentroids_.T).argmax(axis=1)
    means = normalize(np.stack([unit[group == k].mean(axis=0) for k in range(3)]))
    np.testing.assert_allclose(model.subcentroids_, means, atol=1e-12)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_fewer_samples_than_subcentroids_uses_them_all(assignment):
    X, y = np.array([[0.0, 1.0], [4.0, 1.0], [9.0, 9.0], [8.0, 9.0], [7.0, 9.0]]), np.array([0, 0, 1, 1, 1])
    model = NearestSubCentroids(5, assignment=assignment, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.subcentroid_classes_, y)
    if assignment != "sinkhorn":  # which may share two samples between two sub-centroids in either way
        np.testing.assert_allclose(np.sort(model.subcentroids_[:2], axis=0), X[:2])
    np.testing.assert_array_equal(model.predict(X), y)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_identical_samples_are_no_trouble(assignment, metric):
    X, y = np.repeat([[1.0, 2.0], [3.0, 1.0]], 6, axis=0), np.repeat(["a", "b"], 6)
    model = NearestSubCentroids(3, assignment=assignment, metric=metric, random_state=0).fit(X, y)
    assert np.isfinite(model.subcentroids_).all()
    np.testing.assert_array_equal(model.predict(X), y)


def test_random_splits_evenly_and_exemplars_are_samples(digits):
    X, _, y, _ = digits
    ones = X[y == 1]
    split = NearestSubCentroids(4, assignment="random", random_state=0).fit(ones, np.ones(len(ones)))
    assert np.linalg.norm(split.subcentroids_ - ones.mean(axis=0), axis=1).max() < ones.std(axis=0).sum()
    drawn = NearestSubCentroids(4, assignment="exemplars", random_state=0).fit(ones, np.ones(len(ones)))
    rows = {row.tobytes() for row in ones}
    assert all(row.tobytes() in rows for row in drawn.subcentroids_)
    assert len(np.unique(drawn.subcentroids_, axis=0)) == 4


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_the_seed_decides(digits, assignment):
    X, _, y, _ = digits
    first, second, other = (
        NearestSubCentroids(4, assignment=assignment, n_init=1, random_state=seed).fit(X, y).subcentroids_
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_four_subcentroids_read_image_1485(digits):
    """The book's running example: a "1" that one centroid a class takes for a 9."""
    X, y = load_digits(return_X_y=True)
    train = np.delete(np.arange(len(y)), 1485)
    one, four = (NearestSubCentroids(k, n_init=2, random_state=0).fit(X[train], y[train]) for k in (1, 4))
    assert one.predict(X[[1485]]) == [9]
    assert four.predict(X[[1485]]) == [1] == y[[1485]]


def test_works_in_a_pipeline_and_a_grid_search(digits):
    X, queries, y, answers = digits
    pipeline = make_pipeline(StandardScaler(), NearestSubCentroids(n_init=1, random_state=0))
    search = GridSearchCV(pipeline, {"nearestsubcentroids__n_subcentroids": [1, 4]}, cv=2).fit(X, y)
    assert search.best_params_ == {"nearestsubcentroids__n_subcentroids": 4}
    assert search.score(queries, answers) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_subcentroids": 0}, "n_subcentroids must be an integer of 1 or more, got 0"),
        ({"n_subcentroids": 2.5}, "n_subcentroids must be an integer of 1 or more, got 2.5"),
        ({"max_iter": 0}, "max_iter must be an integer of 1 or more, got 0"),
        ({"n_init": "auto"}, "n_init must be an integer of 1 or more, got 'auto'"),
        (
            {"assignment": "sinkhron"},
            "assignment must be one of kmeans, sinkhorn, nearest, random, exemplars, got 'sinkhron'",
        ),
        ({"metric": "manhattan"}, "metric must be one of euclidean, cosine, got 'manhattan'"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NearestSubCentroids(**settings).fit([[0.0], [1.0]], [0, 1])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        NearestSubCentroids().fit([[0.0], [np.nan]], [0, 1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        NearestSubCentroids().fit([[0.0], [1.0]], [0, 1, 1])
    model = NearestSubCentroids().fit([[0.0, 1.0], [1.0, 1.0]], [0, 1])
    with pytest.raises(ValueError, match="1 features, but NearestSubCentroids is expecting 2"):
        model.nearest([[0.0]])
    for method in ("predict", "decision_function", "nearest"):
        with pytest.raises(NotFittedError):
            getattr(NearestSubCentroids(), method)([[0.0]])
