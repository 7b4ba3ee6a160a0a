"""Trimming: the silence before the first sound is cut off.

What is silent there differs between bona fide and spoof of some corpora, and detectors learn it (Müller et al., "Speech
is silver, silence is golden: What do ASVspoof-trained models really learn?", ASVspoof 2021 workshop, arXiv 2106.12914).
"""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples

VARIANTS: tuple[int, ...] = ()
RANDOM = False

FRAME = SAMPLE_RATE // 100  # samples of which the level is taken
BELOW_DB = 40.0  # a frame is silent whose level is this far below the loudest one


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) from the first frame on that is not silent: (m,), m ≤ n."""
    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    first = int(np.argmax(power >= power.max() * 10 ** (-BELOW_DB / 10)))
    return samples[first * FRAME :]
