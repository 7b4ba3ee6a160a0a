"""Clipping: the loudest 1 to 20 % of the samples are cut to one level, as an overdriven input does."""

from __future__ import annotations

import numpy as np

from pipeline.audio.windowing import Samples

VARIANTS: tuple[int, ...] = (1, 5, 10, 20)  # per cent of the samples
RANDOM = False


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """Samples (n,), none further from 0 than `variant` % of them were."""
    level = np.quantile(np.abs(samples), 1 - variant / 100)
    return samples.clip(-level, level)
