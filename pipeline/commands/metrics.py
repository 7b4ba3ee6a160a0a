"""EER, t-DCF and DCF of score files with confidence intervals, Cllr, EERs by attack, vocoder, codec and speaker."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands import _score_arguments
from pipeline.core.arguments import MOST_FOLDS, parser_of
from pipeline.core.errors import SHOWN, run_command
from pipeline.core.trial_table import UNKNOWN, Trials
from pipeline.metrics import asv_scores, evaluation, join, keys
from pipeline.metrics.join import JoinedScores
from pipeline.metrics.keys import Key
from pipeline.metrics.scorefile import ScoreFile
from pipeline.metrics.tdcf import AsvRates, asv_rates
from pipeline.report.metrics_table import to_text

FOLDS = 1000
OWN_FOLDERS = (("data", "scores"), ("data", "dev_scores"))  # of a project
EXAMPLES = """\
layouts of SCORES (--format); auto finds the layout by the first line:
  2019                lines of utterance, attack, class, score
  2021                lines of utterance, score
  label               lines of utterance, class, score
  label_last          lines of utterance, score, class
  speaker             lines of speaker, utterance, a dash, attack, class, score
  speaker_label_last  lines of speaker, utterance, score, class
  asvspoof5           lines of utterance<TAB>score, after the first line filename<TAB>cm-score
  csv                 the same parted by commas; or, after a first line that names the columns, any number of them
  tsv                 after such a first line, cells parted by tabs or blanks
Classes are words (bonafide, spoof, real, fake, ...) and make --key unnecessary. What a class written as a number or a
second score means differs between projects: such a file is refused, with the --columns that reads it.

Scores are matched to trials by the utterance. A trial without a score is an error. Scores without a trial are left out
and counted. Higher scores must mean more bona fide. An EER whose whole interval lies above 50 % gives a warning; signs
are never changed.

examples:
  bonafide metrics scores.txt --key ASVspoof2019.LA.cm.eval.trl.txt --asv ASVspoof2019.LA.asv.eval.gi.trl.scores.txt
  bonafide metrics scores.txt --key keys/LA/CM/trial_metadata.txt --split progress --json
  bonafide metrics scores.txt --key keys/LA/CM/trial_metadata.txt \\
                   --asv keys/LA/ASV/ASVTorch_Kaldi/score.txt --asv-key keys/LA/ASV/trial_metadata.txt
  bonafide metrics out.txt --key key.csv --columns utterance=2,score=5         reads any other layout
  bonafide metrics mine.txt theirs.txt --key ASVspoof5.eval.track_1.tsv        do they differ by more than chance?
  bonafide metrics dev.txt --key dev.csv                                       shows the EER threshold on dev
  bonafide metrics eval.txt --key eval.csv --threshold 0.731                   shows accuracy on eval at this threshold
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
    parser = parser_of("bonafide metrics", (__doc__ or "").strip(), EXAMPLES)
    add = parser.add_argument
    _score_arguments.add_arguments(
        parser,
        threshold="report decisions at X; give it once for each of SCORES; for a negative X write --threshold=-1e-3",
    )
    asv = parser.add_mutually_exclusive_group()
    asv.add_argument(
        "--asv",
        type=Path,
        metavar="FILE",
        help="scores of a speaker verification system (ASV), for the t-DCF: lines of source, kind, score; or, of "
        "ASVspoof 2021 LA, of speaker, utterance, score",
    )
    add("--asv-key", type=Path, metavar="FILE", help="the key of ASV scores of 2021 LA: keys/LA/ASV/trial_metadata.txt")
    asv.add_argument(
        "--asv-rates",
        type=float,
        nargs=3,
        metavar=("P_FA", "P_MISS", "P_FA_SPOOF"),
        help="or its error rates, from 0 to 1; for a key of ASVspoof 5 the default is that of its evaluation package",
    )
    add(
        "--folds",
        type=_count,
        default=FOLDS,
        metavar="N",
        help=f"resamples for confidence intervals; 0 for none; default: {FOLDS}",
    )
    add("--json", action="store_true", help="print one JSON object in place of the table; it has every speaker")
    given = _score_arguments.parse_arguments(parser, argv)
    if given.asv_key and not given.asv:
        parser.error("expected --asv-key beside --asv only")
    return given


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_FOLDS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {MOST_FOLDS:,}, got {text!r}")
    return int(text)


def _asv(given: argparse.Namespace, key: Key) -> AsvRates | None:
    """The error rates of the ASV: measured on its scores, given, or those of ASVspoof 5 for a key of that corpus."""
    if given.asv:
        attacks = set(key.trials.attack[~key.trials.is_bonafide].tolist()) - {UNKNOWN}
        phase = key.split if key.corpus == "asvspoof2021_la" else None
        measured = asv_rates(*asv_scores.read_asv(given.asv, attacks=attacks, key=given.asv_key, phase=phase))
        return evaluation.checked_asv(measured, where=str(given.asv))
    if given.asv_rates:
        rates = dict(zip(("p_fa", "p_miss", "p_fa_spoof"), given.asv_rates, strict=True))
        return evaluation.checked_asv(rates, where="--asv-rates")
    return evaluation.corpus_asv(key.corpus)


def _report(
    files: Sequence[ScoreFile], key: Key, asv: AsvRates | None, thresholds: Sequence[float | None] | None, *, folds: int
) -> Report:
    """The results, as --json prints them."""
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
        "warnings": evaluation.warnings(table, joined.scores, metrics, own=_is_own(file.path)),
        **metrics,
        **evaluation.by_speaker(table, joined.scores),
    }


def _is_own(path: Path) -> bool:
    """Whether a score file lies where the flow of a project writes its own."""
    folders = path.resolve().parts[:-1]
    return any(pair in OWN_FOLDERS for pair in itertools.pairwise(folders))


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
        "few_errors": any(evaluation.has_few_errors(table, one.scores) for one in (found, other)),
    }


if __name__ == "__main__":
    run_command(main)
