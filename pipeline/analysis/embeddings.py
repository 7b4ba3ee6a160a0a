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

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.exact_search import GPU_MOST, Ids, Vectors, compared, distances, nearest_ids, on_gpu
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.core.trial_table import Trials
from pipeline.scoring import runs

VECTORS_FILE, INDEX_FILE, UTTERANCES_FILE = "embeddings.npy", "index.faiss", "utterances.txt"
CARD_FILE = "embeddings.json"
KEYS = ("count", "embedding_dim", "normalize", "kind", "recall", "bytes")  # the card's own; further ones are facts
REMEDY = "run `dvc repro -f flow/analyse/dvc.yaml`"
RERANKED = 10  # candidates of IVF-PQ for each neighbour that is asked for
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


# ---------------------------------------------------------------- of a run


def identity(run: Path, name: str, table: Trials) -> dict[str, Any]:
    """What makes the embeddings of a set what they are, for their card: run and its weights, set and its trials."""
    weights = hashlib.sha256((run / runs.BACKEND_FILE).read_bytes()).hexdigest()[:16]
    return {"run": run.name, "weights": weights, "set": name, "trials": trial_table.fingerprint(table)}


def of_run(folder: Path, run: Path, name: str, table: Trials) -> Embeddings:
    """The embeddings that a run gives the trials of a set. Raises InputError where the folder has others."""
    found = read(folder)
    wanted = identity(run, name, table) | {"normalize": runs.index(run).normalize_query}
    told = {key: found.card.get(key) for key in wanted}
    if told != wanted or found.utterances.tolist() != table.utterance.tolist():
        raise InputError(f"{folder}: expected the embeddings of {wanted}, got those of {told}; {REMEDY}")
    return found


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
    vectors = mapped(folder / VECTORS_FILE)
    index = _mapped_index(folder / INDEX_FILE, card["kind"])
    utterances = np.array((folder / UTTERANCES_FILE).read_text(encoding="utf-8").splitlines())
    told = (card["count"], card["embedding_dim"])
    if vectors.shape != told or (index.ntotal, index.d) != told or len(utterances) != told[0]:
        raise InputError(
            f"{folder}: expected {told[0]} embeddings of width {told[1]} by the card, got {vectors.shape}, an index of "
            f"{index.ntotal} of width {index.d} and {len(utterances)} utterances; {REMEDY}"
        )
    return Embeddings(utterances, vectors, bool(card["normalize"]), index, card)


def mapped(path: Path) -> Vectors:
    """Vectors (N, E) float32 of a NumPy file, mapped. Raises InputError for any other file."""
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
