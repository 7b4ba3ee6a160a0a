"""The training loop of stage two: any backend with any loss, on cached features.

Adam with three learning rates, a stratified sampler, augmented views, early stopping on the dev EER of the deployed
score, the average of the k best checkpoints. Every draw is seeded by (seed) or (seed, epoch): the same seed on the same
machine gives the same bits, whether features are read ahead or held, and whether or not the training was killed on the
way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.core.contracts import Centroids, Enrols, Labels
from pipeline.core.devices import device_of
from pipeline.core.errors import InputError
from pipeline.core.params import TrainParams
from pipeline.features import dataset, sampling, sources, streaming
from pipeline.features.dataset import Dataset
from pipeline.features.sampling import NO_AUGMENT, Augment
from pipeline.features.sources import Addresses
from pipeline.features.streaming import Batch
from pipeline.scoring import scorer
from pipeline.training import checkpoints
from pipeline.training.adam import Adam, groups
from pipeline.training.checkpoints import State
from pipeline.training.progress import Epoch, Progress, average
from pipeline.training.selection import Scores, dev_eer, dev_scores, trained_centroids

CHECKPOINT_SECONDS = 60.0  # at most this much training, and an epoch, is lost to a kill
VIEWS_STREAM = 1  # sets the generator of views apart from that of the order, which (seed, epoch) alone seed


@dataclass(frozen=True)
class Fitted:
    """A trained system, and how it came about.

    backend: trained module with the averaged weights, in memory. centroids: those of the averaged loss. path: (epochs,
    K, E) float32, where they were after each epoch. curves: every epoch. kept: the epochs that were averaged.
    dev_scores: (N_dev,) float32, of the averaged system, in the order of the trials. dev_eer: percent, of these scores;
    dev_threshold: the score there. parameters: learned scalars of backend and loss.
    """

    backend: nn.Module
    centroids: Centroids
    path: NDArray[np.float32]
    curves: tuple[Epoch, ...]
    kept: tuple[int, ...]
    dev_scores: Scores
    dev_eer: float
    dev_threshold: float
    parameters: int


@dataclass(frozen=True)
class Run:
    """One training: what learns, what it learns from, and how. labels: of the training set, on the device."""

    backend: nn.Module
    loss: nn.Module
    optimizer: Adam
    train: Dataset
    dev: Dataset
    labels: Labels
    params: TrainParams
    seed: int
    augment: Augment
    device: torch.device


def fit(
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
) -> Fitted:
    """Train a backend with a loss and select by the dev EER of the deployed score.

    Args:
        make_backend: () -> Backend. make_loss: (embedding_dim=) -> Loss; both are called under the run's own seed.
        train: where it is of several sets (`dataset.join`), every batch holds them in equal shares.
        labels: of the training set, tensors of length N.
        seed: of the initial weights, the order of batches, dropout, and the draws of views.
        augment: views that the training set has, drawn for training alone.
        checkpoint: file to go on from after a kill, with the result of an undisturbed training; the caller deletes it
            once the result is on disk.

    Raises InputError where the loss stops being finite, or the device that is asked for is not there.
    """
    device = device_of(params.device, key="train.device")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        backend: nn.Module = make_backend()
        loss: nn.Module = make_loss(embedding_dim=backend.embedding_dim)
        backend, loss = backend.to(device), loss.to(device)
        run = Run(
            backend=backend,
            loss=loss,
            optimizer=Adam(groups(backend, loss, params.learning_rate), weight_decay=params.weight_decay),
            train=train,
            dev=dev,
            labels=Labels(**{name: tensor.to(device) for name, tensor in vars(labels).items()}),
            params=params,
            seed=seed,
            augment=augment,
            device=device,
        )
        progress = _epochs(run, checkpoint)
    return _finished(run, progress)


def _finished(run: Run, progress: Progress) -> Fitted:
    """The average of the best states, what it scores on the dev set, and its weights in memory."""
    backend, loss = run.backend, run.loss
    backend.load_state_dict(average([states[0] for _, _, states in progress.best]))
    loss.load_state_dict(average([states[1] for _, _, states in progress.best]))
    if isinstance(loss, Enrols):
        loss.enrol(*_enrolment(run))
    scores = dev_scores(backend, loss, run.dev)
    error = dev_eer(scores, run.dev)
    return Fitted(
        backend=backend.eval().cpu(),
        centroids=trained_centroids(loss),
        path=np.stack(progress.path),
        curves=tuple(progress.curves),
        kept=tuple(sorted(epoch for _, epoch, _ in progress.best)),
        dev_scores=scores,
        dev_eer=100 * error.eer,
        dev_threshold=float(str(np.float32(error.threshold))),  # as a score file would hold it
        parameters=sum(p.numel() for module in (backend, loss) for p in module.parameters()),
    )


# ---------------------------------------------------------------- epochs


def _epochs(run: Run, file: Path | None) -> Progress:
    """Train until done, from the start or from the run's checkpoint, which is written now and then."""
    identity = _identity(run) if file else ""
    progress = _resumed(run, file, identity) if file else Progress()
    start = time.perf_counter() - (progress.curves[-1].seconds if progress.curves else 0)
    written = time.perf_counter()
    with tqdm(total=run.params.epochs, initial=len(progress.curves), unit="epoch", disable=None) as bar:
        while not progress.done(run.params):
            epoch = len(progress.curves) + 1
            mean = train_epoch(run, epoch)
            error = 100 * dev_eer(dev_scores(run.backend, run.loss, run.dev), run.dev).eer
            line = Epoch(epoch, mean, error, time.perf_counter() - start)
            states = _copy(run.backend), _copy(run.loss)
            progress.add(line, trained_centroids(run.loss), states, keep=run.params.average_best)
            bar.set_postfix(loss=f"{mean:.3f}", dev_eer=f"{error:.2f} %")
            bar.update()
            if file and time.perf_counter() - written >= CHECKPOINT_SECONDS:
                _save(run, progress, file, identity)
                written = time.perf_counter()
    return progress


def train_epoch(run: Run, epoch: int) -> float:
    """One pass over the training set; the mean loss over its batches. epoch: from 1."""
    torch.manual_seed((run.seed << 20) + epoch)  # dropout
    if isinstance(run.loss, Enrols):
        run.loss.start_epoch(epoch, partial(_enrolment, run))
    addresses, labels = drawn(run, epoch)
    is_bonafide = run.train.trials.is_bonafide
    order = list(
        sampling.batches(is_bonafide, size=run.params.batch_size, seed=run.seed, epoch=epoch, groups=run.train.groups)
    )
    with contextlib.closing(
        streaming.stream(run.train.source, (addresses[rows] for rows in order), device=run.device)
    ) as batches:
        return train_on(run, epoch, zip(batches, (sampling.take(labels, rows) for rows in order), strict=True))


def train_on(run: Run, epoch: int, batches: Iterable[tuple[Batch, Labels]]) -> float:
    """A step for every batch; the mean loss over them. Raises InputError where one is not finite."""
    run.backend.train()
    run.loss.train()
    losses = [step(run, *batch) for batch in batches]
    values = torch.stack(losses).tolist()  # once an epoch: asking a GPU for a number waits for it
    for value in values:
        if not math.isfinite(value):
            raise InputError(f"epoch {epoch}: the loss is {value}; lower train.learning_rate")
    return float(sum(values) / len(values))


def step(run: Run, batch: Batch, labels: Labels) -> Tensor:
    """One step of the optimiser; the loss before it, detached."""
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.params.precision == "bfloat16"):
        embeddings = run.backend(*batch)
    value: Tensor = run.loss(embeddings, labels)
    value.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    return value.detach()


def drawn(run: Run, epoch: int) -> tuple[Addresses, Labels]:
    """What stands for each training utterance in an epoch: the address (N,) of its clean or an augmented view, and its
    label, whose quality level an augmented view lowers.

    Drawn from (seed, epoch), one draw an utterance, whatever the order of the batches.
    """
    n, augment = len(run.train), run.augment
    addresses = np.arange(n)
    if not augment.probability:
        return addresses, run.labels
    rng = np.random.default_rng((run.seed, epoch, VIEWS_STREAM))
    chosen = np.where(rng.random(n) < augment.probability, rng.integers(len(augment.views), size=n), -1)
    position = np.array([1 + run.train.views.index(name) for name in augment.views] + [0])
    shift = torch.tensor([sampling.level_shift(name) for name in augment.views] + [0], device=run.device)
    level = run.labels.level
    lowered = (level + shift[torch.from_numpy(chosen).to(run.device)]).clamp(min=0)
    lowered = torch.where(level < 0, level, lowered)  # unknown stays unknown
    return addresses + n * position[chosen], dataclasses.replace(run.labels, level=lowered)


@torch.no_grad()
def _enrolment(run: Run) -> tuple[Tensor, Tensor]:
    """Embeddings (M, E) of all bona fide training utterances, clean, in eval mode, and their speakers (M,)."""
    run.backend.eval()
    rows = np.flatnonzero(run.train.trials.is_bonafide)
    parts = np.array_split(rows, -(-len(rows) // scorer.BATCH))
    with contextlib.closing(streaming.stream(run.train.source, parts, device=run.device)) as batches:
        embeddings = [run.backend(*batch).clone() for batch in batches]
    return torch.cat(embeddings), sampling.take(run.labels, rows).speaker


# ---------------------------------------------------------------- going on after a kill


def _save(run: Run, progress: Progress, file: Path, identity: str) -> None:
    """Everything that the next epoch depends on; its random draws depend on its number alone."""
    modules = {"backend": run.backend.state_dict(), "loss": run.loss.state_dict(), "adam": run.optimizer.state()}
    for i, (_, _, (backend, loss)) in enumerate(progress.best):
        modules |= {f"best.{i}.backend": backend, f"best.{i}.loss": loss}
    tensors = {f"{part}/{name}": tensor for part, state in modules.items() for name, tensor in state.items()}
    tensors["path"] = torch.from_numpy(np.stack(progress.path))
    facts = {
        "curves": [dataclasses.astuple(epoch) for epoch in progress.curves],
        "best": [(error, epoch) for error, epoch, _ in progress.best],
    }
    checkpoints.write(file, tensors, facts, run=identity)


def _resumed(run: Run, file: Path, identity: str) -> Progress:
    """The progress that a checkpoint of this run holds, its state taken up; none where there is no such checkpoint."""
    found = checkpoints.read(file, run=identity)
    if found is None:
        return Progress()
    tensors, facts = found

    def part(prefix: str) -> State:
        return {
            name.removeprefix(f"{prefix}/"): tensor.to(run.device)
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}/")
        }

    run.backend.load_state_dict(part("backend"))
    run.loss.load_state_dict(part("loss"))
    run.optimizer.load(part("adam"))
    best = [
        (error, epoch, (part(f"best.{i}.backend"), part(f"best.{i}.loss")))
        for i, (error, epoch) in enumerate(facts["best"])
    ]
    return Progress([Epoch(*line) for line in facts["curves"]], list(tensors["path"].numpy()), best)


def _identity(run: Run) -> str:
    """Fingerprint of all that the result depends on, to be taken before the first step."""
    tensors = {f"backend/{name}": tensor for name, tensor in run.backend.state_dict().items()}
    tensors |= {f"loss/{name}": tensor for name, tensor in run.loss.state_dict().items()}
    tensors |= vars(run.labels) | {"dev": torch.from_numpy(run.dev.trials.is_bonafide)}
    if run.train.groups is not None:
        tensors["groups"] = torch.from_numpy(run.train.groups)
    facts = {
        "params": run.params.model_dump(),
        "seed": run.seed,
        "augment": dataclasses.asdict(run.augment),
        "device": run.device.type,
        "data": [[data.kind, data.digest, data.views] for data in (run.train, run.dev)],
        "backend": checkpoints.facts_of(run.backend),
        "loss": checkpoints.facts_of(run.loss),
        "code": [checkpoints.code_of(Path(str(module.__file__))) for module in (dataset, sources, scorer)]
        + [checkpoints.code_of(Path(__file__))],
    }
    return checkpoints.fingerprint(facts, tensors)


def _copy(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
