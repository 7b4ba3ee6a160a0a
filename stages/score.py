"""Score every trial of a set with a run: backend, embedding, centroids; write its score files, one a view."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core import devices, params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.metrics import scorefile
from pipeline.scoring import scorer


def main() -> None:
    """Parse, open, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", required=True, help="name of the set; its corpus says the layout of the score file")
    parser.add_argument("--run", type=Path, required=True, help="folder of the trained run")
    parser.add_argument("--trials", type=Path, required=True, help="the set's trial table")
    parser.add_argument("--features", type=Path, required=True, help="the set's receipt")
    parser.add_argument("--scores", type=Path, required=True, help="the score file to write")
    parser.add_argument("--views", type=Path, required=True, help="folder of <view>.txt: the scores in evaluate.views")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    if args.set not in settings.sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(settings.sets)}, got {args.set!r}")
    devices.use_threads(settings.train.threads)  # the last bits of scores depend on it
    table = trial_table.read(args.trials)
    views = settings.scored_views(args.set)
    scores = scorer.score_set(args.run, args.features, table, root=settings.features.folder, views=views)
    layout = scorefile.holding(scorefile.layout_of(settings.sets[args.set].corpus), table)
    scorefile.write_views(args.scores, args.views, table, scores, layout=layout)
    note = ", as CSV, which quotes names with blanks" if layout == "csv" else ""
    also = f", and in {len(views)} views" if views else ""
    print(f"{args.run.name}: {len(table)} scores{also} -> {args.scores}{note}")


if __name__ == "__main__":
    run_command(main)
