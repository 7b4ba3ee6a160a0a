"""Noise: Gaussian noise between white and pink at 5 to 20 dB."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import Samples
from pipeline.views._shared import additive

VARIANTS: tuple[int, ...] = ()
RANDOM = True

SNR_DB = (5.0, 20.0)


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) and Gaussian noise of power 1 / f^s, s uniform between 0 (white) and 1 (pink)."""
    slope, snr_db = rng.uniform(0, 1), rng.uniform(*SNR_DB)
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, len(samples))
    return additive(samples.astype(np.float64), noise, snr_db=snr_db).astype(np.float32)
