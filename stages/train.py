"""Train one cell of the ablation grid on cached features; write the run, its curves, and its scores on the dev set.

A cell is a backend and a loss on a choice of layers and of views, from a seed. Killed, it can be run again: it comes to
the same weights, and goes on from its last checkpoint where it had been training for minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core import devices, params_file
from pipeline.core.errors import run_command
from pipeline.core.files import write_text
from pipeline.core.params import Params
from pipeline.features import receipt_files
from pipeline.features.dataset import Dataset
from pipeline.metrics import scorefile
from pipeline.scoring import runs
from pipeline.training import cells, checkpoints, heads, history, loop, provenance, together
from pipeline.training.cells import Cell
from pipeline.training.loop import Fitted
from pipeline.training.together import ALONE, Seat, Stops


def main() -> None:
    """Train the cell that the arguments name."""
    together.alone(train(_arguments(), ALONE))


def take_turns(
    cells_arguments: Sequence[Sequence[str]], around: Callable[[int], AbstractContextManager[object]]
) -> Iterator[tuple[int, BaseException | None]]:
    """Train several cells in this process, those that read the same features from the same batches in memory.

    cells_arguments: of each cell, as on the command line. around: makes a context for each turn of the cell of this
    number. Yields the number of a cell when it ends, with the error that ended it, or None.
    """

    def starting(words: Sequence[str]) -> Callable[[Seat], Stops[None]]:
        return lambda seat: train(_arguments(words), seat)

    return together.take_turns([starting(words) for words in cells_arguments], around)


def train(args: argparse.Namespace, seat: Seat) -> Stops[None]:
    """Open, fit, save, with a stop at each batch. seat: among the cells that take turns."""
    settings = params_file.load(args.params)
    devices.use_threads(settings.train.threads)
    cell = cells.find(settings, backend=args.backend, loss=args.loss, layers=args.layers, views=args.views)
    seat.reads = cell.backend.reads
    yield together.START
    learnt, dev = (_opened(args, settings, cell, seat, name) for name in (settings.train.set, "dev"))
    unfinished = args.run.with_name(f"{args.run.name}.checkpoint")
    given = {"train": learnt, "dev": dev, "params": settings.train, "seed": args.seed, "checkpoint": unfinished}
    if args.until:
        begun, _ = yield from heads.fit_cell_steps(cell, **given, seat=seat, how=partial(loop.begin, until=args.until))
        write_text(args.curves, history.to_csv(epoch.facts for epoch in begun))
        return
    fitted, cuts = yield from heads.fit_cell_steps(cell, **given, seat=seat)
    scorefile.write(args.dev_scores, dev.trials, fitted.dev_scores, layout=scorefile.holding("2019", dev.trials))
    card = _card(cell, settings, learnt, dev, fitted) | {"seed": args.seed, "quality_thresholds": list(cuts)}
    _save(args, fitted, card)
    checkpoints.delete(unfinished)
    seconds = fitted.curves[-1].seconds
    timed = {"seconds": round(seconds, 2), "weights": runs.fingerprint(args.run)}  # DVC may restore other weights
    write_text(args.seconds, json.dumps(timed | provenance.stamp()) + "\n")
    print(f"{args.run.name}: {len(fitted.curves)} epochs in {seconds:.1f} s, dev EER {fitted.dev_eer:.2f} %")
    for remark in fitted.remarks:
        print(f"! {args.run.name}: {remark}")


def _opened(args: argparse.Namespace, settings: Params, cell: Cell, seat: Seat, name: str) -> Dataset:
    """The features of a set, once for all cells that read the same of it."""
    receipt = receipt_files.of_choice(args.features, name, f"{args.layers}-{args.views}")
    return seat.opened(
        (args.params, args.trials, receipt, cell.backend.reads),
        lambda: heads.open_features(cell, settings, name, trials=args.trials, receipt=receipt),
    )


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Those of the command line, or other words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    add("--backend", required=True, metavar="NAME", help="a file of pipeline/backends/")
    add("--loss", required=True, metavar="NAME", help="a file of pipeline/losses/")
    add("--layers", required=True, metavar="NAME", help="a choice of cached layers, a key of `layers`")
    add("--views", required=True, metavar="NAME", help="a choice of augmented views, a key of `views`")
    add("--seed", type=int, required=True, help="of the initial weights, the order of batches, dropout and views")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="with <train.set>.csv and dev.csv")
    add("--features", type=Path, required=True, metavar="FOLDER", help="with receipts of train.set and dev: see select")
    add("--run", type=Path, required=True, metavar="FOLDER", help="the run to write: weights, centroids, card")
    add("--metrics", type=Path, required=True, metavar="FILE", help="what the training came to, to write (JSON)")
    add("--curves", type=Path, required=True, metavar="FILE", help="training curves to write (CSV)")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of the dev set to write")
    add("--seconds", type=Path, required=True, metavar="FILE", help="how long it trained, to write (JSON)")
    until = (
        "train up to this epoch and write the curves and a checkpoint alone, from which a training without it goes on"
    )
    add("--until", type=int, metavar="EPOCH", help=until)
    return parser.parse_args(words)


def _card(cell: Cell, settings: Params, train: Dataset, dev: Dataset, fitted: Fitted) -> dict[str, Any]:
    return {
        "backend": cell.backend_name,
        "backend_parameters": cell.backend_parameters,
        "loss": cell.loss_name,
        "loss_parameters": cell.loss_parameters,
        "views": cell.views.model_dump(),
        "train": settings.train.model_dump(),
        "reads": cell.backend.reads,
        "kind": train.kind,
        "features": {"train": train.digest, "dev": dev.digest},
        "epochs_averaged": list(fitted.selection.kept),
        "selection": fitted.selection.facts,
    }


def _save(args: argparse.Namespace, fitted: Fitted, card: dict[str, Any]) -> None:
    metrics = {
        "dev_eer": round(fitted.dev_eer, 5),
        "dev_threshold": fitted.dev_threshold,
        "epochs": len(fitted.curves),
        "parameters": fitted.parameters,
        "remarks": list(fitted.remarks),
    }
    weights = {name: tensor.cpu().numpy() for name, tensor in fitted.backend.state_dict().items()}
    runs.save(args.run, weights=weights, centroids=fitted.centroids, path=fitted.path, card=card | metrics)
    metrics["weights"] = runs.fingerprint(args.run)
    write_text(args.metrics, json.dumps(metrics, indent=2) + "\n")
    write_text(args.curves, history.to_csv(epoch.facts for epoch in fitted.curves))


if __name__ == "__main__":
    run_command(main)
