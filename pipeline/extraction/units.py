"""Units of work of an extraction, wherever they run: one shard of one view, from files of audio to its marker.

While the encoder works on a unit, the next one is decoded and augmented, and the last one pooled, checked and written.
A unit that cannot be made is told and left out, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.audio import loader
from pipeline.audio.loader import Clip
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import HopelessError, InputError
from pipeline.core.params import EncoderParams, ExtractParams
from pipeline.encoder.cards import Card
from pipeline.features.store import Store

if TYPE_CHECKING:
    from pipeline.encoder.xlsr import Encoder
    from pipeline.extraction.forward import Features


Advance = Callable[[int], object]
MakeEncoder = Callable[[tuple[Tap, ...]], "Encoder"]


@dataclass(frozen=True)
class Unit:
    """One shard of a view and the layers that it still needs."""

    shard: int
    view: str
    layers: tuple[Tap, ...]


@dataclass(frozen=True)
class Recipe:
    """What makes the encoder of the parameters, in any process. weights, card: as `xlsr.deployed` takes them."""

    params: EncoderParams
    weights: Path | None
    card: Card
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]

    def __call__(self, taps: tuple[Tap, ...]) -> Encoder:
        """The encoder on its device. Raises InputError where it is not the one on the card."""
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
    advance: Advance,
) -> list[str]:
    """Make units, one after the other; what is wrong with those that could not be made.

    Args:
        tasks: units, each with what gives the utterances of its shard. advance: told how many more are computed.

    Raises HopelessError where an object store is out of reach or nothing fits into memory, InputError where a process
    that augments died, OSError where the disk is full: then nothing goes on.
    """
    from pipeline.extraction.forward import BatchSize, compute

    batch, problems = BatchSize(params.first_batch, grows=params.batch_size == "auto"), []
    with (
        loader.pool(augmenting=any(unit.view != CLEAN for unit, _ in tasks)) as pool,
        _Behind(target) as behind,
    ):

        def load(task: int) -> tuple[list[str], loader.Loading]:
            unit, clips = tasks[task][0], tasks[task][1]()
            loading = loader.load(pool, clips, view=unit.view, window=params.window)
            return [clip.utterance for clip in clips], loading

        following = load(0)
        for i, (unit, _) in enumerate(tasks):
            names, loading = following
            if i + 1 < len(tasks):
                following = load(i + 1)
            try:
                found = compute(
                    model,
                    lambda rows, loading=loading: loader.loaded(loading, rows),  # type: ignore[misc]
                    unit.layers,
                    batch=batch,
                    names=names,
                    advance=advance,
                )
            except HopelessError:
                raise
            except InputError as error:
                problems.append(_problem(unit, error))
                continue
            behind.write(unit, found)
    return problems + behind.problems


class _Behind:
    """Writes units on a thread, one behind the computation and no more: memory stays bounded."""

    def __init__(self, target: Store) -> None:
        self.problems: list[str] = []
        self._target = target
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: tuple[Unit, Future[None]] | None = None

    def __enter__(self) -> _Behind:
        return self

    def write(self, unit: Unit, found: Features) -> None:
        self._settle()
        self._last = unit, self._thread.submit(self._write, unit, found)

    def _write(self, unit: Unit, found: Features) -> None:
        self._target.write(unit.view, unit.shard, *found.blocks())

    def _settle(self) -> None:
        if self._last is None:
            return
        (unit, future), self._last = self._last, None
        try:
            future.result()
        except HopelessError:
            raise
        except InputError as error:
            self.problems.append(_problem(unit, error))

    def __exit__(self, *_: object) -> None:
        try:
            self._settle()
        finally:
            self._thread.shutdown()


def _problem(unit: Unit, error: InputError) -> str:
    return f"shard {unit.shard} of {unit.view}: {error}"
