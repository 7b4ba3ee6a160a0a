"""Curves of one run on one set: thinned DET and risk-coverage curves, score histograms, and their CSV files.

A thinned curve keeps some of the points, with exact values, so that `dvc plots` and the page draw the same curve.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files
from pipeline.core.errors import InputError
from pipeline.core.trial_table import UNKNOWN
from pipeline.metrics.abstention import RiskCoverage
from pipeline.metrics.det import Det
from pipeline.metrics.eer import official_eer

POINTS = 500  # of a DET curve; a plot can show no more
RISK_POINTS = 200  # of a risk-coverage curve
BINS = 60  # of a histogram
DET_TICKS = (0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
WIDEST_LOW, USUAL_HIGH, BEYOND_EER = 0.05, 0.4, 0.05  # rates by which a DET plot chooses its range


@dataclass(frozen=True)
class Histogram:
    """The share of each class by score. centre, bonafide, spoof: (BINS,); each class sums to 1.

    attacks: the same for the spoofs of each attack, by name.
    """

    centre: NDArray[np.float64]
    bonafide: NDArray[np.float64]
    spoof: NDArray[np.float64]
    attacks: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingCurve:
    """The course of a training, (epochs,) each; nan where it was not measured.

    loss: of the training steps. dev_loss: on dev. train_eer, dev_eer: percent, on training trials and on dev.
    """

    epoch: NDArray[np.float64]
    loss: NDArray[np.float64]
    dev_loss: NDArray[np.float64]
    train_eer: NDArray[np.float64]
    dev_eer: NDArray[np.float64]


def thin(det: Det, *, keep: Sequence[int], points: int = POINTS) -> NDArray[np.intp]:
    """The indices, ascending, of at most `points` DET points that a DET plot shows at equal distances.

    The ends and the indices in `keep` are always among them. Distances are by log-odds, which are close to the probit
    of the axes and faster. Raises ValueError where `points` is too small for the ends and `keep`.
    """
    size = det.frr.size
    fixed = {0, size - 1, *keep}
    if len(fixed) > points:
        raise ValueError(f"expected room for {len(fixed)} points that must stay, got points={points}")
    if size <= points:
        return np.arange(size)
    smallest = 0.5 / size
    rates = np.clip(np.stack((det.frr, det.far)), smallest, 1 - smallest)  # (2, N + 1)
    steps = np.abs(np.diff(np.log(rates / (1 - rates)))).sum(axis=0)  # (N,)
    length = np.concatenate(([0.0], np.cumsum(steps)))  # (N + 1,)
    even = np.searchsorted(length, np.linspace(0.0, length[-1], points - len(fixed)))
    return np.array(sorted(fixed.union(np.minimum(even, size - 1).tolist())))


def taken(det: Det, indices: NDArray[np.intp]) -> Det:
    """The DET points at the given indices."""
    return Det(frr=det.frr[indices], far=det.far[indices], threshold=det.threshold[indices])


def thinned(det: Det) -> Det:
    """The points of a DET curve that a plot can show, with the point of the EER."""
    return taken(det, thin(det, keep=[official_eer(det).point]))


def thinned_risk(curve: RiskCoverage) -> RiskCoverage:
    """At most `RISK_POINTS` points of a risk-coverage curve, about evenly spread over coverage, with its ends."""
    size = curve.coverage.size
    if size <= RISK_POINTS:
        return curve
    even = np.searchsorted(curve.coverage, np.linspace(curve.coverage[0], 1.0, RISK_POINTS))
    kept = np.unique(np.minimum(even, size - 1))
    return RiskCoverage(curve.coverage[kept], curve.risk[kept], curve.aurc)


def histogram(
    scores: NDArray[np.float64],
    is_bonafide: NDArray[np.bool_],
    *,
    attack: NDArray[np.str_] | None = None,
    bins: int = BINS,
) -> Histogram:
    """The histogram of scores (N,) over bins of equal width, from the lowest to the highest score.

    attack: (N,) names, "-" where unknown; None gives no histograms by attack.
    """
    edges = np.histogram_bin_edges(scores, bins=bins)  # (bins + 1,)
    bonafide, _ = np.histogram(scores[is_bonafide], bins=edges)
    spoof, _ = np.histogram(scores[~is_bonafide], bins=edges)
    names = set() if attack is None else set(attack[~is_bonafide].tolist()) - {UNKNOWN}
    counts = {name: np.histogram(scores[~is_bonafide & (attack == name)], bins=edges)[0] for name in sorted(names)}
    return Histogram(
        centre=(edges[:-1] + edges[1:]) / 2,
        bonafide=bonafide / bonafide.sum(),
        spoof=spoof / spoof.sum(),
        attacks={name: count / count.sum() for name, count in counts.items()},
    )


def probit(rates: NDArray[np.float64], *, low: float, high: float) -> NDArray[np.float64]:
    """The scale of a DET axis: the normal quantile of rates, which are first limited to low..high in (0, 1)."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile(rate) for rate in np.clip(rates, low, high).tolist()])


def beyond_frame(det: Det, *, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A DET curve (far, frr) on probit axes from low to high, to be drawn and clipped.

    Rates of 0 and 1 have no probit. They are placed outside the frame, so that no line runs along its border.
    """
    low, high = low / 4, (3 + high) / 4
    return probit(det.far, low=low, high=high), probit(det.frr, low=low, high=high)


def det_limits(dets: Sequence[Det], eers: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest rate of a DET plot, two of `DET_TICKS`.

    The range begins at the smallest rate of the curves and includes every EER. eers: of each curve, from 0 to 1.
    """
    rates = np.concatenate([rate for det in dets for rate in (det.frr, det.far)])
    resolved = min(rates[rates > 0].min(), WIDEST_LOW)
    low = max((tick for tick in DET_TICKS if tick <= resolved), default=DET_TICKS[0])
    high = next((tick for tick in DET_TICKS if tick >= max(USUAL_HIGH, max(eers) + BEYOND_EER)), DET_TICKS[-1])
    return low, high


def write_det(path: Path, det: Det) -> None:
    """Write DET points as CSV with the columns far, frr (shares in 0..1) and threshold, every number exact."""
    _write_csv(path, {"far": det.far, "frr": det.frr, "threshold": det.threshold})


def write_histogram(path: Path, shares: Histogram) -> None:
    """Write a histogram as CSV: score (the centre of a bin), bonafide, spoof, spoof/<attack> (shares in 0..1)."""
    attacks = {f"spoof/{name}": share for name, share in shares.attacks.items()}
    _write_csv(path, {"score": shares.centre, "bonafide": shares.bonafide, "spoof": shares.spoof} | attacks)


def write_risk(path: Path, curve: RiskCoverage) -> None:
    """Write a risk-coverage curve as CSV with the columns coverage and risk, shares in 0..1."""
    _write_csv(path, {"coverage": curve.coverage, "risk": curve.risk})


def write_dets(path: Path, dets: Mapping[str, Det]) -> None:
    """Write the DET points of several systems as CSV: system, far, frr (shares in 0..1), threshold."""
    rows = (
        [name, repr(far), repr(frr), repr(threshold)]
        for name, det in dets.items()
        for far, frr, threshold in zip(det.far.tolist(), det.frr.tolist(), det.threshold.tolist(), strict=True)
    )
    _write_rows(path, ["system", "far", "frr", "threshold"], rows)


def write_heatmap(
    path: Path, *, rows: Sequence[str], columns: Sequence[str], percent: NDArray[np.float64], corner: str
) -> None:
    """Write EERs, (rows, columns) in percent, as CSV. corner: the header of the column with the names of rows."""
    cells = ([name, *map(repr, line)] for name, line in zip(rows, percent.tolist(), strict=True))
    _write_rows(path, [corner, *columns], cells)


def read_det(path: Path) -> Det:
    """Read a file of `write_det`. Raises InputError, with file and line, for another file."""
    far, frr, threshold = _read_csv(path, ("far", "frr", "threshold"), stage="flow/evaluate/dvc.yaml")
    return Det(frr=frr, far=far, threshold=threshold)


def read_histogram(path: Path) -> Histogram:
    """Read both classes in a file of `write_histogram`. Raises InputError, with file and line, for another file."""
    centre, bonafide, spoof = _read_csv(path, ("score", "bonafide", "spoof"), stage="flow/evaluate/dvc.yaml")
    return Histogram(centre, bonafide, spoof)


def read_risk(path: Path) -> NDArray[np.float64]:
    """Read a file of `write_risk`, as (P, 2). Raises InputError, with file and line, for another file."""
    return np.stack(_read_csv(path, ("coverage", "risk"), stage="flow/evaluate/dvc.yaml"), axis=1)


def read_training(path: Path) -> TrainingCurve:
    """Read the columns of a training curve. An empty cell is nan.

    Raises InputError, with file and line, where a column is missing or a cell is not a number.
    """
    columns = [field.name for field in fields(TrainingCurve)]
    return TrainingCurve(*_read_csv(path, columns, stage="train"))


def _write_csv(path: Path, columns: Mapping[str, NDArray[np.float64]]) -> None:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    _write_rows(path, list(columns), ([repr(value) for value in row] for row in rows))


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    files.write_text(path, files.csv_text([header, *rows]))


def _read_csv(path: Path, columns: Sequence[str], *, stage: str) -> list[NDArray[np.float64]]:
    """The named columns of a CSV file as numbers. Other columns are ignored."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `dvc repro {stage}`")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise InputError(
                f"{path}:1: expected the columns {','.join(columns)}, missing {','.join(absent)}; "
                f"run `dvc repro -f {stage}`"
            )
        rows = [[_number(cells[name], where=f"{path}:{reader.line_num}") for name in columns] for cells in reader]
    if not rows:
        raise InputError(f"{path}: expected at least one row; run `dvc repro -f {stage}`")
    return list(np.array(rows, dtype=np.float64).T)


def _number(cell: str | None, *, where: str) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        raise InputError(f"{where}: expected a number, got {cell!r}") from None
