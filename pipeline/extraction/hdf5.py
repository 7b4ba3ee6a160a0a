"""Layers of a store as one HDF5 file, for programs that do not read Zarr; and such a file back into a store."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.files import check_file_place, flush_names, readable_size, writing
from pipeline.core.object_store import is_local, is_there, sizes_below
from pipeline.core.trial_table import Trials, fingerprint
from pipeline.extraction import hdf5_file
from pipeline.extraction.housekeeping import PART_SUFFIX, views_of
from pipeline.extraction.planning import SPARE_BYTES
from pipeline.features.libraries import IMPORTED
from pipeline.features.receipt_files import open_receipts
from pipeline.features.specs import Spec, layer_array, pooled_array
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT


def export(
    receipt: Path, file: Path, *, root: Path, trials: Trials, layers: Sequence[Tap] = (), views: Sequence[str] = ()
) -> int:
    """Write layers and views of a set into one HDF5 file in one step, and return its size in bytes.

    Args:
        trials: the trials of the set, for names and classes. layers, views: those to write; none means all.

    Raises InputError for a pool, for trials of another set, and for a layer or view that is not in the receipt.
    """
    import h5py

    store, facts = _only(receipt, root)
    taps, shown = (tuple(dict.fromkeys(some)) for some in (layers or facts["layers"], views or facts["views"]))
    for what, wanted, there in (("layer", taps, facts["layers"]), ("view", shown, facts["views"])):
        if missing := [str(name) for name in wanted if name not in there]:
            raise InputError(f"{receipt}: no {what} {', '.join(missing)}; it has {', '.join(map(str, there))}")
    if fingerprint(trials) != store.spec.trials:
        raise InputError(f"{receipt}: not the receipt of these trials; run `dvc repro extract`")
    check_file_place(file)
    beside = file.with_name(file.name + PART_SUFFIX)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with HoldingBackErrors(beside) as place:
            with h5py.File(place, "w") as target:
                target.attrs.update({"format": FORMAT, "set": receipt.stem, "spec": json.dumps(asdict(store.spec))})
                target["utterance"] = trials.utterance.astype(object)
                target["is_bonafide"] = trials.is_bonafide
                for view in shown:
                    _export_view(store, view, taps, target, place)
            place.check()
            os.fsync(place.fileno())
        os.replace(beside, file)
        flush_names(file.parent)
    return file.stat().st_size


class HoldingBackErrors(io.FileIO):
    """A file for HDF5, which ends the process where it cannot write: the first error waits until `check` raises it.

    Bytes that are written after an error stay in memory, where HDF5 finds them again until it has closed the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []  # place and bytes

    def write(self, data: Any) -> int:
        """Write bytes, or keep them once there was an error; returns their number."""
        view, start, done = memoryview(data).cast("B"), self.tell(), 0
        while done < len(view) and self.error is None:
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.error = error
        if self.error is not None:
            self.kept.append((start + done, bytes(view[done:])))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read bytes, also those that were kept; returns their number."""
        view, start = memoryview(buffer).cast("B"), self.tell()
        super().readinto(view)
        for place, data in self.kept:
            first, last = max(place, start), min(place + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file; returns it."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise OSError where something could not be written."""
        if self.error is not None:
            raise self.error


def _export_view(store: Store, view: str, taps: Sequence[Tap], target: Any, place: HoldingBackErrors) -> None:
    from pipeline.features.reader import Reader  # with torch, which takes a while

    spec = store.spec
    target.create_group(view).attrs[hdf5_file.ATTRIBUTES] = json.dumps(store.attributes(view))
    for name, pooled in ((layer_array, False), (pooled_array, True)):
        reader = Reader(store, views=(view,), layers=taps, pooled=pooled)
        if "n_frames" not in target:
            target["n_frames"] = reader.n_frames
        row, dtype = reader.row[1:], "float32" if pooled else "float16"
        arrays = [
            target.create_dataset(f"{view}/{name(tap)}", (spec.utterances, *row), dtype, chunks=(1, *row))
            for tap in taps
        ]
        what = f"{view}, {'means and deviations' if pooled else 'frames'}"
        for shard in tqdm(range(spec.shards), desc=what, unit="shard", disable=None):
            rows = spec.rows(shard)
            block = reader.gather(np.arange(rows.start, rows.stop)).numpy()
            for layer, array in enumerate(arrays):
                array[rows.start : rows.stop] = block[:, layer]
            place.check()


def bring_back(file: Path, *, root: Path) -> Store:
    """Put the features of a file that `export` wrote back into their store, and make the store where there is none.

    Shards that are complete in the store stay as they are. What comes from the file is marked as imported, and so is
    each receipt of it: nothing says that the encoder of the spec made these numbers. All of the file is read and
    checked before anything is written.

    Raises InputError for a file that `export` did not write: one that lacks arrays or has others, or that leads to
    other files; for numbers that are not finite, and means and deviations that do not belong to their frames; and where
    the disk has no room.
    """
    import h5py

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    hdf5_file.check_apart(file)
    with h5py.File(file, "r") as source:
        with hdf5_file.telling(file):
            spec, name, views = hdf5_file.checked(file, source)
        path = root / spec.folder(name)
        with Store.locked(path):
            _check_room(path, spec, views)
            if is_there(path / "zarr.json"):
                _check_same(file, source, Store.open(path, spec), views)
            store = Store.create(root, name, spec)
            store.sweep()
            for view in views:
                _bring_back_view(file, source, store, view)
    return store


def _check_room(path: Path, spec: Spec, views: Sequence[hdf5_file.ViewInFile]) -> None:
    """Raise InputError where the disk is too small for what the store lacks. path: the store's place."""
    if not is_local(path):
        return
    wanted = sum(spec.bytes_of(len(view.taps)) for view in views)
    if is_there(path / "zarr.json"):
        store = Store.open(path, spec)
        lacking = (
            (len(layers), len(spec.rows(shard)))
            for view in views
            for shard, layers in store.incomplete(view.name, view.taps).items()
        )
        wanted = sum(spec.bytes_of(layers, rows=rows) for layers, rows in lacking)
    free = shutil.disk_usage(path.parent).free
    if wanted and wanted + SPARE_BYTES > free:
        sizes = [readable_size(size) for size in (wanted, SPARE_BYTES, free)]
        raise InputError(
            f"{path}: expected {sizes[0]} of free disk and {sizes[1]} to spare, got {sizes[2]}; free some, or move the "
            "stores (features.root)"
        )


def _check_same(file: Path, source: Any, store: Store, views: Sequence[hdf5_file.ViewInFile]) -> None:
    """Raise InputError where a store has other versions of views, or other counts of frames, which all views share."""
    move = "move that store away, or export anew"
    for view in views:
        there = store.attributes(view.name)
        if view.attributes is not None and there not in ({}, view.attributes):
            raise InputError(
                f"{file}: expected {view.name} as {store.path} has it, {there}, got {view.attributes}; {move}"
            )
    with hdf5_file.telling(file):
        n_frames = source["n_frames"][:]
    markers = [store.markers(view) for view in views_of(sizes_below(store.path))]
    for shard, of_views in enumerate(zip(*markers, strict=True)):
        rows = store.spec.rows(shard)
        mine = store.checksum_of_frames(n_frames[rows.start : rows.stop])
        if any(marker.get("n_frames", mine) != mine for marker in of_views):
            raise InputError(f"{file}: expected the n_frames of shard {shard} of {store.path}, got others; {move}")


def _bring_back_view(file: Path, source: Any, store: Store, view: hdf5_file.ViewInFile) -> None:
    spec, name = store.spec, view.name
    store.add_arrays(name, view.taps, attributes=view.attributes)
    for shard in tqdm(range(spec.shards), desc=name, unit="shard", disable=None):
        rows = slice(spec.rows(shard).start, spec.rows(shard).stop)
        absent = store.missing(name, view.taps, shard)
        if absent:
            with hdf5_file.telling(file):
                blocks = {tap: hdf5_file.read(file, source, spec, name, tap, shard) for tap in absent}
                n_frames = source["n_frames"][rows]
            features, pooled = ({tap: pair[k] for tap, pair in blocks.items()} for k in (0, 1))
            store.write(name, shard, features, pooled, n_frames, made=IMPORTED)


def _only(receipt: Path, root: Path) -> tuple[Store, dict[str, Any]]:
    found = list(open_receipts(receipt, root=root).values())
    if len(found) != 1:
        raise InputError(f"{receipt}: expected the receipt of one set, got a pool of {len(found)}; export its sets")
    return found[0]
