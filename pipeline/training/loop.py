"""The one training loop: of a backend and a loss on cached features, and of an encoder with them from audio.

Adam with a learning rate a group, early stopping on the dev EER of the deployed score, the average of the k best
epochs where it is no worse than the best one. Every draw is seeded by (seed) or (seed, epoch): the same seed on the
same machine's CPU gives the same bits, whether or not the training was killed on the way. A `Learner` holds the
modules, the data and the parameters of one training.

A training is a generator: it stops before the first batch of a pass over the training or dev set, and after each batch,
and says where it is. So several trainings can take turns and look at the same batch in memory, see `together`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.core.contracts import Centroids, Enrols, Labels
from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.errors import InputError
from pipeline.core.sections import ONE_WINDOW, TrainParams, WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.features import sampling
from pipeline.features.sampling import Augment
from pipeline.training import checkpoints, drawing, together
from pipeline.training.adam import Adam, Groups
from pipeline.training.checkpoints import CheckpointFolder, State
from pipeline.training.history import Epoch, History, average
from pipeline.training.remarks import remarks
from pipeline.training.selection import (
    Embeddings,
    Scores,
    Selection,
    dev_eer,
    dev_loss,
    dev_scores,
    good_epochs,
    train_eer,
    train_sample,
    trained_centroids,
)
from pipeline.training.together import Stops

CHECKPOINT_SECONDS = 60.0  # at most this much training, and an epoch, is lost to a kill
CHECKED = 100  # steps after which a loss that is not finite is noticed: asking a GPU for a number waits for it

TRAINING, MEASURING = 0, 1  # the passes of an epoch, in order

Say = Callable[[str], None]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner(ABC):
    """The modules, the data and the parameters of one training.

    system: a module with the modules `backend` and `loss`. train, dev: the trials. labels: of the training set, tensors
    of length N. augment: views that training draws. section: of the parameters, for messages.
    """

    system: Any
    train: Trials
    dev: Trials
    labels: Labels
    params: TrainParams | FinetuneParams
    seed: int
    augment: Augment
    device: torch.device
    section: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """Fingerprint of all that the result depends on."""

    @abstractmethod
    def groups(self) -> Groups:
        """The parameters that learn, with their learning rates."""

    @abstractmethod
    def losses(self, epoch: int) -> Generator[Tensor]:
        """For each step of an epoch, in order, add up the gradients and yield the loss, detached. epoch: from 1."""

    @abstractmethod
    def embed_train(self, rows: NDArray[np.int64]) -> Iterable[Tensor]:
        """Embeddings (B, E) of some training trials, clean, in order, in eval mode."""

    @abstractmethod
    def embed_dev(self, *, epoch: int | None = None) -> Iterable[NDArray[np.float32]]:
        """Embeddings (B, E) of the dev set, in order, in eval mode; of several windows as `score_windows` takes them.

        epoch: the one that ends with this pass, which all trainings that take turns make; None: a pass of its own.
        """

    @property
    def windows(self) -> WindowsParams:
        """How many windows of an utterance of dev are heard, and how their scores become one."""
        return ONE_WINDOW

    @property
    def rank(self) -> int:
        """The number of this process among those that train together; the first, 0, keeps the history and decides."""
        return 0

    def agreed(self, value: T) -> T:
        """What the first process has, in all that train together."""
        return value

    def spread(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027  # most trainings have one process
        """Give tensors the values that they have in the first process."""

    @property
    def silent(self) -> bool | None:
        """For a progress bar: nothing is shown by all processes but the first, nor where there is no terminal."""
        return True if self.rank else None

    def now(self) -> float:
        """A clock in seconds that stands still while other trainings have their turn."""
        return time.perf_counter()

    def show(self, curves: Sequence[Epoch]) -> None:  # noqa: B027  # trainings of seconds show nothing
        """Show the curves up to the epoch that just ended."""

    def finish(self) -> None:  # noqa: B027  # most systems are deployed as they are trained
        """Make the system what is deployed, now that it has the averaged weights."""

    def pace(self, epoch: int, step: int) -> float:
        """The factor on all learning rates in a step; both count from 1."""
        del epoch, step
        return 1.0

    @property
    def clip(self) -> float | None:
        """The largest norm of all gradients together; None where they are taken as they are."""
        return None

    def drawn(self, epoch: int) -> tuple[NDArray[np.int64], Labels]:
        """Which view stands for each training utterance in an epoch (N,), -1 the clean one, and the labels of these."""
        views = drawing.drawn_views(len(self.train), self.augment, seed=self.seed, epoch=epoch)
        return views, drawing.lowered(self.labels, views, self.augment)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained system, and how it came about.

    backend: trained module with the selected weights, in memory. centroids: those of the selected loss. path: (epochs,
    K, E) float32, where they were after each epoch. curves: every epoch. selection: which epochs the weights are of.
    dev_scores: (N_dev,) float32, of this system, in the order of the trials. dev_eer: percent, of these scores;
    dev_threshold: the score there. parameters: learned scalars. remarks: what a user should know of the training.
    """

    backend: nn.Module
    centroids: Centroids
    path: NDArray[np.float32]
    curves: tuple[Epoch, ...]
    selection: Selection
    dev_scores: Scores
    dev_eer: float
    dev_threshold: float
    parameters: int
    remarks: tuple[str, ...]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within, and leave them as they were behind."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def train(learner: Learner, *, checkpoint: Path | None, say: Say = lambda _: None) -> Fitted:
    """Train until done, select by the dev EER of the deployed score: the mean of the k best epochs, or the best one.

    Args:
        checkpoint: folder to go on from after a kill, with the result of an undisturbed training; the caller deletes it
            once the result is on disk. say: is given a line an epoch.

    Raises InputError where the loss stops being finite.
    """
    return together.alone(steps(learner, checkpoint=checkpoint, say=say))


def steps(learner: Learner, *, checkpoint: Path | None, say: Say = lambda _: None) -> Stops[Fitted]:
    """What `train` does, with a stop at each batch."""
    place = CheckpointFolder(checkpoint, learner.identity) if checkpoint else None
    parameters = count(learner.groups())
    history = yield from _epochs(learner, place, say)
    return _finished(learner, history, place, parameters=parameters)


def begin(learner: Learner, *, checkpoint: Path, until: int, say: Say = lambda _: None) -> Stops[tuple[Epoch, ...]]:
    """Train up to the end of an epoch, or to the end if that comes before, and leave the checkpoint of that moment.

    `steps` goes on from there, and comes to the result of an undisturbed training. until: an epoch, from 1. Returns the
    curves, which are longer where an earlier training came further.
    """
    place = CheckpointFolder(checkpoint, learner.identity)
    return tuple((yield from _epochs(learner, place, say, until=until)).curves)


def count(groups: Groups) -> int:
    """The number of scalars that learn."""
    return sum(parameter.numel() for parameters, _ in groups for parameter in parameters)


def _finished(learner: Learner, history: History, place: CheckpointFolder | None, *, parameters: int) -> Fitted:
    """The selected system, and what it scores on the dev set."""
    chosen = _select(learner, history, place)
    learner.finish()
    if not chosen.takes_best:
        _enrol(learner)  # again, in the precision that is deployed
    scores = scored(learner)
    error, path = dev_eer(scores, learner.dev), np.stack(history.path)
    told = remarks(
        history.curves, path, dev=learner.dev, dev_eer=100 * error.eer, chosen=chosen, asked=learner.params.epochs
    )
    return Fitted(
        backend=learner.system.backend.eval().cpu(),
        centroids=trained_centroids(learner.system.loss, section=learner.section),
        path=path,
        curves=tuple(history.curves),
        selection=chosen,
        dev_scores=scores,
        dev_eer=100 * error.eer,
        dev_threshold=float(str(np.float32(error.threshold))),  # as a score file would hold it
        parameters=parameters,
        remarks=told,
    )


def _select(learner: Learner, history: History, place: CheckpointFolder | None) -> Selection:
    """Put into the system the mean of the good epochs, or the best epoch as it was where dev has a higher EER of the
    mean."""
    good = good_epochs(history, learner.params.average_best, learner.dev)
    _take(learner, history, place, good)
    _enrol(learner)
    mean = learner.agreed(100 * dev_eer(scored(learner), learner.dev).eer)
    chosen = Selection(good, mean, history.curves[good[0] - 1])
    if chosen.takes_best:
        _take(learner, history, place, good[:1])
    return chosen


def _take(learner: Learner, history: History, place: CheckpointFolder | None, epochs: Sequence[int]) -> None:
    """Put the mean of the weights after some epochs into the system."""
    names = learned_names(learner.system)
    if learner.rank == 0:
        restore(learner.system, average([_state(history, place, epoch) for epoch in epochs], names))
    learner.spread(_tensors(learner.system))


def _enrol(learner: Learner) -> None:
    """Let a loss that enrols speakers do so by the weights of now."""
    loss = learner.system.loss
    if isinstance(loss, Enrols):
        loss.enrol(*enrolment(learner))


def _state(history: History, place: CheckpointFolder | None, epoch: int) -> Callable[[str], Tensor]:
    """The weights after an epoch, by name, from memory or from the checkpoint."""
    if epoch in history.states:
        return history.states[epoch].__getitem__
    assert place is not None  # noqa: S101  # states leave memory for the disk alone
    return place.weights(epoch)


# ---------------------------------------------------------------- epochs


def _epochs(learner: Learner, place: CheckpointFolder | None, say: Say, *, until: int | None = None) -> Stops[History]:
    """Train until done, from the start or from the run's checkpoint, which is written now and then.

    until: the epoch after which the training stops and the checkpoint is written in any case.
    """
    params = learner.params
    optimizer = Adam(learner.groups(), weight_decay=params.weight_decay)
    history = _resumed(learner, optimizer, place) if place else History()
    history.curves, history.path = learner.agreed((history.curves, history.path))
    if history.curves:
        learner.spread([*_tensors(learner.system), *optimizer.state().values()])
        say(f"{len(history.curves)} epochs are done; going on with the next")
    start = learner.now() - (history.curves[-1].seconds if history.curves else 0)
    written = time.perf_counter()
    with tqdm(total=params.epochs, initial=len(history.curves), unit="epoch", disable=learner.silent) as bar:
        while not history.done(params) and (until is None or len(history.curves) < until):
            epoch = len(history.curves) + 1
            mean = yield from train_epoch(learner, optimizer, epoch)
            line = yield from _measured(learner, epoch, mean, start=start)
            now = trained_centroids(learner.system.loss, section=learner.section)
            history.add(line, now, {} if learner.rank else learned(learner.system), keep=params.average_best)
            bar.set_postfix(loss=f"{mean:.3f}", dev_eer=f"{line.dev_eer:.2f} %")
            bar.update()
            learner.show(history.curves)
            say(
                f"epoch {epoch}: loss {mean:.4f}, on dev {line.dev_loss:.4f}; EER {line.train_eer:.2f} % of a training "
                f"sample, {line.dev_eer:.2f} % of dev"
            )
            if place and time.perf_counter() - written >= CHECKPOINT_SECONDS:
                _save(history, optimizer, place, keep=params.average_best)
                written = time.perf_counter()
    if place and until is not None and history.states:  # there are epochs that are not on the disk
        _save(history, optimizer, place, keep=params.average_best)
    return history


def _measured(learner: Learner, epoch: int, loss: float, *, start: float) -> Stops[Epoch]:
    """The line of an epoch whose training steps are done."""
    embeddings: list[NDArray[np.float32]] = []
    yield epoch, MEASURING, 0
    for some in learner.embed_dev(epoch=epoch):
        embeddings.append(some)
        yield epoch, MEASURING, len(embeddings)
    error = 100 * dev_eer(scored(learner, embeddings), learner.dev).eer
    on_dev = dev_loss(learner.system.loss, np.concatenate(embeddings), learner.dev, device=learner.device)
    sample = train_sample(learner.train)
    seen = (part.cpu().numpy() for part in learner.embed_train(sample))
    with torch.inference_mode():
        known = train_eer(seen, trained_centroids(learner.system.loss, section=learner.section), learner.train, sample)
    return learner.agreed(Epoch(epoch, loss, error, learner.now() - start, on_dev, 100 * known))


def train_epoch(learner: Learner, optimizer: Adam, epoch: int) -> Stops[float]:
    """One pass over the training set; the mean loss over its steps. epoch: from 1.

    Raises InputError where a loss is not finite.
    """
    torch.manual_seed((learner.rank << 52) + (learner.seed << 20) + epoch)  # dropout, another in each process
    if isinstance(learner.system.loss, Enrols):
        learner.system.loss.start_epoch(epoch, partial(enrolment, learner))
    learner.system.train()
    losses: list[Tensor] = []
    yield epoch, TRAINING, 0
    with contextlib.closing(learner.losses(epoch)) as found:
        for loss in found:
            losses.append(loss)
            optimizer.step(factor=learner.pace(epoch, len(losses)), clip=learner.clip)
            if len(losses) % CHECKED == 0:
                _finite(loss.item(), learner, epoch)
            yield epoch, TRAINING, len(losses)
    values = [_finite(value, learner, epoch) for value in torch.stack(losses).tolist()]
    return float(sum(values) / len(values))


def _finite(loss: float, learner: Learner, epoch: int) -> float:
    if not math.isfinite(loss):
        raise InputError(f"epoch {epoch}: the loss is {loss}; lower {learner.section}.learning_rate")
    return loss


def scored(learner: Learner, embeddings: Embeddings | None = None) -> Scores:
    """The deployed scores (N,) of the dev set, of its embeddings (B, E) in order, or else those of the system now."""
    found = trained_centroids(learner.system.loss, section=learner.section)
    seen = learner.embed_dev() if embeddings is None else embeddings
    return dev_scores(seen, found, learner.dev, windows=learner.windows)


@torch.no_grad()
def enrolment(learner: Learner) -> tuple[Tensor, Tensor]:
    """Embeddings (M, E) of all bona fide training utterances, clean, in eval mode, and their speakers (M,).

    Of several processes each has all of them, which changes no mean.
    """
    rows = np.flatnonzero(learner.train.is_bonafide)
    embeddings = torch.cat(list(learner.embed_train(rows)))
    return embeddings, sampling.take(learner.labels, rows).speaker.to(embeddings.device)


# ---------------------------------------------------------------- going on after a kill


def learned_names(system: nn.Module) -> list[str]:
    """The names of all tensors that training changes: not those of frozen weights."""
    frozen = {name for name, parameter in system.named_parameters() if not parameter.requires_grad}
    return [name for name in system.state_dict() if name not in frozen]


def _tensors(system: nn.Module) -> list[Tensor]:
    """The tensors that training changes, in the order of their names."""
    state = system.state_dict()
    return [state[name] for name in learned_names(system)]


def learned(system: nn.Module) -> State:
    """A copy on the CPU of all tensors that training changes."""
    state = system.state_dict()
    return {name: state[name].detach().to("cpu", copy=True) for name in learned_names(system)}


def restore(system: nn.Module, state: State) -> None:
    """Put the tensors of `learned` back into the system."""
    system.load_state_dict(state, strict=False)


def _save(history: History, optimizer: Adam, place: CheckpointFolder, *, keep: int) -> None:
    """Everything that the next epoch depends on; its random draws depend on its number alone."""
    last = {f"adam/{name}": tensor for name, tensor in optimizer.state().items()}
    last["path"] = torch.from_numpy(np.stack(history.path))
    place.write(history.states, last, {"curves": [dataclasses.astuple(epoch) for epoch in history.curves]})
    place.keep({len(history.curves), *history.best(keep)})
    history.states.clear()  # on disk now


def _resumed(learner: Learner, optimizer: Adam, place: CheckpointFolder) -> History:
    """The history that a checkpoint of this run holds, its state taken up; none where there is no such checkpoint."""
    found = place.read()
    if found is None:
        checkpoints.delete(place.folder)  # its files of another run must not mix with those of this one
        return History()
    last, facts = found
    history = History([Epoch(*line) for line in facts["curves"]], list(last.pop("path").numpy()))
    weights = place.weights(len(history.curves))
    restore(learner.system, {name: weights(name) for name in learned_names(learner.system)})
    optimizer.load({name.removeprefix("adam/"): tensor for name, tensor in last.items()})
    return history
