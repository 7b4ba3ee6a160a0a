"""Systems that a search stopped early: they have no results, and the report says so in place of a row.

`bonafide sweep --halving` writes what it dropped into `halving.json` beside the training curves. Later the stages of a
dropped system may have been run after all: it is a row like any other once all its runs are trained.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.report.measures import finite

TABLE = "halving.json"


@dataclass(frozen=True)
class Stopped:
    """A system without results. dev_eer: percent, the mean over its runs of the lowest up to `epochs`."""

    system: str
    epochs: int
    dev_eer: float


def read(curves: Path, metrics: Path, *, runs: Mapping[str, str]) -> tuple[Stopped, ...]:
    """The systems that were stopped early, those of the longest training first.

    Args:
        curves: the folder with `halving.json`, which may be missing. metrics: the folder with <run>.json of every run
            that was trained to its end. runs: run -> its system, of the grid as it is now.

    Raises InputError where the file has other contents.
    """
    path = curves / TABLE
    if not path.is_file():
        return ()
    try:
        rungs = json.loads(path.read_text(encoding="utf-8"))["rungs"]
        found = [
            Stopped(str(one["system"]), int(rung["epochs"]), finite(one["dev_eer"]))
            for rung in reversed(rungs)
            for one in rung["dropped"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: expected what `bonafide sweep --halving` wrote; delete the file") from None
    unfinished = {system for run, system in runs.items() if not (metrics / f"{run}.json").is_file()}
    return tuple(one for one in found if one.system in unfinished)


def sentence(stopped: Iterable[Stopped]) -> str:
    """What was stopped early, in words; nothing where nothing was."""
    counts = Counter(one.epochs for one in stopped)
    if not counts:
        return ""
    parts = ", ".join(f"{count} after epoch {epochs}" for epochs, count in sorted(counts.items()))
    return f"systems stopped early by their dev EER, without a row: {parts}; the rows are what a search on dev kept"
