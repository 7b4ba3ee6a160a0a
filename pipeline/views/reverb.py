"""Reverberation: a synthetic room whose sound falls by 60 dB in 0.3 to 0.9 s.

The response is the direct sound and, some milliseconds later, noise that decays (Polack's model: J.-D. Polack, "La
transmission de l'énergie sonore dans les salles", 1988), high frequencies twice as fast as low ones.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import Signal, reverberated

VARIANTS: tuple[int, ...] = (300, 600, 900)  # milliseconds in which the sound falls by 60 dB
RANDOM = True

DIRECT_DB = (0.0, 10.0)  # of the direct sound above all of the noise; uniform draws, from low to high
GAP_S = (0.002, 0.010)  # between the direct sound and the noise
CROSSING_HZ = 2_000.0  # between low and high frequencies


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) as they are heard in the room, at the level that they had; peak at most 1."""
    return reverberated(samples, room(variant / 1000, rng), direct=0)


def room(seconds: float, rng: np.random.Generator) -> Signal:
    """The response (L,) of a room whose sound falls by 60 dB in `seconds`; its first sample is 1, the direct sound."""
    direct_db, gap_s = rng.uniform(*DIRECT_DB), rng.uniform(*GAP_S)
    count = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    is_low = np.fft.rfftfreq(count, 1 / SAMPLE_RATE) < CROSSING_HZ
    at = np.arange(count) / SAMPLE_RATE / seconds  # in units of the time in which it falls by 60 dB
    low = np.fft.irfft(spectrum * is_low, count) * 10 ** (-3 * at)
    high = np.fft.irfft(spectrum * ~is_low, count) * 10 ** (-6 * at)
    noise = low + high
    noise[: round(gap_s * SAMPLE_RATE)] = 0
    noise *= 10 ** (-direct_db / 20) / math.sqrt(np.square(noise).sum())
    noise[0] = 1
    return noise
