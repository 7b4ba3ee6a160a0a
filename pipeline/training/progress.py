"""How far a training is: its epochs, where its centroids were, its best states, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.contracts import Centroids
from pipeline.core.params import TrainParams
from pipeline.training.checkpoints import State

Best = list[tuple[float, int, tuple[State, State]]]  # dev EER, epoch, states of backend and loss


@dataclass(frozen=True)
class Epoch:
    """One line of the training curves: mean training loss, dev EER in percent, seconds of training up to its end.

    Seconds count training and dev scoring, by the clock; they are no part of what makes two epochs equal.
    """

    epoch: int
    loss: float
    dev_eer: float
    seconds: float = field(compare=False)


@dataclass
class Progress:
    """How far a training is: its curves, the centroids (K, E) after each epoch, and the best states so far."""

    curves: list[Epoch] = field(default_factory=list)
    path: list[NDArray[np.float32]] = field(default_factory=list)
    best: Best = field(default_factory=list)

    def add(self, epoch: Epoch, centroids: Centroids, states: tuple[State, State], *, keep: int) -> None:
        """Take note of an epoch; of equally good ones the later is kept: it has been trained longer."""
        self.curves.append(epoch)
        self.path.append(centroids.vectors.copy())
        self.best.append((epoch.dev_eer, epoch.epoch, states))
        self.best = sorted(self.best, key=lambda item: (item[0], -item[1]))[:keep]

    def done(self, params: TrainParams) -> bool:
        """Whether all epochs were trained, or the last `patience` of them brought no lower dev EER."""
        errors = [epoch.dev_eer for epoch in self.curves]
        waited = len(errors) - 1 - errors.index(min(errors)) if errors else 0
        return len(errors) >= params.epochs or waited >= params.patience


def average(states: list[State]) -> State:
    """Mean of the floating tensors of some checkpoints; counts are taken from the first, the best."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
