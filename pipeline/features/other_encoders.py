"""Stores of the same trials by other encoders, below the same root. Receipts stand for the encoder at work alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError
from pipeline.core.object_store import is_there, sizes_below
from pipeline.features.receipt_files import OpenSet
from pipeline.features.specs import POOLED_PREFIX, fingerprint
from pipeline.features.store import Store


def find(
    root: Path, sets: Sequence[OpenSet], *, wanted: Literal["all"] | Sequence[str], views: Sequence[str]
) -> dict[str, list[OpenSet]]:
    """Encoder -> its stores of the sets, in order, for the encoders that have whole layers of every set.

    root: of all stores. sets: those of the encoder at work. wanted: fingerprints, or all. views: looked for beside the
    clean one; a store may lack them.

    Raises InputError for a wanted encoder without them.
    """
    own = fingerprint(sets[0].receipt["encoder"])
    names = sorted(path.name for path in root.iterdir() if len(path.name) == 16) if wanted == "all" else list(wanted)
    found = {}
    for encoder in (name for name in names if name != own):
        stores = [_opened(root / encoder / Path(one.receipt["store"]).name, one, views) for one in sets]
        whole = [one for one in stores if one is not None]
        if len(whole) == len(sets):
            found[encoder] = whole
        elif wanted != "all":
            lacking = ", ".join(one.name for one, store in zip(sets, stores, strict=True) if store is None)
            raise InputError(
                f"atlas.encoders: expected stores of all sets by the encoder {encoder} below {root}, got none that is "
                f"whole of {lacking}; `bonafide cache ls` shows what there is"
            )
    return found


def _opened(path: Path, one: OpenSet, views: Sequence[str]) -> OpenSet | None:
    """The store of a set at a path, with the layers and views that are whole there; None without any."""
    if not is_there(path / "zarr.json"):
        return None
    store = Store.open(path)
    layers = [layer for layer in _layers(path) if _is_whole(store, CLEAN, [layer])]
    if not layers:
        return None
    there = [CLEAN, *(view for view in views if view != CLEAN and _is_whole(store, view, layers))]
    receipt: dict[str, Any] = {**one.receipt, "encoder": store.spec.encoder, "layers": layers, "views": there}
    return OpenSet(one.name, one.trials, store, receipt)


def _layers(path: Path) -> list[Tap]:
    """The layers with pooled arrays in the clean view, in order, `final` last."""
    prefix = f"{CLEAN}/{POOLED_PREFIX}"
    names = {name.removeprefix(prefix).partition("/")[0] for name in sizes_below(path) if name.startswith(prefix)}
    layers: list[Tap] = sorted(int(name) for name in names if name.isdecimal())
    return layers + (["final"] if "final" in names else [])


def _is_whole(store: Store, view: str, layers: Sequence[Tap]) -> bool:
    """Whether all shards have the pooled arrays of some layers."""
    try:
        store.digest([view], layers, pooled=True)
    except InputError:
        return False
    return True
