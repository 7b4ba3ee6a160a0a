"""A-law: 8 bits a sample at 8 kHz, as European telephone lines have it (ITU-T G.711)."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import Samples
from pipeline.views._shared import at_rate, companded

VARIANTS: tuple[int, ...] = ()
RANDOM = False


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) after A-law at 64 kbit/s."""
    return at_rate(samples, 8_000, lambda narrow: companded(narrow, "ALAW"))
