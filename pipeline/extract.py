"""Stage one: run the encoder once over a set and cache the features of its layers, of every view.

A unit of work is one shard of one view: decode, augment and window its utterances, run the encoder in batches, pool,
check, write, mark. Units are independent and idempotent; a killed extraction continues with the first unit that has no
marker. Augmented views (pipeline/views.py) are for what `train.set` names alone: what is evaluated is never augmented.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import audio, store, views
from pipeline import trials as trial_table
from pipeline.contracts import Card, Tap
from pipeline.errors import InputError, listing
from pipeline.files import read_json
from pipeline.params import ExtractParams, WindowParams
from pipeline.store import CLEAN, Spec, Store
from pipeline.trials import Trials

if TYPE_CHECKING:  # importing XLSR takes seconds, and a complete store does not need it
    from pipeline.xlsr import Encoder

FEATURES_VERSION = 1  # raise it when the same audio and encoder give other numbers
COMPUTE_DTYPE = "float32"
DECODERS = 4  # threads that decode the next shard while the encoder works on this one
WORKERS = 16  # at most: processes that do the same where there are views, as augmenting barely gains from threads
SPARE_BYTES = 64 * 2**20  # left free on the disk for markers, receipts and everybody else

VERSION_KEY = "views_version"  # in the attributes of an augmented view's group, and in receipts that have one

Windows = tuple[NDArray[np.float32], NDArray[np.int64]]
MakeEncoder = Callable[[tuple[Tap, ...]], "Encoder"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Unit:
    """One shard of a view and the layers that it still needs."""

    shard: int
    view: str
    layers: tuple[Tap, ...]


@dataclass(frozen=True)
class Clip:
    """What loading one utterance needs to know of its trial."""

    utterance: str
    path: Path
    content: str


def views_of(params: ExtractParams) -> tuple[str, ...]:
    """The views that are cached: `clean`, and those of the parameters.

    Raises InputError for a name in the parameters that no augmented view has.
    """
    for name in params.views:
        if views.parse(name).kind == CLEAN:
            raise InputError(f"expected views beside {CLEAN}, which is always cached, got {name!r}; remove it")
    return (CLEAN, *params.views)


def spec_of(trials: Trials, card: Card, params: ExtractParams) -> Spec:
    """The spec of the store that these parameters ask for."""
    return Spec(
        encoder={
            "weights_sha256": card.weights_sha256,
            "architecture": card.architecture,
            "normalize": card.normalize,
            "window": params.window.model_dump(),
            "compute_dtype": COMPUTE_DTYPE,
            "features_version": FEATURES_VERSION,
        },
        trials=trial_table.fingerprint(trials),
        utterances=len(trials),
        frames=card.frames(params.window.samples),
        channels=card.channels,
        shard=params.shard,
    )


def plan(target: Store, names: Sequence[str], layers: Sequence[Tap]) -> list[Unit]:
    """The units that are not complete, shard by shard, in every shard view by view."""
    every = ((shard, name) for shard in range(target.spec.shards) for name in names)
    units = (Unit(shard, name, target.missing(name, layers, shard)) for shard, name in every)
    return [unit for unit in units if unit.layers]


def describe(target: Store, units: Sequence[Unit], names: Sequence[str], layers: Sequence[Tap], *, free: int) -> str:
    """What is about to be done: utterances, views, layers, units, bytes, free disk."""
    spec = target.spec
    lines = [
        f"{spec.utterances} utterances, views {_names(names)}, layers {_names(layers)}, "
        f"{spec.frames} frames of {spec.channels}"
    ]
    lines += [f"{name}: {_progress(target, [unit for unit in units if unit.view == name], layers)}" for name in names]
    lines.append(f"{_size(needed(target, units))} to write, {_size(free)} free at {target.path}")
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


def check_disk(target: Store, units: Sequence[Unit], *, free: int) -> None:
    """Raise InputError where the disk is too small for the units."""
    want = needed(target, units)
    if units and want + SPARE_BYTES > free:
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

    Raises InputError for audio or features that cannot be used, names of no view, a store of another spec or with
    views of another version, too small a disk, or a worker that died.
    """
    layers, names = params.layers, views_of(params)
    spec = spec_of(trials, card, params)
    place = root / spec.folder(set_name)
    with Store.locked(place):
        target = Store.create(root, set_name, spec)
        check_versions(target, names)
        units = plan(target, names, layers)
        free = shutil.disk_usage(root).free
        say(describe(target, units, names, layers, free=free))
        check_disk(target, units, free=free)
        if units:
            for name in names:
                _add_view(target, name, layers)
            _run(units, target=target, trials=trials, audio_root=audio_root, encoder=encoder, params=params)
    return receipt(target, set_name=set_name, names=names, layers=layers)


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


def _add_view(target: Store, name: str, layers: Sequence[Tap]) -> None:
    """Make what a view does not have yet: its group, with the version before any array, and arrays."""
    import zarr

    if name != CLEAN:
        attributes = zarr.open_group(target.path).require_group(name).attrs
        if attributes.get(VERSION_KEY) != views.VIEWS_VERSION:
            attributes[VERSION_KEY] = views.VIEWS_VERSION
    target.add_arrays(name, layers)


def receipt(target: Store, *, set_name: str, names: Sequence[str], layers: Sequence[Tap]) -> dict[str, Any]:
    """What DVC tracks in place of the store: same content, same bytes.

    The version of the views stands in it where there are views beside `clean`.
    """
    spec = target.spec
    version = {VERSION_KEY: views.VIEWS_VERSION} if len(names) > 1 else {}
    return {
        "format": store.FORMAT,
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


def _run(
    units: Sequence[Unit],
    *,
    target: Store,
    trials: Trials,
    audio_root: Path,
    encoder: MakeEncoder,
    params: ExtractParams,
) -> None:
    taps = tuple(layer for layer in params.layers if any(layer in unit.layers for unit in units))
    model = encoder(taps)
    total = sum(len(target.spec.rows(unit.shard)) for unit in units)
    loaded = _loaded(units, target=target, trials=trials, audio_root=audio_root, window=params.window)
    with tqdm(total=total, unit="utt", disable=None) as bar, contextlib.closing(loaded):
        for unit, windows in loaded:
            rows = target.spec.rows(unit.shard)
            names = trials.utterance[rows.start : rows.stop].tolist()
            blocks = compute(model, windows, unit.layers, batch_size=params.batch_size, names=names, advance=bar.update)
            target.write(unit.view, unit.shard, *blocks)


def _loaded(
    units: Sequence[Unit], *, target: Store, trials: Trials, audio_root: Path, window: WindowParams
) -> Generator[tuple[Unit, Windows], None, None]:
    """Units with their windows; the next unit is decoded and augmented while this one is computed."""
    with _pool(units) as pool:

        def submit(unit: Unit) -> list[Future[tuple[audio.Samples, int]]]:
            clips = (clip_of(trials, row, audio_root=audio_root) for row in target.spec.rows(unit.shard))
            return [pool.submit(load_window, clip, view=unit.view, window=window) for clip in clips]

        following = submit(units[0])
        for i, unit in enumerate(units):
            current = following
            following = submit(units[i + 1]) if i + 1 < len(units) else []
            loaded = _results(current)
            yield unit, (np.stack([samples for samples, _ in loaded]), np.array([valid for _, valid in loaded]))


@contextlib.contextmanager
def _pool(units: Sequence[Unit]) -> Iterator[Executor]:
    """Threads, or processes where there is something to augment. Raises InputError where a process died."""
    pool = _processes() if any(unit.view != CLEAN for unit in units) else ThreadPoolExecutor(DECODERS)
    try:
        yield pool
    except BrokenProcessPool:
        raise InputError(
            "a process that decodes and augments died (out of memory? see above for what else it said); complete "
            "shards are kept: run the same command again, and it continues with the others"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _processes() -> Executor:
    spawn = multiprocessing.get_context("spawn")  # a fork would take along the encoder's threads, locks and memory
    return ProcessPoolExecutor(workers(), mp_context=spawn, initializer=_follow_parent)


def workers() -> int:
    """How many processes augment: one for every processor that this one may use, up to a limit."""
    return min(len(os.sched_getaffinity(0)), WORKERS)


def _follow_parent() -> None:
    """Make a worker leave Ctrl-C to its parent, and end where the parent was killed, which does not wait for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # workers have one
    parent.join()
    os._exit(1)


def _results(futures: Sequence[Future[tuple[audio.Samples, int]]]) -> list[tuple[audio.Samples, int]]:
    """The windows of a unit. Raises InputError with all of its utterances that cannot be used."""
    problems = [str(error) for error in (future.exception() for future in futures) if isinstance(error, InputError)]
    if problems:
        raise InputError(
            f"{len(problems)} of {len(futures)} utterances of a shard cannot be used:\n{listing(problems)}"
        )
    return [future.result() for future in futures]


def clip_of(trials: Trials, row: int, *, audio_root: Path) -> Clip:
    """The utterance of one trial."""
    return Clip(str(trials.utterance[row]), audio_root / str(trials.path[row]), str(trials.content[row]))


def load_window(clip: Clip, *, view: str, window: WindowParams) -> tuple[audio.Samples, int]:
    """Decode an utterance, take a view of the whole of it, cut its window: (S,) and how many of them are valid.

    Raises InputError naming the utterance.
    """
    try:
        samples = views.apply(view, audio.load(clip.path, content=clip.content), utterance=clip.utterance)
        cut, valid = audio.window(samples, length=window.samples, pad=window.pad)
        if np.ptp(cut[:valid]) == 0:
            raise InputError(f"{clip.path}: the first {valid} samples at 16 kHz are silent; remove the trial")
        return cut, valid
    except InputError as error:
        raise InputError(f"utterance {clip.utterance}: {error}") from None


def compute(
    model: Encoder, windows: Windows, layers: Sequence[Tap], *, batch_size: int, names: Sequence[str], advance: Any
) -> tuple[dict[Tap, store.Block], dict[Tap, store.Block], store.Block]:
    """Features of one unit.

    Args:
        windows: (n, S) samples and (n,) valid counts. names: the n utterances, for messages.

    Returns:
        layer -> (n, T, D) float16, layer -> (n, 2, D) float32, n_frames (n,).

    Raises InputError naming the utterance whose features are NaN, infinite or beyond float16.
    """
    import torch

    features: dict[Tap, list[store.Block]] = {layer: [] for layer in layers}
    pooled: dict[Tap, list[store.Block]] = {layer: [] for layer in layers}
    counts: list[store.Block] = []
    device = next(model.parameters()).device
    for start in range(0, len(names), batch_size):
        chunk = slice(start, start + batch_size)
        samples, valid = (torch.from_numpy(array[chunk]).to(device) for array in windows)
        taps, n_frames = model(samples, valid)
        for layer in layers:
            frames = taps[layer]  # (B, T, D)
            check_range(frames.cpu().numpy(), names=names[chunk], layer=layer)
            features[layer].append(frames.half().cpu().numpy())
            pooled[layer].append(pool(frames, n_frames).cpu().numpy())
        counts.append(n_frames.cpu().numpy())
        advance(len(n_frames))
    joined = ({layer: np.concatenate(parts) for layer, parts in kind.items()} for kind in (features, pooled))
    return next(joined), next(joined), np.concatenate(counts)


def check_range(frames: store.Block, *, names: Sequence[str], layer: Tap) -> None:
    """Raise InputError where features (B, T, D) are NaN, infinite, or do not fit float16, naming the utterance."""
    bad = ~(np.abs(frames).max(axis=(1, 2)) <= store.FLOAT16_MAX)  # NaN compares false
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"utterance {names[row]}: expected finite features below {store.FLOAT16_MAX:g} in layer {layer}, got "
            f"{np.abs(frames[row]).max():g}; listen to the file, remove the trial or tap another layer"
        )


def pool(frames: Any, n_frames: Any) -> Any:
    """Mean and standard deviation (biased) over the valid frames: (B, T, D), (B,) -> (B, 2, D)."""
    import torch

    mask = (torch.arange(frames.shape[1], device=frames.device) < n_frames[:, None])[..., None]  # (B, T, 1)
    count = n_frames[:, None].to(frames.dtype)
    mean = (frames * mask).sum(1) / count
    variance = ((frames - mean[:, None]) * mask).square().sum(1) / count
    return torch.stack([mean, variance.sqrt()], dim=1)
