"""The cost of log-likelihood ratios (Cllr), in bits: as the scores are, and after the best monotone calibration.

Brümmer and du Preez: "Application-independent evaluation of speaker detection", Computer Speech and Language 2006.
0 is perfect, 1 is what a system costs that always says "I do not know" (a score of 0). A higher score means more bona
fide; Cllr reads it as a log-likelihood ratio in nats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.det import checked


def cllr(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Half the mean of log2(1 + e^−s) over bona fide (B,) plus half the mean of log2(1 + e^s) over spoof (S,), in bits.

    It does not overflow, where that of the ASVspoof5 package does beyond a score of ±709. Raises ValueError for an
    empty class or nan.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    return float(np.logaddexp(0, -kept).mean() + np.logaddexp(0, refused).mean()) / (2 * float(np.log(2)))


def cllr_terms(bonafide: ArrayLike, spoof: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each trial costs, in bits: (B,) and (S,), whose two means add up to `cllr`."""
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    bits = 2 * float(np.log(2))
    return np.logaddexp(0, -kept) / bits, np.logaddexp(0, refused) / bits


def min_cllr(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """The Cllr in bits of scores (B,), (S,) after the monotone map that makes it least: what better calibration leaves.

    The map is fitted on the same scores by pooling adjacent violators; equal scores stay equal. 0 for classes that are
    separated, 1 for scores that are all equal or the wrong way round. Raises ValueError for an empty class or nan.
    """
    blocks = _blocks(checked("bona fide", bonafide), checked("spoof", spoof))
    kept, refused = np.array(_pooled(blocks), dtype=np.float64).T  # (K,) each
    shares = (kept / kept.sum(), refused / refused.sum())
    return (_bits(*shares) + _bits(*shares[::-1])) / 2


def _blocks(bonafide: NDArray[np.float64], spoof: NDArray[np.float64]) -> list[tuple[int, int]]:
    """How many bona fide, then spoof follow each other in ascending scores, bona fide first in ties.

    Pooling joins such a run of either class in any case, so only what is left has to be walked through.
    """
    order = np.argsort(np.concatenate((bonafide, spoof)), kind="stable")
    kept = order < bonafide.size
    starts = np.flatnonzero(np.concatenate(([True], kept[1:] & ~kept[:-1])))
    sizes = np.diff(starts, append=order.size)
    counts = np.add.reduceat(kept, starts, dtype=np.int64)
    return list(zip(counts.tolist(), (sizes - counts).tolist(), strict=True))


def _pooled(blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join neighbours until the share of bona fide rises from block to block; (bona fide, spoof) of each."""
    rising: list[tuple[int, int]] = []
    for kept, refused in blocks:
        while rising and rising[-1][0] * refused >= kept * rising[-1][1]:
            below = rising.pop()
            kept, refused = kept + below[0], refused + below[1]
        rising.append((kept, refused))
    return rising


def _bits(own: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The mean of log2(1 + other / own) over one class, of which each block holds a share own (K,); none counts 0."""
    held = own > 0
    return float(np.sum(own[held] * np.log1p(other[held] / own[held]))) / float(np.log(2))
