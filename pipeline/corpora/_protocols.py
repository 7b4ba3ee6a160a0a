"""Protocol and key files of the public corpora: finding a file's corpus, and reading its trials.

A protocol lists trials and their class; a key is the protocol of an evaluation. The first lines of a file are enough
to recognise its corpus, so a key can be read without its audio, and a file of the wrong corpus is named. The layouts
stand in `_formats`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import CLASS_OF, COLUMNS, Row, Trials, from_rows
from pipeline.corpora import _lines
from pipeline.corpora._formats import ALL, FORMATS, KEY_OF_FIVE, MANIFEST, MANIFEST_COLUMNS, PHASES, TABLE, Format
from pipeline.corpora._lines import SHOWN

SPLIT_OF = {"T": "train", "D": "dev", "E": "eval"}  # the letter in the names of ASVspoof utterances
LABELS = {"bona-fide": "bonafide"}  # the words of In-the-Wild and FoR that are not ours

ReadRow = Callable[[str, Sequence[str]], Row]  # file and line for messages, and the cells of a line -> the trial


def recognise(path: Path) -> str | None:
    """Name of the corpus that a protocol belongs to, `manifest`, `table`, or None.

    It looks at the first two lines only. Raises InputError where there is no file, or no UTF-8 text.
    """
    head = _head(path)
    if _is_key_of_five(head):
        return "asvspoof5"
    for corpus, form in FORMATS.items():
        cells = [_commas(line) if form.comma else line.split() for line in head]
        body = cells[1:] if cells and form.is_header(cells[0]) else cells
        if body and form.fits(body[0]):
            return corpus
    columns = _commas(head[0]) if head else []
    if tuple(columns) == COLUMNS:
        return TABLE
    return MANIFEST if {*MANIFEST_COLUMNS, "split"} <= set(columns) else None


def _head(path: Path) -> list[str]:
    """The first two lines that are not blank."""
    return list(islice((line for line in _lines.lines(path) if not line.isspace()), 2))


def _is_key_of_five(head: Sequence[str]) -> bool:
    """Whether a file with these first lines is the key of the evaluation package of ASVspoof 5."""
    if len(head) < 2 or tuple(head[0].split()) != KEY_OF_FIVE:
        return False
    return re.fullmatch(FORMATS["asvspoof5"].pattern, head[1].split()[0]) is not None


def _commas(line: str) -> list[str]:
    """The cells of a line of a CSV file, none where the line is no CSV."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def default_split(path: Path, corpus: str) -> str:
    """The split of a protocol where the user names none.

    For ASVspoof 2021 the phase `eval`, as published results have it; for ASVspoof 2019 and 5 the split that the names
    of the utterances say; for others the only split. Raises InputError for a manifest of several splits.
    """
    if corpus == MANIFEST:
        return _only_split(path)
    splits = FORMATS[corpus].splits
    if set(splits) != set(SPLIT_OF.values()):
        return splits[0]
    head = _head(path)
    utterance = head[1].split()[0] if _is_key_of_five(head) else next(lines(path, corpus))[1][1]
    return SPLIT_OF[utterance.rpartition("_")[0][-1:]]


def _only_split(path: Path) -> str:
    """The split of a manifest that has no other."""
    numbered = _lines.csv_cells(path)
    at = next(numbered)[1].index("split")
    found = sorted({cells[at] for _, cells in numbered if len(cells) > at})
    if len(found) != 1:
        raise InputError(f"{path}: expected trials of one split, got {', '.join(found) or 'none'}; say which to read")
    return found[0]


def read(path: Path, corpus: str, split: str, row: ReadRow) -> Trials:
    """The trials of one split of a protocol, or of one phase of a key; `row` makes the cells of a line a trial.

    Raises InputError, with file and line, for a split that the corpus does not have, another corpus's protocol, an
    utterance of another split, an unknown phase, a line that is cut off, and whatever
    `pipeline.core.trial_table.from_rows` refuses.
    """
    form = FORMATS[corpus]
    if split not in form.splits:
        raise InputError(
            f"{path}: expected the {form.kind} {', '.join(form.splits)} of {corpus}, got {split!r}; "
            "set `split` to one of these"
        )
    source = str(path) if len(form.splits) == 1 else f"{path} ({form.kind} {split})"
    return from_rows(_rows(path, corpus, split, row), source=source)


def _rows(path: Path, corpus: str, split: str, row: ReadRow) -> Iterator[Row]:
    """The trials of a split, line by line."""
    form, file = FORMATS[corpus], str(path)
    phase = form.columns.index("phase") if "phase" in form.columns else None
    prefix = form.prefixes.get(split, "")
    for number, cells in lines(path, corpus):
        where = f"{file}:{number}"
        if phase is not None and not in_phase(where, cells[phase], split):
            continue
        found = row(where, cells)
        if not found.utterance.startswith(prefix):
            raise _other_split(where, found.utterance, split)
        yield found


def in_phase(where: str, phase: str, split: str) -> bool:
    """Whether a trial of an ASVspoof 2021 key is of the phase asked for. Raises InputError for an unknown phase."""
    if phase not in PHASES:
        raise InputError(f"{where}: expected the phase {', '.join(PHASES)}, got {phase!r}; mend the line")
    return split in (phase, ALL)


def _other_split(where: str, utterance: str, split: str) -> InputError:
    """The error for an utterance of another split, as its name says."""
    found = SPLIT_OF.get(utterance.rpartition("_")[0][-1:])
    mend = f"give the protocol of {split}" + (f", or set `split: {found}`" if found else "")
    return InputError(f"{where}: expected an utterance of split {split}, got {utterance}; {mend}")


def check_split(where: str, utterance: str, split: str) -> None:
    """Raise InputError where the name of an utterance says another split, by the letter before its last number."""
    if SPLIT_OF.get(utterance.rpartition("_")[0][-1:]) != split:
        raise _other_split(where, utterance, split)


def lines(path: Path, corpus: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every trial; a MOS that the file does not have comes as a last, empty cell.

    Blank lines are skipped. Raises InputError, with file and line, for a missing file, text that is not UTF-8, and a
    protocol of another corpus, which it names; after the last line also for all lines that are too short or too long.
    """
    form = FORMATS[corpus]
    numbered = _cells(path, form)
    head = list(islice(numbered, 2))
    body = head[1:] if head and form.is_header(head[0][1]) else head
    if not body or not form.fits(body[0][1]):
        raise _mismatch(path, corpus, *(body[0] if body else (len(head) + 1, [])))
    width = len(body[0][1])
    without_mos = form.mos and width == len(form.columns)
    problems: list[str] = []
    for number, cells in chain(body, numbered):
        if len(cells) != width:
            problems.append(f"{path}:{number}: expected {width} cells, got {len(cells)}: {' '.join(cells)[:SHOWN]!r}")
            continue
        if without_mos:
            cells.append("")
        yield number, cells
    if problems:
        raise InputError(
            f"{len(problems)} lines are not `{form}` like the first; mend or remove them:\n{listing(problems)}"
        )


def _mismatch(path: Path, corpus: str, number: int, cells: Sequence[str]) -> InputError:
    """The error for a line that is no trial of a corpus."""
    got = repr(" ".join(cells)[:SHOWN]) if cells else "the end of the file"
    return InputError(
        f"{path}:{number}: expected lines `{FORMATS[corpus]}` of {corpus}, got {got}; {remedy(path, corpus)}"
    )


def remedy(path: Path, corpus: str) -> str:
    """How to mend a file that is no protocol of a corpus, and the corpus that it looks like."""
    other = recognise(path)
    source = "a CSV file with these columns" if corpus == MANIFEST else FORMATS[corpus].source
    if other == TABLE:
        return f"this is a trial table, which `prepare` makes; give {source}"
    if other and other != corpus:
        return f"this looks like a protocol of {other}: set `corpus: {other}`"
    return f"mend the line, or give {source}"


def _cells(path: Path, form: Format) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not blank."""
    if form.comma:
        yield from _lines.csv_cells(path)
        return
    for number, line in enumerate(_lines.lines(path), start=1):
        if cells := line.split():
            yield number, cells


def of_split(path: Path, split: str, rows: Iterable[tuple[str, Row]]) -> Trials:
    """The trials of a split, of rows that each say their own; `all` takes every row.

    Raises InputError where no row is of the split, and whatever `pipeline.core.trial_table.from_rows` refuses.
    """
    kept, seen = [], set()
    for own, row in rows:
        seen.add(own)
        if split in (own, ALL):
            kept.append(row)
    if not seen:
        raise InputError(f"{path}: expected lines with trials, got none; copy or download it again")
    if not kept:
        names = ", ".join(sorted(seen - {ALL}))
        raise InputError(f"{path}: expected the split {names + ' or ' if names else ''}{ALL}, got {split!r}")
    return from_rows(kept, source=f"{path} (split {split})")


def label_of(word: str) -> str:
    """Our word for the class that a file names by another one; a word that is none stays, and is refused later."""
    return CLASS_OF.get(word.strip().lower(), word)
