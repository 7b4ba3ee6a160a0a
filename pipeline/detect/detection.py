"""The answers of a system about a file: detections and timelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import familiarity
from pipeline.analysis.embeddings import Embeddings
from pipeline.analysis.gaussians import Gaussians
from pipeline.core.trial_table import LABELS, Trials

NEIGHBOURS = familiarity.NEIGHBOURS  # utterances that explain a detection


class TrainingNeighbour(NamedTuple):
    """A training utterance near an embedding; distance as scoring compares (see `pipeline.analysis.embeddings`)."""

    utterance: str
    label: str
    attack: str
    distance: float


@dataclass(frozen=True)
class Detection:
    """What a system says of a file: of its first window, or of all of it, see `System.windows`.

    probability: of bona fide where half of all speech is; None where the scores of dev could not be calibrated.
    centroid: the one most similar to the embedding, from 0. verdict: `bonafide`, `spoof` or `cannot_tell`, by the rule
    of `pipeline.metrics.verdicts`; None in a package without one. distance_percentile: in 0..100, of the distance to
    the training set, see `pipeline.analysis.familiarity`; None without its embeddings. mahalanobis_percentile: the
    same, see `pipeline.analysis.gaussians`; None also where these cannot be fitted. neighbours: nearest first; empty
    unless asked for. warnings: what makes the samples of the file doubtful. part: start and end, in seconds, of the
    window with the lowest score, where several are heard; else None. Centroid, distances and neighbours are of it.
    Where attention makes one embedding of the windows, they are of this one, and the part has the largest weight.
    """

    path: Path
    score: float
    is_bonafide: bool
    probability: float | None
    centroid: int
    verdict: str | None = None
    distance_percentile: float | None = None
    mahalanobis_percentile: float | None = None
    neighbours: tuple[TrainingNeighbour, ...] = ()
    warnings: tuple[str, ...] = ()
    part: tuple[float, float] | None = None


class Unreadable(NamedTuple):
    """A file that has no score, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Timeline:
    """Scores over time of W windows, each starting half a window after the one before; the last one ends with the file.

    start, end: (W,) seconds; padding is not counted. score: (W,) float32, nan where the window is silent.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    score: NDArray[np.float32]

    @property
    def lowest(self) -> int | None:
        """The window that is least bona fide; None where all are silent."""
        return None if np.isnan(self.score).all() else int(np.nanargmin(self.score))


class Surroundings(NamedTuple):
    """The embeddings and trials of the training set, and the distances of its utterances to the others.

    own: (M,), to the nearest others. gaussians: of both classes; None where they cannot be fitted.
    """

    embeddings: Embeddings
    trials: Trials
    own: NDArray[np.float64]
    gaussians: Gaussians | None


def neighbours_of(
    embedded: NDArray[np.float32], known: Surroundings
) -> tuple[Sequence[tuple[TrainingNeighbour, ...]], Sequence[float | None], Sequence[float | None]]:
    """The nearest training utterances of each embedding, and the percentiles of its distances to them and by class."""
    distances, ids = known.embeddings.search(embedded, NEIGHBOURS)
    table = known.trials
    far = familiarity.percentiles(distances, known.own, count=len(known.embeddings))
    near_each = [
        tuple(
            TrainingNeighbour(
                utterance=str(table.utterance[i]),
                label=LABELS[0] if table.is_bonafide[i] else LABELS[1],
                attack=str(table.attack[i]),
                distance=distance,
            )
            for distance, i in zip(row, near, strict=True)
        )
        for row, near in zip(distances.tolist(), ids.tolist(), strict=True)
    ]
    unlike = known.gaussians.percentiles(embedded).round(1).tolist() if known.gaussians else [None for _ in embedded]
    return near_each, [round(percentile, 1) for percentile in far.tolist()], unlike
