"""Layers of a store as one HDF5 file, for programs that do not read Zarr; and such a file back into a store."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.files import flush_names, writing
from pipeline.core.trial_table import Trials, fingerprint
from pipeline.extraction.housekeeping import PART_SUFFIX, taps_of
from pipeline.features.receipt_files import open_receipts
from pipeline.features.specs import Spec, layer_array, pooled_array
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT

ATTRIBUTES = "attributes"  # of a view in the store, as JSON, such as the version of the augmented views


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
    taps, shown = tuple(layers or facts["layers"]), tuple(views or facts["views"])
    for what, wanted, there in (("layer", taps, facts["layers"]), ("view", shown, facts["views"])):
        if missing := [str(name) for name in wanted if name not in there]:
            raise InputError(f"{receipt}: no {what} {', '.join(missing)}; it has {', '.join(map(str, there))}")
    if fingerprint(trials) != store.spec.trials:
        raise InputError(f"{receipt}: not the receipt of these trials; run `dvc repro extract`")
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
    target.create_group(view).attrs[ATTRIBUTES] = json.dumps(store.attributes(view))
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

    Shards that are complete in the store stay as they are. Raises InputError for a file that `export` did not write, or
    that lacks arrays or has arrays of another shape.
    """
    import h5py

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        source = h5py.File(file)
    except OSError as error:
        raise InputError(f"{file}: expected an HDF5 file that `bonafide cache export` wrote: {error}") from None
    with source:
        spec, name = _spec(file, source)
        with Store.locked(root / spec.folder(name)):
            store = Store.create(root, name, spec)
            for view in (key for key, item in source.items() if isinstance(item, h5py.Group)):
                _bring_back_view(file, source, store, view)
    return store


def _spec(file: Path, source: Any) -> tuple[Spec, str]:
    """The spec of the file's store, and the name of its set."""
    try:
        if source.attrs["format"] != FORMAT:
            raise InputError(f"{file}: expected features of store format {FORMAT}, got {source.attrs['format']}")
        spec, name = Spec(**json.loads(source.attrs["spec"])), str(source.attrs["set"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: expected an HDF5 file that `bonafide cache export` wrote, got another") from None
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not re.fullmatch(r"[0-9a-f]{16}", spec.trials):
        raise InputError(f"{file}: expected the name of a set and a fingerprint, got {name!r} and {spec.trials!r}")
    return spec, name


def _bring_back_view(file: Path, source: Any, store: Store, view: str) -> None:
    spec = store.spec
    if not re.fullmatch(r"[a-z][a-z0-9_]*", view):
        raise InputError(f"{file}: expected the name of a view, got {view!r}")
    taps = taps_of(source[view].keys())
    wanted: dict[str, tuple[tuple[int, ...], str]] = {"n_frames": ((spec.utterances,), "int32")}
    for tap in taps:
        wanted[f"{view}/{layer_array(tap)}"] = (spec.utterances, spec.frames, spec.channels), "float16"
        wanted[f"{view}/{pooled_array(tap)}"] = (spec.utterances, 2, spec.channels), "float32"
    for array, (shape, dtype) in wanted.items():
        got = (source[array].shape, source[array].dtype) if array in source else "nothing"
        if got != (shape, dtype):
            raise InputError(f"{file}: expected {array} of {shape} {dtype}, got {got}")
    store.add_arrays(view, taps, attributes=_attributes(file, source, store, view))
    for shard in tqdm(range(spec.shards), desc=view, unit="shard", disable=None):
        rows = slice(spec.rows(shard).start, spec.rows(shard).stop)
        absent = store.missing(view, taps, shard)
        if absent:
            store.write(
                view,
                shard,
                {tap: source[f"{view}/{layer_array(tap)}"][rows] for tap in absent},
                {tap: source[f"{view}/{pooled_array(tap)}"][rows] for tap in absent},
                source["n_frames"][rows],
            )


def _attributes(file: Path, source: Any, store: Store, view: str) -> dict[str, Any]:
    """The attributes of a view in a file, or in the store, because files of older versions do not have them."""
    there, found = store.attributes(view), source[view].attrs.get(ATTRIBUTES)
    if found is None:
        return there
    try:
        attributes: dict[str, Any] = json.loads(found)
    except ValueError:
        raise InputError(f"{file}: expected the attributes of {view} as JSON, got {found!r}") from None
    if there not in ({}, attributes):
        raise InputError(
            f"{file}: expected {view} as {store.path} has it, {there}, got {attributes}; move that store away, or "
            "export anew"
        )
    return attributes


def _only(receipt: Path, root: Path) -> tuple[Store, dict[str, Any]]:
    found = list(open_receipts(receipt, root=root).values())
    if len(found) != 1:
        raise InputError(f"{receipt}: expected the receipt of one set, got a pool of {len(found)}; export its sets")
    return found[0]
