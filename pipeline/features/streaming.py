"""Batches of features, read while the batches before them are computed.

    thread    |load chunk 0 -> slot A|load chunk 1 -> slot B|   wait   |load chunk 2 -> slot A| ...
    training                         |batches of chunk 0 (slot A)      |batches of chunk 1 (slot B) | ...

A chunk is one or more batches. There are two slots of memory, used in turn. A slot is filled again only when the
training has asked for a batch of the other slot, so it never sees its own batch change.
"""

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
SMALL_BYTES = 2 * 2**20  # a batch up to this size is read faster by the computing thread than by another one


# ---------------------------------------------------------------- reading


def read(source: Source, addresses: Addresses) -> Batch:
    """Read the features of B addresses as float32 into new memory on the source's device, with their valid frames."""
    block = torch.empty((len(addresses), *source.row), dtype=source.dtype, device=source.device)
    source.gather(addresses, block)
    return block.float(), valid_frames(source, addresses).to(block.device)


def valid_frames(source: Source, addresses: Addresses) -> Tensor:
    """Valid frames (B,) int64 of some addresses. All views of an utterance have the same number."""
    return torch.from_numpy(source.n_frames[addresses % len(source.n_frames)].astype(np.int64))


def stream(source: Source, batches: Iterable[Addresses], *, device: torch.device = CPU) -> Generator[Batch]:
    """Yield the features of each batch of addresses in order, float32 on the device; the numbers are those of `read`.

    A thread reads the next chunk of batches, and copies it to a GPU, while the caller computes. Small batches for a CPU
    are read without a thread where the source is at hand. The memory of a batch is used again, so a batch is valid only
    until the caller asks for the next one. Errors of the thread are raised here. To end early, close the generator or
    delete it.
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
    executor = ThreadPoolExecutor(1, thread_name_prefix="gather")
    try:
        for chunk in _chunks(source, batches):
            ahead.append(executor.submit(next(slots).load, chunk))
            # At most two chunks are in flight, one for each slot. `yield from` comes back here when the caller asks
            # for the batch after the older chunk. Then nobody reads that slot any more, and the loop fills it again.
            if len(ahead) == 2:
                yield from map(converted, ahead.popleft().result())
        while ahead:
            yield from map(converted, ahead.popleft().result())
    finally:
        executor.shutdown(cancel_futures=True)


def _chunks(source: Source, batches: Iterable[Addresses]) -> Iterator[list[Addresses]]:
    """Group batches into chunks of at least `sources.CHUNK_BYTES`; the last chunk may be smaller.

    Passing a small batch from thread to thread costs as much as reading it.
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
    """Memory that is filled with one chunk after another.

    The memory is kept, because the first use of new memory takes longer than reading features into it. For a GPU the
    slot is pinned memory of the host: a copy from it runs beside the computation.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._memory = torch.empty(0)
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def load(self, chunk: list[Addresses]) -> list[Batch]:
        """Read a chunk, copy it to the device and split it into its batches, in the type of the store."""
        addresses = np.concatenate(chunk)
        with torch.cuda.stream(self._stream):  # copies run beside the computation; without a GPU this does nothing
            stored = self.gathered(addresses).to(self._device, non_blocking=self._stream is not None)
            n_frames = valid_frames(self._source, addresses).to(self._device)
            if self._stream is not None:
                self._stream.synchronize()  # after this the copy is complete, and the pinned memory may be filled again
        ends = np.cumsum([len(batch) for batch in chunk])[:-1].tolist()
        return list(zip(stored.tensor_split(ends), n_frames.tensor_split(ends), strict=True))

    def gathered(self, addresses: Addresses) -> Tensor:
        """Read the features of some addresses on the source's device, in the type of the store."""
        source = self._source
        shape = (len(addresses), *source.row)
        if source.device.type == "cuda":
            out = torch.empty(shape, dtype=source.dtype, device=source.device)  # on a GPU torch itself keeps memory
        else:
            self._memory = _room(self._memory, shape, source.dtype, pinned=self._stream is not None)
            out = self._memory[: len(addresses)]
        source.gather(addresses, out)
        return out


class _Converted:
    """Converts batches from the type of the store to float32, on the thread that computes and waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0)

    def __call__(self, batch: Batch) -> Batch:
        """(B, L, ...) float16 or float32 -> float32."""
        stored, n_frames = batch
        if self._device.type == "cuda":
            for tensor in batch:  # another stream made it: tell torch that this stream still reads its memory
                tensor.record_stream(torch.cuda.current_stream(self._device))
            return stored.float(), n_frames
        if stored.dtype == torch.float32:
            return batch
        self._memory = _room(self._memory, tuple(stored.shape), torch.float32)
        return self._memory[: len(stored)].copy_(stored), n_frames


def _room(old: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, pinned: bool = False) -> Tensor:
    """Return the old tensor where it has enough rows, else a new one."""
    if old.shape[1:] == shape[1:] and len(old) >= shape[0]:
        return old
    return torch.empty(shape, dtype=dtype, pin_memory=pinned)
