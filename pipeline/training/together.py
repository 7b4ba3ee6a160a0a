"""Several trainings in one process, which take turns and look at the same batches in memory.

A training is a generator that stops at each batch (see `loop`). All that are furthest behind go on by one batch, one
after the other. So they stay side by side, and one that goes on from a later checkpoint waits for the others. A batch
that several want is read, converted and copied to the device once.

Each comes to the bits of a training alone: it has torch's random generators to itself, and a batch that one of them
changes in place is read anew for the others.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.features import streaming
from pipeline.features.sources import Addresses, Source
from pipeline.features.streaming import Batch

T = TypeVar("T")
Place = tuple[int, int, int]  # epoch, pass within the epoch, batches seen in this pass
Stops = Generator[Place, None, T]
START: Place = (0, 0, 0)


def alone(training: Stops[T]) -> T:
    """Run a training to its end by itself."""
    while True:
        try:
            next(training)
        except StopIteration as ended:
            result: T = ended.value
            return result


class Seat:
    """What a training alone gets: features and batches of its own, and the clock.

    reads: the kind of features that it reads. Trainings of one kind take turns, one kind after the other.
    """

    reads = ""

    def now(self) -> float:
        """A clock in seconds."""
        return time.perf_counter()

    def opened(self, _key: Hashable, make: Callable[[], T]) -> T:
        """The thing that `make` opens."""
        return make()

    def stream(
        self, source: Source, batches: Iterable[Addresses], *, device: torch.device, key: Hashable
    ) -> Generator[Batch]:
        """The batches of `streaming.stream`. key: says, with the source, which batches these are."""
        del key  # nobody shares them
        return streaming.stream(source, batches, device=device)


ALONE = Seat()


@dataclass
class Shared:
    """What several trainings share: what they opened, and their passes over batches, by keys."""

    opened: dict[Hashable, Any] = field(default_factory=dict)
    passes: dict[Hashable, _Pass] = field(default_factory=dict)


class SharedSeat(Seat):
    """What one of several trainings gets."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._used, self._since = 0.0, time.perf_counter()

    def now(self) -> float:
        """A clock in seconds that stands still while others have their turn."""
        return self._used + time.perf_counter() - self._since

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let the clock run within."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._used = self.now()

    def opened(self, key: Hashable, make: Callable[[], T]) -> T:
        """The thing that `make` opens. Of several with one key the first one opens it for all."""
        if key not in self._shared.opened:
            self._shared.opened[key] = make()
        found: T = self._shared.opened[key]
        return found

    def stream(
        self, source: Source, batches: Iterable[Addresses], *, device: torch.device, key: Hashable
    ) -> Generator[Batch]:
        """The batches of `streaming.stream`; each is read by the first that asks, for all of the same source and key.

        Those of one key ask for a batch before any of them asks for the next one.
        """
        whole = (id(source), key)
        shared = self._shared.passes.setdefault(whole, _Pass(source, batches, device))
        count = 0
        while (batch := shared.batch(count)) is not None:
            yield batch
            count += 1


class _Pass:
    """One pass over batches for all that make it side by side."""

    def __init__(self, source: Source, batches: Iterable[Addresses], device: torch.device) -> None:
        self._source, self._batches, self._device = source, batches, device
        self._ahead: deque[Addresses] = deque()  # of the batches that are being read
        self._stream: Generator[Batch] | None = None
        self._count = 0
        self._batch: Batch | None = None
        self._versions: tuple[int, ...] = ()
        self._error: Exception | None = None

    def batch(self, number: int) -> Batch | None:
        """The batch of this number, counted from 0: the one of the last call, or the next one. None after the last."""
        if number == self._count:
            self._read_next()
            self._count += 1
        assert number == self._count - 1  # noqa: S101  # see `take_turns`
        if self._error is not None:  # a stream that failed once would end silently for the others
            raise self._error
        if self._batch is not None and self._versions != _versions(self._batch):
            with torch.inference_mode(mode=False):
                features, n_frames = streaming.read(self._source, self._addresses)
                self._keep((features.to(self._device), n_frames.to(self._device)))
        return self._batch

    def _read_next(self) -> None:
        if self._stream is None:
            self._stream = streaming.stream(self._source, self._noted(), device=self._device)
        try:
            with torch.inference_mode(mode=False):  # tensors of inference do not say whether they were changed
                self._keep(next(self._stream, None))
        except Exception as error:
            self._error = error
        if self._batch is not None:
            self._addresses = self._ahead.popleft()

    def _noted(self) -> Iterator[Addresses]:
        for addresses in self._batches:
            self._ahead.append(addresses)
            yield addresses

    def _keep(self, batch: Batch | None) -> None:
        self._batch, self._versions = batch, _versions(batch or ())

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self._stream is not None:
            self._stream.close()


def _versions(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """How often each tensor was changed in place."""
    return tuple(tensor._version for tensor in tensors)


# ---------------------------------------------------------------- turns


class _Member:
    """One of several trainings: where it is, its seat, and the state of torch's random generators for it."""

    def __init__(self, number: int, make: Callable[[Seat], Stops[object]], shared: Shared) -> None:
        self.number, self.place, self.ended = number, START, False
        self.seat = SharedSeat(shared)
        self.error: BaseException | None = None
        self._steps = make(self.seat)
        self._random = _random()

    @property
    def behind(self) -> tuple[str, Place]:
        """The lower, the further behind."""
        return self.seat.reads, self.place

    def go_on(self) -> None:
        """Run up to the next stop or the end, whatever that is."""
        others = _random()
        _set_random(self._random)
        try:
            with self.seat.turn():
                self.place = next(self._steps)
        except StopIteration:
            self.ended = True
        except (Exception, SystemExit) as error:
            self.ended, self.error = True, error
        finally:
            self._random = _random()
            _set_random(others)


def take_turns(
    trainings: Sequence[Callable[[Seat], Stops[object]]],
    around: Callable[[int], contextlib.AbstractContextManager[object]] = lambda _number: contextlib.nullcontext(),
) -> Iterator[tuple[int, BaseException | None]]:
    """Run trainings side by side; yield the number of each when it ends, with the error that ended it, or None.

    A training that fails or ends early leaves the others as they are. around: makes a context for each turn of the
    training of this number.
    """
    shared = Shared()
    members = [_Member(number, make, shared) for number, make in enumerate(trainings)]
    try:
        while members:
            last = min(member.behind for member in members)
            for member in [member for member in members if member.behind == last]:
                with around(member.number):
                    member.go_on()
                if member.ended:
                    members.remove(member)
                    yield member.number, member.error
            members = members[1:] + members[:1]  # whoever is first waits for the reading
    finally:
        for one in shared.passes.values():
            one.close()


def _random() -> tuple[Tensor, ...]:
    """The state of torch's random generators: of the CPU, and of a GPU that is in use."""
    cuda = (torch.cuda.get_rng_state(),) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), *cuda


def _set_random(states: tuple[Tensor, ...]) -> None:
    """Set the random generators to a state of `_random`."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
