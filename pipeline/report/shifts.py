"""Sets with bona fide speech that lies elsewhere than that of dev: marks on the leaderboard.

`analyse` gives for each set the AUC by which the distance to the nearest centroid separates its bona fide from those of
training: 0.5 is not at all, above it they are farther. Dev has one, too, as training never saw it. A set is marked
where its AUC differs from that of dev by more than `MOST`, and by more than chance: more than 1.96 standard errors of
the difference. What changes nothing about this distance is not seen.
Source of the standard error: Hanley and McNeil, "The meaning and use of the area under a receiver operating
characteristic curve", Radiology 1982.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.report.leaderboard import QUANTILE
from pipeline.report.page.embedding_space import AnalysedRun

DEV, BONAFIDE = "dev", "bonafide"
MOST = 0.1  # a difference between AUCs that may be large enough to matter


def found(spaces: Sequence[AnalysedRun], sets: Sequence[str]) -> dict[str, str]:
    """The marked ones of some sets, each with a sentence, by the first of the analysed runs."""
    if not spaces or DEV not in spaces[0].analysis.shift:
        return {}
    told = {name: _sentence(spaces[0], name) for name in sets if name in spaces[0].analysis.shift and name != DEV}
    return {name: sentence for name, sentence in told.items() if sentence}


def _sentence(space: AnalysedRun, name: str) -> str:
    auc, of_dev = (space.analysis.shift[key].auc for key in (name, DEV))
    counts = [space.analysis.distances[key].get(BONAFIDE) for key in (space.analysis.train, name, DEV)]
    if auc is None or of_dev is None or None in counts:
        return ""
    train, own, dev = (spread.n for spread in counts if spread)
    error = math.hypot(standard_error(auc, train, own), standard_error(of_dev, train, dev))
    if abs(auc - of_dev) <= max(MOST, QUANTILE * error):
        return ""
    return (
        f"{name}: its bona fide lie {'farther from' if auc > of_dev else 'nearer to'} the centroids than those of dev "
        f"(AUC {auc:.2f} against training, dev {of_dev:.2f}, 0.5 is no difference; embeddings of {space.run}); "
        "thresholds, probabilities and verdicts of dev may not hold there"
    )


def standard_error(auc: float, near: int, far: int) -> float:
    """The standard error of an AUC by the numbers of trials of both groups, after Hanley and McNeil."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (far - 1) * (one - auc**2) + (near - 1) * (two - auc**2)
    return math.sqrt(max(variance, 0.0) / (near * far))
