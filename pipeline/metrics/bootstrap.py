"""Bootstrap confidence intervals of detection metrics, and whether two systems differ by more than chance.

Efron and Tibshirani: "An Introduction to the Bootstrap", 1993: the percentile interval (chapter 13) and resampling
each of two samples on its own (chapter 8). Trials of one speaker resemble each other, so intervals that resample
trials are too narrow for conclusions about other speakers. For these, whole speakers are resampled, as Ferrer and Riera
advise ("Confidence Intervals for evaluation in machine learning", 2022).

A fold never builds its scores. The sorted trials are cut once into K blocks, each with bona fide first and spoof after
them. A resample is two counts a block, of drawn bona fide and of drawn spoof; the ends of the blocks are the lower
corners of its DET staircase. The DET curve does not depend on which trials of a block are drawn, so for large blocks
(such as the many spoof below almost all bona fide) only their number is drawn. Both are exact.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.det import checked

MOST_THREADS = 8  # each holds up to 20 bytes a trial
FEW = 3_000  # trials, up to which threads save nothing
LARGE = 64  # trials, from where on one binomial draw takes less time than one draw a trial

# A metric of DET points: (FRR (P,), FAR (P,)) -> value. It gets the lower corners of a resample's staircase, where any
# cost that grows with either rate is least, and every point from the corner before FRR = FAR to the one after. With
# these the official EER, min t-DCF and min DCF are bit for bit those of all points of the resample. Metrics that need
# other points, such as an area under the curve, would be wrong.
Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], float]

Value = TypeVar("Value")

_Counts = NDArray[np.int64] | NDArray[np.float64]  # (K,) how many trials of one class were drawn from each block
# A random generator -> for each system, the counts of the bona fide and of the spoof of one resample of the trials.
_Draw = Callable[[np.random.Generator], list[tuple[_Counts, _Counts]]]


@dataclass(frozen=True)
class Interval:
    """The ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The statistic of system A minus that of B, its confidence interval, and the p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class _Walk:
    """The sorted trials of one system in blocks. bonafide (B,), spoof (S,): the block of each trial, in their order."""

    bonafide: NDArray[np.int64]
    spoof: NDArray[np.int64]
    blocks: int


@dataclass(frozen=True)
class _Cells:
    """The n trials of one class in cells: every system has all trials of a cell in one block.

    share: (1 + C,) of all trials: in any of the small cells, then in each of the C large ones. small: (systems, M) the
    blocks of each trial in a small cell. large: (systems, C) the blocks of each large cell. blocks: each system's K.
    """

    trials: int
    share: NDArray[np.float64]
    small: NDArray[np.int64]
    large: NDArray[np.int64]
    blocks: list[int]

    def draw(self, rng: np.random.Generator) -> list[_Counts]:
        """Each system's counts of n trials drawn with replacement: how many of each large cell, which of the others."""
        times = rng.multinomial(self.trials, self.share)  # (1 + C,)
        drawn = rng.integers(self.small.shape[1], size=times[0])
        return [
            np.bincount(small.take(drawn), minlength=blocks) + np.bincount(large, weights=times[1:], minlength=blocks)
            for small, large, blocks in zip(self.small, self.large, self.blocks, strict=True)
        ]


def intervals(
    scores: ArrayLike,
    is_bonafide: ArrayLike,
    statistics: Mapping[str, Statistic],
    *,
    folds: int,
    seed: int,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> dict[str, Interval]:
    """The percentile interval of each statistic over resamples of the trials, all from the same resamples.

    Without groups, as many bona fide and as many spoof as there are, are drawn with replacement from their own class.
    With groups, whole groups are drawn with replacement among their like: those with both classes, only bona fide,
    only spoof. So no resample ever lacks a class. A statistic that is the same in all resamples gets an interval of
    width 0, although it is uncertain too: after 0 errors of n, the error rate may still be 3 / n. The interval of a
    minimum over thresholds lies too low. For both see `binomial`.

    Args:
        scores: (N,) higher = more bona fide.
        is_bonafide: (N,) bool.
        statistics: metrics of DET points by name, see `Statistic`.
        folds: number of resamples; fold k is drawn from (seed, k), so neither threads nor more folds change it.
        seed: not negative.
        groups: (N,) names, such as speakers; a trial of its own needs a name of its own.
        level: the confidence, between 0 and 1.

    Raises:
        ValueError: an empty class, nan, unequal lengths, no fold, a level outside 0..1, a statistic that is nan, or
            groups none of which has its like.
    """
    _check(folds, level)
    draw = _draw([_walk(scores, is_bonafide)], np.asarray(is_bonafide), groups)
    found = _resampled(draw, [*statistics.values()], trials=np.size(is_bonafide), folds=folds, seed=seed)
    values = found[:, 0]  # (folds, statistics)
    return {name: _interval(values[:, column], level) for column, name in enumerate(statistics)}


def paired(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    is_bonafide: ArrayLike,
    statistic: Statistic,
    *,
    folds: int,
    seed: int,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Paired:
    """How a statistic of two systems differs on the same trials: every resample takes the same trials from both.

    The two-sided p-value is twice the smaller share of resamples whose difference is at most, or at least, 0, the
    sample itself counted among them: never below 2 / (folds + 1), and 1 for a system against itself.

    Args:
        scores_a, scores_b: (N,) each, of the same trials in the same order.
        is_bonafide, folds, seed, groups, level: as `intervals` takes them.
        statistic: a metric of DET points, see `Statistic`.

    Raises:
        ValueError: as `intervals`.
    """
    _check(folds, level)
    walks = [_walk(scores_a, is_bonafide), _walk(scores_b, is_bonafide)]
    draw = _draw(walks, np.asarray(is_bonafide), groups)
    resampled = _resampled(draw, [statistic], trials=np.size(is_bonafide), folds=folds, seed=seed)
    values = resampled[:, :, 0]  # (folds, 2)
    found = [statistic(*_det(*_counts(walk, None, None))) for walk in walks]
    differences = values[:, 0] - values[:, 1]
    ends = _interval(differences, level)
    beyond = 1 + int(min(np.sum(differences <= 0), np.sum(differences >= 0)))
    return Paired(
        difference=float(found[0] - found[1]),
        low=ends.low,
        high=ends.high,
        p_value=min(1.0, 2 * beyond / (folds + 1)),
    )


def interval_of_means(
    classes: Sequence[NDArray[np.float64]], *, folds: int, seed: int, level: float = 0.95
) -> Interval:
    """The percentile interval of the sum of the means of several samples, each of which is resampled on its own.

    Args:
        classes: samples (n,) of any lengths ≥ 1, such as the costs of the bona fide and those of the spoof trials.
        folds, seed, level: as `intervals` takes them.

    Raises:
        ValueError: no fold, or a level outside 0..1.
    """
    _check(folds, level)

    def value(fold: int) -> float:
        rng = np.random.default_rng((seed, fold))
        return float(sum(values.take(rng.integers(values.size, size=values.size)).mean() for values in classes))

    trials = sum(values.size for values in classes)
    return _interval(np.array(_for_all_folds(value, folds, trials=trials)), level)


def _check(folds: int, level: float) -> None:
    if folds < 1:
        raise ValueError(f"expected folds ≥ 1, got {folds}")
    if not 0 < level < 1:
        raise ValueError(f"expected 0 < level < 1, got {level}")


def _walk(scores: ArrayLike, is_bonafide: ArrayLike) -> _Walk:
    """Sort as `det_points` does, and start a block wherever a bona fide follows a spoof."""
    values, chosen = np.asarray(scores), np.asarray(is_bonafide)
    if chosen.dtype != np.bool_ or values.ndim != 1 or values.shape != chosen.shape:
        raise ValueError(
            f"expected scores (N,) and is_bonafide (N,) of bool, "
            f"got {values.shape} and {chosen.shape} of {chosen.dtype}"
        )
    kept, refused = checked("bona fide", values[chosen]), checked("spoof", values[~chosen])
    order = np.argsort(np.concatenate((kept, refused)), kind="stable")  # (N,)
    bonafide = order < kept.size
    starts = np.concatenate(([True], bonafide[1:] & ~bonafide[:-1]))
    block = np.empty(order.size, dtype=np.int64)
    block[order] = np.cumsum(starts) - 1
    return _Walk(bonafide=block[: kept.size], spoof=block[kept.size :], blocks=int(starts.sum()))


def _counts(
    walk: _Walk, bonafide: NDArray[np.float64] | None, spoof: NDArray[np.float64] | None
) -> tuple[_Counts, _Counts]:
    """The counts of trials that were drawn so many times, (B,) and (S,); None: once each."""
    return (
        np.bincount(walk.bonafide, weights=bonafide, minlength=walk.blocks),
        np.bincount(walk.spoof, weights=spoof, minlength=walk.blocks),
    )


def _det(bonafide: _Counts, spoof: _Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FRR and FAR of a resample: (0, 1), the end of every block, and all points of the block in which they cross."""
    rejected = np.concatenate(([0.0], np.cumsum(bonafide)))  # (K + 1,)
    refused = np.concatenate(([0.0], np.cumsum(spoof)))
    kept, all_spoof = rejected[-1], refused[-1]
    accepted = all_spoof - refused
    after = int(np.argmax(rejected / kept >= accepted / all_spoof))  # not 0: that end is (0, 1)
    rising = np.arange(rejected[after - 1], rejected[after])  # the block's bona fide go first, one by one
    falling = np.arange(accepted[after - 1], accepted[after], -1.0)
    inside = (
        np.concatenate((rising, np.full(falling.size, rejected[after]))),
        np.concatenate((np.full(rising.size, accepted[after - 1]), falling)),
    )
    frr = np.concatenate((rejected[: after - 1], inside[0], rejected[after:])) / kept
    far = np.concatenate((accepted[: after - 1], inside[1], accepted[after:])) / all_spoof
    return frr, far


def _draw(walks: Sequence[_Walk], is_bonafide: NDArray[np.bool_], groups: ArrayLike | None) -> _Draw:
    if groups is None:
        return _draw_trials(walks)
    names = np.asarray(groups)
    if names.shape != is_bonafide.shape:
        raise ValueError(f"expected groups {is_bonafide.shape}, one name a trial, got {names.shape}")
    return _draw_groups(walks, is_bonafide, names)


def _draw_trials(walks: Sequence[_Walk]) -> _Draw:
    blocks = [walk.blocks for walk in walks]
    bonafide = _cells(np.stack([walk.bonafide for walk in walks]), blocks)
    spoof = _cells(np.stack([walk.spoof for walk in walks]), blocks)
    return lambda rng: list(zip(bonafide.draw(rng), spoof.draw(rng), strict=True))


def _cells(block: NDArray[np.int64], blocks: list[int]) -> _Cells:
    """The cells of a class whose trials lie in these blocks (systems, n). The order of the systems plays no part."""
    number = np.ravel_multi_index(tuple(block), blocks)  # (n,) one for all systems
    _, first, cell, size = np.unique(number, return_index=True, return_inverse=True, return_counts=True)
    large = np.flatnonzero(size >= LARGE)
    large = large[np.argsort(first[large])]
    small = block[:, size[cell] < LARGE]
    return _Cells(
        trials=number.size,
        share=np.concatenate(([small.shape[1]], size[large])) / number.size,
        small=small,
        large=block[:, first[large]],
        blocks=blocks,
    )


def _draw_groups(walks: Sequence[_Walk], is_bonafide: NDArray[np.bool_], names: NDArray[np.generic]) -> _Draw:
    """Whole groups, in strata: those with both classes, with bona fide only, with spoof only."""
    group = np.unique(names, return_inverse=True)[1]  # (N,) the group's number
    kind = np.zeros(group.max() + 1, dtype=np.int64)  # (G,) 1: bona fide only, 2: spoof only, 3: both
    np.bitwise_or.at(kind, group, np.where(is_bonafide, 1, 2))
    strata = [members for members in (np.flatnonzero(kind == which) for which in (3, 1, 2)) if members.size]
    if all(members.size == 1 for members in strata):
        raise ValueError(f"expected at least two groups that hold the same classes, got {kind.size} group(s) in all")
    bonafide, spoof = group[is_bonafide], group[~is_bonafide]

    def draw(rng: np.random.Generator) -> list[tuple[_Counts, _Counts]]:
        times = np.empty(kind.size)  # (G,)
        for members in strata:
            times[members] = np.bincount(rng.integers(members.size, size=members.size), minlength=members.size)
        kept, refused = times[bonafide], times[spoof]  # (B,), (S,) how often each trial was drawn
        return [_counts(walk, kept, refused) for walk in walks]

    return draw


def _resampled(
    draw: _Draw, statistics: Sequence[Statistic], *, trials: int, folds: int, seed: int
) -> NDArray[np.float64]:
    """Every statistic of every system on every resample: (folds, systems, statistics)."""

    def values(fold: int) -> list[list[float]]:
        points = [_det(*counts) for counts in draw(np.random.default_rng((seed, fold)))]
        return [[statistic(*point) for statistic in statistics] for point in points]

    found = np.array(_for_all_folds(values, folds, trials=trials))
    if np.isnan(found).any():
        raise ValueError(f"expected statistics that are numbers, got nan in {np.isnan(found).sum()} of {found.size}")
    return found


def _for_all_folds(value: Callable[[int], Value], folds: int, *, trials: int) -> list[Value]:
    """The values of the folds 0, 1, ..., in threads: NumPy lets go of the interpreter while it draws and sums.

    Of few trials it takes so little time for that that the threads would wait for each other.
    """
    if trials <= FEW:
        return [value(fold) for fold in range(folds)]
    with ThreadPoolExecutor(max_workers=min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(value, range(folds)))


def _interval(values: NDArray[np.float64], level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(low=float(low), high=float(high))
