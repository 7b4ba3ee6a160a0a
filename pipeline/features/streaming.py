"""Batches of features, gathered ahead of what computes on them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.devices import CPU
from pipeline.features import sources
from pipeline.features.sources import Addresses, Source, row_bytes

Batch = tuple[Tensor, Tensor]  # features (B, L, T, D) or (B, L, 2, D) float32, n_frames (B,) int64
SMALL_BYTES = 2 * 2**20  # of a batch, up to which a CPU that computes gathers it sooner than it hands it over


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
        and all(len(batch) * row_bytes(source) <= SMALL_BYTES for batch in first)
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
    """Runs of batches of at least `sources.CHUNK_BYTES`, but for the last.

    Handing over a small batch costs as much as gathering it.
    """
    enough = sources.CHUNK_BYTES // row_bytes(source)
    chunk: list[Addresses] = []
    for batch in batches:
        chunk.append(batch)
        if sum(map(len, chunk)) >= enough:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


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
