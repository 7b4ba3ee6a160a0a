"""Anyone's corpus as one CSV file.

The first line names the columns, in any order; others than these are ignored:

    path        audio file, relative to the corpus root; where that is /, also absolute  required
    label       bonafide or spoof                                                       required
    utterance   name of the trial, unique; without this column it is the path           optional
    split       which part of the corpus the trial belongs to; without it, `all`        optional
    speaker     name of the speaker, empty or - where unknown                           optional
    attack      name of the spoofing system, - for bona fide                            optional
    codec       what the audio was coded or sent with, empty or - where unknown         optional
    vocoder     kind of vocoder behind the spoof, - for bona fide                       optional
    quality     MOS (1 to 5; 0 to 6 is taken), empty, NA or NaN if unknown              optional

The split `all` has every trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import COLUMNS, Row, Trials, from_rows
from pipeline.corpora import _lines, _protocols
from pipeline.corpora._formats import ALL, MANIFEST, MANIFEST_COLUMNS

READ = ("split", "utterance", "path", "label", "speaker", "attack", "quality", "codec", "vocoder")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one split of the CSV file `protocol`, paths relative to `root`.

    Raises InputError, with file and line, for a missing file, column or cell, a split without trials, and whatever
    `pipeline.core.trial_table.from_rows` refuses.
    """
    if not protocol.is_file():
        raise InputError(f"{protocol}: no such manifest; check `protocol` in the set's parameters")
    numbered = _lines.csv_cells(protocol)
    columns = _columns(*next(numbered, (1, [])), protocol)
    rows, seen = _rows(numbered, columns, protocol, split)
    if not rows:
        hint = "" if "split" in columns else f"; it has no column split: set `split: {ALL}`"
        raise InputError(
            f"{protocol}: expected trials of split {split!r}, got only {', '.join(sorted(seen)) or 'none'}{hint}"
        )
    if root == Path("/"):
        rows = [row._replace(path=row.path.lstrip("/")) for row in rows]
    return from_rows(rows, source=f"{protocol} (split {split})")


def _columns(number: int, columns: list[str], protocol: Path) -> list[str]:
    """The names of the columns, once all that are required are found there."""
    missing = [name for name in MANIFEST_COLUMNS if name not in columns]
    if missing or tuple(columns) == COLUMNS:
        found = f"{', '.join(missing)} not in {columns}" if missing else "got those of a trial table"
        raise InputError(
            f"{protocol}:{number}: expected the columns {', '.join(MANIFEST_COLUMNS)}; {found}; "
            f"{_protocols.remedy(protocol, MANIFEST)}"
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"{protocol}:{number}: expected every column once, got {', '.join(columns)}")
    return columns


def _rows(
    numbered: Iterator[tuple[int, list[str]]], columns: list[str], protocol: Path, split: str
) -> tuple[list[Row], set[str]]:
    """The rows of one split, and all splits that there are."""
    rows: list[Row] = []
    seen: set[str] = set()
    file, width = str(protocol), len(columns)
    places = {"utterance": columns.index("path"), "split": width + 1}  # of what stands for a column that is not there
    read = itemgetter(*(columns.index(name) if name in columns else places.get(name, width) for name in READ))
    for number, cells in numbered:
        where = f"{file}:{number}"
        if len(cells) != width:
            more = "more" if len(cells) > width else "fewer"
            hint = "; is a quote left open?" if "\n" in "".join(cells) else ""
            raise InputError(f"{where}: expected {width} cells, got {more}; mend the line{hint}")
        cells += ["", ALL]
        own, utterance, path, label, speaker, attack, quality, codec, vocoder = read(cells)
        seen.add(own)
        if split in (own, ALL):
            rows.append(Row(where, utterance, path, label, speaker, attack, quality, "", codec, vocoder))
    return rows, seen
