"""The embeddings of a set on disk with a FAISS index of them: written whole, read memory-mapped, changed whole.

A folder holds, for N utterances whose ids are their line numbers from 0:

    embeddings.npy   (N, E) float32 as the backend gives them
    index.faiss      nearest neighbours of the embeddings as scoring compares them
    utterances.txt   one name a line
    embeddings.json  the card

The index is exact (flat) up to `FLAT_UP_TO` utterances, inverted lists (IVF) up to `IVF_UP_TO`, and beyond that
inverted lists of product-quantised vectors (IVF-PQ), whose candidates are ranked again by their embeddings. For the
last two the card tells the recall, measured when the index is built: of the ten nearest others of some utterances, the
share that a search finds. Distances are computed from the embeddings themselves, whatever found the neighbours.
Source: Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", 2017.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline import runs, trials
from pipeline.errors import InputError, listing
from pipeline.files import folder_beside, read_json, replace_folder
from pipeline.trials import Trials

VECTORS_FILE, INDEX_FILE, UTTERANCES_FILE = "embeddings.npy", "index.faiss", "utterances.txt"
CARD_FILE = "embeddings.json"
KEYS = ("count", "embedding_dim", "normalize", "kind", "recall", "bytes")  # the card's own; further ones are facts
REMEDY = "run `dvc repro -f flow/analyse/dvc.yaml`"

FLAT_UP_TO = 200_000  # utterances that an exact search looks through
IVF_UP_TO = 2_000_000  # utterances whose index holds the embeddings themselves
TRAINED_ON = 64  # embeddings that each list's centroid, and each of the 256 codes of a product quantiser, is trained on
RERANKED = 10  # candidates of IVF-PQ for each neighbour that is asked for
RECALL_AT, RECALL_QUERIES = 10, 256  # neighbours, and the utterances whose neighbours are looked for
RECALL_WANTED = 0.95  # lists are looked through, twice as many each time, until a search finds this share
FIRST_PROBES = 4  # lists
TOLERANCE = 1e-5  # by which two ways to round a distance differ, as a share of it
CODES = 256  # of each byte of a product-quantised vector
SEED = 1

NORM_FLOOR = 1e-12  # an embedding of zeros stays one
BLOCK, QUERIES = 16_384, 1_024  # vectors, and queries that are held against them, in memory at a time
GPU_MOST = 2_048  # neighbours that FAISS finds on a GPU

Kind = Literal["flat", "ivf", "ivfpq"]
Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
TYPES: dict[str, Any] = {"flat": faiss.IndexFlatL2, "ivf": faiss.IndexIVFFlat, "ivfpq": faiss.IndexIVFPQ}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N embeddings of width E, by id, and what finds the nearest of them.

    utterances: (N,). vectors: (N, E) as the backend gives them, memory-mapped. normalize: whether scoring compares them
    at unit length. index: FAISS, in squared Euclidean distance of what scoring compares. card: JSON-ready.
    """

    utterances: NDArray[np.str_]
    vectors: Vectors
    normalize: bool
    index: Any
    card: dict[str, Any]

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Distances (M, k) and ids (M, k) of the k nearest, nearest first, equally near ones by id.

        queries: (M, E) as the backend gives them, finite. k > N gives N columns. Raises ValueError for another width.
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
        """Ids (M, C) among which the k nearest are looked for, C ≥ k; -1 where FAISS found fewer than C."""
        count = min(k * (RERANKED if self.card["kind"] == "ivfpq" else 1), len(self))
        index = self._placed if count <= GPU_MOST else self.index
        ids = nearest_ids(index, wanted, count)
        if (few := np.flatnonzero((ids[:, :k] < 0).any(axis=1))).size:  # the lists looked through hold less than k
            every_list = faiss.SearchParametersIVF()
            every_list.nprobe = self.index.nlist
            ids[few] = self.index.search(wanted[few], count, params=every_list)[1]
        return ids

    @functools.cached_property
    def _placed(self) -> Any:
        return on_gpu(self.index)


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
    """What scoring compares of embeddings (N, E): the same at unit length, or as they are."""
    if not normalize:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), NORM_FLOOR))


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


# ---------------------------------------------------------------- of a run


def identity(run: Path, name: str, table: Trials) -> dict[str, Any]:
    """What makes the embeddings of a set what they are, for their card: run and its weights, set and its trials."""
    weights = hashlib.sha256((run / runs.BACKEND_FILE).read_bytes()).hexdigest()[:16]
    return {"run": run.name, "weights": weights, "set": name, "trials": trials.fingerprint(table)}


def of_run(folder: Path, run: Path, name: str, table: Trials) -> Embeddings:
    """The embeddings that a run gives the trials of a set. Raises InputError where the folder has others."""
    found = read(folder)
    wanted = identity(run, name, table) | {"normalize": runs.centroids(run).normalize_query}
    told = {key: found.card.get(key) for key in wanted}
    if told != wanted or found.utterances.tolist() != table.utterance.tolist():
        raise InputError(f"{folder}: expected the embeddings of {wanted}, got those of {told}; {REMEDY}")
    return found


# ---------------------------------------------------------------- writing


def build(
    folder: Path, batches: Iterable[Vectors], utterances: Sequence[str], *, normalize: bool, facts: dict[str, Any]
) -> Embeddings:
    """Write embeddings, index and card into a folder that appears only when it is whole, and read it.

    Args:
        batches: embeddings (B, E) float32 at a time, in the order of the utterances; no more is held in memory than
            one of them and the index. facts: what else the card is to tell, JSON-ready.

    Raises InputError for an embedding that is not finite, an utterance named twice or with white space, or none;
    ValueError where the batches do not fit together or are of another number than the utterances.
    """
    names = _checked(folder, utterances)
    beside = folder_beside(folder)
    _write_vectors(beside / VECTORS_FILE, batches, names)
    (beside / UTTERANCES_FILE).write_text("\n".join([*names, ""]), encoding="utf-8")
    vectors = _mapped(beside / VECTORS_FILE)
    kind = _kind(len(names))
    index = _index(vectors, kind, normalize=normalize)
    recall = 1.0
    if kind != "flat":
        recall = _tuned(Embeddings(np.array(names), vectors, normalize, index, {"kind": kind}))
    faiss.write_index(index, str(beside / INDEX_FILE))
    sizes = {name: (beside / name).stat().st_size for name in (VECTORS_FILE, INDEX_FILE, UTTERANCES_FILE)}
    card = {"count": len(names), "embedding_dim": vectors.shape[1], "normalize": normalize, "kind": kind}
    card |= {"recall": round(recall, 4), "bytes": sizes}
    (beside / CARD_FILE).write_text(json.dumps(facts | card, indent=2) + "\n")
    replace_folder(beside, folder, mark=CARD_FILE)
    return read(folder)


def add(folder: Path, vectors: Vectors, utterances: Sequence[str]) -> Embeddings:
    """Put embeddings (M, E) of M further utterances at the end; the folder is written anew.

    Its card no longer names the trials of a set. Raises InputError for an utterance that is there already, and where
    `build` does.
    """
    old = read(folder)
    known = old.utterances.tolist()
    if there := sorted(set(known) & set(utterances)):
        raise InputError(f"{folder}: expected utterances that are not there, got\n{listing(there)}\nremove them first")
    batches = itertools.chain(_blocks(old.vectors), [vectors])
    return build(folder, batches, [*known, *utterances], normalize=old.normalize, facts=_facts_of_a_part(old))


def remove(folder: Path, utterances: Sequence[str]) -> Embeddings:
    """Take utterances out; the folder is written anew, and the ids of those behind them move up.

    Its card no longer names the trials of a set. Raises InputError for an utterance that is not there, or where none
    would be left.
    """
    old = read(folder)
    if missing := sorted(set(utterances) - set(old.utterances.tolist())):
        raise InputError(f"{folder}: expected utterances that are there, got\n{listing(missing)}")
    stay = np.flatnonzero(~np.isin(old.utterances, list(utterances)))
    batches = (old.vectors[rows] for rows in _blocks(stay))
    return build(folder, batches, old.utterances[stay].tolist(), normalize=old.normalize, facts=_facts_of_a_part(old))


def _facts_of_a_part(old: Embeddings) -> dict[str, Any]:
    return {key: value for key, value in old.card.items() if key not in KEYS} | {"trials": None}


def _checked(folder: Path, utterances: Sequence[str]) -> list[str]:
    names = [str(name) for name in utterances]
    if not names:
        raise InputError(f"{folder}: expected at least one utterance, got none; remove the folder instead")
    if wrong := [name for name, times in Counter(names).items() if times > 1 or name.split() != [name]]:
        raise InputError(f"{folder}: expected each utterance once and without white space, got\n{listing(wrong)}")
    return names


def _write_vectors(path: Path, batches: Iterable[Vectors], names: Sequence[str]) -> None:
    done = width = 0
    with path.open("wb") as file:
        for batch in batches:
            rows = np.ascontiguousarray(batch, dtype="<f4")
            if not width:
                width = rows.shape[1]
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
                np.lib.format.write_array_header_1_0(file, header)
            if rows.shape[1:] != (width,) or done + len(rows) > len(names):
                raise ValueError(f"expected {len(names)} embeddings of width {width}, got {rows.shape} after {done}")
            _check_finite(rows, names[done : done + len(rows)])
            file.write(rows.data)
            done += len(rows)
    if done != len(names):
        raise ValueError(f"expected an embedding of each of {len(names)} utterances, got {done}")


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
    """An index of vectors (N, E), built on the CPU: the same with and without a GPU."""
    count, width = vectors.shape
    lists = math.isqrt(count)
    codes = next(m for m in range(max(1, width // 8), 0, -1) if width % m == 0)  # bytes of a product-quantised vector
    # np: without polysemous training, which takes minutes and which no search here makes use of
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
    """Set how many lists a search looks through, and tell the recall that it comes to."""
    rows = _sample(len(found), RECALL_QUERIES)
    k = min(RECALL_AT, len(found) - 1)
    farthest = _others(*_searched_exactly(found, rows, k + 1), rows, k)[:, -1:]  # (M, 1), of the k nearest others
    for doublings in itertools.count():
        found.index.nprobe = min(FIRST_PROBES << doublings, found.index.nlist)
        # a new record, as each keeps the copy of its index that is on the GPU
        again = Embeddings(found.utterances, found.vectors, found.normalize, found.index, found.card)
        near = _others(*again.search(found.vectors[rows], k + 1), rows, k)
        recall = float((near <= farthest * (1 + TOLERANCE)).mean())
        if recall >= RECALL_WANTED or found.index.nprobe == found.index.nlist:
            break
    return recall


def _others(away: Vectors, ids: Ids, rows: NDArray[np.intp], k: int) -> Vectors:
    """The k smallest distances (M, k) of distances (M, k + 1), leaving out that of each row to itself."""
    return np.sort(np.where(ids == rows[:, None], np.inf, away), axis=1)[:, :k]


def _searched_exactly(found: Embeddings, rows: NDArray[np.intp], k: int) -> tuple[Vectors, Ids]:
    """Distances and ids (M, k) of the k nearest of some rows (M,), by looking at all vectors, block after block."""
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
    """Up to `size` of `count` rows in rising order, the same ones every time."""
    return np.sort(np.random.default_rng((SEED, count)).choice(count, size=min(size, count), replace=False))


def _blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


# ---------------------------------------------------------------- reading


def read(folder: Path) -> Embeddings:
    """Read what `build` wrote, memory-mapped. Raises InputError where it is missing, cut off or not of one piece."""
    card = read_json(folder / CARD_FILE, what="set of embeddings", keys=KEYS, remedy=REMEDY)
    if card["kind"] not in TYPES or not isinstance(card["bytes"], dict):
        raise InputError(f"{folder / CARD_FILE}: expected one of {', '.join(TYPES)}, got {card['kind']!r}; {REMEDY}")
    for name in (VECTORS_FILE, INDEX_FILE, UTTERANCES_FILE):
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size != card["bytes"].get(name):
            raise InputError(
                f"{folder / name}: expected {card['bytes'].get(name)} bytes by the card, got {size}; {REMEDY}"
            )
    vectors = _mapped(folder / VECTORS_FILE)
    index = _mapped_index(folder / INDEX_FILE, card["kind"])
    utterances = np.array((folder / UTTERANCES_FILE).read_text(encoding="utf-8").splitlines())
    told = (card["count"], card["embedding_dim"])
    if vectors.shape != told or (index.ntotal, index.d) != told or len(utterances) != told[0]:
        raise InputError(
            f"{folder}: expected {told[0]} embeddings of width {told[1]} by the card, got {vectors.shape}, an index of "
            f"{index.ntotal} of width {index.d} and {len(utterances)} utterances; {REMEDY}"
        )
    return Embeddings(utterances, vectors, bool(card["normalize"]), index, card)


def _mapped(path: Path) -> Vectors:
    try:
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not embeddings that this project wrote ({error}); {REMEDY}") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise InputError(f"{path}: expected (N, E) float32, got {vectors.shape} {vectors.dtype}; {REMEDY}")
    return vectors


def _mapped_index(path: Path, kind: str) -> Any:
    # FAISS maps inverted lists by the one flag and flat vectors by the other, and takes only one of them
    mapped = faiss.IO_FLAG_MMAP_IFC if kind == "flat" else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    try:
        index = faiss.read_index(str(path), mapped)
    except RuntimeError as error:
        raise InputError(f"{path}: not a FAISS index ({error}); {REMEDY}") from None
    if not isinstance(index, TYPES[kind]):
        raise InputError(f"{path}: expected a FAISS index of the kind {kind} by the card, got another; {REMEDY}")
    return index
