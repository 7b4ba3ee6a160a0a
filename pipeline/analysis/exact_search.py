"""Exact nearest neighbours and distances, computed block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.centroids import unit

SEED = 1

BLOCK, QUERIES = 16_384, 1_024  # vectors, and queries that are compared with them, in one block
GPU_MOST = 2_048  # the most neighbours that FAISS finds on a GPU
Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


def on_gpu(index: Any) -> Any:
    """A copy of an index on the first GPU, where FAISS can use one; else the index itself."""
    if getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use one thread. k-means of few vectors has many small steps, and threads would wait at each."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def compared(vectors: Vectors, *, normalize: bool) -> Vectors:
    """Embeddings (N, E) in the form in which scoring compares them: unchanged, or at unit length with `normalize`."""
    if not normalize:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    return unit(vectors)


def nearest_ids(index: Any, queries: Vectors, k: int) -> Ids:
    """The ids (M, k) of the k vectors of an index nearest to queries (M, E); -1 where it finds fewer."""
    # FAISS's own blocks of 1,024 vectors make threads wait. These blocks are up to five times as fast.
    faiss.cvar.distance_compute_blas_query_bs = QUERIES
    faiss.cvar.distance_compute_blas_database_bs = BLOCK
    ids: Ids = index.search(queries, k)[1]
    return ids


def distances(queries: Vectors, vectors: Vectors, ids: Ids, *, normalize: bool) -> Vectors:
    """The Euclidean distances (M, k) from queries (M, E) to the vectors (N, E) with ids (M, k).

    The queries are in the form in which scoring compares them. normalize: bring the vectors to unit length first. The
    distance to the id -1 is infinite.
    """
    away = np.empty(ids.shape, dtype=np.float32)
    step = max(1, BLOCK // max(1, ids.shape[1]))
    for start in range(0, len(ids), step):
        rows = ids[start : start + step]
        near = compared(vectors[rows.ravel()], normalize=normalize).reshape(*rows.shape, -1)
        away[start : start + step] = np.linalg.norm(near - queries[start : start + step, None], axis=2)
    away[ids < 0] = np.inf
    return away
