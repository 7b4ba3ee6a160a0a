"""Build the report: read the files of the runs and write the files of the report."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.core import files
from pipeline.report import curves, leaderboard, leaderboard_files, shifts
from pipeline.report.page import atlas_table, embedding_space, layer_curve, page
from pipeline.training.dropped import Dropped

TABLES = ("leaderboard.csv", "metrics.csv", "runs.csv")  # beside the page


@dataclass(frozen=True)
class Inputs:
    """The folders that the report reads.

    metrics: <run>.json and <run>/<set>.json. plots: <run>/{det,histogram,risk}/<set>.csv. trainings: <run>.csv of runs
    that were trained. seconds: <run>.json of runs that were trained here. layers: layers.csv, chosen.json and
    atlas.csv, which may be missing; None shows no layers. analysis: a folder for each analysed run; None shows none.
    """

    metrics: Path
    plots: Path
    trainings: Path
    seconds: Path
    layers: Path | None = None
    analysis: Path | None = None


def build(
    out: Path,
    summary: Path,
    inputs: Inputs,
    *,
    runs: Mapping[str, str],
    sets: Sequence[str],
    sort_by: str,
    note: str,
    analysed: Collection[str] = (),
    rescored: Collection[str] = (),
    finetuned: Collection[str] = (),
    fused: Collection[str] = (),
    origin: page.Origin | None = None,
    encoder_seed: int | None = None,
    stopped: Sequence[Dropped] = (),
) -> str:
    """Write leaderboard.txt, the files of `TABLES` and index.html into `out`, and `summary`; return the table.

    Args:
        summary: the JSON file that DVC shows as metrics. analysed: runs with embeddings to show. origin: what the page
            says of the project. All others: see `leaderboard_files.gather`.

    Raises InputError where a file is missing or malformed, or where runs were evaluated on different trials.
    """
    board = leaderboard_files.gather(
        inputs.metrics, runs=runs, sets=sets, sort_by=sort_by, seconds=inputs.seconds, rescored=rescored,
        finetuned=finetuned, encoder_seed=encoder_seed, stopped=stopped, fused=fused,
    )  # fmt: skip
    spaces = _spaces(board, inputs, analysed)
    board = replace(board, shifts=shifts.found(spaces, board.sets))
    html = page.render(
        board,
        _curves(board, inputs),
        origin=replace(origin or page.Origin(), files=TABLES),
        layers=layer_curve.read(inputs.layers) if inputs.layers else None,
        atlas=atlas_table.read_atlas(inputs.layers) if inputs.layers else (),
        spaces=spaces, audio_root=_way(out), note=note,
    )  # fmt: skip
    text = leaderboard_files.to_text(board)
    tables = dict(zip(TABLES, _tables(board), strict=True))
    for name, content in {"leaderboard.txt": text, "index.html": html, **tables}.items():
        files.write_text(out / name, content)
    files.write_text(summary, leaderboard_files.to_json(board))
    return text


def _tables(board: leaderboard.Leaderboard) -> tuple[str, str, str]:
    """The contents of `TABLES`."""
    whole, metrics, runs = leaderboard_files.to_csv, leaderboard_files.metrics_to_csv, leaderboard_files.runs_to_csv
    return whole(board), metrics(board), runs(board)


def _curves(board: leaderboard.Leaderboard, inputs: Inputs) -> page.Curves:
    shown = [board.selected(system) for system in page.charted(board)]
    pairs = [(run, name) for run in shown for name in board.sets]
    dets = {(run, name): curves.read_det(inputs.plots / run / f"det/{name}.csv") for run, name in pairs}
    histograms = {
        (run, name): curves.read_histogram(inputs.plots / run / f"histogram/{name}.csv") for run, name in pairs
    }
    paths = {run: inputs.trainings / f"{run}.csv" for run in shown}
    trainings = {run: curves.read_training(path) for run, path in paths.items() if path.is_file()}
    risks = {
        (run, name): curves.read_risk(path)
        for run, name in pairs
        if (path := inputs.plots / run / f"risk/{name}.csv").is_file()
    }
    return page.Curves(dets, histograms, trainings, risks)


def _spaces(
    board: leaderboard.Leaderboard, inputs: Inputs, analysed: Collection[str]
) -> tuple[embedding_space.AnalysedRun, ...]:
    """The analysed runs; those of the best systems come first."""
    if inputs.analysis is None:
        return ()
    in_order = [run for system in board.systems for run in board.runs[system]]
    return embedding_space.gather(inputs.analysis, [run for run in in_order if run in analysed])


def _way(out: Path) -> str:
    """The relative path from the page to the root of the project, where stages run, such as `../..`."""
    return Path(os.path.relpath(Path.cwd(), out)).as_posix()
