"""Anyone's corpus as one CSV file.

The first line names the columns, in any order; others than these are ignored:

    utterance   name of the trial, unique, without white space                          required
    path        audio file, relative to the corpus root                                 required
    label       bonafide or spoof                                                       required
    split       which part of the corpus the trial belongs to                           required
    speaker     name of the speaker, empty or - where unknown                           optional
    attack      name of the spoofing system, - for bona fide                            optional
    codec       what the audio was coded or sent with, empty or - where unknown         optional
    vocoder     kind of vocoder behind the spoof, - for bona fide                       optional
    quality     MOS (1 to 5; 0 to 6 is taken), empty, NA or NaN if unknown  optional
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.corpora import _protocols
from pipeline.corpora._protocols import MANIFEST, MANIFEST_COLUMNS

READ = ("split", "utterance", "path", "label", "speaker", "attack", "quality", "codec", "vocoder")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one split of the CSV file `protocol`, paths relative to `root`.

    Raises InputError, with file and line, for a missing file, column or cell, a split without trials, and whatever
    `pipeline.core.trial_table.from_rows` refuses.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    if not protocol.is_file():
        raise InputError(f"{protocol}: no such manifest; check `protocol` in the set's parameters")
    numbered = _protocols.csv_cells(protocol)
    columns = _columns(*next(numbered, (1, [])), protocol)
    rows, seen = _rows(numbered, columns, protocol, split)
    if not rows:
        raise InputError(
            f"{protocol}: expected trials of split {split!r}, got only {', '.join(sorted(seen)) or 'none'}"
        )
    return from_rows(rows, source=f"{protocol} (split {split})")


def _columns(number: int, columns: list[str], protocol: Path) -> list[str]:
    """The names of the columns, once all that are required are found there."""
    if missing := [name for name in MANIFEST_COLUMNS if name not in columns]:
        raise InputError(
            f"{protocol}:{number}: expected the columns {', '.join(MANIFEST_COLUMNS)}; {', '.join(missing)} not in "
            f"{columns}; {_protocols.remedy(protocol, MANIFEST)}"
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
    read = itemgetter(*(columns.index(name) if name in columns else width for name in READ))
    for number, cells in numbered:
        where = f"{file}:{number}"
        if len(cells) != width:
            more = "more" if len(cells) > width else "fewer"
            hint = "; is a quote left open?" if "\n" in "".join(cells) else ""
            raise InputError(f"{where}: expected {width} cells, got {more}; mend the line{hint}")
        cells.append("")  # stands for every column that is not there
        own, utterance, path, label, speaker, attack, quality, codec, vocoder = read(cells)
        seen.add(own)
        if own == split:
            rows.append(Row(where, utterance, path, label, speaker, attack, quality, "", codec, vocoder))
    return rows, seen
