"""Units of an extraction on Dask's workers: of a cluster whose scheduler runs, or a few on this machine.

A task is one shard in all views that it lacks, and the files of a shard are written by one worker alone. A worker that
dies takes nothing along but the shard that it was at, which another one makes again. Workers see the same folders as
this process, work in the same one, and each has a GPU of its own where there are some (dask-cuda sees to that on a
cluster). What Dask sends between them is pickled: keep its ports to yourself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import units
from pipeline.contracts import Tap
from pipeline.errors import InputError
from pipeline.params import ExtractParams
from pipeline.store import Store
from pipeline.units import Advance, MakeEncoder, Unit
from pipeline.windows import Clip

if TYPE_CHECKING:
    from pipeline.xlsr import Encoder

HERE = "local:"
AHEAD = 4  # tasks for every worker that are sent ahead: what a task names is in memory here and at the scheduler
CONNECT_S = 30


@dataclass(frozen=True)
class Job:
    """What a worker needs to make units of one store. taps: all layers that any unit needs."""

    target: Store
    encoder: MakeEncoder
    taps: tuple[Tap, ...]
    params: ExtractParams


def make(todo: Sequence[Unit], clips: Callable[[Unit], list[Clip]], *, job: Job, advance: Advance) -> list[str]:
    """Have units made; what is wrong with those that could not be made.

    Args:
        clips: gives the utterances of a unit's shard. advance: told how many more are done.

    Raises InputError where there is no scheduler, or it is gone before all is done.
    """
    from distributed import CancelledError, as_completed

    shards = itertools.groupby(todo, key=lambda unit: unit.shard)
    tasks = ([(unit, clips(unit)) for unit in group] for _, group in shards)
    problems: list[str] = []
    assert job.params.scheduler is not None  # noqa: S101  # the parameters were checked
    with _client(job.params.scheduler) as client:
        folder, sizes = Path.cwd(), {}

        def send(task: list[tuple[Unit, list[Clip]]]) -> Any:
            future = client.submit(_make, job, task, folder, pure=False)
            sizes[future.key] = task
            return future

        ahead = AHEAD * max(1, len(client.scheduler_info()["workers"]))
        running = as_completed([send(task) for task in itertools.islice(tasks, ahead)], loop=client.loop)
        for future in running:
            for task in itertools.islice(tasks, 1):
                running.add(send(task))
            task = sizes.pop(future.key)
            try:
                problems += future.result()
            except CancelledError:
                raise InputError(
                    f"extract.scheduler: {job.params.scheduler} is gone; complete shards are kept: start it again and "
                    "run the same command"
                ) from None
            except Exception as error:  # anything that a worker raises, and that it died too often
                problems.append(f"shard {task[0][0].shard}: {type(error).__name__}: {error}")
            advance(sum(len(found) for _, found in task))
    return problems


def _make(job: Job, task: list[tuple[Unit, list[Clip]]], folder: Path) -> list[str]:
    """What a worker does."""
    os.chdir(folder)
    with_clips = [(unit, lambda found=found: found) for unit, found in task]
    return units.make(
        with_clips,
        target=job.target,
        model=_encoder(job),
        params=job.params,
        advance=lambda _count: None,
    )


_kept: dict[str, Any] = {}  # of a worker: the encoder that it used last


def _encoder(job: Job) -> Encoder:
    wanted = job.target.path, job.taps
    if _kept.get("for") != wanted:
        _kept.clear()  # before another one is loaded: two may not fit
        _kept.update({"encoder": job.encoder(job.taps), "for": wanted})
    encoder: Encoder = _kept["encoder"]
    return encoder


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    """A client of the scheduler at an address, or of one made here with its workers. Raises InputError for none."""
    from distributed import Client

    with contextlib.ExitStack() as stack:
        address: Any = scheduler
        if scheduler.startswith(HERE):
            address = stack.enter_context(_workers_here(scheduler.removeprefix(HERE)))
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT_S, set_as_default=False))
        except (OSError, ValueError) as error:
            raise InputError(
                f"extract.scheduler: expected the address of a Dask scheduler that runs (tcp://host:8786), or local:N "
                f"for N workers on this machine, got {scheduler!r}: {error or type(error).__name__}"
            ) from None
        yield client


def _workers_here(count: str) -> Any:
    """Workers on this machine, which share its processors; a GPU each in turn where there are some."""
    import torch
    from distributed import Nanny, Scheduler, SpecCluster

    if not count.isdecimal() or count == "0":
        raise InputError(f"extract.scheduler: expected local:N with N workers, such as local:2, got {HERE + count!r}")
    threads = max(1, torch.get_num_threads() // int(count))
    gpus = torch.cuda.device_count()
    workers = {}
    quiet = {"dashboard": False, "silence_logs": logging.ERROR}
    for i in range(int(count)):
        env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = str(i % gpus)
        workers[i] = {
            "cls": Nanny,
            "options": {"host": "127.0.0.1", "nthreads": 1, "memory_limit": 0, "env": env, **quiet},
        }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)
