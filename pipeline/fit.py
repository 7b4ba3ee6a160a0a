"""The training loop of stage two: any backend with any loss, on cached features.

Adam with three learning rates, a stratified sampler, early stopping on the dev EER of the deployed score, the average
of the k best checkpoints. Every draw is seeded by (seed) or (seed, epoch): the same seed on the same machine gives the
same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from tqdm import tqdm

from pipeline import centroids, dataset, scoring
from pipeline.contracts import Centroids, Enrols, Labels
from pipeline.dataset import Dataset
from pipeline.det import det_points
from pipeline.errors import InputError
from pipeline.layers import LayerWeights
from pipeline.metrics.eer import Eer, official_eer
from pipeline.params import LearningRates, TrainParams

State = dict[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One line of the training curves: mean training loss, dev EER in percent."""

    epoch: int
    loss: float
    dev_eer: float


@dataclass(frozen=True)
class Fitted:
    """A trained system, and how it came about.

    backend: trained module with the averaged weights. centroids: those of the averaged loss. curves: every epoch.
    kept: the epochs that were averaged. dev_eer: percent, of the averaged system; dev_threshold: the score there.
    parameters: learned scalars of backend and loss.
    """

    backend: nn.Module
    centroids: Centroids
    curves: tuple[Epoch, ...]
    kept: tuple[int, ...]
    dev_eer: float
    dev_threshold: float
    parameters: int


class Adam:
    """Adam (Kingma and Ba, 2015) with a learning rate a group, on torch's functional form.

    torch.optim.Adam is the same arithmetic, but importing the compiler that it registers with takes over a second,
    which is a third of what a small run costs.
    """

    def __init__(self, groups: list[tuple[list[nn.Parameter], float]], *, weight_decay: float) -> None:
        self._weight_decay = weight_decay
        self._groups = [
            (parameters, rate, [(torch.zeros_like(p), torch.zeros_like(p), torch.tensor(0.0)) for p in parameters])
            for parameters, rate in groups
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, and clear the gradients."""
        for parameters, rate, states in self._groups:
            live = [(p, p.grad, *state) for p, state in zip(parameters, states, strict=True) if p.grad is not None]
            if live:
                values, gradients, means, squares, steps = (list(column) for column in zip(*live, strict=True))
                adam(
                    values, gradients, means, squares, [], steps,
                    foreach=None, fused=None, capturable=False, differentiable=False, amsgrad=False, maximize=False,
                    beta1=0.9, beta2=0.999, eps=1e-8, lr=rate, weight_decay=self._weight_decay,
                )  # fmt: skip
            for parameter in parameters:
                parameter.grad = None


def groups(backend: nn.Module, loss: nn.Module, rates: LearningRates) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters with their learning rates: the loss's vectors, the layer weightings, the rest of the backend."""
    weightings = [p for module in backend.modules() if isinstance(module, LayerWeights) for p in module.parameters()]
    special = {id(p) for p in weightings}
    rest = [p for p in backend.parameters() if id(p) not in special]
    return [(rest, rates.backend), (list(loss.parameters()), rates.centroids), (weightings, rates.layers)]


def fit(
    make_backend: Any, make_loss: Any, *, train: Dataset, dev: Dataset, labels: Labels, params: TrainParams
) -> Fitted:
    """Train a backend with a loss and select by the dev EER of the deployed score.

    Args:
        make_backend: () -> Backend. make_loss: (embedding_dim=) -> Loss; both are called under the run's own seed.
        labels: of the training set, tensors of length N.

    Raises InputError where the loss stops being finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        backend: nn.Module = make_backend()
        loss: nn.Module = make_loss(embedding_dim=backend.embedding_dim)
        curves, best = _epochs(backend, loss, train=train, dev=dev, labels=labels, params=params)
    backend.load_state_dict(average([states[0] for _, _, states in best]))
    loss.load_state_dict(average([states[1] for _, _, states in best]))
    if isinstance(loss, Enrols):
        loss.enrol(*_enrolment(backend, train, labels))
    dev_error = dev_eer(backend, loss, dev)
    return Fitted(
        backend=backend.eval(),
        centroids=_centroids(loss),
        curves=tuple(curves),
        kept=tuple(sorted(epoch for _, epoch, _ in best)),
        dev_eer=100 * dev_error.eer,
        dev_threshold=float(str(np.float32(dev_error.threshold))),  # as a score file would hold it
        parameters=sum(p.numel() for module in (backend, loss) for p in module.parameters()),
    )


def _centroids(loss: nn.Module) -> Centroids:
    found: Centroids = loss.centroids()  # type: ignore[operator]
    return found


Best = list[tuple[float, int, tuple[State, State]]]  # dev EER, epoch, states of backend and loss


def _epochs(
    backend: nn.Module, loss: nn.Module, *, train: Dataset, dev: Dataset, labels: Labels, params: TrainParams
) -> tuple[list[Epoch], Best]:
    optimizer = Adam(groups(backend, loss, params.learning_rate), weight_decay=params.weight_decay)
    curves: list[Epoch] = []
    best: Best = []
    lowest, waited = math.inf, 0
    with tqdm(total=params.epochs, unit="epoch", disable=None) as bar:
        for epoch in range(1, params.epochs + 1):
            if isinstance(loss, Enrols):
                loss.start_epoch(epoch, partial(_enrolment, backend, train, labels))
            mean = _train_epoch(backend, loss, optimizer, train=train, labels=labels, params=params, epoch=epoch)
            eer_now = 100 * dev_eer(backend, loss, dev).eer
            curves.append(Epoch(epoch, mean, eer_now))
            best.append((eer_now, epoch, (_copy(backend), _copy(loss))))
            # among equals the later one: it has been trained longer
            best = sorted(best, key=lambda item: (item[0], -item[1]))[: params.average_best]
            bar.set_postfix(loss=f"{mean:.3f}", dev_eer=f"{eer_now:.2f} %")
            bar.update()
            lowest, waited = (eer_now, 0) if eer_now < lowest else (lowest, waited + 1)
            if waited >= params.patience:
                break
    return curves, best


def _train_epoch(
    backend: nn.Module,
    loss: nn.Module,
    optimizer: Adam,
    *,
    train: Dataset,
    labels: Labels,
    params: TrainParams,
    epoch: int,
) -> float:
    """One pass over the training set; the mean loss over its batches."""
    backend.train()
    loss.train()
    torch.manual_seed((params.seed << 20) + epoch)  # dropout
    losses: list[float] = []
    for rows in dataset.batches(train.trials.is_bonafide, size=params.batch_size, seed=params.seed, epoch=epoch):
        value: Tensor = loss(backend(*train.features(rows)), dataset.take(labels, rows))
        if not math.isfinite(value.item()):
            raise InputError(f"epoch {epoch}: the loss is {value.item()}; lower train.learning_rate")
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def _enrolment(backend: nn.Module, train: Dataset, labels: Labels) -> tuple[Tensor, Tensor]:
    """Embeddings (M, E) of all bona fide training utterances, in eval mode, and their speakers (M,)."""
    backend.eval()
    rows = np.flatnonzero(train.trials.is_bonafide)
    parts = np.array_split(rows, -(-len(rows) // scoring.BATCH))
    return torch.cat([backend(*train.features(part)) for part in parts]), dataset.take(labels, rows).speaker


def dev_eer(backend: nn.Module, loss: nn.Module, dev: Dataset) -> Eer:
    """EER of the deployed score on the dev set, a share, and its threshold."""
    scores = scoring.score_all(backend, centroids.build(_centroids(loss)), dev).astype(float)
    return official_eer(det_points(scores[dev.trials.is_bonafide], scores[~dev.trials.is_bonafide]))


def _copy(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def average(states: list[State]) -> State:
    """Mean of the floating tensors of some checkpoints; counts are taken from the first, the best."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
