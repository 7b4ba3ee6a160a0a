"""The stages of the project as DVC tracks them: which of them are out of date, and what DVC is told once they ran.

DVC's own functions look, restore, save and commit, in the order of `dvc repro`; what they would read again for each
stage is `remembered`, and lock files are changed in place (`locks`). What runs a command is left out here.
The repository is locked only while they work; while a stage runs, its inputs and outputs are, as in `dvc repro`.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import params_file
from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.sweep import locks, unchanged
from pipeline.sweep.remembered import Remembered
from pipeline.sweep.unchanged import Seen, facts_of

LOCK_PATIENCE_S = 600  # another command of DVC may hold the repository's lock so long


class State(enum.Enum):
    """What is to be done with a stage."""

    CURRENT = "up to date"
    RESTORED = "restored from DVC's cache"
    STALE = "to be run"


class Flow:
    """The stages that bring the targets up to date, in DVC's order, and what each needs before it.

    steps: names of the stages, as in `flow/score/dvc.yaml:score@...`. needs: for each, the stages of `steps` that it
    depends on. downstream: of the targets and all stages that need them.
    """

    def __init__(self, targets: Sequence[str], *, downstream: bool = False) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        logging.getLogger("dvc").setLevel(logging.ERROR)
        root = unchanged.root_of(Path.cwd()) or Path.cwd()
        self._seen = Seen(root)
        self._is_whole = not targets  # and files alone tell whether anything changed
        try:
            self._repo = Repo()
            with self._locked():
                self._graph = get_active_graph(self._repo.index.graph)
                chosen = self._main_stages() if self._is_whole else []
                chosen = chosen or collect_stages(self._repo, targets or ["dvc.yaml"])
                plan = plan_repro(self._graph, chosen, downstream=downstream)
        except DvcException as error:
            _check_parameters(root)
            raise InputError(_words(error)) from None
        self.root = Path(self._repo.root_dir)
        self._remembered = Remembered(root)
        for stage in plan:
            self._remembered.teach(stage)
        self._remembered.teach_git(self._repo.scm)
        self._stages = {stage.addressing: stage for stage in plan}
        self.steps = list(self._stages)
        self.needs = {
            name: {found.addressing for found in self._graph.successors(stage)} & self._stages.keys()
            for name, stage in self._stages.items()
        }
        self._entries: dict[str, str] = {}  # of `dvc.lock`, of the stages that were run or restored
        # Stages with the hashes of new inputs beside those of old outputs: at a second look DVC would restore the old.
        self._to_run: set[str] = set()

    def command(self, name: str) -> str:
        """What a stage runs. Several commands of one stage are its lines."""
        command: str | list[str] = self._stages[name].cmd
        return command if isinstance(command, str) else "\n".join(command)

    def reads(self, name: str) -> list[Path]:
        """The files and folders that a stage depends on, of those that are not on an object store."""
        return _places(self._stages[name].deps)

    def writes(self, name: str) -> list[Path]:
        """The files and folders that a stage makes, of those that are not on an object store."""
        return _places(self._stages[name].outs)

    def look(self, name: str) -> State:
        """Find whether a stage is out of date. A stage to be run has its old outputs removed, as DVC does it.

        Raises InputError with DVC's words where an input is missing, or DVC's cache cannot be read.
        """
        from dvc.exceptions import DvcException
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self._stages[name]
        before = facts_of([Path(stage.path), *self.reads(name), *self.writes(name)])
        self._is_whole &= all(item.protocol == "local" for item in (*stage.deps, *stage.outs))
        with self._locked():
            try:
                if not stage.cmd or stage.frozen:
                    self._is_whole = False  # DVC looks at it each time
                    return self._leave_to_dvc(stage)
                if name in self._to_run:
                    return State.STALE
                if not _is_stale(stage):
                    self._seen.take(before)
                    return State.CURRENT
                stage.remove_outs(ignore_remove=False, force=False)
                try:
                    self._repo.stage_cache.restore(stage)
                except RunCacheNotFoundError:
                    stage.save_deps()
                    self._to_run.add(name)
                    return State.STALE
                self._save(stage)
            except (DvcException, OSError) as error:
                raise InputError(f"{name}: {_words(error)}") from None
        return State.RESTORED

    def inputs(self, name: str) -> str:
        """Fingerprint of what DVC says a stage depends on: its command, and the contents of all that it reads."""
        from dvc.exceptions import DvcException

        stage = self._stages[name]
        try:
            facts = [stage.cmd, *([str(item), item.get_hash().value] for item in stage.deps)]
        except (DvcException, OSError) as error:
            raise InputError(f"{name}: {_words(error)}") from None
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def is_stale(self, name: str) -> bool:
        """Whether a stage is out of date by itself, whatever becomes of the stages before it. Nothing is changed."""
        from dvc.exceptions import DvcException

        try:
            return _is_stale(self._stages[name])
        except (DvcException, OSError) as error:
            raise InputError(f"{name}: {_words(error)}") from None

    def running(self) -> set[str]:
        """The stages that some command of DVC or a sweep runs now, by DVC's own list of what is being written."""
        try:
            held = json.loads(Path(self._repo.tmp_dir, "rwlock").read_text(encoding="utf-8")).get("write", {})
        except (OSError, ValueError):
            return set()
        written = {path for path, holder in held.items() if _is_alive(holder["pid"])}
        return {name for name, stage in self._stages.items() if written & {out.fs_path for out in stage.outs}}

    def keep(self, name: str) -> None:
        """Tell DVC that a stage ran: hash and cache what it made. Raises InputError where an output is missing."""
        from dvc.exceptions import DvcException

        with self._locked():
            try:
                self._save(self._stages[name])
            except (DvcException, OSError) as error:
                raise InputError(f"{name}: {_words(error)}") from None

    def write_locks(self) -> None:
        """Write the entries of all stages that were made into `dvc.lock` beside their `dvc.yaml`, in DVC's order."""
        files: dict[str, list[Any]] = {}
        for name in self.steps:
            if name in self._entries:
                files.setdefault(self._stages[name].path, []).append(self._stages[name])
        with self._locked(), self._repo.scm_context(quiet=True):
            for stages in files.values():
                self._write_lock(stages)
        self._entries.clear()
        self._remembered.keep()

    def note_that_all_is_done(self) -> None:
        """Leave a note for the next sweep, see `unchanged`, after all stages of the project were looked at."""
        if self._is_whole:
            self._seen.note()

    def _main_stages(self) -> list[Any]:
        """The stages of `dvc.yaml` in this folder, which DVC would read again to find them."""
        place = str(Path.cwd() / "dvc.yaml")
        return [stage for stage in self._repo.index.stages if stage.path == place]

    @contextlib.contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Keep other commands of DVC from what a stage reads and writes."""
        from dvc.rwlock import rwlock

        stage, repo = self._stages[name], self._repo
        read, written = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
        hard = repo.config["core"].get("hardlink_lock", False)
        with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), read, written, hard):
            yield

    def _leave_to_dvc(self, stage: Any) -> State:
        """A stage that runs nothing: data that `dvc add` tracks, or a frozen stage."""
        if stage.reproduce(upstream=list(self._graph.predecessors(stage))) is None:
            return State.CURRENT
        stage.dump(update_pipeline=False)
        return State.RESTORED

    def _save(self, stage: Any) -> None:
        """As DVC does after a stage ran; its run cache takes no stage with outputs that DVC does not cache."""
        before = facts_of([Path(stage.path), *_places(stage.deps)])
        uncached = any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=not uncached)
        stage.commit()
        self._entries[stage.addressing] = locks.entry_of(stage)
        self._to_run.discard(stage.addressing)
        self._seen.take(before | facts_of(_places(stage.outs)))

    def _write_lock(self, stages: list[Any]) -> None:
        """Write the entries of stages of one `dvc.yaml` that were made."""
        file = stages[0].dvcfile
        path = Path(file.path).with_suffix(".lock")
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        changed = locks.put(text, [self._entries[stage.addressing] for stage in stages])
        if changed is None:
            file.dump_stages(stages, update_pipeline=False)
        elif changed != text:
            write_text(path, changed)
            self._repo.scm_context.track_file(os.path.relpath(path))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the repository's lock; wait where another command of DVC has it."""
        from dvc.lock import LockError

        until = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                self._repo.lock.lock()
                break
            except LockError:
                if time.monotonic() > until:
                    raise InputError(
                        f"expected DVC's lock to be free, another command held it for {LOCK_PATIENCE_S} seconds; wait "
                        "for it, or end it"
                    ) from None
        try:
            yield
        finally:
            self._repo.lock.unlock()


def _check_parameters(root: Path) -> None:
    """Raise InputError where the parameters are wrong: of these, DVC says what that makes of the stages."""
    if (path := root / "params.yaml").is_file():
        params_file.load(path)


def _is_stale(stage: Any) -> bool:
    """What `changed` of DVC's stages finds, without a lock file written for each look."""
    items = (*stage.deps, *stage.outs)
    return bool(stage.cmd) and not stage.frozen and (stage.changed_stage() or any(item.status() for item in items))


def _places(items: Sequence[Any]) -> list[Path]:
    return sorted({Path(item.fs_path) for item in items if item.protocol == "local"})


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _words(error: BaseException) -> str:
    """The words of an error of DVC and of what caused it."""
    found: list[str] = []
    while error is not None:
        if str(error) and str(error) not in found:
            found.append(str(error))
        error = error.__cause__  # type: ignore[assignment]
    return ": ".join(found) or "DVC gives no reason"
