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
from pipeline.core.sections import ONE_WINDOW, WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.features import sources, streaming
from pipeline.features.reader import Reader
from pipeline.features.receipt_files import has_no_frames, open_sets
from pipeline.features.sources import Addresses, JoinedSource, OnDisk, Source, WindowsTogether
from pipeline.features.specs import fingerprint
from pipeline.features.streaming import Batch

SAME_KIND = (  # the remedy where two sets have features of different kinds
    "run `dvc repro extract`, and if that finds nothing to do, set extract.precision to float32 or bfloat16: auto can "
    "differ between machines"
)

Reads = Literal["pooled", "frames"]
Hold = Literal["disk", "ram", "device"]


@dataclass(frozen=True)
class Dataset:
    """N utterances of one set, or of several joined sets: their trials and their cached features.

    name: the set's name. encoder: fingerprint of encoder and window. digest: sha256 from the receipt, which pins the
    bytes of the features. views: the augmented views. groups: (N,) int, the set of each utterance in a joined dataset.
    windows: of every utterance. The addresses of the W windows of the clean utterance come first, then those of each
    view. Where attention goes over the windows of an utterance, they are one row with one address.
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
    windows: WindowsParams = ONE_WINDOW

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def kind(self) -> dict[str, Any]:
        """The facts in which a training set and a scored set must agree, ready for JSON."""
        return {
            "encoder": self.encoder, "layers": list(self.layers), "channels": self.channels, **self.windows.facts,
        }  # fmt: skip

    def place(self, view: str) -> int:
        """How many times N addresses come before those of the first window of a view."""
        return (CLEAN, *self.views).index(view) * self.windows.apart

    def features(self, addresses: Addresses) -> Batch:
        """Read the features of some addresses, and their valid frames, into new memory.

        Returns:
            (B, L, T, D) frames or (B, L, 2, D) pooled means and standard deviations, float32, with attention over W
            windows (B, W, L, T or 2, D); n_frames (B,) int64.
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
    """Open the clean features of a set, with some augmented views, in all windows. For a pool its sets are joined.

    Args:
        receipt: the receipt of the set or pool. trials: all its trials.
        layers: the layers to read, in this order; None: all layers of the receipt.
        hold: where to keep the features: on disk and read by batch, or read once into memory or onto `device`.

    Raises InputError where the receipt is missing, belongs to other trials, or lacks a layer or view; where a store is
    missing, incomplete, or holds other bytes; and where the features do not fit into memory.
    """
    parts = []
    for part in open_sets(receipt, trials, root=root):
        found = part.receipt
        chosen = tuple(found["layers"] if layers is None else layers)
        _check_there(receipt, "layers", chosen, found["layers"])
        _check_there(receipt, "views", views, found["views"])
        if reads == "frames" and has_no_frames(found):
            raise InputError(
                f"{receipt}: expected features of frames, got pooled ones alone; choose backends that read means and "
                f"deviations, or pull {part.name} from a place where it was pushed without --pooled"
            )
        windows = WindowsParams.of(found)
        names = windows.names((CLEAN, *views))
        source = OnDisk(Reader(part.store, views=names, layers=chosen, pooled=reads == "pooled"))
        placed = _placed(source, hold, views=len(names), device=torch.device(device), name=part.name)
        if windows.attended:
            placed = WindowsTogether(placed, windows.count)
        encoder, channels, digest = fingerprint(found["encoder"]), found["channels"], found["digest"]
        parts.append(
            Dataset(
                part.name, part.trials, placed, chosen, channels, encoder, digest, tuple(views), windows=windows
            )
        )  # fmt: skip
    return join(parts) if len(parts) > 1 else parts[0]


def _check_there(receipt: Path, what: str, wanted: Sequence[Any], there: Sequence[Any]) -> None:
    if missing := [str(name) for name in wanted if name not in there]:
        raise InputError(
            f"{receipt}: expected the {what} {', '.join(missing)}, the features have {', '.join(map(str, there))}; "
            f"add them to extract.{what}{' or evaluate.views' * (what == 'views')} and run `dvc repro extract`"
        )


def _placed(source: OnDisk, where: Hold, *, views: int, device: torch.device, name: str) -> Source:
    if where == "disk":
        return source
    return sources.hold(source, views=views, device=CPU if where == "ram" else device, name=name)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Join several sets into one to train on; `groups` holds the number of each utterance's set.

    The name of a speaker gets the set's name in front, so the same name in two sets means two speakers. Where two sets
    share the name of an utterance, all utterances get the set's name in front.

    Raises InputError where the features or views differ in kind, or where two sets of one name share an utterance.
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
        source=JoinedSource([data.source for data in datasets]),
        layers=first.layers,
        channels=first.channels,
        encoder=first.encoder,
        digest=hashlib.sha256(" ".join(data.digest for data in datasets).encode()).hexdigest(),
        views=first.views,
        groups=np.repeat(np.arange(len(datasets)), [len(data) for data in datasets]),
        windows=first.windows,
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
