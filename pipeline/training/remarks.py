"""What a training should tell its user: that nothing was learnt, or that another training would come further."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.trial_table import Trials
from pipeline.training.history import Epoch
from pipeline.training.selection import QUANTILE, Selection

FLAT = 0.01  # a loss that fell by less than this share of its start
STILL = 1e-4  # a centroid that moved by less than this share of its length
ALIKE = 0.999  # the cosine from which two centroids are one
MEMORIZED = 10.0  # percent of EER between dev and a training sample without an error


def remarks(
    curves: Sequence[Epoch], path: NDArray[np.float32], *, dev: Trials, dev_eer: float, chosen: Selection, asked: int
) -> tuple[str, ...]:
    """A line for each thing that a user should know of a finished training, without its name.

    Args:
        curves: its epochs. path: (epochs, K, E), the centroids after each epoch. dev_eer: percent, of the system that
            was kept. chosen: which epochs its weights come from. asked: the most epochs that the parameters allow.
    """
    return tuple(
        line
        for found in (
            _flat(curves),
            _at_chance(dev_eer, dev),
            _centroids(path),
            _stopped_early(curves, asked),
            _worse_average(chosen),
            _memorized(curves, dev_eer, chosen.kept),
        )
        for line in found
    )


def _flat(curves: Sequence[Epoch]) -> Iterator[str]:
    first, last = curves[0].loss, curves[-1].loss
    if len(curves) > 1 and first - last < FLAT * abs(first):
        yield f"the loss did not fall ({first:.4g} in epoch 1, {last:.4g} in epoch {len(curves)})"


def _at_chance(dev_eer: float, dev: Trials) -> Iterator[str]:
    """An EER is no surer than an error rate of the smaller class: its interval holds 50 % where this is so near."""
    few = min(int(dev.is_bonafide.sum()), int((~dev.is_bonafide).sum()))
    if 50 - dev_eer < 100 * QUANTILE * math.sqrt(0.25 / few):
        yield f"the dev EER of {dev_eer:.2f} % cannot be told from chance with {few} trials of the smaller class"


def _centroids(path: NDArray[np.float32]) -> Iterator[str]:
    first, last = path[0].astype(np.float64), path[-1].astype(np.float64)
    count = len(last)
    still = np.linalg.norm(last - first, axis=1) <= STILL * np.linalg.norm(first, axis=1)
    if len(path) > 1 and still.any():
        whose = "the centroids" if still.all() else f"{still.sum()} of the {count} centroids"
        yield f"{whose} did not move after the first epoch"
    unit = last / np.maximum(np.linalg.norm(last, axis=1, keepdims=True), np.finfo(float).tiny)
    cosines = unit @ unit.T
    alike = (cosines > ALIKE) & ~np.eye(count, dtype=bool)
    if alike.any():
        on = alike.any(axis=1).sum()
        whose = f"the {count} centroids" if on == count else f"{on} of the {count} centroids"
        yield f"{whose} lie on one another (cosines from {cosines[alike].min():.4f})"


def _stopped_early(curves: Sequence[Epoch], asked: int) -> Iterator[str]:
    """Patience counts from the first epoch of the lowest dev EER; compared are the halves of what came since."""
    if not 1 < len(curves) < asked:
        return
    errors = [epoch.dev_eer for epoch in curves]
    waited = [epoch.dev_loss for epoch in curves[errors.index(min(errors)) :]]
    half = len(waited) // 2
    before, after = np.mean(waited[:half]), np.mean(waited[-half:])
    if before - after >= FLAT * abs(before):
        yield f"it stopped after {len(curves)} epochs for want of a lower dev EER, while the loss on dev still fell"


def _worse_average(chosen: Selection) -> Iterator[str]:
    if chosen.takes_best:
        count = len(chosen.averaged)
        mean = f"the mean of its {count} best epochs" if count > 1 else "its best epoch, enrolled anew,"
        yield (
            f"{mean} has a dev EER of {chosen.mean_eer:.2f} %; taken is epoch {chosen.best.epoch} as it was, with "
            f"{chosen.best.dev_eer:.2f} %"
        )


def _memorized(curves: Sequence[Epoch], dev_eer: float, kept: Sequence[int]) -> Iterator[str]:
    seen = max(curves[epoch - 1].train_eer for epoch in kept)
    if seen == 0 and dev_eer >= MEMORIZED:
        yield f"it knows its training set by heart: an EER of 0 % there, {dev_eer:.2f} % on dev"
