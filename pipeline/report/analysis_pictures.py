"""Pictures of an analysis: maps, distances, the path of the centroids, their similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.geometry import BONAFIDE, SEED, SPOOF, Report
from pipeline.analysis.projection import Map
from pipeline.core.trial_table import UNKNOWN
from pipeline.report.plots import (
    BONAFIDE_COLOUR,
    LINE_COLOUR,
    SPOOF_COLOUR,
    colour_of,
    dash_of,
    new_figure,
    plain,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANEL = (3.6, 3.4)  # inches, width and height of a panel with points
PALE_COLOUR = "#c8c8c8"  # of what is behind: the rest, the unknown
TOLD = 9  # names that a panel tells by colours of their own; the rest is one
ROWS = 24  # groups of a set that a picture of distances shows
WRITTEN = 12  # centroids up to which a similarity is written into its cell
SPOKEN = {BONAFIDE: "bona fide", UNKNOWN: "unknown"}
LEGEND_WIDTH = 54  # letters
SIZES = (2.0, 9.0)  # least and most of a point, in square points
CROWD = 9_000  # the sizes of all points together, where that is between
ROW = 0.22  # inches of a box
DARK = 0.6  # cosine from which its cell is dark enough for white
LEAST_SHOWN = 1e-6  # of the largest distance of a path
METRICS = {"cosine": "cosine", "euclidean": "Euclidean"}
LINES = 10  # centroids up to which a legend names their lines


def draw_projection(path: Path, chart: Map, number: int) -> None:
    """Draw one projection of a map, a panel for each thing that points can be coloured by; crosses are centroids."""
    projection = chart["projections"][number]
    shown = [kind for kind, own in chart["categories"].items() if kind != "centroid" or len(own["names"]) > 1]
    shown += [kind for kind in chart["numbers"] if kind != "score"]
    columns = 2 if len(shown) in (1, 2, 4) else 3
    figure, panels = _grid(len(shown), columns)
    for kind, axes in zip(shown, panels, strict=True):
        if kind in chart["categories"]:
            _scatter_names(axes, projection, kind, **chart["categories"][kind])
        else:
            _scatter_numbers(axes, projection, kind, chart["numbers"][kind])
        if projection["centroids"]:
            axes.plot(*np.array(projection["centroids"]).T, "x", color="black", markersize=8, markeredgewidth=2)
    figure.suptitle(f"{plain(chart['run'])}: {projection['name']} of {chart['points']} trials, {projection['note']}")
    save(figure, path)


def _scatter_names(axes: Axes, projection: Map, kind: str, *, names: Sequence[str], codes: Sequence[int]) -> None:
    """Points in the colours of what they are; the rarest of many share one."""
    common = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    told = sorted(common[: len(names) if len(names) <= TOLD + 1 else TOLD].tolist())
    colours = dict.fromkeys(range(len(names)), PALE_COLOUR)
    colours |= {i: _name_colour(kind, names[i], place, len(told)) for place, i in enumerate(told)}
    _scatter(axes, projection, [colours[code] for code in codes])
    labels = [(SPOKEN.get(names[i], plain(names[i])), colours[i]) for i in told]
    if len(told) < len(names):
        labels.append((f"{len(names) - len(told)} others", PALE_COLOUR))
    for label, colour in labels:
        axes.plot([], [], "o", color=colour, markersize=4, label=label)
    axes.set_title(kind, fontsize="medium")
    lengths = [len(label) for label, _ in labels]
    width = 4 + (max(lengths) + sum(lengths) / len(lengths)) / 2
    axes.legend(
        frameon=False,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=max(1, int(LEGEND_WIDTH / width)),
        handletextpad=0.1,
        columnspacing=1.0,
        borderaxespad=0.2,
    )


def _name_colour(kind: str, name: str, place: int, count: int) -> Any:
    from matplotlib import colormaps

    if name == UNKNOWN:
        return PALE_COLOUR
    if kind == "quality level":  # they have an order
        return colormaps["viridis"](place / max(count - 1, 1) * 0.9)
    return {BONAFIDE: BONAFIDE_COLOUR, SPOOF: SPOOF_COLOUR}.get(name, colour_of(place))


def _scatter_numbers(axes: Axes, projection: Map, kind: str, values: Sequence[float | None]) -> None:
    """Points in the colours of a number; those without one are pale."""
    known = np.array([value is not None for value in values])
    numbers = np.array([value for value in values if value is not None])
    x, y = np.array(projection["x"]), np.array(projection["y"])
    axes.scatter(x[~known], y[~known], s=_size(x), color=PALE_COLOUR, linewidths=0)
    points = axes.scatter(x[known], y[known], s=_size(x), c=numbers, cmap="viridis", linewidths=0)
    bar = axes.figure.colorbar(points, cax=axes.inset_axes((0.2, -0.06, 0.6, 0.03)), orientation="horizontal")
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)
    axes.set_title(kind, fontsize="medium")


def _scatter(axes: Axes, projection: Map, colours: Sequence[Any]) -> None:
    """Points one over the other in a random order, so that no group hides another."""
    order = np.random.default_rng(SEED).permutation(len(colours))
    x, y = np.array(projection["x"])[order], np.array(projection["y"])[order]
    axes.scatter(x, y, s=_size(x), c=[colours[i] for i in order], linewidths=0)


def _size(points: NDArray[np.int64]) -> float:
    return float(np.clip(CROWD / len(points), *SIZES))


def draw_distances(path: Path, report: Report) -> None:
    """Draw how far each group lies from the nearest centroid: a box from 25 to 75 %, whiskers from 5 to 95 %.

    A panel a set; of many groups the bona fide and the largest.
    """
    chosen = [_largest(report["distances"][name]) for name in report["sets"]]
    figure, panels = _stacked([len(groups) for groups in chosen])
    for name, groups, axes in zip(report["sets"], chosen, panels, strict=True):
        boxes = [
            dict(zip(("whislo", "q1", "med", "q3", "whishi"), own["quantiles"], strict=True)) | {"mean": own["mean"]}
            for own in groups.values()
        ]
        drawn = axes.bxp(
            boxes, orientation="horizontal", widths=0.6, showfliers=False, showmeans=True, patch_artist=True,
            meanprops={"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": LINE_COLOUR},
            medianprops={"color": LINE_COLOUR},
        )  # fmt: skip
        for group, box in zip(groups, drawn["boxes"], strict=True):
            box.set(facecolor=BONAFIDE_COLOUR if group == BONAFIDE else SPOOF_COLOUR, alpha=0.6, linewidth=0.6)
        names = [f"{SPOKEN.get(group, plain(group))}  {own['n']:,}" for group, own in groups.items()]
        axes.set_yticks(range(1, len(groups) + 1), names)
        whole = len(report["distances"][name])
        part = f" ({len(groups)} of {whole} groups)" if len(groups) < whole else ""
        axes.set_title(plain(name) + part, fontsize="medium", loc="left")
        axes.invert_yaxis()
    normal = report["distance"] == "cosine"
    panels[-1].set_xlabel("cosine distance to the nearest centroid" if normal else "Euclidean distance to the centroid")
    figure.suptitle(plain(report["run"]), fontsize="medium")
    save(figure, path)


def _largest(groups: Report) -> Report:
    """At most so many groups as a panel has rows, in their order: the bona fide and the largest of the others."""
    common = sorted(groups, key=lambda name: (name != BONAFIDE, -groups[name]["n"]))[:ROWS]
    return {name: own for name, own in groups.items() if name in common}


def draw_path(path: Path, report: Report) -> None:
    """Draw how far each centroid moved in every epoch of training, and how far it was from where it ended.

    The scale is logarithmic: what is less than a millionth of the largest distance is left out.
    """
    way = report["path"]
    figure, panels = new_figure(2, width=6.0, height=2.2)
    titles = {"moved": "moved since the epoch before", "to_last": "distance to the last epoch"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        steps = np.array(way[key], dtype=np.float64)  # (epochs, K), None is nan
        top = np.nanmax(steps, initial=0.0)
        for centroid, distance in enumerate(np.where(steps > LEAST_SHOWN * top, steps, np.nan).T):
            style: dict[str, Any] = {
                "color": colour_of(centroid),
                "linestyle": dash_of(centroid),
                "marker": ".",
                "linewidth": 1.0,
            }
            axes.plot(way["epochs"], distance, label=f"centroid {centroid}", **style)
        if top > 0:
            axes.set_yscale("log")
        axes.set_title(title, fontsize="medium", loc="left")
        axes.set(ylabel=f"{METRICS[report['distance']]} distance", xlim=(0.5, len(way["epochs"]) + 0.5))
        axes.locator_params(axis="x", integer=True)
        axes.grid(visible=True, axis="y", color="#dddddd", linewidth=0.6)
    if 1 < len(report["similarity"]) <= LINES:
        panels[0].legend(frameon=False, fontsize="small", ncols=2)
    panels[1].set_xlabel("epoch")
    figure.suptitle(plain(report["run"]), fontsize="medium")
    save(figure, path)


def draw_similarity(path: Path, report: Report) -> None:
    """Draw the cosines between centroids."""
    cosines = np.array(report["similarity"])
    side = 1.6 + 0.5 * min(len(cosines), WRITTEN)
    figure, (axes,) = new_figure(1, width=side + 0.8, height=side)
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    if len(cosines) <= WRITTEN:
        for (row, column), value in np.ndenumerate(cosines):
            colour = "white" if abs(value) > DARK else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="small")
    axes.locator_params(integer=True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="centroid", ylabel="centroid")
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine").outline.set_visible(False)
    save(figure, path)


def _grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels without scales, in rows of so many."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, 0.3 + PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(PALE_COLOUR)
    return figure, panels


def _stacked(rows: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure of panels one below the other on one scale, as high as their rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 0.8 + 0.35 * len(rows) + ROW * sum(rows)
    figure = Figure(figsize=(6.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
