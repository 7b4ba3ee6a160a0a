"""The leaderboard: every system's metrics on every set, sorted by the EER on one of them, as CSV, text and JSON.

A system is what its runs have in common: they differ in the seed alone. Its EER is the mean over them. Two things make
that number uncertain: the trials that it was measured on (the bootstrap interval of each run) and the seeds (their
standard deviation s over n runs). With e the standard error that belongs to the mean bootstrap interval and t the
quantile of Student's distribution with n - 1 degrees of freedom, the 95 % interval of the system is its mean
± sqrt((1.96 e)² + t² s²/n); a single run keeps its own interval, and without bootstrap there is none. A system is
within noise of the best where their difference is at most the root of both squared half widths, as for independent
numbers. On the same trials they are not independent, and the best of many is partly lucky: to claim a difference of two
systems, name them beforehand and pair their trials (`bonafide metrics A B`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, listing

EVALUATE, TRAIN = "flow/evaluate/dvc.yaml", "train"  # as DVC names them
BEST, NEAR, RESCORED, FINETUNED = "*", "~", "†", "‡"
SELECTION = "(dev)"  # in brackets, as the set that chose the checkpoints is no test of them
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of 1, 2, ... degrees of freedom
QUANTILE = statistics.NormalDist().inv_cdf(0.975)  # 1.96: of the 95 % interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Attack:
    """One attack of a set: EER in percent against all bona fide, and its number of spoof trials."""

    eer: float
    spoof: int


@dataclass(frozen=True)
class Result:
    """One run on one set: EER and its 95 % interval in percent, its threshold, numbers of trials, attacks by name."""

    eer: float
    interval: Interval | None
    threshold: float
    bonafide: int
    spoof: int
    attacks: dict[str, Attack]

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """What must agree between runs for their values to be comparable."""
        return self.bonafide, self.spoof, {name: attack.spoof for name, attack in self.attacks.items()}


@dataclass(frozen=True)
class Training:
    """What a run cost and came to: dev EER in percent, learned parameters, seconds (None: not trained here)."""

    dev_eer: float
    parameters: int
    seconds: float | None


@dataclass(frozen=True)
class Value:
    """An EER in percent over the seeds of a system: their mean, standard deviation (None of one) and 95 % interval.

    half: half the width of the interval, before it ends at 0 and 100.
    """

    mean: float
    deviation: float | None
    interval: Interval | None
    half: float | None


def over_seeds(eers: Sequence[float], intervals: Sequence[Interval | None]) -> Value:
    """The value of a system from the EERs of its runs and their intervals, both in percent."""
    count = len(eers)
    mean = math.fsum(eers) / count
    deviation = statistics.stdev(eers) if count > 1 else None
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return Value(mean, deviation, None, None)
    trials = math.fsum(high - low for low, high in known) / len(known) / 2
    if deviation is None:
        return Value(mean, None, known[0], trials)
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else QUANTILE
    half = math.hypot(trials, quantile * deviation / math.sqrt(count))
    return Value(mean, deviation, (max(mean - half, 0.0), min(mean + half, 100.0)), half)


@dataclass(frozen=True)
class Leaderboard:
    """Systems from best to worst on the set `sort_by`.

    runs: of each system. results holds one result for every (run, set), trainings one for every run. rescored: systems
    that are scores by the embedding index of a trained system. finetuned: the one that the encoder was fine-tuned with.
    """

    systems: tuple[str, ...]
    runs: dict[str, tuple[str, ...]]
    sets: tuple[str, ...]
    sort_by: str
    trainings: dict[str, Training]
    results: dict[tuple[str, str], Result]
    rescored: frozenset[str] = frozenset()
    finetuned: frozenset[str] = frozenset()

    @property
    def chosen(self) -> str:
        """The trained system of the lowest dev EER; scores by an embedding index cannot be deployed."""
        trained = (system for system in self.systems if system not in self.rescored)
        return min(trained, key=lambda system: (self.dev_eer(system).mean, system))

    def first(self, name: str) -> Result:
        """A result on the set, for what all runs have in common: its trials and attacks."""
        return next(result for (_, on), result in self.results.items() if on == name)

    def eer(self, system: str, name: str) -> Value:
        """The EER of a system on a set."""
        found = [self.results[run, name] for run in self.runs[system]]
        return over_seeds([result.eer for result in found], [result.interval for result in found])

    def dev_eer(self, system: str) -> Value:
        """The EER of a system on the dev set that selected it, as `train` measured it; it has no interval."""
        return over_seeds([self.trainings[run].dev_eer for run in self.runs[system]], [])

    def attack(self, system: str, name: str, attack: str) -> float:
        """The mean EER in percent on one attack of a set."""
        eers = [self.results[run, name].attacks[attack].eer for run in self.runs[system]]
        return math.fsum(eers) / len(eers)

    def best_on(self, name: str, attack: str) -> float:
        """The lowest EER in percent on one attack of a set."""
        return min(self.attack(system, name, attack) for system in self.systems)

    def parameters(self, system: str) -> int:
        """Learned scalars of backend and loss, and of the encoder where it was trained with them."""
        return self.trainings[self.runs[system][0]].parameters

    def seconds(self, system: str) -> float | None:
        """Mean time that training a run took, None where none was trained here."""
        known = [seconds for run in self.runs[system] if (seconds := self.trainings[run].seconds) is not None]
        return math.fsum(known) / len(known) if known else None

    def selected(self, system: str) -> str:
        """The run of a system that stands for it in charts: of the lowest dev EER."""
        return min(self.runs[system], key=lambda run: (self.trainings[run].dev_eer, run))

    def mark(self, system: str, name: str) -> str:
        """`*` for the best on a set, `~` where the difference to it is within noise, else nothing."""
        best = min((self.eer(other, name) for other in self.systems), key=lambda value: value.mean)
        value = self.eer(system, name)
        if value.mean == best.mean:
            return BEST
        halves = [half for half in (value.half, best.half) if half is not None]
        within = len(halves) == 2 and value.mean - best.mean <= math.hypot(*halves)
        return NEAR if within else ""


def read_result(path: Path) -> Result:
    """Read the metrics that `evaluate` wrote. Raises InputError where they are missing or something else."""
    found = _json(path, EVALUATE)
    try:
        return Result(
            eer=_finite(found["eer"]),
            interval=_interval(found.get("eer_interval")),
            threshold=_finite(found["threshold"]),
            bonafide=int(found["bonafide"]),
            spoof=int(found["spoof"]),
            attacks={
                str(name): Attack(eer=_finite(attack["eer"]), spoof=int(attack["spoof"]))
                for name, attack in found["attacks"].items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unexpected(path, "metrics with eer, threshold, bonafide, spoof and attacks", error, EVALUATE) from None


def read_training(path: Path, seconds: Path) -> Training:
    """Read the metrics that `train` wrote, and its seconds where it ran here.

    Raises InputError where they are missing or something else.
    """
    found = _json(path, TRAIN)
    try:
        return Training(
            dev_eer=_finite(found["dev_eer"]),
            parameters=int(found["parameters"]),
            seconds=_finite(_json(seconds, TRAIN)["seconds"]) if seconds.is_file() else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unexpected(
            path, f"metrics with dev_eer and parameters (and {seconds} with seconds)", error, TRAIN
        ) from None


def _json(path: Path, stage: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no metrics there; run `dvc repro {stage}`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unexpected(path, "a JSON object", error, stage) from None
    if not isinstance(found, dict):
        raise _unexpected(path, "a JSON object", TypeError(type(found).__name__), stage)
    return found


def _unexpected(path: Path, what: str, error: Exception, stage: str) -> InputError:
    got = f"{type(error).__name__} {error}"
    return InputError(f"{path}: expected {what}, got {got}; run `dvc repro -f {stage}`")


def _finite(value: float | str) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} where a finite number belongs")
    return float(value)


def _interval(ends: Sequence[float] | None) -> Interval | None:
    if ends is None:
        return None
    low, high = ends
    return _finite(low), _finite(high)


def gather(
    folder: Path,
    *,
    runs: Mapping[str, str],
    sets: Sequence[str],
    sort_by: str,
    seconds: Path,
    rescored: Collection[str] = (),
    finetuned: Collection[str] = (),
) -> Leaderboard:
    """Read FOLDER/<run>.json and FOLDER/<run>-<set>.json for every run and set; sort the systems by EER, then name.

    Args:
        runs: the system of every run. seconds: folder with <run>.json for the runs that were trained here.
        rescored: the runs that are scores by an embedding index. finetuned: that which the encoder was fine-tuned with.

    Raises InputError for no or repeated names, a `sort_by` that is no set, metrics that are missing or malformed, and
    runs that were evaluated on different trials.
    """
    _check_names(list(runs), sets, sort_by)
    if not set(runs) - set(rescored):
        raise InputError(f"expected at least one trained run, got only scores by an index: {listing(list(rescored))}")
    problems, results, trainings = [], {}, {}
    for run in runs:
        try:
            trainings[run] = read_training(folder / f"{run}.json", seconds / f"{run}.json")
        except InputError as error:
            problems.append(str(error))
        for name in sets:
            try:
                results[run, name] = read_result(folder / f"{run}-{name}.json")
            except InputError as error:
                problems.append(str(error))
    if problems:
        files = len(runs) * (len(sets) + 1)
        raise InputError(f"{len(problems)} of {files} files of metrics cannot be used:\n{listing(problems)}")
    _check_same_trials(folder, list(runs), sets, results)
    members = {system: tuple(sorted(run for run in runs if runs[run] == system)) for system in runs.values()}
    by_index, end_to_end = (frozenset(runs[run] for run in names) for names in (rescored, finetuned))
    board = Leaderboard(tuple(members), members, tuple(sets), sort_by, trainings, results, by_index, end_to_end)
    order = sorted(board.systems, key=lambda system: (board.eer(system, sort_by).mean, system))
    return replace(board, systems=tuple(order))


def _check_names(runs: Sequence[str], sets: Sequence[str], sort_by: str) -> None:
    for kind, names in (("run", runs), ("set", sets)):
        if not names:
            raise InputError(f"expected at least one {kind}, got none")
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise InputError(f"expected every {kind} once, got {twice[0]} twice")
    if sort_by not in sets:
        raise InputError(f"expected to sort by one of the sets {', '.join(sets)}, got {sort_by}")


def _check_same_trials(
    folder: Path, runs: Sequence[str], sets: Sequence[str], results: dict[tuple[str, str], Result]
) -> None:
    """An EER says nothing beside one on other trials."""
    for name in sets:
        for run in runs:
            if results[run, name].counts() != results[runs[0], name].counts():
                raise InputError(
                    f"{folder / run}-{name}.json and {folder / runs[0]}-{name}.json count different trials or "
                    f"attacks, so that their values cannot be compared; run `dvc repro {EVALUATE}`"
                )


def to_csv(board: Leaderboard) -> str:
    """The leaderboard as CSV, a line a system, EERs in percent.

    rank, system, runs, dev_eer, dev_eer_sd, of every set eer/<set> with _sd, _low, _high (95 %) and _mark, seconds,
    parameters, and eer/<set>/<attack>; cells without a value are empty.
    """
    attacks = [(name, attack) for name in board.sets for attack in board.first(name).attacks]
    header = ["rank", "system", "runs", "dev_eer", "dev_eer_sd"]
    header += [f"eer/{name}{part}" for name in board.sets for part in ("", "_sd", "_low", "_high", "_mark")]
    header += ["seconds", "parameters", *(f"eer/{name}/{attack}" for name, attack in attacks)]
    rows = []
    for rank, system in enumerate(board.systems, start=1):
        dev = board.dev_eer(system)
        row: list[Any] = [rank, system, len(board.runs[system]), dev.mean, dev.deviation]
        for name in board.sets:
            value = board.eer(system, name)
            row += [value.mean, value.deviation, *(value.interval or (None, None)), board.mark(system, name)]
        row += [board.seconds(system), board.parameters(system)]
        rows.append(row + [board.attack(system, name, attack) for name, attack in attacks])
    return _csv(header, rows)


def runs_to_csv(board: Leaderboard) -> str:
    """Every run by itself as CSV: system, run, dev_eer, eer/<set>, seconds, parameters."""
    header = ["system", "run", "dev_eer", *(f"eer/{name}" for name in board.sets), "seconds", "parameters"]
    rows = []
    for system in board.systems:
        for run in board.runs[system]:
            training = board.trainings[run]
            eers = [board.results[run, name].eer for name in board.sets]
            rows.append([system, run, training.dev_eer, *eers, training.seconds, training.parameters])
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def to_json(board: Leaderboard) -> str:
    """What `dvc exp show` and `dvc metrics diff` show, EERs in percent: that of each system on `sort_by`, and those of
    the trained system that dev would choose."""
    chosen = board.chosen
    eers = {system: round(board.eer(system, board.sort_by).mean, 4) for system in sorted(board.systems)}
    sets = {name: round(board.eer(chosen, name).mean, 4) for name in board.sets}
    dev = round(board.dev_eer(chosen).mean, 4)
    found = {"chosen": {"system": chosen, "dev_eer": dev, "eer": sets}, "eer": eers}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def to_text(board: Leaderboard) -> str:
    """The leaderboard as an aligned table, with what its marks mean and what its sets hold below."""
    header = ["", "system", "runs", SELECTION, *board.sets]
    header += ["seconds", "parameters"]
    rows = [header] + [[f"{rank}", *_cells(board, system)] for rank, system in enumerate(board.systems, start=1)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    left = {1, 3, *range(4, 4 + len(board.sets))}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    title = f"EER in percent, sorted by {board.sort_by}: an order to look at, no selection"
    notes = [
        f"{BEST} best of its column, {NEAR} within noise of it; [] 95 % interval; ± standard deviation over seeds",
        f"{SELECTION}: the dev set, as training saw it when it chose its checkpoints; seconds: of training a run",
    ]
    if board.rescored:
        notes.append(f"{RESCORED} by the embedding index of the trained system, and left out of what dev chooses")
    if board.finetuned:
        notes.append(f"{FINETUNED} trained with the encoder, whose parameters it counts; all others read its features")
    notes += [f"{name}: {board.first(name).bonafide} bona fide, {board.first(name).spoof} spoof" for name in board.sets]
    return "\n".join([title, "", *lines, "", *notes]) + "\n"


def _cells(board: Leaderboard, system: str) -> list[str]:
    seconds = board.seconds(system)
    values = [_shown(board.dev_eer(system), "")]
    values += [_shown(board.eer(system, name), board.mark(system, name)) for name in board.sets]
    cost = ["-" if seconds is None else f"{seconds:.1f}", f"{board.parameters(system):,}"]
    mark = RESCORED if system in board.rescored else FINETUNED if system in board.finetuned else ""
    return [f"{system} {mark}".rstrip(), f"{len(board.runs[system])}", *values, *cost]


def _shown(value: Value, mark: str) -> str:
    """An EER as ` 3.25 ± 0.41 [2.40, 4.10] *`."""
    text = f"{value.mean:5.2f}"
    if value.deviation is not None:
        text += f" ± {value.deviation:.2f}"
    if value.interval is not None:
        text += f" [{value.interval[0]:.2f}, {value.interval[1]:.2f}]"
    return f"{text} {mark}".rstrip()
