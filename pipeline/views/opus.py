"""Opus: coded at 6 to 48 kbit/s by libopus, as calls over the internet are, and decoded."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import coded, fitted

VARIANTS: tuple[int, ...] = (6, 12, 24, 48)  # kbit/s
RANDOM = False
EXTRA = "av"


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) after Opus at `variant` kbit/s."""
    heard = coded(samples, "libopus", container="ogg", rate=SAMPLE_RATE, bits=1000 * variant)
    return fitted(heard, len(samples))
