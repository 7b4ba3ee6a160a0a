"""Layouts of score files: the places of utterance, score and class in a line, found by the first line of a file.

    2019                utterance attack label score            ASVspoof 2019; spoof_SUPERB, with a dash for the attack
    2021                utterance score                         ASVspoof 2021, the Arena, and most others
    label               utterance label score
    label_last          utterance score label                   Codecfake
    speaker             speaker utterance - attack label score  a line of an ASVspoof 2019 protocol and the score
    speaker_label_last  speaker utterance score label           the AASIST baseline of ASVspoof 5
    asvspoof5           filename<TAB>cm-score                   ASVspoof 5; these two names are its first line
    csv                 utterance,score                         with a first line that names its columns, or without
    tsv                 utterance<TAB>score                     with such a first line

A class is a word. As a number it says nothing, because 0 is bona fide in some projects and spoof in others. Nor does a
second column of scores say which of the two is higher for bona fide. So such lines are refused, with the `--columns`
that would read them.

Two projects say what their numbers mean, and are known by their first line: DeepFense, and AntiDeepfake, whose score is
a pair: `ID,Score,Label`, then `name,"[-3.7, 3.8]",1`, of spoof and of bona fide. Its score here is the difference.

Names of spoof_SUPERB may hold blanks, and nothing quotes them. In lines of `2019` with a dash for the attack, the name
is all that stands before the dash.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.core.errors import InputError
from pipeline.core.trial_table import CLASS_OF, LABELS, UNKNOWN

Layout = Literal[
    "2019", "2021", "label", "label_last", "speaker", "speaker_label_last", "asvspoof5", "csv", "tsv"
]  # fmt: skip
LINES: dict[Layout, str] = {  # the layouts without a first line that names their columns
    "2019": "utterance attack label score",
    "2021": "utterance score",
    "label": "utterance label score",
    "label_last": "utterance score label",
    "speaker": "speaker utterance - attack label score",
    "speaker_label_last": "speaker utterance score label",
}
DASHED = ("utterance", UNKNOWN, "label", "score")  # a line of spoof_SUPERB
LAYOUTS: dict[Layout, str] = LINES | {
    "asvspoof5": "filename<TAB>cm-score",
    "csv": "utterance,score",
    "tsv": "utterance<TAB>score",
}
SEPARATORS: dict[Layout, tuple[str | None, ...]] = {"asvspoof5": ("\t",), "csv": (",",), "tsv": ("\t", None)}

# The names that a first line may give to its columns, in small letters.
UTTERANCE_COLUMNS = (
    "utterance", "utterance_id", "utt", "utt_id", "uttid", "filename", "file_name", "file", "file_id", "flac_file",
    "wav_file", "audio_file", "audio", "audio_id", "id_audio", "id", "name", "trial", "trial_id",
    "trial_anon",
)  # fmt: skip
PATH_COLUMNS = ("path", "file_path", "filepath", "audio_path", "wav_path")  # name the utterance where nothing else does
SCORE_COLUMNS = ("score", "scores", "cm-score", "cm_score", "score_bonafide", "bonafide_score")
LABEL_COLUMNS = ("label", "labels", "key", "cm-label", "cm_label", "class")
ATTACK_COLUMNS = ("attack", "attack_label", "attack_id", "attack_type", "attack_anon")
DEEPFENSE = ("id_audio", "label", "score_spoof", "score_bonafide")
ANTIDEEPFAKE = ("id", "score", "label")  # with pairs for scores
PAIR = re.compile(r"\[\s*([^\s,\[\]]+)\s*,\s*([^\s,\[\]]+)\s*\]")  # scores of spoof and of bona fide
DIGITS = {"1": LABELS[0], "0": LABELS[1]}  # as DeepFense and AntiDeepfake have them
LONGEST_HEADER = 100_000  # characters
LOOKED_AT = 1_000  # lines, for the advice of a refusal
SHOWN = 200  # characters of a line in a message


class Columns(NamedTuple):
    """Where the cells stand in the lines of a file, from 0; attack and label are None where the file lacks them.

    layout: None where the user names the columns. separator: None is white space. header: whether the first line names
    the columns. width: the number of cells of a line. classes: the class (`LABELS`) of each word of the label. pairs:
    whether scores are pairs.
    """

    layout: Layout | None
    separator: str | None
    header: bool
    width: int
    utterance: int
    score: int
    attack: int | None = None
    label: int | None = None
    classes: Mapping[str, str] = CLASS_OF
    pairs: bool = False

    @property
    def shape(self) -> str:
        """What a line should be, for messages."""
        if self.layout in LINES and not self.header:
            return f"`{LINES[self.layout]}`"
        return f"{self.width} cells as in the first line"


class Chosen(NamedTuple):
    """The columns that a user names, from 1."""

    utterance: int
    score: int

    def __str__(self) -> str:
        return f"--columns utterance={self.utterance},score={self.score}"


def is_number(text: str) -> bool:
    """Whether float() takes a text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def split(line: str, separator: str | None) -> list[str]:
    """The cells of a line."""
    if separator != ",":
        return line.split(separator)
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error:  # a quote that stays open, or a line longer than the CSV reader takes
        return []


def rows(
    path: Path, lines: Sequence[str], first: int, separator: str | None, *, blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The cells of every line that is not blank, from index `first` on, with its number.

    blanks: whether names before a dash may hold blanks (see `before_dash`).

    Raises InputError, with the line, for a quote that stays open.
    """
    if separator != ",":
        for number, line in enumerate(lines[first:], start=first + 1):
            if line and not line.isspace():
                cells = line.split(separator)
                yield number, before_dash(line) or cells if blanks and len(cells) > len(DASHED) else cells
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


def before_dash(line: str) -> list[str]:
    """The cells of a line of `2019` with a dash for the attack, whose name may hold blanks; none for any other line."""
    cells = line.strip().rsplit(None, len(DASHED) - 1)
    return cells if fits(cells, DASHED) else []


def only(names: Sequence[str], *wanted: Sequence[str]) -> int | None:
    """The place of the one name that is wanted, else of the one that is wanted next; None where none or several are."""
    for group in wanted:
        found = [i for i, name in enumerate(names) if name in group]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def header_names(line: str, separator: str | None) -> list[str]:
    """The names of the columns in small letters, if a line can be one that names columns."""
    names = [] if len(line) > LONGEST_HEADER else [name.strip().lower() for name in split(line, separator)]
    return [] if separator != "," and any(map(is_number, names)) else names


def find(lines: Sequence[str], layout: Layout | None) -> Columns | None:
    """The columns of a file with these lines, of the layout or of any; None where the first is no such line."""
    found = _find(lines[0], layout)
    if found and found.header and tuple(header_names(lines[0], found.separator)) == ANTIDEEPFAKE:
        row = next((split(line, found.separator) for line in lines[1:LOOKED_AT] if line.strip()), [])
        if len(row) == found.width and PAIR.fullmatch(row[found.score]):
            return found._replace(pairs=True, classes=DIGITS)
    return found


def of_pair(cell: str) -> str:
    """The score of bona fide less that of spoof, of a pair; any other cell as it is."""
    pair = PAIR.fullmatch(cell)
    return str(float(pair[2]) - float(pair[1])) if pair and is_number(pair[1]) and is_number(pair[2]) else cell


def _find(line: str, layout: Layout | None) -> Columns | None:
    """The columns of a file with this first line."""
    if layout in LINES:  # a line that does not fit is named with the others
        return _by_place(layout, None)
    for separator in SEPARATORS[layout] if layout else (",", "\t", None):
        if found := _by_names(header_names(line, separator), separator):
            return found if layout in (None, "tsv", found.layout) else None
    for separator in (None, ","):
        if layout in (None, "csv" if separator else None):
            cells = split(line, separator) if len(line) <= LONGEST_HEADER else []
            for name, shape in LINES.items():
                if fits(cells, shape.split()):
                    return _by_place(name, separator)
    return _by_place("2019", None) if layout is None and before_dash(line[:LONGEST_HEADER]) else None


def _by_names(names: Sequence[str], separator: str | None) -> Columns | None:
    """The columns of a first line that names them."""
    utterance, score = only(names, UTTERANCE_COLUMNS, PATH_COLUMNS), only(names, SCORE_COLUMNS)
    if utterance is None or score is None:
        return None
    layout: Layout = "csv" if separator == "," else "tsv"
    if separator == "\t" and {"filename", "cm-score"} <= set(names):
        layout = "asvspoof5"
    classes = DIGITS if tuple(names) == DEEPFENSE else CLASS_OF
    attack, label = only(names, ATTACK_COLUMNS), only(names, LABEL_COLUMNS)
    return Columns(layout, separator, True, len(names), utterance, score, attack, label, classes)


def _by_place(name: Layout, separator: str | None) -> Columns:
    """The columns of a layout whose lines are all alike."""
    words = LINES[name].split()
    attack, label = (words.index(word) if word in words else None for word in ("attack", "label"))
    layout = "csv" if separator else name
    return Columns(layout, separator, False, len(words), words.index("utterance"), words.index("score"), attack, label)


def fits(cells: Sequence[str], shape: Sequence[str]) -> bool:
    """Whether each cell can be what the shape has in its place."""
    return len(cells) == len(shape) and not _misfits(cells, shape)


def _misfits(cells: Sequence[str], shape: Sequence[str]) -> list[tuple[str, str]]:
    """Cells that do not fit the words of the shape, each with its word."""
    pairs = zip(cells, shape, strict=False)
    return [(cell, word) for cell, word in pairs if not _may_be(cell, word)]


def _may_be(cell: str, word: str) -> bool:
    match word:
        case "score":
            return is_number(cell)
        case "label":
            return cell.lower() in CLASS_OF
        case "-":
            return cell == UNKNOWN
        case _:
            return True


def by_choice(path: Path, number: int, lines: Sequence[str], chosen: Chosen) -> Columns:
    """The columns that the user names, in lines parted by commas, tabs or white space; the first may be a header.

    Raises InputError where the first two lines have no score there.
    """
    head = [line for line in lines[:LOOKED_AT] if 0 < len(line.strip()) <= LONGEST_HEADER][:2]
    for separator in ("\t", ",", None):
        cells = [split(line, separator) for line in head]
        scored = [i for i, row in enumerate(cells) if len(row) >= max(chosen) and is_number(row[chosen.score - 1])]
        if scored:
            width = len(cells[scored[0]])
            return Columns(None, separator, scored[0] > 0, width, chosen.utterance - 1, chosen.score - 1)
    raise InputError(
        f"{path}:{number}: expected a score in cell {chosen.score}, as `{chosen}` says, got {lines[0][:SHOWN]!r}"
    )


def refusal(path: Path, number: int, lines: Sequence[str], layout: Layout | None) -> InputError:
    """The error for a file of no known layout, or not of the given one. lines: the first, from its first on."""
    line = lines[0].rstrip()
    shown = line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
    table = "\n".join(f"  {name:18}  {shape}" for name, shape in LAYOUTS.items() if layout in (None, name))
    separator = "\t" if "\t" in line else "," if "," in line else None
    sample = [split(text, separator) for text in lines[:LOOKED_AT] if len(text) <= LONGEST_HEADER and text.strip()]
    return InputError(
        f"{path}:{number}: expected the first line of a score file in one of the layouts\n{table}\n"
        f"got {shown!r}; {_nearest(sample[0] if sample else [])}{_advice(sample)}"
    )


def _nearest(cells: Sequence[str]) -> str:
    """The layout that comes nearest to a first line, and what is in the way."""
    names = [cell.strip().lower() for cell in cells]
    if not any(map(is_number, cells)):
        return (
            f"a first line that names its columns needs one name of {', '.join(UTTERANCE_COLUMNS)} (else of "
            f"{', '.join(PATH_COLUMNS)}) and one of {', '.join(SCORE_COLUMNS)}, "
            f"this one has {_those(names, UTTERANCE_COLUMNS)} and {_those(names, SCORE_COLUMNS)}"
        )
    shapes = {name: shape.split() for name, shape in LINES.items()}
    name = min(shapes, key=lambda name: (abs(len(cells) - len(shapes[name])), len(_misfits(cells, shapes[name]))))
    said = [f"{cell!r} is no {'dash' if word == '-' else word}" for cell, word in _misfits(cells, shapes[name])]
    if len(cells) != len(shapes[name]):
        said = [f"it has {len(cells)} cells"]
    return f"nearest is `{LINES[name]}` ({name}), but {', '.join(said) or 'commas part the cells'}"


def _those(names: Sequence[str], wanted: Sequence[str]) -> str:
    return ", ".join(name for name in names if name in wanted) or "none"


def _advice(sample: Sequence[Sequence[str]]) -> str:
    """The `--columns` that would read a file of these first lines, if its scores are higher for bona fide."""
    body = [row for row in sample[1:] if len(row) == len(sample[0])]
    if sample and any(map(is_number, sample[0])):
        body = [sample[0], *body]
    columns = list(zip(*body, strict=True))
    numeric = [i for i, column in enumerate(columns) if all(map(is_number, column))]
    scores = [i for i in numeric if not set(columns[i]) <= {"0", "1"}] or numeric[-1:]
    classes = [i for i, column in enumerate(columns) if {cell.lower() for cell in column} <= CLASS_OF.keys()]
    names = [i for i in range(len(columns)) if i not in (*scores, *classes)]
    if not scores or not names:
        return "; write it in one of these layouts"
    name = max(names, key=lambda i: (len(set(columns[i])), i not in numeric, sum(map(len, columns[i]))))
    choices = " or ".join(f"`{Chosen(name + 1, score + 1)}`" for score in scores)
    return f"; {choices} reads it: name the column whose scores are higher for bona fide"
