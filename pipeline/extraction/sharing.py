"""Features of a set at another place, a folder or an object store, from which others take them without the audio.

    <place>/<encoder fingerprint>/<set>-<trials fingerprint>.zarr/    the stores, as below any root of features
    <place>/sets/<set>.csv                                            the trial table, without the paths of audio
    <place>/sets/<set>.json                                           the receipt, written last

Shards are copied one by one, each held against the checksums of its marker before it is written. The marker comes last,
so a copy that was cut off goes on with the first shard that is not whole. What comes from elsewhere is not trusted:
names and shapes are made here, from the receipt and the spec, and the numbers of every shard are checked. Who made them
is taken over from the markers there: a receipt that is pulled has the bytes of the one that was pushed, which others
may have committed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.audio import views
from pipeline.core import trial_table, windows
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError, listing
from pipeline.core.files import write_bytes, write_text
from pipeline.core.object_store import is_there, read_files
from pipeline.core.trial_table import UNKNOWN
from pipeline.features import receipt_files
from pipeline.features.shard_bytes import CRC_BYTES, INDEX_ENTRY_BYTES, encode_chunk, encode_shard
from pipeline.features.specs import DEEPEST_LAYER, Array, Spec
from pipeline.features.store import Store

SETS = "sets"
OF_THE_SPEC = ("encoder", "trials", "utterances", "frames", "channels")  # in a receipt, too


def push(
    receipt: Path, table: Path, place: Path, *, root: Path, layers: Sequence[Tap] = (), pooled: bool = False
) -> int:
    """Copy the features of a set or pool to a place, and return the number of shards that it lacked.

    receipt, table: of the set. root: of the stores. layers: some of them; none for all. pooled: leave out the frames;
    the receipt there then says so.

    Raises InputError where the features are not those of the receipt, the place holds others, or a file is damaged.
    """
    trials, copied = trial_table.read(table), 0
    found: dict[str, dict[str, Any]] = {}
    for name, _, store, told in receipt_files.open_sets(receipt, trials, root=root):
        told = told | {receipt_files.POOLED: True} if pooled else told
        if layers or pooled:
            told = receipt_files.selected(store, told, layers=layers or told["layers"], views=told["views"])
        copied += _copy(store, place, name, told)
        found[name] = told
    blank = dataclasses.replace(trials, path=np.full(len(trials), UNKNOWN))
    write_text(place / SETS / table.name, trial_table.to_csv(blank))
    content = found[receipt.stem] if list(found) == [receipt.stem] else {"pool": found}
    write_text(place / SETS / receipt.name, json.dumps(content, indent=2) + "\n")
    return copied


def pull(name: str, place: Path, *, root: Path, receipts: Path, tables: Path) -> int:
    """Copy the features of a set or pool from a place, and return the number of shards that were not here.

    The receipt and the trial table are written where there are none, and the receipt where it is of pooled arrays alone
    and their frames came. receipts, tables: their folders.

    Raises InputError where the place has no such set, a file is damaged, or the store, the receipt or the table here is
    of other features.
    """
    copied, receipt, table = 0, receipts / f"{name}.json", tables / f"{name}.csv"
    with _fetched(name, place) as (far_receipt, far_table):
        told = receipt_files.read_receipts(far_receipt)
        _check(told, trials=len(trial_table.read(far_table)), where=place / SETS / f"{name}.json")
        if receipt.is_file():
            here = {one: found["store"] for one, found in receipt_files.read_receipts(receipt).items()}
            if here != {one: found["store"] for one, found in told.items()}:
                raise InputError(f"{receipt}: expected the receipt of the same features, got others; move it away")
        for one, found in told.items():
            store = Store.open(place / found["store"])
            facts = dataclasses.asdict(store.spec)
            if store.spec.folder(one) != found["store"] or any(found[key] != facts[key] for key in OF_THE_SPEC):
                raise InputError(f"{store.path}: expected the store that its name stands for, got another spec")
            copied += _copy(store, root, one, found)
        receipt_files.open_sets(far_receipt, trial_table.read(table if table.is_file() else far_table), root=root)
        for here_file, far_file in ((table, far_table), (receipt, far_receipt)):
            if not here_file.is_file() or (here_file == receipt and _gains_frames(receipt, told)):
                write_bytes(here_file, far_file.read_bytes())
    return copied


def _gains_frames(receipt: Path, told: dict[str, dict[str, Any]]) -> bool:
    """Whether a receipt stands for pooled arrays alone, and another one for all of the same layers and views."""
    here = receipt_files.read_receipts(receipt)
    covered = all(set(one[key]) <= set(told[name][key]) for name, one in here.items() for key in ("layers", "views"))
    return covered and any(
        receipt_files.has_no_frames(one) and not receipt_files.has_no_frames(told[name]) for name, one in here.items()
    )


@contextlib.contextmanager
def _fetched(name: str, place: Path) -> Iterator[tuple[Path, Path]]:
    """The receipt and the trial table of a set at a place, as files of this machine. Errors name the place."""
    wanted = [place / SETS / f"{name}.json", place / SETS / f"{name}.csv"]
    found = read_files(wanted)
    if len(found) < len(wanted):
        raise InputError(f"{wanted[0]}: no features of {name} there; `bonafide cache push {name} {place}` brings them")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / f"{name}.json", Path(folder) / f"{name}.csv"
        for path, data in zip(here, found.values(), strict=True):
            path.write_bytes(data)
        try:
            yield here
        except InputError as error:
            raise type(error)(str(error).replace(folder, str(place / SETS))) from None


def _check(told: dict[str, dict[str, Any]], *, trials: int, where: Path) -> None:
    """Raise InputError for a receipt with names that no view or layer has, or of another number of trials."""
    for receipt in told.values():
        if not isinstance(receipt["views"], list) or not isinstance(receipt["layers"], list):
            raise InputError(f"{where}: expected a receipt with lists of views and layers, got another")
        for view in receipt["views"]:
            views.parse(windows.parse(str(view))[0])
        for layer in receipt["layers"]:
            if layer != "final" and not (type(layer) is int and 0 <= layer <= DEEPEST_LAYER):
                raise InputError(f"{where}: expected a receipt with the numbers of layers, got {str(layer)[:100]!r}")
    if sum(receipt["utterances"] for receipt in told.values()) != trials:
        found = sum(receipt["utterances"] for receipt in told.values())
        raise InputError(
            f"{where}: expected a receipt of {trials} trials, as the trial table beside it has, got {found}"
        )


def _copy(source: Store, root: Path, name: str, receipt: dict[str, Any]) -> int:
    """Copy what a store below another root lacks of the views and layers of a receipt; return the number of shards."""
    copied, pooled = 0, receipt_files.has_no_frames(receipt)
    names = {view: source.names(view, receipt["layers"], pooled=pooled) for view in receipt["views"]}
    kinds = {one.name: one for layer in receipt["layers"] for one in source.spec.arrays(layer)}
    arrays = {view: {name: kinds.get(name.rpartition("/")[2]) for name in found} for view, found in names.items()}
    with Store.locked(root / source.spec.folder(name)):
        target = Store.create(root, name, source.spec)
        target.sweep()
        units = [(view, shard) for view in receipt["views"] for shard in range(source.spec.shards)]
        for view in receipt["views"]:
            target.add_arrays(view, receipt["layers"], attributes=source.attributes(view))
        for view, shard in tqdm(units, desc=name, unit="shard", disable=None, leave=False):
            copied += _copy_shard(source, target, view, shard, arrays[view])
    return copied


def _copy_shard(source: Store, target: Store, view: str, shard: int, arrays: Mapping[str, Array | None]) -> bool:
    """Copy the arrays of a shard that the target lacks; whether there were some. arrays: None for `n_frames`."""
    told, there = source.marker(view, shard), target.marker(view, shard)
    if missing := [array for array in arrays if array not in told]:
        raise InputError(f"{source.path}: shard {shard} of {missing[0]} is not whole there; make these features anew")
    if other := [array for array in arrays if there.get(array, told[array]) != told[array]]:
        raise InputError(
            f"{target.path}: shard {shard} of {other[0]} has other bytes than in {source.path}; move the store away "
            "for those"
        )
    lacking = [array for array in arrays if array not in there or not is_there(target.shard_path(array, shard))]
    places = {array: source.shard_path(array, shard) for array in lacking}
    found = read_files(list(places.values()))
    wrong = [
        f"{path}: expected sha256 {told[array][:12]}..., got {_sha256(found.get(path))[:12]}"
        for array, path in places.items()
        if _sha256(found.get(path)) != told[array]
    ]
    if not wrong:
        flaws = {path: _flaw(source.spec, arrays[array], shard, found[path]) for array, path in places.items()}
        wrong = [f"{path}: {flaw}" for path, flaw in flaws.items() if flaw]
    if wrong:
        raise InputError(
            f"{len(wrong)} shard files are damaged, and nothing of their shard was taken; push the features there "
            f"anew, or run this again:\n{listing(wrong)}"
        )
    if lacking:
        facts = {key: value for key, value in told.items() if key.rpartition(" ")[2] in lacking}
        target.take(view, shard, {array: found[path] for array, path in places.items()}, facts)
    return bool(lacking)


def _flaw(spec: Spec, array: Array | None, shard: int, data: bytes) -> str:
    """What is wrong with the bytes of a shard file: they are not those of finite numbers as a store writes them."""
    rows = len(spec.rows(shard))
    shape = (spec.shard,) if array is None else (*(() if array.of_shards else (rows,)), *array.shape[1:])
    dtype = np.dtype("int32" if array is None else array.dtype).newbyteorder("<")
    size, chunks = math.prod(shape) * dtype.itemsize, rows if len(shape) == 3 else 1
    index = spec.shard * INDEX_ENTRY_BYTES + CRC_BYTES if len(shape) == 3 else 0
    if len(data) != size + chunks * CRC_BYTES + index:
        return f"expected {size + chunks * CRC_BYTES + index} bytes, got {len(data)}"
    whole = np.frombuffer(data, np.uint8)
    values = np.ascontiguousarray(whole[: len(data) - index].reshape(chunks, -1)[:, :-CRC_BYTES])
    block = values.reshape(-1).view(dtype).reshape(shape)
    encoded = encode_shard(block, shard=spec.shard) if index else encode_chunk(block)
    if not np.array_equal(encoded, whole):
        return "expected rows with their checksums and their index, got others"
    if array is None:
        sound = bool(((block[:rows] >= 1) & (block[:rows] <= spec.frames)).all())
    else:
        sound = bool(np.isfinite(block).all())
    return "" if sound else "expected finite numbers, and 1 frame of an utterance or more, got others"


def _sha256(data: bytes | None) -> str:
    return "no file" if data is None else hashlib.sha256(data).hexdigest()
