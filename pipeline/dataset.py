"""Batches from the feature store: features, labels, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import trials as trial_table
from pipeline.contracts import Labels, Tap
from pipeline.errors import InputError
from pipeline.store import CLEAN, Reader, fingerprint, open_receipt
from pipeline.trials import Trials

Reads = Literal["pooled", "frames"]


@dataclass(frozen=True)
class Dataset:
    """N utterances of one set: their cached features and what is known of them.

    encoder: fingerprint of the encoder and window. digest: of the features' bytes, from the receipt.
    """

    trials: Trials
    reader: Reader
    layers: tuple[Tap, ...]
    channels: int
    encoder: str
    digest: str

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def kind(self) -> dict[str, Any]:
        """What two sets must agree on to be trained on and scored together, JSON-ready."""
        return {"encoder": self.encoder, "layers": list(self.layers), "channels": self.channels}

    def features(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features of some rows and their valid frames.

        Returns:
            (B, L, T, D) frames or (B, L, 2, D) pooled means and standard deviations, float32; n_frames (B,) int64.
        """
        block = torch.from_numpy(self.reader.gather(rows))
        return block.float(), torch.from_numpy(self.reader.n_frames[rows].astype(np.int64))


def open_set(receipt: Path, trials: Trials, *, root: Path, reads: Reads) -> Dataset:
    """The features that a receipt stands for.

    Raises InputError where the receipt is missing or not of these trials, or its store is missing, incomplete, or holds
    other bytes.
    """
    store, card = open_receipt(receipt, root=root)
    if card["trials"] != trial_table.fingerprint(trials):
        raise InputError(f"{receipt}: the trials changed since these features were extracted; run `dvc repro extract`")
    reader = Reader(store, view=CLEAN, layers=card["layers"], pooled=reads == "pooled")
    return Dataset(
        trials=trials,
        reader=reader,
        layers=tuple(card["layers"]),
        channels=card["channels"],
        encoder=fingerprint(card["encoder"]),
        digest=card["digest"],
    )


def thresholds(trials: Trials, *, levels: int, given: Sequence[float] | None) -> tuple[float, ...]:
    """The MOS at which quality levels part: as given, or the quantiles that split the bona fide evenly.

    Raises InputError where there are levels to make and no bona fide utterance has a quality.
    """
    if given is not None:
        return tuple(given)
    known = trials.quality[trials.is_bonafide & ~np.isnan(trials.quality)]
    if levels > 1 and not len(known):
        raise InputError(
            f"expected a quality (MOS) of some bona fide trials to make {levels} levels from, got none; "
            "fill the quality column of the training set, or set levels: 1"
        )
    return tuple(float(q) for q in np.quantile(known, np.arange(1, levels) / levels)) if levels > 1 else ()


def labels(trials: Trials, cuts: Sequence[float]) -> Labels:
    """Labels of all N trials; a MOS equal to a threshold belongs to the level above it, an unknown one is level -1."""
    level = np.where(np.isnan(trials.quality), -1, np.digitize(trials.quality, np.asarray(cuts, dtype=np.float64)))
    names = {name: i for i, name in enumerate(sorted(set(trials.speaker.tolist()) - {trial_table.UNKNOWN}))}
    return Labels(
        is_bonafide=torch.from_numpy(trials.is_bonafide),
        level=torch.from_numpy(level.astype(np.int64)),
        speaker=torch.tensor([names.get(name, -1) for name in trials.speaker.tolist()]),
    )


def take(whole: Labels, rows: NDArray[np.int64]) -> Labels:
    """The labels of some rows."""
    index = torch.from_numpy(rows)
    return Labels(whole.is_bonafide[index], whole.level[index], whole.speaker[index])


def batches(is_bonafide: NDArray[np.bool_], *, size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each batch of an epoch, the classes spread evenly over the batches of `size`, give or take one.

    Every utterance comes once, but every batch holds bona fide: where there are fewer than batches, they come again.
    """
    rng = np.random.default_rng((seed, epoch))
    count = -(-len(is_bonafide) // size)
    bonafide = rng.permutation(np.flatnonzero(is_bonafide))
    spoof = rng.permutation(np.flatnonzero(~is_bonafide))
    if len(bonafide) < count:
        bonafide = np.resize(bonafide, count)
    # the longer parts of one class meet the shorter parts of the other
    for some, others in zip(np.array_split(bonafide, count), reversed(np.array_split(spoof, count)), strict=True):
        yield np.concatenate([some, others])
