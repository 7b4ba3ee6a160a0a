"""How far an embedding lies from the training set, as a percentile of how far the training set's own lie from it.

The distance of an embedding is the mean of those to its k nearest training embeddings. A training utterance is compared
with all others but itself. So the percentile of a new utterance is the share of training utterances that have at most
its distance: 50 lies like the middle one, 100 at least as far out as all. It says how unlike the training set an
utterance is, and nothing about its class: a new microphone and a new attack may both be far, and an attack near.

Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.exact_search import Ids, Vectors

NEIGHBOURS = 5
SAMPLE = 1_000  # utterances, evenly chosen, that stand for a set

# Finds the k nearest training embeddings of queries (M, E): distances and ids (M, k), as `Embeddings.search` does.
Search = Callable[[Vectors, int], tuple[Vectors, Ids]]


def sample(count: int, *, most: int | None = None) -> NDArray[np.int64]:
    """Up to `SAMPLE` of `count` rows, or up to `most`, ascending."""
    return np.unique(np.linspace(0, count - 1, min(most or SAMPLE, count)).round().astype(np.int64))


def own_distances(vectors: Vectors, search: Search) -> NDArray[np.float64]:
    """The distances (M,) of a sample of the training embeddings (N, E) to the others, ascending. N is at least 2."""
    count = len(vectors)
    rows, k = sample(count), min(NEIGHBOURS, count - 1)
    away, ids = search(np.asarray(vectors[rows]), k + 1)
    others = np.sort(np.where(ids == rows[:, None], np.inf, away), axis=1)[:, :k]
    return np.sort(others.mean(axis=1, dtype=np.float64))


def percentiles(away: NDArray[np.float32], own: NDArray[np.float64], *, count: int) -> NDArray[np.float64]:
    """The percentiles (n,), in 0..100, of utterances by their distances (n, K), nearest first, to training embeddings.

    own: by `own_distances`. count: of training embeddings. K: at least as many as the own distances are means of.
    """
    k = min(NEIGHBOURS, count - 1)
    return among(away[:, :k].mean(axis=1, dtype=np.float64), own)


def among(distances: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """The percentiles (n,), in 0..100, of distances (n,) among the own ones (M,), ascending."""
    at_most: NDArray[np.intp] = np.searchsorted(own, distances, side="right")
    return 100 * at_most / len(own)
