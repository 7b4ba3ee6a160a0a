"""Successive halving against the full grid: how many epochs it takes, and how often it loses the winner.

    cp recipes/ablation_speech.yaml params.yaml && bonafide sweep
    python bench/halving.py [PROJECT]

PROJECT is a project whose whole grid is trained, by default this one. Nothing is trained here. A training in parts has
the curve of a whole one (a test holds that), so the curves in data/curves say what `bonafide sweep --halving` would
have kept, by its own functions, and how many epochs each run would have taken. This depends on no clock.

The winner is the system with the lowest dev EER of the full grid. It is lost where the best system that is kept has a
higher one. Searched are the grid as it is, with all seeds together; the grid of each seed by itself; and halves of the
systems, drawn at random, of each seed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import params_file
from pipeline.sweep.halving import Curve, HalvingPlan, ranked, read_curve

DRAWS = 200  # halves of the systems, a seed
FIRST = (1, 2, 3, 5, 8)  # epochs of the first rung


@dataclass(frozen=True)
class Searched:
    """One search. epochs: of it, whole: of the full grid. best, winner: the lowest dev EER in percent of both."""

    epochs: int
    whole: int
    best: float
    winner: float


def search(
    systems: Mapping[str, Sequence[str]], curves: Mapping[str, Curve], eers: Mapping[str, float], plan: HalvingPlan
) -> Searched:
    """What halving does with some systems. systems: system -> its runs. eers: percent, of each deployed run."""
    standing, taken = list(systems), dict.fromkeys((run for runs in systems.values() for run in runs), 0)

    def train(until: float) -> None:
        for run in (run for system in standing for run in systems[system]):
            taken[run] = int(min(len(curves[run]), until))

    for until in plan.rungs:
        train(until)
        order = list(ranked({system: [curves[run] for run in systems[system]] for system in standing}, until))
        standing = order[: (len(order) + 1) // 2]
    train(math.inf)
    mean = {system: statistics.fmean(eers[run] for run in runs) for system, runs in systems.items()}
    whole = sum(len(curves[run]) for run in taken)
    return Searched(sum(taken.values()), whole, min(mean[system] for system in standing), min(mean.values()))


def show(what: str, first: int, found: Collection[Searched]) -> None:
    """A line of the table, of one search or several."""
    share = sum(one.epochs for one in found) / sum(one.whole for one in found)
    lost = [one.best - one.winner for one in found if one.best > one.winner]
    worse = f"{statistics.fmean(lost):.2f}" if lost else "-"
    print(f"| {what} | {first} | {len(found)} | {share:.0%} | {len(lost)} | {worse} |")


def main() -> None:
    """Read, search, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, nargs="?", default=Path(), metavar="PROJECT")
    project = parser.parse_args().project
    settings = params_file.load(project / "params.yaml")
    runs, epochs = settings.grid.runs, settings.train.epochs
    curves = {run: read_curve(project / f"data/curves/{run}.csv") for run in runs}
    eers = {run: json.loads((project / f"data/metrics/{run}.json").read_text())["dev_eer"] for run in runs}
    names = list(dict.fromkeys(runs.values()))
    of = {system: [run for run in runs if runs[run] == system] for system in names}
    lengths = [len(curve) for curve in curves.values()]
    print(f"{len(names)} systems, {len(runs)} runs, {sum(lengths)} epochs, of at most {epochs} a run\n")
    print("| searched | first rung | searches | epochs, of the full grid's | winner lost | then dev EER higher by |")
    print("|---|---|---|---|---|---|")
    seeds = [{system: [own[i]] for system, own in of.items()} for i in range(len(settings.grid.seed))]
    rng = random.Random(0)  # noqa: S311
    halves = [
        {system: one[system] for system in rng.sample(names, len(names) // 2)} for one in seeds for _ in range(DRAWS)
    ]
    for first in (first for first in FIRST if first < epochs):
        plan = HalvingPlan(runs, (), first, epochs)
        for what, grids in (("the grid", [of]), ("a seed by itself", seeds), ("half of a seed's systems", halves)):
            show(what, first, [search(grid, curves, eers, plan) for grid in grids])


if __name__ == "__main__":
    main()
