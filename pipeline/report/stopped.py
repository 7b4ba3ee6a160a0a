"""Systems that a search stopped early: they have no results, and the report says so in place of a row.

`bonafide sweep --halving` writes what it dropped into `halving.json` beside the training curves. Later the stages of a
dropped system may have been run after all: it is a row like any other once all its runs are trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.training import dropped
from pipeline.training.dropped import Dropped


def read(curves: Path, metrics: Path, *, runs: Mapping[str, str]) -> tuple[Dropped, ...]:
    """The systems that were stopped early, those of the longest training first.

    Args:
        curves: the folder of the training curves. metrics: the folder with <run>.json of every run that was trained to
            its end. runs: run -> its system, of the grid as it is now.

    Raises InputError where the search's file has other contents.
    """
    unfinished = {system for run, system in runs.items() if not (metrics / f"{run}.json").is_file()}
    found = sorted(dropped.read(curves), key=lambda one: -one.epochs)
    return tuple(one for one in found if one.system in unfinished)


def sentence(stopped: Iterable[Dropped]) -> str:
    """What was stopped early, in words; nothing where nothing was."""
    counts = Counter(one.epochs for one in stopped)
    if not counts:
        return ""
    parts = ", ".join(f"{count} after epoch {epochs}" for epochs, count in sorted(counts.items()))
    return f"systems stopped early by their dev EER, without a row: {parts}; the rows are what a search on dev kept"
