"""Processes for stages: forks of one that has imported what the stages import, so that each starts at once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shlex
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from pipeline.core.errors import run_command

FORKS = multiprocessing.get_context("forkserver")
PREFIX = ["python", "-m"]


def stage_of(command: str) -> str | None:
    """The module that a command runs, such as `stages.train`; None for commands of another form."""
    if set(command) & set("\n;|&<>$`*?(){}[]!~#\\"):
        return None
    words = shlex.split(command)
    return words[2] if words[:2] == PREFIX and words[2:] and words[2].startswith("stages.") else None


def prepare(modules: set[str]) -> None:
    """Say what the process is to import from which the stages are forked. Call it before the first `start`."""
    FORKS.set_forkserver_preload(sorted(modules))


def start(command: str, log: Path, *, name: str, root: Path, warm: bool) -> BaseProcess:
    """Run the command of a stage in a fork. What it says goes to the file `log`.

    name: as DVC calls the stage. root: the project's folder. warm: use the modules that are imported, as they are what
    lies on the disk.
    """
    process = FORKS.Process(target=_run, args=(command, log, name, root, warm))
    process.start()
    return process


def code_of(root: Path) -> dict[Path, int]:
    """When each module of the project that a stage may import was changed, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for room in ("pipeline", "stages") for path in (root / room).rglob("*.py")}


def _run(command: str, log: Path, name: str, root: Path, warm: bool) -> None:
    """What the fork does: the stage's `main` as `python -m` would run it, or a shell."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    os.environ.update({"DVC_ROOT": str(root), "DVC_STAGE": name, "PATH": here})
    module = stage_of(command)
    if module is None or not warm:
        os.execv("/bin/sh", ["/bin/sh", "-ec", command])  # noqa: S606  # as DVC does
    tqdm.set_lock(threading.RLock())  # its own is one of processes, which outlives this one
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    found = importlib.import_module(module)
    sys.argv = [str(found.__file__), *shlex.split(command)[3:]]
    run_command(found.main)


def _end_with_the_sweep() -> None:
    """End this process when the one that asked for it ends, however it ends."""
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
    os._exit(1)
