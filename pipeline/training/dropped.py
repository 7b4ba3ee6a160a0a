"""What a search dropped: `bonafide sweep --halving` writes it beside the training curves, and others read it here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError

FILE = "halving.json"


@dataclass(frozen=True)
class Dropped:
    """A system and its runs, whose trainings ended after some epochs.

    dev_eer: percent, the mean over its runs of the lowest up to then.
    """

    system: str
    runs: tuple[str, ...]
    epochs: int
    dev_eer: float


def read(curves: Path) -> tuple[Dropped, ...]:
    """What was dropped, in this order; nothing where no search was made. curves: the folder of the training curves.

    Raises InputError where the file has other contents.
    """
    path = curves / FILE
    if not path.is_file():
        return ()
    try:
        found = [
            Dropped(str(one["system"]), tuple(map(str, one["runs"])), int(rung["epochs"]), float(one["dev_eer"]))
            for rung in json.loads(path.read_text(encoding="utf-8"))["rungs"]
            for one in rung["dropped"]
        ]
        if all(math.isfinite(one.dev_eer) for one in found):
            return tuple(found)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        pass
    raise InputError(f"{path}: expected what `bonafide sweep --halving` wrote, got something else; delete the file")
