"""What training selects by: the dev EER of the deployed score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.features.dataset import Dataset
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import Eer, official_eer
from pipeline.scoring import centroids, scorer

Scores = NDArray[np.float32]


def trained_centroids(loss: nn.Module) -> Centroids:
    """The loss's centroids. Raises InputError where they are not finite."""
    try:
        found: Centroids = loss.centroids()  # type: ignore[operator]
    except ValueError as error:  # the last step of an epoch may be the one that makes them infinite
        raise InputError(f"{error}; lower train.learning_rate") from None
    return found


def dev_scores(backend: nn.Module, loss: nn.Module, dev: Dataset) -> Scores:
    """The deployed scores (N,) of the dev set."""
    return scorer.score_all(backend, centroids.build(trained_centroids(loss)), dev)


def dev_eer(scores: Scores, dev: Dataset) -> Eer:
    """EER of scores (N,) of the dev set, a share, and its threshold."""
    values = scores.astype(float)
    return official_eer(det_points(values[dev.trials.is_bonafide], values[~dev.trials.is_bonafide]))
