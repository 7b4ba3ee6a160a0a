"""How far a training is: its epochs, where its centroids were, its best weights, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.contracts import Centroids
from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.sections import TrainParams
from pipeline.training.checkpoints import State

COLUMNS = ("epoch", "loss", "dev_loss", "train_eer", "dev_eer")


@dataclass(frozen=True)
class Epoch:
    """One line of the training curves.

    loss: mean of the training steps. dev_eer: percent. seconds: of training and scoring up to its end, by the clock;
    they are no part of what makes two epochs equal. dev_loss: of all dev trials, in eval mode, as if their quality and
    speakers were unknown. train_eer: percent, of a fixed sample of the training set.
    """

    epoch: int
    loss: float
    dev_eer: float
    seconds: float = field(compare=False)
    dev_loss: float = math.nan
    train_eer: float = math.nan

    @property
    def facts(self) -> dict[str, Any]:
        """The line without its seconds, JSON-ready: what two trainings of the same bits agree on."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass
class History:
    """How far a training is: its curves, the centroids (K, E) after each epoch, and its best weights.

    states: by epoch, those of the best weights that are in memory; the others are in the checkpoint.
    """

    curves: list[Epoch] = field(default_factory=list)
    path: list[NDArray[np.float32]] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)

    def add(self, epoch: Epoch, centroids: Centroids, state: State, *, keep: int) -> None:
        """Take note of an epoch; of all states in memory, those of the best epochs and the last stay there."""
        self.curves.append(epoch)
        self.path.append(centroids.vectors.copy())
        self.states[epoch.epoch] = state
        wanted = {epoch.epoch, *self.best(keep)}
        self.states = {number: kept for number, kept in self.states.items() if number in wanted}

    def best(self, count: int) -> list[int]:
        """The epochs of the lowest dev EER, best first; of equals that of the lower dev loss, then the earlier one."""
        return [line.epoch for line in sorted(self.curves, key=_rank)[:count]]

    def done(self, params: TrainParams | FinetuneParams) -> bool:
        """Whether all epochs were trained, or the last `patience` of them brought no lower dev EER."""
        errors = [epoch.dev_eer for epoch in self.curves]
        waited = len(errors) - 1 - errors.index(min(errors)) if errors else 0
        return len(errors) >= params.epochs or waited >= params.patience


def _rank(line: Epoch) -> tuple[float, float, int]:
    return line.dev_eer, line.dev_loss if math.isfinite(line.dev_loss) else math.inf, line.epoch


def average(states: Sequence[Callable[[str], Tensor]], names: Iterable[str]) -> State:
    """Mean of the floating tensors of some states, each by name; counts are taken from the first, the best."""

    def mean(name: str) -> Tensor:
        tensors = [state(name) for state in states]
        return torch.stack(tensors).mean(0) if tensors[0].is_floating_point() else tensors[0]

    return {name: mean(name) for name in names}


def to_csv(curves: Iterable[Mapping[str, Any]]) -> str:
    """Training curves as CSV, a line an epoch."""
    # A fine-tuning from before these columns has none of dev_loss and train_eer.
    lines = [
        f"{line['epoch']},{line['loss']:.6g},{line.get('dev_loss', math.nan):.6g},"
        f"{line.get('train_eer', math.nan):.4f},{line['dev_eer']:.4f}"
        for line in curves
    ]
    return "\n".join([",".join(COLUMNS), *lines]) + "\n"
