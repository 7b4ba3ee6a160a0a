"""Fusion: one score of several systems' scores, by logistic regression on trials set aside for it.

A fused score is offset + Σ weight · score, a log-likelihood ratio in nats at equal priors. The scores of each system
are first brought to mean 0 and deviation 1. The weights have the least sum of logistic losses plus half their squared
length. Both classes count alike. Without the squared length two equal systems would leave the weights open, and classes
that do not overlap would leave them without bound.

No weight is below 0, so a fused score never falls where all its parts rise, and no sign is flipped. Scores that are
inverted or constant, or that add nothing to the others, get the weight 0.

Scores on the trials that the weights are fitted on are too good. `out_of_fold` gives each of these trials a score by
weights that were fitted without it.
Sources: Brümmer et al., "Fusion of heterogeneous speaker recognition systems in the STBU submission for the NIST
speaker recognition evaluation 2006", 2007 (logistic fusion); Breiman, "Stacked regressions", 1996 (weights from 0 up).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

FOLDS = 10  # fewer where a class has fewer trials
FEWEST = 2  # trials of a class
CONSTANT = 1e-12  # a deviation below this share of the largest score is rounding
MOST_STEPS = 1_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fusion:
    """offset + Σ weight · score, over K systems; no weight is below 0."""

    weights: tuple[float, ...]
    offset: float

    def apply(self, scores: Floats) -> Floats:
        """The fused scores (N,) of scores (N, K)."""
        return np.asarray(scores @ np.array(self.weights) + self.offset)


def fit(scores: Floats, is_bonafide: NDArray[np.bool_]) -> Fusion:
    """The fusion that is best for the scores (N, K) of trials (N,), as the head of this file says.

    Raises ValueError for fewer than `FEWEST` trials of a class.
    """
    _check(is_bonafide)
    centre, deviation = scores.mean(axis=0), scores.std(axis=0)
    varies = deviation > CONSTANT * np.abs(scores).max(axis=0)
    scale = np.where(varies, deviation, np.inf)
    standard = (scores - centre) / scale  # (N, K); 0 for a system that gives all trials the same score
    sign = np.where(is_bonafide, 1.0, -1.0)
    counts = np.where(is_bonafide, is_bonafide.sum(), (~is_bonafide).sum())
    weight = len(sign) / (2 * counts)  # (N,), with the sum N

    def loss(line: Floats) -> tuple[float, Floats]:
        margin = sign * (standard @ line[:-1] + line[-1])
        slope = -sign * weight * np.exp(-np.logaddexp(0, margin))  # of each trial's loss, by its fused score
        value = weight @ np.logaddexp(0, -margin) + line[:-1] @ line[:-1] / 2
        return float(value), np.append(slope @ standard + line[:-1], slope.sum())

    count = scores.shape[1]
    bounds = [(0.0, None)] * count + [(None, None)]
    limits = {"maxiter": MOST_STEPS, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(loss, np.zeros(count + 1), jac=True, method="L-BFGS-B", bounds=bounds, options=limits)
    weights = found.x[:-1] / scale
    return Fusion(tuple(weights.tolist()), float(found.x[-1] - weights @ centre))


def out_of_fold(scores: Floats, is_bonafide: NDArray[np.bool_]) -> Floats:
    """The fused score (N,) of each trial by weights that were fitted on the other folds; scores (N, K).

    The folds have the classes in equal shares and take turns in the order of the trials. Raises ValueError as `fit`.
    """
    _check(is_bonafide)
    folds = min(FOLDS, int(is_bonafide.sum()), int((~is_bonafide).sum()))
    fold = np.empty(len(scores), np.intp)
    for rows in (np.flatnonzero(is_bonafide), np.flatnonzero(~is_bonafide)):
        fold[rows] = np.arange(len(rows)) % folds
    fused = np.empty(len(scores))
    for held in (fold == number for number in range(folds)):
        if min(is_bonafide[~held].sum(), (~is_bonafide[~held]).sum()) < FEWEST:
            raise ValueError(f"expected at least {FEWEST + 1} trials of each class to set some aside")
        fused[held] = fit(scores[~held], is_bonafide[~held]).apply(scores[held])
    return fused


def _check(is_bonafide: NDArray[np.bool_]) -> None:
    bonafide = int(is_bonafide.sum())
    if min(bonafide, len(is_bonafide) - bonafide) < FEWEST:
        raise ValueError(
            f"expected at least {FEWEST} trials of each class, got {bonafide} bona fide and "
            f"{len(is_bonafide) - bonafide} spoof"
        )
