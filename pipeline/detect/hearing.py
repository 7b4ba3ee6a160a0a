"""Which windows of a file are heard, and how their scores become that of the file."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import windowing
from pipeline.audio.windowing import Samples
from pipeline.core.sections import WindowsParams
from pipeline.scoring import scorer

Heard = Literal["first", "mean", "min", "run"]


def resolved(asked: Heard | None, own: WindowsParams) -> Heard:
    """What is heard where nothing is asked for: the windows of the run, where it has several, else all with the mean.

    own: the windows that the run was trained and scored on.
    """
    if own.count == 1:
        return "first" if asked == "run" else asked or "mean"
    return asked or "run"


def starts(samples: Samples, heard: Heard, own: WindowsParams, *, window: int) -> NDArray[np.int64]:
    """Where W windows start in samples (n,): one, all that overlap by half, or those of the run as the store has them.

    window: samples of a window.
    """
    if heard == "first":
        return np.zeros(1, np.int64)
    if heard != "run":
        return overlapping(len(samples), window=window)
    begin = (one.start(len(samples), length=window) for one in own.each)
    return np.array([windowing.sounding(samples, start, length=window) for start in begin])


def overlapping(samples: int, *, window: int) -> NDArray[np.int64]:
    """Where overlapping windows start: every half window, and one that ends with the last sample."""
    last = max(samples - window, 0)
    return np.unique(np.append(np.arange(0, last + 1, window // 2), last))


def reduced(scores: NDArray[np.float32], heard: Heard, own: WindowsParams) -> np.float32:
    """The score of a file from those of its windows, (W,)."""
    how = own if heard == "run" else WindowsParams(reduce="min" if heard == "min" else "mean")
    return np.float32(scorer.reduce_windows(scores[:, None], how)[0])
