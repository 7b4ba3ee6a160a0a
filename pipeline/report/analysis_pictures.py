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
    empty_figure,
    new_figure,
    plain,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANEL = (3.6, 3.4)  # inches, width and height of a panel with points
PALE_COLOUR = "#c8c8c8"  # of points in the background: the other names, and unknown values
NAMED = 9  # the most names with colours of their own in a panel; the others share one colour
ROWS = 24  # the most groups of a set in a picture of distances
WRITTEN = 12  # the most centroids with numbers written into the cells of the similarity
SPOKEN = {BONAFIDE: "bona fide", UNKNOWN: "unknown"}
LEGEND_WIDTH = 54  # letters
SIZES = (2.0, 9.0)  # the smallest and the largest size of a point, in square points
CROWD = 9_000  # the total size of all points, within these limits
ROW = 0.22  # inches, height of a box
DARK = 0.6  # from this cosine on, a cell is dark and its text is white
LEAST_SHOWN = 1e-6  # shorter distances of a path, as a share of the longest one, are left out
METRICS = {"cosine": "cosine", "euclidean": "Euclidean"}
LINES = 10  # the most centroids with a legend


def draw_projection(path: Path, chart: Map, number: int) -> None:
    """Draw one projection of a map, with a panel for each category that colours the points. Crosses are centroids."""
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
    beyond = len(projection.get("far", ()))
    far = f"; {beyond} at the border lie further away" if beyond else ""
    told = f"{projection['name']} of {chart['points']} trials, {projection['note']}{far}"
    figure.suptitle(f"{plain(chart['run'])}: {told}")
    save(figure, path)


def _scatter_names(axes: Axes, projection: Map, kind: str, *, names: Sequence[str], codes: Sequence[int]) -> None:
    """Points coloured by their names. Where there are too many names, the rarest ones share a colour."""
    common = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    named = sorted(common[: len(names) if len(names) <= NAMED + 1 else NAMED].tolist())
    colours = dict.fromkeys(range(len(names)), PALE_COLOUR)
    colours |= {i: _name_colour(kind, names[i], place, len(named)) for place, i in enumerate(named)}
    _scatter(axes, projection, [colours[code] for code in codes])
    labels = [(SPOKEN.get(names[i], plain(names[i])), colours[i]) for i in named]
    if len(named) < len(names):
        labels.append((f"{len(names) - len(named)} others", PALE_COLOUR))
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
    if kind == "quality level":  # levels have an order, so their colours have one, too
        return colormaps["viridis"](place / max(count - 1, 1) * 0.9)
    return {BONAFIDE: BONAFIDE_COLOUR, SPOOF: SPOOF_COLOUR}.get(name, colour_of(place))


def _scatter_numbers(axes: Axes, projection: Map, kind: str, values: Sequence[float | None]) -> None:
    """Points coloured by a number. Points without a number are pale."""
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
    """Points drawn in random order, so that no group hides another."""
    order = np.random.default_rng(SEED).permutation(len(colours))
    x, y = np.array(projection["x"])[order], np.array(projection["y"])[order]
    axes.scatter(x, y, s=_size(x), c=[colours[i] for i in order], linewidths=0)


def _size(points: NDArray[np.int64]) -> float:
    return float(np.clip(CROWD / len(points), *SIZES))


def draw_distances(path: Path, report: Report) -> None:
    """Draw the distances of each group to the nearest centroid: boxes from 25 to 75 %, whiskers from 5 to 95 %.

    There is a panel for each set. Of many groups it shows the bona fide and the largest others.
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
    """The groups that a panel shows, in their order: the bona fide and the largest others, up to `ROWS`."""
    common = sorted(groups, key=lambda name: (name != BONAFIDE, -groups[name]["n"]))[:ROWS]
    return {name: own for name, own in groups.items() if name in common}


def draw_path(path: Path, report: Report) -> None:
    """Draw how far each centroid moved in every epoch of training, and how far it was from its last position.

    The scale is logarithmic. Distances below a millionth of the largest one are left out.
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
    """A figure with `count` panels without scales, in rows of `columns`."""
    rows = -(-count // columns)
    figure = empty_figure(width=PANEL[0] * columns, height=0.3 + PANEL[1] * rows)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(PALE_COLOUR)
    return figure, panels


def _stacked(rows: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure with panels one below the other that share a scale; their heights follow their numbers of rows."""
    figure = empty_figure(width=6.0, height=0.8 + 0.35 * len(rows) + ROW * sum(rows))
    panels = list(figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
