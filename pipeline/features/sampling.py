"""What training draws: augmented views, quality levels, and batches that hold both classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN, Labels
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials


@dataclass(frozen=True)
class Augment:
    """The probability that training reads an augmented view instead of the clean one; all views are equally likely."""

    views: tuple[str, ...]
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or (self.probability > 0 and not self.views):
            raise ValueError(f"expected views and a probability from 0 to 1, got {self}")


NO_AUGMENT = Augment((), 0.0)


def level_shift(view: str) -> int:
    """The number to add to the quality level of the clean utterance: -1 for every augmented view, 0 for the clean one.

    A level never falls below 0. Source: Truong et al. (QAMO), arXiv 2509.20679.
    """
    return 0 if view == CLEAN else -1


def thresholds(trials: Trials, *, levels: int, given: Sequence[float] | None) -> tuple[float, ...]:
    """The MOS values between quality levels: as given, or the quantiles that split the bona fide trials evenly.

    Raises InputError where two or more levels are wanted and no bona fide trial has a quality.
    """
    if given is not None:
        return tuple(given)
    known = trials.quality[trials.is_bonafide & ~np.isnan(trials.quality)]
    if levels > 1 and not len(known):
        raise InputError(
            f"expected a quality (MOS) of some bona fide trials to make {levels} levels from, got none; "
            "fill the quality column of the training set, or set levels: 1"
        )
    return tuple(float(q) for q in np.quantile(known, np.arange(1, levels) / levels)) if levels > 1 else ()


def labels(trials: Trials, cuts: Sequence[float]) -> Labels:
    """Labels of all N trials. A MOS equal to a threshold belongs to the level above; an unknown MOS gives level -1.

    Speakers are numbered who have bona fide utterances; all others get -1, because no centre can be made of them.
    """
    level = np.where(np.isnan(trials.quality), -1, np.digitize(trials.quality, np.asarray(cuts, dtype=np.float64)))
    known = set(trials.speaker[trials.is_bonafide].tolist()) - {trial_table.UNKNOWN}
    names = {name: i for i, name in enumerate(sorted(known))}
    return Labels(
        is_bonafide=torch.from_numpy(trials.is_bonafide),
        level=torch.from_numpy(level.astype(np.int64)),
        speaker=torch.tensor([names.get(name, -1) for name in trials.speaker.tolist()]),
    )


def check_levels(labels: Labels, augment: Augment, *, levels: int, where: str) -> None:
    """Every quality level has bona fide, of its own or as the augmented views that training draws lower them.

    where: of the loss in the parameters. Raises InputError with the count of each level: the centroid of a level
    without any would never be trained, and yet be part of every score.
    """
    if levels == 1:
        return
    known = labels.level[labels.is_bonafide & (labels.level >= 0)].cpu()
    counts = torch.bincount(known, minlength=levels).tolist()
    held = {level for level, count in enumerate(counts) if count}
    clean = held if augment.probability < 1 else set()
    lowered = {max(level + level_shift(view), 0) for level in held for view in augment.views if augment.probability}
    if len(clean | lowered) < levels:
        raise InputError(
            f"{where}: expected bona fide of the training set at each of {levels} quality levels, got "
            f"{', '.join(map(str, counts))} from the lowest up and {int(labels.is_bonafide.sum()) - sum(counts)} of "
            "unknown MOS; set other thresholds, or null for quantiles, or let training draw augmented views, which "
            "lower the level by one (extract.views caches them)"
        )


def take(whole: Labels, rows: NDArray[np.int64]) -> Labels:
    """The labels of some rows."""
    index = torch.from_numpy(rows)
    return Labels(whole.is_bonafide[index], whole.level[index], whole.speaker[index])


def batches(
    is_bonafide: NDArray[np.bool_], *, size: int, seed: int, epoch: int, groups: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each batch of an epoch. The batches of `size` hold equal numbers of each class, to within one.

    Every utterance comes once. Where there are fewer bona fide utterances than batches, bona fide ones are repeated, so
    that every batch holds at least one.

    groups: (N,) int, the corpus of each utterance. With it every batch holds equal numbers from each corpus, to within
    one, and a bona fide utterance from each corpus that has any. The largest corpus comes once, and utterances of
    smaller corpora are repeated. Raises InputError where the batch is too small for that.
    """
    rng = np.random.default_rng((seed, epoch))
    count = -(-len(is_bonafide) // size)
    if groups is not None:
        yield from _balanced(is_bonafide, groups, size=size, rng=rng)
        return
    bonafide = rng.permutation(np.flatnonzero(is_bonafide))
    spoof = rng.permutation(np.flatnonzero(~is_bonafide))
    if len(bonafide) < count:
        bonafide = np.resize(bonafide, count)
    # array_split puts the longer parts first. One class is reversed, so that long parts join short parts.
    for some, others in zip(np.array_split(bonafide, count), reversed(np.array_split(spoof, count)), strict=True):
        yield np.concatenate([some, others])


def _balanced(
    is_bonafide: NDArray[np.bool_], groups: NDArray[np.int64], *, size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    corpora = [(np.flatnonzero((groups == g) & is_bonafide), np.flatnonzero((groups == g) & ~is_bonafide))
               for g in np.unique(groups)]  # fmt: skip
    if size < 2 * len(corpora):
        raise InputError(f"train.batch_size: expected at least {2 * len(corpora)} for {len(corpora)} sets, got {size}")
    count = -(-len(corpora) * max(len(bonafide) + len(spoof) for bonafide, spoof in corpora) // size)
    # Every corpus is repeated to this length: that of the longest corpus, counting the bona fide that are repeated.
    length = max(max(len(bonafide), count if len(bonafide) else 0) + len(spoof) for bonafide, spoof in corpora)
    parts: list[list[NDArray[np.int64]]] = []
    for i, (bonafide, spoof) in enumerate(corpora):
        share = round(length * len(bonafide) / (len(bonafide) + len(spoof)))
        share = max(share, count) if len(bonafide) else 0
        share = share if len(spoof) else length
        some = np.array_split(_repeated(bonafide, share, rng), count)
        others = np.array_split(_repeated(spoof, length - share, rng), count)[::-1]
        turn = -1 if i % 2 else 1  # reverse every other corpus, so that its long parts join short parts
        parts += [some[::turn], others[::turn]]
    for batch in zip(*parts, strict=True):
        yield np.concatenate(batch)


def _repeated(rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `length` of the rows in random order; every row comes once before any row comes again."""
    if not len(rows):
        return rows
    return np.concatenate([rng.permutation(rows) for _ in range(-(-length // len(rows)))] or [rows])[:length]
