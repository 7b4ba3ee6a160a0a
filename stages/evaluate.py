"""Evaluate a row of the leaderboard on every evaluation set: score files and trials → metrics and their curves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files, params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.params import Params
from pipeline.core.trial_table import Trials
from pipeline.metrics import calibration, evaluation, join, scorefile, transfer, verdicts
from pipeline.metrics.abstention import RiskCoverage, risk_coverage
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.det import Det, det_points
from pipeline.metrics.evaluation import Metrics
from pipeline.metrics.tdcf import AsvRates
from pipeline.metrics.verdicts import VerdictRule
from pipeline.report import curves


@dataclass(frozen=True)
class _Dev:
    """The dev set: its trials and their scores (N,), the threshold chosen on them, the calibration and rule by them."""

    trials: Trials
    scores: NDArray[np.float64]
    threshold: float
    calibration: Calibration
    rule: VerdictRule


@dataclass(frozen=True)
class _Found:
    """A set evaluated: its metrics, with warnings for people among them, and the curves behind them."""

    metrics: Metrics
    det: Det
    histogram: curves.Histogram
    risk: RiskCoverage


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate all sets, then write."""
    given = _arguments(argv)
    settings = params_file.load(given.params)
    remedy = "run `dvc repro -f train`"
    training = files.read_json(given.training, what="training's metrics", keys=["dev_threshold"], remedy=remedy)
    rate, threshold = settings.evaluate.error_rate, float(training["dev_threshold"])
    dev = _read_dev(given.dev_scores, threshold=threshold, error_rate=rate)
    found = {name: _evaluate(name, given, settings, dev) for name in settings.evaluate.sets}
    for name, result in found.items():
        _plot(given.plots, name, result)
        text = json.dumps(result.metrics, indent=2, ensure_ascii=False, allow_nan=False)
        files.write_text(given.metrics / f"{name}.json", text + "\n")
        _tell(name, given.scores / f"{name}.txt", result)


def _evaluate(name: str, given: argparse.Namespace, settings: Params, dev: _Dev) -> _Found:
    asv, folds = _asv(settings, name), settings.evaluate.bootstrap
    table = trial_table.read(given.trials / f"{name}.csv")
    scores = join.read(given.scores / f"{name}.txt", table)
    metrics = evaluation.evaluate(
        table, scores, asv=asv, threshold=dev.threshold, calibration=dev.calibration, rule=dev.rule, folds=folds
    )
    if views := join.read_views(given.scores / name, table):
        metrics["views"] = evaluation.by_view(table, views, folds=folds)
    if told := _warnings(table, scores, metrics, dev):
        metrics["warnings"] = told
    bonafide, spoof = scores[table.is_bonafide], scores[~table.is_bonafide]
    return _Found(
        metrics=metrics,
        det=det_points(bonafide, spoof),
        histogram=curves.histogram(scores, table.is_bonafide, attack=table.attack),
        risk=risk_coverage(bonafide, spoof, dev.threshold),
    )


def _warnings(table: Trials, scores: NDArray[np.float64], metrics: Metrics, dev: _Dev) -> list[str]:
    accepted = dev.trials.is_bonafide
    found = evaluation.warnings(table, scores, metrics, own=True)
    found += transfer.transfer_warnings(metrics, dev.scores[accepted], dev.scores[~accepted])
    found += transfer.verdict_warnings(metrics, dev.rule)
    return found + evaluation.calibration_warnings(dev.calibration, dev.trials, table)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description="Metrics of a row of the leaderboard on every set of evaluate.sets, over all trials and by group, "
        "and the curves behind them. Higher scores must mean more bona fide; a sign is never flipped. The scores are "
        "calibrated on dev.",
    )
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the section `evaluate`")
    add("--scores", type=Path, required=True, metavar="FOLDER", help="score files, <set>.txt and <set>/<view>.txt")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="trial tables, <set>.csv, as `prepare` wrote them")
    add("--dev-scores", type=Path, required=True, metavar="FILE", help="score file of dev, with its key, from `train`")
    add("--training", type=Path, required=True, metavar="FILE", help="metrics of `train`, named as the row")
    add(
        "--metrics",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="to write <set>.json: `pipeline.metrics.evaluation`",
    )
    add(
        "--plots",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="to write {det,histogram,risk}/<set>.csv",
    )
    return parser.parse_args(argv)


def _asv(settings: Params, name: str) -> AsvRates | None:
    """The ASV rates of a set: its parameters', or those of the ASVspoof 5 evaluation package on that corpus."""
    if rates := settings.evaluate.asv.get(name):
        return evaluation.checked_asv(rates.model_dump(), where=settings.where("evaluate", "asv", name))
    return evaluation.corpus_asv(settings.sets[name].corpus)


def _read_dev(path: Path, *, threshold: float, error_rate: float) -> _Dev:
    """The dev set of a score file that carries its key, with the calibration and the rule of verdicts by its scores.

    Raises InputError, naming the file, where it is missing, carries no key, or has scores that cannot be calibrated.
    """
    if not path.is_file():
        raise InputError(f"{path}: no score file there; run `dvc repro -f train`")
    found = scorefile.parse(path)
    dev = scorefile.own_key(found)
    bonafide, spoof = found.score[dev.is_bonafide], found.score[~dev.is_bonafide]
    try:
        fitted = calibration.fit(bonafide, spoof)
        rule = verdicts.fit(bonafide, spoof, error_rate=error_rate)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return _Dev(dev, found.score, threshold, fitted, rule)


def _plot(folder: Path, name: str, found: _Found) -> None:
    curves.write_det(folder / f"det/{name}.csv", curves.thinned(found.det))
    curves.write_histogram(folder / f"histogram/{name}.csv", found.histogram)
    curves.write_risk(folder / f"risk/{name}.csv", curves.thinned_risk(found.risk))


def _tell(name: str, path: Path, found: _Found) -> None:
    for warning in found.metrics.get("warnings", []):
        print(f"warning: {path}: {warning}", file=sys.stderr)
    metrics = found.metrics
    official, fair = f"{metrics['eer']:.2f}", f"{metrics['eer_interpolated']:.2f}"
    beside = f" (interpolated {fair} %)" if fair != official else ""
    print(
        f"{name}: EER {official} %{beside} of {metrics['bonafide']} bona fide and {metrics['spoof']} spoof trials; "
        f"Cllr {metrics['cllr']:.3f} bits, {metrics['calibrated']['cllr']:.3f} calibrated on dev"
    )


if __name__ == "__main__":
    run_command(main)
