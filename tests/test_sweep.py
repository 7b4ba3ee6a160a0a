"""The sweep: what runs, in what order, what DVC is told, and what a failure, a kill and an edit leave."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.commands import status
from pipeline.commands import sweep as command
from pipeline.core.errors import InputError
from pipeline.sweep import starting
from pipeline.sweep.status import Progress, cells, progress
from pipeline.sweep.sweep import Running, Sweep
from pipeline.sweep.tracked import Flow, State

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
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of shell commands; the file bad.txt is not there, so that its cell fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
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


def test_a_target_brings_what_it_needs_and_nothing_else(here: Path) -> None:
    sweep("evaluate@two")
    assert ran() == ["first", "two", "count-two"]
    with pytest.raises(InputError, match="nope"):
        Flow(["nope"])


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


class Ready:
    """A flow of trainings that can all begin at once, of two choices of layers."""

    root = Path()

    def __init__(self, names: list[str]) -> None:
        self.steps = names
        self.needs: dict[str, set[str]] = {name: set() for name in names}

    def command(self, name: str) -> str:
        backend, layers, seed = name.removeprefix("train@").split("-")
        return f"python -m stages.train --backend {backend} --layers {layers} --views v --seed {seed} --run {name}"


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
    begun: list[list[str]] = []

    def begin(group: list[str]) -> None:
        begun.append(group)
        work = starting.Work(None)  # type: ignore[arg-type]
        made.running |= {name: Running(work, 0, Path(), contextlib.ExitStack()) for name in group}

    monkeypatch.setattr(made, "_start", begin)
    monkeypatch.setattr(made, "_is_stale", lambda name: not made.waiting.remove(name))
    made._start_what_can()
    assert begun == [[names[number] for number in group] for group in groups]


def test_no_more_than_eight_trainings_share_a_process() -> None:
    names = [f"train@b{number}-all-1" for number in range(30)]
    made = Sweep(Ready(names), jobs=1, tell=lambda _: None)  # type: ignore[arg-type]
    made.waiting.remove(names[0])
    assert made._companions(names[0]) == names[1:8]
