"""Processes for stages: forks of one that has imported what the stages import, so that each starts at once."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from pipeline.core.errors import PlainErrors, exit_on_input_error, run_command

FORKS = multiprocessing.get_context("forkserver")
FRESH = multiprocessing.get_context("spawn")
PREFIX = ["python", "-m"]
WARMED = "pipeline.sweep.warmed"  # what stages read is read once
TOGETHER = "stages.train"  # the stage of which one process can run several
# The modules of all stages of cells, and of scoring their runs in other ways.
OF_CELLS = ("stages.evaluate", "stages.rescore", "stages.score", "stages.train")
# What these stages import within functions, as it takes long. A sweep evaluates many rows.
INNER_IMPORTS = {"stages.evaluate": ("scipy.special",)}
# An idle thread of OpenBLAS spins for 2^28 ticks of the processor's clock, 0.1 s, before it sleeps. A stage that says
# how many there are (train.threads) starts them anew, and they take processors from the stages beside it.
IDLE_THREADS = {"OPENBLAS_THREAD_TIMEOUT": "4"}  # 2^4 ticks
SAME = ("--params", "--layers", "--views", "--seed", "--trials", "--features")  # the arguments that say what it reads


@dataclass
class Work:
    """A process that runs one stage, or several. results: gives the number and exit code of each of several."""

    process: BaseProcess
    results: Connection | None = None
    _codes: dict[int, int] = field(default_factory=dict)

    def code(self, number: int) -> int | None:
        """The exit code of the stage of this number, from 0; None while it runs."""
        ended = self.process.exitcode
        with contextlib.suppress(EOFError):
            while self.results and self.results.poll():
                stage, code = self.results.recv()
                self._codes[stage] = code
        return self._codes.get(number, ended)

    @property
    def news(self) -> list[Any]:
        """What to wait for: the end of the process, or of one of its stages."""
        return [self.process.sentinel, *([self.results] if self.results and not self.results.closed else [])]

    def stop(self) -> None:
        """Ask the process to end."""
        self.process.terminate()

    def end(self, seconds: float) -> None:
        """Wait for the end of a process that was asked to; after some seconds it is killed."""
        self.process.join(max(0, seconds))
        self.process.kill()


@dataclass(frozen=True)
class Assignment:
    """Stages for one process. Several of them are trainings that read the same.

    commands: what each runs. logs: the file for what it says. names: as DVC calls them. root: the project's folder.
    warm: use the modules that are imported, as they are what lies on the disk. early: do not wait until the process of
    the forks has imported its modules.
    """

    commands: tuple[str, ...]
    logs: tuple[Path, ...]
    names: tuple[str, ...]
    root: Path
    warm: bool
    early: bool = False

    def begin(self) -> Work:
        """Start the process on this machine."""
        if len(self.commands) > 1:
            return start_together(self.commands, self.logs, name=self.names[0], root=self.root)
        context: ForkServerContext | SpawnContext = FRESH if self.early else FORKS
        return start(
            self.commands[0], self.logs[0], name=self.names[0], root=self.root, warm=self.warm, context=context
        )

    def only(self, numbers: Sequence[int]) -> Assignment:
        """Some of the stages, by their numbers."""
        return replace(
            self,
            commands=tuple(self.commands[number] for number in numbers),
            logs=tuple(self.logs[number] for number in numbers),
            names=tuple(self.names[number] for number in numbers),
        )


def reads(command: str) -> tuple[str | None, ...] | None:
    """What a training reads, by its arguments; None for other commands. Trainings of the same can run together."""
    if stage_of(command) != TOGETHER:
        return None
    words = shlex.split(command)[3:]
    given = dict(zip(words[::2], words[1::2], strict=False))
    return tuple(given.get(name) for name in SAME)


def stage_of(command: str) -> str | None:
    """The module that a command runs, such as `stages.train`; None for commands of another form."""
    if set(command) & set("\n;|&<>$`*?(){}[]!~#\\"):
        return None
    words = shlex.split(command)
    return words[2] if words[:2] == PREFIX and words[2:] and words[2].startswith("stages.") else None


def prepare(modules: set[str]) -> None:
    """Begin the process from which stages are forked. It imports modules meanwhile; the first `start` waits for it.

    Where it has begun before, nothing happens: each stage imports for itself what that process did not.
    """
    for name, value in IDLE_THREADS.items():  # OpenBLAS reads it when it is loaded, there and in what that starts
        os.environ.setdefault(name, value)
    later = {name for module in modules for name in INNER_IMPORTS.get(module, ())}
    FORKS.set_forkserver_preload([*sorted({__name__, *modules, *later}), WARMED])
    ensure_running()


def prepare_for_cells(root: Path) -> None:
    """Begin that process with the modules that stages of cells run, before it is known which stages will run.

    root: the folder of the project, where Python is to find them. Nothing happens where one of them is not there.
    """
    if all((root / module.replace(".", "/")).with_suffix(".py").is_file() for module in OF_CELLS):
        prepare(set(OF_CELLS))


def start(
    command: str, log: Path, *, name: str, root: Path, warm: bool, context: ForkServerContext | SpawnContext = FORKS
) -> Work:
    """Run the command of a stage in a fork. What it says goes to the file `log`.

    name: as DVC calls the stage. root: the project's folder. warm: use the modules that are imported, as they are what
    lies on the disk. context: FORKS, or FRESH for a process that imports for itself.
    """
    process = context.Process(target=_run, args=(command, log, name, root, warm))
    process.start()
    return Work(process)


def start_together(commands: Sequence[str], logs: Sequence[Path], *, name: str, root: Path) -> Work:
    """Run several trainings in one fork. What each says goes to its own file. name: of the first."""
    results, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_run_together, args=(commands, logs, name, root, sender))
    process.start()
    sender.close()
    return Work(process, results)


def code_of(root: Path) -> dict[Path, int]:
    """When each module of the project that a stage may import was changed, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for room in ("pipeline", "stages") for path in (root / room).rglob("*.py")}


def _run(command: str, log: Path, name: str, root: Path, warm: bool) -> None:
    """What the fork does: the stage's `main` as `python -m` would run it, or a shell."""
    _settle(log, name, root)
    module = stage_of(command)
    if module is None or not warm:
        _run_shell(command)
    _belong_to_the_sweep()
    found = importlib.import_module(module)
    sys.argv = [str(found.__file__), *shlex.split(command)[3:]]
    run_command(found.main)


def _run_shell(command: str) -> NoReturn:
    """Run a command as DVC does. Its processes are a group, so that all of them end with this one."""
    shell = subprocess.Popen(["/bin/sh", "-ec", command], process_group=0)  # noqa: S603
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: os.killpg(shell.pid, number))
    threading.Thread(target=_end_with_the_sweep, args=(shell.pid,), daemon=True).start()
    code = shell.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _run_together(commands: Sequence[str], logs: Sequence[Path], name: str, root: Path, sender: Connection) -> None:
    """What the fork does that runs several trainings: it sends the number and exit code of each that ends."""
    _settle(logs[0], name, root)
    _belong_to_the_sweep()
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(PlainErrors(log.open("ab"), encoding="utf-8", errors="backslashreplace"))
            for log in logs
        ]

        @contextlib.contextmanager
        def saying(number: int) -> Iterator[None]:
            with contextlib.redirect_stdout(files[number]), contextlib.redirect_stderr(files[number]):
                yield
                files[number].flush()

        def train() -> None:
            found = importlib.import_module(TOGETHER)
            for number, error in found.take_turns([shlex.split(command)[3:] for command in commands], saying):
                sender.send((number, _code(error, saying(number))))

        run_command(train)


def _code(error: BaseException | None, saying: contextlib.AbstractContextManager[None]) -> int:
    """The exit code of a stage that this error ended, once its log says so."""
    if error is None:
        return 0

    def fail() -> None:
        raise error

    with saying:
        try:
            exit_on_input_error(fail)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) and ended.code else 1
        except Exception:
            traceback.print_exc()
    return 1


def _settle(log: Path, name: str, root: Path) -> None:
    """Say everything to the log, in the place and with the variables that DVC gives a stage."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    os.environ.update({"DVC_ROOT": str(root), "DVC_STAGE": name, "PATH": here})


def _belong_to_the_sweep() -> None:
    tqdm.set_lock(threading.RLock())  # its own is one of processes, which outlives this one
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()


def _end_with_the_sweep(group: int | None = None) -> None:
    """End this process when the one that asked for it ends, however it ends; a group of processes before it."""
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
    if group is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(1)
