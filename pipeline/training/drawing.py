"""The augmented views that training draws, and what they do to quality levels."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.contracts import Labels
from pipeline.features.sampling import Augment, level_shift

VIEWS_STREAM = 1  # sets the generator of views apart from that of the order, which (seed, epoch) alone seed
WINDOWS_STREAM = 2  # likewise for the windows
CLEAN_VIEW = -1


def drawn_views(count: int, augment: Augment, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of the augmented views stands for each of `count` utterances in an epoch, -1 for the clean one: (N,).

    Drawn from (seed, epoch), one draw an utterance, whatever the order of the batches.
    """
    if not augment.probability:
        return np.full(count, CLEAN_VIEW)
    rng = np.random.default_rng((seed, epoch, VIEWS_STREAM))
    augmented = rng.random(count) < augment.probability
    return np.where(augmented, rng.integers(len(augment.views), size=count), CLEAN_VIEW)


def drawn_windows(count: int, windows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of the windows of each of `count` utterances is trained on in an epoch, (N,), the first is 0."""
    if windows == 1:
        return np.zeros(count, np.int64)
    return np.random.default_rng((seed, epoch, WINDOWS_STREAM)).integers(windows, size=count)


def lowered(labels: Labels, drawn: NDArray[np.int64], augment: Augment) -> Labels:
    """Labels (N,) as the drawn views (N,) leave them: a known quality level goes down with the view, not below 0."""
    shift = torch.tensor([*map(level_shift, augment.views), 0], device=labels.level.device)
    level = (labels.level + shift[torch.from_numpy(drawn).to(labels.level.device)]).clamp(min=0)
    return dataclasses.replace(labels, level=torch.where(labels.level < 0, labels.level, level))
