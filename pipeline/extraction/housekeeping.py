"""The feature stores below a root: which there are, what they cost, who needs them, and taking them elsewhere.

One HDF5 file may hold chosen layers and views of a set, for tools that read no Zarr: `n_frames` (N,), `utterance` (N,)
and `is_bonafide` (N,), and below a group a view `layer_07` (N, T, D) float16 and `pooled_07` (N, 2, D) float32, a chunk
an utterance. Read back, its shards are those of the store that it came from, byte by byte.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError
from pipeline.core.object_store import is_local, remove_folder, sizes_below
from pipeline.features.receipt_files import read_receipts
from pipeline.features.store import Store

STORE_SUFFIX, PART_SUFFIX = ".zarr", ".part"


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
    return taps_of({parts[1] for parts in arrays})


def taps_of(arrays: Iterable[str]) -> tuple[Tap, ...]:
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
