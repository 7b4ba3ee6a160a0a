"""The units of work of an extraction. A unit is one shard of one view, from its audio files to its marker.

While the encoder computes one unit, threads or processes decode and augment the next one, and other threads check and
write the last ones. A unit that fails is reported, and the others are still made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.audio import loader
from pipeline.audio.loader import Clip
from pipeline.audio.recordings import Recordings
from pipeline.core import windows
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import HopelessError, InputError
from pipeline.core.sections import ExtractParams
from pipeline.encoder.cards import Card
from pipeline.features import libraries
from pipeline.features.store import Store

if TYPE_CHECKING:
    from pipeline.encoder.xlsr import Encoder
    from pipeline.extraction.forward import Features


WRITING = 3  # units that are written at once: one is encoded, one hashed, one on its way to the disk
WRITING_BYTES = 2**30  # of them together; one larger than this is written alone
Advance = Callable[[int], object]
MakeEncoder = Callable[[tuple[Tap, ...]], "Encoder"]


@dataclass(frozen=True)
class Unit:
    """One shard of a view, with the layers that it still lacks."""

    shard: int
    view: str
    layers: tuple[Tap, ...]


@dataclass(frozen=True)
class Recipe:
    """Loads the encoder of the parameters, in any process. weights, card: as in `encoder.models.deployed`."""

    params: EncoderParams
    weights: Path | None
    card: Card
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]

    def __call__(self, taps: tuple[Tap, ...]) -> Encoder:
        """Load the encoder onto its device. Raises InputError where it is not the encoder of the card."""
        from pipeline.encoder import models

        return models.deployed(
            self.params, taps, weights=self.weights, card=self.card, device=self.device, precision=self.precision
        )


def make(
    tasks: Sequence[tuple[Unit, Callable[[], list[Clip]]]],
    *,
    target: Store,
    model: Encoder,
    params: ExtractParams,
    recordings: Mapping[str, Recordings],
    advance: Advance,
) -> list[str]:
    """Make units, one after the other, and return one message for each unit that failed.

    Args:
        tasks: units, each with a function that gives the utterances of its shard. recordings: those of each view that
            takes sound from some. advance: called with the number of utterances that were computed.

    Raises HopelessError where an object store does not answer or nothing fits into memory, InputError where a process
    that augments died, OSError where the disk is full. These stop the whole work.
    """
    from pipeline.extraction.forward import BatchSize, compute

    batch, problems = BatchSize(params.first_batch, grows=params.batch_size == "auto"), []
    augmented = any(windows.parse(unit.view)[0] != CLEAN for unit, _ in tasks)
    heavy = augmented or next(model.parameters()).is_cuda
    with loader.open_executor(heavy=heavy) as executor, _Writer(target) as writer:
        for unit, names, loading in _loading(tasks, executor, params, recordings, normalized=model.normalize != "none"):
            loaded = partial(loader.loaded, loading)
            try:
                found = compute(model, loaded, unit.layers, batch=batch, names=names, advance=advance)
            except HopelessError:
                raise
            except InputError as error:
                problems.append(_problem(unit, error))
                continue
            writer.write(unit, found)
    return problems + writer.problems


def _loading(
    tasks: Sequence[tuple[Unit, Callable[[], list[Clip]]]],
    executor: Executor,
    params: ExtractParams,
    recordings: Mapping[str, Recordings],
    *,
    normalized: bool,
) -> Iterator[tuple[Unit, list[str], loader.Loading]]:
    """Yield each unit with the names of its utterances and their windows, which load while the unit before computes."""

    ahead: deque[tuple[Unit, list[str], loader.Loading]] = deque()
    try:
        for unit, clips_of in tasks:
            clips = clips_of()
            loading = loader.load(
                executor,
                clips,
                view=unit.view,
                window=params.window,
                normalized=normalized,
                recordings=recordings.get(windows.parse(unit.view)[0]),
            )
            ahead.append((unit, [clip.utterance for clip in clips], loading))
            if len(ahead) > 1:
                yield ahead[0]
                ahead.popleft()[2].close()
        yield ahead[0]
    finally:
        for _unit, _names, loading in ahead:
            loading.close()


class _Writer:
    """Writes units on threads, several at once while they are small, so memory stays bounded."""

    def __init__(self, target: Store) -> None:
        self.problems: list[str] = []
        self._target = target
        self._threads = ThreadPoolExecutor(WRITING, thread_name_prefix="write")
        self._ahead: deque[tuple[Unit, Future[None]]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def write(self, unit: Unit, found: Features) -> None:
        spec = self._target.spec
        size = spec.bytes_of(len(unit.layers), rows=len(spec.rows(unit.shard)))
        self._settle(min(WRITING, max(1, WRITING_BYTES // size)) - 1)
        self._ahead.append((unit, self._threads.submit(self._write, unit, found)))

    def _write(self, unit: Unit, found: Features) -> None:
        self._target.write(unit.view, unit.shard, *found.blocks(), made=libraries.at_work())

    def _settle(self, most: int) -> None:
        """Wait until at most so many units are on their way, and look at those that have arrived."""
        while self._ahead and (len(self._ahead) > most or self._ahead[0][1].done()):
            unit, future = self._ahead.popleft()
            try:
                future.result()
            except HopelessError:
                raise
            except InputError as error:
                self.problems.append(_problem(unit, error))

    def __exit__(self, *_: object) -> None:
        try:
            self._settle(0)
        finally:
            self._threads.shutdown(cancel_futures=True)


def _problem(unit: Unit, error: InputError) -> str:
    return f"shard {unit.shard} of {unit.view}: {error}"
