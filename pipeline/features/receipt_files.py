"""Receipts: JSON that pins the features of a set, and that DVC tracks instead of the features."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.features.store import OTHER_SPEC, Store
from pipeline.features.zarr_metadata import FORMAT

# ---------------------------------------------------------------- receipts

RECEIPT = ("store", "encoder", "trials", "utterances", "frames", "channels", "layers", "views", "digest")


AGAIN = "run `dvc repro -f extract`"


def read_receipts(path: Path) -> dict[str, dict[str, Any]]:
    """The receipt of a set by the set's name, or those that the receipt of a pool holds.

    Raises InputError where the file is missing or something else.
    """
    found = read_json(path, what="receipt", remedy=AGAIN)
    receipts = found.get("pool", {path.stem: found})
    for receipt in receipts.values():
        if missing := [key for key in ("format", *RECEIPT) if key not in receipt]:
            raise InputError(f"{path}: expected a receipt, got JSON without {', '.join(missing)}; {AGAIN}")
        if receipt["format"] != FORMAT:
            raise InputError(f"{path}: expected store format {FORMAT}, got {receipt['format']}; {AGAIN}")
        if not re.fullmatch(r"[0-9a-f]{16}/[a-z][a-z0-9_]*-[0-9a-f]{16}\.zarr", str(receipt["store"])):
            raise InputError(f"{path}: expected a store below the root of features, got {receipt['store']!r}; {AGAIN}")
    return dict(receipts)


def open_receipts(path: Path, *, root: Path) -> dict[str, tuple[Store, dict[str, Any]]]:
    """The stores that a receipt stands for, one of a set and several of a pool, with the receipt of each, by set.

    Raises InputError where the receipt is missing or something else, or a store is missing, incomplete, of another
    spec, or holds other bytes.
    """
    found = {}
    for name, receipt in read_receipts(path).items():
        store = Store.open(root / receipt["store"])
        if any(receipt[name] != value for name, value in dataclasses.asdict(store.spec).items() if name != "shard"):
            raise InputError(f"{store.path}: the store has another spec than {path} says; {OTHER_SPEC}")
        if store.digest(receipt["views"], receipt["layers"]) != receipt["digest"]:
            raise InputError(f"{store.path}: expected the bytes that {path} stands for, got others; {AGAIN}")
        found[name] = store, receipt
    return found
