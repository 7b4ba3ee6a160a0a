"""Risk and coverage: how the share of wrong decisions falls when a system leaves its least certain trials undecided.

Trials are decided at a threshold of dev, the most certain first. Certainty is the distance of a score from the
threshold. The calibrated log-likelihood ratio is a line in the score, so its distance from that of the threshold gives
the same order. Coverage is the share of trials that are decided, risk the share of wrong decisions among them. Trials
of equal certainty are decided together. AURC is the area under the risk over coverage, in steps: the mean over all
trials of the risk where they are decided. A system whose errors are its least certain trials has a low one.

Both depend on how many trials of each class a set has, as accuracy does.
Source: Geifman and El-Yaniv, "Selective classification for deep neural networks", NIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.det import checked


@dataclass(frozen=True)
class RiskCoverage:
    """The curve over P different certainties, from the most certain trials to all of them.

    coverage: (P,) in 0..1, rising to 1. risk: (P,) in 0..1. aurc: the area under it, in 0..1.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float


def risk_coverage(bonafide: ArrayLike, spoof: ArrayLike, threshold: float) -> RiskCoverage:
    """The curve of bona fide scores (B,) and spoof scores (S,), of which those above the threshold are accepted.

    Raises ValueError for an empty class, nan in the scores, or a threshold that is not finite.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    if not np.isfinite(threshold):
        raise ValueError(f"expected a finite threshold, got {threshold}")
    wrong = np.concatenate((kept <= threshold, refused > threshold))  # (N,)
    certainty = np.abs(np.concatenate((kept, refused)) - threshold)
    order = np.argsort(-certainty, kind="stable")
    falling = certainty[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last trial of each certainty
    decided = ends + 1
    risk = np.cumsum(wrong[order])[ends] / decided
    steps = np.diff(decided, prepend=0) / wrong.size
    return RiskCoverage(coverage=decided / wrong.size, risk=risk, aurc=float(steps @ risk))
