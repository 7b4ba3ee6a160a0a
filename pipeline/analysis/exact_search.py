"""Exact search among vectors, block by block: nearest neighbours and distances."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.centroids import unit

SEED = 1

BLOCK, QUERIES = 16_384, 1_024  # vectors, and queries that are held against them, in memory at a time
GPU_MOST = 2_048  # neighbours that FAISS finds on a GPU
Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


def on_gpu(index: Any) -> Any:
    """A copy of an index in the memory of the first GPU, where FAISS has one; else the index itself."""
    if getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """FAISS in one thread while it trains: k-means of few vectors is many small steps, and threads wait at each."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def compared(vectors: Vectors, *, normalize: bool) -> Vectors:
    """Embeddings (N, E) as scoring compares them: at unit length, or as they are."""
    if not normalize:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    return unit(vectors)


def nearest_ids(index: Any, queries: Vectors, k: int) -> Ids:
    """Ids (M, k) of the k vectors of an index that are nearest to queries (M, E), -1 where it finds fewer."""
    # in FAISS's own blocks of 1,024 vectors threads wait for each other: these are up to five times as fast
    faiss.cvar.distance_compute_blas_query_bs = QUERIES
    faiss.cvar.distance_compute_blas_database_bs = BLOCK
    ids: Ids = index.search(queries, k)[1]
    return ids


def distances(queries: Vectors, vectors: Vectors, ids: Ids, *, normalize: bool) -> Vectors:
    """Euclidean distances (M, k) of queries (M, E), as scoring compares them, to the vectors (N, E) of ids (M, k).

    normalize: whether to bring the vectors to unit length first. The id -1 is infinitely far.
    """
    away = np.empty(ids.shape, dtype=np.float32)
    step = max(1, BLOCK // max(1, ids.shape[1]))
    for start in range(0, len(ids), step):
        rows = ids[start : start + step]
        near = compared(vectors[rows.ravel()], normalize=normalize).reshape(*rows.shape, -1)
        away[start : start + step] = np.linalg.norm(near - queries[start : start + step, None], axis=2)
    away[ids < 0] = np.inf
    return away
