"""Units of an extraction on Dask's workers: of a cluster whose scheduler runs, or a few on this machine.

A task is one shard in all views that it lacks, and the files of a shard are written by one worker alone. A worker that
dies takes nothing along but the shards that it was at, which others make again. Workers see the same folders as this
process, work in the same one, and each has a GPU of its own where there are some (dask-cuda sees to that on a
cluster). What Dask sends between them is pickled: keep its ports to yourself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.audio.loader import Clip
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.params import ExtractParams
from pipeline.extraction import units
from pipeline.extraction.units import Advance, MakeEncoder, Unit
from pipeline.features.store import Store

if TYPE_CHECKING:
    from pipeline.encoder.xlsr import Encoder


HERE = "local:"
AHEAD = 2  # tasks for every thread of the workers: one that it makes, and one that waits
CONNECT_S = 30  # until there must be a scheduler, and a worker


def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


CODE = _code()  # sha256 of the pipeline's modules when this process loaded them


@dataclass(frozen=True)
class Job:
    """What a worker needs to make units of one store. taps: all layers that any unit needs."""

    target: Store
    encoder: MakeEncoder
    taps: tuple[Tap, ...]
    params: ExtractParams
    code: str = CODE


@dataclass(frozen=True)
class Task:
    """One shard: the units of it that are to be made, and its utterances."""

    units: tuple[Unit, ...]
    clips: tuple[Clip, ...]

    @property
    def shard(self) -> int:
        """Which one."""
        return self.units[0].shard


Problem = tuple[int, str]  # a shard, and what is wrong with it


def make(todo: Sequence[Unit], clips: Callable[[Unit], list[Clip]], *, job: Job, advance: Advance) -> list[str]:
    """Have units made; what is wrong with those that could not be made, shard by shard.

    Args:
        clips: gives the utterances of a unit's shard. advance: told how many more are done.

    Raises InputError where there is no scheduler or no worker, or none any more before all is done, and where a worker
    cannot get at the encoder or the folders; OSError where the disk is full: then nothing goes on.
    """
    by_shard = (tuple(group) for _, group in itertools.groupby(todo, key=lambda unit: unit.shard))
    tasks = (Task(group, tuple(clips(group[0]))) for group in by_shard)
    with _client(str(job.params.scheduler)) as client:
        problems, killed = _attempt(client, job, tasks, advance=advance)
        # Dask blames the death of a worker on all tasks that it had been sent; whose fault it is shows one by one.
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


def _attempt(client: Any, job: Job, tasks: Iterator[Task], *, advance: Advance) -> tuple[list[Problem], list[Task]]:
    """Have tasks made; what is wrong with some, and those at which workers died."""
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
            raise _gone(job) from None
        except (InputError, OSError):
            raise
        except Exception as error:  # whatever a worker raises
            problems.append((task.shard, f"shard {task.shard}: {type(error).__name__}: {error}"))
        advance(len(task.clips) * len(task.units))
    return problems, killed


def _ended(client: Any, job: Job, tasks: Iterator[Task]) -> Iterator[tuple[Task, Any]]:
    """Tasks and their futures as they come to an end; no more are sent than workers soon need, who come and go."""
    folder = Path.cwd()
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sent: dict[str, Task] = {}
    while True:
        try:
            room = AHEAD * sum(client.nthreads().values()) - len(sent)
            for task in itertools.islice(tasks, max(room, 0 if sent else 1)):
                future = client.submit(_make, job, task, folder, pure=False)
                sent[future.key] = task
                future.add_done_callback(ended.put)
        except Exception as error:  # of many kinds, by when the connection broke
            raise _gone(job) from error
        if not sent:
            return
        try:
            future = ended.get(timeout=CONNECT_S)
        except queue.Empty:
            _need_a_worker(client, str(job.params.scheduler))
            continue
        yield sent.pop(future.key), future


def _gone(job: Job) -> InputError:
    return InputError(
        f"extract.scheduler: {job.params.scheduler} is gone; complete shards are kept: start it again and run the same "
        "command"
    )


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    """A client of the scheduler at an address, or of one made here with its workers; what they log is kept quiet here.

    Raises InputError where there is none, or it has no worker.
    """
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    with contextlib.ExitStack() as stack:
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
        address: Any = scheduler
        if scheduler.startswith(HERE):
            address = stack.enter_context(_workers_here(scheduler.removeprefix(HERE)))
        else:
            _need_a_scheduler(scheduler)
        client = stack.enter_context(Client(address, timeout=CONNECT_S, set_as_default=False))
        _need_a_worker(client, scheduler)
        yield client


def _need_a_scheduler(address: str) -> None:
    """Wait for a scheduler, for a while. Raises InputError where none answers."""
    from distributed import Security
    from distributed.comm import connect

    async def ask() -> None:
        (await connect(address, timeout=CONNECT_S, **Security().get_connection_args("client"))).abort()

    try:
        asyncio.run(ask())
    except (OSError, TypeError, ValueError) as error:  # a TypeError for tls:// without certificates
        raise InputError(
            "extract.scheduler: expected the address of a Dask scheduler that runs (tcp://host:8786), or local:N for N "
            f"workers on this machine, got {address!r}: {error or type(error).__name__}"
        ) from None


def _need_a_worker(client: Any, scheduler: str) -> None:
    """Wait for a worker, for a while. Raises InputError where none comes."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError:
        raise InputError(
            f"extract.scheduler: expected workers at {scheduler}, got none in {CONNECT_S} seconds; start some in the "
            f"project's folder (`dask worker {scheduler} --nthreads 1`), and run the same command again: complete "
            "shards are kept"
        ) from None


def _workers_here(count: str) -> Any:
    """Workers on this machine, which share its processors; a GPU each in turn where there are some."""
    import torch
    from distributed import Nanny, Scheduler, SpecCluster

    if not count.isdecimal() or int(count) == 0:
        raise InputError(f"extract.scheduler: expected local:N with N workers, such as local:2, got {HERE + count!r}")
    threads = max(1, torch.get_num_threads() // int(count))
    gpus = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    common = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}  # any free port, not 8787
    workers = {}
    for i in range(int(count)):
        env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = given[i % gpus]
        # with a GPU, one thread decodes and writes while it computes for the other
        options = {"nthreads": 2 if gpus else 1, "memory_limit": 0, "env": env, "silence_logs": logging.CRITICAL}
        workers[i] = {"cls": Nanny, "options": common | options}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


# ---------------------------------------------------------------- at a worker


def _make(job: Job, task: Task, folder: Path) -> list[str]:
    """Make the units of a shard; what is wrong with those that could not be made."""
    if job.code != CODE:
        raise InputError(
            f"the worker on {platform.node()} runs other code than the extraction; restart the workers with this "
            "version of bonafide, and run the same command again"
        )
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"the worker on {platform.node()} cannot go to {folder} ({error.strerror}); all workers need the file "
            "systems of the machine that runs the extraction"
        ) from None
    return units.make(
        [(unit, lambda: list(task.clips)) for unit in task.units],
        target=job.target,
        model=cast("Encoder", _shared(job)),
        params=job.params,
        advance=lambda _count: None,
    )


class _Shared:
    """An encoder that computes for one thread of a worker at a time; it keeps what its layers gave."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()
        self.parameters = encoder.parameters

    def __call__(self, *windows: Any) -> Any:
        with self._lock:
            return self._encoder(*windows)


_kept: list[tuple[tuple[Any, ...], _Shared]] = []  # of a worker: the encoder that it used last, and for what
_keeping = threading.Lock()


def _shared(job: Job) -> _Shared:
    """The encoder of a job, which the worker keeps for the next task."""
    wanted = (job.target.path, job.taps, job.encoder)
    with _keeping:
        if not _kept or _kept[0][0] != wanted:
            _kept.clear()  # before another one is loaded: two may not fit
            _kept.append((wanted, _Shared(job.encoder(job.taps))))
        return _kept[0][1]
