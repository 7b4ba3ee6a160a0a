"""The state of every stage of a flow, and the grid as a table of cells."""

from __future__ import annotations

import contextlib
import enum
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.sweep.halving import OF_A_CELL, TABLE, run_of, rung_file
from pipeline.sweep.sweep import kind_of, log_of
from pipeline.sweep.tracked import Flow
from pipeline.training import dropped


class Progress(enum.Enum):
    """How far a stage is."""

    DONE = "done"
    STALE = "stale"
    RUNNING = "running"
    FAILED = "failed"
    DROPPED = "dropped"


FURTHEST_BACK = (Progress.FAILED, Progress.STALE, Progress.RUNNING, Progress.DROPPED, Progress.DONE)
SETTLED = {Progress.DROPPED, Progress.DONE}  # nothing waits for such a stage


def progress(flow: Flow, root: Path) -> dict[str, Progress]:
    """How far each stage is. A stage is stale where it is out of date, or one that it needs is not done.

    It failed where a sweep left what it said in a file. It was dropped where a search ended its training, and no
    input changed since. root: the project's folder.
    """
    found: dict[str, Progress] = {}
    running = flow.running()
    ended = {run: one.epochs for one in dropped.read((root / TABLE).parent) for run in one.runs}
    for name in flow.steps:  # each after those that it needs
        before = {found[needed] for needed in flow.needs[name]}
        if name in running:
            found[name] = Progress.RUNNING
        elif kind_of(name) in OF_A_CELL and Progress.DROPPED in before:
            found[name] = Progress.DROPPED
        elif not before <= SETTLED or flow.is_stale(name):
            found[name] = _unfinished(flow, root, name, ended)
        else:
            found[name] = Progress.DONE
    return found


def _unfinished(flow: Flow, root: Path, name: str, ended: Mapping[str, int]) -> Progress:
    """What a stage is that is not done. ended: run -> the epoch after which a search dropped it."""
    if (root / log_of(name)).is_file():
        return Progress.FAILED
    epochs = ended.get(run_of(name)) if kind_of(name) == "train" else None
    with contextlib.suppress(InputError):  # an input is missing
        if epochs is not None and (root / rung_file(flow, name, epochs)).is_file():
            return Progress.DROPPED
    return Progress.STALE


def cells(found: dict[str, Progress]) -> dict[str, dict[str, Progress]]:
    """Cell -> kind of stage -> its progress; of several stages of a kind, that of the one furthest back."""
    table: dict[str, dict[str, Progress]] = {_key(name): {} for name in found if kind_of(name) == "train"}
    for name, state in found.items():
        kind, key = kind_of(name), _key(name)
        row = table.get(key if key in table else key.rpartition("-")[0])  # scores are named <cell>-<set>
        if kind in OF_A_CELL and row is not None:
            row[kind] = min(state, row.get(kind, state), key=FURTHEST_BACK.index)
    return table


def lines(found: dict[str, Progress]) -> list[str]:
    """The table of cells, how many are done, and the other stages that are not."""
    table = cells(found)
    wide = max(map(len, table), default=0)
    shown = [f"{'cell':{wide}}  {'  '.join(f'{kind:8}' for kind in OF_A_CELL)}"] if table else []
    for cell, row in table.items():
        states = [row[kind].value if kind in row else "-" for kind in OF_A_CELL]
        shown.append(f"{cell:{wide}}  {'  '.join(f'{state:8}' for state in states)}")
    ended = Counter(min(row.values(), key=FURTHEST_BACK.index) for row in table.values())
    counts = [f"{ended[state]} {state.value}" for state in Progress if ended[state] or state is Progress.DONE]
    shown.append(f"{len(table)} cells: {', '.join(counts)}")
    others = [name for name in found if kind_of(name) not in OF_A_CELL and found[name] is not Progress.DONE]
    shown += [f"{name.rpartition(':')[2]}: {found[name].value}" for name in others]
    return [line.rstrip() for line in shown]


def _key(name: str) -> str:
    return name.rpartition("@")[2]
