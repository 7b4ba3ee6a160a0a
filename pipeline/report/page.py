"""The report as one self-contained HTML page: tables and charts, drawn as inline SVG that follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.det import Det
from pipeline.metrics.eer import official_eer
from pipeline.report.curves import DET_TICKS, Histogram, Training, beyond_frame, det_limits, probit
from pipeline.report.leaderboard import Leaderboard

TEMPLATE = "page.html.j2"
COLOURS, DASHES = 8, 3  # as the template's style sheet has them: 24 runs look different
WIDE, SQUARE = (330, 190), (330, 330)  # pixels of the area within the axes
BEYOND = 20  # pixels outside the area where what cannot be shown is drawn, so that no line runs along the border


@dataclass(frozen=True)
class Axis:
    """An axis: its label, the values at its ends, and ticks as (value, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name in the legend, its CSS classes, points (n, 2), and a dot or None."""

    name: str
    style: str
    points: NDArray[np.float64]
    dot: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart: caption, size of the area in pixels, axes, and lines in the units of the axes."""

    caption: str
    size: tuple[int, int]
    x: Axis
    y: Axis
    lines: tuple[Line, ...]

    def across(self, value: float) -> float:
        """Pixels from the left for a value on the x axis."""
        return _pixels(value, self.x, self.size[0])

    def down(self, value: float) -> float:
        """Pixels from the top for a value on the y axis."""
        return round(self.size[1] - _pixels(value, self.y, self.size[1]), 1)

    def path(self, line: Line) -> str:
        """The points of a line as SVG writes them."""
        return " ".join(f"{self.across(x):g},{self.down(y):g}" for x, y in line.points.tolist())


def _pixels(value: float, axis: Axis, size: int) -> float:
    place = size * (value - axis.low) / (axis.high - axis.low)
    return round(min(max(place, -BEYOND), size + BEYOND), 1)


@dataclass(frozen=True)
class Curves:
    """What the charts show: DET points and histograms by (run, set), the course of the training by run.

    Of each system that is charted, the run that its lowest dev EER selected.
    """

    dets: Mapping[tuple[str, str], Det]
    histograms: Mapping[tuple[str, str], Histogram]
    trainings: Mapping[str, Training]


def charted(board: Leaderboard) -> tuple[str, ...]:
    """The systems that charts show: the best ones, as many as can look different."""
    return board.systems[: COLOURS * DASHES]


def render(board: Leaderboard, curves: Curves, *, note: str = "") -> str:
    """The whole page as HTML; `note` is shown as a banner above everything. The same input gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        board=board,
        note=note,
        styles={system: _style(rank) for rank, system in enumerate(charted(board))},
        charted=charted(board),
        det_charts={name: det_chart(board, curves, name) for name in board.sets},
        training_charts=training_charts(board, curves),
        histogram_charts={
            (system, name): _histogram(board, curves, system, name) for system in charted(board) for name in board.sets
        },
    )


def _style(rank: int) -> str:
    """The CSS classes of a run's lines."""
    return f"c{rank % COLOURS} d{rank // COLOURS % DASHES}"


def _histogram(board: Leaderboard, curves: Curves, system: str, name: str) -> Chart:
    run = board.selected(system)
    return histogram_chart(curves.histograms[run, name], name, threshold=board.results[run, name].threshold)


def det_chart(board: Leaderboard, curves: Curves, name: str) -> Chart:
    """The DET curves of the charted systems on one set, on probit axes, with a dot at the point of each EER."""
    runs = {system: board.selected(system) for system in charted(board)}
    eers = [board.results[run, name].eer for run in runs.values()]
    low, high = det_limits([curves.dets[run, name] for run in runs.values()], [eer / 100 for eer in eers])
    shown = [tick for tick in DET_TICKS if low <= tick <= high]
    places: list[float] = probit(np.array(shown), low=low, high=high).tolist()
    lines = []
    for rank, (system, eer) in enumerate(zip(runs, eers, strict=True)):
        det = curves.dets[runs[system], name]
        points = np.stack(beyond_frame(det, low=low, high=high), axis=1)
        x, y = np.clip(points[official_eer(det).point], places[0], places[-1]).tolist()
        lines.append(Line(f"{system}  {eer:.2f}", _style(rank), points, (x, y)))
    ticks = tuple((place, f"{100 * tick:g}") for place, tick in zip(places, shown, strict=True))
    across, down = (
        Axis(label, places[0], places[-1], ticks) for label in ("spoof accepted, %", "bona fide rejected, %")
    )
    return Chart(name, SQUARE, across, down, tuple(lines))


def training_charts(board: Leaderboard, curves: Curves) -> tuple[Chart, Chart]:
    """The loss and the EER on the dev set of the charted systems by epoch, with a dot at each lowest value."""
    trainings = {system: curves.trainings[board.selected(system)] for system in charted(board)}
    epochs = np.concatenate([training.epoch for training in trainings.values()])
    charts = []
    for caption, column, label in (("loss", "loss", "loss"), ("dev EER", "dev_eer", "EER, %")):
        lines = []
        for rank, (system, training) in enumerate(trainings.items()):
            points = np.stack((training.epoch, getattr(training, column)), axis=1)
            points = points[np.isfinite(points).all(axis=1)]
            lowest = tuple(points[np.argmin(points[:, 1])].tolist()) if len(points) else None
            lines.append(Line(system, _style(rank), points, lowest))
        values = np.concatenate([line.points[:, 1] for line in lines])
        x = linear_axis("epoch", epochs, whole=True)
        charts.append(Chart(caption, WIDE, x, linear_axis(label, values), tuple(lines)))
    return charts[0], charts[1]


def histogram_chart(shares: Histogram, caption: str, *, threshold: float) -> Chart:
    """The scores of both classes, in percent of the class, with the EER threshold."""
    y = linear_axis("share, %", 100 * np.concatenate((shares.bonafide, shares.spoof, [0.0])))
    width = shares.centre[1] - shares.centre[0]
    x = linear_axis("score", np.append(shares.centre - width / 2, shares.centre[-1] + width / 2), snap=False)
    return Chart(
        caption,
        WIDE,
        x,
        y,
        (
            Line("spoof", "spoof fill", _steps(shares.centre, 100 * shares.spoof)),
            Line("bona fide", "bonafide fill", _steps(shares.centre, 100 * shares.bonafide)),
            Line("EER threshold", "threshold", np.array([[threshold, y.low], [threshold, y.high]])),
        ),
    )


def _steps(centre: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline (2n + 2, 2) of a histogram's bins, from the base line and back to it."""
    half = (centre[1] - centre[0]) / 2
    edges = np.append(centre - half, centre[-1] + half)
    return np.stack((np.repeat(edges, 2), np.concatenate(([0.0], np.repeat(heights, 2), [0.0]))), axis=1)


def linear_axis(label: str, values: NDArray[np.float64], *, whole: bool = False, snap: bool = True) -> Axis:
    """An axis over the finite values with about five ticks at 1, 2 or 5 times a power of ten.

    whole: ticks at whole numbers only. snap: the axis ends at ticks, else at the values.
    """
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if low == high:
        high = low + max(abs(low), 1.0)
    step = _step((high - low) / 5)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    ticks = [(i * step, f"{i * step:.{decimals}f}".replace("-", "\N{MINUS SIGN}")) for i in range(first, last + 1)]
    if snap:
        return Axis(label, first * step, last * step, tuple(ticks))
    return Axis(label, low, high, tuple(tick for tick in ticks if low <= tick[0] <= high))


def _step(least: float) -> float:
    """The least 1, 2 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
