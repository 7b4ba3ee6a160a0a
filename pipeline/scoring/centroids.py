"""A run's centroids as a FAISS inner-product index: what a score needs besides the embedding.

The index is the file `centroids.faiss` of a run and the only copy of its centroids. The run's card says what the file
must be: metric, number and width of the centroids, and its sha256. FAISS parses no file that is anything else, as a
damaged one may end the process.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.contracts import Centroids, Reduce
from pipeline.core.errors import InputError

REMEDY = "run `dvc repro`"
# How FAISS begins a flat index: kind, width, number of vectors, two fixed numbers, trained, metric, number of floats.
HEADER = struct.Struct("<4siqqq?iQ")
FIXED = 1 << 20
NORM_FLOOR = 1e-12  # a vector of zeros stays one
METRICS = {b"IxFI": "inner_product", b"IxF2": "l2"}
Count = Annotated[int, Field(ge=1, lt=2**31)]


class ScoringFacts(BaseModel):
    """What a run's card says of its scoring; `sha256` is of the bytes of the index."""

    model_config = ConfigDict(strict=True, frozen=True)

    metric: Literal["inner_product"]
    centroids: Count
    embedding_dim: Count
    normalize_query: bool
    bias: Annotated[float, Field(ge=-1e30, le=1e30)]  # a score stays a float32
    reduce: Reduce
    sha256: str

    @property
    def header(self) -> bytes:
        """The bytes that the index begins with."""
        floats = self.centroids * self.embedding_dim
        return HEADER.pack(b"IxFI", self.embedding_dim, self.centroids, FIXED, FIXED, True, 0, floats)

    @property
    def size(self) -> int:
        """Bytes of the index."""
        return HEADER.size + 4 * self.centroids * self.embedding_dim


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
        """The centroids that the index holds. Raises ValueError where they are not finite."""
        vectors = np.asarray(self.index.reconstruct_n(0, self.index.ntotal), dtype=np.float32)
        return Centroids(vectors, self.normalize_query, self.bias, self.reduce)


def build(centroids: Centroids) -> CentroidIndex:
    """The index of a trained loss's centroids."""
    index = faiss.IndexFlatIP(centroids.vectors.shape[1])  # the factory would default to L2
    index.add(np.ascontiguousarray(centroids.vectors))
    return CentroidIndex(index, centroids.normalize_query, centroids.bias, centroids.reduce)


def write_index(index: CentroidIndex, path: Path) -> dict[str, Any]:
    """Write an index to a file, and give what `read_index` needs to read it, JSON-ready."""
    data = faiss.serialize_index(index.index).tobytes()
    path.write_bytes(data)
    facts = ScoringFacts(
        metric="inner_product",
        centroids=index.index.ntotal,
        embedding_dim=index.index.d,
        normalize_query=index.normalize_query,
        bias=index.bias,
        reduce=index.reduce,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return facts.model_dump()


def read_index(path: Path, told: object) -> CentroidIndex:
    """Read what `write_index` wrote.

    Args:
        told: what `write_index` gave.

    Raises InputError where the file is missing, is not the index that it is told to be, or is damaged.
    """
    try:
        facts = ScoringFacts.model_validate(told)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, ("scoring", *problem["loc"])))
        raise InputError(
            f"{path.parent}: the run's card does not say how it scores: {where}: {problem['msg']}; {REMEDY}"
        ) from None
    data = _bytes(path, facts)
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    found = CentroidIndex(index, facts.normalize_query, facts.bias, facts.reduce)
    try:
        found.centroids()
    except ValueError as error:
        raise InputError(f"{path}: {error}; {REMEDY}") from None
    return found


def _bytes(path: Path, facts: ScoringFacts) -> bytes:
    """The bytes of an index that is as a run's card says."""
    if not path.is_file():
        raise InputError(f"{path}: no index of centroids there; {REMEDY}")
    whole = path.stat().st_size == facts.size
    with path.open("rb") as file:
        data = file.read(facts.size if whole else HEADER.size)
    if data[: HEADER.size] != facts.header:
        wanted = f"{facts.centroids} centroids of width {facts.embedding_dim} with the metric {facts.metric}"
        raise InputError(
            f"{path}: expected a flat FAISS index of {wanted}, as the run's card says, got {_described(data)}; {REMEDY}"
        )
    if not whole or hashlib.sha256(data).hexdigest() != facts.sha256:
        raise InputError(
            f"{path}: expected the index that was written with the run, got another or a damaged one; {REMEDY}"
        )
    return data


def _described(data: bytes) -> str:
    """What a file claims to be, by its first bytes."""
    if len(data) < HEADER.size or data[:4] not in METRICS:
        return "something else"
    kind, width, count, *_ = HEADER.unpack_from(data)
    return f"{count} of width {width} with the metric {METRICS[kind]}"
