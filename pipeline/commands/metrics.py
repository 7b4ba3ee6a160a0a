"""EER, t-DCF and DCF of score files with confidence intervals, Cllr, EERs per attack, vocoder, codec and speaker."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands import _score_arguments
from pipeline.core.errors import SHOWN
from pipeline.core.trial_table import UNKNOWN, Trials
from pipeline.metrics import asv_scores, evaluation, join, keys
from pipeline.metrics.join import JoinedScores
from pipeline.metrics.keys import Key
from pipeline.metrics.scorefile import ScoreFile
from pipeline.metrics.tdcf import AsvRates, asv_rates
from pipeline.report.metrics_table import to_text

FOLDS = 1000
EXAMPLES = """\
layouts of SCORES (--format), told by the first line:
  2019        utterance attack key score, with which --key may be left out
  2021        utterance score
  asvspoof5   filename<TAB>cm-score, below a line of these two words
  csv         below a line that names the columns: utterance (filename, file) and score (cm-score, cm_score)

Utterances are matched by name. A trial without a score is an error; a score without a trial is left out and counted.
Higher scores must mean more bona fide: an EER above 50 % gives a warning, and the sign stays as it is.

examples:
  bonafide metrics scores.txt --key ASVspoof2019.LA.cm.eval.trl.txt --asv ASVspoof2019.LA.asv.eval.gi.trl.scores.txt
  bonafide metrics scores.txt --key keys/LA/CM/trial_metadata.txt --split progress --json
  bonafide metrics mine.txt theirs.txt --key ASVspoof5.eval.track_1.tsv        are they different by more than chance?
  bonafide metrics dev.txt --key dev.csv                                       gives the threshold of dev, for
  bonafide metrics eval.txt --key eval.csv --threshold 0.731                   the accuracy that it leads to on eval
"""

Report = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for files that cannot be used."""
    given = _arguments(argv)
    files = _score_arguments.score_files(given)
    key = keys.read(given.key, given.split, files[0])
    report = _report(files, key, _asv(given, key), given.threshold, folds=given.folds)
    print(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) if given.json else to_text(report))
    for system in report["systems"]:
        for warning in system["warnings"]:
            print(f"warning: {system['scores']}: {warning}", file=sys.stderr)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bonafide metrics",
        description=f"{(__doc__ or '').strip()} One table, or with --json one object.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    _score_arguments.add_arguments(
        parser, threshold="tell decisions at X; once for each of SCORES, --threshold=-1e-3 below 0"
    )
    asv = parser.add_mutually_exclusive_group()
    asv.add_argument("--asv", type=Path, help="scores of the ASV, for the t-DCF: lines `source kind score`")
    asv.add_argument(
        "--asv-rates",
        type=float,
        nargs=3,
        metavar=("P_FA", "P_MISS", "P_FA_SPOOF"),
        help="or its error rates, shares in 0..1; a key of ASVspoof 5 brings those of its evaluation package",
    )
    add(
        "--folds", type=_count, default=FOLDS, metavar="N", help=f"resamples of the intervals, 0: none; default {FOLDS}"
    )
    add("--json", action="store_true", help="print one JSON object, speakers one by one")
    return _score_arguments.parse_arguments(parser, argv)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text!r}")
    return int(text)


def _asv(given: argparse.Namespace, key: Key) -> AsvRates | None:
    """The rates of the ASV: measured on its scores, given, or those of the ASVspoof 5 package for its keys."""
    if given.asv:
        attacks = set(key.trials.attack[~key.trials.is_bonafide].tolist()) - {UNKNOWN}
        measured = asv_rates(*asv_scores.read_asv(given.asv, attacks=attacks))
        return evaluation.checked_asv(measured, where=str(given.asv))
    if given.asv_rates:
        rates = dict(zip(("p_fa", "p_miss", "p_fa_spoof"), given.asv_rates, strict=True))
        return evaluation.checked_asv(rates, where="--asv-rates")
    return evaluation.corpus_asv(key.corpus)


def _report(
    files: Sequence[ScoreFile], key: Key, asv: AsvRates | None, thresholds: Sequence[float | None] | None, *, folds: int
) -> Report:
    """The object that --json prints."""
    joined = [join.join(file, key.trials, remedy=keys.MISSING) for file in files]
    given = thresholds or [None for _ in files]
    names = keys.short_names([file.path for file in files])
    systems = [
        _system(name, file, found, key.trials, asv=asv, threshold=threshold, folds=folds)
        for name, file, found, threshold in zip(names, files, joined, given, strict=True)
    ]
    return {
        "key": {"file": str(key.path), "corpus": key.corpus, "split": key.split}
        | {"bonafide": systems[0]["bonafide"], "spoof": systems[0]["spoof"]},
        "asv": vars(asv) if asv else None,
        "folds": folds,
        "systems": systems,
        "comparisons": [
            _comparison(name, names[0], key.trials, other, joined[0], folds=folds)
            for name, other in zip(names[1:], joined[1:], strict=True)
            if folds
        ],
    }


def _system(
    name: str,
    file: ScoreFile,
    joined: JoinedScores,
    table: Trials,
    *,
    asv: AsvRates | None,
    threshold: float | None,
    folds: int,
) -> Report:
    metrics = evaluation.evaluate(table, joined.scores, asv=asv, threshold=threshold, folds=folds)
    return {
        "name": name,
        "scores": str(file.path),
        "layout": file.layout,
        "surplus": len(joined.surplus),
        "surplus_first": joined.surplus[:SHOWN],
        "warnings": evaluation.warnings(table, joined.scores, metrics),
        **metrics,
        **evaluation.by_speaker(table, joined.scores),
    }


def _comparison(
    name: str, first: str, table: Trials, found: JoinedScores, other: JoinedScores, *, folds: int
) -> Report:
    paired = evaluation.eer_difference(table, found.scores, other.scores, folds=folds)
    return {
        "system": name,
        "against": first,
        "eer_difference": paired.difference,
        "interval": [paired.low, paired.high],
        "p_value": paired.p_value,
    }
