"""Scores by the embeddings of the training set, in place of the loss's centroids. Higher is more bona fide.

    kmeans           similarity to the nearest of K centroids, found by k-means among the bona fide
    knn              minus the mean distance to the k nearest bona fide
    knn_difference   mean distance to the k nearest spoof minus that to the k nearest bona fide
    mahalanobis      minus the Mahalanobis distance to the mean of the bona fide, with a shrunk covariance

A scoring is fitted on the training set only and then scores embeddings of any set. All scorings get embeddings in the
form in which scoring compares them (`exact_search.compared`).
Sources: nearest neighbours, Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022;
Mahalanobis, Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial
attacks", NeurIPS 2018; shrinkage, Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.analysis import exact_search
from pipeline.analysis.embeddings import Embeddings
from pipeline.analysis.exact_search import Vectors
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials

MOST_CENTROIDS = 8  # the largest number that the silhouette may choose
SILHOUETTE_ON = 2_000  # bona fide embeddings that the silhouette is computed on
RESTARTS, ITERATIONS = 10, 50  # of k-means
DEAD = 1e-10  # a variance below this share of the largest one counts as zero
BATCH = 4_096  # embeddings scored at a time
SEED = 1


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The embeddings of the training set by class, and the settings of the scorings.

    bonafide: (B, E), spoof: (S, E), as scoring compares them. normalize: whether they have unit length.
    centroids: of kmeans; None takes the number with the best silhouette. neighbours: of knn and knn_difference.
    """

    bonafide: Vectors
    spoof: Vectors
    normalize: bool
    centroids: int | None
    neighbours: int


@dataclass(frozen=True, eq=False)
class Scoring:
    """A fitted scoring.

    score: embeddings (B, E) as scoring compares them -> scores (B,). facts: its settings by name, ready for JSON.
    """

    score: Callable[[Vectors], NDArray[Any]]
    facts: dict[str, Any]


def fit(
    name: str, train: Embeddings, is_bonafide: NDArray[np.bool_], *, centroids: int | None, neighbours: int
) -> Scoring:
    """Fit one of `SCORINGS` on the training set and its labels (N,).

    Raises InputError where there are fewer embeddings of a class than centroids or neighbours.
    """
    bonafide, spoof = (
        exact_search.compared(train.vectors[rows], normalize=train.normalize) for rows in (is_bonafide, ~is_bonafide)
    )
    return SCORINGS[name](TrainingSet(bonafide, spoof, train.normalize, centroids, neighbours))


def by_neighbours(train: Embeddings, trials: Trials, neighbours: int) -> Scoring:
    """Fit `knn_difference` on the training set and its trials; raises as `fit` does."""
    return fit("knn_difference", train, trials.is_bonafide, centroids=None, neighbours=neighbours)


def scores(scoring: Scoring, found: Embeddings) -> Vectors:
    """Scores (N,) float32 of the embeddings of a set, computed in batches."""
    out = np.empty(len(found), dtype=np.float32)
    for start in tqdm(range(0, len(found), BATCH), unit="batch", leave=False, disable=None):
        rows = slice(start, start + BATCH)
        out[rows] = scoring.score(exact_search.compared(found.vectors[rows], normalize=found.normalize))
    return out


# ---------------------------------------------------------------- scorings


def kmeans(training: TrainingSet) -> Scoring:
    """The cosine with the nearest of K centroids; or minus the distance, where embeddings are not at unit length."""
    known = training.bonafide
    count = training.centroids or chosen_centroids(known, normalize=training.normalize)
    if count > len(known):
        raise InputError(f"analyse.centroids: expected at most the {len(known)} bona fide of training, got {count}")
    vectors = centroids_of(known, count, normalize=training.normalize)

    def score(queries: Vectors) -> NDArray[Any]:
        if training.normalize:
            return np.asarray((queries @ vectors.T).max(axis=1))
        nearest = faiss.knn(queries, vectors, 1)[1]
        return -exact_search.distances(queries, vectors, nearest, normalize=False)[:, 0]

    return Scoring(score, {"centroids": count})


def knn(training: TrainingSet) -> Scoring:
    """Minus the mean distance to the k nearest bona fide."""
    to_bonafide = _mean_distance(training.bonafide, training.neighbours, "bona fide")
    return Scoring(lambda queries: -to_bonafide(queries), {"neighbours": training.neighbours})


def knn_difference(training: TrainingSet) -> Scoring:
    """The mean distance to the k nearest spoof minus that to the k nearest bona fide."""
    to_bonafide = _mean_distance(training.bonafide, training.neighbours, "bona fide")
    to_spoof = _mean_distance(training.spoof, training.neighbours, "spoof")
    return Scoring(lambda queries: to_spoof(queries) - to_bonafide(queries), {"neighbours": training.neighbours})


def mahalanobis(training: TrainingSet) -> Scoring:
    """Minus the Mahalanobis distance to the mean of the bona fide. Directions without variance do not count."""
    from sklearn.covariance import LedoitWolf  # here, because it takes a second and the other scorings do not need it

    model = LedoitWolf().fit(training.bonafide.astype(np.float64))
    variances, directions = np.linalg.eigh(model.covariance_)
    alive = variances > DEAD * variances[-1]
    if not alive.any():
        raise InputError(
            f"mahalanobis: expected bona fide training embeddings that differ, got {len(training.bonafide)} alike; "
            "leave it out of analyse.scorings"
        )
    whiten = directions[:, alive] / np.sqrt(variances[alive])  # (E, directions)
    return Scoring(lambda queries: -np.linalg.norm((queries - model.location_) @ whiten, axis=1), {})


SCORINGS: dict[str, Callable[[TrainingSet], Scoring]] = {
    "kmeans": kmeans,
    "knn": knn,
    "knn_difference": knn_difference,
    "mahalanobis": mahalanobis,
}


# ---------------------------------------------------------------- centroids and distances


def centroids_of(vectors: Vectors, count: int, *, normalize: bool) -> Vectors:
    """The centroids (K, E) of vectors (N, E) by k-means, the best of several starts. normalize: spherical k-means."""
    model = faiss.Kmeans(
        vectors.shape[1], count, niter=ITERATIONS, nredo=RESTARTS, seed=SEED, spherical=normalize,
        min_points_per_centroid=1, max_points_per_centroid=len(vectors),
    )  # fmt: skip
    with exact_search.one_thread():
        model.train(vectors)
    return np.array(model.centroids)


def chosen_centroids(vectors: Vectors, *, normalize: bool) -> int:
    """The number of centroids, from 2 to `MOST_CENTROIDS`, that gives the highest mean silhouette.

    It is computed on a sample of the vectors (N, E). Of equal numbers the smallest is taken; 1 where vectors do not
    form two clusters. Source: Rousseeuw, "Silhouettes", 1987.
    """
    from sklearn.metrics import silhouette_score  # here, because it takes a second and a given number does not need it

    rows = np.random.default_rng(SEED).permutation(len(vectors))[:SILHOUETTE_ON]
    sample = vectors[np.sort(rows)]
    best, most = 1, -np.inf
    for count in range(2, min(MOST_CENTROIDS, len(sample) - 1) + 1):
        centroids = centroids_of(sample, count, normalize=normalize)
        nearest = faiss.knn(sample, centroids, 1)[1][:, 0]
        found = silhouette_score(sample, nearest) if len(np.unique(nearest)) > 1 else -np.inf
        if found > most:
            best, most = count, found
    return best


def _mean_distance(known: Vectors, k: int, what: str) -> Callable[[Vectors], NDArray[np.float64]]:
    """A function that gives the mean distance (B,) of vectors (B, E) to the k nearest known ones."""
    if k > len(known):
        raise InputError(f"analyse.neighbours: expected at most the {len(known)} {what} of training, got {k}")
    flat = faiss.IndexFlatL2(known.shape[1])
    flat.add(known)
    index = exact_search.on_gpu(flat) if k <= exact_search.GPU_MOST else flat

    def measure(queries: Vectors) -> NDArray[np.float64]:
        ids = exact_search.nearest_ids(index, queries, k)
        away = exact_search.distances(queries, known, ids, normalize=False)
        return np.asarray(away.mean(axis=1, dtype=np.float64))

    return measure
