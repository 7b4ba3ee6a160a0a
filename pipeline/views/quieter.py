"""Quieter: the level falls by 6 to 40 dB, in 16 bits a sample."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import Samples

VARIANTS: tuple[int, ...] = (6, 12, 20, 40)  # dB
RANDOM = False

STEPS = 2**15  # of 16 bits, between 0 and full scale


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) at a level `variant` dB lower, rounded to 16 bits."""
    lower = samples * np.float32(10 ** (-variant / 20))
    return (lower * STEPS).round() / np.float32(STEPS)
