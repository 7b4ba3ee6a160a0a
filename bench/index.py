"""The embedding index at a million utterances: build, memory, search and recall of each kind; FAISS beside its like.

    python bench/index.py [--small]

The aim is a build within 4 GB. Embeddings are drawn from a mixture, 300 clusters that overlap in a space of 32
dimensions and spread into 16 of their own, with a little noise in all: the nearest neighbours of isotropic noise are
all about equally far, so that recall on noise says nothing. They are compared at unit length. Each kind of index is
built and searched in processes of their own, and what building took at most is told; queries are fresh draws, and their
recall is held against the flat index. Then the exact searches of FAISS, torch (products and topk, in blocks) and
scikit-learn (NearestNeighbors, brute) take turns on the same vectors in one process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from pipeline.analysis import embedding_index, embeddings, exact_search

T = TypeVar("T")
Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

AIM_GB = 4
COUNT, SMALL, WIDTH = 1_000_000, 50_000, 256
CLUSTERS, SHARED, OWN = 300, 32, 16  # and their dimensions
SPREAD, NOISE = 0.5, 0.05  # within a cluster in the shared dimensions, and in all; centres and own dimensions: 1
QUERIES, COMPARED, NEAREST, TURNS = 1_000, 256, 10, 3
BATCH = 4_096  # embeddings drawn at a time
BLOCK = 65_536  # vectors that torch multiplies at a time
NEVER = 10**12
LIMITS = {"flat": (NEVER, NEVER), "ivf": (0, NEVER), "ivfpq": (0, 0)}  # FLAT_UP_TO, IVF_UP_TO that make each kind


def drawn(count: int, seed: int) -> Iterator[Vectors]:
    """Embeddings (B, WIDTH) of the mixture, batch after batch."""
    shape = np.random.default_rng(0)
    shared = shape.standard_normal((SHARED, WIDTH), dtype=np.float32) / np.float32(np.sqrt(SHARED))
    own = shape.standard_normal((CLUSTERS, OWN, WIDTH), dtype=np.float32) / np.float32(np.sqrt(WIDTH))
    centres = shape.standard_normal((CLUSTERS, SHARED), dtype=np.float32)
    rng = np.random.default_rng((1, seed))
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        cluster = np.sort(rng.integers(CLUSTERS, size=size))
        inside = rng.standard_normal((size, SHARED), dtype=np.float32)
        rows = (centres[cluster] + np.float32(SPREAD) * inside) @ shared
        rows += np.float32(NOISE) * rng.standard_normal((size, WIDTH), dtype=np.float32)
        further = rng.standard_normal((size, OWN), dtype=np.float32)
        edges = np.searchsorted(cluster, np.arange(CLUSTERS + 1))
        for c in np.unique(cluster):
            part = slice(edges[c], edges[c + 1])
            rows[part] += further[part] @ own[c]
        yield rows


def queries(count: int) -> Vectors:
    """Embeddings that no index holds."""
    return np.concatenate(list(drawn(count, seed=2)))


def peak() -> float:
    """Peak memory of this process, GB; pages of mapped files count as long as they are in."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def build(folder: Path, kind: str, count: int) -> tuple[float, float, float]:
    """Build an index: seconds without drawing, peak GB, the recall of its card."""
    embedding_index.FLAT_UP_TO, embedding_index.IVF_UP_TO = LIMITS[kind]
    drawing = 0.0

    def batches() -> Iterator[Vectors]:
        nonlocal drawing
        source = drawn(count, seed=1)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            drawing += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    start = time.perf_counter()
    found = embedding_index.build(folder, batches(), [f"u{i}" for i in range(count)], normalize=True, facts={})
    seconds = time.perf_counter() - start - drawing
    return seconds, peak(), found.record["recall"]


def search(folder: Path) -> tuple[float, float, float, Ids]:
    """Read an index and search it: seconds to read, ms a query of many at once, ms of one alone, ids."""
    start = time.perf_counter()
    found = embeddings.read(folder)
    middle = time.perf_counter()
    fresh = queries(QUERIES)
    found.search(fresh[:20], NEAREST)
    begin = time.perf_counter()
    _, ids = found.search(fresh, NEAREST)
    end = time.perf_counter()
    for row in fresh[:20]:
        found.search(row[None], NEAREST)
    alone = (time.perf_counter() - end) / 20
    return middle - start, 1e3 * (end - begin) / len(fresh), 1e3 * alone, ids


def size(folder: Path) -> float:
    """Size of the index file, GB."""
    return (folder / embeddings.INDEX_FILE).stat().st_size / 1e9


def by_torch(vectors: torch.Tensor, wanted: torch.Tensor) -> Ids:
    """Ids (M, NEAREST) of the greatest cosines, block after block."""
    best, ids = torch.full((len(wanted), NEAREST), -2.0), torch.zeros((len(wanted), NEAREST), dtype=torch.int64)
    for start in range(0, len(vectors), BLOCK):
        near, own = (wanted @ vectors[start : start + BLOCK].T).topk(NEAREST, dim=1)
        best, order = torch.cat([best, near], dim=1).topk(NEAREST, dim=1)
        ids = torch.cat([ids, start + own], dim=1).gather(1, order)
    return ids.numpy()


def compare(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds, of the clock and of the processor, of exact searches that take turns; ends where one finds others."""
    found = embeddings.read(folder)
    vectors = exact_search.compared(found.vectors, normalize=True)
    raw = queries(COMPARED)
    wanted = exact_search.compared(raw, normalize=True)
    flat = faiss.IndexFlatL2(WIDTH)
    flat.add(vectors)
    brute = NearestNeighbors(n_neighbors=NEAREST, algorithm="brute").fit(vectors)
    ways: dict[str, Callable[[], Any]] = {
        "FAISS flat": lambda: exact_search.nearest_ids(flat, wanted, NEAREST),
        "Embeddings.search": lambda: found.search(raw, NEAREST)[1],
        "torch": lambda: by_torch(torch.from_numpy(vectors), torch.from_numpy(wanted)),
        "scikit-learn": lambda: brute.kneighbors(wanted, return_distance=False),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        results = {}
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            results[name] = way()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    for name, ids in results.items():
        if (same := recall(ids, results["FAISS flat"])) < 0.999:
            raise SystemExit(f"error: {name} shares only {same:.2%} of its neighbours with FAISS")
    return seconds


def recall(ids: Ids, exact: Ids) -> float:
    """The share of the exact neighbours that are among those found."""
    return float(np.mean([np.isin(wanted, got).mean() for got, wanted in zip(ids, exact, strict=True)]))


def apart(work: Callable[..., T], *args: Any) -> T:
    """Do the work in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def main() -> None:
    """Measure, print beside the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"{SMALL:,} utterances in place of {COUNT:,}")
    count = SMALL if parser.parse_args().small else COUNT
    print(f"{count:,} x {WIDTH}, {NEAREST} nearest; peak memory of the build, aim {AIM_GB} GB; searches on a warm disk")
    print("kind   build s  peak GB  index GB  read ms  ms/query of 1,000  of one   recall by card  of fresh queries")
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in LIMITS}
        exact = None
        for kind, folder in folders.items():
            seconds, memory, told = apart(build, folder, kind, count)
            reading, together, alone, ids = apart(search, folder)
            exact = ids if exact is None else exact
            print(
                f"{kind:5} {seconds:8.1f} {memory:8.2f} {size(folder):9.3f} {1e3 * reading:8.0f} {together:18.3f} "
                f"{alone:7.2f} {told:16.3f} {recall(ids, exact):17.3f}",
                flush=True,
            )
            if kind != "flat":
                shutil.rmtree(folder)
        turns_of = apart(compare, folders["flat"])
    middle = {
        way: [statistics.median(column) for column in zip(*turns, strict=True)] for way, turns in turns_of.items()
    }
    first = middle["FAISS flat"]
    print(f"exact search of {COMPARED} queries, medians of {TURNS} turns")
    for way, (clock, processor) in middle.items():
        ratios = f"{clock / first[0]:.2f} and {processor / first[1]:.2f} times FAISS flat"
        print(f"{way:18} {clock:7.2f} s, {processor:7.2f} s of processor   {ratios}")
    print(f"{os.cpu_count()} cores, {platform.machine()}, faiss {faiss.__version__}, torch {torch.__version__}, "
          f"scikit-learn {sklearn.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
