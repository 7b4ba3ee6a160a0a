"""Gather all metrics and curves into one leaderboard: a table in the terminal, CSV files, an HTML page, a summary."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.core import params_file
from pipeline.core.errors import run_command
from pipeline.report import build


def main() -> None:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder: dict[str, Any] = {"type": Path, "required": True, "metavar": "FOLDER"}
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="names the runs, the sets, the order")
    parser.add_argument("--metrics", **folder, help="of `train` and `evaluate`: <run>.json, <run>/<set>.json")
    parser.add_argument("--plots", **folder, help="of `evaluate`: <run>/{det,histogram}/<set>.csv")
    parser.add_argument("--curves", **folder, help="of `train`: <run>.csv (epoch, loss, dev_eer); only of trained runs")
    parser.add_argument("--seconds", **folder, help="of `train`: <run>.json; need not be there")
    parser.add_argument("--layers", type=Path, metavar="FOLDER", help="of `layers`: layers.csv, chosen.json")
    parser.add_argument(
        "--analysis", type=Path, metavar="FOLDER", help="of `analyse`: a folder a run; without it none is shown"
    )
    parser.add_argument("--out", **folder, help="folder for leaderboard.txt, leaderboard.csv, runs.csv, index.html")
    parser.add_argument("--summary", type=Path, required=True, metavar="FILE", help="JSON that `dvc metrics` shows")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    text = build.build(
        args.out,
        args.summary,
        build.Inputs(args.metrics, args.plots, args.curves, args.seconds, args.layers, args.analysis),
        runs=settings.runs,
        sets=settings.evaluate.sets,
        sort_by=settings.report.sort_by,
        note=settings.report.note,
        analysed=settings.analysed,
        rescored=settings.rescored,
        finetuned=settings.evaluate.finetuned,
    )
    print(text, end="")


if __name__ == "__main__":
    run_command(main)
