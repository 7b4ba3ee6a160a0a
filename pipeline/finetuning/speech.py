"""Audio for fine-tuning: windows in the views that an epoch draws, decoded ahead of the encoder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio import loader, windowing
from pipeline.audio.recordings import Recordings
from pipeline.core import ahead
from pipeline.core.contracts import CLEAN
from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.errors import InputError, listing
from pipeline.core.sections import WindowParams
from pipeline.core.trial_table import Trials
from pipeline.features import sampling
from pipeline.finetuning import ranks
from pipeline.finetuning.ranks import Rows

AHEAD = 2  # batches that are decoded before they are needed

Crop = Literal["start", "random"]
Utterance = tuple[windowing.Samples, int]  # a window (S,), and how many of its samples are signal
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Speech:
    """The trials of a set, the folder that their audio paths are relative to, and whether the encoder normalizes.

    recordings: those of each view that takes sound from some.
    """

    trials: Trials
    root: Path
    normalized: bool = True
    recordings: Mapping[str, Recordings] = field(default_factory=dict)


def load_clean(speech: Speech, row: int, *, window: WindowParams) -> Utterance:
    """The window of a trial. Raises InputError naming the utterance."""
    clip = loader.clip_of(speech.trials, row, audio_root=speech.root)
    return loader.load_window(clip, view=CLEAN, window=window, normalized=speech.normalized)


def load_drawn(
    speech: Speech, row: int, view: str, *, seed: int, epoch: int, window: WindowParams, crop: Crop = "start"
) -> Utterance:
    """The window of a trial in a view, as an epoch draws both; other epochs, other noise and another random place.

    Raises InputError naming the utterance.
    """
    clip = loader.clip_of(speech.trials, row, audio_root=speech.root)
    seeded_by = f"{seed} {epoch} {clip.utterance}" if view != CLEAN else ""
    place = float(np.random.default_rng([seed, epoch, row]).random()) if crop == "random" else 0.0
    return loader.load_window(
        clip,
        view=view,
        window=window,
        normalized=speech.normalized,
        recordings=speech.recordings.get(view),
        seeded_by=seeded_by,
        place=place,
    )


def loaded(batches: Iterable[Rows], load: Callable[[int], Loaded]) -> Generator[tuple[Rows, list[Loaded]]]:
    """Batches of rows, in order, with what `load` makes of each row; threads load the next batches meanwhile.

    Of several processes each loads its share of every batch. Raises InputError with all utterances of it that cannot
    be used.
    """

    def whole(rows: Rows) -> tuple[Rows, list[Loaded]]:
        found, problems = [], []
        own = ranks.share(rows)
        for row in own.tolist():
            try:
                found.append(load(row))
            except InputError as error:
                problems.append(str(error))
        if problems:
            count = f"{len(problems)} of {len(own)}"
            raise InputError(f"{count} utterances of a batch cannot be used:\n{listing(problems)}")
        return rows, found

    return ahead.in_order(whole, batches, threads=loader.workers(), ahead=AHEAD + 1)


def steps(is_bonafide: NDArray[np.bool_], params: FinetuneParams, *, epoch: int) -> list[list[Rows]]:
    """The rows of every step of an epoch, each in parts of at most `batch_size`.

    The classes are spread evenly over the steps and over the parts of each.
    """
    size = params.batch_size * params.accumulate
    whole = sampling.batches(is_bonafide, size=size, seed=params.seed, epoch=epoch)
    return [split(rows, size=params.batch_size) for rows in whole]


def split(rows: Rows, *, size: int) -> list[Rows]:
    """Rows, bona fide first, in parts of at most `size` that hold the same share of bona fide, give or take one."""
    parts = -(-len(rows) // size)
    return [rows[part::parts] for part in range(parts)]


def batch(utterances: Sequence[Utterance], device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows (B, S) and valid samples (B,) on a device."""
    windows = torch.from_numpy(np.stack([window for window, _ in utterances]))
    valid = torch.tensor([valid for _, valid in utterances])
    return windows.to(device), valid.to(device)
