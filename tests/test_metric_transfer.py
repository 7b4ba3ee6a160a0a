"""Warnings about a threshold and a calibration that do not fit a set: due where they are due, and seldom else."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.metrics import calibration, evaluation, transfer
from pipeline.metrics.eer import eer_of

Scores = NDArray[np.float64]


def warnings(bonafide: Scores, spoof: Scores, dev_bonafide: Scores, dev_spoof: Scores) -> list[str]:
    dev = np.concatenate((dev_bonafide, dev_spoof))
    threshold = eer_of(dev, np.arange(len(dev)) < len(dev_bonafide)).threshold
    metrics = {
        "bonafide": len(bonafide),
        "spoof": len(spoof),
        "at_threshold": evaluation._decided(bonafide, spoof, threshold),
        "calibrated": evaluation._calibrated(bonafide, spoof, calibration.fit(dev_bonafide, dev_spoof)),
    }
    return transfer.transfer_warnings(metrics, dev_bonafide, dev_spoof)


@pytest.mark.parametrize(
    ("rate", "trials", "dev", "dev_trials", "far"),
    [  # 95 % limits of Clopper and Pearson by tables: 5 in 100 ends at 11.28 %, of which one and a half are 16.9 %
        (0.20, 1000, 0.05, 100, True),  # begins at 17.56 %
        (0.19, 1000, 0.05, 100, False),  # 16.61 %
        (0.20, 100, 0.05, 100, False),  # 12.67 %
        (0.52, 900, 0.10, 243, True),
        (0.10, 100_000, 0.0, 27, False),  # none in 27 ends at 12.77 %
        (0.0, 1000, 0.05, 100, False),  # better than dev is no harm
    ],
)
def test_a_rate_far_from_devs(rate: float, trials: int, dev: float, dev_trials: int, far: bool) -> None:
    assert transfer.is_far(rate, trials, dev=dev, dev_trials=dev_trials) is far


@pytest.mark.parametrize("apart", [4.0, 2.5, 1.3])  # EERs of 2, 11 and 26 %
@pytest.mark.parametrize("dev_size", [(27, 243), (100, 900)])
@pytest.mark.parametrize("size", [(300, 900), (5_000, 5_000)])
def test_sets_like_dev_are_seldom_accused_and_others_are(
    apart: float, dev_size: tuple[int, int], size: tuple[int, int]
) -> None:
    """Dev chooses the best of 20 checkpoints that are equally good: its threshold and its rates flatter it."""
    rng = np.random.default_rng(3)
    accused = shifted = 0
    for _ in range(40):
        common = [0.9 * rng.normal(size=count) for count in dev_size]
        checkpoints = [[part + 0.436 * rng.normal(size=len(part)) for part in common] for _ in range(20)]
        is_bonafide = np.arange(sum(dev_size)) < dev_size[0]
        kept, refused = min(
            ((bonafide + apart, spoof) for bonafide, spoof in checkpoints),
            key=lambda pair: eer_of(np.concatenate(pair), is_bonafide).eer,
        )
        bonafide, spoof = rng.normal(apart, 1, size[0]), rng.normal(0, 1, size[1])
        accused += bool(warnings(bonafide, spoof, kept, refused))
        shifted += any("spoof is accepted" in line for line in warnings(bonafide, spoof + 1.5, kept, refused))
    assert accused <= 2
    assert shifted >= 38


def test_a_calibration_that_misleads_is_told() -> None:
    rng = np.random.default_rng(0)
    dev = rng.normal(4, 1, 200), rng.normal(0, 1, 200)
    alike = rng.normal(4, 1, 200), rng.normal(0, 1, 200)
    assert warnings(*alike, *dev) == []
    (line,) = warnings(rng.normal(2, 1.5, 20), rng.normal(2, 1.5, 20), *dev)[-1:]
    assert line.startswith("calibrated on dev, the scores have a Cllr of ")
    assert float(line.split("Cllr of ")[1].split()[0]) > 1
