"""Take over the run that the encoder was fine-tuned with; write what `train` writes of a run.

Backend and centroids are those of the fine-tuning. Its EER and threshold on dev are measured anew, from the cached
features that all other runs read: index, score and evaluate then find a run like any other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import read_json, write_text
from pipeline.core.params import Params
from pipeline.features import dataset, receipt_files
from pipeline.features.dataset import Dataset
from pipeline.metrics import scorefile
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import official_eer
from pipeline.scoring import centroids, runs, scorer
from pipeline.training import history

KEYS = (*runs.KEYS, "curves", "finetune", "epochs", "parameters")  # of the card of a fine-tuned run
AS_TRAINED = ("epochs", "parameters")
REMEDY = "run `dvc repro -f encoder` with encoder.finetune.on: true"


def main() -> None:
    """Parse, open, score dev, save."""
    args = _arguments()
    settings = params_file.load(args.params)
    tuned = read_json(args.finetuned / runs.CARD_FILE, what="fine-tuned run", keys=KEYS, remedy=REMEDY)
    dev = _opened(args, settings, tuned)
    backend, centres = runs.backend(args.finetuned), runs.centroids(args.finetuned)
    scores = scorer.score_all(backend, centroids.build(centres), dev)
    metrics = _dev_metrics(scores, dev.trials.is_bonafide) | {key: tuned[key] for key in AS_TRAINED}
    card = tuned | {"train": tuned["finetune"], "kind": dev.kind, "features": {"dev": dev.digest}} | metrics
    weights = {name: tensor.numpy() for name, tensor in backend.state_dict().items()}
    runs.save(args.run, weights=weights, centroids=centres, card=card)
    scorefile.write(args.dev_scores, dev.trials, scores, layout="2019")
    write_text(args.metrics, json.dumps(metrics, indent=2) + "\n")
    write_text(args.curves, history.to_csv(tuned["curves"]))
    print(f"{args.run.name}: dev EER {metrics['dev_eer']:.2f} % -> {args.run}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    add("--finetuned", type=Path, required=True, metavar="FOLDER", help="the run, from encoder")
    add(
        "--card", type=Path, required=True, metavar="FILE", help="identity card of the fine-tuned encoder, from encoder"
    )
    add("--trials", type=Path, required=True, metavar="FILE", help="trial table of the dev set")
    add("--features", type=Path, required=True, metavar="FILE", help="receipt of the dev set")
    add("--run", type=Path, required=True, metavar="FOLDER", help="the run to write: weights, centroids, card")
    add("--metrics", type=Path, required=True, metavar="FILE", help="what the training came to, to write (JSON)")
    add("--curves", type=Path, required=True, metavar="FILE", help="training curves to write (CSV)")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of the dev set to write")
    return parser.parse_args()


def _opened(args: argparse.Namespace, settings: Params, tuned: dict[str, Any]) -> Dataset:
    """The dev set as the run reads it. Raises InputError where its features are of other weights."""
    told = read_json(args.card, what="card of an encoder", keys=("weights_sha256",), remedy=REMEDY)["weights_sha256"]
    for receipt in receipt_files.read_receipts(args.features).values():
        if (found := receipt["encoder"]["weights_sha256"]) != told:
            raise InputError(
                f"{args.features}: expected features of the fine-tuned encoder, weights {told[:16]}..., got those of "
                f"weights {found[:16]}...; run `dvc repro extract`"
            )
    return dataset.open_set(
        args.features,
        trial_table.read(args.trials),
        root=settings.features.folder,
        reads=tuned["reads"],
        layers=tuned["kind"]["layers"],
    )


def _dev_metrics(scores: NDArray[np.float32], is_bonafide: NDArray[np.bool_]) -> dict[str, Any]:
    """EER in percent, and the score there as a score file would hold it."""
    values = scores.astype(float)
    error = official_eer(det_points(values[is_bonafide], values[~is_bonafide]))
    return {"dev_eer": round(100 * error.eer, 5), "dev_threshold": float(str(np.float32(error.threshold)))}


if __name__ == "__main__":
    run_command(main)
