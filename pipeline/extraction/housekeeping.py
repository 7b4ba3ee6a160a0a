"""The feature stores and fine-tuned encoders below a root: which there are, what they cost, and which may go."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError
from pipeline.core.object_store import is_local, is_there, last_change_below, remove_folder, sizes_below
from pipeline.encoder import kept
from pipeline.extraction.needed import Needed
from pipeline.features.store import Store

STORE_SUFFIX, PART_SUFFIX = ".zarr", ".part"
NAMED = re.compile(r"[0-9a-f]{16}/([a-z][a-z0-9_]*)-[0-9a-f]{16}\.zarr")  # a store's path below the root
PART = re.compile(r"[0-9a-f]{16}/[a-z][a-z0-9_]*-[0-9a-f]{16}(\.[0-9a-f-]+)?\.zarr\.part")  # what is half made
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Found:
    """One store: its place, what it holds, and who needs it.

    layers: of each view. shards: of each view, how many are complete in all its layers. size: bytes on disk.
    """

    store: Store
    layers: dict[str, tuple[Tap, ...]]
    shards: dict[str, int]
    size: int
    users: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether there is a view, and every view has layers and all its shards."""
        whole = (self.layers[view] and count == self.store.spec.shards for view, count in self.shards.items())
        return bool(self.shards) and all(whole)


def look(root: Path, needed: Needed) -> list[Found]:
    """All stores below a root, by their paths. Raises InputError for a store that is none, or of another version."""
    return [look_at(path, needed, sizes=sizes) for path, sizes in _stores_below(root).items()]


def look_at(path: Path, needed: Needed, *, sizes: dict[str, int] | None = None) -> Found:
    """One store. sizes: of its files, where they are known. Raises InputError as `look`."""
    store, sizes = Store.open(path), sizes_below(path) if sizes is None else sizes
    layers = {view: layers_of(sizes, view) for view in views_of(sizes)}
    shards = {view: store.spec.shards - len(store.incomplete(view, taps)) for view, taps in layers.items()}
    users = tuple(sorted(needed.stores.get(_name(path), ())))
    return Found(store, layers, shards, sum(sizes.values()), users)


def _name(path: Path) -> str:
    """A store's path below the root."""
    return f"{path.parent.name}/{path.name}"


@dataclass(frozen=True)
class FoundEncoder:
    """A fine-tuned encoder, or a fine-tuning under way: its folder, what decides it, and who needs it.

    epochs: of one under way, how many are in its checkpoint; None of one that is whole. size: bytes on disk.
    """

    folder: Path
    facts: dict[str, Any]
    epochs: int | None
    size: int
    users: tuple[str, ...]


def look_at_encoders(root: Path, needed: Needed) -> list[FoundEncoder]:
    """All fine-tuned encoders, by their identities. root: of the feature stores.

    Raises InputError for a folder among them that is none.
    """
    found = []
    for folder in _encoders_below(root):
        size = sum(sizes_below(folder).values())
        users = tuple(sorted(_users_of_encoder(folder, needed)))
        if folder.suffix == kept.UNFINISHED:
            done = [int(path.stem.rpartition("_")[2]) for path in folder.glob("weights_*.safetensors")]
            found.append(FoundEncoder(folder, kept.facts_of(folder), max(done, default=0), size, users))
        elif not folder.suffix:
            found.append(FoundEncoder(folder, kept.facts_of(folder), None, size, users))
    return found


def _encoders_below(root: Path) -> list[Path]:
    """The folders of fine-tuned encoders, of trainings under way, and of what a killed one left."""
    named = re.compile(rf"[0-9a-f]{{16}}(\.[0-9a-f-]+)?({re.escape(kept.UNFINISHED)})?({re.escape(PART_SUFFIX)})?")
    return [path for path in sorted(kept.folder_of(root).glob("*")) if named.fullmatch(path.name) and path.is_dir()]


def _stores_below(root: Path, *, parts: bool = False) -> dict[Path, dict[str, int]]:
    """The folders of stores below a root, in order, each with its files and their sizes in bytes.

    parts: those that are half made or half deleted, too. What has another name than a store is somebody else's.
    """

    def wanted(name: str) -> bool:
        return bool(NAMED.fullmatch(name) or (parts and PART.fullmatch(name)))

    if is_local(root):
        paths = sorted(path for path in root.glob("*/*") if wanted(_name(path)) and path.is_dir())
        return {path: sizes_below(path) for path in paths}
    found: dict[Path, dict[str, int]] = {}
    for name, size in sorted(sizes_below(root).items()):
        above, _, rest = name.partition("/")
        folder, _, file = rest.partition("/")
        if file and wanted(f"{above}/{folder}"):
            found.setdefault(root / above / folder, {})[file] = size
    return found


def views_of(files: Iterable[str]) -> tuple[str, ...]:
    """The views of a store by the names of its files, the clean one first; also one of which no shard is made."""
    found = (re.fullmatch(r"done/([^/]+)/.*|([^/]+)/layer_[^/]+/.*", name) for name in files)
    names = {one[1] or one[2] for one in found if one}
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


@dataclass(frozen=True)
class Leftovers:
    """What `gc` finds: folders that may go, with their bytes, and those that stay, with why."""

    doomed: dict[Path, int]
    spared: dict[Path, str]


def leftovers(root: Path, needed: Needed, *, asked: Callable[[Path], bool], days: float, incomplete: bool) -> Leftovers:
    """Stores and encoders that no receipt or card needs, and what killed processes were about to make some of.

    Args:
        asked: whether the present parameters ask for a folder. days: what was written to since then stays.
        incomplete: whether what can be completed may go; no receipt anywhere stands for it yet.
    """
    found = Leftovers({}, {})
    stores = _stores_below(root, parts=True)
    encoders = {path: sizes_below(path) for path in _encoders_below(root)}
    for path, sizes in {**stores, **encoders}.items():
        users, unsure = (
            (_users_of_encoder(path, needed), needed.unsure_of_encoders())
            if path in encoders
            else (needed.stores.get(_name(path), set()), needed.unsure_of_store(_name(path)))
        )
        if users:
            found.spared[path] = f"needed by {_some(users)}"
        elif unsure:
            found.spared[path] = f"may be needed by what cannot be read: {_some(unsure)}"
        elif asked(path):
            found.spared[path] = "the parameters ask for it"
        elif not _is_older(path, days):
            found.spared[path] = f"written to in the last {days:g} days"
        elif not incomplete and not _is_whole(path, needed, sizes):
            found.spared[path] = "it is incomplete or damaged; --older-than takes it, too"
        elif is_local(path) and any(one.is_symlink() for one in (path, path.parent)):
            found.spared[path] = f"it is a link to {path.resolve()}; delete the one or the other yourself"
        else:
            found.doomed[path] = sum(sizes.values())
    return found


def _users_of_encoder(path: Path, needed: Needed) -> set[str]:
    """Who needs a fine-tuned encoder: by a card, or by features that its weights made."""
    users = set(needed.encoders.get(path.name, ()))
    if needed.weights and not path.suffix and is_there(path / kept.MARK_FILE):
        encoder = kept.find(path)
        users |= needed.weights.get(str(encoder.card.get("weights_sha256")), set()) if encoder else set()
    return users


def _some(users: set[str]) -> str:
    """The first of those who need something, and how many others there are."""
    first, *others = sorted(users)
    return f"{first} and {len(others)} more" if others else first


def _is_whole(path: Path, needed: Needed, sizes: dict[str, int]) -> bool:
    """Whether nothing can be added to a folder: a complete encoder or store, and what is none and never becomes one."""
    if path.name.endswith(kept.UNFINISHED):
        return False
    try:
        return not NAMED.fullmatch(_name(path)) or look_at(path, needed, sizes=sizes).complete
    except InputError:  # no store, or one that is damaged, or of another version
        return not is_there(path / "zarr.json")


def _is_older(path: Path, days: float) -> bool:
    """Whether nothing was written to a folder for some days. Where the time is unknown, only 0 days give True."""
    changed = last_change_below(path)
    return not days or (changed is not None and time.time() - changed > days * SECONDS_A_DAY)


def remove(paths: Iterable[Path]) -> None:
    """Delete stores and encoders; one that another process has just deleted is left out.

    Raises InputError where an extraction is writing one of them; that one and the rest are kept.
    """
    for path in paths:
        if not is_local(path):
            remove_folder(path, mark="zarr.json")
            continue
        with Store.locked(path):
            # Renamed first: a store that is half deleted must not pass for one.
            doomed = path.with_name(path.name.removesuffix(PART_SUFFIX) + PART_SUFFIX)
            if doomed != path and path.is_dir():
                shutil.rmtree(doomed, ignore_errors=True)
                path.rename(doomed)
            if doomed.is_dir():
                shutil.rmtree(doomed)
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it has other stores, or another process has deleted it
            path.parent.rmdir()
