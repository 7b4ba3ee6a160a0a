"""Bring stages up to date, several at once. A stage that fails stops what depends on it, and nothing else."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.sweep import starting
from pipeline.sweep.tracked import Flow, State

BESIDE = ("train", "score", "evaluate", "evaluate_rescored", "rescore")  # the others use all processors
LATE = ("score", "evaluate", "rescore", "evaluate_rescored")
LOGS = Path(".dvc/tmp/sweep")
SHOWN_LINES = 15  # of a stage that ends without a message


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
    """A stage at work."""

    process: BaseProcess
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

    Stages of a cell run side by side. Each other stage, such as extraction, uses all processors by itself, so it runs
    alone: side by side with others it would also get other threads, and so other last bits, than under `dvc repro`.
    """

    def __init__(self, flow: Flow, *, jobs: int, tell: Callable[[Sweep], None]) -> None:
        self.flow, self.jobs, self.tell = flow, jobs, tell
        self.outcome = Outcome()
        self.running: dict[str, Running] = {}
        self.waiting = list(flow.steps)
        self._done: set[str] = set()
        self._code = starting.code_of(flow.root)
        modules = {starting.stage_of(flow.command(name)) for name in flow.steps}
        starting.prepare({module for module in modules if module})

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

    def _start_what_can(self) -> None:
        """Start stages whose needs are met: first those that bring a cell to its end, else in DVC's order."""
        for name in sorted(self.waiting, key=lambda name: kind_of(name) not in LATE):
            if len(self.running) >= self.jobs:
                return
            if self.flow.needs[name] & (self.outcome.failed.keys() | set(self.outcome.left_out)):
                self.waiting.remove(name)
                self.outcome.left_out.append(name)
            elif self.flow.needs[name] <= self._done and self._has_room_for(name):
                self._begin(name)

    def _has_room_for(self, name: str) -> bool:
        if kind_of(name) in BESIDE:
            return all(kind_of(other) in BESIDE for other in self.running)
        return not self.running

    def _begin(self, name: str) -> None:
        """Look at a stage, and start it if it is out of date."""
        self.waiting.remove(name)
        try:
            state = self.flow.look(name)
        except InputError as error:
            (self.flow.root / log_of(name)).write_text(f"error: {error}\n", encoding="utf-8")
            self.outcome.failed[name] = str(error)
            return
        if state is State.STALE:
            self._start(name)
            return
        (self.outcome.current if state is State.CURRENT else self.outcome.restored).append(name)
        self._done.add(name)

    def _start(self, name: str) -> None:
        log = self.flow.root / log_of(name)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.flow.busy(name))
            process = starting.start(
                self.flow.command(name),
                log,
                name=name,
                root=self.flow.root,
                warm=starting.code_of(self.flow.root) == self._code,
            )
            self.running[name] = Running(process, log, stack.pop_all())

    def _wait(self) -> None:
        """Wait until a stage ends, or a second passes; take what has ended."""
        if not self.running:
            return
        wait([found.process.sentinel for found in self.running.values()], timeout=1)
        for name, found in list(self.running.items()):
            if found.process.exitcode is not None:
                del self.running[name]
                found.busy.close()
                self._end(name, found)

    def _end(self, name: str, found: Running) -> None:
        try:
            if found.process.exitcode:
                raise InputError(reason(found.process.exitcode, found.log))
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
            found.process.terminate()
        for found in self.running.values():
            found.process.join(max(0, until - time.monotonic()))
            found.process.kill()
            found.busy.close()


def reason(code: int, log: Path) -> str:
    """Why a stage ended with this exit code: its message, or the last lines that it wrote."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if message := re.search(r"^error: (.*)\Z", said.rstrip(), re.M | re.S):
        return message[1]
    ended = f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    last = "\n".join(said.rstrip().splitlines()[-SHOWN_LINES:])
    return f"{ended}; all that it said is in {log}" + (f":\n{last}" if last else "")
