"""Train one cell of the ablation grid, a backend with a loss, on cached features; write the run and its curves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import cells, dataset, fit, params, runs, trials
from pipeline.dataset import Dataset
from pipeline.errors import InputError, run_command
from pipeline.files import write_text


def main() -> None:
    """Parse, open, fit, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, help="a file of pipeline/backends/, by its name")
    parser.add_argument("--loss", required=True, help="a file of pipeline/losses/, by its name")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=Path, required=True, help="folder with train.csv and dev.csv")
    parser.add_argument("--features", type=Path, required=True, help="folder with the receipts train.json and dev.json")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run to write")
    parser.add_argument("--metrics", type=Path, required=True, help="what the training came to, to write (JSON)")
    parser.add_argument("--curves", type=Path, required=True, help="training curves to write (CSV)")
    args = parser.parse_args()
    settings = params.load(args.params)
    cell = cells.find(settings, backend=args.backend, loss=args.loss)

    def opened(name: str) -> Dataset:
        table = trials.read(args.trials / f"{name}.csv")
        receipt = args.features / f"{name}.json"
        return dataset.open_set(receipt, table, root=Path(settings.features.root), reads=cell.backend.reads)

    train, dev = opened("train"), opened("dev")
    if train.kind != dev.kind:
        raise InputError(f"train has features of {train.kind}, dev of {dev.kind}; run `dvc repro extract`")
    cuts = dataset.thresholds(train.trials, levels=cell.split.levels, given=cell.split.thresholds)
    labels = dataset.labels(train.trials, cuts)
    start = time.perf_counter()
    fitted = fit.fit(
        partial(cell.make_backend, layers=len(train.layers), channels=train.channels),
        partial(cell.make_loss, speakers=int(labels.speaker.max()) + 1),
        train=train,
        dev=dev,
        labels=labels,
        params=settings.train,
    )
    seconds = time.perf_counter() - start
    card: dict[str, Any] = {
        "backend": cell.backend_name,
        "backend_parameters": cell.backend_parameters,
        "loss": cell.loss_name,
        "loss_parameters": cell.loss_parameters,
        "quality_thresholds": list(cuts),
        "train": settings.train.model_dump(),
        "reads": cell.backend.reads,
        "kind": train.kind,
        "features": {"train": train.digest, "dev": dev.digest},
        "epochs_averaged": list(fitted.kept),
    }
    metrics = {
        "dev_eer": round(fitted.dev_eer, 5),
        "dev_threshold": fitted.dev_threshold,
        "epochs": len(fitted.curves),
        "parameters": fitted.parameters,
    }
    weights = {name: tensor.numpy() for name, tensor in fitted.backend.state_dict().items()}
    runs.save(args.run, weights=weights, centroids=fitted.centroids, card=card | metrics)
    rows = [",".join(field.name for field in dataclasses.fields(fit.Epoch))]
    rows += [f"{e.epoch},{e.loss:.6g},{e.dev_eer:.4f}" for e in fitted.curves]
    write_text(args.metrics, json.dumps(metrics, indent=2) + "\n")
    write_text(args.curves, "\n".join(rows) + "\n")
    print(f"{args.backend}-{args.loss}: {len(fitted.curves)} epochs in {seconds:.1f} s, dev EER {fitted.dev_eer:.2f} %")


if __name__ == "__main__":
    run_command(main)
