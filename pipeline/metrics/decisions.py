"""Decisions at a fixed threshold, such as one chosen on dev: the error rates of a deployed system.

The EER takes its threshold from the same trials that it judges; these rates do not. Rates are shares in 0..1; a higher
score means more bona fide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.metrics.det import checked


@dataclass(frozen=True)
class Decisions:
    """The shares of wrong and right decisions, in 0..1.

    frr: bona fide rejected. far: spoof accepted. accuracy: all trials decided right. balanced_accuracy: the mean of
    the shares of bona fide and of spoof decided right.
    """

    frr: float
    far: float
    accuracy: float
    balanced_accuracy: float


def at_threshold(bonafide: ArrayLike, spoof: ArrayLike, threshold: float) -> Decisions:
    """Accept the scores (B,), (S,) above the threshold, reject those up to it.

    So a threshold of `Det` rejects what its point says, but for ties: the official EER may stop among equal scores and
    reject only some of them (the bona fide first); a decision rejects all that equal the threshold. On the trials that
    the threshold comes from, the rejected bona fide and spoof can therefore be more than at its point, never fewer.
    Raises ValueError for an empty class, nan in the scores, or a threshold that is nan.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    if np.isnan(threshold):
        raise ValueError("expected a threshold that is a number, got nan")
    rejected, accepted = int(np.sum(kept <= threshold)), int(np.sum(refused > threshold))
    frr, far = rejected / kept.size, accepted / refused.size
    return Decisions(
        frr=frr,
        far=far,
        accuracy=1 - (rejected + accepted) / (kept.size + refused.size),
        balanced_accuracy=1 - (frr + far) / 2,
    )
