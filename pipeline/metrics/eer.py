"""The equal error rate and the detection error trade-off (DET) points that it is read from.

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


@dataclass(frozen=True)
class Eer:
    """An equal error rate: its value as a share in 0..1, its threshold, and the index of its DET point."""

    eer: float
    threshold: float
    point: int


def _checked(name: str, scores: ArrayLike) -> NDArray[np.float64]:
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
    kept, refused = _checked("bona fide", bonafide), _checked("spoof", spoof)
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


def official_eer(det: Det) -> Eer:
    """The EER as published: the mean of both rates at the first point where they differ least.

    With ties it depends on the order within them: scores that are all equal give 1. `interpolated_eer` does not.
    """
    point = int(np.argmin(np.abs(det.frr - det.far)))
    return Eer(
        eer=float((det.frr[point] + det.far[point]) / 2),
        threshold=float(det.threshold[point]),
        point=point,
    )


def interpolated_eer(det: Det) -> float:
    """The EER, a share in 0..1, where the line through the ends of the ties crosses FRR = FAR.

    Trials of one score are accepted or rejected together, so it is symmetric (negated scores give 1 minus it), and
    scores that are all equal give one half.
    """
    scores = det.threshold[1:]  # (N,)
    ends = np.concatenate(([True], scores[1:] != scores[:-1], [True]))  # the start, then the end of each tie
    frr, far = det.frr[ends], det.far[ends]
    gap = frr - far  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(frr[before] + share * (frr[after] - frr[before]))


def eer_by_attack(
    scores: NDArray[np.float64], is_bonafide: NDArray[np.bool_], attack: NDArray[np.str_]
) -> dict[str, Eer]:
    """The official EER of each attack's spoof against all bona fide, by the attack's name in ascending order.

    scores, is_bonafide, attack: (N,). Raises ValueError where `det_points` does.
    """
    bonafide, spoof, names = scores[is_bonafide], scores[~is_bonafide], attack[~is_bonafide]
    return {str(name): official_eer(det_points(bonafide, spoof[names == name])) for name in sorted(set(names.tolist()))}
