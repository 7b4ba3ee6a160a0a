"""The feature stores below a root: which there are, what they cost, who needs them, and taking them elsewhere.

One HDF5 file may hold chosen layers and views of a set, for tools that read no Zarr: `n_frames` (N,), `utterance` (N,)
and `is_bonafide` (N,), and below a group a view `layer_07` (N, T, D) float16 and `pooled_07` (N, 2, D) float32, a chunk
an utterance. Read back, its shards are those of the store that it came from, byte by byte.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.contracts import Tap
from pipeline.errors import InputError
from pipeline.files import is_local, remove_folder, sizes_below
from pipeline.store import CLEAN, FORMAT, Spec, Store, layer_array, open_receipts, pooled_array, read_receipts
from pipeline.trials import Trials, fingerprint

STORE_SUFFIX, PART_SUFFIX = ".zarr", ".part"
ATTRIBUTES = "attributes"  # of a view in the store, as JSON, such as the version of the augmented views


@dataclass(frozen=True)
class Found:
    """One store: its place, what it holds, and which receipts stand for it.

    layers: of each view. shards: of each view, how many are complete in all its layers. size: bytes on disk.
    """

    store: Store
    layers: dict[str, tuple[Tap, ...]]
    shards: dict[str, int]
    size: int
    receipts: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether every view has all its shards."""
        return all(count == self.store.spec.shards for count in self.shards.values())


def look(root: Path, receipts: Path) -> list[Found]:
    """All stores below a root, by their paths.

    Args:
        receipts: the folder of the receipts, `data/features`.

    Raises InputError for a store or a receipt that is none, or of another version.
    """
    needed = users(root, receipts)
    found = []
    for path, sizes in _stores_below(root).items():
        store = Store.open(path)
        layers = {view: layers_of(sizes, view) for view in views_of(sizes)}
        shards = {view: store.spec.shards - len(store.incomplete(view, taps)) for view, taps in layers.items()}
        found.append(Found(store, layers, shards, sum(sizes.values()), tuple(needed.get(path, ()))))
    return found


def _stores_below(root: Path, endings: tuple[str, ...] = (STORE_SUFFIX,)) -> dict[Path, dict[str, int]]:
    """The folders of stores below a root, in order, each with its files and their sizes in bytes."""
    if is_local(root):
        paths = sorted(path for path in root.glob("*/*") if path.name.endswith(endings) and path.is_dir())
        return {path: sizes_below(path) for path in paths}
    found: dict[Path, dict[str, int]] = {}
    for name, size in sorted(sizes_below(root).items()):
        above, _, rest = name.partition("/")
        folder, _, file = rest.partition("/")
        if file and folder.endswith(endings):
            found.setdefault(root / above / folder, {})[file] = size
    return found


def users(root: Path, receipts: Path) -> dict[Path, list[Path]]:
    """The receipts that stand for each store. Raises InputError for a file among them that is none."""
    found: dict[Path, list[Path]] = {}
    for file in sorted(receipts.glob("*.json")):
        for receipt in read_receipts(file).values():
            found.setdefault(root / receipt["store"], []).append(file)
    return found


def views_of(files: Iterable[str]) -> tuple[str, ...]:
    """The views of a store by the names of its files, the clean one first."""
    names = {name.split("/")[1] for name in files if re.fullmatch(r"done/[^/]+/.*", name)}
    return tuple(sorted(names, key=lambda name: (name != CLEAN, name)))


def layers_of(files: Iterable[str], view: str) -> tuple[Tap, ...]:
    """The layers of a view that have arrays, by the names of a store's files; in order, `final` last."""
    arrays = (name.split("/") for name in files if name.startswith(f"{view}/layer_"))
    return _taps({parts[1] for parts in arrays})


def _taps(arrays: Iterable[str]) -> tuple[Tap, ...]:
    """The layers among names of arrays."""
    names = [name.removeprefix("layer_") for name in arrays if name.startswith("layer_")]
    taps: list[Tap] = sorted(int(name) for name in names if name.isdecimal())
    if "final" in names:
        taps.append("final")
    return tuple(taps)


# ---------------------------------------------------------------- removing


def leftovers(root: Path, receipts: Path) -> dict[Path, int]:
    """What no receipt needs, with its bytes: stores, and folders that a killed extraction was about to make stores of.

    Raises InputError where there is no receipt at all: that says nothing about what is needed.
    """
    needed = users(root, receipts)
    if not needed:
        raise InputError(f"{receipts}: expected receipts of features, got none; run from the project's folder")
    found = _stores_below(root, (STORE_SUFFIX, STORE_SUFFIX + PART_SUFFIX))
    return {path: sum(sizes.values()) for path, sizes in found.items() if path not in needed}


def remove(paths: Iterable[Path]) -> None:
    """Delete stores. Raises InputError where an extraction is writing one of them; that one and the rest are kept."""
    for path in paths:
        if not is_local(path):
            remove_folder(path, mark="zarr.json")
            continue
        with Store.locked(path):
            # Renamed first: a store that is half deleted must not pass for one.
            doomed = path.with_name(path.name.removesuffix(PART_SUFFIX) + PART_SUFFIX)
            if doomed != path:
                shutil.rmtree(doomed, ignore_errors=True)
                path.rename(doomed)
            shutil.rmtree(doomed)
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


# ---------------------------------------------------------------- one file


def export(
    receipt: Path, file: Path, *, root: Path, trials: Trials, layers: Sequence[Tap] = (), views: Sequence[str] = ()
) -> int:
    """Write chosen layers and views of a set into one HDF5 file, whole or not at all; its size in bytes.

    Args:
        trials: of the set, for the names and classes. layers, views: of the receipt's; all of them where none is named.

    Raises InputError for a pool, trials of another set, or a layer or view that the receipt has not.
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
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(beside, "w") as target:
        target.attrs.update({"format": FORMAT, "set": receipt.stem, "spec": json.dumps(asdict(store.spec))})
        target["utterance"] = trials.utterance.astype(object)
        target["is_bonafide"] = trials.is_bonafide
        for view in shown:
            _export_view(store, view, taps, target)
    os.replace(beside, file)
    return file.stat().st_size


def _export_view(store: Store, view: str, taps: Sequence[Tap], target: Any) -> None:
    from pipeline.reader import Reader  # with torch, which takes a while

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


def bring_back(file: Path, *, root: Path) -> Store:
    """Put what `export` wrote into the store that it came from, made where it is not there; shards that are, stay.

    Raises InputError for a file that `export` did not write, or of which arrays are missing or of another shape.
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
    """The spec of the store that a file came from, and the name of its set."""
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
    taps = _taps(source[view].keys())
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
    """What stands with a view in a file, or in the store, where files did not tell it yet."""
    there, found = store.attributes(view), source[view].attrs.get(ATTRIBUTES)
    if found is None:
        return there
    try:
        told: dict[str, Any] = json.loads(found)
    except ValueError:
        raise InputError(f"{file}: expected the attributes of {view} as JSON, got {found!r}") from None
    if there not in ({}, told):
        raise InputError(
            f"{file}: expected {view} as {store.path} has it, {there}, got {told}; move that store away, or export anew"
        )
    return told


def _only(receipt: Path, root: Path) -> tuple[Store, dict[str, Any]]:
    found = list(open_receipts(receipt, root=root).values())
    if len(found) != 1:
        raise InputError(f"{receipt}: expected the receipt of one set, got a pool of {len(found)}; export its sets")
    return found[0]
