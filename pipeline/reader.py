"""Reading the feature store through memory maps: one call into C for each layer of a batch.

A shard file is rows of equal length and a tail (`pipeline.store`), and all shards of an array but the last are of one
size. So a reader reserves addresses for all of them side by side, puts a map of each shard file at its place when it
is first needed, and a row's place in memory is then plain arithmetic on its number: the rows of a batch are gathered by
one `torch.index_select` a layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contracts import Tap
from pipeline.errors import InputError
from pipeline.store import CRC_BYTES, INDEX_ENTRY_BYTES, REPAIR, Store, crc32c, layer_array, pooled_array

# Files a reader maps before it forgets them all. The kernel allows 65,530 maps a process; a file takes up to two, as it
# parts the reserved addresses around it, and training has two readers or, with pools, more.
MOST_MAPS = 10_000


@dataclass(frozen=True)
class Layout:
    """The shard files of one array: rows of a shape and dtype, `shard` of them in every file but the last."""

    row: tuple[int, ...]
    dtype: str
    shard: int

    @property
    def length(self) -> int:
        """Bytes from one row to the next."""
        return math.prod(self.row) * np.dtype(self.dtype).itemsize + CRC_BYTES

    @property
    def tail(self) -> int:
        """Bytes of a file's index and its checksum."""
        return self.shard * INDEX_ENTRY_BYTES + CRC_BYTES

    @property
    def stride(self) -> int:
        """Bytes of addresses that a file needs, in whole pages."""
        return -(-(self.shard * self.length + self.tail) // mmap.PAGESIZE) * mmap.PAGESIZE

    def check(self, path: Path, data: NDArray[np.uint8], *, rows: int) -> None:
        """Raises InputError where the bytes of a file are not `rows` rows of this layout with a sound index."""
        size, index = rows * self.length + self.tail, data[-self.tail : -CRC_BYTES]
        if len(data) != size or crc32c(index).tobytes() != data[-CRC_BYTES:].tobytes():
            raise InputError(
                f"{path}: expected {size} bytes with a sound index, got {len(data)}; "
                f"the shard is cut off or damaged; {REPAIR}"
            )
        entries = np.ascontiguousarray(index).view("<u8").reshape(self.shard, 2)[:rows]
        if (entries[:, 0] != np.arange(rows) * self.length).any() or (entries[:, 1] != self.length).any():
            raise InputError(f"{path}: not a shard that this project wrote; {REPAIR}")


class Reader:
    """Rows of chosen layers and views of a complete store, straight from memory maps into a batch.

    Utterance i of the v-th view has the address v · N + i: the first view's addresses are the utterances' numbers.
    """

    def __init__(self, store: Store, *, views: Sequence[str], layers: Sequence[Tap], pooled: bool) -> None:
        spec = store.spec
        self.spec = spec
        self._store = store
        names = [pooled_array(layer) if pooled else layer_array(layer) for layer in layers]
        self._arrays = [[f"{view}/{name}" for name in names] for view in views]  # view -> layer -> array
        self.row: tuple[int, ...] = (len(names), 2 if pooled else spec.frames, spec.channels)
        self.dtype = torch.float32 if pooled else torch.float16
        self.n_frames = _read_frames(store)
        self._layout = Layout(self.row[1:], "float32" if pooled else "float16", spec.shard)
        self._mapped = np.zeros(len(views) * spec.shards, bool)  # of each view and shard, for all layers at once
        self._lock = threading.Lock()  # maps are forgotten while nobody reads
        self._bytes = _reserve(len(names) * len(self._mapped) * self._layout.stride)
        self._layers = self._rows_of_layers()

    def _rows_of_layers(self) -> list[Tensor]:
        """Of each layer, what indexing gives the row that begins with the given element: a view that overlaps."""
        elements = torch.from_numpy(self._bytes).view(self.dtype)
        reach = len(elements) // len(self._arrays[0])
        size = (reach - math.prod(self.row[1:]) + 1, *self.row[1:])
        strides = (1, self.row[2], 1)
        return [torch.as_strided(elements, size, strides, layer * reach) for layer in range(self.row[0])]

    def gather(self, addresses: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Rows (B,) of all layers in one tensor (B, L, T, D) float16, or (B, L, 2, D) float32, made or given as `out`.

        Raises InputError where a shard file is missing or not what the store's spec says.
        """
        if out is None:
            out = torch.empty((len(addresses), *self.row), dtype=self.dtype)
        views, rows = np.divmod(addresses, self.spec.utterances)
        shards, places = np.divmod(rows, self.spec.shard)
        slots = views * self.spec.shards + shards
        begins = (slots * self._layout.stride + places * self._layout.length) // self.dtype.itemsize
        with self._lock:
            self._need(slots)
            for layer, rows_of_layer in enumerate(self._layers):
                torch.index_select(rows_of_layer, 0, torch.from_numpy(begins), out=out[:, layer])
        return out

    def _need(self, slots: NDArray[np.int64]) -> None:
        """Map the shards that are not yet, after forgetting all others where there would be too many."""
        there = self._mapped[slots]
        if there.all():
            return None
        new = np.unique(slots[~there])
        if (self._mapped.sum() + len(new)) * self.row[0] <= MOST_MAPS:
            with contextlib.suppress(_NoMoreMapsError):
                return self._map_all(new)
        _forget(self._bytes)
        self._mapped[:] = False
        try:
            self._map_all(np.unique(slots))
        except _NoMoreMapsError as error:
            raise InputError(
                f"{self._store.path}: {error}; read fewer layers at once, set dataset.hold to ram, or raise "
                "vm.max_map_count"
            ) from None

    def _map_all(self, slots: NDArray[np.int64]) -> None:
        for slot in slots.tolist():
            self._map(slot)
            self._mapped[slot] = True

    def _map(self, slot: int) -> None:
        """Put one shard of one view at its place, all layers of it."""
        layout = self._layout
        view, shard = divmod(slot, self.spec.shards)
        for layer, array in enumerate(self._arrays[view]):
            path = self._store.shard_path(array, shard)
            begin = (layer * len(self._mapped) + slot) * layout.stride
            size = _map(path, self._bytes[begin : begin + layout.stride])
            layout.check(path, self._bytes[begin : begin + size], rows=len(self.spec.rows(shard)))


def _read_frames(store: Store) -> NDArray[np.int32]:
    """n_frames (N,) of a complete store, its checksums compared."""
    spec = store.spec
    chunks = []
    for shard in range(spec.shards):
        path = store.shard_path("n_frames", shard)
        data = np.frombuffer(path.read_bytes() if path.is_file() else b"", np.uint8)
        frames, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
        if len(frames) != spec.shard * 4 or crc32c(frames).tobytes() != crc.tobytes():
            raise InputError(f"{path}: the shard is missing or damaged; {REPAIR}")
        chunks.append(frames.view("<i4")[: len(spec.rows(shard))])
    return np.concatenate(chunks)


# ---------------------------------------------------------------- maps
# Through the C library: Python's own maps each keep a file open, of which a process may have 1,024, and have no say in
# where they lie.

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

PROT_NONE = 0
MAP_FIXED = 0x10  # as in Linux and macOS; Python does not name it
NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class _NoMoreMapsError(Exception):
    """Not memory has run out, but what a process may map."""


def _map(path: Path, at: NDArray[np.uint8]) -> int:
    """Map a file read-only over reserved addresses; its size in bytes.

    Raises InputError where it is missing or empty, or larger than the place.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > len(at):
                raise InputError(
                    f"{path}: expected at most {len(at)} bytes, got {size}; the shard is damaged; {REPAIR}"
                )
            if size:
                flags = mmap.MAP_SHARED | MAP_FIXED
                _mmap(at.ctypes.data, size, mmap.PROT_READ, flags, file=file.fileno(), path=path)
                return size
    except FileNotFoundError:
        pass
    raise InputError(f"{path}: the shard is missing or empty; {REPAIR}")


def _reserve(size: int) -> NDArray[np.uint8]:
    """Addresses that nothing else takes and nothing can be read from yet; given back with the last array of them.

    Raises InputError where a process may not have as many.
    """
    try:
        start = _mmap(None, size, PROT_NONE, NOTHING)
    except _NoMoreMapsError as error:
        raise InputError(
            f"expected {size:,} bytes of addresses to map features at, which take no memory: {error}; lift the limit "
            "(ulimit -v unlimited)"
        ) from None
    buffer = (ctypes.c_ubyte * size).from_address(start)
    weakref.finalize(buffer, _libc.munmap, start, size).atexit = False  # the array holds the buffer
    return np.ctypeslib.as_array(buffer)


def _forget(reserved: NDArray[np.uint8]) -> None:
    """Take all maps out of reserved addresses."""
    _mmap(reserved.ctypes.data, len(reserved), PROT_NONE, NOTHING | MAP_FIXED)


def _mmap(where: int | None, size: int, access: int, flags: int, *, file: int = -1, path: Path | None = None) -> int:
    start = _libc.mmap(where, size, access, flags, file, 0)
    if start == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        if number == errno.ENOMEM:
            raise _NoMoreMapsError("the kernel allows this process no more maps of files or addresses")
        raise OSError(number, os.strerror(number), str(path) if path else None)
    return int(start)
