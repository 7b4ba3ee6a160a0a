"""Take over the run that the encoder was fine-tuned with; write what `train` and `score` write of a run.

Backend and centroids are those of the fine-tuning. Its EER and threshold on dev are measured anew, from the cached
features that all other runs read. `evaluate` then finds a run like any other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import read_json, write_text
from pipeline.core.params import Params
from pipeline.encoder import kept
from pipeline.features import dataset, receipt_files
from pipeline.features.dataset import Dataset
from pipeline.metrics import scorefile
from pipeline.metrics.eer import dev_metrics
from pipeline.scoring import centroids, runs, scorer
from pipeline.scoring.attention import over_windows
from pipeline.training import history

KEYS = (*runs.KEYS, "curves", "finetune", "epochs", "parameters")  # of the card of a fine-tuned run
AS_TRAINED = ("epochs", "parameters", "remarks")


def main() -> None:
    """Parse, open, score dev, save, score the evaluation sets."""
    args = _arguments()
    settings = params_file.load(args.params)
    encoder = kept.of_receipt(args.card, features=settings.features.folder)
    encoder.check(kept.RUN_FOLDER)
    run = encoder.folder / kept.RUN_FOLDER
    tuned = read_json(run / runs.CARD_FILE, what="fine-tuned run", keys=KEYS, remedy=kept.AGAIN)
    dev = _opened(args, settings, tuned, weights=encoder.card["weights_sha256"])
    backend, centres = over_windows(runs.backend(run), dev.windows), runs.centroids(run)
    scores = scorer.score_all(backend, centroids.build(centres), dev)
    metrics = dev_metrics(scores, dev.trials.is_bonafide) | {key: tuned[key] for key in AS_TRAINED if key in tuned}
    card = tuned | {"train": tuned["finetune"], "kind": dev.kind, "features": {"dev": dev.digest}} | metrics
    weights = {name: tensor.numpy() for name, tensor in backend.state_dict().items()}
    runs.save(args.run, weights=weights, centroids=centres, card=card)
    scorefile.write(args.dev_scores, dev.trials, scores, layout=scorefile.holding("2019", dev.trials))
    weights_digest = runs.fingerprint(args.run)
    write_text(args.metrics, json.dumps(metrics | {"weights": weights_digest}, indent=2) + "\n")
    if (seconds := _seconds(args.encoder_seconds / f"{encoder.folder.name}.json", encoder.digest)) is not None:
        write_text(args.seconds, json.dumps({"seconds": seconds, "weights": weights_digest}) + "\n")
    write_text(args.curves, history.to_csv(tuned["curves"]))
    for name in settings.evaluate.sets:
        table = trial_table.read(args.trials / f"{name}.csv")
        receipt = receipt_files.of_choice(args.features, name, receipt_files.FINETUNED)
        views = settings.scored_views(name)
        found = scorer.score_set(args.run, receipt, table, root=settings.features.folder, views=views)
        layout = scorefile.holding(scorefile.layout_of(settings.sets[name].corpus), table)
        scorefile.write_views(args.scores / f"{name}.txt", args.scores / name, table, found, layout=layout)
    print(f"{args.run.name}: dev EER {metrics['dev_eer']:.2f} % -> {args.run}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    add(
        "--card", type=Path, required=True, metavar="FILE", help="identity card of the fine-tuned encoder, from encoder"
    )
    add("--trials", type=Path, required=True, metavar="FOLDER", help="with the tables of dev and evaluate.sets")
    add("--features", type=Path, required=True, metavar="FOLDER", help="with the receipts of the same sets")
    add("--run", type=Path, required=True, metavar="FOLDER", help="the run to write: weights, centroids, card")
    add("--metrics", type=Path, required=True, metavar="FILE", help="what the training came to, to write (JSON)")
    add("--curves", type=Path, required=True, metavar="FILE", help="training curves to write (CSV)")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of the dev set to write")
    add("--scores", type=Path, required=True, metavar="FOLDER", help="to write, with a score file for each set")
    add("--seconds", type=Path, required=True, metavar="FILE", help="how long it was fine-tuned, to write (JSON)")
    add("--encoder-seconds", type=Path, required=True, metavar="FOLDER", help="where `encoder` wrote that")
    return parser.parse_args()


def _seconds(path: Path, digest: str) -> float | None:
    """How long an encoder was fine-tuned, None where it was not trained here. digest: of the encoder."""
    if not path.is_file():
        return None
    told = read_json(path, what="time of a fine-tuning", keys=["seconds", "weights"], remedy="delete the file")
    return float(told["seconds"]) if told["weights"] == digest else None


def _opened(args: argparse.Namespace, settings: Params, tuned: dict[str, Any], *, weights: str) -> Dataset:
    """The dev set as the run reads it. Raises InputError where its features are of other weights than these."""
    of_dev = receipt_files.of_choice(args.features, "dev", receipt_files.FINETUNED)
    for receipt in receipt_files.read_receipts(of_dev).values():
        if (found := receipt["encoder"]["weights_sha256"]) != weights:
            raise InputError(
                f"{of_dev}: expected features of the fine-tuned encoder, weights {weights[:16]}..., got those "
                f"of weights {found[:16]}...; run `dvc repro extract`"
            )
    return dataset.open_set(
        of_dev,
        trial_table.read(args.trials / "dev.csv"),
        root=settings.features.folder,
        reads=tuned["reads"],
        layers=tuned["kind"]["layers"],
    )


if __name__ == "__main__":
    run_command(main)
