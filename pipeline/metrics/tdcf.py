"""The tandem detection cost (t-DCF) of a countermeasure in front of a speaker verification system (ASV).

Kinnunen et al.: "t-DCF: a Detection Cost Function for the Tandem Assessment of Spoofing Countermeasures and Automatic
Speaker Verification", Odyssey 2018, in the form of ASVspoof 2019; and "Tandem Assessment of Spoofing Countermeasures
and Automatic Speaker Verification: Fundamentals", IEEE/ACM TASLP 2020, the form of ASVspoof 2021 and 5. Both are
normalized: 1 is the cost of the better of the two countermeasures that accept, or reject, everything.

Rates are shares in 0..1; a higher score means more bona fide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.det import Det, checked, det_points, equal_point

# The cost model of ASVspoof 2019, 2021 and 5: priors of what comes, costs of what goes wrong. The 2019 form prices
# the countermeasure's errors apart from the ASV's, but at the same cost.
PRIOR_SPOOF = 0.05
PRIOR_TARGET = 0.9405  # 99 % of what is no spoof
PRIOR_NONTARGET = 0.0095
COST_MISS = 1.0  # a target rejected
COST_FALSE_ALARM = 10.0  # a non-target accepted
COST_FALSE_ALARM_SPOOF = 10.0  # a spoof accepted


@dataclass(frozen=True)
class AsvRates:
    """The error rates of the ASV at its threshold, shares in 0..1.

    p_fa: non-targets accepted. p_miss: targets rejected. p_fa_spoof: spoofs accepted.
    """

    p_fa: float
    p_miss: float
    p_fa_spoof: float

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0 <= rate <= 1:
                raise ValueError(f"expected {name} in 0..1, got {rate}")

    @property
    def p_miss_spoof(self) -> float:
        """Share of spoofs that the ASV rejects."""
        return 1 - self.p_fa_spoof


# What the ASVspoof5 evaluation package takes when it is given no ASV scores.
ASVSPOOF5_RATES = AsvRates(
    p_fa=0.01881016557566423,
    p_miss=0.01880141010575793,
    p_fa_spoof=0.4607082907604729,
)


@dataclass(frozen=True)
class Minimum:
    """The least cost of all thresholds, and the threshold of the first point that has it."""

    value: float
    threshold: float


def asv_rates(target: ArrayLike, nontarget: ArrayLike, spoof: ArrayLike) -> AsvRates:
    """The rates of an ASV that accepts from its EER threshold up.

    target, nontarget, spoof: ASV scores in one dimension, higher = the claimed speaker. The threshold is that of the
    official EER of targets against non-targets. Raises ValueError for an empty kind or nan.
    Source: `obtain_asv_error_rates` of the ASVspoof 2019 and 2021 evaluation packages.
    """
    claimed, others = checked("target", target), checked("non-target", nontarget)
    det = det_points(claimed, others)
    threshold = det.threshold[equal_point(det.frr, det.far)]
    return AsvRates(
        p_fa=float(np.mean(others >= threshold)),
        p_miss=float(np.mean(claimed < threshold)),
        p_fa_spoof=float(np.mean(checked("ASV spoof", spoof) >= threshold)),
    )


def tdcf_2019(frr: NDArray[np.float64], far: NDArray[np.float64], rates: AsvRates) -> NDArray[np.float64]:
    """The normalized t-DCF of ASVspoof 2019 at each point: (C1 FRR + C2 FAR) / min(C1, C2).

    frr, far: (P,) the countermeasure's. The ASV's own errors are left out, so a perfect countermeasure costs 0.
    Returns (P,). Raises ValueError for rates with which the countermeasure's errors cost nothing.
    """
    _, miss, false_alarm = _coefficients(rates)
    cost: NDArray[np.float64] = (miss * frr + false_alarm * far) / min(miss, false_alarm)
    return cost


def tdcf_2021(frr: NDArray[np.float64], far: NDArray[np.float64], rates: AsvRates) -> NDArray[np.float64]:
    """The normalized t-DCF of ASVspoof 2021 and 5 at each point: (C0 + C1 FRR + C2 FAR) / (C0 + min(C1, C2)).

    frr, far: (P,) the countermeasure's. The ASV's own errors C0 are the floor that no countermeasure comes below.
    Returns (P,). Raises ValueError for rates with which the countermeasure's errors cost nothing.
    """
    floor, miss, false_alarm = _coefficients(rates)
    cost: NDArray[np.float64] = (floor + miss * frr + false_alarm * far) / (floor + min(miss, false_alarm))
    return cost


def min_tdcf_2019(det: Det, rates: AsvRates) -> Minimum:
    """The least `tdcf_2019` of all points.

    The official packages stop at fewer than three distinct scores; here the least cost is given as it is defined.
    """
    return _minimum(tdcf_2019(det.frr, det.far, rates), det)


def min_tdcf_2021(det: Det, rates: AsvRates) -> Minimum:
    """The least `tdcf_2021` of all points.

    The official packages stop at fewer than three distinct scores; here the least cost is given as it is defined.
    """
    return _minimum(tdcf_2021(det.frr, det.far, rates), det)


def _coefficients(rates: AsvRates) -> tuple[float, float, float]:
    """C0, C1 and C2: the cost of the ASV alone, of bona fide that it never sees, of spoof that it does."""
    alone = PRIOR_TARGET * COST_MISS * rates.p_miss + PRIOR_NONTARGET * COST_FALSE_ALARM * rates.p_fa
    miss = PRIOR_TARGET * COST_MISS - alone
    false_alarm = PRIOR_SPOOF * COST_FALSE_ALARM_SPOOF * rates.p_fa_spoof
    if min(miss, false_alarm) <= 0:
        raise ValueError(
            f"expected an ASV with which the countermeasure's misses and false alarms both cost something, got "
            f"C1 = {miss:.6g} and C2 = {false_alarm:.6g} with {rates}"
        )
    return alone, miss, false_alarm


def _minimum(cost: NDArray[np.float64], det: Det) -> Minimum:
    point = int(np.argmin(cost))
    return Minimum(value=float(cost[point]), threshold=float(det.threshold[point]))
