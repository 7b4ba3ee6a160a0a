"""The detection cost (DCF) of track 1 of ASVspoof5: at the best threshold, and at the one that theory gives.

Wang et al.: "ASVspoof 5: Crowdsourced Speech Data, Deepfakes, and Adversarial Attacks at Scale", ASVspoof workshop
2024. Normalized: 1 is the cost of the better of accepting and rejecting everything.

Rates are shares in 0..1; a higher score means more bona fide.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.det import Det, checked

PRIOR_SPOOF = 0.05
COST_MISS = 1.0  # a bona fide trial rejected
COST_FALSE_ALARM = 10.0  # a spoof accepted

WEIGHT_MISS = (1 - PRIOR_SPOOF) * COST_MISS  # 0.95
WEIGHT_FALSE_ALARM = PRIOR_SPOOF * COST_FALSE_ALARM  # 0.5

# Accepting costs WEIGHT_FALSE_ALARM · p(score | spoof), rejecting WEIGHT_MISS · p(score | bona fide): a log-likelihood
# ratio in nats is best accepted from the logarithm of their quotient up, −ln 1.9.
BAYES_THRESHOLD = math.log(WEIGHT_FALSE_ALARM / WEIGHT_MISS)


def dcf(frr: NDArray[np.float64], far: NDArray[np.float64]) -> NDArray[np.float64]:
    """The normalized detection cost at each point: (0.95 FRR + 0.5 FAR) / 0.5. frr, far: (P,). Returns (P,)."""
    cost: NDArray[np.float64] = (WEIGHT_MISS * frr + WEIGHT_FALSE_ALARM * far) / min(WEIGHT_MISS, WEIGHT_FALSE_ALARM)
    return cost


def min_dcf(det: Det) -> float:
    """The least `dcf` of all thresholds: how well the scores separate, whatever their scale."""
    return float(dcf(det.frr, det.far).min())


def act_dcf(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """The `dcf` of scores (B,) and (S,) read as log-likelihood ratios in nats: accepted from `BAYES_THRESHOLD` up.

    For scores on another scale, such as cosines, it says little. Raises ValueError for an empty class or nan.
    """
    frr = np.mean(checked("bona fide", bonafide) < BAYES_THRESHOLD, keepdims=True)  # (1,)
    far = np.mean(checked("spoof", spoof) >= BAYES_THRESHOLD, keepdims=True)
    return float(dcf(frr, far)[0])
