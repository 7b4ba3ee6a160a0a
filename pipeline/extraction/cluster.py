"""Makes the units of an extraction on Dask workers: those of a running cluster, or a few on this machine.

A task is one shard with all its missing views, so one worker alone writes the files of a shard. When a worker dies,
only the shards that it was making are lost, and another worker makes them again. Workers need the same folders as this
process and run in the same working folder. Where there are GPUs, each worker has its own (on a cluster dask-cuda
arranges that). Dask sends pickled objects, which can run code: keep its ports closed to others.
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
from pipeline.core.sections import ExtractParams
from pipeline.extraction import units
from pipeline.extraction.units import Advance, MakeEncoder, Unit
from pipeline.features.store import Store

if TYPE_CHECKING:
    from pipeline.encoder.xlsr import Encoder


HERE = "local:"
AHEAD = 2  # tasks sent for each thread of the workers: one that runs, and one that waits
CONNECT_S = 30  # seconds to wait for a scheduler, and for a worker


def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


CODE = _code()  # sha256 of the pipeline's files at the time this process started


@dataclass(frozen=True)
class ExtractionJob:
    """Everything that a worker needs to make units of one store. taps: all layers that any unit lacks."""

    target: Store
    encoder: MakeEncoder
    taps: tuple[Tap, ...]
    params: ExtractParams
    code: str = CODE


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
    with _client(str(job.params.scheduler)) as client:
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
            raise _gone(job) from None
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
        try:
            room = AHEAD * sum(client.nthreads().values()) - len(sent)
            for task in itertools.islice(tasks, max(room, 0 if sent else 1)):
                future = client.submit(_make, job, task, folder, pure=False)
                sent[future.key] = task
                future.add_done_callback(ended.put)
        except Exception as error:  # the kind depends on the moment at which the connection broke
            raise _gone(job) from error
        if not sent:
            return
        try:
            future = ended.get(timeout=CONNECT_S)
        except queue.Empty:
            _need_a_worker(client, str(job.params.scheduler))
            continue
        yield sent.pop(future.key), future


def _gone(job: ExtractionJob) -> InputError:
    return InputError(
        f"extract.scheduler: {job.params.scheduler} is gone; complete shards are kept: start it again and run the same "
        "command"
    )


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    """A client of the scheduler at an address, or of a new one on this machine with its workers. Their logs are hidden.

    Raises InputError where no scheduler answers, or it has no worker.
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
    """Wait up to `CONNECT_S` seconds for a scheduler. Raises InputError where none answers."""
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
    """Wait up to `CONNECT_S` seconds for a worker. Raises InputError where none comes."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError:
        raise InputError(
            f"extract.scheduler: expected workers at {scheduler}, got none in {CONNECT_S} seconds; start some in the "
            f"project's folder (`dask worker {scheduler} --nthreads 1`), and run the same command again: complete "
            "shards are kept"
        ) from None


def _workers_here(count: str) -> Any:
    """Workers on this machine. They share its processors, and its GPUs in turn where it has some."""
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
        # With a GPU a worker has two threads: one decodes and writes while the GPU computes for the other.
        options = {"nthreads": 2 if gpus else 1, "memory_limit": 0, "env": env, "silence_logs": logging.CRITICAL}
        workers[i] = {"cls": Nanny, "options": common | options}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


# ---------------------------------------------------------------- at a worker


def _make(job: ExtractionJob, task: Task, folder: Path) -> list[str]:
    """Make the units of a shard and return one message for each unit that failed. This runs in a worker."""
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
    # Dask makes again what a worker had made that died since, even where its end was told: it stays as it is.
    todo = [unit for unit in task.units if job.target.missing(unit.view, unit.layers, unit.shard)]
    if not todo:
        return []
    return units.make(
        [(unit, lambda: list(task.clips)) for unit in todo],
        target=job.target,
        model=cast("Encoder", _shared(job)),
        params=job.params,
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
