"""Read the feature store: the rows of a batch by their addresses.

A shard file is rows of equal length, then a tail (`pipeline.features.store`). All shards of an array have the same
size, except the last. So the number of a row is enough to compute where it lies.

On a disk of this machine the reader maps shard files into one reserved range of addresses (`pipeline.features.mapped`).
Each layer has a part of that range, each shard a slot of equal size in it:

      layer 0                                         layer 1
    |  slot 0       |  slot 1       |  slot 2       |  slot 0       |  slot 1       | ...
    | row row tail -| (not mapped)  | row row tail -| row row tail -|
                                          ^
                                          row 1 of slot 2 begins at slot · stride + place · length

The dashes are unused addresses up to the end of a page.

A shard file is mapped when one of its rows is first needed. Then the whole range reads like one long array, and one
`torch.index_select` for each layer copies the rows of a batch, whichever files they come from.

From an object store the reader requests the bytes of all rows of a batch at once.

The checksum of a row is compared when the row is first read, on a disk once in the life of a reader: with the bytes of
the row, and with what the marker of its shard says of this place. Damaged bytes, and whole rows of another place, raise
an error and never become numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.object_store import is_local, read_files, read_ranges
from pipeline.features import mapped
from pipeline.features.shard_bytes import CRC_BYTES, INDEX_ENTRY_BYTES, Block, crc32c
from pipeline.features.specs import layer_array, pooled_array, scale_array
from pipeline.features.store import REPAIR, Store

# Files that a reader maps before it removes all its maps. The kernel allows 65,530 maps for each process. A file can
# take two of them, because it splits the reserved range around it. Training has two readers, and more with pools.
MOST_MAPS = 10_000
OTHER_ROW = "is whole, but not the one that was written there"


@dataclass(frozen=True)
class Layout:
    """How the shard files of one array are laid out.

    row: shape of a row. dtype: of its values. shard: rows in each file, except the last, which may have fewer.
    """

    row: tuple[int, ...]
    dtype: str
    shard: int

    @property
    def length(self) -> int:
        """Bytes from one row to the next."""
        return math.prod(self.row) * np.dtype(self.dtype).itemsize + CRC_BYTES

    @property
    def tail(self) -> int:
        """Bytes of the index at the end of a file, with its checksum."""
        return self.shard * INDEX_ENTRY_BYTES + CRC_BYTES

    @property
    def stride(self) -> int:
        """Addresses from one slot to the next: the size of a full file, rounded up to whole pages."""
        return -(-(self.shard * self.length + self.tail) // mmap.PAGESIZE) * mmap.PAGESIZE

    def check(self, path: Path, data: NDArray[np.uint8], *, rows: int) -> None:
        """Raise InputError unless the bytes of a file are `rows` rows of this layout and a correct index."""
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
    """Reads rows of chosen layers and views of a complete store directly into a batch.

    Utterance i of the v-th view has the address v · N + i, so the addresses of the first view are the numbers of the
    utterances. Frames come as float16, means and standard deviations as float32, also where the store holds int8.
    at_hand: True where reading a row is a copy in memory, False where it is a request to an object store.
    """

    def __init__(self, store: Store, *, views: Sequence[str], layers: Sequence[Tap], pooled: bool) -> None:
        spec = store.spec
        self.spec = spec
        names = [pooled_array(layer) if pooled else layer_array(layer) for layer in layers]
        arrays = [[f"{view}/{name}" for name in names] for view in views]  # view -> layer -> array
        self.row: tuple[int, ...] = (len(names), 2 if pooled else spec.frames, spec.channels)
        self.dtype = torch.float32 if pooled else torch.float16
        markers = [store.markers(view) for view in views]
        self.n_frames = _read_frames(store, markers)
        self.at_hand = is_local(store.path)
        layout = Layout(self.row[1:], "float32" if pooled else spec.storage, spec.shard)
        sums = _row_checksums(store, markers, arrays)
        self._files: _Files = (_Maps if self.at_hand else _Ranges)(store, arrays, layout, sums)
        self._stored: torch.dtype = getattr(torch, layout.dtype)
        self._scales = None
        if self._stored != self.dtype:
            self._scales = torch.from_numpy(_read_scales(store, views, layers, markers))

    def gather(self, addresses: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read the rows of addresses (B,), all layers, into a tensor (B, L, T, D) float16 or (B, L, 2, D) float32.

        out: the tensor to fill; None makes a new one.

        Raises InputError for a shard file that is missing or does not fit the spec of the store.
        """
        if out is None:
            out = torch.empty((len(addresses), *self.row), dtype=self.dtype)
        views, rows = np.divmod(addresses, self.spec.utterances)
        shards, places = np.divmod(rows, self.spec.shard)
        slots = views * self.spec.shards + shards
        if self._scales is None:
            self._files.take(slots, places, out)
            return out
        steps = torch.empty((len(addresses), *self.row), dtype=self._stored)
        self._files.take(slots, places, steps)
        scales = self._scales[torch.from_numpy(slots)]  # (B, L, D)
        for layer in range(self.row[0]):
            out[:, layer] = steps[:, layer] * scales[:, layer, None]
        return out


Markers = Sequence[Sequence[Mapping[str, str]]]  # view -> shard -> marker
RowChecksums = Mapping[tuple[int, int], Block]  # slot and layer -> crc32c (n, 4) of the rows; not of older versions


def _row_checksums(store: Store, markers: Markers, arrays: Sequence[Sequence[str]]) -> RowChecksums:
    """What the markers say of all rows of some arrays, by view and layer."""
    found = {}
    for view, names in enumerate(arrays):
        for shard, marker in enumerate(markers[view]):
            for layer, name in enumerate(names):
                if (sums := store.rows(marker, name, shard)) is not None:
                    found[view * store.spec.shards + shard, layer] = sums
    return found


class _Files(Protocol):
    """The shard files of some arrays. The slot of a shard is view · shards + shard."""

    def take(self, slots: NDArray[np.int64], places: NDArray[np.int64], out: Tensor) -> None:
        """Fill out (B, L, ...): row b is number places[b] in the shard of slots[b]."""


class _Maps:
    """Shard files on a disk of this machine, mapped side by side. The drawing at the top of this file shows it."""

    def __init__(self, store: Store, arrays: Sequence[Sequence[str]], layout: Layout, sums: RowChecksums) -> None:
        self._store = store
        self._arrays = arrays
        self._layout = layout
        self._sums = sums
        self._mapped = np.zeros(len(arrays) * store.spec.shards, bool)  # by slot; all layers are mapped together
        self._sound = np.zeros((len(self._mapped), layout.shard), bool)  # by slot and row: its checksums were compared
        self._lock = threading.Lock()  # no thread may remove maps while another one reads
        self._bytes = mapped.reserve(len(arrays[0]) * len(self._mapped) * layout.stride)
        self._layers = self._rows_of_layers()

    def _rows_of_layers(self) -> list[Tensor]:
        """For each layer a tensor: its entry i is the row that begins at element i of the layer's addresses."""
        row = self._layout.row
        elements = torch.from_numpy(self._bytes).view(getattr(torch, self._layout.dtype))
        layers = len(self._arrays[0])
        reach = len(elements) // layers
        size = (reach - math.prod(row) + 1, *row)
        # The trick: a step of one element from entry to entry, so the rows overlap and may begin anywhere. A checksum
        # follows each row and padding each file, so no regular grid of rows fits; nothing is copied to make this view.
        strides = (1, row[1], 1)
        return [torch.as_strided(elements, size, strides, layer * reach) for layer in range(layers)]

    def take(self, slots: NDArray[np.int64], places: NDArray[np.int64], out: Tensor) -> None:
        begins = (slots * self._layout.stride + places * self._layout.length) // out.dtype.itemsize
        with self._lock:
            self._need(slots)
            if not (sound := self._sound[slots, places]).all():
                self._check(slots[~sound], places[~sound])
            for layer, rows_of_layer in enumerate(self._layers):
                torch.index_select(rows_of_layer, 0, torch.from_numpy(begins), out=out[:, layer])

    def _check(self, slots: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Compare rows of mapped shards with their checksums.

        Raises InputError for a damaged row, and for one of another place.
        """
        length, stride = self._layout.length, self._layout.stride
        for slot, place in zip(slots.tolist(), places.tolist(), strict=True):
            for layer in range(len(self._layers)):
                begin = (layer * len(self._mapped) + slot) * stride + place * length
                row, wanted = self._bytes[begin : begin + length], self._sums.get((slot, layer))
                there = row[-CRC_BYTES:].tobytes()
                damaged = crc32c(row[:-CRC_BYTES]).tobytes() != there
                if damaged or (wanted is not None and wanted[place].tobytes() != there):
                    view, shard = divmod(slot, self._store.spec.shards)
                    path = self._store.shard_path(self._arrays[view][layer], shard)
                    what = "is damaged" if damaged else OTHER_ROW
                    raise InputError(f"{path}: row {place} of it {what}; {REPAIR}")
        self._sound[slots, places] = True

    def _need(self, slots: NDArray[np.int64]) -> None:
        """Map the shards that are not mapped yet. Where that makes too many maps, remove all others first."""
        there = self._mapped[slots]
        if there.all():
            return None
        new = np.unique(slots[~there])
        if (self._mapped.sum() + len(new)) * len(self._layers) <= MOST_MAPS:
            with contextlib.suppress(mapped.NoMoreMapsError):
                return self._map_all(new)
        mapped.forget(self._bytes)
        self._mapped[:] = False
        try:
            self._map_all(np.unique(slots))
        except mapped.NoMoreMapsError as error:
            raise InputError(
                f"{self._store.path}: {error}; read fewer layers at once, set dataset.hold to ram, or raise "
                "vm.max_map_count"
            ) from None

    def _map_all(self, slots: NDArray[np.int64]) -> None:
        for slot in slots.tolist():
            self._map(slot)
            self._mapped[slot] = True

    def _map(self, slot: int) -> None:
        """Map one shard of one view into its slot, in all layers."""
        layout, spec = self._layout, self._store.spec
        view, shard = divmod(slot, spec.shards)
        for layer, array in enumerate(self._arrays[view]):
            path = self._store.shard_path(array, shard)
            begin = (layer * len(self._mapped) + slot) * layout.stride
            size = mapped.put(path, self._bytes[begin : begin + layout.stride])
            layout.check(path, self._bytes[begin : begin + size], rows=len(spec.rows(shard)))


class _Ranges:
    """Shard files on an object store, read by ranges of bytes. Rows that follow each other are one range.

    The checksum of each row is compared each time.
    """

    def __init__(self, store: Store, arrays: Sequence[Sequence[str]], layout: Layout, sums: RowChecksums) -> None:
        self._store = store
        self._arrays = arrays
        self._layout = layout
        self._sums = sums

    def take(self, slots: NDArray[np.int64], places: NDArray[np.int64], out: Tensor) -> None:
        shards, length, rows = self._store.spec.shards, self._layout.length, out.numpy()
        breaks = np.flatnonzero((np.diff(slots) != 0) | (np.diff(places) != 1)) + 1
        runs = [run for run in np.split(np.arange(len(slots)), breaks) if len(run)]
        wanted = [
            (slice(run[0], run[-1] + 1), layer, self._store.shard_name(array, int(slots[run[0]] % shards)))
            for run in runs
            for layer, array in enumerate(self._arrays[slots[run[0]] // shards])
        ]
        found = read_ranges(
            self._store.path,
            [name for _, _, name in wanted],
            [int(places[run.start] * length) for run, _, _ in wanted],
            [int((places[run.stop - 1] + 1) * length) for run, _, _ in wanted],
        )
        for (run, layer, name), data in zip(wanted, found, strict=True):
            sums = self._sums.get((int(slots[run.start]), layer))
            rows[run, layer] = self._checked(
                name, data, count=run.stop - run.start, sums=None if sums is None else sums[places[run]]
            )

    def _checked(self, name: str, data: bytes | None, *, count: int, sums: Block | None) -> Block:
        """Rows (count, ...) from their bytes. sums: the crc32c (count, 4) that belong there; None: nobody knows."""
        if data is None:
            raise InputError(f"{self._store.path / name}: the shard is missing; {REPAIR}")
        row = self._layout.length - CRC_BYTES
        stored = np.frombuffer(data, np.uint8)
        if len(stored) == count * self._layout.length:
            chunks = stored.reshape(count, -1)
            if all(crc32c(chunk[:row]).tobytes() == chunk[row:].tobytes() for chunk in chunks):
                if sums is not None and (chunks[:, row:] != sums).any():
                    raise InputError(f"{self._store.path / name}: a row of it {OTHER_ROW}; {REPAIR}")
                values = np.ascontiguousarray(chunks[:, :row]).view(self._layout.dtype)
                return values.reshape(count, *self._layout.row)
        raise InputError(f"{self._store.path / name}: rows of it are cut off or damaged; {REPAIR}")


def _read_frames(store: Store, markers: Markers) -> NDArray[np.int32]:
    """Read n_frames (N,) of a complete store and compare its checksums with themselves and with all markers."""
    spec = store.spec
    wanted = [("n_frames", shard, [of_view[shard] for of_view in markers]) for shard in range(spec.shards)]
    chunks = _read_chunks(store, wanted, "<i4", spec.shard)
    return np.concatenate([chunk[: len(spec.rows(shard))] for shard, chunk in enumerate(chunks)])


def _read_scales(store: Store, views: Sequence[str], layers: Sequence[Tap], markers: Markers) -> NDArray[np.float32]:
    """Read the factors (views · shards, L, D) of a store's int8 values and compare their checksums."""
    spec = store.spec
    wanted = [
        (f"{view}/{scale_array(layer)}", shard, [of_view[shard]])
        for view, of_view in zip(views, markers, strict=True)
        for layer in layers
        for shard in range(spec.shards)
    ]
    chunks = np.stack(_read_chunks(store, wanted, "<f4", spec.channels))
    by_view = chunks.reshape(len(views), len(layers), spec.shards, spec.channels)
    return np.ascontiguousarray(by_view.swapaxes(1, 2)).reshape(-1, len(layers), spec.channels)


def _read_chunks(
    store: Store, wanted: Sequence[tuple[str, int, Sequence[Mapping[str, str]]]], dtype: str, count: int
) -> list[Block]:
    """Read chunks of `count` values each. wanted: array, shard, and the markers that have the sha256 of the file.

    Raises InputError for a chunk that is missing or damaged, or not the one that the markers were written for.
    """
    paths = [store.shard_path(array, shard) for array, shard, _ in wanted]
    found, chunks = read_files(paths), []
    for path, (array, _, markers) in zip(paths, wanted, strict=True):
        data = np.frombuffer(found.get(path, b""), np.uint8)
        values, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
        if len(values) != count * np.dtype(dtype).itemsize or crc32c(values).tobytes() != crc.tobytes():
            raise InputError(f"{path}: the shard is missing or damaged; {REPAIR}")
        sha256 = hashlib.sha256(data.data).hexdigest()
        if any(marker.get(array, sha256) != sha256 for marker in markers):
            raise InputError(f"{path}: the shard {OTHER_ROW}; {REPAIR}")
        chunks.append(values.view(dtype))
    return chunks
