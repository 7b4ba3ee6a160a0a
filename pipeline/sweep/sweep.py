"""Bring stages up to date, several at once. A stage that fails stops what depends on it, and nothing else."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from pipeline.core.errors import InputError
from pipeline.sweep import starting
from pipeline.sweep.cluster import Sent, Workers
from pipeline.sweep.starting import Assignment, Work
from pipeline.sweep.tracked import State

CELLS = ("train", "score", "evaluate", "evaluate_rescored", "rescore")  # kinds of stages that workers run, too
BESIDE = (*CELLS, "layers", "embed", "analyse")  # kinds that run side by side
LATE = ("score", "evaluate", "evaluate_rescored", "rescore", "embed", "analyse")  # kinds that come after a training
EARLY = ("prepare",)  # kinds that need nothing that takes long to import
TOGETHER = 8  # trainings in one process at most: what each has learnt is in its memory
LOGS = Path(".dvc/tmp/sweep")
SHOWN_LINES = 15  # of a stage that ends without a message


class Steps(Protocol):
    """Stages to go over, see `tracked.Flow`: all that a sweep asks of them."""

    @property
    def root(self) -> Path:
        """The project's folder."""

    @property
    def steps(self) -> list[str]:
        """Names of the stages, each after those that it needs."""

    @property
    def needs(self) -> Mapping[str, set[str]]:
        """For each stage those that must be done before it."""

    def command(self, name: str) -> str:
        """What a stage runs."""

    def reads(self, name: str) -> list[Path]:
        """The files and folders that a stage depends on."""

    def writes(self, name: str) -> list[Path]:
        """The files and folders that a stage makes."""

    def look(self, name: str) -> State:
        """What is to be done with a stage."""

    def keep(self, name: str) -> None:
        """Take note that a stage ran."""

    def busy(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep others from what a stage reads and writes."""

    def write_locks(self) -> None:
        """Write down all that was noted."""


@dataclass
class Outcome:
    """What became of each stage of the flow."""

    current: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # with what each said
    left_out: list[str] = field(default_factory=list)  # as what they need failed


@dataclass(frozen=True)
class Running:
    """A stage at work, the one of this number in its process."""

    work: Work | Sent
    number: int
    log: Path
    busy: contextlib.ExitStack


def kind_of(name: str) -> str:
    """The kind of a stage by its name: of `flow/score/dvc.yaml:score@a-b` it is `score`."""
    return name.rpartition(":")[2].partition("@")[0]


def log_of(name: str) -> Path:
    """Where lies what a stage says while it runs, and if it failed; below the project's folder."""
    return LOGS / f"{re.sub('[^A-Za-z0-9_.@-]', '_', name)}.txt"


def is_cell(name: str) -> bool:
    """Whether a stage is the last one of a cell of the grid."""
    return kind_of(name) == "evaluate"


class Sweep:
    """A sweep over a flow, with at most `jobs` stages at once.

    Trainings that read the same features run together in one process where `together` is set. They are shared out among
    the jobs, the last ones evenly. Stages of a cell run side by side, and analyses of layers and runs beside them. Each
    other stage, such as extraction, uses all processors or much memory by itself, so it runs alone.

    workers: run the stages of cells in place of this machine; jobs is then the most that run at once on all of them.
    leave: stages that are left as they are; none that needs them waits for them. code: that of the project when the
    first of several sweeps of this process began, see `starting.code_of`.
    """

    def __init__(
        self,
        flow: Steps,
        *,
        jobs: int,
        tell: Callable[[Sweep], None],
        together: bool = True,
        workers: Workers | None = None,
        leave: Collection[str] = (),
        code: Mapping[Path, int] | None = None,
    ) -> None:
        self.flow, self.jobs, self.tell, self.together = flow, jobs, tell, together
        self.outcome = Outcome()
        self.running: dict[str, Running] = {}
        self.workers, self.leave = workers, leave
        self.waiting = [name for name in flow.steps if name not in leave]
        self._done: set[str] = set(leave)
        self._code = code or starting.code_of(flow.root)
        self._is_prepared = self._has_begun = False
        self._shared = 0  # processes that were given a share of the trainings since others were started

    def run(self) -> Outcome:
        """Run all stages that can run. Whatever ends this, the locks of the stages that ended well are written."""
        (self.flow.root / LOGS).mkdir(parents=True, exist_ok=True)
        try:
            while self.waiting or self.running:
                self._start_what_can()
                self.tell(self)
                self._wait()
        except BaseException:
            self._stop()
            raise
        finally:
            self.flow.write_locks()
        return self.outcome

    def _prepare(self, names: Iterable[str]) -> None:
        """Have the process of the forks import what these stages run, while others are looked at; only the first time.

        What stages that run once would import in vain takes longer than all the rest.
        """
        if not self._is_prepared:
            self._is_prepared = True
            starting.prepare(self._modules(names))

    def _modules(self, names: Iterable[str]) -> set[str]:
        """The modules that stages run."""
        found = {starting.stage_of(self.flow.command(name)) for name in names}
        return {module for module in found if module}

    def _start_what_can(self) -> None:
        """Start stages whose needs are met: first those that bring a cell to its end, else in DVC's order.

        The last trainings begin before them, as short stages then fill the time in which a processor has none.
        """
        self._shared = 0
        trainings = sum(kind_of(name) == "train" for name in self.waiting)
        first = ("train",) if trainings <= self._most() * (TOGETHER if self.together else 1) else LATE
        for name in sorted(self.waiting, key=lambda name: kind_of(name) not in first):
            if self.running and self._free() < 1:
                return
            if name not in self.waiting:  # it runs together with one before it
                continue
            if self.flow.needs[name] & (self.outcome.failed.keys() | set(self.outcome.left_out)):
                self.waiting.remove(name)
                self.outcome.left_out.append(name)
            elif self.flow.needs[name] <= self._done and self._has_room_for(name):
                self._begin(name)

    def _most(self) -> int:
        """How many processes may run at once."""
        return self.jobs if self.workers is None else min(self.jobs, self.workers.threads())

    def _free(self) -> int:
        """How many processes more may run."""
        return self._most() - self._processes()

    def _processes(self) -> int:
        """How many processes run."""
        return len({id(found.work) for found in self.running.values()})

    def _has_room_for(self, name: str) -> bool:
        if kind_of(name) in BESIDE:
            return all(kind_of(other) in BESIDE for other in self.running)
        return not self.running

    def _begin(self, name: str) -> None:
        """Look at a stage, and start it if it is out of date, with others that read the same."""
        if kind_of(name) in CELLS:
            self._prepare(other for other in self.flow.steps if kind_of(other) in CELLS)
        if self._is_stale(name):
            if self.workers and kind_of(name) in CELLS:
                self.workers.need()
            self._start([name, *self._companions(name)])

    def _companions(self, name: str) -> list[str]:
        """Trainings that are out of date and read the same features as this one: its share of them.

        The share is that of one process of those that are free and those that will be. Where there are two, it is every
        other training, as neighbours are of one backend and so take equally long. The rest waits.
        """
        same = starting.reads(self.flow.command(name)) if self.together else None
        if same is None or not self._is_warm():
            return []
        ready = [
            other
            for other in self.waiting
            if self.flow.needs[other] <= self._done and starting.reads(self.flow.command(other)) == same
        ]
        stale = [other for other in ready if self._is_stale(other)]
        sharers = max(1, self._most() - self._shared)  # workers may have gone
        self._shared += 1
        share = min(TOGETHER, math.ceil((1 + len(stale)) / sharers))
        chosen = stale[sharers - 1 :: sharers][: share - 1]
        self.waiting = [*(other for other in stale if other not in chosen), *self.waiting]
        return chosen

    def _is_warm(self) -> bool:
        """Whether the code is as it was imported."""
        return starting.code_of(self.flow.root) == self._code

    def _is_stale(self, name: str) -> bool:
        """Look at a stage, and take note of it where there is nothing to run."""
        self.waiting.remove(name)
        try:
            state = self.flow.look(name)
        except InputError as error:
            (self.flow.root / log_of(name)).write_text(f"error: {error}\n", encoding="utf-8")
            self.outcome.failed[name] = str(error)
            return False
        if state is State.STALE:
            return True
        (self.outcome.current if state is State.CURRENT else self.outcome.restored).append(name)
        self._done.add(name)
        return False

    def _start(self, names: list[str]) -> None:
        """Start a stage, or several in one process."""
        done = self._done - set(self.leave)
        self._prepare(name for name in self.flow.steps if name not in done)
        assignment = Assignment(
            commands=tuple(self.flow.command(name) for name in names),
            logs=tuple(self.flow.root / log_of(name) for name in names),
            names=tuple(names),
            root=self.flow.root,
            warm=self._is_warm(),
            early=kind_of(names[0]) in EARLY and not self._has_begun,
        )
        self._has_begun = True
        with contextlib.ExitStack() as stack:
            busy = [stack.enter_context(contextlib.ExitStack()) for _ in names]
            for name, held in zip(names, busy, strict=True):
                held.enter_context(self.flow.busy(name))
            if self.workers and kind_of(names[0]) in CELLS:
                work: Work | Sent = self._send(self.workers, assignment)
            else:
                work = assignment.begin()
            for number, name in enumerate(names):
                self.running[name] = Running(work, number, assignment.logs[number], busy[number])
            stack.pop_all()

    def _send(self, workers: Workers, assignment: Assignment) -> Sent:
        """Send stages to a worker, with what they read and write."""
        reads = {path for name in assignment.names for path in self.flow.reads(name)}
        writes = [self.flow.writes(name) for name in assignment.names]
        cells = [name for name in self.flow.steps if kind_of(name) in CELLS]
        return workers.send(assignment, reads=reads, writes=writes, modules=self._modules(cells))

    def _wait(self) -> None:
        """Wait until a stage ends, or a second passes; take what has ended."""
        if not self.running:
            return
        wait({news for found in self.running.values() for news in found.work.news}, timeout=1)
        codes = {name: found.work.code(found.number) for name, found in self.running.items()}
        ended = [(name, self.running.pop(name), code) for name, code in codes.items() if code is not None]
        for _, found, _ in ended:
            found.busy.close()
        try:
            if ended:
                self._start_what_can()  # before DVC takes note of what has ended, which takes as long as a short stage
        finally:
            for name, found, code in ended:
                self._end(name, found, code)

    def _end(self, name: str, found: Running, code: int) -> None:
        try:
            if code:
                raise InputError(reason(code, found.log))
            self.flow.keep(name)
        except InputError as error:
            self.outcome.failed[name] = str(error)
            return
        found.log.unlink()
        self.outcome.ran.append(name)
        self._done.add(name)

    def _stop(self) -> None:
        """End all that runs. An interruption has reached them, too; each may keep what it has."""
        until = time.monotonic() + 10
        for found in self.running.values():
            found.work.stop()
        for found in self.running.values():
            found.work.end(until - time.monotonic())
            found.busy.close()


def reason(code: int, log: Path) -> str:
    """Why a stage ended with this exit code: its message, or the last lines that it wrote."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if message := re.search(r"^error: (.*)\Z", said.rstrip(), re.M | re.S):
        return message[1]
    ended = f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    last = "\n".join(said.rstrip().splitlines()[-SHOWN_LINES:])
    return f"{ended}; all that it said is in {log}" + (f":\n{last}" if last else "")
