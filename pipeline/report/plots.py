"""Drawings by matplotlib for papers, as PNG or SVG by the suffix of the file. The same data give the same bytes.

The numbers of each drawing are in a CSV file beside it (`pipeline.report.curves`), for use with other tools.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
LETTER = 0.085  # inches, the width of a letter, which makes room for names
LONGEST = 44  # letters of a name; of a longer one the beginning and the end are shown
INSIDE = 6  # the most entries of a legend within the frame; more stand beside it
COLUMN = 32  # entries in a column of a legend beside the frame
STACKED = 6  # the most panels one below the other
OVERLAID = 9  # the most attacks drawn as lines over the classes; more get a row each below them
ROW = 0.17  # inches, height of an attack's row
PALE = 0.55  # from this share of a heatmap's range on, a cell is dark and its text is white


def draw_dets(path: Path, dets: Mapping[str, Det]) -> None:
    """Draw the DET curves of several systems, by name, on probit axes, with a dot at each EER."""
    eers = {name: official_eer(det) for name, det in dets.items()}
    low, high = det_limits(list(dets.values()), [eer.eer for eer in eers.values()])
    shown = [tick for tick in DET_TICKS if low <= tick <= high]
    places, ticks = probit(np.array(shown), low=low, high=high), [f"{100 * tick:g}" for tick in shown]
    labels = [f"{name}  {100 * eers[own].eer:.2f} %" for own, name in zip(dets, shortened(dets), strict=True)]
    figure, axes = _figure(width=5.0 + _beside(labels), height=max(5.0, 0.6 + 0.2 * min(len(dets), COLUMN)))
    for i, (label, (name, det)) in enumerate(zip(labels, dets.items(), strict=True)):
        far, frr = beyond_frame(det, low=low, high=high)
        colour = LINE_COLOUR if len(dets) == 1 else colour_of(i)
        axes.plot(far, frr, color=colour, linestyle=dash_of(i), label=label)
        at = eers[name].point
        dot = np.clip((far[at], frr[at]), places[0], places[-1])
        axes.plot(*dot, "o", color=colour, clip_on=False, zorder=3)
    axes.set(xlim=places[[0, -1]], ylim=places[[0, -1]], xlabel="spoof accepted, %", ylabel="bona fide rejected, %")
    axes.set_xticks(places, ticks)
    axes.set_yticks(places, ticks)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    _legend(axes, labels, title="EER")
    save(figure, path)


def _beside(labels: Sequence[str]) -> float:
    """Inches that a legend beside the frame takes, 0 for one within it."""
    columns = -(-len(labels) // COLUMN)
    return 0.0 if _fits_inside(labels) else columns * (0.6 + LETTER * max(map(len, labels)))


def _fits_inside(labels: Sequence[str]) -> bool:
    return len(labels) <= INSIDE and max(map(len, labels)) <= LONGEST / 2


def _legend(axes: Axes, labels: Sequence[str], *, title: str | None = None) -> None:
    """A legend within the frame, or beside it where it would cover the lines."""
    if _fits_inside(labels):
        axes.legend(frameon=False, title=title)
        return
    axes.legend(frameon=False, title=title, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0),
                ncols=-(-len(labels) // COLUMN))  # fmt: skip


def draw_histogram(path: Path, shares: Histogram, *, thresholds: Mapping[str, float]) -> None:
    """Draw a score histogram by class and attack, and vertical lines at the named thresholds.

    Few attacks are lines over the classes. Of many, each has a row of its own below them: the darker, the larger its
    share.
    """
    many = len(shares.attacks) > OVERLAID
    figure = empty_figure(width=8.0 if many else 6.0, height=3.5 + many * (0.4 + ROW * len(shares.attacks)))
    heights = (3.2, ROW * len(shares.attacks)) if many else (1.0,)
    panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights).flat)
    width = shares.centre[1] - shares.centre[0]
    edges = np.append(shares.centre - width / 2, shares.centre[-1] + width / 2)
    _draw_classes(panels[0], shares, edges, thresholds, attacks={} if many else shares.attacks)
    if many:
        _draw_rows(panels[1], shares.attacks, edges, thresholds)
    panels[-1].set_xlabel("score")
    save(figure, path)


def _draw_classes(
    axes: Axes,
    shares: Histogram,
    edges: NDArray[np.float64],
    thresholds: Mapping[str, float],
    *,
    attacks: Mapping[str, NDArray[np.float64]],
) -> None:
    axes.stairs(100 * shares.spoof, edges, fill=True, alpha=0.45, color=SPOOF_COLOUR, label="spoof")
    axes.stairs(100 * shares.bonafide, edges, fill=True, alpha=0.45, color=BONAFIDE_COLOUR, label="bona fide")
    for i, (label, share) in enumerate(zip(shortened(attacks), attacks.values(), strict=True)):
        axes.stairs(100 * share, edges, color=colour_of(i), linestyle=dash_of(i), linewidth=0.9, label=label)
    for (name, threshold), style in zip(thresholds.items(), ("--", ":"), strict=False):
        axes.axvline(threshold, color=LINE_COLOUR, linewidth=1.0, linestyle=style, label=plain(name))
    axes.set_ylabel("share of the class or attack, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", ncols=1 + len(attacks) // 8)


def _draw_rows(
    axes: Axes,
    attacks: Mapping[str, NDArray[np.float64]],
    edges: NDArray[np.float64],
    thresholds: Mapping[str, float],
) -> None:
    """A row for each attack over the bins of the scores."""
    rows = np.stack(list(attacks.values()))
    axes.pcolormesh(edges, np.arange(len(rows) + 1), rows, cmap="Oranges", rasterized=True)
    for threshold, style in zip(thresholds.values(), ("--", ":"), strict=False):
        axes.axvline(threshold, color=LINE_COLOUR, linewidth=1.0, linestyle=style)
    axes.set_yticks(np.arange(len(rows)) + 0.5, shortened(attacks), fontsize="x-small")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()


def draw_heatmap(path: Path, *, rows: Sequence[str], columns: Sequence[str], percent: NDArray[np.float64]) -> None:
    """Draw EERs, (rows, columns) in percent, as a heatmap with numbers; nan leaves a cell blank.

    The longer side goes downwards where it is too long to go across.
    """
    if len(columns) > max(len(rows), COLUMN):
        rows, columns, percent = columns, rows, percent.T
    beside, below = shortened(rows), shortened(columns)
    longest = [LETTER * max(map(len, names)) for names in (beside, below)]
    figure, axes = _figure(
        width=0.8 + longest[0] + 0.7 * longest[1] + CELL[0] * len(columns),
        height=1.0 + 0.7 * longest[1] + CELL[1] * len(rows),
    )
    top = max(float(np.nanmax(percent)), 1e-9)
    axes.imshow(percent, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value > PALE * top else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="small")
    axes.set_xticks(range(len(columns)), below, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), beside)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("EER, %", fontsize="medium")
    save(figure, path)


def draw_transfer(path: Path, dets: Mapping[str, Det], *, thresholds: Mapping[str, float]) -> None:
    """Draw both error rates of each system over the threshold, to show the effect of a threshold from other data.

    The dashed line is the EER threshold of these scores, the dotted line the given threshold.
    """
    across = 1 if len(dets) <= STACKED else 3
    down = -(-len(dets) // across)
    figure = empty_figure(width=(5.0 if across == 1 else 4.2) * across, height=2.4 * down)
    panels = [figure.add_subplot(down, across, place + 1) for place in range(len(dets))]
    for title, (name, det), axes in zip(shortened(dets), dets.items(), panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot(det.threshold, 100 * det.frr, color=BONAFIDE_COLOUR, label="bona fide rejected")
        axes.plot(det.threshold, 100 * det.far, color=SPOOF_COLOUR, label="spoof accepted")
        axes.axvline(official_eer(det).threshold, color=LINE_COLOUR, linewidth=1.0, linestyle="--", label="own EER")
        axes.axvline(thresholds[name], color=LINE_COLOUR, linewidth=1.0, linestyle=":", label="transferred")
        axes.set(xlabel="threshold", ylabel="error rate, %", ylim=(0, 100))
        axes.set_title(title, fontsize="medium" if len(title) <= LONGEST / 2 else "small")
    panels[0].legend(frameon=False, fontsize="small")
    save(figure, path)


def shortened(names: Iterable[str], *, longest: int = LONGEST) -> list[str]:
    """Names for a drawing, all different: of long ones the beginning and the end, as they may differ at either."""
    found = list(names)
    head = longest // 3
    short = [
        name if len(name) <= longest else f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[head + 1 - longest :]}"
        for name in found
    ]
    twice = {name for name, times in Counter(short).items() if times > 1}
    return [plain(name if cut in twice else cut) for name, cut in zip(found, short, strict=True)]


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
    with rc_context({"svg.hashsalt": "bonafide", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Names may be in any script. A sign that the font lacks becomes a box in PNG; SVG leaves it to the viewer.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(image, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
    files.write_bytes(path, image.getvalue())
