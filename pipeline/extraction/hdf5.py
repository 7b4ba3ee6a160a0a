"""Layers of a store as one HDF5 file, for programs that do not read Zarr; and such a file back into a store."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.audio.views import parse
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.files import flush_names, parse_json, readable_size, writing
from pipeline.core.object_store import is_local, is_there, sizes_below
from pipeline.core.trial_table import Trials, fingerprint
from pipeline.extraction.housekeeping import PART_SUFFIX, taps_of, views_of
from pipeline.extraction.planning import SPARE_BYTES
from pipeline.features.libraries import IMPORTED
from pipeline.features.receipt_files import open_receipts
from pipeline.features.shard_bytes import Block
from pipeline.features.specs import DEEPEST_LAYER, STORAGE, VERSION_KEY, Spec, is_spec, layer_array, pooled_array
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT

OF_THE_SET = ("is_bonafide", "n_frames", "utterance")  # arrays beside the views
MOST, MOST_IN_A_SHARD = 2**40, 2**20  # of each number of the spec, and of the utterances in a shard
ANEW = "export it anew"
PATIENCE_S = 9.0  # seconds for one array's index, or one shard; a damaged file may take for ever
ROUNDING = 1 / 200  # of a channel's largest value: what int8 and float16 leave of it, 1/254 + 1/2048, is less
SOUND = b"sound"
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
    _check_apart(file)
    with h5py.File(file, "r") as source:
        with _damage_told(file):
            spec, name, views = _checked(file, source)
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


class _View(NamedTuple):
    """A view in a file. attributes: None where the file is of a version that did not write them."""

    name: str
    taps: tuple[Tap, ...]
    attributes: dict[str, Any] | None


def _check_apart(file: Path) -> None:
    """Check all of a file in a process of its own: HDF5 may crash or never end on a file that is damaged.

    Raises InputError for a file that `bring_back` refuses.
    """
    forked = multiprocessing.get_context("fork")  # starts at once, and opens no file of this process
    here, there = forked.Pipe(duplex=False)
    child = forked.Process(target=_check_all, args=(file, there), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; the child waits for none
        child.start()
    there.close()
    said = b""
    try:
        while not said and here.poll(PATIENCE_S):  # empty: it goes on; a word: it has ended
            said = here.recv_bytes()
    except EOFError:  # it has crashed
        pass
    finally:
        child.kill()
        child.join()
        here.close()
    if said != SOUND:
        why = said.decode() or f"{file}: expected an HDF5 file that `bonafide cache export` wrote, got a damaged one"
        raise InputError(why if said else f"{why}; {ANEW}")


def _check_all(file: Path, parent: Any) -> None:
    """Check a file, send an empty word after each step, and in the end what is wrong or `SOUND`."""
    import h5py

    try:
        with _damage_told(file), h5py.File(file, "r") as source:
            spec, _, views = _checked(file, source, alive=lambda: parent.send_bytes(b""))
            layers = [(view.name, tap) for view in views for tap in view.taps]
            for view, tap in tqdm(layers, desc="check", unit="layer", disable=None):
                for shard in range(spec.shards):
                    _read(file, source, spec, view, tap, shard)
                    parent.send_bytes(b"")
    except InputError as error:
        parent.send_bytes(str(error).encode(errors="replace"))
    else:
        parent.send_bytes(SOUND)
    parent.close()
    os._exit(0)


def _checked(file: Path, source: Any, *, alive: Callable[[], None] = lambda: None) -> tuple[Spec, str, list[_View]]:
    """The spec of a file, the name of its set, and its views. Raises InputError for what `export` does not write."""
    spec, name = _spec(file, source)
    _check_links(file, source)
    _check_attributes(file, source, {"format", "set", "spec"})
    _check_array(file, source, "n_frames", (spec.utterances,), "int32")
    for array, dtype in (("is_bonafide", "bool"), ("utterance", "object")):
        if array in source:
            _check_array(file, source, array, (spec.utterances,), dtype)
    n_frames = source["n_frames"][:]
    if (bad := np.flatnonzero((n_frames < 1) | (n_frames > spec.frames))).size:
        got = n_frames[bad[0]]
        raise InputError(f"{file}: n_frames: expected 1 to {spec.frames}, got {got} in row {bad[0]}; {ANEW}")
    views = [_checked_view(file, source, spec, view, alive) for view in _views(file, source)]
    return spec, name, views


@contextlib.contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    """Turn every error of HDF5 into InputError: a file that is damaged gives errors of many kinds."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"{file}: expected an HDF5 file that `bonafide cache export` wrote: {why}; {ANEW}") from None


def _spec(file: Path, source: Any) -> tuple[Spec, str]:
    """The spec of the file's store, and the name of its set."""
    told = {key: source.attrs.get(key) for key in ("format", "spec", "set")}
    if not isinstance(told["spec"], str) or not isinstance(told["set"], str) or np.ndim(told["format"]):
        raise InputError(f"{file}: expected an HDF5 file that `bonafide cache export` wrote, got another")
    if told["format"] != FORMAT:
        raise InputError(f"{file}: expected features of store format {FORMAT}, got {told['format']}")
    name, what = told["set"], "spec that `bonafide cache export` wrote"
    facts = parse_json(file, told["spec"].encode(), what=what, remedy=ANEW)
    if not is_spec(facts) or any(facts[key] > MOST for key in ("utterances", "frames", "channels", "shard")):
        raise InputError(f"{file}: expected an HDF5 file that `bonafide cache export` wrote, got another spec")
    spec = Spec(**facts)
    if spec.shard > MOST_IN_A_SHARD:
        raise InputError(f"{file}: expected at most {MOST_IN_A_SHARD:,} utterances in a shard, got {spec.shard:,}")
    if not _is_encoder(spec.encoder):
        raise InputError(f"{file}: expected the facts of an encoder in the spec, got others; {ANEW}")
    if not re.fullmatch(r"[a-z][a-z0-9_]{,99}", name) or not re.fullmatch(r"[0-9a-f]{16}", str(spec.trials)):
        raise InputError(f"{file}: expected the name of a set and a fingerprint, got {name!r} and {spec.trials!r}")
    return spec, name


def _is_encoder(facts: Any) -> bool:
    """Whether these may be the facts of an encoder: a storage that there is, and numbers that JSON has."""
    kinds = {"window": dict, "architecture": dict, "weights_sha256": str, "normalize": str}
    if not isinstance(facts, dict) or facts.get(STORAGE, "float16") not in ("float16", "int8"):
        return False
    try:
        json.dumps(facts, allow_nan=False)
    except ValueError:
        return False
    return all(isinstance(facts.get(key, kind()), kind) for key, kind in kinds.items())


def _views(file: Path, source: Any) -> list[str]:
    """The names of the views. Raises InputError for anything beside them and the arrays of the whole set."""
    import h5py

    views = [name for name, item in source.items() if isinstance(item, h5py.Group)]
    if others := sorted(set(source) - {*views, *OF_THE_SET}):
        raise InputError(f"{file}: expected views and {', '.join(OF_THE_SET)}, got {', '.join(others)[:200]}; {ANEW}")
    for view in views:
        if not re.fullmatch(r"[a-z][a-z0-9_]{,99}", view):
            raise InputError(f"{file}: expected the name of a view, got {view!r}")
        parse(view)
        _check_attributes(file, source[view], {ATTRIBUTES})
    if not views:
        raise InputError(f"{file}: expected at least one view, got none; {ANEW}")
    return views


def _checked_view(file: Path, source: Any, spec: Spec, view: str, alive: Callable[[], None]) -> _View:
    """A view of a file. Raises InputError where it has other arrays or attributes than `export` writes."""
    _check_links(file, source[view])
    names = list(source[view])
    taps = taps_of(names)
    if too_deep := [tap for tap in taps if tap != "final" and tap > DEEPEST_LAYER]:
        raise InputError(f"{file}: expected layers up to {DEEPEST_LAYER} in {view}, got {too_deep[0]}; {ANEW}")
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for tap in taps:
        wanted[layer_array(tap)] = (spec.utterances, spec.frames, spec.channels), "float16"
        wanted[pooled_array(tap)] = (spec.utterances, 2, spec.channels), "float32"
    for array, (shape, dtype) in wanted.items():
        _check_array(file, source, f"{view}/{array}", shape, dtype)
        alive()
    if others := sorted(set(names) - set(wanted)) or not taps:
        told = ", ".join(others)[:200] if others is not True else "none"
        raise InputError(f"{file}: expected the arrays of layers in {view}, got {told}; {ANEW}")
    return _View(view, taps, _attributes(file, source, view))


def _check_links(file: Path, group: Any) -> None:
    """Raise InputError for a name in a group that leads to another place or file, or to what has another name, too."""
    import h5py

    for name in group:
        hard = isinstance(group.get(name, getlink=True), h5py.HardLink)
        if not hard or h5py.h5o.get_info(group.id, name.encode()).rc != 1:
            raise InputError(f"{file}: expected arrays in the file itself, got a link as {name[:200]!r}; {ANEW}")


def _check_attributes(file: Path, item: Any, known: set[str]) -> None:
    """Raise InputError for attributes that `export` does not write; they may be references to objects."""
    if others := sorted(set(item.attrs) - known):
        raise InputError(f"{file}: expected no attribute {', '.join(others)[:200]} of {item.name}; {ANEW}")


def _check_array(file: Path, source: Any, array: str, shape: tuple[int, ...], dtype: str) -> None:
    """Raise InputError unless an array has a shape and a type, and all its bytes lie in the file as they are."""
    import h5py

    item: Any = source.get(array)
    got = (item.shape, item.dtype) if isinstance(item, h5py.Dataset) else "nothing"
    if got != (shape, dtype):
        raise InputError(f"{file}: expected {array} of {shape} {dtype}, got {got}")
    if dtype == "object" and h5py.check_string_dtype(item.dtype) is None:
        raise InputError(f"{file}: expected {array} of text, got references or other objects; {ANEW}")
    _check_attributes(file, item, set())
    made = item.id.get_create_plist()
    if made.get_external_count() or item.is_virtual:
        raise InputError(f"{file}: expected the bytes of {array} in the file itself, got a name of other files; {ANEW}")
    if made.get_nfilters():
        raise InputError(f"{file}: expected {array} as export writes it, got filters; h5repack -f NONE takes them out")
    if (size := item.id.get_storage_size()) < item.nbytes:
        raise InputError(f"{file}: expected {item.nbytes:,} bytes of {array}, got {size:,}; {ANEW}")


def _read(file: Path, source: Any, spec: Spec, view: str, tap: Tap, shard: int) -> tuple[Block, Block]:
    """Frames (n, T, D) and means and deviations (n, 2, D) of a shard.

    Raises InputError where they are not finite, or where the latter are not those of the first `n_frames` frames.
    """
    rows = spec.rows(shard)
    frames, pooled, n_frames = (
        source[array][rows.start : rows.stop]
        for array in (f"{view}/{layer_array(tap)}", f"{view}/{pooled_array(tap)}", "n_frames")
    )
    for name, block in ((layer_array(tap), frames), (pooled_array(tap), pooled)):
        whole = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not whole.all():
            row = rows.start + int(np.argmin(whole))
            raise InputError(
                f"{file}: {view}/{name}: expected finite numbers, got NaN or infinity in row {row}; {ANEW}"
            )
    near = _are_of(pooled, frames.astype(np.float32), n_frames)
    if not near.all():
        row = rows.start + int(np.argmin(near))
        raise InputError(
            f"{file}: {view}/{pooled_array(tap)}: expected mean and deviation of {layer_array(tap)} in row {row}, of "
            f"its first {n_frames[row - rows.start]} frames, got others; {ANEW}"
        )
    return frames, pooled


def _are_of(pooled: Block, frames: Block, n_frames: Block) -> NDArray[np.bool_]:
    """Whether means and deviations (n, 2, D) are those of the valid frames, (n, T, D) float32; (n,)."""
    valid = np.arange(frames.shape[1])[None, :, None] < n_frames[:, None, None]
    count = n_frames[:, None].astype(np.float32)
    mean = np.where(valid, frames, 0).sum(axis=1) / count
    variance = np.where(valid, np.square(frames - mean[:, None]), 0).sum(axis=1) / count
    most = ROUNDING * np.abs(frames).max(axis=(0, 1)) + 1e-6  # (D,)
    off = np.abs(pooled - np.stack([mean, np.sqrt(variance)], axis=1))
    near: NDArray[np.bool_] = (off <= most).all(axis=(1, 2))
    return near


def _check_room(path: Path, spec: Spec, views: Sequence[_View]) -> None:
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


def _check_same(file: Path, source: Any, store: Store, views: Sequence[_View]) -> None:
    """Raise InputError where a store has other versions of views, or other counts of frames, which all views share."""
    move = "move that store away, or export anew"
    for view in views:
        there = store.attributes(view.name)
        if view.attributes is not None and there not in ({}, view.attributes):
            raise InputError(
                f"{file}: expected {view.name} as {store.path} has it, {there}, got {view.attributes}; {move}"
            )
    with _damage_told(file):
        n_frames = source["n_frames"][:]
    markers = [store.markers(view) for view in views_of(sizes_below(store.path))]
    for shard, of_views in enumerate(zip(*markers, strict=True)):
        rows = store.spec.rows(shard)
        mine = store.checksum_of_frames(n_frames[rows.start : rows.stop])
        if any(marker.get("n_frames", mine) != mine for marker in of_views):
            raise InputError(f"{file}: expected the n_frames of shard {shard} of {store.path}, got others; {move}")


def _bring_back_view(file: Path, source: Any, store: Store, view: _View) -> None:
    spec, name = store.spec, view.name
    store.add_arrays(name, view.taps, attributes=view.attributes)
    for shard in tqdm(range(spec.shards), desc=name, unit="shard", disable=None):
        rows = slice(spec.rows(shard).start, spec.rows(shard).stop)
        absent = store.missing(name, view.taps, shard)
        if absent:
            with _damage_told(file):
                blocks = {tap: _read(file, source, spec, name, tap, shard) for tap in absent}
                n_frames = source["n_frames"][rows]
            features, pooled = ({tap: pair[k] for tap, pair in blocks.items()} for k in (0, 1))
            store.write(name, shard, features, pooled, n_frames, made=IMPORTED)


def _attributes(file: Path, source: Any, view: str) -> dict[str, Any] | None:
    """The attributes of a view in a file; None in files of older versions, which do not have them."""
    if ATTRIBUTES not in source[view].attrs:
        return None
    found = source[view].attrs[ATTRIBUTES]
    text = found if isinstance(found, str) else ""
    attributes = parse_json(file, text.encode(), what=f"file with the attributes of {view}", remedy=ANEW)
    if not all(key == VERSION_KEY and type(value) is int for key, value in attributes.items()):
        raise InputError(f"{file}: expected the version of {view}, got the attributes {str(attributes)[:200]}; {ANEW}")
    return attributes


def _only(receipt: Path, root: Path) -> tuple[Store, dict[str, Any]]:
    found = list(open_receipts(receipt, root=root).values())
    if len(found) != 1:
        raise InputError(f"{receipt}: expected the receipt of one set, got a pool of {len(found)}; export its sets")
    return found[0]
