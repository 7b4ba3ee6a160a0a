"""Another sampling rate: down to 4 to 12 kHz and back. `narrowband` is 8 kHz."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import Samples
from pipeline.views._shared import at_rate

VARIANTS: tuple[int, ...] = (4, 6, 12)  # kHz
RANDOM = False


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) without what is above `variant` / 2 kHz."""
    return at_rate(samples, 1000 * variant, lambda there: there)
