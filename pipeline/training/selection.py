"""What training selects by: the dev EER of the deployed score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.members import check_centroids
from pipeline.core.trial_table import Trials
from pipeline.metrics.eer import Eer, eer_of
from pipeline.scoring import centroids, scorer

Scores = NDArray[np.float32]


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
