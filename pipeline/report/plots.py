"""Drawings by matplotlib for papers, as PNG or SVG by the suffix of the file. The same data give the same bytes.

The numbers of each drawing are in a CSV file beside it (`pipeline.report.curves`), for use with other tools.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files
from pipeline.metrics.det import Det
from pipeline.metrics.eer import official_eer
from pipeline.report.curves import DET_TICKS, Histogram, beyond_frame, det_limits, probit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BONAFIDE_COLOUR, SPOOF_COLOUR, LINE_COLOUR = "#2b7bba", "#d1603d", "#333333"
DOTS_PER_INCH = 144
CELL = (0.55, 0.32)  # inches, width and height of a heatmap's cell
PALE = 0.55  # from this share of a heatmap's range on, a cell is dark and its text is white


def draw_dets(path: Path, dets: Mapping[str, Det]) -> None:
    """Draw the DET curves of several systems, by name, on probit axes, with a dot at each EER."""
    eers = {name: official_eer(det) for name, det in dets.items()}
    low, high = det_limits(list(dets.values()), [eer.eer for eer in eers.values()])
    shown = [tick for tick in DET_TICKS if low <= tick <= high]
    places, names = probit(np.array(shown), low=low, high=high), [f"{100 * tick:g}" for tick in shown]
    figure, axes = _figure(width=5.0, height=5.0)
    for i, (name, det) in enumerate(dets.items()):
        far, frr = beyond_frame(det, low=low, high=high)
        colour = LINE_COLOUR if len(dets) == 1 else colour_of(i)
        axes.plot(far, frr, color=colour, linestyle=dash_of(i), label=f"{plain(name)}  {100 * eers[name].eer:.2f} %")
        at = eers[name].point
        axes.plot(max(far[at], places[0]), max(frr[at], places[0]), "o", color=colour, clip_on=False, zorder=3)
    axes.set(xlim=places[[0, -1]], ylim=places[[0, -1]], xlabel="spoof accepted, %", ylabel="bona fide rejected, %")
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, title="EER")
    save(figure, path)


def draw_histogram(path: Path, shares: Histogram, *, thresholds: Mapping[str, float]) -> None:
    """Draw a score histogram by class and attack, and vertical lines at the named thresholds."""
    figure, axes = _figure(width=6.0, height=3.5)
    width = shares.centre[1] - shares.centre[0]
    edges = np.append(shares.centre - width / 2, shares.centre[-1] + width / 2)
    axes.stairs(100 * shares.spoof, edges, fill=True, alpha=0.45, color=SPOOF_COLOUR, label="spoof")
    axes.stairs(100 * shares.bonafide, edges, fill=True, alpha=0.45, color=BONAFIDE_COLOUR, label="bona fide")
    for i, (name, share) in enumerate(shares.attacks.items()):
        axes.stairs(100 * share, edges, color=colour_of(i), linestyle=dash_of(i), linewidth=0.9, label=plain(name))
    for (name, threshold), style in zip(thresholds.items(), ("--", ":"), strict=False):
        axes.axvline(threshold, color=LINE_COLOUR, linewidth=1.0, linestyle=style, label=plain(name))
    axes.set(xlabel="score", ylabel="share of the class or attack, %")
    axes.legend(frameon=False, fontsize="small", ncols=1 + len(shares.attacks) // 8)
    save(figure, path)


def draw_heatmap(path: Path, *, rows: Sequence[str], columns: Sequence[str], percent: NDArray[np.float64]) -> None:
    """Draw EERs, (rows, columns) in percent, as a heatmap with numbers; nan leaves a cell blank."""
    figure, axes = _figure(width=2.0 + CELL[0] * len(columns), height=1.2 + CELL[1] * len(rows))
    top = max(float(np.nanmax(percent)), 1e-9)
    axes.imshow(percent, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value > PALE * top else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="small")
    axes.set_xticks(range(len(columns)), [plain(name) for name in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("EER, %", fontsize="medium")
    save(figure, path)


def draw_transfer(path: Path, dets: Mapping[str, Det], *, thresholds: Mapping[str, float]) -> None:
    """Draw both error rates of each system over the threshold, to show the effect of a threshold from other data.

    The dashed line is the EER threshold of these scores, the dotted line the given threshold.
    """
    figure, panels = new_figure(len(dets), width=5.0, height=2.4)
    for (name, det), axes in zip(dets.items(), panels, strict=True):
        axes.plot(det.threshold, 100 * det.frr, color=BONAFIDE_COLOUR, label="bona fide rejected")
        axes.plot(det.threshold, 100 * det.far, color=SPOOF_COLOUR, label="spoof accepted")
        axes.axvline(official_eer(det).threshold, color=LINE_COLOUR, linewidth=1.0, linestyle="--", label="own EER")
        axes.axvline(thresholds[name], color=LINE_COLOUR, linewidth=1.0, linestyle=":", label="transferred")
        axes.set(title=plain(name), xlabel="threshold", ylabel="error rate, %", ylim=(0, 100))
    panels[0].legend(frameon=False, fontsize="small")
    save(figure, path)


def plain(name: str) -> str:
    """Escape a name for matplotlib: dollar signs make no formula, and a leading underscore hides no legend entry."""
    escaped = name.replace("\\", "\\\\").replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped


def colour_of(i: int) -> str:
    """The colour of line i. Ten colours are used in turn."""
    return f"C{i % 10}"


def dash_of(i: int) -> str:
    """The line style of line i. It changes when the colours begin again."""
    return ("-", "--", ":")[i // 10 % 3]


def _figure(*, width: float, height: float) -> tuple[Figure, Axes]:
    figure, panels = new_figure(1, width=width, height=height)
    return figure, panels[0]


def new_figure(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels one below the other. width, height: of a panel, in inches."""
    figure = empty_figure(width=width, height=height * count)
    panels = [figure.add_subplot(count, 1, place + 1) for place in range(count)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def empty_figure(*, width: float, height: float) -> Figure:
    """A figure without panels, drawn by Agg. width, height: in inches.

    matplotlib is imported here and not at the top, so that importing this module stays fast.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG by the suffix. The same drawing gives the same bytes."""
    from matplotlib import rc_context

    image, kind = io.BytesIO(), path.suffix.removeprefix(".")
    # No date and no random names, so that the same plot gives the same file. In SVG text stays text.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "bonafide", "svg.fonttype": "none"}):
        figure.savefig(image, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
    files.write_bytes(path, image.getvalue())
