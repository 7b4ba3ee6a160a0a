"""MP3: coded at 16 to 128 kbit/s by LAME, and decoded."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import coded, fitted

VARIANTS: tuple[int, ...] = (16, 32, 64, 128)  # kbit/s
RANDOM = False
EXTRA = "av"


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) after MP3 at `variant` kbit/s."""
    heard = coded(samples, "libmp3lame", container="mp3", rate=SAMPLE_RATE, bits=1000 * variant)
    return fitted(heard, len(samples))
