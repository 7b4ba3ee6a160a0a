"""The sweep: what runs, in what order, what DVC is told, and what a failure, a kill and an edit leave."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Scheduler, SpecCluster, Worker
from distributed.utils import get_mp_context
from dulwich.repo import Repo as DulwichRepo
from dvc import output
from dvc.repo import Repo
from dvc.utils import serialize
from ruamel.yaml import YAML

from pipeline.commands import status
from pipeline.commands import sweep as command
from pipeline.core import params_file
from pipeline.core.errors import InputError
from pipeline.extraction.dask_workers import CODE, Cluster
from pipeline.sweep import locks, starting, unchanged, warmed
from pipeline.sweep.cluster import Note, Request, Sent, Workers, _wait_for_inputs, digests, run, versions
from pipeline.sweep.remembered import HASHES, Remembered
from pipeline.sweep.starting import Assignment
from pipeline.sweep.status import Progress, cells, progress
from pipeline.sweep.sweep import CELLS, LOGS, Running, Sweep, kind_of
from pipeline.sweep.tracked import Flow, State
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # of a library that DVC uses
FLOW = """stages:
  first:
    cmd: cat a.txt > first.txt && echo first >> ran
    deps: [a.txt]
    outs: [first.txt]
  train:
    matrix: {cell: [one, two, bad]}
    cmd: cat first.txt ${item.cell}.txt > ${item.cell}.out && echo ${item.cell} >> ran
    deps: [first.txt, "${item.cell}.txt"]
    outs: ["${item.cell}.out"]
  evaluate:
    matrix: {cell: [one, two, bad]}
    cmd: wc -c < ${item.cell}.out > ${item.cell}.count && echo count-${item.cell} >> ran
    deps: ["${item.cell}.out"]
    outs: ["${item.cell}.count"]
  report:
    cmd: cat one.count two.count > report.txt && echo report >> ran
    deps: [one.count, two.count]
    outs: [report.txt]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_path: str) -> Path:
    """A project of shell commands; the file bad.txt is not there, so that its cell fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", warm_path)
    Path("dvc.yaml").write_text(FLOW)
    for name in ("a", "one", "two"):
        Path(f"{name}.txt").write_text(name)
    dvc("init", "--no-scm", "-q")
    return tmp_path


def dvc(*words: str) -> str:
    return subprocess.run(["dvc", *words], capture_output=True, text=True, check=True).stdout


def sweep(*targets: str, jobs: int = 2) -> Sweep:
    made = Sweep(Flow(targets), jobs=jobs, tell=lambda _: None)
    made.run()
    return made


def ran() -> list[str]:
    """The stages that ran since the last call."""
    found = Path("ran").read_text().split() if Path("ran").exists() else []
    Path("ran").unlink(missing_ok=True)
    return found


def test_all_that_can_be_made_is_made_and_dvc_knows(here: Path) -> None:
    outcome = sweep().outcome
    assert set(ran()) == {"first", "one", "two", "count-one", "count-two", "report"}
    assert Path("report.txt").read_text().split() == ["4", "4"]
    assert list(outcome.failed) == ["train@bad"]
    assert "bad.txt" in outcome.failed["train@bad"]
    assert outcome.left_out == ["evaluate@bad"]
    again = sweep().outcome
    assert (again.ran, again.restored, set(again.failed)) == ([], [], {"train@bad"})
    Path("bad.txt").write_text("now")
    assert set(sweep().outcome.ran) == {"train@bad", "evaluate@bad"}
    assert dvc("status").strip() == "Data and pipelines are up to date."
    assert "Data and pipelines are up to date." in dvc("repro")


def test_the_locks_are_those_of_dvc_repro(here: Path) -> None:
    Path("bad.txt").write_text("bad")
    dvc("repro")
    expected = Path("dvc.lock").read_bytes()
    for path in (Path("dvc.lock"), *Path().glob("*.out"), *Path().glob("*.count")):
        path.unlink()
    assert len(sweep().outcome.restored) == 8  # DVC's cache has them all
    assert Path("dvc.lock").read_bytes() == expected
    subprocess.run(["rm", "-rf", ".dvc/cache", "dvc.lock"], check=True)
    assert len(sweep().outcome.ran) == 8
    assert Path("dvc.lock").read_bytes() == expected


SHARED = """stages:
  train:
    matrix: {cell: [one, two]}
    cmd: echo ${item.cell} > ${item.cell}.out && echo ${item.cell} >> ran
    deps: [code]
    params: [rates, "sizes.${item.cell}"]
    outs: ["${item.cell}.out"]
"""


@pytest.fixture
def sharing(here: Path) -> Path:
    """A project in which two stages depend on one folder and on one parameter, which is a list."""
    Path("dvc.yaml").write_text(SHARED)
    Path("params.yaml").write_text("rates: [1, 2]\nsizes: {one: 1, two: 2}\n")
    Path("code").mkdir()
    Path("code/a.py").write_text("a")
    return here


def test_what_stages_share_is_read_once_and_the_locks_are_those_of_dvc_repro(
    sharing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc("repro")
    assert ran() == ["one", "two"]
    expected = Path("dvc.lock").read_bytes()
    for path in (Path("dvc.lock"), *Path().glob("*.out")):
        path.unlink()
    shutil.rmtree(".dvc/cache")
    asked: list[str] = []

    def noting(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        return lambda *given, **options: asked.append(name(*given)) or function(*given, **options)

    monkeypatch.setattr(serialize, "load_path", noting(serialize.load_path, lambda path, *_: Path(path).name))
    monkeypatch.setattr(output, "build", noting(output.build, lambda _odb, path, *_: Path(path).name))
    sweep()
    assert (set(ran()), Path("dvc.lock").read_bytes()) == ({"one", "two"}, expected)
    templates = ["params.yaml"]  # DVC reads it once more for what stands in ${}
    assert sorted(name for name in asked if ".out" not in name) == ["code", "params.yaml", *templates]


def test_hashes_are_kept_for_the_next_sweep_while_nothing_changes_them(
    sharing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    build = output.build

    def noting(odb: Any, path: str, *given: Any, **options: Any) -> Any:
        asked.append(Path(path).name)
        return build(odb, path, *given, **options)

    monkeypatch.setattr(output, "build", noting)
    sweep()
    every = ["code", "one.out", "two.out"]

    def looked() -> tuple[list[str], list[str]]:
        """What is hashed, and which stages are current, where nothing runs."""
        asked.clear()
        flow = Flow([])
        current = [name for name in flow.steps if not flow.is_stale(name)]
        flow.write_locks()
        return sorted(asked), current

    both = ["train@one", "train@two"]
    assert looked() == (every[1:], both)  # a sweep looks at outputs before their stage runs, and not again
    assert looked() == ([], both)
    Path("code/a.py").write_text("b")
    assert looked() == (["code"], [])
    Path("code/a.py").write_text("a")
    assert looked() == (["code"], both)
    Path("code/b.txt").write_text("ignored by DVC")
    assert looked() == (["code"], [])
    Path(".dvcignore").write_text("b.txt\n")
    assert looked() == (every, both)
    kept = Path(HASHES).read_text()
    for damaged in (kept[:-9], "[]", '{"hashes": {"md5 a": 1}}', kept.replace('"dvc": "', '"dvc": "0.')):
        Path(HASHES).write_text(damaged)
        assert looked() == (every, both), damaged[:20]
    Path("one.out").unlink()
    assert looked() == ([], ["train@two"])
    assert "one.out" in Path(HASHES).read_text()
    Path("two.out").write_text("edited")
    assert looked() == (["two.out"], [])
    assert "one.out" not in Path(HASHES).read_text()


def test_git_says_once_what_it_tracks_and_dvc_refuses_such_an_output(
    sharing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = functools.partial(subprocess.run, check=True, capture_output=True)
    shutil.rmtree(".dvc")
    git(["git", "init"])
    git(["git", "add", "code"])
    dvc("init", "-q")
    read: list[str] = []
    index = DulwichRepo.open_index
    monkeypatch.setattr(DulwichRepo, "open_index", lambda repo: read.append(repo.path) or index(repo))
    assert set(sweep().outcome.ran) == {"train@one", "train@two"}
    assert len(read) == 1
    assert sorted(Path(".gitignore").read_text().split()) == ["/one.out", "/two.out"]
    Path("code/a.py").write_text("edited")
    Path("two.out").write_text("kept")
    git(["git", "add", "-f", "two.out"])
    outcome = sweep().outcome
    assert outcome.ran == ["train@one"]
    assert re.search("two.out.*already tracked by SCM", outcome.failed["train@two"])
    assert len(read) == 2
    git(["git", "rm", "-f", "--cached", "two.out"])
    made = Remembered(sharing)
    made.teach_git(scm := Repo().scm)
    tracked = [scm.is_tracked(str(Path(path).absolute())) for path in ("code", "code/a.py", "two.out", "cod")]
    assert tracked == [True, True, False, False]


LAYOUTS: list[tuple[Callable[[str], str], bool]] = [  # of a lock file, and whether DVC would write it so
    (lambda text: text, True),
    (lambda _: "", True),
    (lambda text: text[: text.index("  train@two:")], True),
    (lambda text: text[: text.index("  train@one:")] + text[text.index("  train@two:") :], True),
    (lambda text: text + "  # checked\n", False),
    (lambda text: text + "datasets: []\n", False),
    (lambda text: text.replace("rates:", "rates: &here", 1), False),
    (lambda text: text.replace("  train@one:", "  'train@one':"), False),
]


def test_entries_are_put_into_a_lock_file_as_dvc_does(sharing: Path) -> None:
    with Repo() as repo:
        stages = list(repo.index.stages)
        dump = functools.partial(stages[0].dvcfile.dump_stages, update_pipeline=False)
        for layout, usual in LAYOUTS:
            Path("dvc.lock").unlink(missing_ok=True)
            Path("code/a.py").write_text("a")
            for stage in stages:
                Path(stage.outs[0].fs_path).write_text(stage.name)
                stage.save()
            dump(stages)
            Path("dvc.lock").write_text(before := layout(Path("dvc.lock").read_text()))
            Path("code/a.py").write_text("edited")
            stages[1].save()
            dump(stages[1:])
            found = locks.put(before, [locks.entry_of(stages[1])])
            assert found == (Path("dvc.lock").read_text() if usual else None), before
    assert stages[1].name == "train@two"


def test_a_lock_file_that_people_edited_keeps_what_they_wrote(sharing: Path) -> None:
    sweep()
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace("  train@two", "  # checked\n  train@two"))
    Path("params.yaml").write_text("rates: [1, 2]\nsizes: {one: 1, two: 22}\n")
    assert sweep().outcome.ran == ["train@two"]
    assert "  # checked\n  train@two" in (text := Path("dvc.lock").read_text())
    assert "sizes.two: 22" in text
    assert sweep().outcome.current == ["train@one", "train@two"]


def test_a_change_is_seen_after_the_first_look(sharing: Path) -> None:
    flow = Flow(())
    Sweep(flow, jobs=2, tell=lambda _: None).run()
    both, none = {"train@one", "train@two"}, set[str]()
    first = {path: Path(path).read_text() for path in ("code/a.py", "params.yaml")}
    for path, text, stale, without in (
        ("code/a.py", "edited", both, both),
        ("code/b.py", "new", both, none),
        ("params.yaml", "rates: [1, 2]\nsizes: {one: 1, two: 22}\n", {"train@two"}, both),
        ("params.yaml", "sizes: {one: 1, two: 2}\n", both, both),
    ):
        assert not any(map(flow.is_stale, flow.steps))
        Path(path).write_text(text)
        assert set(filter(flow.is_stale, flow.steps)) == stale, path
        Path(path).unlink()
        assert set(filter(flow.is_stale, flow.steps)) == without, path
        for name, before in first.items():
            Path(name).write_text(before)


def test_a_target_brings_what_it_needs_and_nothing_else(here: Path) -> None:
    sweep("evaluate@two")
    assert ran() == ["first", "two", "count-two"]
    with pytest.raises(InputError, match="nope"):
        Flow(["nope"])


def test_downstream_is_what_a_target_makes_stale_and_nothing_before_it(here: Path) -> None:
    sweep("train@one", "train@two")
    ran()
    Path("a.txt").unlink()  # a stage before, which cannot run here any more
    Path("first.txt").write_text("pulled")
    outcome = Sweep(Flow(["train"], downstream=True), jobs=2, tell=lambda _: None).run()
    assert set(outcome.ran) == {"train@one", "train@two", "evaluate@one", "evaluate@two", "report"}
    assert Path("one.out").read_text() == "pulledone"
    states = progress(Flow(["train"], downstream=True), Path.cwd())
    assert {name for name, state in states.items() if state is Progress.DONE} == set(outcome.ran)
    assert Progress.DONE not in progress(Flow(["train"]), Path.cwd()).values()  # what they need is missing
    for main in (command.main, status.main):
        with pytest.raises(SystemExit):
            main(["--downstream"])


def test_a_stage_waits_for_what_it_needs_and_no_more_than_jobs_run(here: Path) -> None:
    Path("bad.txt").write_text("bad")
    most, seen = 0, []

    def look(found: Sweep) -> None:
        nonlocal most
        most = max(most, len(found.running))
        seen.append({re.sub("@.*", "", name) for name in found.running})

    Sweep(Flow([]), jobs=2, tell=look).run()
    assert most == 2
    assert all(kinds in ({"first"}, {"report"}) or not kinds & {"first", "report"} for kinds in seen)
    order = ran()
    for cell in ("one", "two", "bad"):
        assert order.index("first") < order.index(cell) < order.index(f"count-{cell}")
    assert order[-1] == "report"


def test_the_table_of_cells(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        command.main(["evaluate"])
    Path("two.txt").write_text("edited")
    capsys.readouterr()
    status.main([])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["cell", "train", "score", "evaluate"],
        ["one", "done", "-", "done"],
        ["two", "stale", "-", "stale"],
        ["bad", "failed", "-", "stale"],
        ["3", "cells:", "1", "done,", "1", "stale,", "1", "failed"],
        ["report:", "stale"],
    ]
    flow = Flow([])
    with flow.busy("train@two"):
        found = progress(flow, here)
    assert (found["train@two"], found["evaluate@two"]) == (Progress.RUNNING, Progress.STALE)
    Path("bad.txt").write_text("bad")
    sweep()
    assert set(progress(Flow([]), here).values()) == {Progress.DONE}


def test_a_second_look_at_a_changed_stage_does_not_restore_its_old_outputs(here: Path) -> None:
    sweep("train@one")
    Path("one.txt").write_text("edited")
    flow = Flow([])
    assert [flow.look("train@one"), flow.look("train@one")] == [State.STALE, State.STALE]
    assert not Path("one.out").exists()


def test_scores_of_several_sets_are_one_column() -> None:
    found = {
        "train@a-1": Progress.DONE,
        "flow/score/dvc.yaml:score@a-1-dev": Progress.DONE,
        "flow/score/dvc.yaml:score@a-1-eval": Progress.RUNNING,
        "flow/evaluate/dvc.yaml:evaluate@a-1": Progress.STALE,
    }
    assert cells(found) == {
        "a-1": {"train": Progress.DONE, "score": Progress.RUNNING, "evaluate": Progress.STALE}
    }  # fmt: skip


def test_a_killed_sweep_goes_on_and_loses_no_finished_stage(here: Path) -> None:
    Path("bad.txt").write_text("bad")
    text = Path("dvc.yaml").read_text().replace("cat one.count", "sleep 60; cat one.count")
    Path("dvc.yaml").write_text(text)
    command = [sys.executable, "-m", "pipeline.commands", "sweep", "-j", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as running:
        until = time.monotonic() + 60
        while not (Path("ran").exists() and len(Path("ran").read_text().split()) == 7):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(0.5)
        os.killpg(running.pid, signal.SIGKILL)
    assert not Path("dvc.lock").exists()
    assert len(ran()) == 7
    Path("dvc.yaml").write_text(text.replace("sleep 60; ", ""))
    outcome = sweep().outcome
    assert ran() == ["report"]
    assert len(outcome.restored) == 7


def test_an_interruption_tells_dvc_of_what_was_done(here: Path) -> None:
    Path("bad.txt").write_text("bad")

    def interrupt(found: Sweep) -> None:
        if len(found.outcome.ran) == 3:
            raise KeyboardInterrupt

    made = Sweep(Flow([]), jobs=1, tell=interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    done = set(made.outcome.ran)
    assert all(f"\n  {name}:" in Path("dvc.lock").read_text() for name in done)
    assert set(sweep().outcome.current) == done


def noting_order(made: Sweep, monkeypatch: pytest.MonkeyPatch, *, fails_at: int = 0) -> list[str]:
    """What a sweep starts and keeps, in turn. fails_at: the start of this number, from 1, is interrupted."""
    told: list[str] = []
    start, keep = made._start, made.flow.keep

    def starting(names: list[str]) -> None:
        told.extend(f"start {name}" for name in names)
        if len(told) == fails_at:
            raise KeyboardInterrupt
        start(names)

    monkeypatch.setattr(made, "_start", starting)
    monkeypatch.setattr(made.flow, "keep", lambda name: told.append(f"keep {name}") or keep(name))
    return told


def test_a_stage_begins_before_dvc_takes_note_of_the_one_before_it(
    sharing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sweep(Flow([]), jobs=1, tell=lambda _: None)
    told = noting_order(made, monkeypatch)
    made.run()
    assert told == ["start train@one", "start train@two", "keep train@one", "keep train@two"]


def test_what_has_ended_is_kept_where_the_next_stage_is_interrupted(
    sharing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sweep(Flow([]), jobs=1, tell=lambda _: None)
    told = noting_order(made, monkeypatch, fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert told == ["start train@one", "start train@two", "keep train@one"]
    assert sweep().outcome.current == ["train@one"]


def test_another_command_of_dvc_finds_what_a_stage_writes_locked(here: Path) -> None:
    flow = Flow([])
    with flow.busy("first"):
        locked = subprocess.run(["dvc", "repro", "first"], capture_output=True, text=True, check=False)
    assert locked.returncode
    assert "is busy" in locked.stderr
    assert flow.look("first") is State.STALE


def test_the_command_says_what_it_did_and_fails_with_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"1 stages failed, 1 need what they make:\n  train@bad: .*bad\.txt"):
        command.main(["-j", "2"])
    Path("bad.txt").write_text("bad")
    command.main([])
    assert "2 stages ran, 0 were restored from DVC's cache, 6 were up to date" in capsys.readouterr().out
    command.main([])
    assert capsys.readouterr().out == "All is up to date.\n"
    with pytest.raises(SystemExit, match="2"):
        command.main(["-j", "0"])


def test_where_nothing_changed_dvc_is_not_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.txt").write_text("bad")
    command.main(["-j", "2"])
    with monkeypatch.context() as patch:
        patch.setattr(command, "Flow", None)
        command.main([])
        Path("elsewhere").mkdir()
        with contextlib.chdir("elsewhere"):
            command.main([])
    assert capsys.readouterr().out.endswith("All is up to date.\nAll is up to date.\n")
    command.main(["report"])  # with a target DVC is asked
    for change in (
        lambda: Path("one.txt").write_text("other"),
        lambda: Path("two.out").unlink(),
        lambda: Path("report.txt").write_text("mine"),
        lambda: Path("dvc.yaml").write_text(FLOW.replace("wc -c", "wc -l")),
        lambda: Path("dvc.lock").unlink(),
    ):
        change()
        assert not unchanged.is_as_noted(here)
        command.main(["-j", "2"])
        assert capsys.readouterr().out != "All is up to date.\n"
        assert unchanged.is_as_noted(here)
    Path("more").mkdir()
    Path("more/dvc.yaml").write_text("stages: {}\n")
    assert not unchanged.is_as_noted(here)


def test_modules_of_cells_are_imported_while_dvc_looks_where_all_was_up_to_date_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[set[str]] = []

    def look(*_: object, **__: object) -> None:
        raise InputError("DVC is asked now")

    def begun(*targets: str) -> list[set[str]]:
        prepared.clear()
        with pytest.raises(InputError, match="is asked now"):
            command.main(targets)
        return list(prepared)

    monkeypatch.setattr(starting, "prepare", prepared.append)
    monkeypatch.setattr(command, "Flow", look)
    note = here / unchanged.NOTE
    note.parent.mkdir(parents=True)
    assert begun() == []
    note.write_text("{}")
    assert begun() == []  # a project without these stages
    (here / "stages").mkdir()
    for module in starting.OF_CELLS:
        (here / module.replace(".", "/")).with_suffix(".py").touch()
    assert begun() == [set(starting.OF_CELLS)]
    assert begun("report") == []
    note.unlink()
    assert begun() == []


def test_the_modules_of_cells_are_those_of_their_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    steps = Flow([])
    found = {starting.stage_of(steps.command(name)) for name in steps.steps if kind_of(name) in CELLS}
    assert found == set(starting.OF_CELLS)


def test_what_changes_while_a_sweep_runs_is_not_noted_as_done(here: Path) -> None:
    """An input after DVC looked, and an output after DVC was told."""
    Path("bad.txt").write_text("bad")
    for changed in ("a.txt", "first.txt", "one.out", "dvc.yaml"):
        flow = Flow([])
        found = Sweep(flow, jobs=2, tell=lambda _sweep: None).run()
        assert not found.failed
        Path(changed).write_text(Path(changed).read_text() + "\n")
        flow.note_that_all_is_done()
        assert not unchanged.is_as_noted(here)
    sweep()
    flow = Flow([])
    assert not Sweep(flow, jobs=2, tell=lambda _sweep: None).run().failed
    flow.note_that_all_is_done()
    assert unchanged.is_as_noted(here)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("python -m stages.train --run data/runs/a-b", "stages.train"),
        ("python -m stages.train --run 'a b'", "stages.train"),
        ("python -m stages.train --run a | tee log", None),
        ("python -m stages.train\npython -m stages.score", None),
        ("python -m mine.train", None),
        ("FOO=1 python -m stages.train", None),
        ("python -m", None),
    ],
)
def test_a_command_of_a_stage_is_told_from_one_for_a_shell(command: str, module: str | None) -> None:
    assert starting.stage_of(command) == module


def test_an_edited_module_is_not_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/one.py").write_text("print('new')\n")
    before = starting.code_of(tmp_path)
    os.utime(tmp_path / "stages/one.py", ns=(1, 1))
    assert starting.code_of(tmp_path) != before
    log = tmp_path / "log.txt"
    work = starting.start("python -m stages.one", log, name="one", root=tmp_path, warm=False)
    work.process.join(60)
    assert (work.code(0), log.read_text()) == (0, "new\n")


def test_what_stages_import_late_is_there_to_be_imported() -> None:
    for stage, modules in starting.INNER_IMPORTS.items():
        assert all(map(importlib.util.find_spec, (stage, *modules)))  # a process of forks leaves out what is not


class Ready:
    """A flow of trainings that can all begin at once, of two choices of layers."""

    root = Path()

    def __init__(self, names: list[str]) -> None:
        self.steps = names
        self.needs: dict[str, set[str]] = {name: set() for name in names}

    def command(self, name: str) -> str:
        kind, _, cell = name.partition("@")
        backend, layers, seed = cell.split("-")
        return f"python -m stages.{kind} --backend {backend} --layers {layers} --views v --seed {seed} --run {name}"


def beginning(made: Sweep, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The stages that a sweep begins together; all are out of date, and none really starts."""
    begun: list[list[str]] = []

    def begin(group: list[str]) -> None:
        begun.append(group)
        work = starting.Work(None)  # type: ignore[arg-type]
        made.running |= {name: Running(work, 0, Path(), contextlib.ExitStack()) for name in group}

    monkeypatch.setattr(made, "_start", begin)
    monkeypatch.setattr(made, "_is_stale", lambda name: not made.waiting.remove(name))
    return begun


@pytest.mark.parametrize(
    ("jobs", "together", "groups"),
    [
        (2, True, [[0, 2, 4, 6], [1, 3, 5, 7]]),  # neighbours take equally long, so the groups do
        (1, True, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (3, True, [[0, 3, 6], [1, 4, 7], [2, 5]]),
        (2, False, [[0], [1]]),
    ],
)
def test_trainings_that_read_the_same_are_shared_out_among_the_jobs(
    monkeypatch: pytest.MonkeyPatch, jobs: int, together: bool, groups: list[list[int]]
) -> None:
    names = [f"train@b{number}-all-1" for number in range(8)]
    others = ["train@b0-last-1", "train@b0-all-2"]  # these read something else
    made = Sweep(Ready([*names, *others]), jobs=jobs, tell=lambda _: None, together=together)  # type: ignore[arg-type]
    begun = beginning(made, monkeypatch)
    made._start_what_can()
    assert begun == [[names[number] for number in group] for group in groups]


def test_no_more_than_eight_trainings_share_a_process_and_the_last_ones_are_shared_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"train@b{number}-all-1" for number in range(42)]
    current = set(names[:22:2])  # eleven are up to date; what is left are 31
    made = Sweep(Ready(names), jobs=2, tell=lambda _: None)  # type: ignore[arg-type]
    sizes: list[int] = []

    def begin(group: list[str]) -> None:
        assert not current & set(group)
        sizes.append(len(group))
        work = starting.Work(None)  # type: ignore[arg-type]
        made.running |= {name: Running(work, 0, Path(), contextlib.ExitStack()) for name in group}

    monkeypatch.setattr(made, "_start", begin)
    monkeypatch.setattr(made, "_is_stale", lambda name: made.waiting.remove(name) or name not in current)
    while made.waiting or made.running:
        made._start_what_can()
        first = next(iter(made.running.values())).work
        made.running = {name: found for name, found in made.running.items() if found.work is not first}
    assert sizes == [8, 8, 8, 4, 2, 1]  # the last ones, so that both processes end at about the same time


def test_a_stage_that_begins_with_the_last_trainings_is_not_taken_for_one_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainings = [f"train@b{number}-all-1" for number in range(20)]
    flow = Ready([*trainings, "score@b9-all-1"])
    made = Sweep(flow, jobs=2, tell=lambda _: None)  # type: ignore[arg-type]
    begun = beginning(made, monkeypatch)
    made._start_what_can()
    assert begun == [["score@b9-all-1"], trainings[:16:2]]
    made.running.pop("score@b9-all-1")
    made._start_what_can()
    assert [len(group) for group in begun[2:]] == [6], "the other half waits for the next process that is free"


def test_the_last_trainings_begin_before_what_ends_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short stages come last, and no processor waits for a training in another one."""
    for count, first in ((17, "score"), (16, "train")):
        names = [f"train@b{number}-all-1" for number in range(count)]
        made = Sweep(Ready(["score@b9-all-1", *names]), jobs=2, tell=lambda _: None)  # type: ignore[arg-type]
        begun = beginning(made, monkeypatch)
        made._start_what_can()
        assert kind_of(begun[0][0]) == first


def test_an_analysis_runs_beside_trainings_and_an_extraction_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = [f"train@b{number}-all-1" for number in range(2)]
    analyses = ["analyse@b9-all-1", "layers@b9-all-1"]
    flow = Ready([*trainings, *analyses, "extract@b9-all-1"])
    made = Sweep(flow, jobs=5, tell=lambda _: None)  # type: ignore[arg-type]
    begun = beginning(made, monkeypatch)
    made._start_what_can()
    assert begun == [[name] for name in (*trainings, *analyses)]
    made.running.clear()
    made._start_what_can()
    assert begun[4:] == [["extract@b9-all-1"]]


def test_a_stage_that_imports_little_does_not_wait_for_the_process_of_the_forks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[tuple[str, ...], bool]] = []

    def noting(assignment: starting.Assignment) -> starting.Work:
        begun.append((assignment.names, assignment.early))
        return begin(assignment)

    begin = starting.Assignment.begin
    monkeypatch.setattr(starting.Assignment, "begin", noting)
    (here / "dvc.yaml").write_text(
        "stages:\n"
        "  prepare: {matrix: {set: [dev, eval]}, cmd: 'echo here > ${item.set}', outs: ['${item.set}']}\n"
        "  extract: {cmd: cat dev > features, deps: [dev], outs: [features]}\n"
    )
    sweep()
    assert begun == [(("prepare@dev",), True), (("prepare@eval",), False), (("extract",), False)]
    assert (here / "features").read_text() == "here\n"


def test_idle_threads_of_a_stage_sleep_unless_the_user_says_otherwise(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "dvc.yaml").write_text('stages:\n  prepare: {cmd: echo "$OPENBLAS_THREAD_TIMEOUT" > said, outs: [said]}\n')
    for of_user, said in ((None, "4"), ("20", "20")):
        monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
        if of_user:
            monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", of_user)
        shutil.rmtree(".dvc/cache", ignore_errors=True)
        Path("said").unlink(missing_ok=True)
        sweep()
        assert Path("said").read_text() == f"{said}\n"


def test_the_process_of_the_forks_has_read_the_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (None, "sets: [", SETTINGS.read_text()):  # what is wrong, the stages say
        if text is not None:
            Path("params.yaml").write_text(text)
        params_file._loaded.cache_clear()
        importlib.reload(warmed)
    before = params_file._loaded.cache_info()
    assert params_file.load(Path("params.yaml")).grid.seed
    assert params_file._loaded.cache_info().hits == before.hits + 1


# ---------------------------------------------------------------- on Dask's workers


FAR = """stages:
  train:
    matrix: {cell: [one, two, bad]}
    cmd: echo ${item.cell} >> ran && sh ${item.cell}.sh > ${item.cell}.out
    deps: ["${item.cell}.sh"]
    outs: ["${item.cell}.out"]
  evaluate:
    matrix: {cell: [one, two, bad]}
    cmd: wc -c < ${item.cell}.out > ${item.cell}.count
    deps: ["${item.cell}.out"]
    outs: ["${item.cell}.count"]
  report:
    cmd: cat one.count two.count > report.txt
    deps: [one.count, two.count]
    outs: [report.txt]
"""
# Kills the worker that runs it, which is one of the processes in the file `workers`, as when a machine goes down.
DEADLY = """
echo $$ > process
here=$$
until grep -qx $here workers; do here=$(cut -d ' ' -f 4 /proc/$here/stat); done
kill -9 $here
sleep 60
"""


@pytest.fixture(scope="module")
def cluster(warm_processes: None) -> Iterator[Client]:
    """Two workers, processes of this machine, which are forked from one that has imported what they need."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["distributed", "pipeline.sweep.cluster"])
        with Cluster("local:2", "--scheduler").client() as client:
            yield client


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Client) -> Cluster:
    """A project whose cells run on the two workers; the cell `bad` fails there."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    Path("dvc.yaml").write_text(FAR)
    for name, script in (("one", "echo 1"), ("two", "echo 22"), ("bad", "echo error: no luck >&2; exit 2")):
        Path(f"{name}.sh").write_text(script)
    Path("workers").write_text("".join(f"{process}\n" for process in cluster.run(os.getpid).values()))
    return Cluster(cluster.scheduler.address, "--scheduler")


def runs(file: Path) -> bool:
    """Whether the process runs that wrote its number into a file."""
    try:
        state = Path("/proc", file.read_text().strip(), "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # one that ended, and that nobody asked for its exit code


def sent(cluster: Cluster, tell: Callable[[Sweep], None] = lambda _: None) -> Sweep:
    """A sweep on the workers."""
    with Workers(cluster, Path.cwd() / LOGS) as workers:
        made = Sweep(Flow([]), jobs=9, tell=tell, workers=workers)
        made.run()
    return made


def test_workers_write_what_one_machine_writes_and_a_cell_that_fails_there_is_named(far: Cluster) -> None:
    most: list[int] = []
    outcome = sent(far, lambda found: most.append(len(found.running))).outcome
    assert outcome.failed == {"train@bad": "no luck"}
    assert outcome.left_out == ["evaluate@bad"]
    assert max(most) == 2  # a process for each thread of the workers
    assert [path.name for path in LOGS.glob("*.txt")] == ["train@bad.txt"]
    locks, outputs = Path("dvc.lock").read_bytes(), {path: path.read_text() for path in Path().glob("*.out")}
    assert outputs == {Path("one.out"): "1\n", Path("two.out"): "22\n", Path("bad.out"): ""}
    shutil.rmtree(".dvc/cache")
    for path in (Path("dvc.lock"), *outputs, *Path().glob("*.count")):
        path.unlink()
    assert set(sweep().outcome.ran) == set(outcome.ran)
    assert Path("dvc.lock").read_bytes() == locks
    assert sent(far).outcome.ran == []


def test_a_worker_that_is_killed_loses_its_cell_alone_and_it_is_run_again(far: Cluster) -> None:
    Path("one.sh").write_text(f"test -e died || {{ touch died; {DEADLY} }}; echo 1")
    outcome = sent(far).outcome
    assert list(outcome.failed) == ["train@bad"]
    assert sorted(ran()) == ["bad", "one", "one", "two"]
    assert not runs(Path("process"))  # the second one runs alone
    assert Path("report.txt").read_text().split() == ["2", "3"]


def test_an_interruption_ends_what_runs_at_the_workers(far: Cluster) -> None:
    Path("one.sh").write_text("echo $$ > process; exec sleep 60")

    def interrupt(found: Sweep) -> None:
        if "train@one" in found.running and Path("process").is_file() and Path("process").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sent(far, interrupt)
    until = time.monotonic() + 30
    while runs(Path("process")):
        assert time.monotonic() < until
        time.sleep(0.05)
    Path("one.sh").write_text("echo 1")
    assert list(sent(far).outcome.failed) == ["train@bad"]


def inside(workers: int) -> SpecCluster:
    """A scheduler, and workers of one thread, all in this process."""
    quiet = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    each = {"cls": Worker, "options": {"nthreads": 1, **quiet}}
    scheduler = {"cls": Scheduler, "options": {"port": 0, **quiet}}
    return SpecCluster(workers=dict.fromkeys(range(workers), each), scheduler=scheduler, silence_logs=logging.CRITICAL)


def test_a_sweep_without_workers_is_told(far: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.extraction.dask_workers.CONNECT_S", 0.2)
    with inside(0) as idle, pytest.raises(InputError, match=r"^--scheduler: expected workers at .*, got none in 0\.2"):
        sent(Cluster(idle.scheduler_address, "--scheduler"))


def test_a_sweep_whose_scheduler_goes_keeps_what_was_done(far: Cluster) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": 0.2}), inside(1) as running:

        def end(found: Sweep) -> None:
            if found.outcome.ran and running.scheduler.status.name == "running":
                running.sync(running.scheduler.close)

        with pytest.raises(InputError, match=r"^--scheduler: tcp://.* is gone; what is complete is kept: start it"):
            sent(Cluster(running.scheduler_address, "--scheduler"), end)
    assert "train@" in Path("dvc.lock").read_text()


def request(root: Path, **changes: Any) -> Request:
    """Two stages for one process of a worker. The first one makes the file `made`."""
    names = ("train@one", "train@two")
    logs = tuple(root / f"{name}.txt" for name in names)
    for log in logs:
        log.touch()
    assignment = Assignment(tuple(f"echo {name} >> ran" for name in names), logs, names, root, warm=True)
    found = Request(
        assignment, root / "notes", {}, ((root / "made",), ()), modules=frozenset(), code=CODE, versions=versions()
    )
    return dataclasses.replace(found, **changes)


def test_a_worker_runs_no_stage_that_ended_at_another_one(cluster: Client, tmp_path: Path) -> None:
    asked = request(tmp_path)
    asked.leave_note(0, 0)
    cluster.submit(run, asked, pure=False).result()
    assert (tmp_path / "ran").read_text() == "train@two\n"
    assert asked.note(1) == Note(0, digests([asked.assignment.logs[1]]))


def test_a_worker_that_differs_from_the_sweep_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"code": "another"}, r"the worker on .* runs other code than this command; restart the workers"),
        ({"versions": "torch 1.0"}, r"the worker on .* has Python .*, the sweep has torch 1\.0; start workers in"),
    ):
        with pytest.raises(InputError, match=message):
            run(request(tmp_path, **changes))
    monkeypatch.setattr("pipeline.sweep.cluster.PATIENCE_S", 0)
    monkeypatch.setattr("pipeline.sweep.cluster.LOOK_S", 0)
    asked = request(tmp_path, reads={tmp_path / "one.sh": "another"})
    with pytest.raises(InputError, match=r"the worker on .* sees another .*one\.sh than the sweep, after 0 seconds"):
        _wait_for_inputs(asked, lambda: None)
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match=r"the worker on .* cannot go to .* \(No such file or directory\)"):
        _wait_for_inputs(asked, lambda: None)


def test_outputs_that_differ_from_those_at_the_worker_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk of the worker is another one. The second stage left no note here."""
    monkeypatch.setattr("pipeline.sweep.cluster.PATIENCE_S", 0)
    asked, future = request(tmp_path), Future[None]()
    future.set_result(None)
    waiting = Sent(asked, future, Workers(Cluster("tcp://nowhere:1", "--scheduler"), tmp_path))
    (tmp_path / "made").write_text("there")
    asked.leave_note(0, 0)
    assert waiting.code(0) == 0
    (tmp_path / "made").write_text("here")
    assert [waiting.code(0), waiting.code(1)] == [2, 2]
    said = [log.read_text() for log in asked.assignment.logs]
    assert said[0].startswith(f"error: a worker ran it, but {tmp_path / 'made'} is not here as it was written there")
    assert said[1].startswith(f"error: a worker ran it, but {asked.notes} is not here")


def test_the_digest_of_a_folder_is_that_of_its_names_and_files_but_not_of_compiled_modules(tmp_path: Path) -> None:
    def digest() -> str:
        return digests([tmp_path])[tmp_path]

    (tmp_path / "a.py").write_text("1")
    found = [digest()]
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_text("1")
    assert digest() == found[0]
    (tmp_path / "a.py").write_text("22")
    found.append(digest())
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    found.append(digest())
    assert len(set(found)) == 3
    assert digests([tmp_path / "none"]) == {tmp_path / "none": ""}


def test_of_wrong_parameters_their_own_message_comes_before_that_of_dvc(here: Path) -> None:
    (here / "dvc.yaml").write_text(FLOW.replace("deps: [a.txt]", "deps: [report.txt]"))
    with pytest.raises(InputError, match="Same item"):
        Flow([])
    (here / "params.yaml").write_text("sets: [\n")
    with pytest.raises(InputError, match=r"params\.yaml:2: not valid YAML"):
        Flow([])


def test_dask_needs_a_scheduler_and_a_scheduler_needs_dask(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^--engine dask: expected --scheduler tcp://host:8786, or local:N"):
        command.main(["--engine", "dask"])
    with pytest.raises(SystemExit, match="2"):
        command.main(["--scheduler", "local:2"])
    assert "--scheduler: expected --engine dask beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "memory", "processors", "jobs"),
    [
        ("auto", None, 6, 6),  # no GPU
        ("auto", 143_771, 16, 8),
        ("cuda", 24_576, 16, 1),
        ("auto", 81_559, 3, 3),
        ("auto", 0, 16, 1),  # unknown
        ("cpu", 143_771, 16, 16),
    ],
)
def test_how_many_trainings_share_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, memory: int | None, processors: int, jobs: int
) -> None:
    settings = YAML(typ="safe").load(SETTINGS)
    settings["train"]["device"] = device
    YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(processors))
    monkeypatch.setattr(command, "_gpu_mib", lambda: memory)
    assert command._jobs() == jobs
