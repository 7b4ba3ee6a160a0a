"""Stages on Dask's workers: those of a running cluster, or a few on this machine.

A worker runs stages as a sweep on one machine does: in a process of their own, in the project's folder, which all
machines have at the same place. A shared disk may show an old file for a while. So the sweep sends the digests of all
inputs, and the worker waits until its own are the same. The worker notes the digests of all outputs, and the sweep
tells DVC of them once its own are the same.

The worker leaves a note, a file, for each stage that ended. So the sweep need not wait for the other trainings of the
same process. And where a worker dies, Dask asks another one, which runs only the stages without a note.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.extraction import dask_workers
from pipeline.extraction.dask_workers import Cluster
from pipeline.sweep import starting
from pipeline.sweep.starting import Assignment

PATIENCE_S = 60  # for a shared disk to show a new file; clients of NFS ask for changes once a minute or more often
LOOK_S = 1  # seconds between two looks at what may have changed
PACKAGES = ("numpy", "scipy", "torch")  # numbers depend on them


@dataclass(frozen=True)
class Note:
    """How a stage ended at a worker. wrote: path -> digest, of its outputs and of its log."""

    code: int
    wrote: Mapping[Path, str]


@dataclass(frozen=True)
class Request:
    """Stages that a worker is to run, and the facts that it compares with its own.

    notes: a folder for notes on these stages alone. reads: path -> digest. writes: the paths of each stage. modules:
    those that stages of cells run.
    """

    assignment: Assignment
    notes: Path
    reads: Mapping[Path, str]
    writes: tuple[tuple[Path, ...], ...]
    modules: frozenset[str]
    code: str
    versions: str

    def note(self, number: int) -> Note | None:
        """The note on the stage of this number; None where it has not ended."""
        try:
            found = json.loads(self._file(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Note(found["code"], {Path(path): digest for path, digest in found["wrote"].items()})

    def leave_note(self, number: int, code: int) -> None:
        """Note how the stage of this number ended. One that failed need not have made anything."""
        paths = [self.assignment.logs[number], *(() if code else self.writes[number])]
        wrote = {str(path): digest for path, digest in digests(paths).items()}
        write_text(self._file(number), json.dumps({"code": code, "wrote": wrote}))

    def _file(self, number: int) -> Path:
        return self.notes / f"{number}.json"


class Workers:
    """The workers that a sweep sends stages to. Nobody is asked before the first stage is sent.

    logs: a folder of the project, for notes.
    """

    def __init__(self, cluster: Cluster, logs: Path) -> None:
        self.cluster = cluster
        self._notes = logs / uuid.uuid4().hex
        self._stack = contextlib.ExitStack()
        self._client: Any = None
        self._threads, self._asked, self._seen = 1, 0.0, 0.0  # when they were counted, and when there were any

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()
        shutil.rmtree(self._notes, ignore_errors=True)

    def need(self) -> None:
        """Find the scheduler, and wait for a worker. Raises InputError where there is none."""
        if self._client is None:
            self._client = self._stack.enter_context(self.cluster.client())
        elif not self.threads():
            self.cluster.need_a_worker(self._client)
        else:
            return
        self._asked = 0.0

    def threads(self) -> int:
        """The threads of all workers, which is the number of processes that they run at once. They are counted anew
        after a second. 1 before the first stage is sent. Raises InputError where the scheduler is gone.
        """
        now = time.monotonic()
        if self._client is not None and now - self._asked > LOOK_S:
            self._threads = self.cluster.threads_of(self._client)
            self._asked = now
            self._seen = now if self._threads else self._seen
        return self._threads

    def are_expected(self) -> None:
        """Raise InputError where there has been no worker for so long that none is to be expected."""
        if not self.threads() and time.monotonic() - self._seen > dask_workers.CONNECT_S:
            self.cluster.need_a_worker(self._client)

    def send(
        self,
        assignment: Assignment,
        *,
        reads: Iterable[Path],
        writes: Sequence[Iterable[Path]],
        modules: Collection[str],
    ) -> Sent:
        """Send stages to a worker. reads: what they depend on. writes: what each makes."""
        request = Request(
            assignment,
            notes=self._notes / uuid.uuid4().hex,
            reads=digests(reads),
            writes=tuple(map(tuple, writes)),
            modules=frozenset(modules),
            code=dask_workers.CODE,
            versions=versions(),
        )
        try:
            future = self._client.submit(run, request, pure=False)
        except Exception as error:  # the kind depends on the moment at which the connection broke
            raise self.cluster.gone() from error
        return Sent(request, future, self)


class Sent:
    """Stages at a worker. A sweep treats them as `starting.Work`."""

    def __init__(self, request: Request, future: Any, workers: Workers) -> None:
        self._request, self._future, self._workers = request, future, workers
        self._until: float | None = None  # patience with the shared disk ends then
        self._ended, sender = Pipe(duplex=False)
        future.add_done_callback(lambda _: sender.close())

    @property
    def news(self) -> list[Connection]:
        """What to wait for: the end of all stages."""
        return [] if self._future.done() else [self._ended]

    def code(self, number: int) -> int | None:
        """The exit code of the stage of this number, once its outputs and its log are seen here; None until then.

        Raises InputError where no other stage could run either: no scheduler, no worker, other code there.
        """
        note = self._request.note(number)
        late = note.wrote.items() - digests(note.wrote).items() if note else set()
        if note and not late:
            return note.code
        if not self._future.done():
            self._workers.are_expected()
            return None
        self._until = self._until or time.monotonic() + PATIENCE_S
        if problem := None if note else self._problem():
            return self._fail(number, problem)
        if time.monotonic() < self._until:
            return None
        missing = min(path for path, _ in late) if late else self._request.notes
        return self._fail(
            number,
            f"a worker ran it, but {missing} is not here as it was written there, after {PATIENCE_S} seconds; all "
            "workers need the file systems of this machine",
        )

    def stop(self) -> None:
        """Ask the worker to end the stages."""
        with contextlib.suppress(Exception):  # where the scheduler is gone, they end by themselves
            self._future.cancel()

    def end(self, _seconds: float) -> None:
        """The worker ends the stages; nothing is left to do here."""

    def _problem(self) -> str | None:
        """Why the worker did not run the stages; None where it did."""
        from distributed import CancelledError, KilledWorker

        try:
            self._future.result()
        except KilledWorker:
            return "every worker died that ran it (out of memory? see what they logged)"
        except CancelledError:
            raise self._workers.cluster.gone() from None
        except InputError:
            raise
        except Exception as error:  # a worker may raise anything
            return f"{type(error).__name__}: {error}"
        return None

    def _fail(self, number: int, message: str) -> int:
        """Say in the log of a stage why it failed; the exit code."""
        write_text(self._request.assignment.logs[number], f"error: {message}\n")
        return 2


def versions() -> str:
    """Those of Python, and of packages on which numbers depend."""
    found = {name: version(name).partition("+")[0] for name in PACKAGES}
    return ", ".join(f"{name} {text}" for name, text in ({"Python": platform.python_version()} | found).items())


def digests(paths: Iterable[Path]) -> dict[Path, str]:
    """For each file or folder the sha256 of all that is in it, without what Python compiled; empty where nothing is."""
    paths = list(paths)
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):
            any(folder.iterdir())  # a client of NFS then asks its server which files are new
    return {path: _digest(path) for path in paths}


def _digest(path: Path) -> str:
    try:
        if not path.is_dir():
            facts = path.stat()
            return _digest_of_file(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        lines = [f"{file.relative_to(path)}\0{_digest(file)}\n" for file in files]
    except OSError:
        return ""
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=10_000)
def _digest_of_file(path: Path, *_facts: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- at a worker


def run(request: Request) -> None:
    """Run stages in a process of this worker, but for those that ended at another one.

    The stages end where the sweep has ended or this worker ends; then Dask asks another worker. Raises InputError where
    this worker differs from the sweep.
    """
    dask_workers.check_code(request.code)
    if request.versions != versions():
        raise InputError(
            f"the worker on {platform.node()} has {versions()}, the sweep has {request.versions}; start workers in its "
            "environment, and run the same command again"
        )
    check = _check_of_this_task()
    _wait_for_inputs(request, check)
    left = [number for number in range(len(request.writes)) if request.note(number) is None]
    if not left:
        return
    multiprocessing.current_process().daemon = False  # Dask's workers are daemons, which may start no process
    starting.prepare(set(request.modules))
    work = request.assignment.only(left).begin()
    running = dict(enumerate(left))
    try:
        while running:
            wait(work.news, timeout=LOOK_S)
            for place, number in list(running.items()):
                if (code := work.code(place)) is not None:
                    request.leave_note(number, code)
                    del running[place]
            check()
    finally:
        work.stop()
        work.end(seconds=10)


def _check_of_this_task() -> Callable[[], None]:
    """A function that raises where nobody waits for the task of this thread any more, or its worker ends."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def check() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing" or worker.status.name not in ("running", "paused"):
            raise Reschedule

    return check


def _wait_for_inputs(request: Request, check: Callable[[], None]) -> None:
    """Wait until all that stages read is here as the sweep sees it. check: see `_check_of_this_task`.

    Raises InputError where it is not here after some time, or the project's folder is not.
    """
    try:
        request.assignment.root.stat()
    except OSError as error:
        raise dask_workers.no_folder(request.assignment.root, error) from None
    until = time.monotonic() + PATIENCE_S
    while others := [path for path, digest in digests(request.reads).items() if digest != request.reads[path]]:
        check()
        if time.monotonic() > until:
            raise InputError(
                f"the worker on {platform.node()} sees another {min(others)} than the sweep, after {PATIENCE_S} "
                "seconds; all workers need the file systems of the machine that runs this command"
            )
        time.sleep(LOOK_S)
