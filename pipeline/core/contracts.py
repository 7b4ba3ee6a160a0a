"""The records that rooms hand to each other, and finding a member of an axis by its name.

A backend, loss or corpus is one file, found by its name: `member("losses", "qamo")` is `pipeline/losses/qamo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


Reduce = Literal["max", "mean", "softmax"]
Tap = int | Literal["final"]  # a layer by its number, or the last one after the encoder's LayerNorm


@dataclass(frozen=True)
class Labels:
    """What a batch of B utterances knows besides its features.

    is_bonafide: (B,) bool. level: (B,) int, quality level, 0 is the worst, -1 unknown.
    speaker: (B,) int, index of the speaker, -1 unknown.
    """

    is_bonafide: Tensor
    level: Tensor
    speaker: Tensor


@dataclass(frozen=True)
class Facts:
    """What a loss must know of the data before it sees any: widths and counts.

    embedding_dim: width of the embeddings. levels: quality levels. speakers: of the training set. layers: tapped ones.
    """

    embedding_dim: int
    levels: int
    speakers: int
    layers: int = 1

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or self.levels < 1 or self.speakers < 0 or self.layers < 1:
            raise ValueError(f"expected embedding_dim ≥ 1, levels ≥ 1, speakers ≥ 0, layers ≥ 1, got {self}")


@runtime_checkable
class Enrols(Protocol):
    """A loss whose centres are made of the embeddings of all bona fide training utterances, between epochs.

    An enrolment is their embeddings (M, E) and their speakers (M,), -1 unknown. epoch counts from 1.
    """

    def start_epoch(self, epoch: int, enrolment: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Enrol before an epoch where that is due."""

    def enrol(self, embeddings: Tensor, speaker: Tensor) -> None:
        """Make the centres."""


@dataclass(frozen=True, eq=False)
class Centroids:
    """All that scoring needs of a trained loss.

    vectors: (K, E) float32, finite. The score of an embedding x is reduce_k(vectors_k · q) + bias, where q is x, or
    x / ‖x‖ when `normalize_query`; `softmax` is the sum of the similarities weighted by their own softmax.
    """

    vectors: NDArray[np.float32]
    normalize_query: bool
    bias: float
    reduce: Reduce

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or not len(self.vectors):
            raise ValueError(f"expected (K, E) float32 vectors, got {self.vectors.shape} {self.vectors.dtype}")
        if not np.isfinite(self.vectors).all() or not math.isfinite(self.bias):
            raise ValueError("centroids must be finite")
        if self.reduce not in ("max", "mean", "softmax"):
            raise ValueError(f"expected reduce to be max, mean or softmax, got {self.reduce!r}")


CLEAN = "clean"  # the view without augmentation
