"""Evaluate one run on one set: score files and trials of it and of dev → metrics, and the curves behind them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import files, params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.params import Params
from pipeline.core.trial_table import Trials
from pipeline.metrics import calibration, evaluation, join, scorefile
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.det import Det, det_points
from pipeline.metrics.eer import official_eer
from pipeline.metrics.evaluation import Metrics
from pipeline.metrics.tdcf import AsvRates
from pipeline.report import curves, plots


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    given = _arguments(argv)
    settings = params_file.load(given.params)
    asv = _asv(settings, given.set)
    remedy = "run `dvc repro -f train`"
    training = files.read_json(given.training, what="training's metrics", keys=["dev_threshold"], remedy=remedy)
    dev_threshold = float(training["dev_threshold"])
    table = trial_table.read(given.trials)
    scores = join.read(given.scores, table)
    dev, fitted = _calibration(given.dev_scores)
    folds = settings.evaluate.bootstrap
    metrics = evaluation.evaluate(table, scores, asv=asv, threshold=dev_threshold, calibration=fitted, folds=folds)
    det = det_points(scores[table.is_bonafide], scores[~table.is_bonafide])
    shares = curves.histogram(scores, table.is_bonafide, attack=table.attack)
    _plot(given.plots, given.training.stem, det, shares, dev_threshold=dev_threshold)
    files.write_text(given.metrics, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    told = evaluation.warnings(table, scores, metrics) + evaluation.calibration_warnings(fitted, dev, table)
    _tell(given.scores, metrics, told)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description="Metrics of one score file, over all trials and by group, and the curves behind them. Higher "
        "scores must mean more bona fide; a sign is never flipped. What is told of calibrated scores was calibrated on "
        "dev.",
    )
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the section `evaluate`")
    add("--set", required=True, metavar="NAME", help="the set that was scored, a key of `sets` in the parameters")
    add("--scores", type=Path, required=True, metavar="FILE", help="score file of the set, one score a trial")
    add("--trials", type=Path, required=True, metavar="FILE", help="trial table of the set, as `prepare` wrote it")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of dev, with its key, from `train`")
    add("--training", type=Path, required=True, metavar="FILE", help="metrics of `train`, named as the run")
    add(
        "--metrics",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON to write, see `pipeline.metrics.evaluation`",
    )
    add("--plots", type=Path, required=True, metavar="FOLDER", help="folder to write det and histogram to, CSV and PNG")
    return parser.parse_args(argv)


def _asv(settings: Params, name: str) -> AsvRates | None:
    """The ASV rates of a set: its parameters', or those of the ASVspoof 5 evaluation package on that corpus."""
    if name not in settings.sets:
        raise InputError(f"{settings.where('sets')}: expected one of {', '.join(settings.sets)}, got {name!r}")
    if rates := settings.evaluate.asv.get(name):
        return evaluation.checked_asv(rates.model_dump(), where=settings.where("evaluate", "asv", name))
    return evaluation.corpus_asv(settings.sets[name].corpus)


def _calibration(path: Path) -> tuple[Trials, Calibration]:
    """The trials of a score file that carries its key, and the calibration by its scores.

    Raises InputError, naming the file, where it is missing, carries no key, or has scores that cannot be calibrated.
    """
    if not path.is_file():
        raise InputError(f"{path}: no score file there; run `dvc repro -f train`")
    found = scorefile.parse(path)
    dev = scorefile.own_key(found)
    try:
        return dev, calibration.fit(found.score[dev.is_bonafide], found.score[~dev.is_bonafide])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _plot(folder: Path, run: str, det: Det, shares: curves.Histogram, *, dev_threshold: float) -> None:
    shown = curves.thinned(det)
    curves.write_det(folder / "det.csv", shown)
    plots.draw_dets(folder / "det.png", {run: shown})
    curves.write_histogram(folder / "histogram.csv", shares)
    thresholds = {"EER threshold": official_eer(det).threshold, "dev threshold": dev_threshold}
    plots.draw_histogram(folder / "histogram.png", shares, thresholds=thresholds)


def _tell(path: Path, metrics: Metrics, warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {path}: {warning}", file=sys.stderr)
    print(
        f"EER {metrics['eer']:.2f} % of {metrics['bonafide']} bona fide and {metrics['spoof']} spoof trials; "
        f"Cllr {metrics['cllr']:.3f} bits, {metrics['calibrated']['cllr']:.3f} calibrated on dev"
    )


if __name__ == "__main__":
    run_command(main)
