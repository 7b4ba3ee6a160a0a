"""DET curves, histograms, EERs by attack and codec, and threshold transfer of score files, as PNG, SVG and CSV."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.commands import _score_arguments
from pipeline.core.trial_table import Trials
from pipeline.metrics import evaluation, join, keys
from pipeline.metrics.det import Det, det_points
from pipeline.metrics.eer import official_eer
from pipeline.metrics.evaluation import Metrics, Scores
from pipeline.report import curves, plots

SUFFIXES = (".png", ".svg")
EXAMPLES = """\
writes into FOLDER, each as PNG and SVG with its numbers as CSV:
  det                  DET curves of all systems on probit axes, EER points marked
  histogram/<system>   scores by class and attack, with the EER threshold
  eer_attacks          EER of every system on every attack, as a heatmap; so for codecs and vocoders, where the key
                       tells them
  eer_attacks_codecs/<system>  EER of every attack through every codec, where the key tells codecs
  transfer             error rates over the score, with the EER threshold and the one given by --threshold; its
                       numbers are those of det

Layouts of SCORES and keys are those of `bonafide metrics`.

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
    parser = argparse.ArgumentParser(
        prog="bonafide plot",
        description=(__doc__ or "").strip(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _score_arguments.add_arguments(
        parser, threshold="a threshold from dev; once for each of SCORES, --threshold=-1e-3 below 0"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
    return _score_arguments.parse_arguments(parser, argv)


def _dets(folder: Path, table: Trials, systems: Mapping[str, Scores], *, thresholds: Mapping[str, float]) -> None:
    """DET curves of all systems; and, where thresholds are given, what they lead to. One CSV file holds both."""
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
    """EERs of a system by attack and codec, where the key tells both."""
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
    """EERs by attack, codec and vocoder, of those that the key tells."""
    for kind in ("attacks", "codecs", "vocoders"):
        names = list(next(iter(systems.values()))[kind])
        if not names:
            continue
        percent = np.array([[groups[kind][name]["eer"] for name in names] for groups in systems.values()])
        _heatmap(folder / f"eer_{kind}", list(systems), names, percent, corner="system")
