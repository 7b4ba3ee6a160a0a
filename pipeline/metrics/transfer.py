"""Does what was chosen on dev fit another set? Warnings about the threshold, the calibration and the verdicts.

A rate of errors is far from dev's where its 95 % interval lies wholly above one and a half times the upper end of
dev's. Of sets like dev that rule accuses about one in a hundred, also where dev is small and chose the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.binomial import clopper_pearson
from pipeline.metrics.decisions import at_threshold
from pipeline.metrics.verdicts import BONAFIDE, SPOOF, VerdictRule

TIMES = 1.5  # the upper end of dev's interval
NOTHING_SAID = 1.0  # bits of Cllr, of a system that gives every trial the ratio 1
RATES = (("frr", "bonafide", "bona fide is rejected"), ("far", "spoof", "spoof is accepted"))  # rate, its trials, words

Scores = NDArray[np.float64]


def transfer_warnings(metrics: Mapping[str, Any], bonafide: Scores, spoof: Scores) -> list[str]:
    """Warnings about a set on which decisions or calibrated scores are much worse than on dev.

    Args:
        metrics: of the set, as `evaluate` gives them with a threshold and a calibration.
        bonafide, spoof: the scores (B,), (S,) of dev, which the threshold and the calibration are of.
    """
    decided = at_threshold(bonafide, spoof, metrics["at_threshold"]["threshold"])
    on_dev = {"frr": (decided.frr, len(bonafide)), "far": (decided.far, len(spoof))}
    found = []
    for name, trials, words in RATES:
        share, rate = metrics["at_threshold"][name] / 100, on_dev[name][0]
        if is_far(share, metrics[trials], dev=rate, dev_trials=on_dev[name][1]):
            found.append(
                f"at the threshold of dev {100 * share:.1f} % of the {words}, of dev's own {100 * rate:.1f} %: the "
                "threshold does not fit this set"
            )
    cllr = metrics["calibrated"]["cllr"]
    if cllr > NOTHING_SAID:
        found.append(
            f"calibrated on dev, the scores have a Cllr of {cllr:.3f} bits; above 1 their probabilities are worse than "
            "none"
        )
    return found


def verdict_warnings(metrics: Mapping[str, Any], rule: VerdictRule) -> list[str]:
    """Warnings about a set on which the rule of verdicts is wrong more often than it promises.

    Due where the 95 % interval of the rate on the set lies wholly above the upper end of what the rule may have for its
    very dev (`VerdictRule.promised`). metrics: of the set, as `evaluate` gives them with the rule.
    """
    found = []
    for label, other in ((BONAFIDE, SPOOF), (SPOOF, BONAFIDE)):
        share = metrics["verdicts"][f"{label}_called_{other}"] / 100
        low = clopper_pearson(round(share * metrics[label]), metrics[label]).low
        if low > rule.promised(label).high:
            found.append(
                f"{100 * share:.1f} % of the {label} have the verdict {other}, of at most {100 * rule.error_rate:g} % "
                "that the rule promises for trials like those of dev: these are others, and no promise holds"
            )
    return found


def is_far(rate: float, trials: int, *, dev: float, dev_trials: int) -> bool:
    """Whether a rate of errors, a share in 0..1, is far above that of dev."""
    low = clopper_pearson(round(rate * trials), trials).low
    return low > TIMES * clopper_pearson(round(dev * dev_trials), dev_trials).high
