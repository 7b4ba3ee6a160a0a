"""A fusion of trained systems as one system: a file is heard and encoded once, and each member judges it.

The embedding of a fusion is those of its members side by side. Its score is offset + Σ weight · score of the members,
as `pipeline.metrics.fusion` fits it and `stages/fuse.py` writes it. Centroid, neighbours and the distance to the
training set are those of the leading member, which has the largest weight: they have no sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.detect import hearing
from pipeline.detect.detection import Detection, Surroundings
from pipeline.detect.system import System
from pipeline.extraction.forward import Blocks
from pipeline.metrics.fusion import Fusion


@dataclass(frozen=True, eq=False, kw_only=True)
class Fused(System):
    """Several systems that share an encoder and its window. Backend and centroids are those of `lead`.

    members: in the order of the weights; lead: one of them. encoder, layers: for all members at once.
    """

    members: tuple[System, ...]
    lead: System
    fusion: Fusion

    @property
    def width(self) -> int:
        """The width of the members' embeddings side by side."""
        return sum(member.width for member in self.members)

    def embed_features(self, blocks: Blocks) -> NDArray[np.float32]:
        """Embeddings (n, E) of the features of n windows, those of the members side by side."""
        return np.concatenate([member.embed_features(blocks) for member in self.members], axis=1)

    def judge(self, embedded: NDArray[np.float32], *, names: Sequence[str]) -> NDArray[np.float32]:
        """Fused scores (n,) of embeddings (n, E); see `System.judge`."""
        scores = [
            member.judge(own, names=names) for member, own in zip(self.members, self._split(embedded), strict=True)
        ]
        return self._fused(scores)

    def _fused(self, scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Fused scores (n,) of those of each member, (n,)."""
        # The flow fuses the digits of score files, so these are fused too.
        digits = np.array([[float(str(score)) for score in own] for own in scores]).T  # (n, K)
        return self.fusion.apply(digits.reshape(-1, len(self.members))).astype(np.float32)

    def reduced(self, embedded: NDArray[np.float32], scores: NDArray[np.float32]) -> np.float32:
        """As `System.reduced`. Of the windows of the runs, each member's scores are reduced first, as in the flow."""
        if self.windows != "run":
            return super().reduced(embedded, scores)
        names = [""] * len(embedded)
        each = zip(self.members, self._split(embedded), strict=True)
        whole = [hearing.reduced(member.judge(own, names=names), "run", self.own) for member, own in each]
        return np.float32(self._fused([np.array([score]) for score in whole])[0])

    def attended(self, embedded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `System.attended`, of each member; the weights are those of the leading one."""
        found = [member.attended(own) for member, own in zip(self.members, self._split(embedded), strict=True)]
        return np.concatenate([whole for whole, _ in found], axis=1), found[self.members.index(self.lead)][1]

    def _split(self, embedded: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The embeddings of each member, whose rows lie together in memory."""
        ends = np.cumsum([member.width for member in self.members])[:-1]
        return [np.ascontiguousarray(own) for own in np.split(embedded, ends, axis=1)]

    def _judged(
        self,
        paths: Sequence[Path],
        warnings: Sequence[tuple[str, ...]],
        scores: NDArray[np.float32],
        embedded: NDArray[np.float32],
        known: Surroundings | None,
    ) -> list[Detection]:
        own = self._split(embedded)[self.members.index(self.lead)]
        return super()._judged(paths, warnings, scores, own, known)
