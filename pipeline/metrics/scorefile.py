"""Score files: a score for every utterance, written and read in the layouts of `pipeline.metrics.layouts`.

White space separates the cells of most layouts, so in the name of an attack it is written as in a URL: `voice%20clone`
is the attack "voice clone". The name of an utterance is never changed: where one has blanks, the layouts 2019 and 2021
cannot hold it, and `holding` gives the layout csv, which quotes names. Higher means more bona fide: the reader never
flips a sign, never fills a hole, and never guesses that two different names mean one utterance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files, trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import UNPRINTABLE, InputError, listing
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials
from pipeline.metrics import layouts
from pipeline.metrics.layouts import LAYOUTS, Chosen, Columns, Layout, is_number

CORPUS_LAYOUTS: dict[str, Layout] = {"asvspoof2019_la": "2019", "asvspoof5": "asvspoof5"}
BLANKS_PART: tuple[Layout, ...] = ("2019", "2021")  # layouts that are written with blanks between the cells
CSV_COLUMNS = ("utterance", "attack", "label", "score")
GREATEST = 1e100  # of a score, either sign
NO_ATTACK = ("", LABELS[0], "bona-fide")  # words for it that are not ours


@dataclass(frozen=True, eq=False)
class ScoreFile:
    """M scores as their file has them.

    layout: None where the user named the columns. utterance: M names, each once. score: (M,) float64, finite. line: M
    line numbers, from 1. attack: M names, where a dash is "unknown" or "none". label: M of `LABELS`. Both are empty
    where the file does not say the classes in words.
    """

    path: Path
    layout: Layout | None
    utterance: list[str]
    score: NDArray[np.float64]
    line: list[int]
    attack: list[str]
    label: list[str]


def layout_of(corpus: str) -> Layout:
    """The layout that the official evaluation package of a corpus takes."""
    return CORPUS_LAYOUTS.get(corpus, "2021")


def holding(layout: Layout, trials: Trials) -> Layout:
    """The layout, or csv where white space parts its cells and is in the names of utterances, too."""
    return "csv" if layout in BLANKS_PART and _with_blanks(trials.utterance.tolist()) else layout


def _with_blanks(names: Sequence[str]) -> list[str]:
    """The names that have white space."""
    return [name for name in names if name.split() != [name]] if len("\n".join(names).split()) > len(names) else []


def write(path: Path, trials: Trials, scores: NDArray[np.floating[Any]], *, layout: Layout) -> None:
    """Write the scores (N,) of N trials beside their place and rename the file there.

    A score gets the digits that its type needs to come back exactly. Raises InputError, naming the utterances, for a
    score that is not finite, and for a name with blanks in a layout that cannot hold it; ValueError for lengths that
    differ, and for a layout that is only read.
    """
    names: list[str] = trials.utterance.tolist()
    if scores.shape != (len(names),):
        raise ValueError(f"expected one score for each of {len(names)} utterances, got shape {scores.shape}")
    if bad := [f"utterance {names[i]}: {scores[i]}" for i in np.flatnonzero(~np.isfinite(scores))]:
        raise InputError(
            f"{path}: {len(bad)} of {len(names)} scores are not finite; the training has probably diverged, look at "
            f"its loss and lower the learning rate:\n{listing(bad)}"
        )
    if layout in BLANKS_PART and (names := _with_blanks(names)):
        raise InputError(
            f"{path}: expected names of utterances without blanks, as blanks part the cells of lines "
            f"`{LAYOUTS[layout]}` and nothing quotes them, got {len(names)}; write the layout csv:\n{listing(names)}"
        )
    # str() of a NumPy scalar is the shortest text that reads back as the same number of its own type.
    files.write_text(path, "".join(_lines(trials, [str(score) for score in scores], layout)))


def write_views(
    path: Path, folder: Path, trials: Trials, scores: Mapping[str, NDArray[np.floating[Any]]], *, layout: Layout
) -> None:
    """Write the scores (N,) of a set by view: the clean ones to `path`, the others to <view>.txt in `folder`.

    The folder holds no other score file then, and none where there is the clean view alone. Raises as `write`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for view, found in scores.items():
        write(path if view == CLEAN else folder / f"{view}.txt", trials, found, layout=layout)
    for other in folder.glob("*.txt"):
        if other.stem not in scores:
            other.unlink()


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
        case "csv":
            labels = [LABELS[0] if bonafide else LABELS[1] for bonafide in trials.is_bonafide.tolist()]
            cells = zip(names, trials.attack.tolist(), labels, scores, strict=True)
            yield files.csv_text([CSV_COLUMNS, *cells])
        case _:
            raise ValueError(f"expected to write one of 2019, 2021, asvspoof5, csv, got {layout!r}")


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


def parse(path: Path, layout: Layout | None = None, *, chosen: Chosen | None = None) -> ScoreFile:
    """Read a score file; where neither layout nor columns are given, its first line decides.

    Raises InputError for a file that is missing, empty or of no known layout, and, with file and line, for every line
    that does not fit, score that is not finite, and utterance that is scored twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no score file there")
    lines = trial_table.read_text(path).split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: expected scores, got an empty file")
    if chosen:
        columns: Columns | None = layouts.by_choice(path, first + 1, lines[first:], chosen)
    else:
        columns = layouts.find(lines[first:], layout)
    if columns is None:
        raise layouts.refusal(path, first + 1, lines[first:], layout)
    rows = layouts.rows(
        path, lines, first + columns.header, columns.separator, blanks=columns.layout == "2019" and not columns.header
    )
    return _checked(path, columns, rows)


def _checked(path: Path, columns: Columns, rows: Iterator[tuple[int, list[str]]]) -> ScoreFile:
    """Gather rows into a file's record; nothing is kept of a file with a faulty line."""
    line: list[int] = []
    cells_of: list[list[str]] = [[] for _ in range(columns.width)]
    problems: list[tuple[int, str]] = []
    for number, cells in rows:
        if len(cells) != columns.width:
            problems.append((number, f"expected {columns.shape}, got {' '.join(cells)[: layouts.SHOWN]!r}"))
            continue
        line.append(number)
        for column, cell in zip(cells_of, cells, strict=True):
            column.append(cell)
    utterance, text = cells_of[columns.utterance], cells_of[columns.score]
    if columns.pairs:
        text = [layouts.of_pair(cell) for cell in text]
    if columns.separator == ",":
        utterance = [files.plain_cell(name) if name[:1] == "'" else name for name in utterance]
    attack, label = _classes(columns, cells_of)
    score, faults = numbers(utterance, text)
    for found in (faults, _faulty_names(utterance, line), _faulty_labels(utterance, label)):
        problems += [(line[i], problem) for i, problem in found]
    if problems:
        said = [f"{path}:{number}: {problem}" for number, problem in sorted(problems)]
        raise InputError(f"{len(said)} lines cannot be used; mend or remove them:\n{listing(said)}")
    return ScoreFile(path, columns.layout, utterance, score, line, attack, label)


def _classes(columns: Columns, cells_of: Sequence[list[str]]) -> tuple[list[str], list[str]]:
    """The attacks and classes of M rows, none where the first has no class in words; a word that is none stays."""
    words = [] if columns.label is None else cells_of[columns.label]
    if not words or (columns.header and words[0].lower() not in columns.classes):
        return [], []
    label = _mapped(lambda word: columns.classes.get(word.lower(), word), words)
    if columns.attack is None:
        return [UNKNOWN] * len(label), label
    attack = cells_of[columns.attack]
    named = files.plain_cell if columns.separator == "," else _as_it_was
    return _mapped(lambda word: UNKNOWN if word in NO_ATTACK else named(word), attack), label


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
    bad = [i for i, word in enumerate(text) if not is_number(word) or not abs(float(word)) <= GREATEST or "_" in word]
    return score, [
        (i, f"utterance {utterance[i]}: expected a finite score, got {text[i]!r}{of_comma(text[i])}") for i in bad
    ]


def of_comma(text: str) -> str:
    """A remark for a message, where a score has a comma, which parts thousands in some languages; else empty."""
    written = "," in text and is_number(text.replace(",", ""))
    return "; write it with a point and without commas" if written else ""


def _faulty_names(utterance: list[str], line: Sequence[int]) -> Faults:
    """Rows whose utterance stands above already or is none."""
    plain = all(utterance) and "".join(utterance).isprintable() and list(map(str.strip, utterance)) == utterance
    if plain and len(set(utterance)) == len(utterance):
        return []
    faults: Faults = []
    first: dict[str, int] = {}
    for i, name in enumerate(utterance):
        if not name or name != name.strip() or UNPRINTABLE.search(name):
            said = "without control characters and without white space at its ends"
            faults.append((i, f"expected the name of an utterance, {said}, got {name!r}"))
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
    """The trials that a score file with classes lists beside its scores: utterance, attack, label.

    Raises InputError for a file without them, and for a file with one class only.
    """
    if not found.label:
        raise InputError(
            f"{found.path}: a score file of the layout `{_shape(found.layout)}` does not say what is bona fide; "
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


def _shape(layout: Layout | None) -> str:
    return LAYOUTS[layout] if layout else "utterance score"
