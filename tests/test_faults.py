"""Whatever happens to a store or an extraction: a clear refusal, or the bytes of an undisturbed one."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from unittest import mock

import pytest
from tqdm import tqdm

from pipeline import commands
from pipeline.audio import loader
from pipeline.core import params_file
from pipeline.core.errors import exit_on_input_error
from pipeline.core.params import Params
from tests import faults
from tests.faults import Ended, Fault, Undisturbed

# A process in which all is imported: those that extractions are killed in are forks of it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pipeline.extraction.forward", "pipeline.encoder.xlsr", "stages.extract", "tests.test_faults"]
)


def run(folder: Path, words: str, hook: str = "") -> Ended:
    """Run a command line in this process, or, with a hook, in a fork."""
    if not hook:
        with contextlib.chdir(folder):
            return called(words)
    process = FORKS.Process(target=fork, args=(folder, words, hook))
    process.start()
    process.join()
    said = folder.with_name("said")
    assert process.exitcode is not None
    return Ended(process.exitcode, said.read_text() if said.is_file() else "")


def called(words: str) -> Ended:
    """Call the `main` of a command line."""
    argv = words.removeprefix("python -m ").split()
    main = partial(commands.dispatch, argv[1:]) if argv[0] == "bonafide" else importlib.import_module(argv[0]).main
    said, code = io.StringIO(), 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            exit_on_input_error(main)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            code = 1
            traceback.print_exc()
    return Ended(code, said.getvalue())


def fork(folder: Path, words: str, hook: str) -> None:
    """What the fork does."""
    os.chdir(folder)
    loader.processes = in_threads
    tqdm.set_lock(threading.RLock())  # its own is one of processes, which outlives this one
    with folder.with_name("said").open("w") as said:
        exec(hook, {})  # noqa: S102
        ended = called(words)
        said.write(ended.said)
    os._exit(ended.code)


def in_threads() -> ThreadPoolExecutor:
    """Augment in threads, which start sooner."""
    return ThreadPoolExecutor(2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm_processes: None) -> Iterator[dict[str, Undisturbed]]:
    """A project for each way to store frames."""
    whole = params_file.load
    parsed = cache(lambda path, _text: whole(path))  # half of the time would go there

    def load(path: Path) -> Params:
        return parsed(path, path.read_text())

    with (
        mock.patch.object(loader, "processes", in_threads),
        mock.patch.object(params_file, "load", load),
    ):
        yield {
            storage: Undisturbed(tmp_path_factory.mktemp(storage) / "project", run, storage=storage)
            for storage in ("float16", "int8")
        }


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_refused_or_leaves_no_trace(
    fault: Fault, undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    outcome = faults.judge(fault, undisturbed[fault.storage], tmp_path, seed=0)
    assert not outcome.wrong, outcome


def test_an_import_of_another_version_of_a_view_is_refused(undisturbed: dict[str, Undisturbed], tmp_path: Path) -> None:
    project = undisturbed["float16"].copy(tmp_path / "project")
    assert project.run(faults.EXPORT).code == 0
    group = project.folder / project.store / faults.VIEW / "zarr.json"
    group.write_text(group.read_text().replace('"views_version": 1', '"views_version": 2'))
    before = project.files()
    ended = project.run(faults.IMPORT)
    said = (
        f"train.h5: expected narrowband as {project.store} has it, {{'views_version': 2}}, got {{'views_version': 1}}"
    )
    assert (ended.code, said in ended.said) == (2, True), ended
    assert project.files() == before
