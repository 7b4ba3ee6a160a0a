"""Fuse the scores of several runs into one: fit weights on dev, score the evaluation sets, write its score files.

The dev scores that are written are out of fold: each is by weights that were fitted without its trial. The EER and the
threshold on dev are read off them. Without this they would be too good.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core import params_file, trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import write_text
from pipeline.core.sections import OTHER
from pipeline.core.trial_table import Trials
from pipeline.metrics import fusion, join, scorefile
from pipeline.metrics.eer import dev_metrics

DEV = "dev"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, fit, score, write."""
    args = _arguments(argv)
    settings = params_file.load(args.params)
    if args.name not in settings.fuse:
        known = ", ".join(settings.fuse) or "none"
        raise InputError(f"{args.params}: fuse: expected one of {known}, got {args.name!r}")
    runs = settings.fuse[args.name]
    dev = trial_table.read(args.trials / f"{DEV}.csv")
    places = [_place_of(run, args) for run in runs]
    members = _stacked([_read(place.dev, dev) for place in places])
    try:
        fitted = fusion.fit(members, dev.is_bonafide)
        held = fusion.out_of_fold(members, dev.is_bonafide).astype(np.float32)
    except ValueError as error:
        raise InputError(f"{args.trials / f'{DEV}.csv'}: {error}; a fusion is fitted on dev") from None
    for name in settings.evaluate.sets:
        table = trial_table.read(args.trials / f"{name}.csv")
        layout = scorefile.holding(scorefile.layout_of(settings.sets[name].corpus), table)
        scores = _by_view([place.sets for place in places], name, table)
        found = {view: fitted.apply(own).astype(np.float32) for view, own in scores.items()}
        scorefile.write_views(args.scores / f"{name}.txt", args.scores / name, table, found, layout=layout)
    scorefile.write(args.dev_scores, dev, held, layout=scorefile.holding("2019", dev))
    weights = dict(zip(runs, fitted.weights, strict=True))
    metrics = dev_metrics(held, dev.is_bonafide) | {"parameters": len(runs) + 1, "remarks": _remarks(weights)}
    write_text(args.fusion, json.dumps({"weights": weights, "offset": fitted.offset}, indent=2) + "\n")
    write_text(args.metrics, json.dumps(metrics, indent=2) + "\n")
    print(f"{args.name}: dev EER {metrics['dev_eer']:.2f} %, out of fold, of {', '.join(runs)} -> {args.scores}")


class _Place(NamedTuple):
    """Where the scores of a member lie: a file of dev, and a folder with `<set>.txt` and `<set>/<view>.txt`."""

    dev: Path
    sets: Path


def _place_of(run: str, args: argparse.Namespace) -> _Place:
    if run.startswith(OTHER):
        folder = args.others / run.removeprefix(OTHER)
        return _Place(folder / f"{DEV}.txt", folder)
    return _Place(args.members_dev / f"{run}.txt", args.members / run)


def _read(path: Path, table: Trials) -> NDArray[np.float64]:
    """The scores (N,) of a file. Raises InputError as `join.read`."""
    if not path.is_file():
        raise InputError(
            f"{path}: no score file there; `dvc repro flow/score/dvc.yaml` writes those of this project's runs, and "
            "those of other systems are yours to put there, a line `utterance score` for each trial"
        )
    return join.read(path, table)


def _by_view(folders: Sequence[Path], name: str, table: Trials) -> dict[str, NDArray[np.float64]]:
    """The scores (N, K) of a set by K runs: clean, and in every view in which all of them scored it."""
    clean = [_read(folder / f"{name}.txt", table) for folder in folders]
    views = [join.read_views(folder / name, table) for folder in folders]
    shared = [view for view in views[0] if all(view in own for own in views)]
    return {CLEAN: _stacked(clean)} | {view: _stacked([own[view] for own in views]) for view in shared}


def _stacked(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.stack(scores, axis=1)


def _remarks(weights: dict[str, float]) -> list[str]:
    """Remarks on the runs (by name, with their weights) that the fusion makes no use of."""
    return [
        f"{run} has the weight 0: beside the other runs its scores do not help on dev, or they are inverted"
        for run, weight in weights.items()
        if weight == 0
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.fuse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the section `fuse`")
    add("--name", required=True, help="of the fusion, in the section `fuse`")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="with the tables of dev and evaluate.sets")
    add("--members", type=Path, required=True, metavar="FOLDER", help="with <run>/<set>.txt of the runs")
    add("--members-dev", type=Path, required=True, metavar="FOLDER", help="with <run>.txt: their dev scores")
    others = "with <name>/dev.txt and <name>/<set>.txt of systems of elsewhere; default: data/others"
    add("--others", type=Path, default=Path("data/others"), metavar="FOLDER", help=others)
    add("--scores", type=Path, required=True, metavar="FOLDER", help="to write <set>.txt and <set>/<view>.txt into")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of dev to write, out of fold")
    add("--fusion", type=Path, required=True, metavar="FILE", help="the weights and the offset, to write (JSON)")
    add("--metrics", type=Path, required=True, metavar="FILE", help="what it comes to on dev, to write (JSON)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
