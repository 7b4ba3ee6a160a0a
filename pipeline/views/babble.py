"""Babble of six speakers at 0 to 20 dB. It is synthetic: noise with the spectrum and the rhythm of speech, no words.

The power of each speaker falls by 9 dB an octave above 500 Hz, about as that of long-term speech does (Byrne et al.,
"An international comparison of long-term average speech spectra", JASA 1994). Its level changes with each syllable.
"""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import Signal, additive, unclipped

VARIANTS: tuple[int, ...] = (0, 5, 10, 15, 20)  # dB, speech above babble
RANDOM = True

SPEAKERS = 6
SYLLABLES_HZ = (3.0, 6.0)  # a speaker's, uniform draws
LOWEST_HZ = 80.0
FLAT_TO_HZ = 500.0


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) and babble `variant` dB below them; peak at most 1."""
    babble = np.sum([_speaker(len(samples), rng) for _ in range(SPEAKERS)], axis=0)
    return unclipped(additive(samples.astype(np.float64), babble, snr_db=variant)).astype(np.float32)


def _speaker(count: int, rng: np.random.Generator) -> Signal:
    """Noise (count,) with the spectrum and the rhythm of one speaker."""
    hz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    gain = (hz >= LOWEST_HZ) * np.maximum(hz / FLAT_TO_HZ, 1) ** -1.5  # amplitude: 9 dB an octave
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * gain, count)
    rate = rng.uniform(*SYLLABLES_HZ)
    at = np.arange(count) / SAMPLE_RATE * rate
    levels = rng.random(int(at[-1]) + 2) ** 2  # of each syllable; the square makes pauses
    return noise * np.interp(at, np.arange(len(levels)), levels)
