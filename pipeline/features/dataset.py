"""Sets to train on and to score: their features, labels, and the order in which training sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.devices import CPU
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.features import sources, streaming
from pipeline.features.reader import Reader
from pipeline.features.receipt_files import open_receipts
from pipeline.features.sources import Addresses, Joined, OnDisk, Source
from pipeline.features.specs import fingerprint
from pipeline.features.streaming import Batch

SAME_KIND = (  # what mends features of two kinds
    "run `dvc repro extract`, and where it finds nothing to do, write extract.precision out: auto is another one on "
    "other hardware"
)

Reads = Literal["pooled", "frames"]
Hold = Literal["disk", "ram", "device"]


@dataclass(frozen=True)
class Dataset:
    """N utterances of one set, or of several joined: their cached features and what is known of them.

    name: of the set. encoder: fingerprint of the encoder and window. digest: of the features' bytes, from the receipt.
    views: the augmented ones that it has. groups: (N,) int, which of the joined sets an utterance is of.
    """

    name: str
    trials: Trials
    source: Source
    layers: tuple[Tap, ...]
    channels: int
    encoder: str
    digest: str
    views: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def kind(self) -> dict[str, Any]:
        """What two sets must agree on to be trained on and scored together, JSON-ready."""
        return {"encoder": self.encoder, "layers": list(self.layers), "channels": self.channels}

    def features(self, addresses: Addresses) -> Batch:
        """Features of some addresses and their valid frames, in memory of their own.

        Returns:
            (B, L, T, D) frames or (B, L, 2, D) pooled means and standard deviations, float32; n_frames (B,) int64.
        """
        return streaming.read(self.source, addresses)


def open_set(
    receipt: Path,
    trials: Trials,
    *,
    root: Path,
    reads: Reads,
    layers: Sequence[Tap] | None = None,
    views: Sequence[str] = (),
    hold: Hold = "disk",
    device: str = "cpu",
) -> Dataset:
    """The features that a receipt stands for, the clean ones and the named augmented views of them.

    Args:
        receipt: of a set, or of a pool, whose sets are then joined. trials: of all of it.
        layers: some of the receipt's, in this order; None: all of them.
        hold: read from disk batch by batch, or once into memory, or once onto `device`.

    Raises InputError where the receipt is missing or not of these trials, lacks a layer or view, or its store is
    missing, incomplete, or holds other bytes; or where what is to be held does not fit.
    """
    start, parts = 0, []
    for name, (store, card) in open_receipts(receipt, root=root).items():
        own = trials.take(np.arange(start, min(start + card["utterances"], len(trials))))
        start += card["utterances"]
        if card["trials"] != trial_table.fingerprint(own):
            raise _other_trials(receipt)
        chosen = tuple(card["layers"] if layers is None else layers)
        _check_there(receipt, "layers", chosen, card["layers"])
        _check_there(receipt, "views", views, card["views"])
        source = OnDisk(Reader(store, views=(CLEAN, *views), layers=chosen, pooled=reads == "pooled"))
        placed = _placed(source, hold, views=1 + len(views), device=torch.device(device), name=name)
        encoder = fingerprint(card["encoder"])
        parts.append(Dataset(name, own, placed, chosen, card["channels"], encoder, card["digest"], tuple(views)))
    if start != len(trials):
        raise _other_trials(receipt)
    return join(parts) if len(parts) > 1 else parts[0]


def _other_trials(receipt: Path) -> InputError:
    return InputError(f"{receipt}: the trials changed since these features were extracted; run `dvc repro extract`")


def _check_there(receipt: Path, what: str, wanted: Sequence[Any], there: Sequence[Any]) -> None:
    if missing := [str(name) for name in wanted if name not in there]:
        raise InputError(
            f"{receipt}: expected the {what} {', '.join(missing)}, the features have {', '.join(map(str, there))}; "
            f"add them to extract.{what} and run `dvc repro extract`"
        )


def _placed(source: OnDisk, where: Hold, *, views: int, device: torch.device, name: str) -> Source:
    if where == "disk":
        return source
    return sources.hold(source, views=views, device=CPU if where == "ram" else device, name=name)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Several sets as one to train on, `groups` telling which is which; of views, those that all of them have.

    Names that two sets share get their set's name ahead, and speakers always do: those of different sets are taken for
    different people. Raises InputError where features differ in kind, or two sets of one name share an utterance.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if (other.kind, other.source.row, other.views) != (first.kind, first.source.row, first.views):
            raise InputError(
                f"{other.name} has features of {other.kind}, {other.source.row} each, views {list(other.views)}; "
                f"{first.name} of {first.kind}, {first.source.row}, {list(first.views)}; run `dvc repro extract`"
            )
    return Dataset(
        name="+".join(data.name for data in datasets),
        trials=_joined_trials(datasets),
        source=Joined([data.source for data in datasets]),
        layers=first.layers,
        channels=first.channels,
        encoder=first.encoder,
        digest=hashlib.sha256(" ".join(data.digest for data in datasets).encode()).hexdigest(),
        views=first.views,
        groups=np.repeat(np.arange(len(datasets)), [len(data) for data in datasets]),
    )


def _joined_trials(datasets: Sequence[Dataset]) -> Trials:
    tables = [data.trials for data in datasets]
    columns = {name: np.concatenate([vars(table)[name] for table in tables]) for name in vars(tables[0])}
    prefixes = np.repeat([f"{data.name}/" for data in datasets], [len(data) for data in datasets])
    unknown = columns["speaker"] == trial_table.UNKNOWN
    columns["speaker"] = np.where(unknown, columns["speaker"], np.char.add(prefixes, columns["speaker"]))
    if len(np.unique(columns["utterance"])) < len(prefixes):
        columns["utterance"] = np.char.add(prefixes, columns["utterance"])
        if len(np.unique(columns["utterance"])) < len(prefixes):
            raise InputError(
                f"expected each utterance once, got sets of one name that share some: "
                f"{', '.join(data.name for data in datasets)}; give the sets different names"
            )
    return Trials(**columns)
