"""What several views share: noise at a given level."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]


def additive(x: Signal, noise: Signal, *, snr_db: float) -> Signal:
    """x (n,) plus noise (n,) of any level, scaled to the given ratio of norms; the peak may exceed 1.

    SSI of RawBoost (section 3.3 of arXiv 2111.04433).
    """
    ratio = math.sqrt(np.square(x).sum() / np.square(noise).sum())
    return x + noise * (ratio / 10 ** (snr_db / 20))
