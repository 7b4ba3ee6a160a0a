"""Train one cell of the ablation grid on cached features; write the run, its curves, and its scores on the dev set.

A cell is a backend and a loss on a choice of layers and of views, from a seed. Killed, it can be run again: it comes to
the same weights, and goes on from its last checkpoint where it had been training for minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.core import params_file
from pipeline.core.errors import run_command
from pipeline.core.files import write_text
from pipeline.core.params import Params
from pipeline.features import receipt_files
from pipeline.features.dataset import Dataset
from pipeline.metrics import scorefile
from pipeline.scoring import runs
from pipeline.training import cells, checkpoints, heads, history, provenance
from pipeline.training.cells import Cell
from pipeline.training.loop import Fitted


def main() -> None:
    """Parse, open, fit, save."""
    args = _arguments()
    settings = params_file.load(args.params)
    torch.set_num_threads(settings.train.threads)
    cell = cells.find(settings, backend=args.backend, loss=args.loss, layers=args.layers, views=args.views)
    train, dev = (
        heads.open_features(
            cell,
            settings,
            name,
            trials=args.trials,
            receipt=receipt_files.of_choice(args.features, name, layers=args.layers, views=args.views),
        )
        for name in (settings.train.set, "dev")
    )
    unfinished = args.run.with_name(f"{args.run.name}.checkpoint")
    fitted, cuts = heads.fit_cell(
        cell, train=train, dev=dev, params=settings.train, seed=args.seed, checkpoint=unfinished
    )
    scorefile.write(args.dev_scores, dev.trials, fitted.dev_scores, layout="2019")
    card = _card(cell, settings, train, dev, fitted) | {"seed": args.seed, "quality_thresholds": list(cuts)}
    _save(args, fitted, card)
    checkpoints.delete(unfinished)
    seconds = fitted.curves[-1].seconds
    timed = {"seconds": round(seconds, 2), "weights": runs.fingerprint(args.run)}  # DVC may restore other weights
    write_text(args.seconds, json.dumps(timed | provenance.stamp()) + "\n")
    print(f"{args.run.name}: {len(fitted.curves)} epochs in {seconds:.1f} s, dev EER {fitted.dev_eer:.2f} %")
    for remark in fitted.remarks:
        print(f"! {args.run.name}: {remark}")


def _arguments() -> argparse.Namespace:
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
    return parser.parse_args()


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
