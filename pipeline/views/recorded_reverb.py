"""Reverberation by impulse responses of the user's own, such as measured ones of rooms.

The largest sample of a response counts as its direct sound, which keeps its place: what is said stays where it was.
"""

from __future__ import annotations

import numpy as np

from pipeline.audio.recordings import Recordings
from pipeline.audio.windowing import Samples
from pipeline.views._shared import reverberated

VARIANTS: tuple[int, ...] = ()
RANDOM = True
RECORDINGS = "reverb"


def apply(samples: Samples, *, variant: int, rng: np.random.Generator, recordings: Recordings) -> Samples:
    """Samples (n,) through one of the responses, at the level that they had; peak at most 1.

    Of responses with several channels the first is heard: the mean of several places would be that of no room.
    """
    response = recordings.read(int(rng.integers(len(recordings))), channel=0)
    return reverberated(samples, response, direct=int(np.abs(response).argmax()))
