"""Dask's workers: those of a scheduler that runs, or a few on this machine.

Workers need the same folders as the process that asks them, at the same places, and the same code. Where there are
GPUs, each worker of this machine has one, in turn; on a cluster dask-cuda arranges that. Dask sends pickled objects,
which can run code: keep its ports closed to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import platform
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError

HERE = "local:"
ANSWER_S = 3  # seconds after which a scheduler that has not answered is looked at
CONNECT_S = 30  # seconds to wait for a scheduler, and for a worker


def _code() -> str:
    digest = hashlib.sha256()
    project = Path(__file__).parents[2]
    for path in sorted(path for room in ("pipeline", "stages") for path in (project / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


CODE = _code()  # sha256 of the files of pipeline/ and stages/ at the time this process started


@dataclass(frozen=True)
class Cluster:
    """Where workers are found.

    scheduler: the address of a Dask scheduler that runs, or local:N for N workers on this machine. key: the parameter
    or option that says so, for messages. threads: of each worker on this machine, which is the number of tasks that it
    does at once.
    """

    scheduler: str
    key: str
    threads: int = 1

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the scheduler, or of a new one on this machine with its workers. Their logs are hidden.

        Raises InputError where no scheduler answers, or it has no worker.
        """
        from distributed import Client
        from distributed.utils import silence_logging_cmgr

        with contextlib.ExitStack() as stack:
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
            address: Any = self.scheduler
            if self.scheduler.startswith(HERE):
                address = stack.enter_context(self._workers_here())
            else:
                self._need_a_scheduler()
            client = stack.enter_context(Client(address, timeout=CONNECT_S, set_as_default=False))
            self.need_a_worker(client)
            yield client

    def need_a_worker(self, client: Any) -> None:
        """Wait up to `CONNECT_S` seconds for a worker. Raises InputError where none comes."""
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError:
            raise InputError(
                f"{self.key}: expected workers at {self.scheduler}, got none in {CONNECT_S} seconds; start some in the "
                f"project's folder (`dask worker {self.scheduler} --nthreads 1`), and run the same command again: what "
                "is complete is kept"
            ) from None

    def threads_of(self, client: Any) -> int:
        """The threads of all workers. Raises InputError where the scheduler is gone, after `ANSWER_S` seconds."""
        while True:
            try:
                return sum(client.nthreads(callback_timeout=ANSWER_S).values())
            except TimeoutError:
                if client.status != "running":  # it tries to connect again, for longer
                    raise self.gone() from None
            except Exception as error:  # the kind depends on the moment at which the connection broke
                raise self.gone() from error

    def gone(self) -> InputError:
        """The error for a scheduler that ended."""
        return InputError(
            f"{self.key}: {self.scheduler} is gone; what is complete is kept: start it again and run the same command"
        )

    def _need_a_scheduler(self) -> None:
        """Wait up to `CONNECT_S` seconds for a scheduler. Raises InputError where none answers."""
        from distributed import Security
        from distributed.comm import connect

        async def ask() -> None:
            security = Security().get_connection_args("client")
            (await connect(self.scheduler, timeout=CONNECT_S, **security)).abort()

        try:
            asyncio.run(ask())
        except (OSError, TypeError, ValueError) as error:  # a TypeError for tls:// without certificates
            raise InputError(
                f"{self.key}: expected the address of a Dask scheduler that runs (tcp://host:8786), or local:N for N "
                f"workers on this machine, got {self.scheduler!r}: {error or type(error).__name__}"
            ) from None

    def _workers_here(self) -> Any:
        """Workers on this machine. They share its processors, and its GPUs in turn where it has some."""
        import torch
        from distributed import Nanny, Scheduler, SpecCluster

        count = self.scheduler.removeprefix(HERE)
        if not count.isdecimal() or int(count) == 0:
            raise InputError(f"{self.key}: expected local:N with N workers, such as local:2, got {self.scheduler!r}")
        share = max(1, torch.get_num_threads() // int(count))
        gpus = torch.cuda.device_count()
        given = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        common = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}  # a free port, not 8787
        workers = {}
        for i in range(int(count)):
            env = {name: str(share) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = given[i % gpus]
            options = {"nthreads": self.threads, "memory_limit": 0, "env": env, "silence_logs": logging.CRITICAL}
            workers[i] = {"cls": Nanny, "options": common | options | {"preload": [__name__]}}
        scheduler = {"cls": Scheduler, "options": common | {"port": 0}}
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def dask_setup(_worker: Any) -> None:
    """Leave Ctrl-C to the process that started this worker, and ends it. Dask calls this in workers of `local:N`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def check_code(code: str) -> None:
    """Raise InputError at a worker that has loaded other code than the process that asks it. code: `CODE` of that."""
    if code != CODE:
        raise InputError(
            f"the worker on {platform.node()} runs other code than this command; restart the workers with this version "
            "of bonafide, and run the same command again"
        )


def no_folder(folder: Path, error: OSError) -> InputError:
    """The error for a worker that does not have the folder in which it is to work."""
    return InputError(
        f"the worker on {platform.node()} cannot go to {folder} ({error.strerror}); all workers need the file systems "
        "of the machine that runs this command"
    )
