"""The layer probe on the page: the EER of every layer by method and set, with the layers chosen on dev."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core import files
from pipeline.core.errors import InputError
from pipeline.report.page.charts import COLOURS, WIDE, Axis, Chart, Line, Ring, linear_axis

CSV_FILE, CHOSEN_FILE = "layers.csv", "chosen.json"
COLUMNS = ("layer", "method", "set", "eer")
CHOSEN_BY = ("logistic", "dev")  # the method and the set that chose the layers
REMEDY = "run `dvc repro -f layers`"
LABELS = 13  # the most labels of layers that fit side by side


@dataclass(frozen=True)
class LayerCurve:
    """The results of the probe. eers: (method, set) -> layer -> EER in percent. chosen: the chosen layers, in order."""

    eers: dict[tuple[str, str], dict[str, float]]
    chosen: tuple[str, ...]

    @property
    def layers(self) -> list[str]:
        """All layers, in the order of the file."""
        return list(dict.fromkeys(layer for by_layer in self.eers.values() for layer in by_layer))


def read(folder: Path) -> LayerCurve | None:
    """Read the files of the stage `layers` in a folder; None where there are none.

    Raises InputError, with file and line, for files with other contents.
    """
    path = folder / CSV_FILE
    if not path.is_file():
        return None
    found = LayerCurve(_eers(path), _chosen(folder / CHOSEN_FILE))
    if unknown := [layer for layer in found.chosen if layer not in found.eers.get(CHOSEN_BY, {})]:
        method, name = CHOSEN_BY
        raise InputError(f"{path}: expected the EER on {name} by {method} of layer {unknown[0]}, got none; {REMEDY}")
    return found


def _eers(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    eers: dict[tuple[str, str], dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise InputError(
                f"{path}:1: expected the columns {','.join(COLUMNS)}, missing {','.join(absent)}; {REMEDY}"
            )
        for row in reader:
            eers.setdefault((row["method"], row["set"]), {})[row["layer"]] = _percent(
                row["eer"], where=f"{path}:{reader.line_num}"
            )
    if not eers:
        raise InputError(f"{path}: expected at least one row; {REMEDY}")
    return eers


def _percent(cell: str | None, *, where: str) -> float:
    try:
        value = float(cell or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise InputError(f"{where}: expected an EER in percent, got {cell!r}; {REMEDY}")
    return value


def _chosen(path: Path) -> tuple[str, ...]:
    chosen = files.read_json(path, what="choice of layers", keys=("chosen",), remedy=REMEDY)["chosen"]
    if not isinstance(chosen, list):
        raise InputError(f"{path}: expected a list of layers under `chosen`, got {chosen!r}; {REMEDY}")
    return tuple(map(str, chosen))


def chart(curve: LayerCurve) -> Chart:
    """The chart of the EER by layer: a colour for each set, a dash for each method, numbered rings on chosen layers."""
    layers = curve.layers
    sets, methods = (list(dict.fromkeys(key[part] for key in curve.eers)) for part in (1, 0))
    lines = [
        Line(
            f"{name}, {method}",
            f"c{sets.index(name) % COLOURS} d{2 * methods.index(method) % 3}",
            np.array([(layers.index(layer), eer) for layer, eer in by_layer.items()], dtype=np.float64),
        )
        for (method, name), by_layer in curve.eers.items()
    ]
    every = math.ceil(len(layers) / LABELS)
    ticks = tuple((float(i), _short(layers[i])) for i in range(0, len(layers), every))
    values = np.concatenate([line.points[:, 1] for line in lines])
    rings = tuple(
        Ring(layers.index(layer), curve.eers[CHOSEN_BY][layer], str(number))
        for number, layer in enumerate(curve.chosen, start=1)
    )
    x = Axis("layer", -0.5, len(layers) - 0.5, ticks)
    return Chart("EER by layer", WIDE, x, linear_axis("EER, %", np.append(values, 0.0)), tuple(lines), rings)


def _short(layer: str) -> str:
    return "fin." if layer == "final" else layer
