"""Stage one: run the encoder over a set and store the features of its layers, in every view.

The work is a list of units (`pipeline.extraction.units`); a unit is one shard of one view. Units do not depend on each
other, and making one twice gives the same bytes. An extraction that was killed continues with the first unit that has
no marker. A unit that fails does not stop the others. Units are made in this process, or by Dask workers
(`pipeline.extraction.cluster`). Beside the clean view a set gets those of `extract.views` where it is trained on, and
those of `evaluate.views` where it is evaluated (`pipeline.audio.views`), each in all windows of an utterance.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.audio import views
from pipeline.audio.loader import Clip, clip_of
from pipeline.audio.recordings import Recordings
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json, readable_size
from pipeline.core.object_store import is_local
from pipeline.core.sections import ONE_WINDOW, ExtractParams, WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.core.windows import parse
from pipeline.encoder.cards import Card
from pipeline.extraction import units
from pipeline.extraction.identity import spec_of
from pipeline.extraction.progress import ExtractionProgress
from pipeline.extraction.units import MakeEncoder, Unit
from pipeline.features import libraries, zarr_metadata
from pipeline.features.libraries import IMPORTED
from pipeline.features.specs import RECORDINGS_KEY, VERSION_KEY
from pipeline.features.store import Store

SPARE_BYTES = 64 * 2**20  # to leave free on the disk for markers, receipts and other programs

NO_RECORDINGS: Mapping[str, Recordings] = MappingProxyType({})

Say = Callable[[str], None]


def views_of(names: Sequence[str]) -> tuple[str, ...]:
    """The views to store: `clean` and those of the parameters.

    Raises InputError for a name in the parameters that is no augmented view.
    """
    for name in names:
        if views.computable(name).kind == CLEAN:
            raise InputError(f"expected views beside {CLEAN}, which is always cached, got {name!r}; remove it")
    return (CLEAN, *names)


def plan(target: Store, names: Sequence[str], layers: Sequence[Tap]) -> list[Unit]:
    """The units that are not complete, in the order of shards, and of views in each shard."""
    lacking = {name: target.incomplete(name, layers) for name in names}
    every = ((shard, name) for shard in range(target.spec.shards) for name in names)
    return [Unit(shard, name, lacking[name][shard]) for shard, name in every if shard in lacking[name]]


def describe(
    target: Store, units: Sequence[Unit], names: Sequence[str], layers: Sequence[Tap], *, free: int | None
) -> str:
    """Describe the work before it begins. free: bytes that are free on the disk, None for an object store."""
    spec = target.spec
    lines = [
        f"{spec.utterances} utterances, views {_names(names)}, layers {_names(layers)}, "
        f"{spec.frames} frames of {spec.channels}, computed in {spec.encoder['compute_dtype']}, kept in {spec.storage}"
    ]
    lines += [f"{name}: {_progress(target, [unit for unit in units if unit.view == name], layers)}" for name in names]
    there = f", {readable_size(free)} free" if free is not None else ""
    lines.append(f"{readable_size(needed(target, units))} to write{there} at {target.path}")
    return "\n".join(lines)


def _progress(target: Store, units: Sequence[Unit], layers: Sequence[Tap]) -> str:
    """One line about a view: its complete shards, and the layers that are missing."""
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


def needed(target: Store, units: Sequence[Unit]) -> int:
    """The number of bytes that the units will write."""
    return sum(target.spec.bytes_of(len(u.layers), rows=len(target.spec.rows(u.shard))) for u in units)


def check_disk(target: Store, units: Sequence[Unit], *, free: int | None) -> None:
    """Raise InputError where the disk is too small for the units."""
    want = needed(target, units)
    if units and free is not None and want + SPARE_BYTES > free:
        sizes = (want, SPARE_BYTES, free, want + SPARE_BYTES - free)
        wanted, spare, got, lacking = (readable_size(size) for size in sizes)
        raise InputError(
            f"{target.path}: expected {wanted} of free disk and {spare} to spare, got {got}, {lacking} too little; "
            "free some, ask for fewer layers or views (extract.layers, extract.views) or move the stores "
            "(features.root)"
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
    recordings: Mapping[str, Recordings] = NO_RECORDINGS,
) -> dict[str, Any]:
    """Complete the store of a set and return its receipt.

    Args:
        set_name: part of the store's name.
        encoder: a function from taps to an `Encoder`; it is called only when there is something to compute.
        say: prints the description of the work. recordings: those of each view that takes sound from some.

    Raises InputError for a name that is no view, a store of another spec or with views of another version, a disk that
    is too small, and a worker that died. When all other units are complete, it raises InputError for the units whose
    audio or features cannot be used.
    """
    layers = params.layers
    names = params.windows.names(views_of(params.views))
    spec = spec_of(trials, card, params)

    def clips(unit: Unit) -> list[Clip]:
        return [clip_of(trials, row, audio_root=audio_root) for row in spec.rows(unit.shard)]

    with Store.locked(root / spec.folder(set_name)):
        target = Store.create(root, set_name, spec)
        check_versions(target, names, recordings)
        todo = plan(target, names, layers)
        free = shutil.disk_usage(root).free if is_local(root) else None
        say(describe(target, todo, names, layers, free=free))
        libraries.compare(target.made(names, layers).values(), store=target.path)
        check_disk(target, todo, free=free)
        if todo:
            target.sweep()
        for name in names:
            target.add_arrays(name, layers, attributes=_attributes(name, recordings))
        if todo:
            _make(todo, clips, target=target, encoder=encoder, params=params, recordings=recordings)
    return receipt(target, set_name=set_name, names=names, layers=layers, windows=params.windows)


def _make(
    todo: Sequence[Unit],
    clips: Callable[[Unit], list[Clip]],
    *,
    target: Store,
    encoder: MakeEncoder,
    params: ExtractParams,
    recordings: Mapping[str, Recordings],
) -> None:
    """Make units in this process or on a cluster. clips: as for `cluster.make`. Raises InputError where some failed."""
    taps = tuple(layer for layer in params.layers if any(layer in unit.layers for unit in todo))
    total = sum(len(target.spec.rows(unit.shard)) for unit in todo)
    with ExtractionProgress(total) as bar:
        if params.engine == "dask":
            from pipeline.extraction import cluster

            job = cluster.ExtractionJob(target, encoder, taps, params, recordings)
            problems = cluster.make(todo, clips, job=job, advance=bar.update)
        else:
            tasks = [(unit, partial(clips, unit)) for unit in todo]
            problems = units.make(
                tasks,
                target=target,
                model=encoder(taps),
                params=params,
                recordings=recordings,
                advance=bar.update,
            )
    if problems:
        raise InputError(
            f"{len(problems)} of {len(todo)} units cannot be made, the others are complete; mend what is wrong with "
            f"these and run the same command again:\n{listing(problems)}"
        )


def check_versions(target: Store, names: Sequence[str], recordings: Mapping[str, Recordings]) -> None:
    """Raise InputError where another version of the code, or other recordings, made an augmented view of the store."""
    for name in names:
        folder = target.path / name
        if name == CLEAN or not any(folder.glob("*/zarr.json")):
            continue
        mend = f"delete that folder, and the next `dvc repro` makes it anew, or go back to the code that made {name}"
        attributes = read_json(folder / "zarr.json", what="view of a feature store", remedy=mend).get("attributes")
        found = attributes if isinstance(attributes, dict) else {}
        if found.get(VERSION_KEY) != views.VIEWS_VERSION:
            raise InputError(
                f"{folder}: expected a view of version {views.VIEWS_VERSION}, got {found.get(VERSION_KEY)}; {mend}"
            )
        heard = recordings.get(parse(name)[0])
        if heard and found.get(RECORDINGS_KEY) != heard.digest:
            raise InputError(
                f"{folder}: expected a view by the recordings of {heard.listing} (digest {heard.digest}), got "
                f"{found.get(RECORDINGS_KEY)}; delete that folder, and the next `dvc repro` makes it alone anew, or "
                "put the former list back"
            )


def _attributes(name: str, recordings: Mapping[str, Recordings]) -> dict[str, Any]:
    """The attributes of a view."""
    heard = recordings.get(parse(name)[0])
    digest = {RECORDINGS_KEY: heard.digest} if heard else {}
    return {} if name == CLEAN else {VERSION_KEY: views.VIEWS_VERSION, **digest}


def receipt(
    target: Store,
    *,
    set_name: str,
    names: Sequence[str],
    layers: Sequence[Tap],
    windows: WindowsParams = ONE_WINDOW,
) -> dict[str, Any]:
    """The receipt of a store, which DVC tracks in its place: the same content gives the same bytes.

    It says which windows of an utterance are heard, where there are several, and how their scores become one. It has
    the version of the augmented views where there are some, and the digest of the recordings of each view that takes
    sound from some. It names the layers of each view that are, or have shards that are, imported and not computed here.
    """
    spec = target.spec
    foreign = [place for place, made in target.made(names, layers).items() if IMPORTED in made]
    by_view = {view: [layer for of_view, layer in foreign if of_view == view] for view, _ in foreign}
    imported = {IMPORTED: by_view} if by_view else {}
    version = {VERSION_KEY: views.VIEWS_VERSION} if len(names) > 1 else {}
    digests = {name: kept for name in names if (kept := target.attributes(name).get(RECORDINGS_KEY))}
    recorded = {RECORDINGS_KEY: digests} if digests else {}
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
        **windows.facts,
        **version,
        **recorded,
        **imported,
        "shards": spec.shards,
        "bytes": spec.bytes_of(len(layers)) * len(names),
        "digest": target.digest(names, layers),
    }
