"""Narrowband: down to 8 kHz and back, as a telephone line has it."""

from __future__ import annotations

import numpy as np
import soxr

from pipeline.audio.windowing import SAMPLE_RATE, Samples

VARIANTS: tuple[int, ...] = ()
RANDOM = False

NARROWBAND_HZ = 8_000  # sampling rate


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) without what is above 4 kHz."""
    narrow = soxr.resample(samples, SAMPLE_RATE, NARROWBAND_HZ, quality="HQ")
    wide: Samples = soxr.resample(narrow, NARROWBAND_HZ, SAMPLE_RATE, quality="HQ")
    return wide[: len(samples)]  # odd lengths come back with a sample more
