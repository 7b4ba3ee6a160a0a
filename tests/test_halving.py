"""Successive halving: what is dropped, what DVC is told, and what a rerun does again."""

import csv
from collections.abc import Collection
from pathlib import Path

import pytest
from dvc.repo import Repo

from bench import halving as bench
from pipeline.core.errors import InputError
from pipeline.report import stopped
from pipeline.sweep import halving
from pipeline.sweep.halving import Halving, HalvingPlan, RungSteps, ranked
from pipeline.sweep.status import Progress, lines, progress
from pipeline.sweep.sweep import Outcome, Steps
from pipeline.sweep.tracked import Flow, State
from pipeline.training import dropped

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # of a library that DVC uses
FLOW = """stages:
  first:
    cmd: echo 1 > first.txt
    outs: [first.txt]
  train:
    matrix: {cell: [a-1, a-2, b-1, b-2, c-1, c-2, d-1, d-2]}
    cmd: python -m stages.train --run ${item.cell} --curves data/curves/${item.cell}.csv
    deps: [first.txt, "${item.cell}.txt"]
    outs: ["data/metrics/${item.cell}.json", "data/curves/${item.cell}.csv"]
  evaluate:
    matrix: {cell: [a-1, a-2, b-1, b-2, c-1, c-2, d-1, d-2]}
    cmd: python -m stages.evaluate ${item.cell}
    deps: ["data/metrics/${item.cell}.json"]
    outs: ["data/metrics/${item.cell}.eer"]
  report:
    cmd: cat data/metrics/*.eer > report.txt
    deps: [data/metrics, data/curves]
    outs: [report.txt]
"""
RUNS = {f"{system}-{seed}": system for system in "abcd" for seed in (1, 2)}
# (dev EER, dev loss) after epochs 1 to 8, of both seeds. b is the best one, d starts well, c and a tie after epoch 2.
CURVES = {
    "a": [(9, 3), (8, 3), (8, 3), (8, 3), (8, 3), (8, 3), (8, 3), (8, 3)],
    "b": [(9, 2), (7, 2), (7, 2), (4, 2), (4, 2), (2, 2), (1, 2), (1, 2)],
    "c": [(9, 1), (8, 1), (8, 1), (8, 1), (0, 1), (0, 1), (0, 1), (0, 1)],
    "d": [(6, 4), (6, 4), (6, 4), (5, 4), (5, 4), (5, 4)],  # ends early
}


class Trained:
    """A sweep that trains and runs nothing, but writes what would be written. begun: each training and its epochs."""

    def __init__(self, fails: Collection[str] = ()) -> None:
        self.begun: list[tuple[str, int]] = []
        self.fails = fails

    def __call__(self, steps: Steps, leave: Collection[str]) -> Outcome:
        outcome = Outcome()
        for name in steps.steps:
            run = name.rpartition("@")[2]
            if name in leave or (run not in self.fails and steps.look(name) is not State.STALE):
                continue
            if run in self.fails:
                outcome.failed[name] = "no"
                continue
            if name.startswith("train@"):
                epochs = steps.epochs if isinstance(steps, RungSteps) else 8
                self.begun.append((run, epochs))
                words = steps.command(name).split()
                write(Path(words[-1]), run, epochs)
                if epochs == 8:
                    Path(f"data/metrics/{run}.json").write_text(run)
            else:
                Path({"first": "first.txt", "report": "report.txt"}.get(name, f"data/metrics/{run}.eer")).write_text(
                    name
                )
            steps.keep(name)
            outcome.ran.append(name)
        steps.write_locks()
        return outcome


def write(path: Path, run: str, epochs: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "dev_loss", "dev_eer"])
        shift = 0.1 if run.endswith("2") else -0.1
        rows.writerows([i, loss, eer + shift] for i, (eer, loss) in enumerate(CURVES[run[0]][:epochs], 1))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("data/curves", "data/metrics"):
        Path(folder).mkdir(parents=True)
    Path("dvc.yaml").write_text(FLOW)
    for run in RUNS:
        Path(f"{run}.txt").write_text(run)
    Repo.init(no_scm=True).close()
    return tmp_path


def search(sweep: Trained, *, spared: Collection[str] = ()) -> Halving:
    made = Halving(Flow([]), HalvingPlan(RUNS, spared, first=2, epochs=8), sweep)
    made.run()
    return made


def changed() -> set[str]:
    """The stages that DVC calls changed."""
    with Repo() as repo:
        return set(repo.status())


def of(kind: str, *systems: str) -> set[str]:
    return {f"{kind}@{system}-{seed}" for system in systems for seed in (1, 2)}


def test_half_is_dropped_after_each_rung_and_the_rest_is_done(here: Path) -> None:
    """c is kept after epoch 2, as its loss is below that of a; after epoch 4 b and d are better than c."""
    sweep = Trained()
    made = search(sweep)
    assert [(rung.epochs, rung.systems, dict(rung.dropped)) for rung in made.rungs] == [
        (2, 4, {"c": 8.0, "a": 8.0}),
        (4, 2, {"d": 5.0}),
    ]
    two, four = ([(f"{system}-{seed}", epochs) for system in systems for seed in (1, 2)]
                 for systems, epochs in (("abcd", 2), ("db", 4)))  # fmt: skip
    assert sweep.begun == [*two, *four, ("b-1", 8), ("b-2", 8)]
    assert changed() == of("train", "a", "c", "d") | of("evaluate", "a", "c", "d")
    found = progress(Flow([]), here)
    assert {name for name, state in found.items() if state is Progress.DROPPED} == changed()
    assert found["report"] is found["train@b-1"] is Progress.DONE
    assert lines(found)[-1] == "8 cells: 2 done, 6 dropped"


def test_a_rerun_trains_nothing_again_and_comes_to_the_same(here: Path) -> None:
    first = search(Trained())
    table, report = halving.TABLE.read_bytes(), Path("dvc.lock").read_bytes()
    again = Trained()
    assert search(again).rungs == first.rungs
    assert again.begun == []
    assert (halving.TABLE.read_bytes(), Path("dvc.lock").read_bytes()) == (table, report)
    Path("b-2.txt").write_text("another input")
    assert progress(Flow([]), here)["train@d-1"] is Progress.DROPPED
    search(again)
    assert again.begun == [("b-2", 2), ("b-2", 4), ("b-2", 8)]
    Path("d-1.txt").write_text("another input")
    assert progress(Flow([]), here)["train@d-1"] is Progress.STALE


def test_what_is_analysed_or_done_is_not_dropped(here: Path) -> None:
    made = search(Trained(), spared=["a-2", "tuned", "a-2-knn"])
    assert [set(rung.dropped) for rung in made.rungs] == [{"c"}, {"d"}]
    assert not changed() & of("train", "a", "b")
    Trained()(Flow([]), of("train", "c") | of("evaluate", "c") | {"report"})
    made = search(Trained())
    assert [set(rung.dropped) for rung in made.rungs] == [{"c"}, set()]
    assert [(one.runs, one.epochs) for one in dropped.read(Path("data/curves"))] == [(("c-1", "c-2"), 2)]


def test_a_system_of_which_a_run_fails_is_out_of_the_race_and_fails_at_the_end(here: Path) -> None:
    sweep = Trained(fails=["d-2"])
    made = Halving(Flow([]), HalvingPlan(RUNS, (), first=2, epochs=8), sweep)
    assert set(made.run().failed) == {"train@d-2"} | {"evaluate@d-2"}
    assert [set(rung.dropped) for rung in made.rungs] == [{"a"}, {"c"}]


def test_the_order_of_systems() -> None:
    """By the mean over runs of the lowest EER so far; a loss that is not finite comes last of equals."""
    nan = float("nan")
    curves = {
        "x": [[(5.0, 1.0), (9.0, 0.1)], [(7.0, 1.0)]],
        "y": [[(6.0, nan)], [(6.0, 0.5)]],
        "z": [[(8.0, 0.1), (1.0, 9.0)], [(2.0, 0.1)]],
        "u": [[(6.0, 0.5)], [(6.0, 0.5), (6.0, 0.4)]],
    }
    assert ranked(curves, 1) == {"z": 5.0, "u": 6.0, "x": 6.0, "y": 6.0}
    assert list(ranked(curves, 2).items())[:2] == [("z", 1.5), ("u", 6.0)]
    assert HalvingPlan({}, (), first=5, epochs=40).rungs == [5, 10, 20]
    assert HalvingPlan({}, (), first=3, epochs=4).rungs == [3]


def test_the_bench_counts_epochs_and_the_loss_of_the_winner() -> None:
    """a and c stop after 2 epochs and d after 4; b goes on to 8. c would have been better by far, and is lost."""
    systems = {system: [f"{system}-1", f"{system}-2"] for system in "abcd"}
    curves = {run: CURVES[run[0]] for run in RUNS}
    eers = {run: curve[-1][0] for run, curve in curves.items()}
    found = bench.search(systems, curves, eers, HalvingPlan(RUNS, (), first=2, epochs=8))
    assert found == bench.Searched(epochs=2 * (2 + 8 + 2 + 4), whole=2 * (8 + 8 + 8 + 6), best=1.0, winner=0.0)


def test_curves_of_another_kind_are_refused(tmp_path: Path) -> None:
    for text in ("", "epoch,dev_eer\n1,2\n", "dev_eer,dev_loss\n", "dev_eer,dev_loss\n1,x\n"):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(InputError, match=r"c\.csv: expected training curves with dev_eer and dev_loss"):
            halving.read_curve(tmp_path / "c.csv")


def test_the_report_names_what_has_no_row(here: Path) -> None:
    search(Trained())
    found = stopped.read(Path("data/curves"), Path("data/metrics"), runs=RUNS)
    assert [(one.system, one.epochs, one.dev_eer) for one in found] == [("d", 4, 5.0), ("c", 2, 8.0), ("a", 2, 8.0)]
    assert ": 2 after epoch 2, 1 after epoch 4;" in stopped.sentence(found)
    for seed in (1, 2):
        assert len(stopped.read(Path("data/curves"), Path("data/metrics"), runs=RUNS)) == 3  # one seed is no row
        Path(f"data/metrics/d-{seed}.json").write_text("")
    assert len(stopped.read(Path("data/curves"), Path("data/metrics"), runs=RUNS)) == 2
    one = '{"system": "a", "runs": ["a-1"], "dev_eer": %s}'
    for text in ("3", '{"rungs": [{"dropped": 3}]}', '{"rungs": [{"epochs": 1, "dropped": [' + one % "NaN" + "]}]}"):
        halving.TABLE.write_text(text)
        with pytest.raises(InputError, match=r"halving\.json: expected what `bonafide sweep --halving` wrote"):
            dropped.read(Path("data/curves"))
