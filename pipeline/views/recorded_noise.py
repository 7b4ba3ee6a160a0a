"""Noise from recordings of the user's own, such as those of MUSAN (Snyder et al., arXiv 1510.08484), at 0 to 20 dB."""

from __future__ import annotations

import numpy as np

from pipeline.audio.recordings import Recordings
from pipeline.audio.windowing import Samples
from pipeline.views._shared import additive, passage, unclipped

VARIANTS: tuple[int, ...] = (0, 5, 10, 15, 20)  # dB, speech above noise
RANDOM = True
RECORDINGS = "noise"


def apply(samples: Samples, *, variant: int, rng: np.random.Generator, recordings: Recordings) -> Samples:
    """Samples (n,) and a passage of one recording `variant` dB below them; peak at most 1."""
    noise = passage(recordings, int(rng.integers(len(recordings))), len(samples), rng)
    return unclipped(additive(samples.astype(np.float64), noise, snr_db=variant)).astype(np.float32)
