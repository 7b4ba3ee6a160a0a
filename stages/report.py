"""Gather all metrics and curves into one leaderboard: a table in the terminal, a CSV file and an HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline import params
from pipeline.errors import run_command
from pipeline.report import build


def main() -> None:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder: dict[str, Any] = {"type": Path, "required": True, "metavar": "FOLDER"}
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="names the runs, the sets, the order")
    parser.add_argument("--metrics", **folder, help="holds the metrics of `evaluate`: <run>/<set>.json")
    parser.add_argument("--plots", **folder, help="holds the curves of `evaluate`: <run>/<set>/{det,histogram}.csv")
    parser.add_argument("--curves", **folder, help="holds the curves of `train`: <run>.csv (epoch, loss, dev_eer)")
    parser.add_argument("--out", **folder, help="folder for leaderboard.txt, leaderboard.csv and index.html")
    args = parser.parse_args()
    settings = params.load(args.params)
    text = build.build(
        args.out,
        runs=settings.grid.runs,
        sets=settings.evaluate.sets,
        sort_by=settings.report.sort_by,
        note=settings.report.note,
        metrics=args.metrics,
        plots=args.plots,
        trainings=args.curves,
    )
    print(text, end="")


if __name__ == "__main__":
    run_command(main)
