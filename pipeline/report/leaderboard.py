"""The leaderboard: every run's metrics on every set, sorted by the EER on one of them, as CSV and as plain text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, listing

REMEDY = "run `dvc repro evaluate`"
BEST = "*"
SELECTION = "(dev)"  # in brackets, as the set that chose the checkpoints is no test of them


@dataclass(frozen=True)
class Attack:
    """One attack of a set: EER in percent against all bona fide, and its number of spoof trials."""

    eer: float
    spoof: int


@dataclass(frozen=True)
class Result:
    """One run on one set: EER in percent, its threshold, the numbers of trials, and the attacks by name."""

    eer: float
    threshold: float
    bonafide: int
    spoof: int
    attacks: dict[str, Attack]

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """What must agree between runs for their values to be comparable."""
        return self.bonafide, self.spoof, {name: attack.spoof for name, attack in self.attacks.items()}


@dataclass(frozen=True)
class Leaderboard:
    """Runs from best to worst on the set `sort_by`; `results` holds one result for every (run, set).

    dev_eer: by run, percent, of the trained system on the dev set that selected it, as `train` measured it.
    """

    runs: tuple[str, ...]
    sets: tuple[str, ...]
    sort_by: str
    dev_eer: dict[str, float]
    results: dict[tuple[str, str], Result]

    def first(self, name: str) -> Result:
        """A result on the set, for what all runs have in common: its trials and attacks."""
        return self.results[self.runs[0], name]

    def best(self, name: str) -> float:
        """The lowest EER on the set, percent."""
        return min(self.results[run, name].eer for run in self.runs)

    def best_on(self, name: str, attack: str) -> float:
        """The lowest EER on one attack of the set, percent."""
        return min(self.results[run, name].attacks[attack].eer for run in self.runs)


def read_result(path: Path) -> Result:
    """Read the metrics that `evaluate` wrote. Raises InputError where they are missing or something else."""
    if not path.is_file():
        raise InputError(f"{path}: no metrics there; {REMEDY}")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Result(
            eer=_finite(found["eer"]),
            threshold=_finite(found["threshold"]),
            bonafide=int(found["bonafide"]),
            spoof=int(found["spoof"]),
            attacks={
                str(name): Attack(eer=_finite(attack["eer"]), spoof=int(attack["spoof"]))
                for name, attack in found["attacks"].items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected metrics with eer, threshold, bonafide, spoof and attacks, got {type(error).__name__} "
            f"{error}; {REMEDY}"
        ) from None


def read_dev_eer(path: Path) -> float:
    """The dev EER in percent of the metrics that `train` wrote. Raises InputError where they are missing or others."""
    if not path.is_file():
        raise InputError(f"{path}: no metrics there; run `dvc repro train`")
    try:
        return _finite(json.loads(path.read_text(encoding="utf-8"))["dev_eer"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected metrics with dev_eer, got {type(error).__name__} {error}; run `dvc repro -f train`"
        ) from None


def _finite(value: float | str) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} where a finite number belongs")
    return float(value)


def gather(folder: Path, *, runs: Sequence[str], sets: Sequence[str], sort_by: str) -> Leaderboard:
    """Read FOLDER/<run>.json and FOLDER/<run>/<set>.json for every run and set; sort the runs by EER, then name.

    Raises InputError for no or repeated names, a `sort_by` that is no set, metrics that are missing or malformed, and
    runs that were evaluated on different trials.
    """
    _check_names(runs, sets, sort_by)
    problems, results, dev_eer = [], {}, {}
    for run in runs:
        try:
            dev_eer[run] = read_dev_eer(folder / f"{run}.json")
        except InputError as error:
            problems.append(str(error))
        for name in sets:
            try:
                results[run, name] = read_result(folder / run / f"{name}.json")
            except InputError as error:
                problems.append(str(error))
    if problems:
        files = len(runs) * (len(sets) + 1)
        raise InputError(f"{len(problems)} of {files} files of metrics cannot be used:\n{listing(problems)}")
    _check_same_trials(folder, runs, sets, results)
    order = sorted(runs, key=lambda run: (results[run, sort_by].eer, run))
    return Leaderboard(runs=tuple(order), sets=tuple(sets), sort_by=sort_by, dev_eer=dev_eer, results=results)


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
                    f"{folder / run / name}.json and {folder / runs[0] / name}.json count different trials or "
                    f"attacks, so that their values cannot be compared; {REMEDY}"
                )


def to_csv(board: Leaderboard) -> str:
    """The leaderboard as CSV, in percent as in the metrics: rank, run, dev_eer, eer/<set>, eer/<set>/<attack>."""
    attacks = [(name, attack) for name in board.sets for attack in board.first(name).attacks]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pooled_names, attack_names = (
        [f"eer/{name}" for name in board.sets],
        [f"eer/{name}/{kind}" for name, kind in attacks],
    )
    writer.writerow(["rank", "run", "dev_eer", *pooled_names, *attack_names])
    for rank, run in enumerate(board.runs, start=1):
        pooled = [board.results[run, name].eer for name in board.sets]
        single = [board.results[run, name].attacks[attack].eer for name, attack in attacks]
        writer.writerow([rank, run, board.dev_eer[run], *pooled, *single])
    return text.getvalue()


def to_text(board: Leaderboard) -> str:
    """The leaderboard as an aligned table, with what its sets hold below."""
    header = ["", "run", SELECTION + "  ", *(name + "  " for name in board.sets)]
    rows = [header] + [[f"{rank}", run, *_cells(board, run)] for rank, run in enumerate(board.runs, start=1)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    counts = [f"{name}: {board.first(name).bonafide} bona fide, {board.first(name).spoof} spoof" for name in board.sets]
    title = f"EER in percent, sorted by {board.sort_by}; {BEST} best of its column"
    selection = f"{SELECTION}: the dev set, as training saw it when it chose its checkpoints"
    return "\n".join([title, "", *lines, "", selection, *counts]) + "\n"


def _cells(board: Leaderboard, run: str) -> list[str]:
    pairs = [(board.dev_eer[run], min(board.dev_eer.values()))]
    pairs += [(board.results[run, name].eer, board.best(name)) for name in board.sets]
    return [f"{eer:.2f} {BEST if eer == best else ' '}" for eer, best in pairs]
