"""Threshold, probabilities and verdicts by your own files, without training."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import _audio_arguments
from pipeline.core.arguments import parser_of
from pipeline.core.errors import InputError, importing, run_command
from pipeline.metrics import verdicts
from pipeline.metrics.verdicts import BONAFIDE, SPOOF

if TYPE_CHECKING:
    from pipeline.detect.assembly import Parts
    from pipeline.detect.recalibration import Recalibration

EXAMPLES = """\
FILE is a CSV file with a header that has the columns path and label (bonafide or spoof); others may stand beside them.
A few dozen files of each class are enough for a threshold, and say how little they know:
  threshold   of the EER on the files
  errors      each file is decided by the others, at their threshold; [] exact interval of 95 % confidence
  Cllr        in bits, each file calibrated by the others; 1 says nothing, 0 is perfect
  verdicts    the limits of the rule by the files, and the share that they rule out by mistake, with a confidence of
              95 %; too few files for the error rate give no limit, and the verdict is cannot_tell

The files should be like those to be judged, and none of them may have been in training. The run or package stays as it
is, and a calibration in OUT is never replaced. `bonafide detect --calibration OUT` takes it, and hears the windows of a
file that it was made with; give it the same --channel.

example:
  bonafide calibrate linear-qamo-all-clean-1 --on mine.csv --out mine.json
  bonafide detect recordings/ --run linear-qamo-all-clean-1 --calibration mine.json
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for arguments and files that cannot be used."""
    given = _arguments(argv)
    if given.out.exists():
        raise InputError(f"{given.out}: there is a file already, and no calibration is replaced; choose another name")
    with importing():
        from pipeline import detect  # here, because torch imports slowly and --help does not need it
        from pipeline.detect import recalibration

    system = detect.load(given.run, windows=given.windows, channel=given.channel)
    root = given.root or given.on.parent
    found = recalibration.by_files(system, given.on, root=root, error_rate=given.error_rate)
    recalibration.write(given.out, found)
    print("\n".join(_lines(found, system.parts)))
    for doubt in found.verdicts.lacking:
        print(f"warning: {given.on}: {doubt}", file=sys.stderr)
    print(f"-> {given.out}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("bonafide calibrate", "Fits a trained system's decisions to your own files.", EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN", help="name of a run or a fusion of this project, folder of a package, or hub:owner/name")
    add("--on", type=Path, required=True, metavar="FILE", help="CSV file with the columns path and label")
    add("--root", type=Path, metavar="FOLDER", help="where the paths begin; default: the folder of FILE")
    add("--out", type=Path, required=True, metavar="OUT", help="the calibration to write (JSON)")
    _audio_arguments.add_windows(parser)
    _audio_arguments.add_channel(parser)
    add("--error-rate", type=_share, default=0.05, metavar="X", help="of the verdicts; default: 0.05")
    return parser.parse_args(argv)


def _share(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def _lines(found: Recalibration, parts: Parts) -> list[str]:
    """What a calibration came to, for people."""
    told, rule = found.measured, found.verdicts
    errors = [
        f"{words} {told[name]:.1f} % [{told[f'{name}_interval'][0]:.1f}, {told[f'{name}_interval'][1]:.1f}]"
        for name, words in (("frr", "bona fide rejected"), ("far", "spoof accepted"))
    ]
    cost = "cannot be calibrated" if told["cllr"] is None else f"{told['cllr']:.3f} bits"
    limits = ((BONAFIDE, "below", rule.bonafide_from), (SPOOF, "above", rule.spoof_up_to))
    return [
        f"{found.name}: {told['bonafide']} bona fide and {told['spoof']} spoof files",
        f"threshold  {found.threshold:.5g}, before {parts.threshold:.5g}",
        f"errors     {', '.join(errors)}",
        f"Cllr       {cost}",
        *(f"verdicts   {_limit(rule, label, side, limit)}" for label, side, limit in limits),
    ]


def _limit(rule: verdicts.VerdictRule, label: str, side: str, limit: float | None) -> str:
    if limit is None:
        return f"{label} is never ruled out"
    share = rule.promised(label)
    return (
        f"{label} is ruled out {side} {limit:.5g}, by mistake in {100 * share.low:.1f} to {100 * share.high:.1f} % "
        f"({100 * rule.error_rate:g} % on average)"
    )


if __name__ == "__main__":
    run_command(main)
