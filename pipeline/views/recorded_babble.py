"""Babble of six recordings of speech of the user's own at 0 to 20 dB."""

from __future__ import annotations

import math

import numpy as np

from pipeline.audio.recordings import Recordings
from pipeline.audio.windowing import Samples
from pipeline.views._shared import additive, passage, unclipped

VARIANTS: tuple[int, ...] = (0, 5, 10, 15, 20)  # dB, speech above babble
RANDOM = True
RECORDINGS = "babble"

SPEAKERS = 6


def apply(samples: Samples, *, variant: int, rng: np.random.Generator, recordings: Recordings) -> Samples:
    """Samples (n,) and passages of six recordings `variant` dB below them; peak at most 1.

    The six are equally loud, and different ones where there are as many.
    """
    drawn = rng.choice(len(recordings), SPEAKERS, replace=len(recordings) < SPEAKERS)
    voices = [passage(recordings, int(number), len(samples), rng) for number in drawn]
    babble = np.sum([voice / math.sqrt(np.square(voice).sum()) for voice in voices], axis=0)
    return unclipped(additive(samples.astype(np.float64), babble, snr_db=variant)).astype(np.float32)
