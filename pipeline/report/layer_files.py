"""The files of the layer probe: a drawing, its numbers as CSV, and a summary as JSON. EERs are in percent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.analysis.layer_atlas import Atlas, Choice
from pipeline.analysis.layer_probe import CENTROID, DEV, LOGISTIC, Findings
from pipeline.core import files
from pipeline.core.contracts import Tap
from pipeline.report import plots

DASHES = {LOGISTIC: "-", CENTROID: ":"}
DIGITS = 5  # of an EER in a file, after the decimal point


def write_csv(path: Path, findings: Findings) -> None:
    """Write a row for each layer, method and set, with the columns layer, method, set, eer."""
    rows: list[tuple[Any, ...]] = [("layer", "method", "set", "eer")]
    for layer, methods in findings.layers.items():
        for method, eers in methods.items():
            rows += [(layer, method, name, round(eer, DIGITS)) for name, eer in eers.items()]
    files.write_text(path, files.csv_text(rows))


def write_atlas(path: Path, atlases: Mapping[str, Atlas]) -> None:
    """Write a row for each probe of each encoder and each set and view that it was tested on."""
    rows: list[tuple[Any, ...]] = [("encoder", "layer", "method", "trained", "tested", "view", "eer")]
    for encoder, atlas in atlases.items():
        rows += [
            (encoder, cell.layer, cell.method, cell.trained, cell.tested, cell.view, round(cell.eer, DIGITS))
            for cell in atlas.cells
        ]
    files.write_text(path, files.csv_text(rows))


def write_json(path: Path, findings: Findings, atlases: Mapping[str, Atlas]) -> None:
    """Write the chosen layers; the EER of the first one, the first two and so on; and the EER of every single layer.

    atlases: by encoder; their choices are written where there are any.
    """
    summary: dict[str, Any] = {
        "chosen": list(findings.chosen),
        "steps": [{"layer": step.layer, "eer": _rounded(step.eer)} for step in findings.steps],
        "layers": {
            str(layer): {method: _rounded(eers) for method, eers in methods.items()}
            for layer, methods in findings.layers.items()
        },
    }
    if atlases:
        summary["atlas"] = {encoder: [_choice(one) for one in atlas.choices] for encoder, atlas in atlases.items()}
    files.write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _choice(one: Choice) -> dict[str, Any]:
    eers = [{"set": name, "view": view, "eer": round(eer, DIGITS)} for (name, view), eer in one.eer.items()]
    return {"left_out": one.left_out, "chosen": list(one.layers), "by": round(one.by, DIGITS), "eer": eers}


def _rounded(eers: dict[str, float]) -> dict[str, float]:
    return {name: round(eer, DIGITS) for name, eer in eers.items()}


def draw(path: Path, findings: Findings) -> None:
    """Draw the EER by layer, as PNG or SVG by the suffix.

    Each set has a colour, each method a line style. Numbered rings on the line of dev mark the chosen layers.
    """
    layers = list(findings.layers)
    figure, (axes,) = plots.new_figure(1, width=max(5.0, 2.0 + 0.28 * len(layers)), height=3.6)
    for i, name in enumerate(findings.layers[layers[0]][LOGISTIC]):
        for method, dash in DASHES.items():
            eers = [findings.layers[layer][method][name] for layer in layers]
            axes.plot(eers, color=plots.colour_of(i), linestyle=dash, marker=".", label=f"{name}, {method}")
    for number, layer in enumerate(findings.chosen, start=1):
        at = (layers.index(layer), findings.layers[layer][LOGISTIC][DEV])
        axes.plot(*at, "o", color="#333333", fillstyle="none", markersize=11)
        axes.annotate(str(number), at, xytext=(0, 9), textcoords="offset points", ha="center", fontsize="small")
    axes.set_xticks(range(len(layers)), [_short(layer) for layer in layers])
    axes.set(xlabel="layer", ylabel="EER, %", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small", ncols=2)
    plots.save(figure, path)


def _short(layer: Tap) -> str:
    return "fin." if layer == "final" else str(layer)
