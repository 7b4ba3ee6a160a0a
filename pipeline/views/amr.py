"""AMR narrowband: coded at 4.75 to 12.2 kbit/s, as mobile calls are, and decoded."""

from __future__ import annotations

import numpy as np
import soxr

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import coded, fitted

VARIANTS: tuple[int, ...] = (4750, 7400, 12200)  # bit/s
RANDOM = False
EXTRA = "av"


RATE = 8_000  # Hz
DELAY = 0.005  # seconds by which the codec looks ahead (3GPP TS 26.090, section 5.2); the file does not state them


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) after AMR at `variant` bit/s."""
    narrow = soxr.resample(samples, SAMPLE_RATE, RATE, quality="HQ")
    heard = coded(narrow, "libopencore_amrnb", container="amr", rate=RATE, bits=variant)
    return fitted(heard[round(DELAY * SAMPLE_RATE) :], len(samples))
