"""An HDF5 file of features that comes from elsewhere: all of it is checked, then it is read."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.audio.views import parse
from pipeline.core import windows
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.files import parse_json
from pipeline.extraction.housekeeping import taps_of
from pipeline.features.shard_bytes import Block
from pipeline.features.specs import (
    DEEPEST_LAYER,
    RECORDINGS_KEY,
    STORAGE,
    VERSION_KEY,
    Spec,
    is_spec,
    layer_array,
    pooled_array,
)
from pipeline.features.zarr_metadata import FORMAT

OF_THE_SET = ("is_bonafide", "n_frames", "utterance")  # arrays beside the views
MOST, MOST_IN_A_SHARD = 2**40, 2**20  # of each number of the spec, and of the utterances in a shard
ANEW = "export it anew"
PATIENCE_S = 9.0  # seconds for one array's index, or one shard; a damaged file may take for ever
ROUNDING = 1 / 200  # of a channel's largest value: what int8 and float16 leave of it, 1/254 + 1/2048, is less
SOUND = b"sound"
ATTRIBUTES = "attributes"  # of a view in the store, as JSON, such as the version of the augmented views


class ViewInFile(NamedTuple):
    """A view in a file. attributes: None where the file is of a version that did not write them."""

    name: str
    taps: tuple[Tap, ...]
    attributes: dict[str, Any] | None


def check_apart(file: Path) -> None:
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
        with telling(file), h5py.File(file, "r") as source:
            spec, _, views = checked(file, source, alive=lambda: parent.send_bytes(b""))
            layers = [(view.name, tap) for view in views for tap in view.taps]
            for view, tap in tqdm(layers, desc="check", unit="layer", disable=None):
                for shard in range(spec.shards):
                    read(file, source, spec, view, tap, shard)
                    parent.send_bytes(b"")
    except InputError as error:
        parent.send_bytes(str(error).encode(errors="replace"))
    else:
        parent.send_bytes(SOUND)
    parent.close()
    os._exit(0)


def checked(file: Path, source: Any, *, alive: Callable[[], None] = lambda: None) -> tuple[Spec, str, list[ViewInFile]]:
    """The spec of a file, the name of its set, and its views. Raises InputError for what `export` does not write."""
    spec, name = spec_of(file, source)
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
def telling(file: Path) -> Iterator[None]:
    """Turn every error of HDF5 into InputError: a file that is damaged gives errors of many kinds."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"{file}: expected an HDF5 file that `bonafide cache export` wrote: {why}; {ANEW}") from None


def spec_of(file: Path, source: Any) -> tuple[Spec, str]:
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
        parse(windows.parse(view)[0])
        _check_attributes(file, source[view], {ATTRIBUTES})
    if not views:
        raise InputError(f"{file}: expected at least one view, got none; {ANEW}")
    return views


def _checked_view(file: Path, source: Any, spec: Spec, view: str, alive: Callable[[], None]) -> ViewInFile:
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
    return ViewInFile(view, taps, attributes_of(file, source, view))


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


def read(file: Path, source: Any, spec: Spec, view: str, tap: Tap, shard: int) -> tuple[Block, Block]:
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


def attributes_of(file: Path, source: Any, view: str) -> dict[str, Any] | None:
    """The attributes of a view in a file; None in files of older versions, which do not have them."""
    if ATTRIBUTES not in source[view].attrs:
        return None
    found = source[view].attrs[ATTRIBUTES]
    text = found if isinstance(found, str) else ""
    attributes = parse_json(file, text.encode(), what=f"file with the attributes of {view}", remedy=ANEW)
    if not all(map(_is_attribute, attributes, attributes.values())):
        raise InputError(f"{file}: expected the version of {view}, got the attributes {str(attributes)[:200]}; {ANEW}")
    return attributes


def _is_attribute(key: str, value: Any) -> bool:
    """Whether a view may have this attribute: its version, or the digest of its recordings."""
    if key == RECORDINGS_KEY:
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None
    return key == VERSION_KEY and type(value) is int
