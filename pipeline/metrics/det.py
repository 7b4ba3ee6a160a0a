"""The detection error trade-off (DET) points of a set of scores: both error rates at every threshold.

The definition is the one that the ASVspoof 2019, 2021 and 5 evaluation packages share, ties included, so that values
can be compared with published ones. Rates are shares in 0..1; a higher score means more bona fide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

BELOW_ALL = 0.001  # the official packages put the threshold of the first point this far below the smallest score


@dataclass(frozen=True)
class Det:
    """The DET points of N trials, from "accept everything" to "reject everything".

    frr: (N + 1,) share of bona fide rejected, rising from 0 to 1. far: (N + 1,) share of spoof accepted, falling from
    1 to 0. threshold: (N + 1,) the score up to which a point rejects.
    """

    frr: NDArray[np.float64]
    far: NDArray[np.float64]
    threshold: NDArray[np.float64]


def checked(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """Scores of a class, (N,) float64. Raises ValueError, naming the class, for none, another shape or nan."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected at least one {name} score in one dimension, got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"expected {name} scores that are numbers, got {np.isnan(values).sum()} nan of {values.size}")
    return values


def det_points(bonafide: ArrayLike, spoof: ArrayLike) -> Det:
    """The DET points of bona fide scores (B,) and spoof scores (S,).

    Among equal scores the bona fide are rejected first and one by one, as in the official packages.
    Raises ValueError for an empty class or nan. Source: ASVspoof 2019, 2021 and 5 evaluation packages.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    scores = np.concatenate((kept, refused))  # (N,)
    order = np.argsort(scores, kind="stable")
    rejected = np.concatenate(([0], np.cumsum(order < kept.size)))  # (N + 1,) bona fide among the first k
    accepted = refused.size - (np.arange(scores.size + 1) - rejected)  # (N + 1,) spoof not among the first k
    ascending = scores[order]
    return Det(
        frr=rejected / kept.size,
        far=accepted / refused.size,
        threshold=np.concatenate((ascending[:1] - BELOW_ALL, ascending)),
    )


def equal_point(frr: NDArray[np.float64], far: NDArray[np.float64]) -> int:
    """The index of the first DET point where both rates differ least: where the official packages read the EER."""
    return int(np.argmin(np.abs(frr - far)))
