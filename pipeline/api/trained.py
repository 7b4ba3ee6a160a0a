"""A trained backend with its centroids: trained here, or read from a run on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.api.feature_set import PARAMS, RECEIPTS, TRIALS, FeatureSet, features
from pipeline.core import params_file
from pipeline.core.contracts import Centroids, Tap
from pipeline.core.errors import InputError
from pipeline.features.dataset import SAME_KIND, Reads
from pipeline.scoring import centroids, runs, scorer
from pipeline.training import cells, heads
from pipeline.training.history import Epoch

RUNS = Path("data/runs")


@dataclass(frozen=True)
class Trained:
    """A backend in eval mode and the centroids that its embeddings are compared with.

    layers: that it reads. reads: frames, or pooled features. kind: of the features, as `Dataset.kind`.
    curves: the epochs of its training; empty for a run from disk. dev_eer: percent.
    """

    backend: nn.Module
    centroids: Centroids
    layers: tuple[Tap, ...]
    reads: Reads
    kind: dict[str, object]
    dev_eer: float
    curves: tuple[Epoch, ...] = ()

    def features(self, name: str) -> FeatureSet:
        """The features of a set that this backend reads."""
        return features(name, layers=self.layers, pooled=self.reads == "pooled")

    def embed(self, data: FeatureSet) -> NDArray[np.float32]:
        """Embeddings (N, E) of a set: of the first window of each utterance, with attention of all its windows.

        Raises InputError for features of another kind than those of training.
        """
        if data.data.kind != self.kind:
            raise InputError(f"{data.data.name}: expected features of {self.kind}, got {data.data.kind}; {SAME_KIND}")
        return np.concatenate(list(scorer.embed(self.backend, data.data)))

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (N,) of embeddings (N, E); higher means more bona fide."""
        names = [str(row) for row in range(len(embeddings))]
        return scorer.score(np.asarray(embeddings, dtype=np.float32), centroids.build(self.centroids), names=names)


def train(backend: str, loss: str, *, layers: str = "all", views: str = "clean", seed: int = 1) -> Trained:
    """Train one cell on `train.set`, selected on dev: the same numbers as `dvc repro train@...`; writes nothing.

    The names are those of params.yaml, which also holds the parameters.
    Raises InputError for an unknown name, missing features, or a loss that stops being finite.
    """
    settings = params_file.load(PARAMS)
    cell = cells.find(settings, backend=backend, loss=loss, layers=layers, views=views)
    learnt, dev = (
        heads.open_features(cell, settings, name, trials=TRIALS, receipt=RECEIPTS / f"{name}.json")
        for name in (settings.train.set, "dev")
    )
    fitted, _ = heads.fit_cell(cell, train=learnt, dev=dev, params=settings.train, seed=seed)
    return Trained(
        fitted.backend, fitted.centroids, cell.layers, cell.backend.reads, learnt.kind, fitted.dev_eer, fitted.curves
    )


def run(name: str) -> Trained:
    """A trained run of the project, such as `linear-qamo-all-clean-1`. Raises InputError where there is none."""
    folder = RUNS / name
    facts = runs.card(folder)
    kind = facts["kind"]
    return Trained(
        runs.backend(folder), runs.centroids(folder), tuple(kind["layers"]), facts["reads"], kind, facts["dev_eer"]
    )
