"""Read the embeddings of a set, with a FAISS index, from a folder that `embedding_index.build` wrote.

The folder holds four files for N utterances. The id of an utterance is its line number, from 0.

    embeddings.npy   (N, E) float32, from the backend
    index.faiss      an index of the embeddings in the form in which scoring compares them
    utterances.txt   a name in each line
    embeddings.json  the record: counts, kind of index, and the identity of the run and the set

There are three kinds of index, by the number of utterances. Up to `FLAT_UP_TO` it is exact (flat). Up to `IVF_UP_TO` it
has inverted lists (IVF). Above, it has inverted lists of product-quantized vectors (IVF-PQ), and its candidates are
ranked again by their embeddings. For the last two the record has the recall, measured when the index was built: the
share of the ten nearest others of some utterances that a search finds. Distances are always computed from the
embeddings themselves.
Source: Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", 2017.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import faiss
import google_crc32c
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.analysis import index_file
from pipeline.analysis.exact_search import GPU_MOST, Ids, Vectors, compared, distances, nearest_ids, on_gpu
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.core.trial_table import Trials
from pipeline.scoring import runs
from pipeline.scoring.centroids import Count

VECTORS_FILE, INDEX_FILE, UTTERANCES_FILE = "embeddings.npy", "index.faiss", "utterances.txt"
CARD_FILE = "embeddings.json"
KEYS = ("count", "embedding_dim", "normalize", "kind", "recall", "bytes")  # of the record, which may have further ones
REMEDY = "run `dvc repro -f flow/analyse/dvc.yaml`"
RERANKED = 10  # candidates of IVF-PQ for each wanted neighbour
GREATEST = 1e15  # of a value from elsewhere: the square of a distance is a float32
READ_AT_ONCE = 2**24  # bytes


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N embeddings of width E by id, and an index to search them.

    utterances: (N,). vectors: (N, E) from the backend, memory-mapped. normalize: whether scoring compares them at unit
    length. index: of FAISS, by squared Euclidean distance between embeddings as scoring compares them. record: facts
    about the set, ready for JSON.
    """

    utterances: NDArray[np.str_]
    vectors: Vectors
    normalize: bool
    index: Any
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Find the k nearest embeddings of each query: distances (M, k) and ids (M, k), nearest first.

        Of equal distances the lower id comes first. queries: (M, E) from the backend, finite. k > N gives N columns.
        Raises ValueError for another width.
        """
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1] or k < 1:
            raise ValueError(f"expected queries (M, {self.vectors.shape[1]}) and k ≥ 1, got {queries.shape} and {k}")
        k = min(k, len(self))
        wanted = compared(queries, normalize=self.normalize)
        ids = self._candidates(wanted, k)
        away = distances(wanted, self.vectors, ids, normalize=self.normalize)
        order = np.lexsort((ids, away), axis=-1)[:, :k]
        return np.take_along_axis(away, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def _candidates(self, wanted: Vectors, k: int) -> Ids:
        """The ids (M, C) of candidates for the k nearest, C ≥ k; -1 where FAISS found fewer than C."""
        count = min(k * (RERANKED if self.record["kind"] == "ivfpq" else 1), len(self))
        index = self._placed if count <= GPU_MOST else self.index
        ids = nearest_ids(index, wanted, count)
        if (few := np.flatnonzero((ids[:, :k] < 0).any(axis=1))).size:  # fewer than k: search all lists for these
            every_list = faiss.SearchParametersIVF()
            every_list.nprobe = self.index.nlist
            ids[few] = self.index.search(wanted[few], count, params=every_list)[1]
        return ids

    @functools.cached_property
    def _placed(self) -> Any:
        return on_gpu(self.index)


# ---------------------------------------------------------------- the embeddings of a run


def identity(run: Path, name: str, table: Trials) -> dict[str, Any]:
    """The identity of a run's embeddings of a set, for their record: the run, its weights, the set, its trials."""
    weights = hashlib.sha256((run / runs.BACKEND_FILE).read_bytes()).hexdigest()[:16]
    return {"run": run.name, "weights": weights, "set": name, "trials": trial_table.fingerprint(table)}


def of_run(folder: Path, run: Path, name: str, table: Trials, *, indexed: bool = True) -> Embeddings:
    """Read a run's embeddings of a set. indexed: as for `read`.

    Raises InputError where the folder has those of another run, set or trials.
    """
    found = read(folder, indexed=indexed)
    centroids = runs.index(run)
    wanted = identity(run, name, table) | {"normalize": centroids.normalize_query, "embedding_dim": centroids.index.d}
    got = {key: found.record.get(key) for key in wanted}
    if got != wanted or found.utterances.tolist() != table.utterance.tolist():
        raise InputError(f"{folder}: expected the embeddings of {wanted}, got those of {got}; {REMEDY}")
    return found


# ---------------------------------------------------------------- reading


def read(folder: Path, *, indexed: bool = True) -> Embeddings:
    """Read a folder of `build`; its large files are memory-mapped.

    Args:
        indexed: whether to read the index. A folder from elsewhere is read without: FAISS opens any file that an index
            names, and ends the process for some that are damaged. An exact index is then made of the vectors.

    Raises InputError where a file is missing, is damaged, or does not fit the others.
    """
    record = _record(folder / CARD_FILE)
    if not indexed:
        record |= {"kind": "flat", "recall": 1.0}
    for name in (VECTORS_FILE, *([INDEX_FILE] if indexed else []), UTTERANCES_FILE):
        _check_bytes(folder / name, record, needed=indexed)
    vectors = mapped(folder / VECTORS_FILE)
    try:
        utterances = np.array((folder / UTTERANCES_FILE).read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InputError(f"{folder / UTTERANCES_FILE}: expected names in UTF-8: {error}; {REMEDY}") from None
    count, width = record["count"], record["embedding_dim"]
    if vectors.shape != (count, width) or len(utterances) != count:
        raise InputError(
            f"{folder}: expected {count} embeddings of width {width} by {CARD_FILE}, got {vectors.shape} and "
            f"{len(utterances)} utterances; {REMEDY}"
        )
    if indexed:
        index = index_file.read_index(folder / INDEX_FILE, record["kind"], count=count, width=width, remedy=REMEDY)
    else:
        index = _exact_index(folder / VECTORS_FILE, vectors, normalize=record["normalize"])
    return Embeddings(utterances, vectors, record["normalize"], index, record)


def checksum(path: Path) -> int:
    """The crc32c of a file's bytes."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(READ_AT_ONCE):
            found = int(google_crc32c.extend(found, block))
    return found


def _check_bytes(path: Path, record: dict[str, Any], *, needed: bool) -> None:
    """Raise InputError where a file has another size or checksum than its record says.

    needed: whether there must be a checksum. A package has one of its own of each file.
    """
    size, wanted = path.stat().st_size if path.is_file() else 0, record["bytes"].get(path.name)
    if size != wanted:
        raise InputError(f"{path}: expected {wanted} bytes by {CARD_FILE}, got {size}; {REMEDY}")
    told = record.get("crc32c", {}).get(path.name)
    if told is None and not needed:
        return
    if told != checksum(path):
        raise InputError(f"{path}: expected the bytes that {CARD_FILE} tells of, got others; {REMEDY}")


class _Record(BaseModel):
    """What is read again of the record of a set of embeddings."""

    model_config = ConfigDict(strict=True)

    count: Count
    embedding_dim: Count
    normalize: bool
    kind: Literal["flat", "ivf", "ivfpq"]
    recall: Annotated[float, Field(ge=0, le=1)] | None
    bytes: dict[str, int]
    crc32c: dict[str, int] = {}


def _record(path: Path) -> dict[str, Any]:
    found = read_json(path, what="set of embeddings", keys=KEYS, remedy=REMEDY, most=runs.MOST_BYTES)
    try:
        _Record.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{path}: not the record of a set of embeddings: {where}: {problem['msg']}; {REMEDY}"
        ) from None
    return found


def _exact_index(path: Path, vectors: Vectors, *, normalize: bool) -> Any:
    if not vectors.size or not (np.abs(vectors) <= GREATEST).all():
        raise InputError(
            f"{path}: expected finite embeddings up to {GREATEST:g}, got {vectors.shape} with NaN, infinity or more; "
            f"{REMEDY}"
        )
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(compared(vectors, normalize=normalize))
    return index


def mapped(path: Path) -> Vectors:
    """Memory-map the vectors (N, E) float32 of a NumPy file. Raises InputError for any other file."""
    try:
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header gives errors of many kinds
        raise InputError(f"{path}: not embeddings that this project wrote ({error}); {REMEDY}") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise InputError(f"{path}: expected (N, E) float32, got {vectors.shape} {vectors.dtype}; {REMEDY}")
    return vectors
