"""Score files: a score for every utterance, in the layouts of the official evaluation packages.

    2019        utterance attack key score          ASVspoof 2019; carries its own key
    2021        utterance score                     ASVspoof 2021, and every corpus that has no layout of its own
    asvspoof5   filename<TAB>cm-score               ASVspoof 5; these two names are its first line
    csv         utterance,score                     anyone's; its first line names the columns

Cells of the first two are parted by white space. Higher means more bona fide: the reader never flips a sign, never
fills a hole, and never guesses that two different names mean one utterance.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline import trials as trial_table
from pipeline.errors import InputError, listing
from pipeline.trials import LABELS, UNKNOWN, Row, Trials

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
AUDIO_SUFFIXES = (".flac", ".wav")
ASV_LAYOUT, ASV_KINDS = "source kind score", ("target", "nontarget", "spoof")


class _Columns(NamedTuple):
    """Which cell of a line is what; attack and label are None where the layout lacks them."""

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


@dataclass(frozen=True, eq=False)
class Joined:
    """scores: (N,) float64 in the order of N trials. surplus: utterances with a score that are none of the trials."""

    scores: NDArray[np.float64]
    surplus: list[str]


class AsvScores(NamedTuple):
    """Scores of a speaker verification system by the kind of trial, (M,) float64 each."""

    target: NDArray[np.float64]
    nontarget: NDArray[np.float64]
    spoof: NDArray[np.float64]


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
            for name, attack, label, score in zip(names, trials.attack.tolist(), labels, scores, strict=True):
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


def parse(path: Path, layout: Layout | None = None) -> ScoreFile:
    """Read a score file, of any layout that its first line tells where none is given.

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
    if {"filename", "cm-score"} <= set(line.rstrip("\r").split("\t")):
        return "asvspoof5"
    if "," in line and set(_csv_names(line)) & {*UTTERANCE_COLUMNS, *SCORE_COLUMNS}:
        return "csv"
    if len(cells) == 4 and cells[2] in LABELS and _is_number(cells[3]):
        return "2019"
    if len(cells) == 2 and _is_number(cells[1]):
        return "2021"
    known = "\n".join(f"  {name:9}  {shape}" for name, shape in LAYOUTS.items())
    raise InputError(
        f"{path}:{number}: expected the first line of a score file in one of the layouts\n{known}\n"
        f"got {line.rstrip()!r}; a CSV file needs a first line that names its columns"
    )


def _csv_names(line: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([line.rstrip("\r")]))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(path: Path, number: int, line: str, layout: Layout) -> _Columns:
    """Where the cells stand in a layout whose first line names them."""
    if layout == "asvspoof5":
        names = line.rstrip("\r").split("\t")
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
                yield number, line.rstrip("\r").split(separator)
        return
    reader = csv.reader(lines[first:], strict=True)
    number = first
    try:
        for cells in reader:
            number = first + reader.line_num
            if cells:
                yield number, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{path}:{number + 1}: not valid CSV: {error}; is a quote left open?") from None


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
    score, faults = _numbers(utterance, text)
    for found in (faults, _faulty_names(utterance, line), _faulty_labels(utterance, label)):
        problems += [(line[i], problem) for i, problem in found]
    if problems:
        told = [f"{path}:{number}: {problem}" for number, problem in sorted(problems)]
        raise InputError(f"{len(told)} lines cannot be used; mend or remove them:\n{listing(told)}")
    return ScoreFile(path, layout, utterance, score, line, attack, label)


Faults = list[tuple[int, str]]  # rows, from 0, and what is wrong with each


def _numbers(utterance: Sequence[str], text: Sequence[str]) -> tuple[NDArray[np.float64], Faults]:
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
    """The trials that a 2019 score file tells of itself: utterance, attack, label.

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


def join(found: ScoreFile, trials: Trials, *, remedy: str) -> Joined:
    """The scores of a file in the order of the trials, matched by utterance.

    Raises InputError for trials without a score, with their number and the first, and, with lines, for labels and
    attacks of the file that contradict the trials. `remedy` is what the message advises.
    """
    place = dict(zip(found.utterance, range(len(found.utterance)), strict=True))
    names: list[str] = trials.utterance.tolist()
    rows = np.array([place.get(name, -1) for name in names], dtype=np.intp)  # (N,)
    missing = [names[i] for i in np.flatnonzero(rows < 0)]
    surplus: list[str] = []
    if len(place) > len(names) - len(missing):
        known = set(names)
        surplus = [name for name in found.utterance if name not in known]
    if missing:
        raise InputError(_mismatch(found.path, missing, surplus, total=len(names), remedy=remedy))
    if found.label and (wrong := _contradictions(found, trials, rows)):
        raise InputError(f"{len(wrong)} scores contradict the key; is it the key of this set?\n{listing(wrong)}")
    return Joined(found.score[rows], surplus)


def _contradictions(found: ScoreFile, trials: Trials, rows: NDArray[np.intp]) -> list[str]:
    """Lines of a 2019 file whose key or attack is not that of the trial; an unknown attack contradicts none."""
    bonafide = (np.array(found.label) == LABELS[0])[rows]
    attack = np.array(found.attack)[rows]
    other_attack = (attack != trials.attack) & (attack != UNKNOWN) & (trials.attack != UNKNOWN)
    wrong = np.flatnonzero((bonafide != trials.is_bonafide) | other_attack)

    def say(i: int) -> str:
        line, name = found.line[rows[i]], found.utterance[rows[i]]
        label = LABELS[0] if trials.is_bonafide[i] else LABELS[1]
        return (
            f"{found.path}:{line}: utterance {name}: the file says {found.attack[rows[i]]} {found.label[rows[i]]}, "
            f"the key {trials.attack[i]} {label}"
        )

    return [say(i) for i in wrong.tolist()]


def _mismatch(path: Path, missing: Sequence[str], surplus: Sequence[str], *, total: int, remedy: str) -> str:
    parts: list[str] = []
    if missing:
        parts.append(f"{len(missing)} of {total} trials have no score:\n{listing(missing)}")
    if surplus:
        parts.append(f"{len(surplus)} scores belong to no trial:\n{listing(surplus)}")
    return f"{path}: " + "\n".join([*parts, *_suffix_hint(missing, surplus), remedy])


def _suffix_hint(missing: Sequence[str], surplus: Sequence[str]) -> Iterator[str]:
    """What to say where names would match but for the suffix of an audio file."""
    scored, wanted = set(surplus), set(missing)
    for suffix in AUDIO_SUFFIXES:
        if any(name + suffix in scored for name in missing):
            yield f"the names of the scores end in {suffix}, those of the trials do not; write them alike"
        if any(name + suffix in wanted for name in surplus):
            yield f"the names of the trials end in {suffix}, those of the scores do not; write them alike"


def read_asv(path: Path) -> AsvScores:
    """Read scores of a speaker verification system: lines `source kind score`, as ASVspoof 2019 publishes them.

    kind is target, nontarget or spoof; source (bonafide, or an attack) is not used. Raises InputError, with file and
    line, for lines that do not fit and scores that are not finite; and for a kind without scores.
    """
    if not path.is_file():
        raise InputError(f"{path}: no ASV score file there")
    lines = enumerate(trial_table.read_text(path).split("\n"), start=1)
    rows = [(number, line.split()) for number, line in lines if line and not line.isspace()]
    faults = [
        f"{path}:{number}: expected `{ASV_LAYOUT}` with the kind {', '.join(ASV_KINDS)}, got {' '.join(cells)!r}"
        for number, cells in rows
        if len(cells) != 3 or cells[1] not in ASV_KINDS
    ]
    if not faults:
        score, bad = _numbers([cells[0] for _, cells in rows], [cells[2] for _, cells in rows])
        faults = [f"{path}:{rows[i][0]}: expected a finite score, got {rows[i][1][2]!r}" for i, _ in bad]
    if faults:
        raise InputError(f"{len(faults)} lines cannot be used; mend or remove them:\n{listing(faults)}")
    kinds = [cells[1] for _, cells in rows]
    if absent := [kind for kind in ASV_KINDS if kind not in kinds]:
        raise InputError(f"{path}: expected scores of every kind in {', '.join(ASV_KINDS)}, got none of {absent[0]}")
    return AsvScores(*(score[np.array(kinds) == kind] for kind in ASV_KINDS))


def read(path: Path, trials: Trials) -> NDArray[np.float64]:
    """Read the score file of exactly these trials, of any layout, into their order: (N,) float64.

    Raises InputError where `parse` and `join` do, and for scores that belong to no trial.
    """
    if not path.is_file():
        raise InputError(f"{path}: no score file there; run `dvc repro flow/score/dvc.yaml`")
    remedy = (
        "the file was made for another set or an older trial table; run `dvc repro flow/score/dvc.yaml` to make it anew"
    )
    joined = join(parse(path), trials, remedy=remedy)
    if joined.surplus:
        raise InputError(_mismatch(path, [], joined.surplus, total=len(trials), remedy=remedy))
    return joined.scores
