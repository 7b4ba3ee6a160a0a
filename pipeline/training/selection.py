"""What training selects by, the dev EER of the deployed score; and what else is measured after each epoch.

The best epoch is that of the lowest dev EER, of equals that of the lower dev loss, then the earlier one. Of the
`average_best` best epochs the good ones are averaged: those with a dev EER below 50 % and within the 95 % interval of
the lowest, as of an error rate of the smaller class (Wilson, "Probable inference", JASA 1927). Where this mean has a
higher dev EER than the best epoch had, the best epoch is taken as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.contracts import Centroids, Labels
from pipeline.core.errors import InputError
from pipeline.core.members import check_centroids
from pipeline.core.sections import WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.metrics.eer import Eer, eer_of
from pipeline.scoring import centroids, scorer
from pipeline.training.history import Epoch, History

Scores = NDArray[np.float32]
Embeddings = Iterable[NDArray[np.float32]]  # (B, E) at a time
SAMPLE = 250  # training trials of a class
NOTHING_LEARNT = 50.0  # percent of dev EER
QUANTILE = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Selection:
    """Which weights a training came to.

    averaged: the good epochs, best first. mean_eer: the dev EER of their mean in percent. best: the best epoch.
    """

    averaged: tuple[int, ...]
    mean_eer: float
    best: Epoch

    @property
    def takes_best(self) -> bool:
        """Whether the mean is worse on dev than the best epoch, which is then taken."""
        return self.mean_eer > self.best.dev_eer

    @property
    def kept(self) -> tuple[int, ...]:
        """The epochs whose mean is the result, in order."""
        return (self.best.epoch,) if self.takes_best else tuple(sorted(self.averaged))

    @property
    def facts(self) -> dict[str, Any]:
        """What was decided, JSON-ready; EERs in percent."""
        return {
            "averaged": sorted(self.averaged),
            "mean_dev_eer": round(self.mean_eer, 5),
            "best_epoch": self.best.epoch,
            "best_dev_eer": round(self.best.dev_eer, 5),
            "taken": "best epoch" if self.takes_best else "mean",
        }


def good_epochs(history: History, count: int, dev: Trials) -> tuple[int, ...]:
    """Of the `count` best epochs those that are good enough to be averaged, best first. The best one always is."""
    best, *others = (history.curves[epoch - 1] for epoch in history.best(count))
    few = min(int(dev.is_bonafide.sum()), int((~dev.is_bonafide).sum()))
    limit = 100 * _upper(best.dev_eer / 100, few)
    good = (line.epoch for line in others if line.dev_eer <= limit and line.dev_eer < NOTHING_LEARNT)
    return (best.epoch, *good)


def _upper(rate: float, trials: int) -> float:
    """The upper end of Wilson's interval of an error rate, a share in 0..1."""
    per = QUANTILE**2 / trials
    return (rate + per / 2 + math.sqrt(per * rate * (1 - rate) + per**2 / 4)) / (1 + per)


def trained_centroids(loss: nn.Module, *, section: str) -> Centroids:
    """The loss's centroids. section: of the parameters, for the message.

    Raises InputError where they are not finite, and where the loss gives something else.
    """
    try:
        found: Any = loss.centroids()  # type: ignore[operator]
    except ValueError as error:  # the last step of an epoch may be the one that makes them infinite
        raise InputError(f"{error}; lower {section}.learning_rate") from None
    check_centroids(loss, found)
    centroids: Centroids = found
    return centroids


def dev_scores(
    embeddings: Iterable[NDArray[np.float32]], found: Centroids, dev: Trials, *, windows: WindowsParams
) -> Scores:
    """The deployed scores (N,) of the dev set, of its embeddings (B, E) in order."""
    return scorer.score_windows(embeddings, centroids.build(found), names=dev.utterance.tolist(), windows=windows)


def dev_eer(scores: Scores, dev: Trials) -> Eer:
    """EER of scores (N,) of the dev set, a share, and its threshold."""
    return eer_of(scores, dev.is_bonafide)


@torch.no_grad()
def dev_loss(loss: nn.Module, embeddings: NDArray[np.float32], dev: Trials, *, device: torch.device) -> float:
    """The loss of embeddings (N, E) of the dev set in eval mode, as if no quality and no speaker were known.

    Of several windows all embeddings (W · N, E) count alike.
    """
    unknown = torch.full((len(embeddings),), -1, device=device)
    is_bonafide = np.tile(dev.is_bonafide, len(embeddings) // len(dev))
    labels = Labels(torch.from_numpy(is_bonafide).to(device), unknown, unknown)
    value: Tensor = loss.eval()(torch.from_numpy(embeddings).to(device), labels)
    return float(value)


def train_sample(train: Trials) -> NDArray[np.int64]:
    """Rows of a training set whose EER is measured: at most `SAMPLE` of each class, the same ones every time."""
    rng = np.random.default_rng(0)
    classes = np.flatnonzero(train.is_bonafide), np.flatnonzero(~train.is_bonafide)
    chosen = [rng.choice(rows, SAMPLE, replace=False) if len(rows) > SAMPLE else rows for rows in classes]
    return np.sort(np.concatenate(chosen))


def train_eer(embeddings: Embeddings, found: Centroids, train: Trials, rows: NDArray[np.int64]) -> float:
    """EER, a share, of the deployed scores of some training trials, from their embeddings (B, E) in order."""
    names = train.utterance[rows].tolist()
    scores = scorer.score_each(embeddings, centroids.build(found), names=names)
    return eer_of(scores, train.is_bonafide[rows]).eer
