"""The windows that the encoder gets of an utterance, one unless told otherwise: its first samples.

A shorter utterance is repeated or zero-padded.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz
MIN_SAMPLES = 400  # at 16 kHz: 25 ms, the receptive field of one wav2vec 2.0 frame

Pad = Literal["repeat", "zero"]
Samples = NDArray[np.float32]


def window(samples: Samples, *, length: int, pad: Pad) -> tuple[Samples, int]:
    """The first `length` samples, (length,), and how many of them are valid.

    A shorter signal is repeated from its start (`repeat`; all samples count as valid, as in public countermeasures), or
    zeros follow it (`zero`; only its own samples are valid).
    """
    if len(samples) >= length:
        return samples[:length], length
    if pad == "repeat":
        return np.resize(samples, length), length
    return np.pad(samples, (0, length - len(samples))), len(samples)


def sounding(samples: Samples, start: int, *, length: int) -> int:
    """Where a window begins: at `start`, or with the first sample where the `length` samples at `start` are silent."""
    return start if np.ptp(samples[start : start + length]) > 0 else 0
