"""Percentiles of Mahalanobis distances, against naive loops that leave each training utterance out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from pipeline.analysis import familiarity
from pipeline.analysis.gaussians import Gaussians
from pipeline.core.errors import InputError


def drawn(bonafide: int, spoof: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of two classes, shuffled, and their classes."""
    rng = np.random.default_rng(seed)
    is_bonafide = rng.permutation(np.arange(bonafide + spoof) < bonafide)
    x = rng.standard_normal((len(is_bonafide), width)) @ rng.standard_normal((width, width)) + 2 * is_bonafide[:, None]
    return x.astype(np.float32), is_bonafide


def distance(queries: np.ndarray, x: np.ndarray, is_bonafide: np.ndarray, delta: float, nu: float) -> np.ndarray:
    """By the definition: both means, their common covariance, shrunk, and its inverse."""
    x, queries = x.astype(np.float64), queries.astype(np.float64)
    parts = [x[is_bonafide == label] for label in (False, True) if (is_bonafide == label).any()]
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in parts) / len(x)
    inverse = np.linalg.inv((1 - delta) * scatter + delta * nu * np.eye(x.shape[1]))
    away = [queries - part.mean(0) for part in parts]
    return np.sqrt(np.min([np.einsum("ne,ef,nf->n", d, inverse, d) for d in away], axis=0))


def shrinkage(x: np.ndarray, is_bonafide: np.ndarray) -> tuple[float, float]:
    means = np.stack([x[is_bonafide == label].astype(np.float64).mean(0) for label in (False, True)])
    away = x - means[is_bonafide.astype(int)]
    return ledoit_wolf_shrinkage(away, assume_centered=True), (away**2).mean()


@pytest.mark.parametrize(("bonafide", "spoof", "width"), [(12, 30, 4), (5, 9, 20), (1, 12, 3), (2, 2, 2)])
def test_a_training_utterance_is_compared_with_all_others(bonafide: int, spoof: int, width: int) -> None:
    x, is_bonafide = drawn(bonafide, spoof, width)
    delta, nu = shrinkage(x, is_bonafide)
    others = [np.arange(len(x)) != i for i in range(len(x))]
    naive = [distance(x[i : i + 1], x[rest], is_bonafide[rest], delta, nu)[0] for i, rest in enumerate(others)]
    np.testing.assert_allclose(Gaussians.of(x, is_bonafide, normalize=False).own, np.sort(naive), rtol=1e-6)


def test_a_percentile_is_the_share_of_the_training_set_that_lies_no_farther() -> None:
    x, is_bonafide = drawn(20, 50, 5)
    found = Gaussians.of(x, is_bonafide, normalize=False)
    queries = drawn(10, 10, 5, seed=1)[0] * 1.5
    away = distance(queries, x, is_bonafide, *shrinkage(x, is_bonafide))
    expected = [100 * np.mean(found.own <= one) for one in away]
    np.testing.assert_allclose(found.percentiles(queries), expected)
    assert len(set(expected)) > 5
    assert found.percentiles(x.mean(0, keepdims=True) + 1_000).tolist() == [100]


def test_embeddings_are_compared_as_scoring_compares_them() -> None:
    x, is_bonafide = drawn(20, 50, 5)
    unit, queries = x / np.linalg.norm(x, axis=1, keepdims=True), drawn(10, 10, 5, seed=1)[0]
    at_unit = Gaussians.of(x, is_bonafide, normalize=True)
    np.testing.assert_allclose(at_unit.own, Gaussians.of(unit, is_bonafide, normalize=False).own, rtol=1e-4)
    np.testing.assert_array_equal(at_unit.percentiles(queries), at_unit.percentiles(3 * queries))


def test_new_utterances_like_the_training_set_have_evenly_spread_percentiles() -> None:
    """With far more utterances than channels: 10 % beyond the 90th percentile, within four standard errors."""
    x, is_bonafide = drawn(2_000, 2_000, 6)
    found = Gaussians.of(x[:3_000], is_bonafide[:3_000], normalize=False).percentiles(x[3_000:])
    assert abs((found > 90).mean() - 0.1) < 4 * np.sqrt(0.09 / 1_000)
    assert abs(found.mean() - 50) < 4 * 100 / np.sqrt(12 * 1_000)


def test_a_channel_that_never_varies_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    x, is_bonafide = drawn(20, 20, 4)
    monkeypatch.setattr("sklearn.covariance.ledoit_wolf_shrinkage", lambda *_, **__: 0.0)
    with_constant = np.column_stack([x, np.full(len(x), 3, np.float32)])
    moved = with_constant + np.float32([0, 0, 0, 0, 9])
    found = Gaussians.of(with_constant, is_bonafide, normalize=False)
    assert found.variances.shape == (4,)
    np.testing.assert_array_equal(
        found.percentiles(moved), Gaussians.of(x, is_bonafide, normalize=False).percentiles(x)
    )


def test_embeddings_that_are_all_alike_or_of_one_class_are_refused() -> None:
    with pytest.raises(InputError, match="expected training embeddings that differ within a class, got 6"):
        Gaussians.of(np.ones((6, 3), np.float32), np.arange(6) < 3, normalize=False)
    with pytest.raises(InputError, match="of both classes, got one among 6"):
        Gaussians.of(drawn(3, 3, 3)[0], np.ones(6, bool), normalize=False)


def test_large_training_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    x, is_bonafide = drawn(300, 300, 3)
    monkeypatch.setattr("pipeline.analysis.gaussians.MOST", 200)
    rows = familiarity.sample(600, most=200)
    assert len(rows) == 200
    np.testing.assert_array_equal(
        Gaussians.of(x, is_bonafide, normalize=False).own, Gaussians.of(x[rows], is_bonafide[rows], normalize=False).own
    )
