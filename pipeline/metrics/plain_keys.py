"""Keys that no adapter in `pipeline/corpora/` reads: lists of names and classes, and keys of ASVspoof tracks.

    plain              utterance label                                      parted by white space or a comma
    plain              a first line that names the columns, such as utterance,label
    plain              speaker utterance attack label                       ASVspoof 2019 without its unused column
    plain              speaker utterance - attack label                     lines of ASVspoof 2019 for other corpora
    asvspoof2019_pa    speaker utterance environment attack label
    asvspoof2021_pa    speaker utterance R3 M3 d4 r1 m1 s4 c4 label trim phase
    asvspoof5          speaker utterance gender - attack label              its phase 1

The words of a class are those of `trial_table.CLASS_OF`. A number is refused, because 0 is bona fide in some projects
and spoof in others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.core import trial_table
from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import CLASS_OF, LABELS, UNKNOWN, Row, Trials
from pipeline.corpora import _formats, _protocols
from pipeline.metrics import layouts

PLAIN = "plain"
FIVE = "asvspoof5"
NAMES_OF_FIVE = _formats.FORMATS[FIVE].pattern
SPEAKER_COLUMNS, CODEC_COLUMNS = ("speaker", "speaker_id", "spk", "tar_spk_anon"), ("codec",)


class _KeyLine(NamedTuple):
    """A kind of line: its cells, the pattern of its utterances, and what `Key.corpus` calls it."""

    cells: str
    pattern: str
    corpus: str


LINES = (
    _KeyLine("speaker utterance environment attack label", "PA_[TDE]_[0-9]+", "asvspoof2019_pa"),
    _KeyLine(
        "speaker utterance room microphone distance attacker_room attacker_microphone device attacker_distance label "
        "trim phase",
        "PA_E_[0-9]+",
        "asvspoof2021_pa",
    ),
    _KeyLine("speaker utterance gender - attack label", NAMES_OF_FIVE, FIVE),
    _KeyLine("speaker utterance - attack label", ".+", PLAIN),
    _KeyLine("speaker utterance attack label", ".+", PLAIN),
    _KeyLine("utterance label", ".+", PLAIN),
)


class _KeyColumns(NamedTuple):
    """Where the cells of a key stand, by their names; separator and header as in `layouts.Columns`."""

    corpus: str
    separator: str | None
    header: bool
    width: int
    place: dict[str, int]


class PlainKey(NamedTuple):
    """What `read` gives: the corpus and the split as `keys.Key` has them, and the trials."""

    corpus: str
    split: str | None
    trials: Trials


def read(path: Path, split: str | None) -> PlainKey | None:
    """The trials of a key; None for a file of another kind.

    Raises InputError, with file and line, for a class that is no word of one, a line that does not fit, a split of a
    key that has none, an unknown phase, and whatever `trial_table.from_rows` refuses.
    """
    lines = trial_table.read_text(path).split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None or len(lines[first]) > layouts.LONGEST_HEADER:
        return None
    found = _by_names(lines[first]) or _by_place(lines[first])
    if found is None:
        return None
    if "phase" in found.place:
        split = split or _formats.PHASES[0]
        if split not in (*_formats.PHASES, _formats.ALL):
            raise InputError(f"{path}: expected the phase {', '.join(_formats.PHASES)} or all, got --split {split}")
    elif split:
        raise InputError(f"{path}: this key has no splits, got --split {split}; leave it out")
    rows = layouts.rows(path, lines, first + found.header, found.separator)
    source = f"{path} (phase {split})" if split else str(path)
    trials = trial_table.from_rows(_trials(path, rows, found, split), source=source)
    return PlainKey(found.corpus, split, trials)


def _by_names(line: str) -> _KeyColumns | None:
    """The cells of a key whose first line names them."""
    wanted = {
        "utterance": (layouts.UTTERANCE_COLUMNS, layouts.PATH_COLUMNS),
        "label": (layouts.LABEL_COLUMNS,),
        "attack": (layouts.ATTACK_COLUMNS,),
        "speaker": (SPEAKER_COLUMNS,),
        "codec": (CODEC_COLUMNS,),
    }
    for separator in (",", "\t", None):
        names = layouts.header_names(line, separator)
        places = {of: layouts.only(names, *groups) for of, groups in wanted.items()}
        place = {of: i for of, i in places.items() if i is not None}
        if {"utterance", "label"} <= place.keys():
            return _KeyColumns(PLAIN, separator, True, len(names), place)
    return None


def _by_place(line: str) -> _KeyColumns | None:
    """The cells of a key whose lines are all alike."""
    for kind in LINES:
        names = kind.cells.split()
        for separator in (",", None) if len(names) == 2 else (None,):
            cells = layouts.split(line, separator)
            if layouts.fits(cells, names) and re.fullmatch(kind.pattern, cells[names.index("utterance")]):
                place = {name: i for i, name in enumerate(names)}
                return _KeyColumns(kind.corpus, separator, False, len(names), place)
    return None


def _trials(path: Path, rows: Iterator[tuple[int, list[str]]], found: _KeyColumns, split: str | None) -> Iterator[Row]:
    """The trials of the lines that are of the split. Raises InputError after the last, for all lines that are none."""
    utterance, label = found.place["utterance"], found.place["label"]
    speaker, attack, codec, phase = (found.place.get(of) for of in ("speaker", "attack", "codec", "phase"))
    file, problems = str(path), []
    for number, cells in rows:
        where = f"{file}:{number}"
        if len(cells) != found.width:
            said = " ".join(cells)[: layouts.SHOWN]
            problems.append(f"{where}: expected {found.width} cells as in the first line, got {said!r}")
        elif (word := CLASS_OF.get(cells[label].strip().lower())) is None:
            problems.append(f"{where}: expected a class in words ({', '.join(CLASS_OF)}), got {cells[label]!r}")
        elif phase is None or _protocols.in_phase(where, cells[phase], str(split)):
            yield Row(
                where,
                cells[utterance],
                UNKNOWN,
                word,
                UNKNOWN if speaker is None else cells[speaker],
                UNKNOWN if attack is None or word == LABELS[0] else cells[attack],
                codec=UNKNOWN if codec is None else cells[codec],
            )
    if problems:
        raise InputError(f"{len(problems)} lines of the key cannot be used; mend or remove them:\n{listing(problems)}")
