"""Nearest sub-centroids as a scikit-learn classifier: a class is the means of a few groups of its own samples."""

from numbers import Integral

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances
    from sklearn.preprocessing import normalize
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:  # training needs no scikit-learn, so the package does not ask for it
    raise ImportError("dnc_lib.classic needs scikit-learn 1.6 or newer: pip install 'dnc-lib[book]'") from error

from .sinkhorn import sinkhorn

ASSIGNMENTS = ("kmeans", "sinkhorn", "nearest", "random", "exemplars")
METRICS = ("euclidean", "cosine")

#: Sinkhorn iterations here. A network's update makes do with 3; on a laptop's data we can afford to reach balance.
SINKHORN_ITERATIONS = 20


class NearestSubCentroids(ClassifierMixin, BaseEstimator):
    """Classify by the nearest of a few sub-centroids a class, each estimated from training samples.

    With one sub-centroid a class this is the nearest-centroid classifier (Mensink et al. 2013; in
    :class:`sklearn.neighbors.NearestCentroid`); with ``assignment="exemplars"`` and as many as there are samples it
    is the nearest-neighbour rule (Cover and Hart 1967). In between it is DNC's classifier (Wang et al. 2023,
    section 3.2) on features as they come. Memory and time of a prediction grow with M, the vectors kept.

    Args:
        n_subcentroids: K, sub-centroids a class. A class with fewer samples gets one for each sample.
        assignment: how the samples of a class are told apart; the sub-centroids are the means of the groups.

            * ``"kmeans"``: k-means with k-means++ starts, the best of ``n_init`` runs (Lloyd 1982; Arthur and
              Vassilvitskii 2007; scikit-learn's);
            * ``"nearest"``: the same two alternating steps once, started at K samples drawn at random;
            * ``"sinkhorn"``: that loop with balanced groups: each sample goes to the argmax of its row in the plan of
              :func:`dnc_lib.sinkhorn.sinkhorn`. The scores are cosines under the cosine metric, else minus squared
              distances over the class's mean squared distance to its centroid, so the unit of X plays no part;
            * ``"random"``: a random split into equal groups, the control;
            * ``"exemplars"``: no groups: K samples drawn at random, as they are.
        metric: ``"euclidean"``, or ``"cosine"``: samples and sub-centroids are brought to unit length first and the
            distance is one minus the cosine. (A sample of length 0 stays 0, at distance 1 from everything.)
        max_iter: most rounds of the alternating steps.
        n_init: starts of ``"kmeans"``.
        random_state: seed of starts, splits and draws.

    Attributes:
        classes_: (C,) labels, sorted.
        subcentroids_: (M, D), M at most C * K; those of a class are neighbours, classes in order.
        subcentroid_classes_: (M,) index into ``classes_``.
        n_iter_: rounds that the alternating steps took in the class that needed most; 1 where there are none.
        n_features_in_: D, the width of the features.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> NearestSubCentroids(4, random_state=0).fit(X, y).subcentroids_.shape
        (40, 64)
    """

    def __init__(
        self, n_subcentroids=1, *, assignment="kmeans", metric="euclidean", max_iter=300, n_init=10, random_state=None
    ):
        self.n_subcentroids = n_subcentroids
        self.assignment = assignment
        self.metric = metric
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def fit(self, X, y):
        """Estimate the sub-centroids of each class.

        Args:
            X: (N, D) features.
            y: (N,) labels, numbers or strings.

        Returns:
            The estimator.

        Raises:
            ValueError: for a setting that is not among those above, and for what scikit-learn refuses (NaN, shapes).
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        X = self._prepare(X)
        rng = check_random_state(self.random_state)
        self.n_iter_ = 1
        groups = [self._subcentroids(X[labels == c], rng) for c in range(len(self.classes_))]
        self.subcentroids_ = self._prepare(np.concatenate(groups))  # a mean of unit vectors is shorter than 1
        self.subcentroid_classes_ = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return self

    def predict(self, X):
        """The class of the nearest sub-centroid, (N, D) -> (N,); of several at the same distance the first."""
        nearest = self._class_distances(X).argmin(axis=1)
        return self.classes_[nearest]

    def decision_function(self, X):
        """How much each class is preferred: minus the distance to its nearest sub-centroid.

        Args:
            X: (N, D).

        Returns:
            (N, C); for two classes (N,), as scikit-learn has it: the distance to the first class minus the distance
            to the second, so the second is chosen where this is positive.
        """
        distances = self._class_distances(X)
        return distances[:, 0] - distances[:, 1] if len(self.classes_) == 2 else -distances

    def nearest(self, X):
        """The evidence behind a prediction: how far the nearest sub-centroid is, and which one.

        Args:
            X: (N, D).

        Returns:
            distances (N,) and indices (N,) into ``subcentroids_``.
        """
        check_is_fitted(self)
        distances = self._distances(X)
        indices = distances.argmin(axis=1)
        return distances[np.arange(len(indices)), indices], indices

    def _check_settings(self):
        for name, allowed in (("assignment", ASSIGNMENTS), ("metric", METRICS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name in ("n_subcentroids", "max_iter", "n_init"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")

    def _prepare(self, X):
        return normalize(X) if self.metric == "cosine" else X

    def _distances(self, X):
        """(N, D) -> (N, M)."""
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return pairwise_distances(X, self.subcentroids_, metric=self.metric)

    def _class_distances(self, X):
        """To the nearest sub-centroid of each class: (N, D) -> (N, C)."""
        check_is_fitted(self)
        first = np.searchsorted(self.subcentroid_classes_, np.arange(len(self.classes_)))
        return np.minimum.reduceat(self._distances(X), first, axis=1)

    def _subcentroids(self, X, rng):
        """The sub-centroids of one class, (N_c, D) -> (min(K, N_c), D)."""
        k = min(self.n_subcentroids, len(X))
        if self.assignment == "exemplars":
            return X[rng.permutation(len(X))[:k]]
        if k == 1:
            return X.mean(axis=0, keepdims=True)
        if self.assignment == "kmeans":
            kmeans = KMeans(k, n_init=self.n_init, max_iter=self.max_iter, random_state=rng).fit(X)
            self.n_iter_ = max(self.n_iter_, kmeans.n_iter_)
            return kmeans.cluster_centers_
        if self.assignment == "random":
            return _group_means(X, rng.permutation(len(X)) % k, np.empty((k, X.shape[1]), X.dtype))
        return self._alternate(X, X[rng.permutation(len(X))[:k]])

    def _alternate(self, X, centres):
        """Assign samples to sub-centroids, move these to the means of what they got, until nothing changes."""
        # Of unit vectors d^2 / 2 = 1 - cosine, and Sinkhorn does not mind a constant.
        scale = 2.0 if self.metric == "cosine" else X.var(axis=0).sum() or 1.0
        assigned = None
        for rounds in range(1, self.max_iter + 1):
            self.n_iter_ = max(self.n_iter_, rounds)
            scores = -pairwise_distances(X, centres, metric="sqeuclidean") / scale  # (N_c, K)
            before, assigned = assigned, self._assign(scores)
            if np.array_equal(before, assigned):
                break
            centres = self._prepare(_group_means(X, assigned, centres))
        return centres

    def _assign(self, scores):
        """One sub-centroid for each sample: (N_c, K) -> (N_c,)."""
        if self.assignment == "nearest":
            return scores.argmax(axis=1)
        one_class = torch.zeros(len(scores), dtype=torch.long)
        plan = sinkhorn(torch.from_numpy(scores), one_class, 1, iterations=SINKHORN_ITERATIONS)
        return plan.argmax(dim=1).numpy()


def _group_means(X, groups, otherwise):
    """The mean of each group, (N, D) and (N,) -> (K, D); a group without samples keeps its row of ``otherwise``."""
    means = otherwise.copy()
    for k in np.unique(groups):
        means[k] = X[groups == k].mean(axis=0)
    return means
