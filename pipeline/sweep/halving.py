"""Successive halving: all systems of the grid for a few epochs, the better half for twice as many, and so on.

After Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.
A system is kept or dropped with all its seeds, by the mean of the lowest dev EERs of its runs.

DVC is told nothing of a rung. It is trained by the command of the stage with `--until`, which writes a curve into
`RUNGS` and the checkpoint from which the stage itself goes on. So a system that is left at the end is trained by its
own stage, to the bits of a training without a rung, and one that is dropped is a stage that is not done.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.sweep import starting
from pipeline.sweep.sweep import Outcome, Steps, kind_of
from pipeline.sweep.tracked import Flow, State
from pipeline.training import dropped

TABLE = Path("data/curves", dropped.FILE)  # in a folder that the report depends on
RUNGS = Path(".dvc/tmp/halving")
OF_A_CELL = ("train", "score", "evaluate")  # the kinds of its stages

Curve = Sequence[tuple[float, float]]  # of each epoch the dev EER in percent and the dev loss
SweepOver = Callable[[Steps, Collection[str]], Outcome]  # sweeps over stages, but leaves some as they are


@dataclass(frozen=True)
class Rung:
    """What was decided after some epochs: of how many systems which were dropped, with their dev EERs in percent."""

    epochs: int
    systems: int
    dropped: Mapping[str, float]


@dataclass(frozen=True)
class HalvingPlan:
    """What to search. systems: run -> its system. spared: runs that are trained in any case, and others are ignored.

    first: epochs of the first rung. epochs: of a whole training.
    """

    systems: Mapping[str, str]
    spared: Collection[str]
    first: int
    epochs: int

    @property
    def rungs(self) -> list[int]:
        """The epochs after which systems are dropped, each twice the one before."""
        found = [self.first]
        while 2 * found[-1] < self.epochs:
            found.append(2 * found[-1])
        return [epochs for epochs in found if epochs < self.epochs]


def ranked(curves: Mapping[str, Sequence[Curve]], epochs: int) -> dict[str, float]:
    """Systems by the mean dev EER of their runs up to an epoch, the lowest first, with this mean in percent.

    Of a run it is the lowest so far. Of equals the lower mean of the dev losses at these epochs comes first, then the
    order of `curves`. curves: system -> one a run.
    """
    found = {}
    for system, runs in curves.items():
        best = [min(curve[:epochs], key=lambda line: (line[0], _or_last(line[1]))) for curve in runs]
        found[system] = tuple(math.fsum(values) / len(best) for values in zip(*best, strict=True))
    order = sorted(found, key=lambda system: (found[system][0], _or_last(found[system][1])))
    return {system: found[system][0] for system in order}


def _or_last(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def read_curve(path: Path) -> Curve:
    """The dev EER and the dev loss after each epoch, from the curves of `train`. Raises InputError for another file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if found := [(float(line["dev_eer"]), float(line["dev_loss"])) for line in csv.DictReader(file)]:
                return found
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError(f"{path}: expected training curves with dev_eer and dev_loss, got another file; delete it")


@dataclass
class RungSteps:
    """Trainings up to an epoch, as stages that a sweep goes over. done: those that DVC has whole."""

    flow: Flow
    steps: list[str]
    epochs: int
    done: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.flow.root

    @property
    def needs(self) -> dict[str, set[str]]:
        """What the trainings need is there."""
        return {name: set() for name in self.steps}

    def command(self, name: str) -> str:
        """The command of the stage, which ends after the epoch and writes its curve elsewhere."""
        path = shlex.quote(str(self._file(name)))
        return f"{self.flow.command(name)} --until {self.epochs} --curves {path}"

    def reads(self, name: str) -> list[Path]:
        """The files and folders that the training depends on."""
        return self.flow.reads(name)

    def writes(self, name: str) -> list[Path]:
        """The curve up to the epoch."""
        return [self.root / self._file(name)]

    def look(self, name: str) -> State:
        """Find whether the stage is done, or else the rung."""
        state = self.flow.look(name)
        if state is not State.STALE:
            self.done.add(name)
        return State.CURRENT if state is State.STALE and self._file(name).is_file() else state

    def keep(self, name: str) -> None:
        """Read what was made. Raises InputError where it is not there."""
        self.curve(name)

    def curve(self, name: str) -> Curve:
        """The curve of a training, at least up to the epoch, or to the end of the training."""
        return read_curve(_written(self.flow.command(name)) if name in self.done else self._file(name))

    def busy(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep other commands of DVC from what the stage reads and writes."""
        return self.flow.busy(name)

    def write_locks(self) -> None:
        """Write those of stages that were restored."""
        self.flow.write_locks()

    def _file(self, name: str) -> Path:
        return rung_file(self.flow, name, self.epochs)


def rung_file(flow: Flow, name: str, epochs: int) -> Path:
    """Where the curve of a training up to an epoch lies. Its name changes with the inputs of the stage."""
    return RUNGS / str(epochs) / f"{run_of(name)}-{flow.inputs(name)}.csv"


def run_of(name: str) -> str:
    """The run of a stage of training."""
    return name.rpartition("@")[2]


def _written(command: str) -> Path:
    words = shlex.split(command)
    return Path(words[words.index("--curves") + 1])


class Halving:
    """A search through the trainings of a flow. sweep: goes over stages."""

    def __init__(self, flow: Flow, plan: HalvingPlan, sweep: SweepOver) -> None:
        self.flow, self.plan, self._sweep = flow, plan, sweep
        self.rungs: list[Rung] = []
        trainings = [name for name in flow.steps if starting.stage_of(flow.command(name)) == starting.TOGETHER]
        self._names: dict[str, list[str]] = {}
        for name in (name for name in trainings if run_of(name) in plan.systems):
            self._names.setdefault(plan.systems[run_of(name)], []).append(name)

    def run(self) -> Outcome:
        """Bring up to date what trainings need, drop systems rung by rung, then bring up to date all that is left."""
        trainings = [name for names in self._names.values() for name in names]
        before = self._needed_by(trainings)
        outcome = self._sweep(self.flow, [name for name in self.flow.steps if name not in before])
        if outcome.failed:
            return outcome
        standing = list(self._names)
        write_table(self.rungs, self.plan)
        for epochs in self.plan.rungs:
            if len(standing) < 2:
                break
            standing = self._rung(standing, epochs)
            write_table(self.rungs, self.plan)
        return self._sweep(self.flow, self._stages_of({system for rung in self.rungs for system in rung.dropped}))

    def _rung(self, standing: Sequence[str], epochs: int) -> list[str]:
        """Train systems up to an epoch; the better half of them. One of which a run failed is not among them."""
        steps = RungSteps(self.flow, [name for system in standing for name in self._names[system]], epochs)
        failed = self._sweep(steps, ()).failed
        whole = [system for system in standing if not failed.keys() & set(self._names[system])]
        eers = ranked({system: [steps.curve(name) for name in self._names[system]] for system in whole}, epochs)
        kept, others = list(eers)[: (len(eers) + 1) // 2], list(eers)[(len(eers) + 1) // 2 :]
        spared = {system for run, system in self.plan.systems.items() if run in self.plan.spared}
        spared |= {system for system in others if steps.done.issuperset(self._names[system])}
        left = {system: eers[system] for system in others if system not in spared}
        self.rungs.append(Rung(epochs, len(standing), left))
        return kept

    def _needed_by(self, names: Iterable[str]) -> set[str]:
        found: set[str] = set()
        ahead = list(names)
        while ahead:
            new = self.flow.needs[ahead.pop()] - found
            found |= new
            ahead += new
        return found

    def _stages_of(self, systems: Collection[str]) -> set[str]:
        """The stages of the cells of systems."""
        found = {name for system in systems for name in self._names[system]}
        for name in self.flow.steps:  # each after those that it needs
            if kind_of(name) in OF_A_CELL and self.flow.needs[name] & found:
                found.add(name)
        return found


def write_table(rungs: Iterable[Rung], plan: HalvingPlan) -> None:
    """Write what was dropped, for `pipeline.training.dropped`."""
    found: list[dict[str, Any]] = []
    for rung in rungs:
        systems = [
            {
                "system": system,
                "dev_eer": round(eer, 4),
                "runs": [run for run, of in plan.systems.items() if of == system],
            }
            for system, eer in rung.dropped.items()
        ]
        found.append({"epochs": rung.epochs, "systems": rung.systems, "dropped": systems})
    write_text(TABLE, json.dumps({"rungs": found}, indent=2) + "\n")


def lines(rungs: Iterable[Rung]) -> Iterator[str]:
    """What was dropped and when, for the terminal: each rung and its systems, the best first."""
    for rung in rungs:
        yield f"after epoch {rung.epochs}, {len(rung.dropped)} of {rung.systems} systems dropped"
        yield from (f"  {eer:6.2f} %  {system}" for system, eer in rung.dropped.items())
