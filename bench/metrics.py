"""What metrics cost: EER, min t-DCF 2019 and 2021 and their 1,000-fold bootstrap intervals on 600,000 trials.

    python bench/metrics.py [--trials 600000] [--folds 1000]

Makes normally distributed scores, a tenth of them bona fide, and prints seconds of each part and the peak memory of the
process. One resample done plainly (gather the scores, sort them, walk all points) is timed beside them: machines are
noisy, read the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.bootstrap import Statistic, intervals, paired
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import equal_rate, official_eer
from pipeline.metrics.tdcf import ASVSPOOF5_RATES, min_tdcf_2019, min_tdcf_2021, tdcf_2019, tdcf_2021

T = TypeVar("T")

SEED = 0
APART = 3.5  # standard deviations between the classes: an EER of 4 %
SPEAKERS = 100
PLAIN_FOLDS = 5


STATISTICS: dict[str, Statistic] = {
    "EER": equal_rate,
    "min t-DCF 2019": lambda frr, far: float(tdcf_2019(frr, far, ASVSPOOF5_RATES).min()),
    "min t-DCF 2021": lambda frr, far: float(tdcf_2021(frr, far, ASVSPOOF5_RATES).min()),
}


def timed(what: str, work: Callable[[], T]) -> tuple[T, float]:
    """Do the work; print and return its seconds."""
    start = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - start
    print(f"{what:42} {seconds:8.3f} s", flush=True)
    return done, seconds


def plain(bonafide: NDArray[np.float64], spoof: NDArray[np.float64]) -> None:
    """Resample as one would write it down: gather, sort, walk all points."""
    for fold in range(PLAIN_FOLDS):
        rng = np.random.default_rng((SEED, fold))
        det = det_points(rng.choice(bonafide, bonafide.size), rng.choice(spoof, spoof.size))
        for statistic in STATISTICS.values():
            statistic(det.frr, det.far)


def main() -> None:
    """Make scores, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=600_000)
    parser.add_argument("--folds", type=int, default=1_000)
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    is_bonafide = np.arange(args.trials) % 10 == 0
    scores = rng.standard_normal(args.trials) + APART * is_bonafide
    other = scores + 0.1 * rng.standard_normal(args.trials)
    speaker = rng.integers(SPEAKERS, size=args.trials)
    bonafide, spoof = scores[is_bonafide], scores[~is_bonafide]

    det, sorting = timed("sort, all DET points", lambda: det_points(bonafide, spoof))
    values, least = timed(
        "EER, min t-DCF 2019 and 2021",
        lambda: (
            official_eer(det).eer,
            min_tdcf_2019(det, ASVSPOOF5_RATES).value,
            min_tdcf_2021(det, ASVSPOOF5_RATES).value,
        ),
    )
    folds = {"folds": args.folds, "seed": SEED}
    found, resampling = timed(
        f"{args.folds}-fold intervals of the three", lambda: intervals(scores, is_bonafide, STATISTICS, **folds)
    )
    print(f"{'total':42} {sorting + least + resampling:8.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'peak memory of the process so far':42} {peak:8.3f} GiB")
    timed(
        f"the same, of {SPEAKERS} speakers", lambda: intervals(scores, is_bonafide, STATISTICS, groups=speaker, **folds)
    )
    timed("EER of two systems, paired", lambda: paired(scores, other, is_bonafide, equal_rate, **folds))
    _, slow = timed(f"yardstick: {PLAIN_FOLDS} plain resamples", lambda: plain(bonafide, spoof))
    print(f"{'a fold, times faster than a plain one':42} {slow / PLAIN_FOLDS * args.folds / resampling:8.1f}")
    for (name, interval), value in zip(found.items(), values, strict=True):
        print(f"{name:42} {value:8.5f}   {interval.low:.5f} to {interval.high:.5f}")
    print(f"{os.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
