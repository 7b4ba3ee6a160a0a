"""Anyone's corpus as one CSV file.

The first line names the columns, in any order; others than these are ignored:

    utterance   name of the trial, unique, without white space                          required
    path        audio file, relative to the corpus root                                 required
    label       bonafide or spoof                                                       required
    split       which part of the corpus the trial belongs to                           required
    speaker     name of the speaker, empty or - where unknown                           optional
    attack      name of the spoofing system, - for bona fide                            optional
    quality     MOS from 1 to 5, empty where unknown                                    optional
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from pipeline import trials as trial_table
from pipeline.errors import InputError
from pipeline.trials import Row, Trials

REQUIRED = ("utterance", "path", "label", "split")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one split of the CSV file `protocol`, paths relative to `root`.

    Raises InputError, with file and line, for a missing file, column or cell, a split without trials, and whatever
    `pipeline.trials.from_rows` refuses.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    if not protocol.is_file():
        raise InputError(f"{protocol}: no such manifest; check `protocol` in the set's parameters")
    reader = csv.DictReader(io.StringIO(trial_table.read_text(protocol), newline=""))
    columns = list(reader.fieldnames or [])
    if missing := [name for name in REQUIRED if name not in columns]:
        raise InputError(
            f"{protocol}:1: expected the columns {', '.join(REQUIRED)}; {', '.join(missing)} not in {columns}"
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"{protocol}:1: expected every column once, got {', '.join(columns)}")
    rows, seen = _rows(reader, protocol, split, width=len(columns))
    if not rows:
        raise InputError(
            f"{protocol}: expected trials of split {split!r}, got only {', '.join(sorted(seen)) or 'none'}"
        )
    return trial_table.from_rows(rows, source=f"{protocol} (split {split})")


def _rows(reader: csv.DictReader[str], protocol: Path, split: str, *, width: int) -> tuple[list[Row], set[str]]:
    """The rows of one split, and all splits that there are."""
    rows: list[Row] = []
    seen: set[str] = set()
    try:
        for cells in reader:
            where = f"{protocol}:{reader.line_num}"
            if None in cells or None in cells.values():
                raise InputError(
                    f"{where}: expected {width} cells, got {'more' if None in cells else 'fewer'}; mend the line"
                )
            seen.add(cells["split"])
            if cells["split"] == split:
                rows.append(_row(where, cells))
    except csv.Error as error:
        raise InputError(f"{protocol}:{reader.line_num}: not valid CSV: {error}; is a quote left open?") from None
    return rows, seen


def _row(where: str, cells: dict[str, str]) -> Row:
    return Row(
        where=where,
        utterance=cells["utterance"],
        path=cells["path"],
        label=cells["label"],
        speaker=cells.get("speaker") or trial_table.UNKNOWN,
        attack=cells.get("attack") or trial_table.UNKNOWN,
        quality=cells.get("quality") or "",
    )
