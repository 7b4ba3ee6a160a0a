"""Packet loss: packets of 20 ms are missing, as in calls over a bad network; in their place is silence.

Losses come in bursts, by a chain of two states (Gilbert, "Capacity of a burst-noise channel", Bell System Technical
Journal, 1960).
"""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import SAMPLE_RATE, Samples

VARIANTS: tuple[int, ...] = (5, 10, 20, 30)  # per cent of the packets, in the mean
RANDOM = True

PACKET = SAMPLE_RATE // 50  # samples
AGAIN = 0.5  # the probability that the packet after a lost one is lost, too: bursts of two in the mean


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,), with zeros in the packets that are lost: `variant` % of them in the mean, and at least one."""
    share = variant / 100
    anew = share * (1 - AGAIN) / (1 - share)  # from received to lost, so that `share` of all are lost
    lost = np.zeros(-(-len(samples) // PACKET), bool)
    before = rng.random() < share
    for packet, draw in enumerate(rng.random(len(lost))):
        lost[packet] = before = bool(draw < (AGAIN if before else anew))
    lost[rng.integers(len(lost))] |= not lost.any()
    heard: Samples = samples * np.repeat(~lost, PACKET)[: len(samples)]
    return heard
