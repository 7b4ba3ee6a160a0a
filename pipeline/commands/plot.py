"""DET curves, histograms, EERs by attack and codec, and threshold transfer of score files, as PNG, SVG and CSV."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from pipeline import evaluation, keys, scorefile
from pipeline.det import Det, det_points
from pipeline.evaluation import Metrics, Scores
from pipeline.metrics.eer import official_eer
from pipeline.report import curves, plots
from pipeline.scorefile import Layout
from pipeline.trials import Trials

SUFFIXES = (".png", ".svg")
EXAMPLES = """\
writes into FOLDER, each as PNG and SVG with its numbers as CSV:
  det                  DET curves of all systems on probit axes, EER points marked
  histogram_<system>   scores by class and attack, with the EER threshold
  eer_attacks          EER of every system on every attack, as a heatmap; so for codecs and vocoders, where the key
                       tells them
  transfer             error rates over the score, with the EER threshold and the one given by --threshold; its
                       numbers are those of det

Layouts of SCORES and keys are those of `bonafide metrics`.

example:
  bonafide plot mine.txt theirs.txt --key keys/LA/CM/trial_metadata.txt --threshold 0.71 --threshold -1.3 --out plots
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for files that cannot be used."""
    given = _arguments(argv)
    layout: Layout | None = None if given.format == "auto" else given.format
    files = [scorefile.parse(path, layout) for path in given.scores]
    table = keys.read(given.key, given.split, files[0]).trials
    names = keys.short_names(given.scores)
    systems = {
        name: scorefile.join(file, table, remedy=keys.MISSING).scores for name, file in zip(names, files, strict=True)
    }
    _dets(given.out, table, systems, thresholds=dict(zip(names, given.threshold or [], strict=False)))
    _histograms(given.out, table, systems)
    _heatmaps(given.out, {name: evaluation.evaluate(table, scores, folds=0) for name, scores in systems.items()})
    print(f"{', '.join(systems)} -> {given.out}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bonafide plot",
        description=(__doc__ or "").strip(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scores", type=Path, nargs="+", metavar="SCORES", help="score files, one a system")
    add("--key", type=Path, help="what is bona fide: a protocol or key of a public corpus, a manifest, a trial table")
    add("--split", metavar="NAME", help="part of the key that was scored; unless given, phase eval of a 2021 key")
    add("--format", choices=("auto", *get_args(Layout)), default="auto", help="layout of SCORES (default: auto)")
    add("--threshold", type=float, action="append", metavar="X", help="a threshold from dev; once for each of SCORES")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
    given = parser.parse_args(argv)
    if given.threshold and len(given.threshold) != len(given.scores):
        parser.error(f"expected --threshold once for each of {len(given.scores)} score files, got {given.threshold}")
    return given


def _dets(folder: Path, table: Trials, systems: Mapping[str, Scores], *, thresholds: Mapping[str, float]) -> None:
    """DET curves of all systems; and, where thresholds are given, what they lead to. One CSV file holds both."""
    dets = {name: _thinned(_det(table, scores)) for name, scores in systems.items()}
    curves.write_dets(folder / "det.csv", dets)
    for suffix in SUFFIXES:
        plots.draw_dets(folder / f"det{suffix}", dets)
        if thresholds:
            plots.draw_transfer(folder / f"transfer{suffix}", dets, thresholds=thresholds)


def _det(table: Trials, scores: Scores) -> Det:
    return det_points(scores[table.is_bonafide], scores[~table.is_bonafide])


def _thinned(det: Det) -> Det:
    return curves.taken(det, curves.thin(det, keep=[official_eer(det).point]))


def _histograms(folder: Path, table: Trials, systems: Mapping[str, Scores]) -> None:
    for name, scores in systems.items():
        shares = curves.histogram(scores, table.is_bonafide, attack=table.attack)
        own = official_eer(_det(table, scores)).threshold
        stem = f"histogram_{name.replace('/', '_')}"
        curves.write_histogram(folder / f"{stem}.csv", shares)
        for suffix in SUFFIXES:
            plots.draw_histogram(folder / f"{stem}{suffix}", shares, thresholds={"EER threshold": own})


def _heatmaps(folder: Path, systems: Mapping[str, Metrics]) -> None:
    """EERs by attack, codec and vocoder, of those that the key tells."""
    for kind in ("attacks", "codecs", "vocoders"):
        names = list(next(iter(systems.values()))[kind])
        if not names:
            continue
        percent = np.array([[groups[kind][name]["eer"] for name in names] for groups in systems.values()])
        curves.write_heatmap(folder / f"eer_{kind}.csv", rows=list(systems), columns=names, percent=percent)
        for suffix in SUFFIXES:
            plots.draw_heatmap(folder / f"eer_{kind}{suffix}", rows=list(systems), columns=names, percent=percent)
