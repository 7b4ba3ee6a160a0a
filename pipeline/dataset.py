"""Sets to train on and to score: their features, labels, and the order in which training sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import gather
from pipeline import trials as trial_table
from pipeline.contracts import Labels, Tap
from pipeline.devices import CPU
from pipeline.errors import InputError
from pipeline.gather import Addresses, Batch, Joined, OnDisk, Source
from pipeline.reader import Reader
from pipeline.store import CLEAN, fingerprint, open_receipts
from pipeline.trials import Trials

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
        return gather.read(self.source, addresses)


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
    return gather.hold(source, views=views, device=CPU if where == "ram" else device, name=name)


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


# ---------------------------------------------------------------- labels, augmentation, order


@dataclass(frozen=True)
class Augment:
    """With which probability training takes one of the augmented views, each as likely, instead of the clean one."""

    views: tuple[str, ...]
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or (self.probability > 0 and not self.views):
            raise ValueError(f"expected views and a probability from 0 to 1, got {self}")


NO_AUGMENT = Augment((), 0.0)


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


def batches(
    is_bonafide: NDArray[np.bool_], *, size: int, seed: int, epoch: int, groups: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """The rows of each batch of an epoch, the classes spread evenly over the batches of `size`, give or take one.

    Every utterance comes once, but every batch holds bona fide: where there are fewer than batches, they come again.

    With groups (N,), the corpora that utterances are of, every batch has as many of each corpus, give or take one, and
    bona fide of each that has any: the largest corpus comes once, utterances of the others come again. Raises
    InputError for a batch too small for that.
    """
    rng = np.random.default_rng((seed, epoch))
    count = -(-len(is_bonafide) // size)
    if groups is not None:
        yield from _balanced(is_bonafide, groups, size=size, rng=rng)
        return
    bonafide = rng.permutation(np.flatnonzero(is_bonafide))
    spoof = rng.permutation(np.flatnonzero(~is_bonafide))
    if len(bonafide) < count:
        bonafide = np.resize(bonafide, count)
    # the longer parts of one class meet the shorter parts of the other
    for some, others in zip(np.array_split(bonafide, count), reversed(np.array_split(spoof, count)), strict=True):
        yield np.concatenate([some, others])


def _balanced(
    is_bonafide: NDArray[np.bool_], groups: NDArray[np.int64], *, size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    corpora = [(np.flatnonzero((groups == g) & is_bonafide), np.flatnonzero((groups == g) & ~is_bonafide))
               for g in np.unique(groups)]  # fmt: skip
    if size < 2 * len(corpora):
        raise InputError(f"train.batch_size: expected at least {2 * len(corpora)} for {len(corpora)} sets, got {size}")
    count = -(-len(corpora) * max(len(bonafide) + len(spoof) for bonafide, spoof in corpora) // size)
    # every corpus comes to the length of the longest, once each of its batches has bona fide
    length = max(max(len(bonafide), count if len(bonafide) else 0) + len(spoof) for bonafide, spoof in corpora)
    parts: list[list[NDArray[np.int64]]] = []
    for i, (bonafide, spoof) in enumerate(corpora):
        share = round(length * len(bonafide) / (len(bonafide) + len(spoof)))
        share = max(share, count) if len(bonafide) else 0
        share = share if len(spoof) else length
        some = np.array_split(_repeated(bonafide, share, rng), count)
        others = np.array_split(_repeated(spoof, length - share, rng), count)[::-1]
        turn = -1 if i % 2 else 1  # the longer batches of one corpus meet the shorter ones of the next
        parts += [some[::turn], others[::turn]]
    for batch in zip(*parts, strict=True):
        yield np.concatenate(batch)


def _repeated(rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`length` of some rows in random order, all of them before any comes again."""
    if not len(rows):
        return rows
    return np.concatenate([rng.permutation(rows) for _ in range(-(-length // len(rows)))] or [rows])[:length]
