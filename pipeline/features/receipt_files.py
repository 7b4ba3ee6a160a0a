"""Receipts: a JSON file for each set that pins the bytes of its features. DVC tracks receipts and no features.

    data/features/<set>.json                      all layers and views of a set, or of the sets of a pool
    data/selected/<set>/<layers>-<views>.json     those of one choice, which are all that a run of that choice reads
    data/analysed/<set>/<layers>-<views>.json     the same, of the choices of analysed runs alone
    data/analysed/<set>/encoder-finetune-layers.json    those that the fine-tuned run reads

So one more layer changes the receipt of the set, and leaves those of the choices without it as they are. What reads
every set of an analysed run depends on all of data/analysed, which one more choice in the grid leaves as it is, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.core import trial_table, windows
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.core.sections import WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.features import libraries
from pipeline.features.libraries import IMPORTED
from pipeline.features.specs import RECORDINGS_KEY, VERSION_KEY
from pipeline.features.store import OTHER_SPEC, Store
from pipeline.features.zarr_metadata import FORMAT

FINETUNED = "encoder-finetune-layers"  # the choice of the fine-tuned run; two dashes, so that no other has its name
RECEIPT = ("store", "encoder", "trials", "utterances", "frames", "channels", "layers", "views", "digest")
POOLED = "pooled"  # true in the receipt of features that came without their frames
AGAIN = "run `dvc repro -f extract`"
# Without the first half, the next extraction would find the store complete, and write a receipt of what is in it.
OTHER_BYTES = f"move the store away, so that its features are computed anew, and {AGAIN}"


class OpenSet(NamedTuple):
    """One set with its name, its trials, the store that holds its features, and its receipt."""

    name: str
    trials: Trials
    store: Store
    receipt: dict[str, Any]


def extracted(*, table: Path, receipt: Path) -> dict[str, str]:
    """The digests of the trial table and the receipt of a set, which `extract` leaves in a file for the pools.

    DVC cannot declare a list of sets as what a pool depends on. So a pool depends on the folder of these small files.
    """
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in (("trials", table), ("receipt", receipt))
    }


def check_extracted(path: Path, *, table: Path, receipt: Path) -> None:
    """Raise InputError where the trial table or the receipt of a set is not the one that `extract` left."""
    found = read_json(path, what="note of a set's extraction", remedy=AGAIN)
    if found != extracted(table=table, receipt=receipt):
        raise InputError(f"{path}: expected the trial table {table} and the receipt {receipt} as they were; {AGAIN}")


def read_receipts(path: Path) -> dict[str, dict[str, Any]]:
    """Read the receipts in a file by set: one for a set, several for a pool.

    Raises InputError where the file is missing or is no receipt.
    """
    found = read_json(path, what="receipt", remedy=AGAIN)
    name = path.parent.name if "-" in path.stem else path.stem  # of a choice, or of the whole set
    receipts = found.get("pool", {name: found})
    if not isinstance(receipts, dict) or not all(isinstance(receipt, dict) for receipt in receipts.values()):
        raise InputError(f"{path}: expected a receipt, or those of a pool by set, got another JSON value; {AGAIN}")
    for receipt in receipts.values():
        if missing := [key for key in ("format", *RECEIPT) if key not in receipt]:
            raise InputError(f"{path}: expected a receipt, got JSON without {', '.join(missing)}; {AGAIN}")
        if receipt["format"] != FORMAT:
            raise InputError(f"{path}: expected store format {FORMAT}, got {receipt['format']}; {AGAIN}")
        if not re.fullmatch(r"[0-9a-f]{16}/[a-z][a-z0-9_]*-[0-9a-f]{16}\.zarr", str(receipt["store"])):
            raise InputError(f"{path}: expected a store below the root of features, got {receipt['store']!r}; {AGAIN}")
        _check(path, receipt)
    return dict(receipts)


def _check(path: Path, receipt: Mapping[str, Any]) -> None:
    """Raise InputError where values of a receipt have other types, or a layer or view comes twice."""
    for key in ("utterances", "frames", "channels"):
        if type(receipt[key]) is not int or receipt[key] < 1:
            raise InputError(f"{path}: {key}: expected a whole number above 0, got {str(receipt[key])[:100]}; {AGAIN}")
    for key in ("layers", "views"):
        found = receipt[key]
        if not isinstance(found, list) or len({str(one) for one in found}) < len(found):
            raise InputError(
                f"{path}: expected a receipt with lists of views and layers, each once, got another; {AGAIN}"
            )
    try:
        heard = WindowsParams.of(receipt)
    except ValueError as error:
        raise InputError(f"{path}: expected a receipt with the windows of an utterance; {AGAIN}: {error}") from None
    views = [name for name in receipt["views"] if isinstance(name, str) and windows.parse(name)[1] == windows.FIRST]
    if missing := [name for name in heard.names(views) if name not in receipt["views"]]:
        raise InputError(f"{path}: expected a receipt with the views {', '.join(missing)}, got one without; {AGAIN}")


def open_receipts(path: Path, *, root: Path) -> dict[str, tuple[Store, dict[str, Any]]]:
    """Open the stores of a receipt by set, each with its own receipt: one store for a set, several for a pool.

    Warns where features were made by other versions of libraries than those at work. Raises InputError where the
    receipt is missing or is no receipt; and where a store is missing, is incomplete, has another spec, or holds other
    bytes.
    """
    found = {}
    for name, receipt in read_receipts(path).items():
        store = Store.open(root / receipt["store"])
        if any(receipt[name] != value for name, value in dataclasses.asdict(store.spec).items() if name != "shard"):
            raise InputError(f"{store.path}: the store has another spec than {path} says; {OTHER_SPEC}")
        if store.digest(receipt["views"], receipt["layers"], pooled=has_no_frames(receipt)) != receipt["digest"]:
            raise InputError(f"{store.path}: expected the bytes that {path} stands for, got others; {OTHER_BYTES}")
        libraries.compare(store.made(receipt["views"], receipt["layers"]).values(), store=store.path)
        found[name] = store, receipt
    return found


def has_no_frames(receipt: Mapping[str, Any]) -> bool:
    """Whether a receipt stands for pooled arrays alone."""
    return receipt.get(POOLED) is True


def of_choice(folder: Path, name: str, choice: str) -> Path:
    """The receipt of a set that a run of a choice reads. folder: data/selected, data/analysed, or data/features.

    choice: `<layers>-<views>`, or `FINETUNED`. Where it has no receipt there, the receipt of the whole set.
    """
    chosen = folder / name / f"{choice}.json"
    return chosen if chosen.is_file() else folder / f"{name}.json"


def selected(
    store: Store, receipt: Mapping[str, Any], *, layers: Sequence[Tap], views: Sequence[str]
) -> dict[str, Any]:
    """The receipt of some layers and augmented views of a store, in all windows, from the receipt of the whole.

    views: those that the store does not have are left out, as only training sets have any.
    Raises InputError for a layer that is not in the receipt.
    """
    if missing := [str(layer) for layer in layers if layer not in receipt["layers"]]:
        raise InputError(
            f"{store.path}: expected the layers {', '.join(missing)}, the features have "
            f"{', '.join(map(str, receipt['layers']))}; add them to extract.layers and run `dvc repro extract`"
        )
    chosen = [view for view in views if view in receipt["views"] and windows.parse(view) == (view, windows.FIRST)]
    names = list(WindowsParams.of(receipt).names(dict.fromkeys((CLEAN, *chosen))))
    kept = {view: [layer for layer in layers if layer in receipt.get(IMPORTED, {}).get(view, ())] for view in names}
    imported = {view: taps for view, taps in kept.items() if taps}
    found = {
        **receipt,
        "layers": list(layers),
        "views": names,
        IMPORTED: imported,
        "bytes": store.spec.bytes_of(len(layers)) * len(names),
        "digest": store.digest(names, layers, pooled=has_no_frames(receipt)),
    }
    recorded = {view: digest for view, digest in receipt.get(RECORDINGS_KEY, {}).items() if view in names}
    found |= {RECORDINGS_KEY: recorded} if RECORDINGS_KEY in receipt else {}
    empty = {VERSION_KEY: len(names) == 1, RECORDINGS_KEY: not recorded, IMPORTED: not imported}
    return {key: value for key, value in found.items() if not empty.get(key)}


def open_sets(path: Path, trials: Trials, *, root: Path) -> list[OpenSet]:
    """Open the stores of a receipt, as `open_receipts` does, each with its own part of the trials.

    trials: all trials of the set, or of the pool in the order of its sets.

    Raises InputError as `open_receipts`, and where the features belong to other trials.
    """
    sets, start = [], 0
    for name, (store, receipt) in open_receipts(path, root=root).items():
        end = start + receipt["utterances"]
        sets.append(OpenSet(name, trials.take(np.arange(start, min(end, len(trials)))), store, receipt))
        start = end
    if start != len(trials) or not all(map(_is_of_its_trials, sets)):
        raise InputError(f"{path}: the trials changed since these features were extracted; run `dvc repro extract`")
    return sets


def _is_of_its_trials(one: OpenSet) -> bool:
    """Whether features belong to the trials of a set, whose utterances may have the set's name in front in a pool."""
    own = (one.trials, trial_table.without_set(one.trials, one.name))
    return one.receipt["trials"] in map(trial_table.fingerprint, own)
