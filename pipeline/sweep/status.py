"""The state of every stage of a flow, and the grid as a table of cells."""

from __future__ import annotations

import enum
from collections import Counter
from pathlib import Path

from pipeline.sweep.sweep import kind_of, log_of
from pipeline.sweep.tracked import Flow


class Progress(enum.Enum):
    """How far a stage is."""

    DONE = "done"
    STALE = "stale"
    RUNNING = "running"
    FAILED = "failed"


KINDS = ("train", "score", "evaluate")  # of the stages of a cell
FURTHEST_BACK = (Progress.FAILED, Progress.STALE, Progress.RUNNING, Progress.DONE)


def progress(flow: Flow, root: Path) -> dict[str, Progress]:
    """How far each stage is. A stage is stale where it is out of date, or one that it needs is not done.

    It failed where a sweep left what it said in a file. root: the project's folder.
    """
    found: dict[str, Progress] = {}
    running = flow.running()
    for name in flow.steps:  # each after those that it needs
        if name in running:
            found[name] = Progress.RUNNING
        elif any(found[needed] is not Progress.DONE for needed in flow.needs[name]) or flow.is_stale(name):
            found[name] = Progress.FAILED if (root / log_of(name)).is_file() else Progress.STALE
        else:
            found[name] = Progress.DONE
    return found


def cells(found: dict[str, Progress]) -> dict[str, dict[str, Progress]]:
    """Cell -> kind of stage -> its progress; of several stages of a kind, that of the one furthest back."""
    table: dict[str, dict[str, Progress]] = {_key(name): {} for name in found if kind_of(name) == "train"}
    for name, state in found.items():
        kind, key = kind_of(name), _key(name)
        row = table.get(key if key in table else key.rpartition("-")[0])  # scores are named <cell>-<set>
        if kind in KINDS and row is not None:
            row[kind] = min(state, row.get(kind, state), key=FURTHEST_BACK.index)
    return table


def lines(found: dict[str, Progress]) -> list[str]:
    """The table of cells, how many are done, and the other stages that are not."""
    table = cells(found)
    wide = max(map(len, table), default=0)
    shown = [f"{'cell':{wide}}  {'  '.join(f'{kind:8}' for kind in KINDS)}"] if table else []
    for cell, row in table.items():
        states = [row[kind].value if kind in row else "-" for kind in KINDS]
        shown.append(f"{cell:{wide}}  {'  '.join(f'{state:8}' for state in states)}")
    ended = Counter(min(row.values(), key=FURTHEST_BACK.index) for row in table.values())
    counts = [f"{ended[state]} {state.value}" for state in Progress if ended[state] or state is Progress.DONE]
    shown.append(f"{len(table)} cells: {', '.join(counts)}")
    others = [name for name in found if kind_of(name) not in KINDS and found[name] is not Progress.DONE]
    shown += [f"{name.rpartition(':')[2]}: {found[name].value}" for name in others]
    return [line.rstrip() for line in shown]


def _key(name: str) -> str:
    return name.rpartition("@")[2]
