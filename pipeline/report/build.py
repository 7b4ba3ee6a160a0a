"""Everything the report consists of, from the files of the runs to the files of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import files
from pipeline.report import curves, leaderboard, page


def build(
    out: Path,
    *,
    runs: Sequence[str],
    sets: Sequence[str],
    sort_by: str,
    note: str,
    metrics: Path,
    plots: Path,
    trainings: Path,
) -> str:
    """Write leaderboard.csv, leaderboard.txt and index.html into `out`; the table as text.

    Args:
        metrics: folder with <run>/<set>.json. plots: folder with <run>/<set>/{det,histogram}.csv.
        trainings: folder with <run>.csv.

    Raises InputError where a file is missing or malformed, or runs were evaluated on different trials.
    """
    board = leaderboard.gather(metrics, runs=runs, sets=sets, sort_by=sort_by)
    html = page.render(board, _curves(board, plots, trainings), note=note)
    text = leaderboard.to_text(board)
    files.write_text(out / "leaderboard.csv", leaderboard.to_csv(board))
    files.write_text(out / "leaderboard.txt", text)
    files.write_text(out / "index.html", html)
    return text


def _curves(board: leaderboard.Leaderboard, plots: Path, trainings: Path) -> page.Curves:
    pairs = [(run, name) for run in board.runs for name in board.sets]
    return page.Curves(
        dets={(run, name): curves.read_det(plots / run / name / "det.csv") for run, name in pairs},
        histograms={(run, name): curves.read_histogram(plots / run / name / "histogram.csv") for run, name in pairs},
        trainings={run: curves.read_training(trainings / f"{run}.csv") for run in board.runs},
    )
