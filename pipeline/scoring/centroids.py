"""A run's centroids as a FAISS inner-product index with a JSON card: what a score needs besides the embedding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.core.contracts import Centroids, Reduce
from pipeline.core.errors import InputError
from pipeline.core.files import folder_beside, read_json, replace_folder

INDEX_FILE = "centroids.faiss"
CARD_FILE = "centroids.json"
KEYS = ("centroids", "embedding_dim", "normalize_query", "bias", "reduce")
NORM_FLOOR = 1e-12  # a vector of zeros stays one


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors (..., E) at unit length, in their own precision."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), NORM_FLOOR))


@dataclass(frozen=True)
class CentroidIndex:
    """K centroids of width E in a flat inner-product index, and how their similarities become one score."""

    index: Any
    normalize_query: bool
    bias: float
    reduce: Reduce

    def search(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products of queries (N, E) with all centroids, (N, K), best first."""
        similarities, _ = self.index.search(np.ascontiguousarray(queries), self.index.ntotal)
        return np.asarray(similarities, dtype=np.float32)

    def centroids(self) -> Centroids:
        """The centroids that the index holds."""
        vectors = np.asarray(self.index.reconstruct_n(0, self.index.ntotal), dtype=np.float32)
        return Centroids(vectors, self.normalize_query, self.bias, self.reduce)


def build(centroids: Centroids) -> CentroidIndex:
    """The index of a trained loss's centroids."""
    index = faiss.IndexFlatIP(centroids.vectors.shape[1])  # the factory would default to L2
    index.add(np.ascontiguousarray(centroids.vectors))
    return CentroidIndex(index, centroids.normalize_query, centroids.bias, centroids.reduce)


def write(index: CentroidIndex, folder: Path) -> None:
    """Write index and card into a folder that appears only when it is whole."""
    beside = folder_beside(folder)
    faiss.write_index(index.index, str(beside / INDEX_FILE))
    card = {
        "centroids": index.index.ntotal,
        "embedding_dim": index.index.d,
        "normalize_query": index.normalize_query,
        "bias": index.bias,
        "reduce": index.reduce,
    }
    (beside / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")
    replace_folder(beside, folder, mark=CARD_FILE)


def read(folder: Path) -> CentroidIndex:
    """Read what `write` wrote. Raises InputError where it is missing or index and card disagree."""
    card = read_json(
        folder / CARD_FILE, what="centroid index", keys=KEYS, remedy="run `dvc repro -f flow/index/dvc.yaml`"
    )
    try:
        index = faiss.read_index(str(folder / INDEX_FILE))
    except RuntimeError as error:
        raise InputError(
            f"{folder / INDEX_FILE}: not a FAISS index ({error}); run `dvc repro -f flow/index/dvc.yaml`"
        ) from None
    if (index.ntotal, index.d) != (card["centroids"], card["embedding_dim"]):
        raise InputError(
            f"{folder}: expected {card['centroids']} centroids of width {card['embedding_dim']} by the card, got "
            f"{index.ntotal} of width {index.d}; run `dvc repro -f flow/index/dvc.yaml`"
        )
    return CentroidIndex(index, bool(card["normalize_query"]), float(card["bias"]), card["reduce"])
