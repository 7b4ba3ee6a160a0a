"""Stage one: run the encoder once over a set and cache the features of its layers, of every view.

The work is a plan of units (`pipeline.extraction.units`), each one shard of one view. Units are independent and
idempotent. A killed extraction continues with the first unit that has no marker. A unit that fails, because of its
audio or its features, stops none of the others. Units are made in this process, or by Dask's workers
(`pipeline.extraction.cluster`). Augmented views (`pipeline.audio.views`) are made of the set that `train.set` names
alone: evaluation sets are never augmented.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.audio import views
from pipeline.audio.loader import Clip, clip_of
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json
from pipeline.core.object_store import is_local
from pipeline.core.params import ExtractParams
from pipeline.core.trial_table import Trials
from pipeline.encoder.cards import Card
from pipeline.extraction import units
from pipeline.extraction.identity import spec_of
from pipeline.extraction.progress import Progress
from pipeline.extraction.units import MakeEncoder, Unit
from pipeline.features import zarr_metadata
from pipeline.features.store import Store

SPARE_BYTES = 64 * 2**20  # left free on the disk for markers, receipts and everybody else

Say = Callable[[str], None]


def views_of(params: ExtractParams) -> tuple[str, ...]:
    """The views that are cached: `clean`, and those of the parameters.

    Raises InputError for a name in the parameters that no augmented view has.
    """
    for name in params.views:
        if views.parse(name).kind == CLEAN:
            raise InputError(f"expected views beside {CLEAN}, which is always cached, got {name!r}; remove it")
    return (CLEAN, *params.views)


def plan(target: Store, names: Sequence[str], layers: Sequence[Tap]) -> list[Unit]:
    """The units that are not complete, shard by shard, in every shard view by view."""
    lacking = {name: target.incomplete(name, layers) for name in names}
    every = ((shard, name) for shard in range(target.spec.shards) for name in names)
    return [Unit(shard, name, lacking[name][shard]) for shard, name in every if shard in lacking[name]]


def describe(
    target: Store, units: Sequence[Unit], names: Sequence[str], layers: Sequence[Tap], *, free: int | None
) -> str:
    """What is about to be done: utterances, views, layers, units, bytes, free disk, which an object store has not."""
    spec = target.spec
    lines = [
        f"{spec.utterances} utterances, views {_names(names)}, layers {_names(layers)}, "
        f"{spec.frames} frames of {spec.channels}, computed in {spec.encoder['compute_dtype']}, kept in {spec.storage}"
    ]
    lines += [f"{name}: {_progress(target, [unit for unit in units if unit.view == name], layers)}" for name in names]
    there = f", {_size(free)} free" if free is not None else ""
    lines.append(f"{_size(needed(target, units))} to write{there} at {target.path}")
    return "\n".join(lines)


def _progress(target: Store, units: Sequence[Unit], layers: Sequence[Tap]) -> str:
    """What is there of one view and what is to do."""
    shards = target.spec.shards
    done = f"{shards - len(units)} of {shards} shards are complete; to do: "
    if not units:
        return done + "nothing"
    todo = [layer for layer in layers if any(layer in unit.layers for unit in units)]
    kept = [layer for layer in layers if layer not in todo]
    there = f"; layers {_names(kept)} are there and stay as they are" if kept else ""
    return f"{done}layers {_names(todo)} in {len(units)} shards{there}"


def _names(names: Sequence[Tap | str]) -> str:
    return ", ".join(str(name) for name in names)


def _size(count: int) -> str:
    """Bytes for people."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def needed(target: Store, units: Sequence[Unit]) -> int:
    """Bytes that the units will write."""
    return sum(target.spec.bytes_of(len(u.layers), rows=len(target.spec.rows(u.shard))) for u in units)


def check_disk(target: Store, units: Sequence[Unit], *, free: int | None) -> None:
    """Raise InputError where the disk is too small for the units."""
    want = needed(target, units)
    if units and free is not None and want + SPARE_BYTES > free:
        raise InputError(
            f"{target.path}: expected {_size(want)} of free disk and {_size(SPARE_BYTES)} to spare, got {_size(free)}, "
            f"{_size(want + SPARE_BYTES - free)} too little; free some, ask for fewer layers or views (extract.layers, "
            "extract.views) or move the stores (features.root)"
        )


def extract(
    trials: Trials,
    *,
    set_name: str,
    audio_root: Path,
    root: Path,
    card: Card,
    encoder: MakeEncoder,
    params: ExtractParams,
    say: Say,
) -> dict[str, Any]:
    """Complete the store of a set and give its receipt.

    Args:
        set_name: part of the store's name.
        encoder: a function of the taps that gives an `Encoder`; called only when there is something to compute.
        say: where the plan is printed.

    Raises InputError for names of no view, a store of another spec or with views of another version, too small a disk,
    a worker that died; and, when all others are complete, for units whose audio or features cannot be used.
    """
    layers, names = params.layers, views_of(params)
    spec = spec_of(trials, card, params)
    with Store.locked(root / spec.folder(set_name)):
        target = Store.create(root, set_name, spec)
        check_versions(target, names)
        todo = plan(target, names, layers)
        free = shutil.disk_usage(root).free if is_local(root) else None
        say(describe(target, todo, names, layers, free=free))
        check_disk(target, todo, free=free)
        if todo:
            target.sweep()
        for name in names:
            target.add_arrays(name, layers, attributes=_attributes(name))
        if todo:
            _make(todo, target=target, trials=trials, audio_root=audio_root, encoder=encoder, params=params)
    return receipt(target, set_name=set_name, names=names, layers=layers)


def _make(
    todo: Sequence[Unit],
    *,
    target: Store,
    trials: Trials,
    audio_root: Path,
    encoder: MakeEncoder,
    params: ExtractParams,
) -> None:
    """Make units, here or elsewhere. Raises InputError where some could not be made."""

    def clips(unit: Unit) -> list[Clip]:
        return [clip_of(trials, row, audio_root=audio_root) for row in target.spec.rows(unit.shard)]

    taps = tuple(layer for layer in params.layers if any(layer in unit.layers for unit in todo))
    total = sum(len(target.spec.rows(unit.shard)) for unit in todo)
    with Progress(total) as bar:
        if params.engine == "dask":
            from pipeline.extraction import cluster

            problems = cluster.make(todo, clips, job=cluster.Job(target, encoder, taps, params), advance=bar.update)
        else:
            tasks = [(unit, partial(clips, unit)) for unit in todo]
            problems = units.make(tasks, target=target, model=encoder(taps), params=params, advance=bar.update)
    if problems:
        raise InputError(
            f"{len(problems)} of {len(todo)} units cannot be made, the others are complete; mend what is wrong with "
            f"these and run the same command again:\n{listing(problems)}"
        )


VERSION_KEY = "views_version"  # in the attributes of an augmented view's group, and in receipts that have one


def check_versions(target: Store, names: Sequence[str]) -> None:
    """Raise InputError where an augmented view of the store was made by another version of the views."""
    for name in names:
        folder = target.path / name
        if name == CLEAN or not any(folder.glob("*/zarr.json")):
            continue
        mend = f"delete that folder, and the next `dvc repro` makes it anew, or go back to the code that made {name}"
        attributes = read_json(folder / "zarr.json", what="view of a feature store", remedy=mend).get("attributes")
        found = attributes.get(VERSION_KEY) if isinstance(attributes, dict) else None
        if found != views.VIEWS_VERSION:
            raise InputError(f"{folder}: expected a view of version {views.VIEWS_VERSION}, got {found}; {mend}")


def _attributes(name: str) -> dict[str, Any]:
    """What stands with a view."""
    return {} if name == CLEAN else {VERSION_KEY: views.VIEWS_VERSION}


def receipt(target: Store, *, set_name: str, names: Sequence[str], layers: Sequence[Tap]) -> dict[str, Any]:
    """What DVC tracks in place of the store: same content, same bytes.

    The version of the views stands in it where there are views beside `clean`.
    """
    spec = target.spec
    version = {VERSION_KEY: views.VIEWS_VERSION} if len(names) > 1 else {}
    return {
        "format": zarr_metadata.FORMAT,
        "store": spec.folder(set_name),
        "encoder": spec.encoder,
        "trials": spec.trials,
        "utterances": spec.utterances,
        "frames": spec.frames,
        "channels": spec.channels,
        "layers": list(layers),
        "views": list(names),
        **version,
        "shards": spec.shards,
        "bytes": spec.bytes_of(len(layers)) * len(names),
        "digest": target.digest(names, layers),
    }
