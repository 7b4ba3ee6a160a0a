"""How often the 95 % intervals of EER, min DCF and min t-DCF hold the truth, in simulated worlds whose truth is known.

    python bench/coverage.py [--worlds 2000] [--drawn 300] [--folds 300]

Scores are normally distributed, the classes so many standard deviations apart: the truth follows from the normal
distribution. Each world is a new sample of trials. The percentile bootstrap stands beside each interval that `evaluate`
gives, to show why it does not give the former. Resamples take time: --drawn of the worlds have them, a third of it at
the size of ASVspoof 2019 LA.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import binomial
from pipeline.metrics.binomial import Cost
from pipeline.metrics.bootstrap import Interval, Statistic, intervals
from pipeline.metrics.dcf import dcf
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import equal_rate
from pipeline.metrics.tdcf import ASVSPOOF5_RATES, tdcf_2019

SIZES = ((27, 216), (100, 900), (500, 500), (7_355, 63_882))
LARGE = 50_000  # trials, from where on fewer worlds have resamples
APART = (1.5, 2.5, 3.5, 4.5)  # standard deviations: EERs of 23, 11, 4 and 1.2 %
COSTS: dict[str, Cost] = {
    "min DCF": dcf,
    "min t-DCF": lambda frr, far: tdcf_2019(frr, far, ASVSPOOF5_RATES),
}
COLUMNS = ("EER, percentile", "EER", *(f"{cost}{form}" for cost in COSTS for form in (", percentile", "")))


def least(cost: Cost) -> Statistic:
    """The least cost of some DET points."""
    return lambda frr, far: float(cost(frr, far).min())


def truths(apart: float) -> dict[str, float]:
    """EER and least costs of two normal classes of unit variance, so far apart."""
    normal = NormalDist()
    thresholds = np.linspace(-6, 6 + apart, 40_001)
    frr = np.array([normal.cdf(threshold - apart) for threshold in thresholds])
    far = np.array([normal.cdf(-threshold) for threshold in thresholds])
    return {"EER": normal.cdf(-apart / 2)} | {name: least(cost)(frr, far) for name, cost in COSTS.items()}


def world(bonafide: int, spoof: int, apart: float, *, folds: int, seed: int) -> dict[str, Interval]:
    """Every interval of one sample; without folds those of counts alone."""
    is_bonafide = np.arange(bonafide + spoof) < bonafide
    scores: NDArray[np.float64] = np.random.default_rng(seed).standard_normal(is_bonafide.size) + apart * is_bonafide
    det, counts = det_points(scores[is_bonafide], scores[~is_bonafide]), {"bonafide": bonafide, "spoof": spoof}
    found = {name: binomial.of_minimum(cost, det, **counts) for name, cost in COSTS.items()}
    if folds:
        statistics = {"EER": equal_rate} | {name: least(cost) for name, cost in COSTS.items()}
        drawn = intervals(scores, is_bonafide, statistics, folds=folds, seed=seed)
        found |= {f"{name}, percentile": interval for name, interval in drawn.items()}
        found["EER"] = binomial.of_few_errors(drawn["EER"], det, **counts)
    return found


def coverage(bonafide: int, spoof: int, apart: float, *, worlds: int, drawn: int, folds: int) -> dict[str, float]:
    """The share of worlds in which each interval holds the truth; drawn: how many of them have resamples."""
    truth, held = truths(apart), defaultdict(list)
    for seed in range(worlds):
        for name, interval in world(bonafide, spoof, apart, folds=folds if seed < drawn else 0, seed=seed).items():
            held[name].append(interval.low <= truth[name.removesuffix(", percentile")] <= interval.high)
    return {name: float(np.mean(inside)) for name, inside in held.items()}


def main() -> None:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("worlds", 2_000), ("drawn", 300), ("folds", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print("| trials | EER, % |", " | ".join(COLUMNS), "|")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for bonafide, spoof in SIZES:
        drawn = given.drawn // 3 if bonafide + spoof >= LARGE else given.drawn
        for apart in APART:
            shares = coverage(bonafide, spoof, apart, worlds=given.worlds, drawn=drawn, folds=given.folds)
            cells = [f"{bonafide:,} + {spoof:,}", f"{100 * truths(apart)['EER']:.1f}"]
            print("|", " | ".join([*cells, *(f"{shares[name]:.3f}" for name in COLUMNS)]), "|", flush=True)


if __name__ == "__main__":
    main()
