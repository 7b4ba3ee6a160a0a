"""The equal error rate, as the ASVspoof 2019, 2021 and 5 evaluation packages define it, and free of ties' order.

Rates are shares in 0..1; a higher score means more bona fide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.det import Det, det_points, equal_point


@dataclass(frozen=True)
class Eer:
    """An equal error rate: its value as a share in 0..1, its threshold, and the index of its DET point."""

    eer: float
    threshold: float
    point: int


def equal_rate(frr: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    """The official EER of DET points (P,), a share in 0..1; for resamples, which have points but no scores."""
    point = equal_point(frr, far)
    return float((frr[point] + far[point]) / 2)


def official_eer(det: Det) -> Eer:
    """The EER as published: the mean of both rates at the first point where they differ least.

    With ties it depends on the order within them: scores that are all equal give 1. `interpolated_eer` does not.
    """
    point = equal_point(det.frr, det.far)
    return Eer(
        eer=equal_rate(det.frr, det.far),
        threshold=float(det.threshold[point]),
        point=point,
    )


def eer_of(scores: NDArray[np.floating[Any]], is_bonafide: NDArray[np.bool_]) -> Eer:
    """The official EER of scores (N,) of N trials, of which `is_bonafide` (N,) are bona fide.

    Raises ValueError for one class only, or nan.
    """
    return official_eer(det_points(scores[is_bonafide], scores[~is_bonafide]))


def dev_metrics(scores: NDArray[np.float32], is_bonafide: NDArray[np.bool_]) -> dict[str, Any]:
    """The EER on dev in percent, and the score there as a score file holds it; JSON-ready."""
    found = eer_of(scores, is_bonafide)
    return {"dev_eer": round(100 * found.eer, 5), "dev_threshold": float(str(np.float32(found.threshold)))}


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
