"""The records and protocols that the rooms share. Tensors have the batch in the first dimension."""

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
Tap = int | Literal["final"]  # a layer by its number, or the last layer after the encoder's LayerNorm
CLEAN = "clean"  # the name of the view without augmentation


@dataclass(frozen=True)
class Labels:
    """The labels of a batch of B utterances.

    is_bonafide: (B,) bool. level: (B,) int, quality level, 0 is the worst, -1 unknown.
    speaker: (B,) int, index of the speaker, -1 unknown or without bona fide.
    """

    is_bonafide: Tensor
    level: Tensor
    speaker: Tensor


@dataclass(frozen=True)
class Facts:
    """Numbers that a loss needs before training begins.

    embedding_dim: width of the embeddings. levels: number of quality levels. speakers: number of training speakers
    with bona fide. layers: number of layers that the backend reads.
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
    """A loss that computes its centroids between epochs, from the embeddings of all bona fide training utterances.

    An enrolment is these embeddings (M, E) and their speakers (M,), -1 unknown. epoch counts from 1.
    """

    def start_epoch(self, epoch: int, enrolment: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Compute the centroids before an epoch, in the epochs where the loss wants new ones."""

    def enrol(self, embeddings: Tensor, speaker: Tensor) -> None:
        """Compute the centroids."""


@dataclass(frozen=True, eq=False)
class Centroids:
    """Everything that scoring needs from a trained loss.

    vectors: (K, E) float32, finite. The score of an embedding x is reduce_k(vectors_k · q) + bias. q is x / ‖x‖ where
    `normalize_query` is set, else x. `softmax` is the sum of the similarities, weighted by their own softmax.
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
