"""Units of an extraction on Dask's workers: of a cluster whose scheduler runs, or a few on this machine.

A task is one shard in all views that it lacks, and the files of a shard are written by one worker alone. A worker that
dies takes nothing along but the shards that it was at, which others make again. Workers see the same folders as this
process, work in the same one, and each has a GPU of its own where there are some (dask-cuda sees to that on a
cluster). What Dask sends between them is pickled: keep its ports to yourself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline import units
from pipeline.contracts import Tap
from pipeline.errors import InputError
from pipeline.params import ExtractParams
from pipeline.store import Store
from pipeline.units import Advance, MakeEncoder, Unit
from pipeline.windows import Clip, Windows

if TYPE_CHECKING:
    from pipeline.xlsr import Encoder

HERE = "local:"
AHEAD = 2  # tasks for every thread of a worker: one that it makes, and one that waits
CONNECT_S = 30  # until there must be a scheduler, and a worker


@dataclass(frozen=True)
class Job:
    """What a worker needs to make units of one store. taps: all layers that any unit needs."""

    target: Store
    encoder: MakeEncoder
    taps: tuple[Tap, ...]
    params: ExtractParams


@dataclass(frozen=True)
class Task:
    """One shard: the units of it that are to be made, and its utterances."""

    units: tuple[Unit, ...]
    clips: tuple[Clip, ...]


# ---------------------------------------------------------------- here


def make(todo: Sequence[Unit], clips: Callable[[Unit], list[Clip]], *, job: Job, advance: Advance) -> list[str]:
    """Have units made; what is wrong with those that could not be made.

    Args:
        clips: gives the utterances of a unit's shard. advance: told how many more are done.

    Raises InputError where there is no scheduler or no worker, or none any more before all is done; where a worker
    cannot have the encoder or is in another file system; OSError where a disk is full: then nothing goes on.
    """
    from distributed import CancelledError, KilledWorker

    scheduler = job.params.scheduler
    assert scheduler is not None  # noqa: S101  # the parameters were checked
    by_shard = itertools.groupby(todo, key=lambda unit: unit.shard)
    shards = (tuple(group) for _, group in by_shard)
    problems: list[str] = []
    blamed: list[Task] = []
    with _client(scheduler) as client:
        # Dask blames the death of a worker on all tasks that it had: whose fault it was shows when they come one by one
        alone = ([task] for task in blamed)
        for tasks in itertools.chain([(Task(group, tuple(clips(group[0]))) for group in shards)], alone):
            for task, future in _ended(client, job, iter(tasks)):
                try:
                    problems += future.result()
                except CancelledError:
                    raise _gone(scheduler) from None
                except KilledWorker as error:
                    if task not in blamed:
                        blamed.append(task)
                        continue
                    problems.append(
                        f"shard {task.units[0].shard}: {error.allowed_failures + 1} workers died while they made it, the "
                        f"last one at {error.last_worker.address} (out of memory? their logs may say more)"
                    )
                except (InputError, OSError):
                    raise
                except Exception as error:  # anything that a worker raises
                    problems.append(f"shard {task.units[0].shard}: {type(error).__name__}: {error}")
                advance(sum(len(task.clips) for _ in task.units))
    return problems
