"""Evaluate one run on one set: score file and trials → metrics, and the curves behind them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import files, scorefile, trials
from pipeline.det import Det, det_points
from pipeline.errors import run_command
from pipeline.metrics.eer import Eer, eer_by_attack, interpolated_eer, official_eer
from pipeline.report import curves

DECIMALS = 5  # of an EER in percent: one trial among 600,000 moves it by 0.00008
TIES_MATTER = 0.05  # percentage points between the official and the interpolated EER


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    given = _arguments(argv)
    table = trials.read(given.trials)
    scores = scorefile.read(given.scores, table)
    det = det_points(scores[table.is_bonafide], scores[~table.is_bonafide])
    eer = official_eer(det)
    metrics = _metrics(table, eer, eer_by_attack(scores, table.is_bonafide, table.attack))
    _plot(given.plots, det, eer, curves.histogram(scores, table.is_bonafide))
    files.write_text(given.metrics, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    _warn_of_ties(given.scores, det, eer, scores, table.is_bonafide)
    print(f"EER {metrics['eer']:.2f} % of {metrics['bonafide']} bona fide and {metrics['spoof']} spoof trials")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description="Equal error rates of one score file, over all trials and for each attack, and the curves behind "
        "them. Higher scores must mean more bona fide; a sign is never flipped.",
    )
    parser.add_argument(
        "--scores", type=Path, required=True, metavar="FILE", help="score file: lines `utterance score`, one a trial"
    )
    parser.add_argument(
        "--trials", type=Path, required=True, metavar="FILE", help="trial table of the set, as `prepare` wrote it"
    )
    parser.add_argument(
        "--metrics", type=Path, required=True, metavar="FILE", help="JSON to write: EER in percent, threshold, counts"
    )
    parser.add_argument(
        "--plots", type=Path, required=True, metavar="FOLDER", help="folder to write det and histogram to, CSV and PNG"
    )
    return parser.parse_args(argv)


def _percent(eer: Eer) -> float:
    return round(100 * eer.eer, DECIMALS)


def _metrics(table: trials.Trials, eer: Eer, attacks: dict[str, Eer]) -> dict[str, object]:
    """The metrics as they are saved; spoof trials of unknown attack count in the whole, not as an attack."""
    spoof = ~table.is_bonafide
    return {
        "eer": _percent(eer),
        "threshold": eer.threshold,
        "bonafide": int(table.is_bonafide.sum()),
        "spoof": int(spoof.sum()),
        "attacks": {
            name: {"eer": _percent(value), "spoof": int((table.attack[spoof] == name).sum())}
            for name, value in attacks.items()
            if name != trials.UNKNOWN
        },
    }


def _plot(folder: Path, det: Det, eer: Eer, shares: curves.Histogram) -> None:
    thinned = curves.taken(det, curves.thin(det, keep=[eer.point]))
    curves.write_det(folder / "det.csv", thinned)
    curves.draw_det(folder / "det.png", thinned)
    curves.write_histogram(folder / "histogram.csv", shares)
    curves.draw_histogram(folder / "histogram.png", shares, threshold=eer.threshold)


def _warn_of_ties(path: Path, det: Det, eer: Eer, scores: NDArray[np.float64], is_bonafide: NDArray[np.bool_]) -> None:
    """Say so where the EER hangs on the order within tied scores rather than on the scores."""
    tied = scores == eer.threshold
    both = bool((tied & is_bonafide).any() and (tied & ~is_bonafide).any())
    fair = interpolated_eer(det)
    if both and 100 * abs(fair - eer.eer) > TIES_MATTER:
        print(
            f"warning: {path}: {int(tied.sum())} trials of both classes share the score {eer.threshold}; the official "
            f"EER is {100 * eer.eer:.2f} %, with ties counted evenly it is {100 * fair:.2f} %",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_command(main)
