"""Build the FAISS index of a set's embeddings: flat, IVF or IVF-PQ, with a search that reaches a wanted recall."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.embeddings import (
    CARD_FILE,
    INDEX_FILE,
    UTTERANCES_FILE,
    VECTORS_FILE,
    Embeddings,
    checksum,
    mapped,
    read,
)
from pipeline.analysis.exact_search import BLOCK, SEED, Ids, Vectors, compared, distances, nearest_ids, one_thread
from pipeline.analysis.index_file import Kind
from pipeline.core.errors import InputError, listing
from pipeline.core.files import folder_beside, replace_folder, write_text, writing

FLAT_UP_TO = 200_000  # the most utterances with an exact (flat) index
IVF_UP_TO = 2_000_000  # the most utterances with an index (IVF) of full vectors
TRAINED_ON = 64  # embeddings to train each centroid of a list, and each code of a product quantizer
RECALL_AT, RECALL_QUERIES = 10, 256  # the recall counts this many neighbours of this many utterances
RECALL_WANTED = 0.95  # the number of lists that a search reads is doubled until it finds this share
FIRST_PROBES = 4  # lists that a search reads at first
TOLERANCE = 1e-5  # relative difference that rounding makes in a distance
CODES = 256  # values of a byte in a product-quantized vector


# ---------------------------------------------------------------- writing


def build(
    folder: Path, batches: Iterable[Vectors], utterances: Sequence[str], *, normalize: bool, facts: dict[str, Any]
) -> Embeddings:
    """Write embeddings, index and record into a folder in one step, and read it again.

    Args:
        batches: embeddings (B, E) float32, in the order of the utterances. Memory holds one batch and the index.
        facts: further entries of the record, ready for JSON.

    Raises InputError for an embedding that is not finite, for an utterance that comes twice, and for no
    utterances; ValueError where the batches differ in width or do not have one embedding for each utterance.
    """
    names = _checked(folder, utterances)
    beside = folder_beside(folder)
    _write_vectors(beside / VECTORS_FILE, batches, names)
    write_text(beside / UTTERANCES_FILE, "\n".join([*names, ""]))
    vectors = mapped(beside / VECTORS_FILE)
    kind = _kind(len(names))
    index = _index(vectors, kind, normalize=normalize)
    recall = 1.0
    if kind != "flat":
        recall = _tuned(Embeddings(np.array(names), vectors, normalize, index, {"kind": kind}))
    _write_index(index, beside / INDEX_FILE)
    files = (VECTORS_FILE, INDEX_FILE, UTTERANCES_FILE)
    sizes = {name: (beside / name).stat().st_size for name in files}
    record = {"count": len(names), "embedding_dim": vectors.shape[1], "normalize": normalize, "kind": kind}
    record |= {"recall": round(recall, 4), "bytes": sizes}
    record["crc32c"] = {name: checksum(beside / name) for name in files}
    write_text(beside / CARD_FILE, json.dumps(facts | record, indent=2) + "\n")
    replace_folder(beside, folder, mark=CARD_FILE)
    return read(folder)


def _write_index(index: Any, path: Path) -> None:
    with writing(path):
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:  # which FAISS raises where the disk is full
            raise OSError(errno.EIO, str(error)) from None


def _checked(folder: Path, utterances: Sequence[str]) -> list[str]:
    names = [str(name) for name in utterances]
    if not names:
        raise InputError(f"{folder}: expected at least one utterance, got none")
    if wrong := [name for name, times in Counter(names).items() if times > 1 or name.splitlines() != [name]]:
        raise InputError(f"{folder}: expected each utterance once and without line breaks, got\n{listing(wrong)}")
    return names


def _write_vectors(path: Path, batches: Iterable[Vectors], names: Sequence[str]) -> None:
    done = width = 0
    with _new_file(path) as file:
        for batch in batches:
            rows = np.ascontiguousarray(batch, dtype="<f4")
            if not width:
                width = rows.shape[1]
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
                np.lib.format.write_array_header_1_0(file, header)  # into the buffer of the file
            if rows.shape[1:] != (width,) or done + len(rows) > len(names):
                raise ValueError(f"expected {len(names)} embeddings of width {width}, got {rows.shape} after {done}")
            _check_finite(rows, names[done : done + len(rows)])
            with writing(path):
                file.write(rows.data)
                file.flush()
            done += len(rows)
    if done != len(names):
        raise ValueError(f"expected an embedding of each of {len(names)} utterances, got {done}")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file. To close it may write, too, and then fails as a write does."""
    file = path.open("wb")
    try:
        yield file
    finally:
        with writing(path):
            file.close()


def _check_finite(rows: Vectors, names: Sequence[str]) -> None:
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise InputError(
            f"utterance {names[int(np.argmax(bad))]}: expected a finite embedding, got NaN or infinity; the training "
            "diverged (lower train.learning_rate) or the features are damaged (bonafide cache verify)"
        )


# ---------------------------------------------------------------- index


def _kind(count: int) -> Kind:
    if count <= FLAT_UP_TO:
        return "flat"
    return "ivf" if count <= IVF_UP_TO else "ivfpq"


def _index(vectors: Vectors, kind: Kind, *, normalize: bool) -> Any:
    """Build an index of vectors (N, E) on the CPU, so that it is the same with and without a GPU."""
    count, width = vectors.shape
    lists = math.isqrt(count)
    codes = next(m for m in range(max(1, width // 8), 0, -1) if width % m == 0)  # bytes of a product-quantized vector
    # "np" leaves out polysemous training, which takes minutes and which these searches do not use.
    factories = {"flat": "Flat", "ivf": f"IVF{lists},Flat", "ivfpq": f"IVF{lists},PQ{codes}np"}
    index: Any = faiss.index_factory(width, factories[kind])
    if kind != "flat":
        sample = _sample(count, TRAINED_ON * max(lists, CODES))
        if kind == "ivfpq":
            index.pq.cp.max_points_per_centroid = TRAINED_ON
        with one_thread():
            index.train(compared(vectors[sample], normalize=normalize))
    for block in _blocks(vectors):
        index.add(compared(block, normalize=normalize))
    return index


def _tuned(found: Embeddings) -> float:
    """Choose how many lists a search reads, and return the recall of such a search."""
    rows = _sample(len(found), RECALL_QUERIES)
    k = min(RECALL_AT, len(found) - 1)
    farthest = _others(*_searched_exactly(found, rows, k + 1), rows, k)[:, -1:]  # (M, 1), of the k nearest others
    for doublings in itertools.count():
        found.index.nprobe = min(FIRST_PROBES << doublings, found.index.nlist)
        # A new object for each trial, because an object keeps the copy of its index on the GPU.
        again = Embeddings(found.utterances, found.vectors, found.normalize, found.index, found.record)
        near = _others(*again.search(found.vectors[rows], k + 1), rows, k)
        recall = float((near <= farthest * (1 + TOLERANCE)).mean())
        if recall >= RECALL_WANTED or found.index.nprobe == found.index.nlist:
            break
    return recall


def _others(away: Vectors, ids: Ids, rows: NDArray[np.intp], k: int) -> Vectors:
    """The k smallest of the distances (M, k + 1) of each row, without the distance to itself: (M, k)."""
    return np.sort(np.where(ids == rows[:, None], np.inf, away), axis=1)[:, :k]


def _searched_exactly(found: Embeddings, rows: NDArray[np.intp], k: int) -> tuple[Vectors, Ids]:
    """Distances and ids (M, k) of the k nearest of some rows (M,), by comparing them with all vectors in blocks."""
    queries = compared(found.vectors[rows], normalize=found.normalize)
    near, ids = np.zeros((len(rows), 0), np.float32), np.zeros((len(rows), 0), np.int64)
    for start, block in zip(range(0, len(found), BLOCK), _blocks(found.vectors), strict=True):
        flat = faiss.IndexFlatL2(queries.shape[1])
        flat.add(compared(block, normalize=found.normalize))
        own = nearest_ids(flat, queries, min(k, len(block)))
        away = distances(queries, block, own, normalize=found.normalize)
        near, ids = np.concatenate([near, away], axis=1), np.concatenate([ids, start + own], axis=1)
        order = np.argsort(near, axis=1, kind="stable")[:, :k]
        near, ids = np.take_along_axis(near, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return near, ids


def _sample(count: int, size: int) -> NDArray[np.intp]:
    """Up to `size` of `count` rows, ascending. The choice is the same every time."""
    return np.sort(np.random.default_rng((SEED, count)).choice(count, size=min(size, count), replace=False))


def _blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
