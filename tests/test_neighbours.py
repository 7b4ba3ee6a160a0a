"""Scores by the embeddings of the training set: by hand, against naive loops, and what is refused."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from pipeline.analysis import embedding_index, embedding_scores, exact_search
from pipeline.analysis.embedding_scores import TrainingSet
from pipeline.analysis.embeddings import Embeddings
from pipeline.core.errors import InputError

ROOT = Path(__file__).parents[1]
Vectors = NDArray[np.float32]


def stored(folder: Path, vectors: Vectors, *, normalize: bool) -> Embeddings:
    names = [f"u{i}" for i in range(len(vectors))]
    return embedding_index.build(folder, [vectors], names, normalize=normalize, facts={})


def blobs(centres: list[list[float]], each: int, *, spread: float = 0.1, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(c, spread, size=(each, len(c))) for c in centres]).astype(np.float32)


def training(bonafide: Vectors, spoof: Vectors | None = None, **given: object) -> TrainingSet:
    """Of vectors as scoring compares them."""
    facts: dict = {"normalize": False, "centroids": None, "neighbours": 1} | given
    return TrainingSet(bonafide, bonafide if spoof is None else spoof, **facts)


@pytest.fixture(scope="module", params=[True, False], ids=["unit", "raw"])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Embeddings, Embeddings]:
    """A training set, 30 bona fide and 50 spoof in turns, and another set."""
    rng = np.random.default_rng(4)
    train = (rng.normal(size=(80, 5)) * [1, 2, 3, 4, 9]).astype(np.float32)
    train[bonafide_of_80()] += 2
    folder = tmp_path_factory.mktemp("e")
    other = rng.normal(size=(33, 5)).astype(np.float32) * 3
    return tuple(stored(folder / name, v, normalize=request.param) for name, v in (("t", train), ("o", other)))


def bonafide_of_80() -> NDArray[np.bool_]:
    return np.random.default_rng(8).permutation(np.arange(80) < 30)


def as_compared(found: Embeddings) -> list[list[float]]:
    rows = found.vectors.astype(float)
    return [list(row / math.sqrt((row * row).sum()) if found.normalize else row) for row in rows]


def nearest_mean(query: list[float], known: list[list[float]], k: int) -> float:
    return sum(sorted(math.dist(query, other) for other in known)[:k]) / k


@pytest.mark.parametrize("k", [1, 4, 30])
def test_nearest_neighbours_by_a_naive_loop(fitted: tuple[Embeddings, Embeddings], k: int) -> None:
    train, other = fitted
    known = as_compared(train)
    bonafide = list(itertools.compress(known, bonafide_of_80()))
    spoof = list(itertools.compress(known, ~bonafide_of_80()))
    by_knn, by_difference = (
        embedding_scores.fit(name, train, bonafide_of_80(), centroids=None, neighbours=k)
        for name in ("knn", "knn_difference")
    )
    queries = as_compared(other)
    to_bonafide = np.array([nearest_mean(query, bonafide, k) for query in queries])
    to_spoof = np.array([nearest_mean(query, spoof, k) for query in queries])
    np.testing.assert_allclose(embedding_scores.scores(by_knn, other), -to_bonafide, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        embedding_scores.scores(by_difference, other), to_spoof - to_bonafide, rtol=1e-4, atol=1e-5
    )
    assert by_knn.facts == by_difference.facts == {"neighbours": k}


def test_mahalanobis_by_the_definition(fitted: tuple[Embeddings, Embeddings]) -> None:
    train, other = fitted
    bonafide = np.array(list(itertools.compress(as_compared(train), bonafide_of_80())))
    centred = bonafide - bonafide.mean(0)
    sample = centred.T @ centred / len(bonafide)
    # Ledoit and Wolf (2004), lemmas 3.2 to 3.4, with the trace over E as the norm
    m = np.trace(sample) / 5
    d2 = ((sample - m * np.eye(5)) ** 2).sum()
    b2 = sum(((np.outer(row, row) - sample) ** 2).sum() for row in centred) / len(bonafide) ** 2
    share = min(b2, d2) / d2
    inverse = np.linalg.inv((1 - share) * sample + share * m * np.eye(5))
    wanted = [
        -math.sqrt((q - bonafide.mean(0)) @ inverse @ (q - bonafide.mean(0))) for q in np.array(as_compared(other))
    ]
    scoring = embedding_scores.fit("mahalanobis", train, bonafide_of_80(), centroids=None, neighbours=5)
    got = embedding_scores.scores(scoring, other)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    squared = LedoitWolf().fit(bonafide).mahalanobis(np.array(as_compared(other)))
    np.testing.assert_allclose(got.astype(float) ** 2, squared, rtol=1e-4)
    assert 0 < share < 1
    assert scoring.facts == {}


def test_mahalanobis_of_a_dead_direction() -> None:
    """A direction in which no training embedding varies is shrunk towards the others, or left out where all are so."""
    flat = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    flat[:, 2] = 0
    scoring = embedding_scores.mahalanobis(training(flat))
    assert np.isfinite(scoring.score(flat * 2)).all()
    with pytest.raises(InputError, match=r"mahalanobis: expected .* that differ, got 7 alike; leave it out"):
        embedding_scores.mahalanobis(training(np.ones((7, 3), np.float32)))


def test_kmeans_scores_by_the_nearest_centroid() -> None:
    bonafide = np.array([[1, 0], [1, 0], [0, 2], [0, 2]], np.float32)
    raw = embedding_scores.kmeans(training(bonafide, centroids=2))
    np.testing.assert_allclose(raw.score(np.array([[1, 0], [4, 4], [-2, 0]], np.float32)), [0, -(20**0.5), -(8**0.5)])
    assert raw.facts == {"centroids": 2}
    unit = embedding_scores.kmeans(training(np.sign(bonafide), centroids=2, normalize=True))
    half = np.float32(0.5**0.5)
    got = unit.score(np.array([[1, 0], [half, half], [-1, 0]], np.float32))
    np.testing.assert_allclose(got, [1, half, 0], atol=1e-6)


def test_one_centroid_is_the_mean(fitted: tuple[Embeddings, Embeddings]) -> None:
    train, other = fitted
    scoring = embedding_scores.fit("kmeans", train, bonafide_of_80(), centroids=1, neighbours=5)
    mean = np.array(list(itertools.compress(as_compared(train), bonafide_of_80()))).mean(0)
    queries = np.array(as_compared(other))
    wanted = queries @ mean / np.linalg.norm(mean) if train.normalize else -np.linalg.norm(queries - mean, axis=1)
    np.testing.assert_allclose(embedding_scores.scores(scoring, other), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("normalize", [True, False])
def test_centroids_are_the_means_of_clusters(*, count: int, normalize: bool) -> None:
    centres = 5 * np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0][:count]
    vectors = exact_search.compared(blobs(centres.tolist(), 40), normalize=normalize)
    found = embedding_scores.centroids_of(vectors, count, normalize=normalize)
    wanted = np.array([part.mean(0) for part in np.split(vectors, count)])
    if normalize:
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    away = np.linalg.norm(wanted[:, None] - found, axis=2)
    assert sorted(away.argmin(1).tolist()) == list(range(count))
    np.testing.assert_allclose(away.min(1), 0, atol=1e-4)
    assert embedding_scores.chosen_centroids(vectors, normalize=normalize) == count


def test_the_silhouette_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition, in a naive loop over the same clusters, on as many vectors as are looked at."""
    monkeypatch.setattr(embedding_scores, "SILHOUETTE_ON", 60)
    vectors = blobs([[0, 0], [0.6, 0], [0, 5]], 40, spread=0.25, seed=2)
    rows = np.sort(np.random.default_rng(embedding_scores.SEED).permutation(120)[:60])
    sample = vectors[rows]
    means = {}
    for count in range(2, 9):
        centroids = embedding_scores.centroids_of(sample, count, normalize=False)
        cluster = [int(np.argmin([math.dist(v, c) for c in centroids])) for v in sample]
        means[count] = silhouette(sample, cluster)
    seen: list[int] = []

    def watched(
        vectors: Vectors, count: int, *, normalize: bool, inner: object = embedding_scores.centroids_of
    ) -> Vectors:
        seen.append(len(vectors))
        return inner(vectors, count, normalize=normalize)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(embedding_scores, "centroids_of", watched)
    assert embedding_scores.chosen_centroids(vectors, normalize=False) == max(means, key=lambda count: means[count])
    assert seen == [60] * 7


def test_the_same_vectors_give_the_same_centroids() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    first, second = (embedding_scores.centroids_of(noise, 15, normalize=False) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def silhouette(vectors: Vectors, cluster: list[int]) -> float:
    values = []
    for i, vector in enumerate(vectors):
        away: dict[int, list[float]] = {c: [] for c in cluster}
        for j, other in enumerate(vectors):
            if i != j:
                away[cluster[j]].append(math.dist(vector, other))
        own = away.pop(cluster[i])
        a = sum(own) / len(own) if own else 0
        b = min(sum(d) / len(d) for d in away.values())
        values.append((b - a) / max(a, b) if own else 0)
    return sum(values) / len(values)


def test_clusters_that_are_not_there_are_not_chosen() -> None:
    assert embedding_scores.chosen_centroids(np.ones((50, 3), np.float32), normalize=False) == 1
    assert embedding_scores.chosen_centroids(np.eye(2, dtype=np.float32), normalize=False) == 1
    assert embedding_scores.chosen_centroids(np.eye(1, dtype=np.float32), normalize=False) == 1


def test_scores_stream_and_stay_float32(fitted: tuple[Embeddings, Embeddings], monkeypatch: pytest.MonkeyPatch) -> None:
    train, other = fitted
    for name in embedding_scores.SCORINGS:
        scoring = embedding_scores.fit(name, train, bonafide_of_80(), centroids=2, neighbours=3)
        whole = embedding_scores.scores(scoring, other)
        assert (whole.dtype, whole.shape) == (np.float32, (33,))
        seen: list[int] = []

        def watched(queries: Vectors, *, inner: object = scoring.score, seen: list[int] = seen) -> NDArray[np.float32]:
            seen.append(len(queries))
            return inner(queries)  # type: ignore[operator, no-any-return]

        with monkeypatch.context() as patch:
            patch.setattr(embedding_scores, "BATCH", 7)
            parts = embedding_scores.scores(embedding_scores.Scoring(watched, {}), other)
        assert seen == [7, 7, 7, 7, 5]
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_bona_fide_score_higher(tmp_path: Path) -> None:
    vectors = blobs([[4, 0, 1], [0, 4, 1], [-4, 0, 0], [0, -4, 0]], 25)
    is_bonafide = np.arange(100) < 50
    train = stored(tmp_path / "t", vectors, normalize=True)
    fresh = stored(tmp_path / "o", blobs([[4, 0, 1], [0, 4, 1], [-4, 0, 0], [0, -4, 0]], 25, seed=1), normalize=True)
    for name in embedding_scores.SCORINGS:
        scoring = embedding_scores.fit(name, train, is_bonafide, centroids=None, neighbours=5)
        scores = embedding_scores.scores(scoring, fresh)
        assert scores[is_bonafide].min() > scores[~is_bonafide].max(), name


def test_only_the_scorings_that_need_spoof_see_them() -> None:
    bonafide, queries = blobs([[1, 1]], 20), blobs([[0, 0]], 9)
    for name, scoring in embedding_scores.SCORINGS.items():
        some, others = (
            scoring(training(bonafide, spoof, centroids=2, neighbours=3)).score(queries)
            for spoof in (blobs([[3, 0]], 20), blobs([[0, 9]], 20))
        )
        assert np.array_equal(some, others) == (name != "knn_difference")


def test_more_than_there_are_is_refused() -> None:
    five, three = blobs([[0, 1]], 5), blobs([[1, 0]], 3)
    for name in ("knn", "knn_difference"):
        with pytest.raises(InputError, match=r"analyse\.neighbours: expected at most the 5 bona fide .*, got 6"):
            embedding_scores.SCORINGS[name](training(five, three, neighbours=6))
    with pytest.raises(InputError, match=r"analyse\.neighbours: expected at most the 3 spoof of training, got 4"):
        embedding_scores.knn_difference(training(five, three, neighbours=4))
    with pytest.raises(InputError, match=r"analyse\.centroids: expected at most the 5 bona fide .*, got 6"):
        embedding_scores.kmeans(training(five, centroids=6))


def test_neither_module_imports_torch() -> None:
    code = (
        "import sys, numpy as np; from pipeline.analysis import embedding_scores, embeddings\n"
        "v = np.random.default_rng(0).normal(size=(20, 3)).astype('f4')\n"
        "for s in embedding_scores.SCORINGS.values(): s(embedding_scores.TrainingSet(v, v, False, None, 2)).score(v)\n"
        "print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
