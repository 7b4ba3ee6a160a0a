"""Stage one: run the encoder once over a set and cache the features of its layers.

A unit of work is one shard of the store: decode and window its utterances, run the encoder in batches, pool, check,
write, mark. Units are independent and idempotent; a killed extraction continues with the first unit that has no marker.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import audio, store
from pipeline import trials as trial_table
from pipeline.contracts import Card, Tap
from pipeline.errors import InputError, listing
from pipeline.params import ExtractParams, WindowParams
from pipeline.store import CLEAN, Spec, Store
from pipeline.trials import Trials

if TYPE_CHECKING:  # importing XLSR takes seconds, and a complete store does not need it
    from pipeline.xlsr import Encoder

FEATURES_VERSION = 1  # raise it when the same audio and encoder give other numbers
COMPUTE_DTYPE = "float32"
DECODERS = 4  # threads that decode the next shard while the encoder works on this one
SPARE_BYTES = 64 * 2**20  # left free on the disk for markers, receipts and everybody else

Windows = tuple[NDArray[np.float32], NDArray[np.int64]]
MakeEncoder = Callable[[tuple[Tap, ...]], "Encoder"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Unit:
    """One shard and the layers that it still needs."""

    shard: int
    layers: tuple[Tap, ...]


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


def plan(target: Store, layers: Sequence[Tap]) -> list[Unit]:
    """The units that are not complete, in order."""
    units = (Unit(shard, target.missing(CLEAN, layers, shard)) for shard in range(target.spec.shards))
    return [unit for unit in units if unit.layers]


def describe(target: Store, units: Sequence[Unit], layers: Sequence[Tap], *, free: int) -> str:
    """What is about to be done: utterances, layers, units, bytes, free disk."""
    spec = target.spec
    todo = [layer for layer in layers if any(layer in unit.layers for unit in units)]
    kept = [layer for layer in layers if layer not in todo]
    lines = [
        f"{spec.utterances} utterances, view {CLEAN}, layers {_names(layers)}, {spec.frames} frames of {spec.channels}",
        f"{spec.shards - len(units)} of {spec.shards} shards are complete; to do: "
        + (f"layers {_names(todo)} in {len(units)} shards" if units else "nothing"),
    ]
    if kept and units:
        lines.append(f"layers {_names(kept)} are there and stay as they are")
    lines.append(f"{_size(needed(target, units))} to write, {_size(free)} free at {target.path}")
    return "\n".join(lines)


def _names(layers: Sequence[Tap]) -> str:
    return ", ".join(str(layer) for layer in layers)


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
            f"{_size(want + SPARE_BYTES - free)} too little; free some, tap fewer layers (extract.layers) or move the "
            "stores (features.root)"
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
        encoder: a function of the taps that gives an `Encoder`; called only when there is something to compute.
        say: where the plan is printed.

    Raises InputError for audio or features that cannot be used, a store of another spec, or too small a disk.
    """
    layers = params.layers
    spec = spec_of(trials, card, params)
    place = root / spec.folder(set_name)
    with Store.locked(place):
        target = Store.create(root, set_name, spec)
        units = plan(target, layers)
        free = shutil.disk_usage(root).free
        say(describe(target, units, layers, free=free))
        check_disk(target, units, free=free)
        if units:
            target.add_arrays(CLEAN, layers)
            _run(units, target=target, trials=trials, audio_root=audio_root, encoder=encoder, params=params)
    return receipt(target, set_name=set_name, layers=layers)


def receipt(target: Store, *, set_name: str, layers: Sequence[Tap]) -> dict[str, Any]:
    """What DVC tracks in place of the store: same content, same bytes."""
    spec = target.spec
    return {
        "format": store.FORMAT,
        "store": spec.folder(set_name),
        "encoder": spec.encoder,
        "trials": spec.trials,
        "utterances": spec.utterances,
        "frames": spec.frames,
        "channels": spec.channels,
        "layers": list(layers),
        "views": [CLEAN],
        "shards": spec.shards,
        "bytes": spec.bytes_of(len(layers)),
        "digest": target.digest([CLEAN], layers),
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
    with tqdm(total=total, unit="utt", disable=None) as bar:
        for unit, windows in _loaded(units, target=target, trials=trials, audio_root=audio_root, window=params.window):
            rows = target.spec.rows(unit.shard)
            names = trials.utterance[rows.start : rows.stop].tolist()
            blocks = compute(model, windows, unit.layers, batch_size=params.batch_size, names=names, advance=bar.update)
            target.write(CLEAN, unit.shard, *blocks)


def _loaded(
    units: Sequence[Unit], *, target: Store, trials: Trials, audio_root: Path, window: WindowParams
) -> Iterator[tuple[Unit, Windows]]:
    """Units with their windows; the next unit is decoded while this one is computed."""
    with ThreadPoolExecutor(DECODERS) as pool:

        def submit(unit: Unit) -> list[Future[tuple[audio.Samples, int]]]:
            rows = target.spec.rows(unit.shard)
            return [pool.submit(load_window, trials, row, audio_root=audio_root, window=window) for row in rows]

        following = submit(units[0])
        for i, unit in enumerate(units):
            current = following
            following = submit(units[i + 1]) if i + 1 < len(units) else []
            try:
                loaded = _results(current)
            except InputError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            yield unit, (np.stack([samples for samples, _ in loaded]), np.array([valid for _, valid in loaded]))


def _results(futures: Sequence[Future[tuple[audio.Samples, int]]]) -> list[tuple[audio.Samples, int]]:
    """The windows of a unit. Raises InputError with all of its utterances that cannot be used."""
    problems = [str(error) for error in (future.exception() for future in futures) if isinstance(error, InputError)]
    if problems:
        raise InputError(
            f"{len(problems)} of {len(futures)} utterances of a shard cannot be used:\n{listing(problems)}"
        )
    return [future.result() for future in futures]


def load_window(trials: Trials, row: int, *, audio_root: Path, window: WindowParams) -> tuple[audio.Samples, int]:
    """Decode one trial and cut its window. Raises InputError naming the utterance."""
    path = audio_root / str(trials.path[row])
    try:
        samples = audio.load(path, content=str(trials.content[row]))
        cut, valid = audio.window(samples, length=window.samples, pad=window.pad)
        if np.ptp(cut[:valid]) == 0:
            raise InputError(f"{path}: the first {valid} samples at 16 kHz are silent; remove the trial")
        return cut, valid
    except InputError as error:
        raise InputError(f"utterance {trials.utterance[row]}: {error}") from None


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
