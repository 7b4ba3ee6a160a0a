"""Gather all metrics and curves into the report: a leaderboard on the terminal, CSV files, an HTML page, a summary."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.core import params_file
from pipeline.core.errors import run_command
from pipeline.report import build, origin, stopped


def main() -> None:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=__doc__)
    add = parser.add_argument
    folder: dict[str, Any] = {"type": Path, "required": True, "metavar": "FOLDER"}
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters; default: params.yaml")
    add("--metrics", **folder, help="from `train` and `evaluate`: <run>.json, <run>/<set>.json")
    add("--plots", **folder, help="from `evaluate`: <run>/{det,histogram}/<set>.csv")
    add(
        "--curves",
        **folder,
        help="from `train`: <run>.csv of trained runs; halving.json after a search",
    )
    add("--seconds", **folder, help="from `train`: <run>.json; files may be missing")
    add("--layers", type=Path, metavar="FOLDER", help="from `layers`: layers.csv, chosen.json; optional")
    add("--analysis", type=Path, metavar="FOLDER", help="from `analyse`: a folder for each run; optional")
    add("--out", **folder, help="folder to write: leaderboard.{txt,csv}, runs.csv, metrics.csv, index.html")
    add("--summary", type=Path, required=True, metavar="FILE", help="JSON to write, for `dvc metrics`")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    tuning = settings.encoder.finetune
    early = stopped.read(args.curves, args.metrics, runs=settings.grid.runs)
    without_row = {one.system for one in early}
    text = build.build(
        args.out,
        args.summary,
        build.Inputs(args.metrics, args.plots, args.curves, args.seconds, args.layers, args.analysis),
        runs={run: system for run, system in settings.runs.items() if system not in without_row},
        sets=settings.evaluate.sets,
        sort_by=settings.report.sort_by,
        note=settings.report.note,
        origin=origin.of(settings, args.seconds),
        analysed=settings.analysed,
        rescored=settings.rescored,
        finetuned=settings.evaluate.finetuned,
        fused=tuple(settings.fuse),
        encoder_seed=tuning.seed if tuning else None,
        stopped=early,
    )
    print(text, end="")


if __name__ == "__main__":
    run_command(main)
