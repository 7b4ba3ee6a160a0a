"""Features by their addresses: where they lie, and reading them ahead of the computation.

Utterance i of N has the *address* i; in the v-th augmented view of a set it has the address v · N + i, v from 1. What
is gathered is named by addresses, so that augmentation is arithmetic on them.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.devices import CPU
from pipeline.errors import InputError
from pipeline.reader import Reader

Addresses = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]  # features (B, L, T, D) or (B, L, 2, D) float32, n_frames (B,) int64

CHUNK_BYTES = 8 * 2**20  # of features gathered ahead at once: small batches several at a time, large ones singly
SMALL_BYTES = 2 * 2**20  # of a batch, up to which a CPU that computes gathers it sooner than it hands it over


# ---------------------------------------------------------------- where features lie


class Source(Protocol):
    """Features of N utterances in one or more views."""

    @property
    def row(self) -> tuple[int, ...]:
        """(L, T, D) or (L, 2, D)."""

    @property
    def n_frames(self) -> NDArray[np.int32]:
        """(N,)."""

    @property
    def dtype(self) -> torch.dtype:
        """As stored: float16 frames, float32 means and standard deviations."""

    @property
    def device(self) -> torch.device:
        """Where `gather` needs its `out`."""

    @property
    def at_hand(self) -> bool:
        """Whether gathering is a copy in memory, and not a round trip to an object store."""

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row) with the features of B addresses."""


@dataclass(frozen=True)
class OnDisk:
    """Features read from a store as they are needed."""

    reader: Reader
    device: torch.device = CPU

    @property
    def at_hand(self) -> bool:
        """Whether the store is on a disk of this machine."""
        return self.reader.at_hand

    @property
    def row(self) -> tuple[int, ...]:
        """(L, T, D) or (L, 2, D)."""
        return self.reader.row

    @property
    def n_frames(self) -> NDArray[np.int32]:
        """(N,)."""
        return self.reader.n_frames

    @property
    def dtype(self) -> torch.dtype:
        """float16 or float32."""
        return self.reader.dtype

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row), in memory."""
        self.reader.gather(addresses, out)


@dataclass(frozen=True)
class Held:
    """Features that were read once: a tensor (V · N, *row), in memory or on a device. n_frames: (N,)."""

    tensor: Tensor
    n_frames: NDArray[np.int32]
    at_hand: bool = True

    @property
    def row(self) -> tuple[int, ...]:
        """(L, T, D) or (L, 2, D)."""
        return tuple(self.tensor.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """float16 or float32."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self.tensor.device

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row), on the tensor's device."""
        torch.index_select(self.tensor, 0, torch.from_numpy(addresses).to(self.device), out=out)


def hold(source: Source, *, views: int, device: torch.device, name: str) -> Held:
    """Read all of a source into memory or onto a device.

    Raises InputError, before anything is read, where it does not fit there.
    """
    shape = (views * len(source.n_frames), *source.row)
    needed, free = math.prod(shape) * source.dtype.itemsize, free_bytes(device)
    if needed > free:
        raise InputError(
            f"dataset.hold: {name} takes {needed:,} bytes ({len(source.n_frames)} utterances, {source.row[0]} layers, "
            f"{views} views), {free:,} are free on {device}; set it to disk, or train on fewer layers or views"
        )
    tensor = torch.empty(shape, dtype=source.dtype, device=device)
    step = max(1, CHUNK_BYTES // _row_bytes(source))
    for start in range(0, len(tensor), step):
        target = tensor[start : start + step]
        block = target if device.type == "cpu" else torch.empty(target.shape, dtype=source.dtype)
        source.gather(np.arange(start, start + len(target)), block)
        if block is not target:
            target.copy_(block)
    return Held(tensor, source.n_frames)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken in memory, by what Linux says and a container may, or on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    most = (group / "memory.max").read_text().strip() if (group / "memory.max").is_file() else "max"
    if most == "max":
        return free
    used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    taken = int((group / "memory.current").read_text()) - int(used["inactive_file"])  # caches give way
    return min(free, max(int(most) - taken, 0))


class Joined:
    """Several sources with the same views as one, one after the other in every view."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.row = sources[0].row
        self.dtype = sources[0].dtype
        self.device = sources[0].device
        self.at_hand = all(source.at_hand for source in sources)
        self.n_frames = np.concatenate([source.n_frames for source in sources])
        self._starts = np.cumsum([0, *(len(source.n_frames) for source in sources)])

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row), source by source."""
        views, rows = np.divmod(addresses, len(self.n_frames))
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for k, source in enumerate(self.sources):
            mine = np.flatnonzero(owner == k)
            block = torch.empty((len(mine), *self.row), dtype=self.dtype, device=self.device)
            source.gather(views[mine] * len(source.n_frames) + rows[mine] - self._starts[k], block)
            out.index_copy_(0, torch.from_numpy(mine).to(self.device), block)


# ---------------------------------------------------------------- reading


def read(source: Source, addresses: Addresses) -> Batch:
    """Features of B addresses as float32 in memory of their own, where the source is, and their valid frames."""
    block = torch.empty((len(addresses), *source.row), dtype=source.dtype, device=source.device)
    source.gather(addresses, block)
    return block.float(), valid_frames(source, addresses).to(block.device)


def valid_frames(source: Source, addresses: Addresses) -> Tensor:
    """Valid frames (B,) int64 of some addresses; all views of an utterance have the same."""
    return torch.from_numpy(source.n_frames[addresses % len(source.n_frames)].astype(np.int64))


def stream(source: Source, batches: Iterable[Addresses], *, device: torch.device = CPU) -> Generator[Batch]:
    """The features of each batch of addresses, float32 on the device, in order.

    A thread gathers the next chunk of batches, and moves it to a GPU, while this one is computed on; small batches for
    a CPU are gathered when they are asked for, where they are at hand. The numbers are those of `read`. A batch is
    valid until the next one is asked for: its memory is used again. What fails in the thread is raised here; close the
    generator, or let go of it, to end early.
    """
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    batches = itertools.chain(first, batches)
    if (
        device.type == "cpu"
        and source.at_hand
        and all(len(batch) * _row_bytes(source) <= SMALL_BYTES for batch in first)
    ):
        return _in_turn(source, batches)
    return _ahead(source, batches, device)


def _in_turn(source: Source, batches: Iterable[Addresses]) -> Generator[Batch]:
    slot, converted = _Slot(source, CPU), _Converted(CPU)
    for batch in batches:
        yield converted((slot.gathered(batch), valid_frames(source, batch)))


def _ahead(source: Source, batches: Iterable[Addresses], device: torch.device) -> Generator[Batch]:
    slots = itertools.cycle([_Slot(source, device), _Slot(source, device)])
    converted = _Converted(device)
    ahead: deque[Future[list[Batch]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="gather")
    try:
        for chunk in _chunks(source, batches):
            ahead.append(pool.submit(next(slots).load, chunk))
            if len(ahead) == 2:  # the older one's slot is free again when the batch after its last is asked for
                yield from map(converted, ahead.popleft().result())
        while ahead:
            yield from map(converted, ahead.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(source: Source, batches: Iterable[Addresses]) -> Iterator[list[Addresses]]:
    """Runs of batches of at least `CHUNK_BYTES`, but for the last: handing each one over costs as much as a gather."""
    enough = CHUNK_BYTES // _row_bytes(source)
    chunk: list[Addresses] = []
    for batch in batches:
        chunk.append(batch)
        if sum(map(len, chunk)) >= enough:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _row_bytes(source: Source) -> int:
    return math.prod(source.row) * source.dtype.itemsize


class _Slot:
    """Memory that one chunk after another is gathered into: fresh pages cost more than the gather."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._memory = torch.empty(0)
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def load(self, chunk: list[Addresses]) -> list[Batch]:
        """Gather a chunk and cut it into its batches, on the device, as stored."""
        addresses = np.concatenate(chunk)
        with torch.cuda.stream(self._stream):  # beside the computation; nothing without a GPU
            stored = self.gathered(addresses).to(self._device, non_blocking=self._stream is not None)
            n_frames = valid_frames(self._source, addresses).to(self._device)
            if self._stream is not None:
                self._stream.synchronize()  # then all is there, and the pinned memory is free again
        ends = np.cumsum([len(batch) for batch in chunk])[:-1].tolist()
        return list(zip(stored.tensor_split(ends), n_frames.tensor_split(ends), strict=True))

    def gathered(self, addresses: Addresses) -> Tensor:
        """Features of some addresses where the source is, as stored."""
        source = self._source
        shape = (len(addresses), *source.row)
        if source.device.type == "cuda":
            out = torch.empty(shape, dtype=source.dtype, device=source.device)  # torch reuses a GPU's memory itself
        else:
            self._memory = _room(self._memory, shape, source.dtype, pinned=self._stream is not None)
            out = self._memory[: len(addresses)]
        source.gather(addresses, out)
        return out


class _Converted:
    """Batches as stored to float32: on the computing thread, whose cores wait for it anyway."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0)

    def __call__(self, batch: Batch) -> Batch:
        """(B, L, ...) float16 or float32 -> float32."""
        stored, n_frames = batch
        if self._device.type == "cuda":
            for tensor in batch:  # made on another stream: the memory is not free before this one has read it
                tensor.record_stream(torch.cuda.current_stream(self._device))
            return stored.float(), n_frames
        if stored.dtype == torch.float32:
            return batch
        self._memory = _room(self._memory, tuple(stored.shape), torch.float32)
        return self._memory[: len(stored)].copy_(stored), n_frames


def _room(old: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, pinned: bool = False) -> Tensor:
    """The old tensor where it has as many rows, else a new one."""
    if old.shape[1:] == shape[1:] and len(old) >= shape[0]:
        return old
    return torch.empty(shape, dtype=dtype, pin_memory=pinned)
