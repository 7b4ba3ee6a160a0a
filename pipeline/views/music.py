"""Music: chords of decaying notes below the speech, at 0 to 20 dB, synthetic."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import Signal, additive, unclipped

VARIANTS: tuple[int, ...] = (0, 5, 10, 15, 20)  # dB, speech above music
RANDOM = True

BEATS_HZ = (1.5, 3.0)  # chords a second, uniform draws
KEY_HZ = (110.0, 220.0)  # the lowest note
SCALE = (0, 2, 4, 5, 7, 9, 11)  # semitones of a major scale above the lowest note
NOTES = 3  # of a chord: every second one of the scale
PARTIALS = 6  # of a note, at multiples of its frequency, the k-th 1 / k as loud as the first
DECAY_S = 0.4  # in which a note falls to a third


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,) and music `variant` dB below them; peak at most 1."""
    music = _music(len(samples), rng)
    return unclipped(additive(samples.astype(np.float64), music, snr_db=variant)).astype(np.float32)


def _music(count: int, rng: np.random.Generator) -> Signal:
    """Chords (count,), one after the other."""
    beat = round(SAMPLE_RATE / rng.uniform(*BEATS_HZ))  # samples
    key_hz = rng.uniform(*KEY_HZ)
    at = np.arange(beat) / SAMPLE_RATE
    decay = np.exp(-at / DECAY_S)
    chords = {}
    for first in range(len(SCALE)):
        steps = [first + 2 * note for note in range(NOTES)]
        semitones = [SCALE[step % len(SCALE)] + 12 * (step // len(SCALE)) for step in steps]
        hz = [key_hz * 2 ** (semitone / 12) * k for semitone in semitones for k in range(1, PARTIALS + 1)]
        loud = [1 / k for _ in semitones for k in range(1, PARTIALS + 1)]
        chords[first] = decay * sum(a * np.sin(2 * np.pi * f * at) for f, a in zip(hz, loud, strict=True))
    drawn = rng.integers(len(SCALE), size=-(-count // beat)).tolist()
    return np.concatenate([chords[first] for first in drawn])[:count]
