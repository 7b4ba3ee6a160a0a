"""The report as one HTML page without other files: tables, charts as inline SVG, and the map, in light and dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.det import Det
from pipeline.metrics.eer import official_eer
from pipeline.report import stopped
from pipeline.report.curves import DET_TICKS, Histogram, TrainingCurve, beyond_frame, det_limits, probit
from pipeline.report.leaderboard import Leaderboard
from pipeline.report.measures import GROUPS
from pipeline.report.page import embedding_space, layer_curve, tables
from pipeline.report.page.atlas_table import HeatMap
from pipeline.report.page.charts import COLOURS, DASHES, SQUARE, WIDE, Axis, Chart, Line, linear_axis, style
from pipeline.report.page.embedding_space import AnalysedRun
from pipeline.report.page.layer_curve import LayerCurve

if TYPE_CHECKING:
    from jinja2 import Template

FOLDER = Path(__file__).parent
TEMPLATE = "page.html.j2"
TRAINING_CHARTS = (  # caption, column of the training curve, label
    ("loss in training", "loss", "loss"),
    ("loss on dev", "dev_loss", "loss"),
    ("EER of a sample of the training set", "train_eer", "EER, %"),
    ("EER on dev", "dev_eer", "EER, %"),
)
FEWEST_DECIDED = 0.05  # the share of trials from which a curve of risk begins; that of a few trials is chance
STYLE_SHEET, SCRIPTS = "page.css", ("table.js", "charts.js", "map.js")  # become part of the page


@dataclass(frozen=True)
class Origin:
    """What the report is about and where it comes from.

    title: of the page. encoder: in words. corpora: set -> its corpus, in words. date, commit: when the newest run was
    trained, and with which commit of the project; empty where unknown, as where no run was trained here. axes: system
    -> axis of the grid -> the system's choice. files: files beside the page that it links to.
    """

    title: str = "Report"
    encoder: str = ""
    corpora: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    commit: str = ""
    axes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Curves:
    """The data of the charts: DET points and histograms by (run, set), and the course of the training by run.

    Each charted system has the data of one run, the one with the lowest dev EER. trainings: only of runs that were
    trained. risks: (P, 2) coverage and risk by (run, set), only of what an `evaluate` wrote that knew them.
    """

    dets: Mapping[tuple[str, str], Det]
    histograms: Mapping[tuple[str, str], Histogram]
    trainings: Mapping[str, TrainingCurve]
    risks: Mapping[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)


def charted(board: Leaderboard) -> tuple[str, ...]:
    """The systems that charts show: the best ones, as many as there are different looks."""
    return board.systems[: COLOURS * DASHES]


def render(
    board: Leaderboard,
    curves: Curves,
    *,
    origin: Origin | None = None,
    layers: LayerCurve | None = None,
    atlas: Sequence[HeatMap] = (),
    spaces: Sequence[AnalysedRun] = (),
    audio_root: str = ".",
    note: str = "",
) -> str:
    """The whole page as HTML. The same input gives the same bytes.

    Args:
        origin: what the report is about. layers: the results of the layer probe, if any.
        atlas: those of the layer atlas. spaces: the analysed runs, in the order of the page.
        audio_root: the path from the page to the folder to which audio paths are relative. note: shown at the top.
    """
    from markupsafe import Markup

    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    maps = embedding_space.map_data(spaces, root=audio_root)
    return _template().render(
        _table_parts(board, (origin or Origin()).axes),
        origin=origin or Origin(),
        style_sheet=Markup((FOLDER / STYLE_SHEET).read_text(encoding="utf-8")),  # noqa: S704  # our own files
        script=Markup(script),  # noqa: S704
        script_hash=_hash(script),
        map_index=Markup(maps.index),  # noqa: S704  # escaped for where it stands
        map_columns={name: Markup(text) for name, text in maps.columns.items()},  # noqa: S704
        spaces=spaces,
        board=board,
        stopped_early=stopped.sentence(board.stopped),
        note=note,
        charted=charted(board),
        det_charts={name: det_chart(board, curves, name) for name in board.sets},
        risk_charts={name: chart for name in board.sets if (chart := risk_chart(board, curves, name))},
        layer_chart=layer_curve.chart(layers) if layers else None,
        atlas=atlas,
        darkest=tables.DARKEST,
        training_charts=training_charts(board, curves),
        histogram_charts={
            (system, name): _histogram(board, curves, system, name) for system in charted(board) for name in board.sets
        },
    )


def _table_parts(board: Leaderboard, axes: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The rows of all tables of systems, and what their headers need."""
    styles = {system: style(rank) for rank, system in enumerate(charted(board))}
    sets, measures = tables.ordered_sets(board), tables.switched(board)
    groups = {
        (name, kind): tables.group_rows(board, name, kind, styles)
        for name in sets
        for kind in GROUPS
        if board.first(name).groups(kind)
    }
    return {
        "whole": tables.WHOLE,
        "view_rows": {name: tables.view_rows(board, name, styles) for name in sets if board.views(name)},
        "sets": sets,
        "measures": measures,
        "decisions": tables.decisions(board),
        "leaderboard_rows": tables.leaderboard_rows(board, styles, axes),
        "filters": tables.filters(axes),
        "headings": {kind: f"{kind}s".capitalize() for kind in GROUPS if any(kind == shown for _, shown in groups)},
        "group_rows": groups,
        "decision_rows": {name: tables.decision_rows(board, name, styles) for name in sets},
        "menu_styles": tables.menu_styles(measures, groups=len(groups)),
    }


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE)


def _hash(script: str) -> str:
    """The hash of the script for the content security policy, so that no other script may run on the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _histogram(board: Leaderboard, curves: Curves, system: str, name: str) -> Chart:
    run = board.selected(system)
    result = board.results[run, name]
    of_dev = result.measure("threshold_dev")
    thresholds = {"EER threshold": result.threshold} | ({"dev threshold": of_dev[0]} if of_dev else {})
    return histogram_chart(curves.histograms[run, name], name, thresholds=thresholds)


def det_chart(board: Leaderboard, curves: Curves, name: str) -> Chart:
    """The DET curves of the charted systems on one set, on probit axes, with a dot at each EER."""
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
        lines.append(Line(f"{system}  {eer:.2f}", style(rank), points, (x, y)))
    ticks = tuple((place, f"{100 * tick:g}") for place, tick in zip(places, shown, strict=True))
    across, down = (
        Axis(label, places[0], places[-1], ticks) for label in ("spoof accepted, %", "bona fide rejected, %")
    )
    return Chart(name, SQUARE, across, down, tuple(lines))


def risk_chart(board: Leaderboard, curves: Curves, name: str) -> Chart | None:
    """The risk-coverage curves of the charted systems on one set, in percent; None where no run has one."""
    lines = []
    for rank, system in enumerate(charted(board)):
        points = curves.risks.get((board.selected(system), name))
        if points is not None:
            lines.append(Line(system, style(rank), 100 * points[points[:, 0] >= FEWEST_DECIDED]))
    if not lines:
        return None
    x = linear_axis("decided, the most certain first, %", np.array([0.0, 100.0]))
    wrong = np.concatenate([line.points[:, 1] for line in lines] + [np.zeros(1)])
    return Chart(name, WIDE, x, linear_axis("wrong, %", wrong), tuple(lines))


def training_charts(board: Leaderboard, curves: Curves) -> tuple[Chart, ...]:
    """The losses and EERs of the charted systems by epoch, with a dot at the lowest value of each.

    Systems that were not trained are left out, and charts of what no training measured.
    """
    ranks = {system: rank for rank, system in enumerate(charted(board)) if board.selected(system) in curves.trainings}
    trainings = {system: curves.trainings[board.selected(system)] for system in ranks}
    charts = []
    for caption, column, label in TRAINING_CHARTS:
        lines = []
        for system, training in trainings.items():
            points = np.stack((training.epoch, getattr(training, column)), axis=1)
            points = points[np.isfinite(points).all(axis=1)]
            if len(points):
                lowest = tuple(points[np.argmin(points[:, 1])].tolist())
                lines.append(Line(system, style(ranks[system]), points, lowest))
        if lines:
            epochs, values = np.concatenate([line.points for line in lines]).T
            x = linear_axis("epoch", epochs, whole=True)
            charts.append(Chart(caption, WIDE, x, linear_axis(label, values), tuple(lines)))
    return tuple(charts)


def histogram_chart(shares: Histogram, caption: str, *, thresholds: Mapping[str, float]) -> Chart:
    """The histogram of the scores of both classes, each in percent of its class, with up to two named thresholds."""
    y = linear_axis("share, %", 100 * np.concatenate((shares.bonafide, shares.spoof, [0.0])))
    width = shares.centre[1] - shares.centre[0]
    x = linear_axis("score", np.append(shares.centre - width / 2, shares.centre[-1] + width / 2), snap=False)
    upright = [
        Line(name, f"threshold {look}", np.array([[threshold, y.low], [threshold, y.high]]))
        for (name, threshold), look in zip(thresholds.items(), ("own", "other"), strict=False)
    ]
    filled = (
        Line("spoof", "spoof fill", _steps(shares.centre, 100 * shares.spoof)),
        Line("bona fide", "bonafide fill", _steps(shares.centre, 100 * shares.bonafide)),
    )
    return Chart(caption, WIDE, x, y, (*filled, *upright))


def _steps(centre: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline (2n + 2, 2) of a histogram's n bins. It begins and ends on the base line."""
    half = (centre[1] - centre[0]) / 2
    edges = np.append(centre - half, centre[-1] + half)
    return np.stack((np.repeat(edges, 2), np.concatenate(([0.0], np.repeat(heights, 2), [0.0]))), axis=1)
