"""The layer atlas on the page: a heat map for each encoder and method.

A row is a training and a set that it was tested on, a column is a layer. A click on a layer sorts by it.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError

ATLAS_FILE = "atlas.csv"
ATLAS_COLUMNS = ("encoder", "layer", "method", "trained", "tested", "view", "eer")
AGAIN = "run `dvc repro -f layers`"


@dataclass(frozen=True)
class HeatMap:
    """The EERs in percent of one encoder and method. rows: (trained, tested, view) -> layer -> EER."""

    encoder: str
    method: str
    rows: dict[tuple[str, str, str], dict[str, float]]

    @property
    def layers(self) -> list[str]:
        """All layers, in the order of the file."""
        return list(dict.fromkeys(layer for by_layer in self.rows.values() for layer in by_layer))


def read_atlas(folder: Path) -> list[HeatMap]:
    """Read the atlas of the stage `layers`, in the order of the file; empty where there is none.

    Raises InputError, with file and line, for a file with other contents.
    """
    path = folder / ATLAS_FILE
    if not path.is_file():
        return []
    found: dict[tuple[str, str], HeatMap] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != ATLAS_COLUMNS:
            raise InputError(f"{path}:1: expected the columns {','.join(ATLAS_COLUMNS)}, got others; {AGAIN}")
        for row in reader:
            try:
                eer = float(row["eer"] or "")
            except ValueError:
                eer = math.nan
            if not 0 <= eer <= 100:
                where = f"{path}:{reader.line_num}"
                raise InputError(f"{where}: expected an EER in percent, got {row['eer']!r}; {AGAIN}")
            key = row["encoder"], row["method"]
            heat_map = found.setdefault(key, HeatMap(*key, {}))
            heat_map.rows.setdefault((row["trained"], row["tested"], row["view"]), {})[row["layer"]] = eer
    return list(found.values())
