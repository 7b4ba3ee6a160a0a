"""What training selects by, the dev EER of the deployed score; and what else is measured after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.contracts import Centroids, Labels
from pipeline.core.errors import InputError
from pipeline.core.members import check_centroids
from pipeline.core.trial_table import Trials
from pipeline.metrics.eer import Eer, eer_of
from pipeline.scoring import centroids, scorer

Scores = NDArray[np.float32]
Embeddings = Iterable[NDArray[np.float32]]  # (B, E) at a time
SAMPLE = 250  # training trials of a class


def trained_centroids(loss: nn.Module, *, section: str) -> Centroids:
    """The loss's centroids. section: of the parameters, for the message.

    Raises InputError where they are not finite, and where the loss gives something else.
    """
    try:
        found: Any = loss.centroids()  # type: ignore[operator]
    except ValueError as error:  # the last step of an epoch may be the one that makes them infinite
        raise InputError(f"{error}; lower {section}.learning_rate") from None
    check_centroids(loss, found)
    centres: Centroids = found
    return centres


def dev_scores(embeddings: Iterable[NDArray[np.float32]], found: Centroids, dev: Trials) -> Scores:
    """The deployed scores (N,) of the dev set, of its embeddings (B, E) in order."""
    return scorer.score_each(embeddings, centroids.build(found), names=dev.utterance.tolist())


def dev_eer(scores: Scores, dev: Trials) -> Eer:
    """EER of scores (N,) of the dev set, a share, and its threshold."""
    return eer_of(scores, dev.is_bonafide)


def seen_by(see: Callable[[NDArray[np.float32]], object], embeddings: Embeddings) -> Iterator[NDArray[np.float32]]:
    """The same embeddings (B, E), shown to a function on their way."""
    for some in embeddings:
        see(some)
        yield some


@torch.no_grad()
def dev_loss(loss: nn.Module, embeddings: NDArray[np.float32], dev: Trials, *, device: torch.device) -> float:
    """The loss of embeddings (N, E) of the dev set in eval mode, as if no quality and no speaker were known."""
    unknown = torch.full((len(dev),), -1, device=device)
    labels = Labels(torch.from_numpy(dev.is_bonafide).to(device), unknown, unknown)
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
