"""Makes the units of an extraction on Dask workers: those of a running cluster, or a few on this machine.

A task is one shard with all its missing views, so one worker alone writes the files of a shard. When a worker dies,
only the shards that it was making are lost, and another worker makes them again. Workers run in the working folder of
this process; `pipeline.extraction.dask_workers` says what else they need.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.audio.loader import Clip
from pipeline.audio.recordings import Recordings
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.sections import ExtractParams
from pipeline.extraction import dask_workers, units
from pipeline.extraction.dask_workers import Cluster
from pipeline.extraction.units import Advance, MakeEncoder, Unit
from pipeline.features.store import Store

if TYPE_CHECKING:
    from pipeline.encoder.xlsr import Encoder


AHEAD = 2  # tasks sent for each thread of the workers: one that runs, and one that waits


@dataclass(frozen=True)
class ExtractionJob:
    """Everything that a worker needs to make units of one store.

    taps: all layers that any unit lacks. recordings: those of each view that takes sound from some.
    """

    target: Store
    encoder: MakeEncoder
    taps: tuple[Tap, ...]
    params: ExtractParams
    recordings: Mapping[str, Recordings] = field(default_factory=dict)
    code: str = dask_workers.CODE


@dataclass(frozen=True)
class Task:
    """The units of one shard that are missing, and the utterances of the shard."""

    units: tuple[Unit, ...]
    clips: tuple[Clip, ...]

    @property
    def shard(self) -> int:
        """The number of the shard."""
        return self.units[0].shard


Problem = tuple[int, str]  # a shard, and a message about it


def make(
    todo: Sequence[Unit], clips: Callable[[Unit], list[Clip]], *, job: ExtractionJob, advance: Advance
) -> list[str]:
    """Make units on the workers and return one message for each shard that failed, in the order of the shards.

    Args:
        clips: gives the utterances of a unit's shard. advance: called with the number of utterances that were computed.

    Raises InputError where there is no scheduler or worker, or all of them went away, and where a worker cannot use the
    encoder or the folders; OSError where the disk is full. These stop the whole work.
    """
    by_shard = (tuple(group) for _, group in itertools.groupby(todo, key=lambda unit: unit.shard))
    tasks = (Task(group, tuple(clips(group[0]))) for group in by_shard)
    with _cluster(job.params).client() as client:
        problems, killed = _attempt(client, job, tasks, advance=advance)
        # Dask counts the death of a worker against all tasks that it held. Making them one by one finds the real cause.
        for task in killed:
            more, again = _attempt(client, job, iter([task]), advance=advance)
            problems += more
            problems += [
                (
                    task.shard,
                    f"shard {task.shard}: every worker died that made it (out of memory? see what they logged)",
                )
                for task in again
            ]
    return [text for _, text in sorted(problems, key=lambda problem: problem[0])]


def _attempt(
    client: Any, job: ExtractionJob, tasks: Iterator[Task], *, advance: Advance
) -> tuple[list[Problem], list[Task]]:
    """Make tasks; return the messages about failed ones, and the tasks whose workers died."""
    from distributed import CancelledError, KilledWorker

    problems: list[Problem] = []
    killed: list[Task] = []
    for task, future in _ended(client, job, tasks):
        try:
            problems += [(task.shard, text) for text in future.result()]
        except KilledWorker:
            killed.append(task)
            continue
        except CancelledError:
            raise _cluster(job.params).gone() from None
        except (InputError, OSError):
            raise
        except Exception as error:  # a worker may raise anything
            problems.append((task.shard, f"shard {task.shard}: {type(error).__name__}: {error}"))
        advance(len(task.clips) * len(task.units))
    return problems, killed


def _ended(client: Any, job: ExtractionJob, tasks: Iterator[Task]) -> Iterator[tuple[Task, Any]]:
    """Yield tasks with their futures as they end. Only a few tasks wait at the workers, as workers come and go."""
    folder = Path.cwd()
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sent: dict[str, Task] = {}
    while True:
        room = AHEAD * _cluster(job.params).threads_of(client) - len(sent)
        try:
            for task in itertools.islice(tasks, max(room, 0 if sent else 1)):
                future = client.submit(_make, job, task, folder, pure=False)
                sent[future.key] = task
                future.add_done_callback(ended.put)
        except Exception as error:  # the kind depends on the moment at which the connection broke
            raise _cluster(job.params).gone() from error
        if not sent:
            return
        try:
            future = ended.get(timeout=dask_workers.CONNECT_S)
        except queue.Empty:
            _cluster(job.params).need_a_worker(client)
            continue
        yield sent.pop(future.key), future


def _cluster(params: ExtractParams) -> Cluster:
    """Where the workers are. With a GPU one has two threads: one decodes and writes while it computes for the other."""
    import torch

    return Cluster(str(params.scheduler), "extract.scheduler", threads=2 if torch.cuda.is_available() else 1)


# ---------------------------------------------------------------- at a worker


def _make(job: ExtractionJob, task: Task, folder: Path) -> list[str]:
    """Make the units of a shard and return one message for each unit that failed. This runs in a worker."""
    dask_workers.check_code(job.code)
    try:
        os.chdir(folder)
    except OSError as error:
        raise dask_workers.no_folder(folder, error) from None
    # Dask makes again what a worker had made that died since, even where its end was told: it stays as it is.
    todo = [unit for unit in task.units if job.target.missing(unit.view, unit.layers, unit.shard)]
    if not todo:
        return []
    return units.make(
        [(unit, lambda: list(task.clips)) for unit in todo],
        target=job.target,
        model=cast("Encoder", _shared(job)),
        params=job.params,
        recordings=job.recordings,
        advance=lambda _count: None,
    )


class _Shared:
    """An encoder that the threads of a worker use one at a time, because it stores the outputs of its layers."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()

    def __call__(self, *windows: Any) -> Any:
        with self._lock:
            return self._encoder(*windows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


_kept: list[tuple[tuple[Any, ...], _Shared]] = []  # in a worker: the encoder that it used last, and its identity
_keeping = threading.Lock()


def _shared(job: ExtractionJob) -> _Shared:
    """The encoder of a job. The worker keeps it for the next task."""
    wanted = (job.target.path, job.taps, job.encoder)
    with _keeping:
        if not _kept or _kept[0][0] != wanted:
            _kept.clear()  # before another one is loaded, because two may not fit into memory
            _kept.append((wanted, _Shared(job.encoder(job.taps))))
        return _kept[0][1]
