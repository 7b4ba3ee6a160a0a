"""Verdicts of three, bona fide, spoof or cannot tell, by a rule that promises how often it is wrong.

Split conformal prediction for each class by itself. Of the B bona fide scores of dev let k = ⌊error_rate · (B + 1)⌋. A
score below the k-th lowest of them rules out bona fide. Likewise a score above the k-th highest of the S spoof scores,
k = ⌊error_rate · (S + 1)⌋, rules out spoof. Where one class alone is ruled out, the verdict is the other one. Where
none is, or both are, it is `cannot_tell`.

The promise: of bona fide speech like that of dev at most the error rate is called spoof, and of spoof like that of dev
at most the error rate is called bona fide. It holds for any number of trials and any distribution of scores, ties
included, on average over the draws of dev. "Like dev" means exchangeable with its trials. So the promise ends where
recordings differ from those of dev: by microphone, language, codec, or an attack that dev does not have. Dev also chose
the checkpoint, which flatters its scores a little. Where k is 0 a class has too few trials to be ruled out at all.

Source: Vovk, "Conditional validity of inductive conformal predictors", ACML 2012, which also has the distribution of
the error rate for one given dev: for scores without ties Beta(k, B + 1 - k).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.core.trial_table import LABELS
from pipeline.metrics.binomial import LEVEL
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.det import checked

BONAFIDE, SPOOF = LABELS
CANNOT_TELL = "cannot_tell"


@dataclass(frozen=True)
class VerdictRule:
    """The limits of the rule, in scores, and how many trials of each class they come from.

    error_rate: a share in 0..1. bonafide_from: scores below it rule out bona fide. spoof_up_to: scores above it rule
    out spoof. None, for either limit: the trials were too few, and no score rules out the class.
    """

    error_rate: float
    bonafide_from: float | None
    spoof_up_to: float | None
    bonafide: int
    spoof: int

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1:
            raise ValueError(f"expected an error rate between 0 and 1, got {self.error_rate}")
        limits = (self.bonafide_from, self.spoof_up_to)
        for count, limit in zip((self.bonafide, self.spoof), limits, strict=True):
            if count < 1 or (limit is None) != (rank(self.error_rate, count) == 0):
                raise ValueError(f"expected a limit where {self.error_rate} of the trials allow one, got {self}")
            if limit is not None and not math.isfinite(limit):
                raise ValueError(f"expected finite limits, got {limit}")

    def rules_out_bonafide(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Whether scores, of any shape, are too low for bona fide speech."""
        values = np.asarray(scores, dtype=np.float64)
        return values < (-np.inf if self.bonafide_from is None else self.bonafide_from)

    def rules_out_spoof(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Whether scores, of any shape, are too high for spoof."""
        values = np.asarray(scores, dtype=np.float64)
        return values > (np.inf if self.spoof_up_to is None else self.spoof_up_to)

    def verdict(self, score: float) -> str:
        """One of `bonafide`, `spoof` and `cannot_tell`."""
        no_bonafide, no_spoof = bool(self.rules_out_bonafide(score)), bool(self.rules_out_spoof(score))
        if no_bonafide == no_spoof:
            return CANNOT_TELL
        return SPOOF if no_bonafide else BONAFIDE

    def promised(self, label: str) -> Interval:
        """Where the rate at which a class is ruled out by mistake lies for this very dev, with a confidence of 95 %.

        The average over many devs is at most the error rate; a small dev may have more. label: `bonafide` or `spoof`.
        """
        from scipy.special import betaincinv  # takes longer to import than most commands need

        count = self.bonafide if label == BONAFIDE else self.spoof
        k, tail = rank(self.error_rate, count), (1 - LEVEL) / 2
        if k == 0:
            return Interval(0.0, 0.0)
        low, high = (float(betaincinv(k, count + 1 - k, share)) for share in (tail, 1 - tail))
        return Interval(low, high)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Sentences on the classes that no score rules out, as their trials are too few."""
        counts = ((BONAFIDE, self.bonafide, self.bonafide_from), (SPOOF, self.spoof, self.spoof_up_to))
        return tuple(
            f"{count} {label} trials are too few to rule out {label} at an error rate of {self.error_rate:g}, which "
            f"takes {fewest(self.error_rate)}; the verdict is never {SPOOF if label == BONAFIDE else BONAFIDE}"
            for label, count, limit in counts
            if limit is None
        )


def rank(error_rate: float, count: int) -> int:
    """k = ⌊error_rate · (count + 1)⌋, exact for the error rate as it is written in decimals."""
    return math.floor(Fraction(repr(float(error_rate))) * (count + 1))


def fewest(error_rate: float) -> int:
    """The fewest trials of a class by which a score can rule it out: 19 at an error rate of 0.05."""
    return math.ceil(1 / Fraction(repr(float(error_rate)))) - 1


def fit(bonafide: ArrayLike, spoof: ArrayLike, *, error_rate: float) -> VerdictRule:
    """The rule by bona fide scores (B,) and spoof scores (S,) that trained nothing.

    Raises ValueError for an empty class, nan, or an error rate that is not between 0 and 1.
    """
    kept, refused = np.sort(checked("bona fide", bonafide)), np.sort(checked("spoof", spoof))
    lowest, highest = rank(error_rate, kept.size), rank(error_rate, refused.size)
    return VerdictRule(
        error_rate=error_rate,
        bonafide_from=float(kept[lowest - 1]) if lowest else None,
        spoof_up_to=float(refused[-highest]) if highest else None,
        bonafide=kept.size,
        spoof=refused.size,
    )


def shares(rule: VerdictRule, bonafide: ArrayLike, spoof: ArrayLike) -> dict[str, Any]:
    """The shares in 0..1 of verdicts on bona fide scores (B,) and spoof scores (S,).

    bonafide_called_spoof and spoof_called_bonafide are wrong; cannot_tell is of all trials.
    Raises ValueError for an empty class or nan.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    every = np.concatenate((kept, refused))
    no_bonafide, no_spoof = rule.rules_out_bonafide(every), rule.rules_out_spoof(every)
    return {
        "bonafide_called_spoof": float((no_bonafide & ~no_spoof)[: kept.size].mean()),
        "spoof_called_bonafide": float((no_spoof & ~no_bonafide)[kept.size :].mean()),
        "cannot_tell": float((no_bonafide == no_spoof).mean()),
    }
