"""Load the windows of utterances: threads or processes decode and augment them before the encoder needs them.

Processes leave the windows in memory that they share with this one. Sent through a pipe, they would all pass this
process byte by byte, which a GPU would wait for.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import decode, views, windowing
from pipeline.audio.recordings import Recordings
from pipeline.core import windows
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError, listing
from pipeline.core.sections import WindowParams
from pipeline.core.trial_table import Trials

TOGETHER = 8  # utterances in one task: between processes each task takes time of its own
LOOK_S = 1.0  # seconds between looks whether a process died
WORKERS = 16  # the most threads that decode, or processes that decode and augment; augmenting gains little from threads

Windows = tuple[NDArray[np.float32], NDArray[np.int64]]  # (n, S) samples at 16 kHz, (n,) how many of each are valid
Window = tuple[windowing.Samples, int]  # (S,), and how many samples are valid


@dataclass(frozen=True)
class WindowMemory:
    """Memory for windows (S,), which other processes find by its path."""

    path: Path

    def put(self, row: int, window: windowing.Samples) -> None:
        """Store a window (S,) as a row."""
        with self.path.open("r+b") as file:
            file.seek(row * window.nbytes)
            file.write(window.data)


class Loading:
    """Utterances that are being loaded, `TOGETHER` in a part, into memory of its own. It has to be closed."""

    def __init__(self, executor: Executor, count: int, samples: int) -> None:
        self.parts: list[Future[list[int | InputError]]] = []
        self._executor = executor
        self._memory = _memory_file()
        os.ftruncate(self._memory, count * samples * np.dtype(np.float32).itemsize)
        self.memory = WindowMemory(Path(f"/proc/{os.getpid()}/fd/{self._memory}"))
        self.windows = np.frombuffer(mmap.mmap(self._memory, 0), np.float32).reshape(count, samples)

    def result(self, part: int) -> list[int | InputError]:
        """Wait for a part: how many samples of each utterance's window are valid, or why there is none."""
        self._wait(part)
        return self.parts[part].result()

    def _wait(self, part: int) -> None:
        while not self.parts[part].done():
            wait([self.parts[part]], timeout=LOOK_S)
            _end_where_a_process_died(self._executor)

    def close(self) -> None:
        """Give the memory back, after the last one that writes there: its number may be another file's then."""
        for future in self.parts:
            future.cancel()
        for part in range(len(self.parts)):
            self._wait(part)
        os.close(self._memory)


def _memory_file() -> int:
    """A file without a name, in memory; on a disk where Python lacks those, as conda's and older ones of uv do."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("windows")
    handle, path = tempfile.mkstemp(prefix="windows-")
    Path(path).unlink()
    return handle


@dataclass(frozen=True)
class Clip:
    """One utterance to load: its name, its audio file, and the digest of the file."""

    utterance: str
    path: Path
    content: str


def clip_of(trials: Trials, row: int, *, audio_root: Path) -> Clip:
    """The clip of one trial."""
    return Clip(str(trials.utterance[row]), audio_root / str(trials.path[row]), str(trials.content[row]))


def load_window(
    clip: Clip,
    *,
    view: str,
    window: WindowParams,
    normalized: bool = True,
    recordings: Recordings | None = None,
    seeded_by: str = "",
    place: float = 0.0,
) -> Window:
    """Decode an utterance, augment all of it as the view says, and cut its window. Of a clean one no more is kept.

    view: its name, or that of a later window of it (`pipeline.core.windows`). normalized:
    whether the encoder normalizes its input. If not, doubtful samples are refused: `prepare` only warns of them where
    the checkpoint decides that. recordings: those of the view. seeded_by: seeds the draws of the view in place of the
    utterance's name. place: where the window begins among the places where it can, from 0 to below 1. A silent window
    that is not the first is not taken, but the first one.

    Returns the window (S,) and its number of valid samples. Raises InputError with the name of the utterance.
    """
    try:
        # Other views are applied to all of an utterance.
        keep = window.samples if view == CLEAN and not place else None
        heard = decode.read(clip.path, content=clip.content, keep=keep)
        if heard.warnings and not normalized:
            raise InputError(f"{clip.path}: {'; '.join(heard.warnings)} (the encoder does not normalize its input)")
        name, which = windows.parse(view)
        samples = views.apply(name, heard.samples, utterance=seeded_by or clip.utterance, recordings=recordings)
        start = which.start(len(samples), length=window.samples)
        start = start or int(place * max(len(samples) - window.samples + 1, 1))
        start = windowing.sounding(samples, start, length=window.samples)
        cut, valid = windowing.window(samples[start:], length=window.samples, pad=window.pad)
        if np.ptp(cut[:valid]) == 0:
            raise InputError(f"{clip.path}: the first {valid} samples at 16 kHz are silent; remove the trial")
        return cut, valid
    except InputError as error:
        raise InputError(f"utterance {clip.utterance}: {error}") from None


def load(
    executor: Executor,
    clips: Sequence[Clip],
    *,
    view: str,
    window: WindowParams,
    normalized: bool = True,
    recordings: Recordings | None = None,
) -> Loading:
    """Start loading utterances, `TOGETHER` at a time. Close what is returned.

    normalized, recordings: as for `load_window`.
    """
    load_one = partial(load_window, view=view, window=window, normalized=normalized, recordings=recordings)
    loading = Loading(executor, len(clips), window.samples)
    for first in range(0, len(clips), TOGETHER):
        some = dict(enumerate(clips[first : first + TOGETHER], start=first))
        loading.parts.append(executor.submit(_load_some, some, loading.memory, load_one))
    return loading


def _load_some(
    clips: Mapping[int, Clip], memory: WindowMemory, load_one: Callable[[Clip], Window]
) -> list[int | InputError]:
    """Put the windows of utterances (row -> clip) into memory: how many samples of each are valid, or an error."""
    found: list[int | InputError] = []
    for row, clip in clips.items():
        try:
            samples, valid = load_one(clip)
        except InputError as error:
            found.append(error)
            continue
        memory.put(row, samples)
        found.append(valid)
    return found


def loaded(loading: Loading, rows: slice) -> Windows:
    """Wait for some of the windows. Raises InputError with all utterances of the unit that cannot be used."""
    first, behind = rows.start // TOGETHER, -(-rows.stop // TOGETHER)
    whole = [one for part in range(first, behind) for one in loading.result(part)]
    wanted = whole[rows.start - first * TOGETHER :][: rows.stop - rows.start]
    valid = [one for one in wanted if not isinstance(one, InputError)]
    if len(valid) < len(wanted):
        every = [one for part in range(len(loading.parts)) for one in loading.result(part)]
        problems = [str(one) for one in every if isinstance(one, InputError)]
        raise InputError(f"{len(problems)} of {len(every)} utterances cannot be used:\n{listing(problems)}")
    return loading.windows[rows], np.array(valid)


@contextlib.contextmanager
def open_executor(*, heavy: bool) -> Iterator[Executor]:
    """An executor: threads, or processes for heavy work. Raises InputError where a process died.

    heavy: augmenting, or decoding for a GPU, which takes more windows than threads of one process can decode.
    """
    found = processes() if heavy else ThreadPoolExecutor(workers())
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
        return ThreadPoolExecutor(workers())
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the encoder's threads, locks and memory
    return ProcessPoolExecutor(workers(), mp_context=spawn, initializer=_follow_parent)


def _end_where_a_process_died(executor: Executor) -> None:
    """End all processes of an executor of which one died.

    Killed while it sent a result, a process leaves the executor to read the rest of it for ever, as the executor has
    the writing end open as well. So this end is closed when all writers are gone, and the futures fail as they should.
    """
    processes = getattr(executor, "_processes", None) or {}
    if any(process.exitcode is not None for process in list(processes.values())):
        for process in list(processes.values()):
            process.kill()
            process.join()
        executor._result_queue._writer.close()  # type: ignore[attr-defined]


def workers() -> int:
    """The number of threads or processes: one for each processor that this one may use, up to `WORKERS`."""
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
