"""Everything the report consists of, from the files of the runs to the files of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.report import curves, leaderboard, page


@dataclass(frozen=True)
class Inputs:
    """Folders: metrics with <run>.json and <run>-<set>.json, plots with <run>-<set>/{det,histogram}.csv, trainings
    with <run>.csv, seconds with <run>.json for the runs that were trained here."""

    metrics: Path
    plots: Path
    trainings: Path
    seconds: Path


def build(
    out: Path,
    summary: Path,
    inputs: Inputs,
    *,
    runs: Mapping[str, str],
    sets: Sequence[str],
    sort_by: str,
    note: str,
) -> str:
    """Write leaderboard.csv, leaderboard.txt, runs.csv and index.html into `out`, and `summary`; the table as text.

    Args:
        summary: the JSON file that DVC shows as metrics. runs: the system of every run.

    Raises InputError where a file is missing or malformed, or runs were evaluated on different trials.
    """
    board = leaderboard.gather(inputs.metrics, runs=runs, sets=sets, sort_by=sort_by, seconds=inputs.seconds)
    html = page.render(board, _curves(board, inputs), note=note)
    text = leaderboard.to_text(board)
    files.write_text(out / "leaderboard.csv", leaderboard.to_csv(board))
    files.write_text(out / "leaderboard.txt", text)
    files.write_text(out / "runs.csv", leaderboard.runs_to_csv(board))
    files.write_text(out / "index.html", html)
    files.write_text(summary, leaderboard.to_json(board))
    return text


def _curves(board: leaderboard.Leaderboard, inputs: Inputs) -> page.Curves:
    shown = [board.selected(system) for system in page.charted(board)]
    pairs = [(run, name) for run in shown for name in board.sets]
    dets = {(run, name): curves.read_det(inputs.plots / f"{run}-{name}" / "det.csv") for run, name in pairs}
    histograms = {
        (run, name): curves.read_histogram(inputs.plots / f"{run}-{name}" / "histogram.csv") for run, name in pairs
    }
    return page.Curves(dets, histograms, {run: curves.read_training(inputs.trainings / f"{run}.csv") for run in shown})
