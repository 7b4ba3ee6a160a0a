"""The analysis of a run's embeddings as files: JSON, CSV tables and pictures. The same analysis gives the same bytes.

`map.json` has the numbers behind the pictures of projections, `analysis.json` those behind the other pictures.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from pipeline.analysis.geometry import BONAFIDE, QUANTILES, SPOOF, UNLIKE, Report
from pipeline.analysis.projection import Map
from pipeline.core import files
from pipeline.report.analysis_pictures import draw_distances, draw_path, draw_projection, draw_similarity

ANALYSIS_FILE, MAP_FILE = "analysis.json", "map.json"


def write(folder: Path, report: Report, chart: Map) -> None:
    """Write all files of an analysis and its map into a folder."""
    files.write_text(folder / ANALYSIS_FILE, json.dumps(report, indent=1, allow_nan=False) + "\n")
    files.write_text(folder / MAP_FILE, json.dumps(chart, separators=(",", ":"), allow_nan=False) + "\n")
    for name, rows in tables(report).items():
        files.write_text(folder / f"{name}.csv", files.csv_text(rows))
    for number, projection in enumerate(chart["projections"]):
        draw_projection(folder / f"{projection['name'].replace('-', '').lower()}.png", chart, number)
    draw_distances(folder / "distances.png", report)
    if report["path"]:
        draw_path(folder / "path.png", report)
    if len(report["similarity"]) > 1:
        draw_similarity(folder / "similarity.png", report)


def tables(report: Report) -> dict[str, list[tuple[Any, ...]]]:
    """The parts of an analysis as tables. The first row is the header; None is an empty cell."""
    shape, dimensions = ("purity", "silhouette", "within", "between"), ("all", BONAFIDE, SPOOF)
    away = ("bonafide_to_train", "bonafide_distance", "ratio", "auc", *itertools.chain(*UNLIKE))
    who = ("utterance", "label", "attack")
    quantiles = (f"q{round(100 * share):02}" for share in QUANTILES)
    return {
        "assignments": [("set", "kind", "group", "centroid", "count"), *_assignments(report)],
        "distances": [("set", "group", "n", "mean", *quantiles), *_distances(report)],
        "path": [("epoch", "centroid", "moved", "to_last"), *_steps(report)],
        "geometry": [
            ("set", *shape, *(f"effective_dimension_{name}" for name in dimensions)),
            *(
                (name, *(own[key] for key in shape), *(own["effective_dimension"][key] for key in dimensions))
                for name, own in report["geometry"].items()
            ),
        ],
        "shift": [("set", *away), *((name, *(own[key] for key in away)) for name, own in report["shift"].items())],
        "hardest": [
            ("set", *who, "score", "rank", *(f"neighbour_{key}" for key in who), "distance"),
            *(
                (*(trial[key] for key in ("set", *who, "score")), rank, *(near[key] for key in (*who, "distance")))
                for trial in report["hardest"]
                for rank, near in enumerate(trial["neighbours"], start=1)
            ),
        ],
    }


def _assignments(report: Report) -> list[tuple[Any, ...]]:
    return [
        (name, kind, group, centroid, count)
        for name, kinds in report["assignments"].items()
        for kind, members in kinds.items()
        for group, counts in members.items()
        for centroid, count in enumerate(counts)
    ]


def _distances(report: Report) -> list[tuple[Any, ...]]:
    return [
        (name, group, own["n"], own["mean"], *own["quantiles"])
        for name, members in report["distances"].items()
        for group, own in members.items()
    ]


def _steps(report: Report) -> list[tuple[Any, ...]]:
    way = report["path"]
    return (
        []
        if way is None
        else [
            (epoch, centroid, *both)
            for epoch, moved, to_last in zip(way["epochs"], way["moved"], way["to_last"], strict=True)
            for centroid, both in enumerate(zip(moved, to_last, strict=True))
        ]
    )


def summary(report: Report) -> str:
    """The most important results, in a few lines for a terminal."""
    count, width = report["centroids"], report["embedding_dim"]
    lines = [f"{report['run']}: {count} centroid{'s' * (count > 1)}, embeddings of width {width}"]
    cosines = [value for i, row in enumerate(report["similarity"]) for value in row[:i]]
    if cosines:
        lines[0] += f"; cosines between centroids {min(cosines):.2f} to {max(cosines):.2f}"
    for name in report["sets"]:
        own, away = report["geometry"][name], report["shift"][name]
        lines.append(
            f"{name}: silhouette of the classes {_shown(own['silhouette'])}, purity {_shown(own['purity'])}, "
            f"effective dimension {_shown(own['effective_dimension']['all'])}, bona fide "
            f"{_shown(away['ratio'])} times as far from the centroids as in {report['train']}"
        )
    worst: dict[str, Any] = {}
    for trial in report["hardest"]:
        if trial["label"] == SPOOF:
            worst.setdefault(trial["set"], trial)  # the first spoof has the highest score
    for name, own in worst.items():
        lines.append(f"{name}: the spoof {own['utterance']} ({own['attack']}) scores {own['score']:.3g}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
