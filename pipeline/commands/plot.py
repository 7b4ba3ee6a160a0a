"""DET curves, histograms, EERs by attack and codec, and error rates by threshold of score files: PNG, SVG, CSV."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.commands import _score_arguments
from pipeline.core.arguments import parser_of
from pipeline.core.errors import run_command
from pipeline.core.trial_table import Trials
from pipeline.metrics import evaluation, join, keys
from pipeline.metrics.det import Det, det_points
from pipeline.metrics.eer import official_eer
from pipeline.metrics.evaluation import Metrics, Scores
from pipeline.report import curves, plots

SUFFIXES = (".png", ".svg")
EXAMPLES = """\
files in FOLDER, each as PNG and SVG with its numbers as CSV:
  det                  DET curves of all systems on probit axes, with a dot at each EER
  histogram/<system>   scores by class and attack, with the EER threshold
  eer_attacks          a heatmap of the EER of every system on every attack
  eer_codecs, eer_vocoders     the same by codec and by vocoder, if the key has them
  eer_attacks_codecs/<system>  a heatmap of the EER by attack and codec, if the key has codecs
  transfer             with --threshold: both error rates by threshold, with the EER threshold and the given one; its
                       numbers are in det.csv

`bonafide metrics --help` explains the layouts of SCORES and the keys.

example:
  bonafide plot mine.txt theirs.txt --key keys/LA/CM/trial_metadata.txt --threshold 0.71 --threshold -1.3 --out plots
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for files that cannot be used."""
    given = _arguments(argv)
    files = _score_arguments.score_files(given)
    table = keys.read(given.key, given.split, files[0]).trials
    names = keys.short_names(given.scores)
    systems = {
        name: join.join(file, table, remedy=keys.MISSING).scores for name, file in zip(names, files, strict=True)
    }
    _dets(given.out, table, systems, thresholds=dict(zip(names, given.threshold or [], strict=False)))
    _histograms(given.out, table, systems)
    _heatmaps(given.out, {name: evaluation.evaluate(table, scores, folds=0) for name, scores in systems.items()})
    _grids(given.out, table, systems)
    print(f"{', '.join(systems)} -> {given.out}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("bonafide plot", (__doc__ or "").strip(), EXAMPLES)
    _score_arguments.add_arguments(
        parser,
        threshold="threshold from dev; give it once for each of SCORES; for a negative X write --threshold=-1e-3",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    return _score_arguments.parse_arguments(parser, argv)


def _dets(folder: Path, table: Trials, systems: Mapping[str, Scores], *, thresholds: Mapping[str, float]) -> None:
    """Draw DET curves of all systems, and error rates by threshold where thresholds are given; one CSV for both."""
    dets = {name: curves.thinned(_det(table, scores)) for name, scores in systems.items()}
    curves.write_dets(folder / "det.csv", dets)
    for suffix in SUFFIXES:
        plots.draw_dets(folder / f"det{suffix}", dets)
        if thresholds:
            plots.draw_transfer(folder / f"transfer{suffix}", dets, thresholds=thresholds)


def _det(table: Trials, scores: Scores) -> Det:
    return det_points(scores[table.is_bonafide], scores[~table.is_bonafide])


def _histograms(folder: Path, table: Trials, systems: Mapping[str, Scores]) -> None:
    for name, scores in systems.items():
        shares = curves.histogram(scores, table.is_bonafide, attack=table.attack)
        own = official_eer(_det(table, scores)).threshold
        stem = f"histogram/{name}"
        curves.write_histogram(folder / f"{stem}.csv", shares)
        for suffix in SUFFIXES:
            plots.draw_histogram(folder / f"{stem}{suffix}", shares, thresholds={"EER threshold": own})


def _grids(folder: Path, table: Trials, systems: Mapping[str, Scores]) -> None:
    """Draw the EERs of each system by attack and codec, if the key has both."""
    for name, scores in systems.items():
        attacks, codecs, percent = evaluation.by_attack_and_codec(table, scores)
        if np.isfinite(percent).any():
            _heatmap(folder / "eer_attacks_codecs" / name, attacks, codecs, percent, corner="attack")


def _heatmap(
    stem: Path, rows: Sequence[str], columns: Sequence[str], percent: NDArray[np.float64], *, corner: str
) -> None:
    curves.write_heatmap(Path(f"{stem}.csv"), rows=rows, columns=columns, percent=percent, corner=corner)
    for suffix in SUFFIXES:
        plots.draw_heatmap(Path(f"{stem}{suffix}"), rows=rows, columns=columns, percent=percent)


def _heatmaps(folder: Path, systems: Mapping[str, Metrics]) -> None:
    """Draw the EERs of all systems by attack, codec and vocoder, as far as the key has them."""
    for kind in ("attacks", "codecs", "vocoders"):
        names = list(next(iter(systems.values()))[kind])
        if not names:
            continue
        percent = np.array([[groups[kind][name]["eer"] for name in names] for groups in systems.values()])
        _heatmap(folder / f"eer_{kind}", list(systems), names, percent, corner="system")


if __name__ == "__main__":
    run_command(main)
