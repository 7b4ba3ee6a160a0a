"""Sources of features: a store on disk, a tensor in memory or on a GPU, or several sources joined.

Features are read by *address*. Clean utterance i of N has the address i; in the v-th augmented view, v from 1, it has
the address v · N + i. So taking an augmented view is adding to an address.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.devices import CPU
from pipeline.core.errors import InputError
from pipeline.features.reader import Reader

Addresses = NDArray[np.int64]
CHUNK_BYTES = 8 * 2**20  # features read ahead at once: several small batches, or one large batch


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
        """The type of the store: float16 for frames, float32 for means and standard deviations."""

    @property
    def device(self) -> torch.device:
        """The device on which `gather` needs its `out`."""

    @property
    def at_hand(self) -> bool:
        """True where `gather` is a copy in memory, False where it is a request to an object store."""

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row) with the features of B addresses."""


@dataclass(frozen=True)
class OnDisk:
    """Features that are read from a store batch by batch."""

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
    """Features that were read once into a tensor (V · N, *row), in memory or on a GPU. n_frames: (N,)."""

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
        """The device of the tensor."""
        return self.tensor.device

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row), on the tensor's device."""
        torch.index_select(self.tensor, 0, torch.from_numpy(addresses).to(self.device), out=out)


def hold(source: Source, *, views: int, device: torch.device, name: str) -> Held:
    """Read all features of a source into memory or onto a GPU.

    name: the set, for messages. Raises InputError, before it reads anything, where they do not fit.
    """
    shape = (views * len(source.n_frames), *source.row)
    needed, free = math.prod(shape) * source.dtype.itemsize, free_bytes(device)
    if needed > free:
        raise InputError(
            f"dataset.hold: {name} takes {needed:,} bytes ({len(source.n_frames)} utterances, {source.row[0]} layers, "
            f"{views} views), {free:,} are free on {device}; set it to disk, or train on fewer layers or views"
        )
    tensor = torch.empty(shape, dtype=source.dtype, device=device)
    step = max(1, CHUNK_BYTES // row_bytes(source))
    for start in range(0, len(tensor), step):
        target = tensor[start : start + step]
        block = target if device.type == "cpu" else torch.empty(target.shape, dtype=source.dtype)
        source.gather(np.arange(start, start + len(target)), block)
        if block is not target:
            target.copy_(block)
    return Held(tensor, source.n_frames)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in memory within the limit of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    most = (group / "memory.max").read_text().strip() if (group / "memory.max").is_file() else "max"
    if most == "max":
        return free
    used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    taken = int((group / "memory.current").read_text()) - int(used["inactive_file"])  # caches can be dropped
    return min(free, max(int(most) - taken, 0))


class JoinedSource:
    """Several sources with the same views, one after the other in every view."""

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


class WindowsTogether:
    """All W windows of each utterance as one row, (W, L, T or 2, D), of a source that has W times as many views.

    Where the windows of utterance i in its v-th view have the addresses (v · W + w) · N + i there, they have v · N + i.
    """

    def __init__(self, source: Source, windows: int) -> None:
        self.source = source
        self.windows = windows
        self.row = (windows, *source.row)
        self.dtype = source.dtype
        self.device = source.device
        self.at_hand = source.at_hand
        self.n_frames = source.n_frames

    def gather(self, addresses: Addresses, out: Tensor) -> None:
        """Fill out (B, *row)."""
        views, rows = np.divmod(addresses[:, None], len(self.n_frames))
        places = views * self.windows + np.arange(self.windows)  # (B, W)
        self.source.gather((places * len(self.n_frames) + rows).ravel(), out.view(-1, *self.source.row))


def row_bytes(source: Source) -> int:
    """Bytes of the features of one utterance."""
    return math.prod(source.row) * source.dtype.itemsize
