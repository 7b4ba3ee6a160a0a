"""End-to-end fine-tuning: XLSR, a backend and a loss trained together, from audio, by the loop of stage two.

The published countermeasures are trained so (Tak et al., "Automatic speaker verification spoofing and deepfake
detection using wav2vec 2.0 and data augmentation", Odyssey 2022, arXiv 2202.12233; Truong et al., QAMO, arXiv
2509.20679): Adam, a small learning rate for the encoder, RawBoost on the fly, the average of the k best checkpoints.

Nothing in the encoder is random in training unless the parameters ask for it (see `regularization`). Weights, gradients
and Adam's moments are float32 (with LoRA, those of the low-rank updates, which are averaged each and then merged); with
bfloat16 the encoder alone computes under autocast, backend and loss in float32. The encoder is trained up to the
highest layer that the backend reads; layers above it keep their weights.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pipeline.core.contracts import CLEAN, Labels
from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.encoder import xlsr
from pipeline.features import sampling
from pipeline.features.sampling import Augment
from pipeline.finetuning import memory, ranks, schedule, speech
from pipeline.finetuning.clock import Clock
from pipeline.finetuning.event_files import EventFiles
from pipeline.finetuning.plan import Asked
from pipeline.finetuning.ranks import Rows
from pipeline.finetuning.regularization import regularize
from pipeline.finetuning.speech import Speech, Utterance
from pipeline.finetuning.system import EndToEnd, Objective, add_lora, blocks, compute_twice, merge_lora, unfreeze
from pipeline.training import adam, drawing, loop
from pipeline.training.adam import Groups
from pipeline.training.history import Epoch, to_csv
from pipeline.training.loop import Fitted, Learner, Say

SECTION = "encoder.finetune"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SpeechLearner(Learner):
    """A system to train end to end on audio. labels: on the CPU. augment: views that are made on the fly.

    curves: a CSV file that has the curves of the training while it runs. events: gets them, too.
    """

    params: FinetuneParams
    asked: Asked
    say: Say
    curves: Path | None = None
    events: EventFiles | None = None

    @property
    def identity(self) -> str:
        """Fingerprint of all that the result depends on."""
        return self.asked.identity

    @cached_property
    def clock(self) -> Clock:
        """Says how long an epoch takes, and on a GPU how much memory."""
        return Clock(each=self.each, epochs=self.params.epochs, device=self.device, say=self.say)

    @cached_property
    def each(self) -> int:
        """The number of steps in an epoch, the same in all."""
        return len(self.steps(epoch=1))

    def steps(self, *, epoch: int) -> list[list[Rows]]:
        """The rows of every step of an epoch, in parts that go through the encoder at once."""
        return speech.steps(self.train.is_bonafide, self.params, epoch=epoch)

    def groups(self) -> Groups:
        """The parameters that learn, with their learning rates."""
        rates = self.params.learning_rate
        encoder = [parameter for parameter in self.system.encoder.parameters() if parameter.requires_grad]
        return [(encoder, rates.encoder), *adam.groups(self.system.backend, self.system.loss, rates)]

    def pace(self, epoch: int, step: int) -> float:
        """The factor on all learning rates in a step; both count from 1."""
        return schedule.rate(self.params, done=epoch - 1 + step / self.each)

    @property
    def clip(self) -> float | None:
        """The largest norm of all gradients together; None where they are taken as they are."""
        return self.params.clip_gradient

    def losses(self, epoch: int) -> Generator[Tensor]:
        """For each step of an epoch, in order, add up the gradients and yield the loss, detached."""
        plan = self.steps(epoch=epoch)
        drawn, labels = self.drawn(epoch)

        def load(row: int) -> Utterance:
            view = CLEAN if drawn[row] == drawing.CLEAN_VIEW else self.augment.views[drawn[row]]
            return speech.load_drawn(
                self.asked.train,
                row,
                view,
                seed=self.seed,
                epoch=epoch,
                window=self.asked.window,
                crop=self.params.crop,
            )

        with contextlib.closing(speech.loaded(itertools.chain.from_iterable(plan), load)) as parts:
            for step in tqdm(plan, desc=f"epoch {epoch}", unit="step", leave=False, disable=self.silent):
                yield self.loss(itertools.islice(parts, len(step)), labels, size=sum(map(len, step)))
                self.clock.tick()

    def loss(self, parts: Iterator[tuple[Rows, list[Utterance]]], labels: Labels, *, size: int) -> Tensor:
        """The loss of a step of `size` utterances, detached; the gradients of its parts, each by its share, add up.

        Of several processes each has its share of every part, and all get the gradients and the loss of the whole.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        done = 0
        for rows, utterances in parts:
            done += len(rows)
            of_part = Labels(
                **{
                    name: column.to(self.device)
                    for name, column in vars(sampling.take(labels, ranks.share(rows))).items()
                }
            )
            with self._brought_together(done == size):
                value: Tensor = self.step(*speech.batch(utterances, self.device), of_part)
                value = value * (len(rows) / size)
                value.backward()  # type: ignore[no-untyped-call]
            total += value.detach()
        return ranks.mean(total)

    @cached_property
    def step(self) -> nn.Module:
        """Windows and labels to the loss; of several processes, with gradients that are averaged over them."""
        step = Objective(self.system)
        if ranks.count() == 1:
            return step
        # LayerDrop leaves out layers, in each process others, and Conformers have weights that they never use. With one
        # more that is never used, there is no warning where all others are.
        step.register_parameter("unused", nn.Parameter(torch.zeros(1, device=self.device)))
        return DistributedDataParallel(step, find_unused_parameters=True)

    def _brought_together(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Within, gradients are averaged over the processes if this is the last part of a step, and only add up
        before."""
        if last or not isinstance(self.step, DistributedDataParallel):
            return contextlib.nullcontext()
        kept: contextlib.AbstractContextManager[None] = self.step.no_sync()
        return kept

    @property
    def rank(self) -> int:
        """The number of this process among those that train together."""
        return ranks.rank()

    def agreed(self, value: T) -> T:
        """What the first process has, in all."""
        return ranks.agreed(value)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        ranks.spread(tensors)

    def embed_train(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """Embeddings (B, E) of the clean windows of some training trials, in order."""
        return self._embed(self.asked.train, rows)

    def embed_dev(self, *, epoch: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Embeddings (B, E) of the dev set, in order, whatever the epoch. Raises InputError where one is not finite."""
        for embeddings in self._embed(self.asked.dev, np.arange(len(self.dev))):
            found = embeddings.cpu().numpy()
            if not np.isfinite(found).all():
                raise InputError(f"an embedding of the dev set is not finite; lower {SECTION}.learning_rate")
            yield found

    @torch.no_grad()
    def _embed(self, spoken: Speech, rows: Rows) -> Iterator[Tensor]:
        self.system.eval()
        size = self.params.batch_size
        chunks = (rows[start : start + size] for start in range(0, len(rows), size))
        found = speech.loaded(chunks, lambda row: speech.load_clean(spoken, row, window=self.asked.window))
        with contextlib.closing(found) as parts:
            for batch, utterances in parts:
                own = torch.zeros(0, self.system.backend.embedding_dim, device=self.device)
                if utterances:
                    own = self.system(*speech.batch(utterances, self.device)).float()
                yield ranks.gathered(own, len(batch))

    def show(self, curves: Sequence[Epoch]) -> None:
        """Write the curves up to the epoch that just ended."""
        if self.curves:
            write_text(self.curves, to_csv(epoch.facts for epoch in curves))
        if self.events:
            self.events.add(curves)

    def finish(self) -> None:
        """Merge low-rank updates, and compute in float32 as extraction does."""
        merge_lora(self.system.encoder.model)
        self.system.precision = "float32"


def finetune(
    model: Any,
    asked: Asked,
    *,
    device: torch.device,
    checkpoint: Path | None,
    say: Say,
    curves: Path | None = None,
    events: EventFiles | None = None,
) -> Fitted:
    """Train encoder, backend and loss together, select by the dev EER of the deployed score, average the k best.

    Args:
        model: the whole encoder, as `models.load` gives it with its card; it is changed, and is the tuned one then.
        checkpoint: folder where the state after an epoch is kept, and found again. say: is given the plan and a line
            an epoch. curves: a CSV file that has the curves while the training runs. events: gets them, too.

    Raises InputError where layers or parameters do not fit, audio cannot be used, or the loss stops being finite.
    """
    layers = model.encoder.layers
    with loop.seeded(asked.params.seed, device), ranks.joint_statistics(), memory.enough(asked.params):
        learner = learner_of(
            make_system(model, asked, device), asked, device=device, say=say, curves=curves, events=events
        )
        _check_shares(learner)
        say(_plan(learner))
        fitted = loop.train(learner, checkpoint=checkpoint, say=say)
    learner.system.cpu().eval().requires_grad_(False)
    for block in blocks(model):
        vars(block).pop("forward", None)  # the class's own again
    model.encoder.layers = layers.cpu()
    return fitted


def learner_of(
    system: EndToEnd,
    asked: Asked,
    *,
    device: torch.device,
    say: Say,
    curves: Path | None = None,
    events: EventFiles | None = None,
) -> SpeechLearner:
    """The learner that trains a system as it is asked for."""
    params = asked.params
    return SpeechLearner(
        system=system,
        train=asked.train.trials,
        dev=asked.dev.trials,
        labels=asked.labels,
        params=params,
        seed=params.seed,
        augment=Augment(params.views.draw, params.views.probability),
        device=device,
        section=SECTION,
        asked=asked,
        say=say,
        curves=curves,
        events=events,
    )


def make_system(model: Any, asked: Asked, device: torch.device) -> EndToEnd:
    """The system on its device, initialized from torch's global generator. Its encoder is `model`, cut."""
    params = asked.params
    count = len(params.layers)
    backend = asked.cell.make_backend(layers=count, channels=asked.card.channels)
    speakers = int(asked.labels.speaker.max()) + 1
    loss = asked.cell.make_loss(embedding_dim=backend.embedding_dim, speakers=speakers, layers=count)
    card = asked.card
    encoder = xlsr.Encoder(model, taps=params.layers, normalize=card.normalize, normalize_eps=card.normalize_eps)
    if params.lora:
        add_lora(model, params.lora)
    else:
        unfreeze(encoder, front_end=not params.freeze_front_end)
    if params.gradient_checkpointing:
        compute_twice(model)
    regularize(encoder, params)
    return EndToEnd(encoder, backend, loss, precision=params.precision).to(device)


def _check_shares(learner: SpeechLearner) -> None:
    """Raise InputError where a part of a step has fewer utterances than there are processes."""
    fewest = min(len(rows) for step in learner.steps(epoch=1) for rows in step)  # as in all epochs
    if fewest < ranks.count():
        raise InputError(
            f"{SECTION}.batch_size: expected an utterance for each of {ranks.count()} processes, got batches of "
            f"{fewest}; raise it, or lower {SECTION}.processes"
        )


def _plan(learner: SpeechLearner) -> str:
    params, each = learner.params, learner.each
    shared = f", shared by {ranks.count()} processes" if ranks.count() > 1 else ""
    counts = {
        name: sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        for name, module in learner.system.named_children()
    }
    return "\n".join(
        [
            f"{len(learner.train)} utterances to train on, {len(learner.dev)} to select on; layers "
            f"{', '.join(map(str, params.layers))}; {params.precision} on {learner.device}",
            f"{sum(counts.values()):,} trainable parameters: "
            + ", ".join(f"{n:,} {name}" for name, n in counts.items()),
            f"{each} steps of {params.accumulate} × {params.batch_size} utterances an epoch, up to {params.epochs} "
            f"epochs{shared}",
            memory.plan(learner.system, params, learner.device),
        ]
    )
