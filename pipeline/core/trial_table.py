"""The trial table: the utterances of a set, with class, speaker, attack and other facts.

A table is a frozen record of NumPy columns with a row for each trial, in the order of the protocol. `from_rows` makes a
table and checks everything that can be checked without opening audio.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import posixpath
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import UNPRINTABLE, InputError, listing, printable
from pipeline.core.files import csv_text, plain_cell

LABELS = ("bonafide", "spoof")
# The words of a class in files of others, in small letters. A number is none: 0 is bona fide in some, spoof in others.
CLASS_OF = dict.fromkeys(("bonafide", "bona-fide", "bona_fide", "genuine", "human", "real"), LABELS[0]) | dict.fromkeys(
    ("spoof", "spoofed", "fake"), LABELS[1]
)
COLUMNS = ("utterance", "path", "speaker", "label", "attack", "codec", "vocoder", "quality", "content")
UNKNOWN = "-"
UNKNOWN_MOS = ("", UNKNOWN, "nan", "na")  # in small letters
NAMES = ("utterance", "path", "speaker", "attack", "codec", "vocoder", "content")  # columns of free text
MOS_RANGE = (0.0, 6.0)  # wider than the scale of 1 to 5: published estimates range from 0.51 to 5.07
SHOWN = 60  # characters of a name in a message
PLAIN_PATH = re.compile(r"(?!\.)[^/\\:]+(/(?!\.)[^/\\:]+)*").fullmatch  # needs no cleaning, as most paths


class Row(NamedTuple):
    """One trial from an adapter. where: its file and line, for messages."""

    where: str
    utterance: str
    path: str
    label: str
    speaker: str = UNKNOWN
    attack: str = UNKNOWN
    quality: str = ""
    content: str = ""
    codec: str = UNKNOWN
    vocoder: str = UNKNOWN


@dataclass(frozen=True)
class Trials:
    """N trials, column by column.

    utterance, path, speaker, attack, codec, vocoder: (N,) str, "-" where unknown or without meaning. attack and vocoder
    name how a spoof was made. path is relative to the root of the corpus, with forward slashes.
    is_bonafide: (N,) bool. quality: (N,) float64, MOS on the scale 1 to 5, nan where unknown.
    content: (N,) str, digest of the bytes of the audio file, then `:left` or the like where one channel is heard and
    not the mean; empty until `prepare` has read the file.
    """

    utterance: NDArray[np.str_]
    path: NDArray[np.str_]
    speaker: NDArray[np.str_]
    is_bonafide: NDArray[np.bool_]
    attack: NDArray[np.str_]
    codec: NDArray[np.str_]
    vocoder: NDArray[np.str_]
    quality: NDArray[np.float64]
    content: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.utterance)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Trials:
        """The trials of some rows, in the order of the rows."""
        return Trials(**{name: column[rows] for name, column in vars(self).items()})


def pool(tables: Mapping[str, Trials], origins: Mapping[str, Hashable]) -> Trials:
    """Join the tables of several sets, in the order of the sets. origins: what is equal for sets of one corpus.

    Speakers and attacks of different corpora that have the same name get the name of their set in front, such as
    `more/A01`. Where sets of different corpora share the name of an utterance, all utterances of the pool get it.

    Raises InputError where two sets of one corpus have the same utterance.
    """
    sets: dict[tuple[str, Hashable], str] = {}
    twice = [
        f"{utterance}: in {first} and {name}"
        for name, table in tables.items()
        for utterance in table.utterance.tolist()
        if (first := sets.setdefault((utterance, origins[name]), name)) != name
    ]
    if twice:
        raise InputError(f"expected every utterance in one of {', '.join(tables)}, got:\n{listing(twice)}")
    columns = [dict(vars(table)) for table in tables.values()]
    for own in ("speaker", "attack", "utterance"):
        shared = _of_several([column[own] for column in columns], [origins[name] for name in tables])
        for name, column in zip(tables, columns, strict=True):
            marked = (
                np.isin(column[own], list(shared)) if own != "utterance" else np.full(len(column[own]), bool(shared))
            )
            column[own] = np.where(marked, np.char.add(f"{name}/", column[own]), column[own])
    return Trials(**{name: np.concatenate([column[name] for column in columns]) for name in columns[0]})


def _of_several(columns: Sequence[NDArray[np.str_]], origins: Sequence[Hashable]) -> set[str]:
    """The names that stand in columns of different origins."""
    found: dict[str, set[Hashable]] = {}
    for column, origin in zip(columns, origins, strict=True):
        for name in set(column.tolist()) - {UNKNOWN}:
            found.setdefault(name, set()).add(origin)
    return {name for name, of in found.items() if len(of) > 1}


def without_set(trials: Trials, name: str) -> Trials:
    """The trials of a set in a pool, with the names of utterances that they have in the set itself."""
    prefix = f"{name}/"
    names = trials.utterance.tolist()
    if not all(utterance.startswith(prefix) for utterance in names):
        return trials
    return dataclasses.replace(trials, utterance=np.array([utterance.removeprefix(prefix) for utterance in names]))


def _mos(text: str) -> float:
    """The MOS in a cell; nan for an empty cell, NA and NaN. Raises ValueError where it is no MOS."""
    if text.lower() in UNKNOWN_MOS:
        return float("nan")
    value = float(text)
    if not MOS_RANGE[0] <= value <= MOS_RANGE[1] or "_" in text:
        raise ValueError
    return value


def _clean(path: str) -> str:
    """The plain form of a path below the root of the corpus; empty for any other path.

    Links are not followed. A manifest may come from anywhere and must not lead outside; a link is the user's own.
    """
    if PLAIN_PATH(path):
        return path
    clean = posixpath.normpath(path.replace("\\", "/"))
    outside = not path or clean in (".", "..") or clean.startswith(("/", "../")) or clean[1:2] == ":"
    return "" if outside else clean


def _problem(row: Row) -> str | None:
    """A message about a row that cannot be used, else None."""
    if not row.utterance:
        return "expected the name of the utterance, got none"
    who = f"utterance {printable(row.utterance, UNPRINTABLE)}"
    if row.label not in LABELS:
        return f"{who}: expected label bonafide or spoof, got {row.label!r}"
    for name in NAMES:
        text = getattr(row, name)
        if found := UNPRINTABLE.search(text):
            return (
                f"{who}: expected {name} without control characters, line breaks and marks of "
                f"direction, got {found[0]!a} in {text[:SHOWN]!a}; remove it"
            )
        if text != text.strip():
            return f"{who}: expected {name} without white space at its ends, got {text[:SHOWN]!a}"
    if not _clean(row.path):
        hint = "; absolute paths need `root: /`, or to be cut off below the root" if row.path.startswith("/") else ""
        return f"{who}: expected a path below the corpus root, got {row.path!r}{hint}"
    try:
        _mos(row.quality)
    except ValueError:
        return f"{who}: expected a quality (MOS) from 0 to 6 or nothing, got {row.quality!r}"
    return None


def _names_are_plain(rows: Sequence[Row]) -> bool:
    """Whether all names can be held by every file and shown on a terminal; `_problem` says which cannot."""
    for name in NAMES:
        texts = [*map(attrgetter(name), rows)]
        lines = "\n".join(["", *texts, ""])
        # The first test is fast and fails for some harmless characters, too. What passes has no white space but blanks.
        if "".join(texts).isprintable() and "\n " not in lines and " \n" not in lines:
            continue
        if any(UNPRINTABLE.search(text) or text != text.strip() for text in set(texts)):
            return False
    return True


def from_rows(rows: Iterable[Row], *, source: str) -> Trials:
    """Check rows and make a table of them. source: names the file in messages.

    Raises InputError, with all problems by file and line, for a label, path, name or quality that is not valid, for an
    utterance that is listed twice, for no trials, and for trials of one class only. No name may have control
    characters, line breaks, marks of direction, or white space at its ends.
    """
    kept = list(rows)
    names = [row.utterance for row in kept]
    paths = [_clean(row.path) for row in kept]
    try:
        quality = [_mos(row.quality) for row in kept]
    except ValueError:
        quality = []
    whole = len(set(names)) == len(names) == len(quality)
    if not (
        whole and all(names) and all(paths) and {row.label for row in kept} <= set(LABELS) and _names_are_plain(kept)
    ):
        raise InputError(_problems(kept))
    found = {row.label for row in kept}
    if found != set(LABELS):
        have = f"only {found.pop()}" if found else "no trials"
        raise InputError(
            f"{source}: expected bona fide and spoof trials, got {have}; check the split and the label column"
        )
    return Trials(
        utterance=np.array(names),
        path=np.array(paths),
        speaker=np.array([row.speaker or UNKNOWN for row in kept]),
        is_bonafide=np.array([row.label == LABELS[0] for row in kept]),
        attack=np.array([row.attack or UNKNOWN for row in kept]),
        codec=np.array([row.codec or UNKNOWN for row in kept]),
        vocoder=np.array([row.vocoder or UNKNOWN for row in kept]),
        quality=np.array(quality),
        content=np.array([row.content for row in kept]),
    )


def _problems(rows: Sequence[Row]) -> str:
    """A message about all rows that cannot be used, by file and line."""
    problems: list[str] = []
    first: dict[str, str] = {}
    for row in rows:
        problem = _problem(row)
        if problem is None and row.utterance in first:
            problem = f"utterance {printable(row.utterance)} is listed twice, first at {first[row.utterance]}"
        if problem is not None:
            problems.append(f"{row.where}: {problem}")
        first.setdefault(row.utterance, row.where)
    return f"{len(problems)} of {len(rows)} trials cannot be used; mend or remove them:\n{listing(problems)}"


def to_csv(trials: Trials) -> str:
    """The table as CSV text with the header `COLUMNS`; the same table gives the same bytes."""
    columns = {name: column.tolist() for name, column in vars(trials).items()}
    columns["label"] = [LABELS[0] if bonafide else LABELS[1] for bonafide in columns["is_bonafide"]]
    columns["quality"] = ["" if math.isnan(mos) else repr(mos) for mos in columns["quality"]]
    return csv_text([COLUMNS, *zip(*(columns[name] for name in COLUMNS), strict=True)])


def read(path: Path) -> Trials:
    """Read a table that `to_csv` wrote. Raises InputError, with the line, for another file."""
    if not path.is_file():
        raise InputError(f"{path}: no trial table there; run `dvc repro prepare`")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header) != COLUMNS:
                expected = ",".join(COLUMNS)
                raise InputError(f"{path}:1: expected the columns {expected}, got {','.join(header)}; run `dvc repro`")
            return from_rows(_rows(path, reader), source=str(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a trial table as CSV in UTF-8; {error}; run `dvc repro prepare`") from None


def _rows(path: Path, reader: Iterator[list[str]]) -> Iterator[Row]:
    name = str(path)
    for number, cells in _numbered(path, reader):
        if len(cells) != len(COLUMNS):
            raise InputError(
                f"{path}:{number}: expected {len(COLUMNS)} cells, got {len(cells)}; run `dvc repro prepare`"
            )
        if "'" in "".join(cells):
            cells = [plain_cell(cell) for cell in cells]
        utterance, file, speaker, label, attack, codec, vocoder, quality, content = cells
        where = f"{name}:{number}"
        yield Row(where, utterance, file, label, speaker, attack, quality, content, codec, vocoder)


def _numbered(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, each with the number of its line. No cell of a table goes over several lines."""
    number = 1
    try:
        for number, cells in enumerate(reader, start=2):
            yield number, cells
    except csv.Error as error:
        raise InputError(f"{path}:{number + 1}: not valid CSV: {error}; run `dvc repro prepare`") from None


def read_text(path: Path) -> str:
    """Read UTF-8 text, with or without a byte order mark; every kind of line end becomes \\n.

    Raises InputError for other bytes.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}: expected UTF-8 text, got byte {byte:#x}; save it as UTF-8") from None


def fingerprint(trials: Trials) -> str:
    """Sixteen hex digits over the ordered utterances and the bytes of their files. Labels are not part of it."""
    digest = hashlib.sha256()
    for utterance, content in zip(trials.utterance, trials.content, strict=True):
        digest.update(f"{utterance}\t{content}\n".encode())
    return digest.hexdigest()[:16]
