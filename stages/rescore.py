"""Score every trial of dev and the evaluation sets by the embeddings of the training set; write the score files.

The scoring is fitted on the bona fide, and for knn_difference on the spoof, of the training set alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.analysis import embedding_scores, embeddings
from pipeline.core import params_file, trial_table
from pipeline.core.errors import run_command
from pipeline.core.files import read_json, write_text
from pipeline.metrics import scorefile
from pipeline.metrics.eer import dev_metrics

DEV = "dev"
AS_TRAINED = ("epochs", "parameters")  # what the run's own metrics tell of its training


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, fit, score, write."""
    args = _arguments(argv)
    settings = params_file.load(args.params)
    trained = read_json(args.training, what="metrics of a training", keys=AS_TRAINED, remedy="run `dvc repro -f train`")
    table, train = _open(settings.train.set, args)
    chosen = settings.analyse
    scoring = embedding_scores.fit(
        args.scoring, train, table.is_bonafide, centroids=chosen.centroids, neighbours=chosen.neighbours
    )
    for name in settings.evaluate.sets:
        table, found = _open(name, args)
        layout = scorefile.holding(scorefile.layout_of(settings.sets[name].corpus), table)
        scorefile.write(args.scores / f"{name}.txt", table, embedding_scores.scores(scoring, found), layout=layout)
    table, found = _open(DEV, args)
    scores = embedding_scores.scores(scoring, found)
    scorefile.write(args.dev_scores, table, scores, layout=scorefile.holding("2019", table))
    metrics = dev_metrics(scores, table.is_bonafide) | {key: trained[key] for key in AS_TRAINED}
    write_text(args.metrics, json.dumps(metrics | {"scoring": args.scoring} | scoring.facts, indent=2) + "\n")
    print(f"{args.run.name}-{args.scoring}: dev EER {metrics['dev_eer']:.2f} % -> {args.scores}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.rescore",
        description=__doc__,
        epilog=embedding_scores.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the section `analyse`")
    add("--scoring", required=True, choices=embedding_scores.SCORINGS, help="how; see below")
    add("--run", type=Path, required=True, metavar="FOLDER", help="the trained run that the embeddings are of")
    add("--training", type=Path, required=True, metavar="FILE", help="the run's own metrics (JSON)")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="with the tables of train.set, dev, evaluate.sets")
    add("--embeddings", type=Path, required=True, metavar="FOLDER", help="of the run, with a folder for each set")
    add("--scores", type=Path, required=True, metavar="FOLDER", help="to write <set>.txt of the evaluation sets into")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of the dev set to write")
    add("--metrics", type=Path, required=True, metavar="FILE", help="what it comes to on dev, to write (JSON)")
    return parser.parse_args(argv)


def _open(name: str, args: argparse.Namespace) -> tuple[trial_table.Trials, embeddings.Embeddings]:
    table = trial_table.read(args.trials / f"{name}.csv")
    return table, embeddings.of_run(args.embeddings / name, args.run, name, table)


if __name__ == "__main__":
    run_command(main)
