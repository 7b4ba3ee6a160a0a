"""Score files: a score for every utterance, in the layouts of the official evaluation packages.

    2019        utterance attack key score          ASVspoof 2019; carries its own key
    2021        utterance score                     ASVspoof 2021, and every corpus that has no layout of its own
    asvspoof5   filename<TAB>cm-score               ASVspoof 5; these two names are its first line
    csv         utterance,score                     anyone's; its first line names the columns

White space separates the cells of the first two, so in the name of an attack it is written as in a URL: `voice%20clone`
is the attack "voice clone". Higher means more bona fide: the reader never flips a sign, never fills a hole, and never
guesses that two different names mean one utterance.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files, trial_table
from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials

Layout = Literal["2019", "2021", "asvspoof5", "csv"]
LAYOUTS: dict[Layout, str] = {
    "2019": "utterance attack key score",
    "2021": "utterance score",
    "asvspoof5": "filename<TAB>cm-score",
    "csv": "utterance,score",
}
UTTERANCE_COLUMNS = ("utterance", "filename", "file")  # names that the first line of a CSV file may give them
SCORE_COLUMNS = ("score", "cm-score", "cm_score")
CORPUS_LAYOUTS: dict[str, Layout] = {"asvspoof2019_la": "2019", "asvspoof5": "asvspoof5"}
GREATEST = 1e100  # of a score, either sign
LONGEST_HEADER = 100_000  # characters


class _Columns(NamedTuple):
    """The places of the cells in a line; attack and label are None where the layout lacks them."""

    width: int
    utterance: int
    score: int
    attack: int | None = None
    label: int | None = None


COLUMNS = {"2019": _Columns(4, 0, 3, attack=1, label=2), "2021": _Columns(2, 0, 1)}


@dataclass(frozen=True, eq=False)
class ScoreFile:
    """M scores as their file has them.

    utterance: M names, each once. score: (M,) float64, finite. line: M line numbers, from 1. attack, label: M words of
    the 2019 layout, where a dash is "unknown" or "none"; empty in the others.
    """

    path: Path
    layout: Layout
    utterance: list[str]
    score: NDArray[np.float64]
    line: list[int]
    attack: list[str]
    label: list[str]


def layout_of(corpus: str) -> Layout:
    """The layout that the official evaluation package of a corpus takes."""
    return CORPUS_LAYOUTS.get(corpus, "2021")


def write(path: Path, trials: Trials, scores: NDArray[np.floating[Any]], *, layout: Layout) -> None:
    """Write the scores (N,) of N trials beside their place and rename the file there.

    A score gets the digits that its type needs to come back exactly. Raises InputError, naming the utterances, for a
    score that is not finite, and ValueError for lengths that differ or the layout csv, which is only read.
    """
    names: list[str] = trials.utterance.tolist()
    if scores.shape != (len(names),):
        raise ValueError(f"expected one score for each of {len(names)} utterances, got shape {scores.shape}")
    if bad := [f"utterance {names[i]}: {scores[i]}" for i in np.flatnonzero(~np.isfinite(scores))]:
        raise InputError(
            f"{path}: {len(bad)} of {len(names)} scores are not finite; the training has probably diverged, look at "
            f"its loss and lower the learning rate:\n{listing(bad)}"
        )
    # str() of a NumPy scalar is the shortest text that reads back as the same number of its own type.
    files.write_text(path, "".join(_lines(trials, [str(score) for score in scores], layout)))


def _lines(trials: Trials, scores: Sequence[str], layout: Layout) -> Iterator[str]:
    names = trials.utterance.tolist()
    match layout:
        case "2019":
            labels = [LABELS[0] if bonafide else LABELS[1] for bonafide in trials.is_bonafide.tolist()]
            attacks = _mapped(_one_word, trials.attack.tolist())
            for name, attack, label, score in zip(names, attacks, labels, scores, strict=True):
                yield f"{name} {attack} {label} {score}\n"
        case "2021":
            for name, score in zip(names, scores, strict=True):
                yield f"{name} {score}\n"
        case "asvspoof5":
            yield "filename\tcm-score\n"
            for name, score in zip(names, scores, strict=True):
                yield f"{name}\t{score}\n"
        case _:
            raise ValueError(f"expected to write one of 2019, 2021, asvspoof5, got {layout!r}")


def _mapped(change: Callable[[str], str], names: list[str]) -> list[str]:
    """The names, each changed; many are alike."""
    changed = {name: change(name) for name in set(names)}
    return [changed[name] for name in names]


def _one_word(attack: str) -> str:
    """The name of an attack without white space; `_as_it_was` undoes it."""
    return re.sub(r"[\s%]", lambda found: quote(found[0]), attack)


def _as_it_was(word: str) -> str:
    """The name that `_one_word` made this word of; the word itself where it is none of these."""
    name = unquote(word)
    return name if _one_word(name) == word else word


def parse(path: Path, layout: Layout | None = None) -> ScoreFile:
    """Read a score file; where no layout is given, its first line decides.

    Raises InputError for a file that is missing, empty or of no known layout, and, with file and line, for every line
    that does not fit, score that is not finite, and utterance that is scored twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no score file there")
    lines = trial_table.read_text(path).split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: expected scores, got an empty file")
    layout = layout or _recognise(path, first + 1, lines[first])
    columns = COLUMNS.get(layout) or _header(path, first + 1, lines[first], layout)
    rows = _rows(path, lines, first if layout in COLUMNS else first + 1, layout)
    return _checked(path, layout, columns, rows)


def _recognise(path: Path, number: int, line: str) -> Layout:
    """The layout whose first line this is."""
    cells = line.split()
    if {"filename", "cm-score"} <= set(line.split("\t")):
        return "asvspoof5"
    named = set(_csv_names(line)) if "," in line else set()
    if named & set(UTTERANCE_COLUMNS) and named & set(SCORE_COLUMNS):
        return "csv"
    if len(cells) == 4 and cells[2] in LABELS and _is_number(cells[3]):
        return "2019"
    if len(cells) == 2 and _is_number(cells[1]):
        return "2021"
    if named & {*UTTERANCE_COLUMNS, *SCORE_COLUMNS}:  # some are missing, which the reader of the header says
        return "csv"
    known = "\n".join(f"  {name:9}  {shape}" for name, shape in LAYOUTS.items())
    raise InputError(
        f"{path}:{number}: expected the first line of a score file in one of the layouts\n{known}\n"
        f"got {line.rstrip()!r}; a CSV file needs a first line that names its columns"
    )


def _csv_names(line: str) -> list[str]:
    if len(line) > LONGEST_HEADER:  # more than the CSV reader takes
        return []
    return [name.strip().lower() for name in next(csv.reader([line]))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(path: Path, number: int, line: str, layout: Layout) -> _Columns:
    """Where the cells stand in a layout whose first line names them."""
    if layout == "asvspoof5":
        names = line.split("\t")
        utterance, score = _only(names, ("filename",)), _only(names, ("cm-score",))
    else:
        names = _csv_names(line)
        utterance, score = _only(names, UTTERANCE_COLUMNS), _only(names, SCORE_COLUMNS)
    if utterance is None or score is None:
        wanted = "filename and cm-score parted by a tab"
        if layout == "csv":
            wanted = f"one column of {', '.join(UTTERANCE_COLUMNS)} and one of {', '.join(SCORE_COLUMNS)}"
        raise InputError(f"{path}:{number}: expected a first line that names {wanted}, got {line.rstrip()!r}")
    return _Columns(len(names), utterance, score)


def _only(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The place of the one name that is wanted, or None where there is none or more than one."""
    found = [i for i, name in enumerate(names) if name in wanted]
    return found[0] if len(found) == 1 else None


def _rows(path: Path, lines: Sequence[str], first: int, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The cells of every line that is not blank, from index `first` on, with its number."""
    if layout != "csv":
        separator = "\t" if layout == "asvspoof5" else None
        for number, line in enumerate(lines[first:], start=first + 1):
            if line and not line.isspace():
                yield number, line.split(separator)
        return
    reader = csv.reader((f"{line}\n" for line in lines[first:]), strict=True)  # a cell may hold the end of a line
    number = first + 1
    try:
        for cells in reader:
            if cells:
                yield number, [cell.strip() for cell in cells]
            number = first + reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: not valid CSV: {error}; is a quote left open?") from None


def _checked(path: Path, layout: Layout, columns: _Columns, rows: Iterator[tuple[int, list[str]]]) -> ScoreFile:
    """Gather rows into a file's record; nothing is kept of a file with a faulty line."""
    line: list[int] = []
    cells_of: list[list[str]] = [[] for _ in range(columns.width)]
    problems: list[tuple[int, str]] = []
    for number, cells in rows:
        if len(cells) != columns.width:
            shape = f"`{LAYOUTS[layout]}`" if layout in COLUMNS else f"{columns.width} cells as in the first line"
            problems.append((number, f"expected {shape}, got {' '.join(cells)!r}"))
            continue
        line.append(number)
        for column, cell in zip(cells_of, cells, strict=True):
            column.append(cell)
    utterance, text = cells_of[columns.utterance], cells_of[columns.score]
    attack, label = ([] if i is None else cells_of[i] for i in (columns.attack, columns.label))
    attack = _mapped(_as_it_was, attack)
    score, faults = numbers(utterance, text)
    for found in (faults, _faulty_names(utterance, line), _faulty_labels(utterance, label)):
        problems += [(line[i], problem) for i, problem in found]
    if problems:
        lines = [f"{path}:{number}: {problem}" for number, problem in sorted(problems)]
        raise InputError(f"{len(lines)} lines cannot be used; mend or remove them:\n{listing(lines)}")
    return ScoreFile(path, layout, utterance, score, line, attack, label)


Faults = list[tuple[int, str]]  # rows, from 0, and their faults


def numbers(utterance: Sequence[str], text: Sequence[str]) -> tuple[NDArray[np.float64], Faults]:
    """Scores (M,), and the rows whose score is not a finite number; float() alone would also take nan, inf and 1_0.

    A score beyond `GREATEST` is refused too: what is computed from it would overflow.
    """
    try:
        score = np.array(list(map(float, text)), dtype=np.float64)
        if (np.abs(score) <= GREATEST).all() and "_" not in "".join(text):
            return score, []
    except ValueError:
        score = np.zeros(0)
    bad = [i for i, word in enumerate(text) if not _is_number(word) or not abs(float(word)) <= GREATEST or "_" in word]
    return score, [(i, f"utterance {utterance[i]}: expected a finite score, got {text[i]!r}") for i in bad]


def _faulty_names(utterance: Sequence[str], line: Sequence[int]) -> Faults:
    """Rows whose utterance stands above already or is none."""
    if len(set(utterance)) == len(utterance) == len("\n".join(utterance).split()):
        return []
    faults: Faults = []
    first: dict[str, int] = {}
    for i, name in enumerate(utterance):
        if name.split() != [name]:
            faults.append((i, f"expected an utterance name without white space, got {name!r}"))
        elif name in first:
            faults.append((i, f"utterance {name} is scored twice, first in line {line[first[name]]}"))
        first.setdefault(name, i)
    return faults


def _faulty_labels(utterance: Sequence[str], label: Sequence[str]) -> Faults:
    if set(label) <= set(LABELS):
        return []
    wrong = [i for i, word in enumerate(label) if word not in LABELS]
    return [(i, f"utterance {utterance[i]}: expected the key bonafide or spoof, got {label[i]!r}") for i in wrong]


def own_key(found: ScoreFile) -> Trials:
    """The trials that a 2019 score file lists beside its scores: utterance, attack, label.

    Raises InputError for the other layouts, which hold no labels, and for a file with one class only.
    """
    if not found.label:
        raise InputError(
            f"{found.path}: a score file of the layout `{LAYOUTS[found.layout]}` does not say what is bona fide; "
            "give the key"
        )
    rows = zip(found.line, found.utterance, found.attack, found.label, strict=True)
    return trial_table.from_rows(
        (
            Row(f"{found.path}:{line}", utterance, path=UNKNOWN, label=label, attack=attack)
            for line, utterance, attack, label in rows
        ),
        source=str(found.path),
    )
