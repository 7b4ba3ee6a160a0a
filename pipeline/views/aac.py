"""AAC: coded at 16 to 64 kbit/s by FFmpeg's encoder (AAC-LC), and decoded."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import coded, fitted

VARIANTS: tuple[int, ...] = (16, 32, 64)  # kbit/s
RANDOM = False
EXTRA = "av"


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) after AAC at `variant` kbit/s."""
    heard = coded(samples, "aac", container="ipod", rate=SAMPLE_RATE, bits=1000 * variant)  # M4A states the delay
    return fitted(heard, len(samples))
