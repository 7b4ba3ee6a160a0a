"""Load the windows of utterances: threads or processes decode and augment them before the encoder needs them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import decode, views, windowing
from pipeline.core.errors import InputError, listing
from pipeline.core.sections import WindowParams
from pipeline.core.trial_table import Trials

DECODERS = 4  # threads that decode
WORKERS = 16  # the most processes that decode and augment; augmenting gains little from threads

Windows = tuple[NDArray[np.float32], NDArray[np.int64]]  # (n, S) samples at 16 kHz, (n,) how many of each are valid
Loading = list[Future[tuple[windowing.Samples, int]]]


@dataclass(frozen=True)
class Clip:
    """One utterance to load: its name, its audio file, and the digest of the file."""

    utterance: str
    path: Path
    content: str


def clip_of(trials: Trials, row: int, *, audio_root: Path) -> Clip:
    """The clip of one trial."""
    return Clip(str(trials.utterance[row]), audio_root / str(trials.path[row]), str(trials.content[row]))


def load_window(clip: Clip, *, view: str, window: WindowParams) -> tuple[windowing.Samples, int]:
    """Decode an utterance, augment all of it as the view says, and cut its window.

    Returns the window (S,) and its number of valid samples. Raises InputError with the name of the utterance.
    """
    try:
        samples = views.apply(view, decode.load(clip.path, content=clip.content), utterance=clip.utterance)
        cut, valid = windowing.window(samples, length=window.samples, pad=window.pad)
        if np.ptp(cut[:valid]) == 0:
            raise InputError(f"{clip.path}: the first {valid} samples at 16 kHz are silent; remove the trial")
        return cut, valid
    except InputError as error:
        raise InputError(f"utterance {clip.utterance}: {error}") from None


def load(executor: Executor, clips: Sequence[Clip], *, view: str, window: WindowParams) -> Loading:
    """Start loading utterances."""
    return [executor.submit(load_window, clip, view=view, window=window) for clip in clips]


def loaded(loading: Loading, rows: slice) -> Windows:
    """Wait for some of the windows. Raises InputError with all utterances of the unit that cannot be used."""
    try:
        found = [future.result() for future in loading[rows]]
    except InputError:
        problems = [str(error) for error in (future.exception() for future in loading) if isinstance(error, InputError)]
        raise InputError(f"{len(problems)} of {len(loading)} utterances cannot be used:\n{listing(problems)}") from None
    return np.stack([samples for samples, _ in found]), np.array([valid for _, valid in found])


@contextlib.contextmanager
def open_executor(*, augmenting: bool) -> Iterator[Executor]:
    """An executor: threads, or processes where they augment. Raises InputError where a process died."""
    found = processes() if augmenting else ThreadPoolExecutor(DECODERS)
    try:
        yield found
    except BrokenProcessPool:
        raise InputError(
            "a process that decodes and augments died (out of memory? see above for what else it said); complete "
            "shards are kept: run the same command again, and it continues with the others"
        ) from None
    finally:
        found.shutdown(cancel_futures=True)


def processes() -> Executor:
    """Processes that augment; threads where this process may not start others, such as a worker of Dask."""
    if multiprocessing.current_process().daemon:
        return ThreadPoolExecutor(DECODERS)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the encoder's threads, locks and memory
    return ProcessPoolExecutor(workers(), mp_context=spawn, initializer=_follow_parent)


def workers() -> int:
    """The number of processes that augment: one for each processor that this one may use, up to `WORKERS`."""
    return min(len(os.sched_getaffinity(0)), WORKERS)


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # workers have one
    parent.join()
    os._exit(1)
