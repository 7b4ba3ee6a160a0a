"""Stage two: any backend with any loss, on cached features.

A stratified sampler, augmented views that are cached; the same bits whether features are read ahead or held.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN, Labels
from pipeline.core.devices import device_of
from pipeline.core.errors import InputError
from pipeline.core.members import check_embeddings, check_loss
from pipeline.core.params import Params
from pipeline.core.sections import TrainParams, WindowsParams
from pipeline.features import dataset, sampling, sources, streaming
from pipeline.features.dataset import Dataset
from pipeline.features.sampling import NO_AUGMENT, Augment
from pipeline.features.streaming import Batch
from pipeline.scoring import scorer
from pipeline.scoring.attention import over_windows
from pipeline.training import adam, cells, checkpoints, drawing, history, loop, selection, together
from pipeline.training.adam import Groups
from pipeline.training.cells import Cell
from pipeline.training.loop import Fitted, Learner
from pipeline.training.together import ALONE, Seat, Stops


class Head(nn.Module):
    """A backend and a loss in one module."""

    def __init__(self, backend: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.backend = backend
        self.loss = loss


@dataclass(frozen=True, kw_only=True)
class HeadLearner(Learner):
    """A backend and a loss to train on cached features. labels: on the device. seat: among those that take turns."""

    params: TrainParams
    features: Dataset
    dev_features: Dataset
    seat: Seat = ALONE
    section: str = "train"

    @property
    def windows(self) -> WindowsParams:
        """Those of dev and of the training set, which agree."""
        return self.dev_features.windows

    @cached_property
    def identity(self) -> str:
        """Fingerprint of all that the result depends on, to be taken before the first step."""
        tensors = self.system.state_dict() | vars(self.labels) | {"dev": torch.from_numpy(self.dev.is_bonafide)}
        if self.features.groups is not None:
            tensors["groups"] = torch.from_numpy(self.features.groups)
        facts = {
            "params": self.params.model_dump(),
            "seed": self.seed,
            "augment": dataclasses.asdict(self.augment),
            "device": self.device.type,
            "data": [[data.kind, data.digest, data.views] for data in (self.features, self.dev_features)],
            "system": checkpoints.facts_of(self.system),
            "code": [
                checkpoints.code_of(Path(str(module.__file__)))
                for module in (dataset, sampling, sources, scorer, adam, drawing, history, loop, selection, together)
            ],
        }
        return checkpoints.fingerprint(facts, tensors)

    def groups(self) -> Groups:
        """The parameters that learn, with their learning rates."""
        return adam.groups(self.system.backend, self.system.loss, self.params.learning_rate)

    def losses(self, epoch: int) -> Generator[Tensor]:
        """For each step of an epoch, in order, add up the gradients and yield the loss, detached."""
        views, labels = self.drawn(epoch)
        windows = drawing.drawn_windows(len(views), self.features.windows.apart, seed=self.seed, epoch=epoch)
        places = np.array([self.features.place(name) for name in (*self.augment.views, CLEAN)])  # clean is number -1
        addresses = np.arange(len(views)) + len(views) * (places[views] + windows)
        order = list(
            sampling.batches(
                self.train.is_bonafide,
                size=self.params.batch_size,
                seed=self.seed,
                epoch=epoch,
                groups=self.features.groups,
            )
        )
        wanted = (addresses[rows] for rows in order)
        key = ("train", epoch, self.seed, self.augment, self.params.batch_size)
        stream = self.seat.stream(self.features.source, wanted, device=self.device, key=key)
        with contextlib.closing(stream) as batches:
            for batch, rows in zip(batches, order, strict=True):
                yield self.loss(batch, sampling.take(labels, rows))

    def loss(self, batch: Batch, labels: Labels) -> Tensor:
        """The loss of a batch, detached; its gradients are added up."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bfloat16"):
            embeddings = self.system.backend(*batch)
        check_embeddings(self.system.backend, embeddings, count=len(labels.level))
        value: Tensor = self.system.loss(embeddings, labels)
        check_loss(self.system.loss, value)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def embed_train(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """Embeddings (B, E) of the clean features of some training trials, in order."""
        self.system.backend.eval()
        parts = np.array_split(rows, -(-len(rows) // scorer.BATCH))
        with contextlib.closing(streaming.stream(self.features.source, parts, device=self.device)) as batches:
            for batch in batches:
                yield self.system.backend(*batch).clone()

    def embed_dev(self, *, epoch: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Embeddings (B, E) of the dev set, in order, of all first windows, then of all second ones, and on.

        epoch: the one that ends with this pass, None for another one.
        """
        count = self.windows.apart
        if epoch is None:
            return scorer.embed(self.system.backend, self.dev_features, views=count)
        stream = partial(self.seat.stream, key=("dev", epoch))
        return scorer.embed(self.system.backend, self.dev_features, stream=stream, views=count)

    def now(self) -> float:
        """A clock in seconds that stands still while other trainings have their turn."""
        return self.seat.now()


def fit(make_backend: Any, make_loss: Any, **given: Any) -> Fitted:
    """Train a backend with a loss as `fit_steps` says, without a stop."""
    fitted: Fitted = together.alone(fit_steps(make_backend, make_loss, **given))
    return fitted


def fit_steps(
    make_backend: Any,
    make_loss: Any,
    *,
    train: Dataset,
    dev: Dataset,
    labels: Labels,
    params: TrainParams,
    seed: int,
    augment: Augment = NO_AUGMENT,
    checkpoint: Path | None = None,
    seat: Seat = ALONE,
    how: Callable[..., Stops[Any]] = loop.steps,
) -> Stops[Any]:
    """Train a backend with a loss and select by the dev EER of the deployed score, with a stop at each batch.

    Args:
        make_backend: () -> Backend. make_loss: (embedding_dim=) -> Loss; both are called under the run's own seed.
        train: where it is of several sets (`dataset.join`), every batch holds them in equal shares.
        labels: of the training set, tensors of length N.
        seed: of the initial weights, the order of batches, dropout, and the draws of views.
        augment: views that the training set has, drawn for training alone.
        checkpoint: folder to go on from, see `loop.train`. seat: among trainings that take turns.
        how: `loop.steps`, which gives a `Fitted`; or `loop.begin` with its epoch, which gives the curves so far.

    Raises InputError where the loss stops being finite, or the device that is asked for is not there.
    """
    device = device_of(params.device, key="train.device")
    with loop.seeded(seed, device):
        backend = over_windows(make_backend(), train.windows)
        loss: nn.Module = make_loss(embedding_dim=backend.embedding_dim)
        learner = HeadLearner(
            system=Head(backend, loss).to(device),
            train=train.trials,
            dev=dev.trials,
            features=train,
            dev_features=dev,
            labels=Labels(**{name: tensor.to(device) for name, tensor in vars(labels).items()}),
            params=params,
            seed=seed,
            augment=augment,
            device=device,
            seat=seat,
        )
        return (yield from how(learner, checkpoint=checkpoint))


def open_features(cell: Cell, settings: Params, name: str, *, trials: Path, receipt: Path) -> Dataset:
    """The features of a set that a cell reads; of the training set also its augmented views.

    trials: the folder with <name>.csv. receipt: of the set, with at least these layers and views.
    """
    return dataset.open_set(
        receipt,
        trial_table.read(trials / f"{name}.csv"),
        root=settings.features.folder,
        reads=cell.backend.reads,
        layers=cell.layers,
        views=cell.views.draw if name == settings.train.set else (),
        hold=settings.dataset.hold,
        device=str(device_of(settings.train.device, key="train.device")),
    )


def fit_cell(cell: Cell, **given: Any) -> tuple[Fitted, tuple[float, ...]]:
    """Train a cell of the grid as `fit_cell_steps` says, without a stop."""
    return together.alone(fit_cell_steps(cell, **given))


def fit_cell_steps(
    cell: Cell,
    *,
    train: Dataset,
    dev: Dataset,
    params: TrainParams,
    seed: int,
    checkpoint: Path | None = None,
    seat: Seat = ALONE,
    how: Callable[..., Stops[Any]] = loop.steps,
) -> Stops[tuple[Any, tuple[float, ...]]]:
    """Train a cell of the grid, see `fit_steps`; also give the MOS values at which its quality levels part.

    Raises InputError, beside what `fit_steps` raises, where train and dev have features of two kinds, or a quality
    level has no bona fide.
    """
    if train.kind != dev.kind:
        raise InputError(f"{train.name} has features of {train.kind}, dev of {dev.kind}; {dataset.SAME_KIND}")
    cuts, labels = cells.quality_labels(cell, train.trials)
    speakers = int(labels.speaker.max()) + 1
    fitted = yield from fit_steps(
        partial(cell.make_backend, layers=len(train.layers), channels=train.channels),
        partial(cell.make_loss, speakers=speakers, layers=len(train.layers)),
        train=train,
        dev=dev,
        labels=labels,
        params=params,
        seed=seed,
        augment=Augment(cell.views.draw, cell.views.probability),
        checkpoint=checkpoint,
        seat=seat,
        how=how,
    )
    return fitted, cuts
