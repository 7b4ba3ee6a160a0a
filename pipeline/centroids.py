"""A run's centroids as a FAISS inner-product index with a JSON card: what a score needs besides the embedding."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Centroids
from pipeline.errors import InputError

INDEX_FILE = "centroids.faiss"
CARD_FILE = "centroids.json"


@dataclass(frozen=True)
class CentroidIndex:
    """K centroids of width E in a flat inner-product index, and how their similarities become one score."""

    index: Any
    normalize_query: bool
    bias: float
    reduce: str

    def search(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products of queries (N, E) with all centroids, (N, K), best first."""
        similarities, _ = self.index.search(np.ascontiguousarray(queries), self.index.ntotal)
        return np.asarray(similarities, dtype=np.float32)


def build(centroids: Centroids) -> CentroidIndex:
    """The index of a trained loss's centroids."""
    index = faiss.IndexFlatIP(centroids.vectors.shape[1])  # the factory would default to L2
    index.add(np.ascontiguousarray(centroids.vectors))
    return CentroidIndex(index, centroids.normalize_query, centroids.bias, centroids.reduce)


def write(index: CentroidIndex, folder: Path) -> None:
    """Write index and card into a folder that appears only when it is whole."""
    beside = folder.with_name(folder.name + ".part")
    beside.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index.index, str(beside / INDEX_FILE))
    card = {
        "centroids": index.index.ntotal,
        "embedding_dim": index.index.d,
        "normalize_query": index.normalize_query,
        "bias": index.bias,
        "reduce": index.reduce,
    }
    (beside / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")
    if folder.exists():
        (folder / INDEX_FILE).unlink(missing_ok=True)
        (folder / CARD_FILE).unlink(missing_ok=True)
        folder.rmdir()
    os.replace(beside, folder)


def read(folder: Path) -> CentroidIndex:
    """Read what `write` wrote. Raises InputError where it is missing or index and card disagree."""
    if not (folder / INDEX_FILE).is_file() or not (folder / CARD_FILE).is_file():
        raise InputError(f"{folder}: no centroid index there; run `dvc repro index`")
    index = faiss.read_index(str(folder / INDEX_FILE))
    card = json.loads((folder / CARD_FILE).read_text())
    if (index.ntotal, index.d) != (card["centroids"], card["embedding_dim"]):
        raise InputError(
            f"{folder}: expected {card['centroids']} centroids of width {card['embedding_dim']} by the card, got "
            f"{index.ntotal} of width {index.d}; run `dvc repro -f index`"
        )
    return CentroidIndex(index, bool(card["normalize_query"]), float(card["bias"]), str(card["reduce"]))
