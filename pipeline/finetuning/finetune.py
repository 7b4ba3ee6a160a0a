"""End-to-end fine-tuning: XLSR, a backend and a loss trained together, from audio.

The published countermeasures are trained so (Tak et al., "Automatic speaker verification spoofing and deepfake
detection using wav2vec 2.0 and data augmentation", Odyssey 2022, arXiv 2202.12233; Truong et al., QAMO, arXiv
2509.20679): Adam, a small learning rate for the encoder, RawBoost on the fly, the average of the k best checkpoints.

Nothing in the encoder is random in training: no LayerDrop, SpecAugment or dropout (see `xlsr`). Weights, gradients and
Adam's moments are float32 (with LoRA, those of the low-rank updates, which are averaged each and then merged); with
bfloat16 the encoder alone computes under autocast, backend and loss in float32. The
encoder is trained up to the highest layer that the backend reads; layers above it keep their weights.

Every draw is seeded by (seed), (seed, epoch) or (seed, epoch, utterance), and each epoch ends with a checkpoint: a
training that was killed goes on with the next epoch and comes to the same bits on the same machine's CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from pipeline.audio import decode, loader, views, windowing
from pipeline.core import contracts, trial_table
from pipeline.core.contracts import Centroids, Enrols, Labels
from pipeline.core.errors import InputError, listing
from pipeline.core.files import folder_beside, read_json, replace_folder, write_text
from pipeline.core.params import ExtractParams, FinetuneParams, LoraParams, Params, ViewsParams, WindowParams
from pipeline.core.trial_table import Trials
from pipeline.encoder import models, xlsr
from pipeline.encoder.cards import Card
from pipeline.features import sampling, specs
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import Eer, official_eer
from pipeline.scoring import centroids, runs, scorer
from pipeline.training import adam, cells, checkpoints, progress
from pipeline.training.cells import Cell

CODE = (  # whose arithmetic a training is; other code does not go on from its checkpoint
    "pipeline.finetuning.finetune", "pipeline.audio.decode", "pipeline.audio.windowing", "pipeline.features.sampling",
    "pipeline.training.adam", "pipeline.training.progress", "pipeline.backends._shared", "pipeline.losses._ranks",
    "pipeline.losses._shared", "pipeline.audio.rawboost", "pipeline.scoring.scorer", "pipeline.audio.views",
    "pipeline.audio.loader", "pipeline.encoder.xlsr",
)  # fmt: skip
AHEAD = 2  # batches that are decoded before they are asked for
TIMED = 5  # steps from which the time of an epoch is estimated; the one before them warms up
CURVES_FILE = "curves.json"
RUN_FOLDER = "run"  # within the weights' folder

Rows = NDArray[np.int64]
State = dict[str, Tensor]
Say = Callable[[str], None]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Speech:
    """The trials of a set, and the folder that their audio paths are relative to."""

    trials: Trials
    root: Path


@dataclass(frozen=True)
class Job:
    """What is trained on what, and how. labels are those of the training set, tensors of length N on the CPU."""

    params: FinetuneParams
    extract: ExtractParams
    train: Speech
    dev: Speech
    labels: Labels
    device: str

    @property
    def window(self) -> WindowParams:
        """What the encoder sees of an utterance, here as in extraction."""
        return self.extract.window


@dataclass(frozen=True)
class Epoch:
    """One line of the training curves: mean training loss, dev EER in percent."""

    epoch: int
    loss: float
    dev_eer: float


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned encoder with its backend and centroids, and how they came about.

    model: the whole encoder, layers above the highest tap included, on the CPU. backend: with the averaged weights, on
    the CPU. curves: every epoch. kept: the epochs that were averaged. dev_eer: percent, of the averaged system in
    float32; dev_threshold: the score there. parameters: learned scalars of encoder, backend and loss.
    """

    model: Any
    backend: nn.Module
    centroids: Centroids
    curves: tuple[Epoch, ...]
    kept: tuple[int, ...]
    dev_eer: float
    dev_threshold: float
    parameters: int


# The system that is trained


class System(nn.Module):
    """Encoder, backend and loss; windows to embeddings."""

    def __init__(
        self, encoder: xlsr.Encoder, backend: nn.Module, loss: nn.Module, *, precision: Literal["float32", "bfloat16"]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.backend = backend
        self.loss = loss
        self.precision = precision

    def forward(self, windows: Tensor, valid: Tensor) -> Tensor:
        """Embeddings (B, E) of windows (B, S), of each of which the first `valid` (B,) samples are signal.

        In eval mode the backend sees frames as the feature store holds them, rounded to float16.
        """
        half = self.precision == "bfloat16"
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=half):
            taps, n_frames = self.encoder.features(windows, valid)
        frames = torch.stack([taps[tap].float() for tap in self.encoder.taps], dim=1)  # (B, L, T, D)
        if self.backend.reads == "pooled":
            features = pool(frames, n_frames)  # (B, L, 2, D)
        else:
            features = frames if self.training else frames.half().float()
        embeddings: Tensor = self.backend(features, n_frames)
        return embeddings

    def learned(self) -> State:
        """All tensors that training changes, on the CPU; the encoder's frozen weights are not among them."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: tensor.detach().cpu() for name, tensor in self.state_dict().items() if name not in frozen}

    def restore(self, state: State) -> None:
        """Put back what `learned` gave. Raises ValueError for the tensors of something else."""
        lacking = self.learned().keys() ^ state.keys()
        if lacking:
            raise ValueError(f"expected the tensors of this system, {len(lacking)} differ, {min(lacking)} is one")
        self.load_state_dict(state, strict=False)


def pool(frames: Tensor, n_frames: Tensor) -> Tensor:
    """Mean and standard deviation (biased) over the valid frames: (B, L, T, D), (B,) -> (B, L, 2, D).

    As `compute.pool`; where all frames are equal the gradient is 0 and not NaN.
    """
    mask = (torch.arange(frames.shape[2], device=frames.device) < n_frames[:, None])[:, None, :, None]  # (B, 1, T, 1)
    count = n_frames[:, None, None].to(frames.dtype)  # (B, 1, 1)
    mean = (frames * mask).sum(2) / count  # (B, L, D)
    centred = (frames - mean[:, :, None]) * mask
    return torch.stack([mean, torch.linalg.vector_norm(centred, dim=2) / count.sqrt()], dim=2)


def unfreeze(encoder: xlsr.Encoder, *, front_end: bool) -> None:
    """Let gradients reach all weights that the taps depend on; the convolutional front end if asked."""
    model = encoder.model
    model.requires_grad_(True)
    if not front_end:
        model.freeze_feature_encoder()
    if "final" not in encoder.taps:  # nobody reads what they give
        model.encoder.layer_norm.requires_grad_(False)
        if max(encoder.taps) == 0:
            model.encoder.layers.requires_grad_(False)
    if hasattr(model, "masked_spec_embed"):
        model.masked_spec_embed.requires_grad_(False)


def add_lora(model: Any, lora: LoraParams) -> None:
    """Let gradients reach low-rank updates of the layers' linear maps, zero at first, and nothing else of the encoder.

    Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022, arXiv 2106.09685. Raises InputError
    where the extra `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # an extra
    except ImportError:
        raise InputError(
            'encoder.finetune.lora needs PEFT, which is not installed: pip install "bonafide[peft]"'
        ) from None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=list(lora.targets))
    inject_adapter_in_model(config, model)


def merge_lora(model: Any) -> None:
    """Add the low-rank updates, if there are any, to the weights that they are of: a plain model again."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer"):  # PEFT's
            module.merge()
            model.set_submodule(name, module.get_base_layer())


def compute_twice(model: Any) -> None:
    """Gradient checkpointing: keep only what goes into each convolution and layer, compute it again going backward.

    By torch's own means: the method of transformers changes its name between 5.17 and 6.
    """
    for layer in _blocks(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _blocks(model: Any) -> list[Any]:
    return [*model.feature_extractor.conv_layers, *model.encoder.layers]


def optimizer_of(system: System, params: FinetuneParams) -> torch.optim.Adam:
    """Adam with a learning rate each for the encoder, the backend, the loss's vectors and the layer weightings."""
    rates = params.learning_rate
    encoder = [p for p in system.encoder.parameters() if p.requires_grad]
    groups = [(encoder, rates.encoder), *adam.groups(system.backend, system.loss, rates)]
    return torch.optim.Adam(
        [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters],
        weight_decay=params.weight_decay,
    )


def chosen(settings: Params, card: Card) -> Cell:
    """The backend and loss that `encoder.finetune` names, with the parameters of their sections.

    Raises InputError naming the place of an unknown name or parameter, or of a layer that the encoder does not have.
    """
    params = settings.encoder.finetune
    if params is None:
        raise ValueError("expected encoder.finetune to be set")

    def place(*keys: str | int) -> str:
        return settings.where("encoder", "finetune", *keys)

    for key, name, sections in (("backend", params.backend, settings.backends), ("loss", params.loss, settings.losses)):
        if name not in sections:
            raise InputError(f"{place(key)}: expected one of {', '.join(sections) or 'none'}, got {name!r}")
    if params.set not in settings.sets or params.set == "dev":
        sets = ", ".join(name for name in settings.sets if name != "dev")
        raise InputError(f"{place('set')}: expected one of {sets}, got {params.set!r}")
    for i, tap in enumerate(params.layers):
        if tap != "final" and tap > card.layers:
            raise InputError(f"{place('layers', i)}: expected 0 to {card.layers} or final, got {tap!r}")
    for i, view in enumerate(params.views.draw):
        try:
            views.parse(view)
        except InputError as error:
            raise InputError(f"{place('views', 'draw', i)}: {error}") from None
    any_layers, any_views = settings.grid.layers[0], settings.grid.views[0]
    cell = cells.find(settings, backend=params.backend, loss=params.loss, layers=any_layers, views=any_views)
    return dataclasses.replace(cell, layers=params.layers, views=params.views)


# Audio, decoded ahead of the encoder


def drawn_view(drawn: ViewsParams, *, seed: int, epoch: int, utterance: str) -> str | None:
    """The view that an utterance is heard in during an epoch; None is the clean one."""
    digest = hashlib.sha256(f"{seed} {epoch} {utterance}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return drawn.draw[rng.integers(len(drawn.draw))] if rng.random() < drawn.probability else None


@dataclass(frozen=True)
class Utterance:
    """A window (S,) and how many of its samples are signal; shift: what is added to the quality level, 0 or -1."""

    window: windowing.Samples
    valid: int
    shift: int = 0


def load_clean(speech: Speech, row: int, *, window: WindowParams) -> Utterance:
    """The window of a trial. Raises InputError naming the utterance."""
    clip = loader.clip_of(speech.trials, row, audio_root=speech.root)
    return Utterance(*loader.load_window(clip, view=contracts.CLEAN, window=window))


def load_drawn(job: Job, row: int, *, epoch: int) -> Utterance:
    """The window of a training trial in the view that the epoch draws for it; other epochs, other draws."""
    trials, params = job.train.trials, job.params
    utterance = str(trials.utterance[row])
    view = drawn_view(params.views, seed=params.seed, epoch=epoch, utterance=utterance)
    if view is None:
        return load_clean(job.train, row, window=job.window)
    try:
        samples = decode.load(job.train.root / str(trials.path[row]), content=str(trials.content[row]))
    except InputError as error:
        raise InputError(f"utterance {utterance}: {error}") from None
    augmented = views.apply(view, samples, utterance=f"{params.seed} {epoch} {utterance}")
    cut, valid = windowing.window(augmented, length=job.window.samples, pad=job.window.pad)
    return Utterance(cut, valid, sampling.level_shift(view))


def ahead(batches: Iterable[Rows], load: Callable[[int], Loaded]) -> Generator[tuple[Rows, list[Loaded]], None, None]:
    """Batches of rows, in order, with what `load` makes of each row; threads load the next ones meanwhile."""
    with ThreadPoolExecutor(loader.DECODERS) as pool:
        waiting: deque[tuple[Rows, list[Future[Loaded]]]] = deque()
        try:
            for rows in batches:
                waiting.append((rows, [pool.submit(load, int(row)) for row in rows]))
                if len(waiting) > AHEAD:
                    yield _collected(*waiting.popleft())
            while waiting:
                yield _collected(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collected(rows: Rows, futures: list[Future[Loaded]]) -> tuple[Rows, list[Loaded]]:
    problems = [str(error) for error in (future.exception() for future in futures) if isinstance(error, InputError)]
    if problems:
        raise InputError(f"{len(problems)} of {len(rows)} utterances of a batch cannot be used:\n{listing(problems)}")
    return rows, [future.result() for future in futures]


def steps(is_bonafide: NDArray[np.bool_], params: FinetuneParams, *, epoch: int) -> list[list[Rows]]:
    """The rows of every step of an epoch, each in parts of at most `batch_size`.

    The classes are spread evenly over the steps and over the parts of each.
    """
    size = params.batch_size * params.accumulate
    whole = sampling.batches(is_bonafide, size=size, seed=params.seed, epoch=epoch)
    return [split(rows, size=params.batch_size) for rows in whole]


def split(rows: Rows, *, size: int) -> list[Rows]:
    """Rows, bona fide first, in parts of at most `size` that hold the same share of bona fide, give or take one."""
    parts = -(-len(rows) // size)
    return [rows[part::parts] for part in range(parts)]


def _batch(utterances: Sequence[Utterance], device: str) -> tuple[Tensor, Tensor]:
    """Windows (B, S) and valid samples (B,) on a device."""
    windows = torch.from_numpy(np.stack([utterance.window for utterance in utterances]))
    valid = torch.tensor([utterance.valid for utterance in utterances])
    return windows.to(device), valid.to(device)


def lowered(labels: Labels, utterances: Sequence[Utterance], device: str) -> Labels:
    """Labels of a batch as its views leave them: a known quality level goes down with the view, not below 0."""
    shift = torch.tensor([utterance.shift for utterance in utterances])
    level = torch.where(labels.level < 0, labels.level, (labels.level + shift).clamp(min=0))
    return Labels(labels.is_bonafide.to(device), level.to(device), labels.speaker.to(device))


# Training


def finetune(model: Any, card: Card, *, cell: Cell, job: Job, place: Checkpoint, say: Say) -> Tuned:
    """Train encoder, backend and loss together, select by the dev EER of the deployed score, average the k best.

    Args:
        model: the whole encoder, as `xlsr.load` gives it with its card; it is changed.
        place: where the state after each epoch is kept, and found again.
        say: where the plan and each epoch are printed.

    Raises InputError where layers or parameters do not fit, audio cannot be used, or the loss stops being finite.
    """
    params = job.params
    layers = model.encoder.layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        system = make_system(model, card, cell=cell, job=job)
        curves = _epochs(system, job, place=place, say=say)
        best = _best(curves, params.average_best)
        system.restore(average([place.model(epoch.epoch) for epoch in best]))
        parameters = _count(system)
        merge_lora(model)
        system.precision = "float32"
        if isinstance(system.loss, Enrols):
            system.loss.enrol(*_enrolment(system, job))
        error = dev_eer(system, job)
    system.cpu().eval().requires_grad_(False)
    for layer in _blocks(model):
        vars(layer).pop("forward", None)  # the class's own again
    model.encoder.layers = layers.cpu()
    return Tuned(
        model=model,
        backend=system.backend,
        centroids=_centroids(system),
        curves=tuple(curves),
        kept=tuple(sorted(epoch.epoch for epoch in best)),
        dev_eer=100 * error.eer,
        dev_threshold=float(str(np.float32(error.threshold))),  # as a score file would hold it
        parameters=parameters,
    )


def make_system(model: Any, card: Card, *, cell: Cell, job: Job) -> System:
    """The system on its device, initialised from torch's global generator. Its encoder is `model`, cut."""
    params = job.params
    count = len(params.layers)
    backend = cell.make_backend(layers=count, channels=card.channels)
    speakers = int(job.labels.speaker.max()) + 1
    loss = cell.make_loss(embedding_dim=backend.embedding_dim, speakers=speakers, layers=count)
    encoder = xlsr.Encoder(model, taps=params.layers, normalize=card.normalize)
    if params.lora:
        add_lora(model, params.lora)
    else:
        unfreeze(encoder, front_end=not params.freeze_front_end)
    if params.gradient_checkpointing:
        compute_twice(model)
    return System(encoder, backend, loss, precision=params.precision).to(job.device)


def checkpoint_code(module: str) -> str:
    """sha256 of the source of a module that is loaded."""
    return checkpoints.code_of(Path(str(sys.modules[module].__file__)))


def identity(card: Card, cell: Cell, job: Job) -> dict[str, Any]:
    """All that decides what a training comes to, JSON-ready."""
    labels = hashlib.sha256()
    for column in dataclasses.astuple(job.labels):
        labels.update(column.numpy().tobytes())
    labels.update(job.dev.trials.is_bonafide.tobytes())
    return {
        "card": dataclasses.asdict(card),
        "finetune": job.params.model_dump(),
        "backend": cell.backend_parameters,
        "loss": cell.loss_parameters,
        "window": job.window.model_dump(),
        "trials": [trial_table.fingerprint(speech.trials) for speech in (job.train, job.dev)],
        "labels": labels.hexdigest(),
        "code": [checkpoint_code(module) for module in (cell.backend.__module__, cell.loss.__module__, *CODE)],
    }


def _count(module: nn.Module) -> int:
    """Trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _centroids(system: System) -> Centroids:
    try:
        found: Centroids = system.loss.centroids()  # type: ignore[operator]
    except ValueError as error:  # the last step of an epoch may be the one that makes them infinite
        raise InputError(f"{error}; lower encoder.finetune.learning_rate") from None
    return found


def _best(curves: Sequence[Epoch], count: int) -> list[Epoch]:
    """The epochs of the lowest dev EER, best first; among equals the later one: it has been trained longer."""
    return sorted(curves, key=lambda epoch: (epoch.dev_eer, -epoch.epoch))[:count]


def _finished(curves: Sequence[Epoch], params: FinetuneParams) -> bool:
    """Whether all epochs are done, or `patience` of them have passed without a lower dev EER."""
    if not curves:
        return False
    lowest = min(curves, key=lambda epoch: epoch.dev_eer)  # the first of equals
    return len(curves) >= params.epochs or len(curves) - lowest.epoch >= params.patience


def _epochs(system: System, job: Job, *, place: Checkpoint, say: Say) -> list[Epoch]:
    """Train until finished, from the checkpoint where there is one; the curves of all epochs."""
    params = job.params
    optimizer = optimizer_of(system, params)
    curves = place.load(system, optimizer)
    each = len(steps(job.train.trials.is_bonafide, params, epoch=1))
    say(_plan(system, job, done=len(curves), each=each))
    with tqdm(total=params.epochs * each, initial=len(curves) * each, unit="step", disable=None) as bar:
        clock = Clock(each=each, epochs=params.epochs - len(curves), say=say)
        while not _finished(curves, params):
            epoch = len(curves) + 1
            if isinstance(system.loss, Enrols):
                system.loss.start_epoch(epoch, lambda: _enrolment(system, job))
            mean = train_epoch(system, optimizer, job, epoch=epoch, bar=bar, clock=clock)
            curves.append(Epoch(epoch, mean, 100 * dev_eer(system, job).eer))
            place.save(curves, system, optimizer, keep=_best(curves, params.average_best))
            bar.set_postfix(loss=f"{mean:.3f}", dev_eer=f"{curves[-1].dev_eer:.2f} %")
            say(f"epoch {epoch}: loss {mean:.4f}, dev EER {curves[-1].dev_eer:.2f} %")
    return curves


def _plan(system: System, job: Job, *, done: int, each: int) -> str:
    params = job.params
    counts = {name: _count(module) for name, module in system.named_children()}
    lines = [
        f"{len(job.train.trials)} utterances to train on, {len(job.dev.trials)} to select on; layers "
        f"{', '.join(map(str, params.layers))}; {params.precision} on {job.device}",
        f"{sum(counts.values()):,} trainable parameters: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()),
        f"{each} steps of {params.accumulate} × {params.batch_size} utterances an epoch, up to {params.epochs} epochs",
    ]
    return "\n".join([*lines, f"{done} epochs are done; going on with the next"] if done else lines)


class Clock:
    """Tells once, after the first steps, how long an epoch takes."""

    def __init__(self, *, each: int, epochs: int, say: Say) -> None:
        self._each, self._epochs, self._say = each, epochs, say
        self._count = itertools.count()
        self._start = 0.0

    def tick(self) -> None:
        """A step is done."""
        count = next(self._count)
        if count == 0:
            self._start = time.perf_counter()
        if count == TIMED:
            epoch = (time.perf_counter() - self._start) / TIMED * self._each
            self._say(f"about {_duration(epoch)} an epoch, {_duration(epoch * self._epochs)} in all, dev set apart")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def train_epoch(system: System, optimizer: torch.optim.Adam, job: Job, *, epoch: int, bar: Any, clock: Clock) -> float:
    """One pass over the training set; the mean loss over its steps. Raises InputError where the loss is not finite."""
    params = job.params
    system.train()
    torch.manual_seed((params.seed << 20) + epoch)  # the backend's dropout
    plan = steps(job.train.trials.is_bonafide, params, epoch=epoch)
    parts = ahead(itertools.chain.from_iterable(plan), lambda row: load_drawn(job, row, epoch=epoch))
    losses: list[float] = []
    with contextlib.closing(parts):
        for step in plan:
            losses.append(_accumulate(system, job, itertools.islice(parts, len(step)), size=sum(map(len, step))))
            if not math.isfinite(losses[-1]):
                raise InputError(f"epoch {epoch}: the loss is {losses[-1]}; lower encoder.finetune.learning_rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
            clock.tick()
    return sum(losses) / len(losses)


def _accumulate(system: System, job: Job, parts: Iterable[tuple[Rows, list[Utterance]]], *, size: int) -> float:
    """Add up the gradients of the parts of a step of `size` utterances, each by its share of them; the loss."""
    total = 0.0
    for rows, utterances in parts:
        labels = lowered(sampling.take(job.labels, rows), utterances, job.device)
        value: Tensor = system.loss(system(*_batch(utterances, job.device)), labels) * (len(rows) / size)
        value.backward()  # type: ignore[no-untyped-call]
        total += value.item()
    return total


# Scoring


@torch.no_grad()
def embeddings(system: System, speech: Speech, job: Job, rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
    """Embeddings (B, E) float32 on the CPU of the clean windows of some rows, in order; leaves the system in eval."""
    system.eval()
    chunks = (rows[start : start + job.params.batch_size] for start in range(0, len(rows), job.params.batch_size))
    for chunk, utterances in ahead(chunks, lambda row: load_clean(speech, row, window=job.window)):
        yield chunk, system(*_batch(utterances, job.device)).float().cpu()


def dev_eer(system: System, job: Job) -> Eer:
    """EER of the deployed score on the dev set, a share, and its threshold."""
    trials = job.dev.trials
    index = centroids.build(_centroids(system))
    scores = [
        _scores(found.numpy(), index, trials.utterance[rows].tolist())
        for rows, found in embeddings(system, job.dev, job, np.arange(len(trials)))
    ]
    joined = np.concatenate(scores).astype(float)
    return official_eer(det_points(joined[trials.is_bonafide], joined[~trials.is_bonafide]))


def _scores(found: NDArray[np.float32], index: centroids.CentroidIndex, names: list[str]) -> NDArray[np.float32]:
    if not np.isfinite(found).all():
        raise InputError("an embedding of the dev set is not finite; lower encoder.finetune.learning_rate")
    return scorer.score(found, index, names=names)


def _enrolment(system: System, job: Job) -> tuple[Tensor, Tensor]:
    """Embeddings (M, E) of all bona fide training utterances, in eval mode, and their speakers (M,)."""
    rows = np.flatnonzero(job.train.trials.is_bonafide)
    found = torch.cat([part for _, part in embeddings(system, job.train, job, rows)])
    return found.to(job.device), sampling.take(job.labels, rows).speaker.to(job.device)


# Checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """The state of an unfinished training: weights of the best epochs and the last, Adam's moments of the last.

    The curves are written last and say which epoch that is; files that they do not ask for are removed.
    """

    folder: Path

    @classmethod
    def of(cls, weights: Path, card: Card, *, cell: Cell, job: Job) -> Checkpoint:
        """The checkpoint of a training beside the folder that it will write.

        Trainings with other parameters or data have other places: going back to old parameters finds the old state.
        """
        return cls(weights.with_name(f"{weights.name}.checkpoint") / specs.fingerprint(identity(card, cell, job)))

    def remove(self) -> None:
        """Forget the training; its outputs are written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are unfinished
            self.folder.parent.rmdir()

    def model(self, epoch: int) -> Path:
        """Weights after an epoch."""
        return self.folder / f"model_{epoch:04d}.safetensors"

    def adam(self, epoch: int) -> Path:
        """Adam's moments after an epoch."""
        return self.folder / f"adam_{epoch:04d}.safetensors"

    def save(self, curves: Sequence[Epoch], system: System, optimizer: torch.optim.Adam, *, keep: list[Epoch]) -> None:
        """Write the state after the last epoch of `curves`; of earlier ones the weights of `keep` stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = curves[-1].epoch
        _write_tensors(self.model(last), system.learned())
        _write_tensors(self.adam(last), _moments(optimizer))
        lines = [dataclasses.asdict(epoch) for epoch in curves]
        write_text(self.folder / CURVES_FILE, json.dumps({"epochs": lines}, indent=2) + "\n")
        wanted = {self.model(epoch.epoch) for epoch in keep} | {self.model(last), self.adam(last)}
        for path in self.folder.glob("*.safetensors*"):
            if path not in wanted:
                path.unlink()

    def load(self, system: System, optimizer: torch.optim.Adam) -> list[Epoch]:
        """Put the state after the last epoch back and give the curves; none where nothing was saved.

        Raises InputError where the files are damaged.
        """
        path = self.folder / CURVES_FILE
        if not path.is_file():
            return []
        remedy = f"remove {self.folder}"
        found = read_json(path, what="checkpoint of a fine-tuning", keys=("epochs",), remedy=remedy)
        curves = [Epoch(**epoch) for epoch in found["epochs"]]
        try:
            system.restore(load_file(self.model(curves[-1].epoch)))
            _restore_moments(optimizer, load_file(self.adam(curves[-1].epoch)))
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{self.folder}: the checkpoint is damaged ({error}); {remedy}") from None
        return curves


def _write_tensors(path: Path, tensors: State) -> None:
    beside = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def _moments(optimizer: torch.optim.Adam) -> State:
    """Adam's state as `<parameter's number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": tensor.cpu() for i, kept in state.items() for name, tensor in kept.items()}


def _restore_moments(optimizer: torch.optim.Adam, moments: State) -> None:
    state: dict[int, State] = {}
    for key, tensor in moments.items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def average(paths: Sequence[Path]) -> State:
    """The mean of checkpoints, tensor by tensor; counts are taken from the first, the best."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        return {
            name: progress.average([{name: file.get_tensor(name)} for file in files])[name]
            for name in list(files[0].keys())
        }


# What is written


def save(folder: Path, tuned: Tuned, *, run: dict[str, Any], source: str) -> None:
    """Write the encoder as transformers does, and within, as a run, its backend and centroids; whole or not at all."""
    beside = folder_beside(folder)
    models.save(tuned.model, beside)
    weights = {name: tensor.numpy() for name, tensor in tuned.backend.state_dict().items()}
    runs.save(beside / RUN_FOLDER, weights=weights, centroids=tuned.centroids, card=run)
    models.write_note(beside, f"{source}, fine-tuned; {RUN_FOLDER}/ has the backend and centroids.")
    replace_folder(beside, folder, mark=models.NOTE_FILE)


def run_card(tuned: Tuned, *, card: Card, source: Card, cell: Cell, job: Job, cuts: Sequence[float]) -> dict[str, Any]:
    """The card of the run, as `train` writes it.

    Args:
        card: of the fine-tuned encoder. source: of the encoder that it was.
        cuts: the MOS at which quality levels part.
    """
    return {
        "backend": cell.backend_name,
        "backend_parameters": cell.backend_parameters,
        "loss": cell.loss_name,
        "loss_parameters": cell.loss_parameters,
        "quality_thresholds": list(cuts),
        "views": job.params.views.model_dump(),
        "finetune": job.params.model_dump(),
        "finetuned_from": {"source": source.source, "weights_sha256": source.weights_sha256},
        "reads": cell.backend.reads,
        "kind": {"layers": list(job.params.layers), "channels": card.channels},
        "seed": job.params.seed,
        "epochs_averaged": list(tuned.kept),
        "dev_eer": round(tuned.dev_eer, 5),
        "dev_threshold": tuned.dev_threshold,
        "epochs": len(tuned.curves),
        "parameters": tuned.parameters,
        "curves": [dataclasses.asdict(epoch) for epoch in tuned.curves],
    }
