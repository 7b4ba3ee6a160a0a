"""Confidence intervals by counted errors: exact for a rate, and for costs at the threshold where they are least.

Clopper and Pearson: "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika
1934. MOVER, which joins the limits of two rates into those of their weighted sum: Zou and Donner, "Construction of
confidence limits about effect measures", Statistics in Medicine 2008.

The percentile bootstrap of a minimum over thresholds is too low: the least cost of a sample lies below that of the
world, and the least cost of a resample lies below that of its sample. And of few errors it knows too little: without
an error no resample has one. `bench/coverage.py` measures how often each interval holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.det import Det, equal_point

LEVEL = 0.95
FEW = 5  # errors of a class; with fewer the bootstrap interval of an EER is too narrow

# A cost of rates: (FRR (P,), FAR (P,)) -> (P,), the same straight plane everywhere.
Cost = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def clopper_pearson(errors: int, trials: int, *, level: float = LEVEL) -> Interval:
    """The exact interval of a rate, a share in 0..1, of which so many errors in so many trials were seen."""
    from scipy.special import betaincinv  # takes longer to import than most commands need

    tail = (1 - level) / 2
    low = betaincinv(errors, trials - errors + 1, tail) if errors else 0.0
    high = betaincinv(errors + 1, trials - errors, 1 - tail) if errors < trials else 1.0
    return Interval(low=float(low), high=float(high))


def of_minimum(cost: Cost, det: Det, *, bonafide: int, spoof: int, level: float = LEVEL) -> Interval:
    """The interval of the least cost over all thresholds, from the errors at the first threshold that has it.

    The exact limits of both rates there are joined by MOVER. cost: normalized, so that the least is at most 1.
    bonafide, spoof: numbers of the trials.
    """
    point = int(np.argmin(cost(det.frr, det.far)))
    found = _of_cost(cost, det, point, bonafide=bonafide, spoof=spoof, level=level)
    return Interval(low=found.low, high=min(found.high, 1.0))


def of_few_errors(drawn: Interval, det: Det, *, bonafide: int, spoof: int, level: float = LEVEL) -> Interval:
    """The bootstrap interval of an EER, made wide enough where a class has fewer than `FEW` errors, or right decisions.

    Then it reaches at least as far as the limits of both rates joined by MOVER. Without any error it is exact: an EER e
    leaves a sample without error with a probability of at most (1 − e)^B + (1 − e)^S, so that e ends where (1 − e)^n of
    the smaller class is half of 1 − level; and so it is without any right decision.
    bonafide, spoof: B and S, the numbers of the trials.
    """
    misses, alarms = _errors(det, bonafide=bonafide, spoof=spoof)
    smaller = min(bonafide, spoof)
    if misses == alarms == 0:
        return clopper_pearson(0, smaller, level=level)
    if (misses, alarms) == (bonafide, spoof):
        return clopper_pearson(smaller, smaller, level=level)
    if not has_few_errors(det, bonafide=bonafide, spoof=spoof):
        return drawn
    counted = of_eer(det, bonafide=bonafide, spoof=spoof, level=level)
    return Interval(low=min(drawn.low, counted.low), high=max(drawn.high, counted.high))


def has_few_errors(det: Det, *, bonafide: int, spoof: int) -> bool:
    """Whether at the EER a class has fewer than `FEW` errors, or right decisions: too few for resamples to vary."""
    misses, alarms = _errors(det, bonafide=bonafide, spoof=spoof)
    return min(misses, bonafide - misses, alarms, spoof - alarms) < FEW


def _errors(det: Det, *, bonafide: int, spoof: int) -> tuple[int, int]:
    """The numbers of missed bona fide and of accepted spoof at the EER."""
    point = equal_point(det.frr, det.far)
    return round(det.frr[point] * bonafide), round(det.far[point] * spoof)


def of_eer(det: Det, *, bonafide: int, spoof: int, level: float = LEVEL) -> Interval:
    """The interval of an EER by counted errors alone: the limits of both rates at its point, joined by MOVER.

    bonafide, spoof: numbers of the trials.
    """
    point = equal_point(det.frr, det.far)
    return _of_cost(lambda frr, far: (frr + far) / 2, det, point, bonafide=bonafide, spoof=spoof, level=level)


def _of_cost(cost: Cost, det: Det, point: int, *, bonafide: int, spoof: int, level: float) -> Interval:
    """MOVER at one point: the root of the squared distances from the cost to its values at the limits of the rates."""
    frr, far = det.frr[point], det.far[point]
    miss = clopper_pearson(round(frr * bonafide), bonafide, level=level)
    alarm = clopper_pearson(round(far * spoof), spoof, level=level)
    at = cost(np.array([frr, miss.low, frr, miss.high, frr]), np.array([far, far, alarm.low, far, alarm.high]))
    down, up = at[0] - at[1:3], at[3:5] - at[0]
    return Interval(low=max(float(at[0]) - math.hypot(*down), 0.0), high=float(at[0]) + math.hypot(*up))
