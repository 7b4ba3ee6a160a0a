"""The trial table: which utterances a set holds and what is known of each.

A table is a frozen record of NumPy columns, one row a trial, in the order of the protocol. `from_rows` makes it and
checks everything that can be checked without opening audio.
"""

from __future__ import annotations

import csv
import hashlib
import io
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, listing

LABELS = ("bonafide", "spoof")
COLUMNS = ("utterance", "path", "speaker", "label", "attack", "quality", "content")
UNKNOWN = "-"
MOS_RANGE = (1.0, 5.0)


@dataclass(frozen=True)
class Row:
    """One trial as an adapter read it; `where` names its file and line for error messages."""

    where: str
    utterance: str
    path: str
    label: str
    speaker: str = UNKNOWN
    attack: str = UNKNOWN
    quality: str = ""
    content: str = ""


@dataclass(frozen=True)
class Trials:
    """N trials, column by column.

    utterance, path, speaker, attack: (N,) str. `path` is relative to the corpus root, with forward slashes;
    speaker and attack are "-" where unknown or bona fide.
    is_bonafide: (N,) bool. quality: (N,) float64, MOS in 1..5, nan where unknown.
    content: (N,) str, digest of the audio file's bytes; empty until `prepare` has read it.
    """

    utterance: NDArray[np.str_]
    path: NDArray[np.str_]
    speaker: NDArray[np.str_]
    is_bonafide: NDArray[np.bool_]
    attack: NDArray[np.str_]
    quality: NDArray[np.float64]
    content: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.utterance)


def _mos(text: str) -> float:
    """MOS from a cell; empty is unknown (nan). Raises ValueError outside 1..5."""
    if text in ("", UNKNOWN, "nan"):
        return float("nan")
    value = float(text)
    if not MOS_RANGE[0] <= value <= MOS_RANGE[1]:
        raise ValueError
    return value


def _problem(row: Row) -> str | None:
    """What is wrong with one row, or None."""
    if not row.utterance or any(c.isspace() for c in row.utterance):
        return f"expected an utterance name without white space, got {row.utterance!r}"
    if row.label not in LABELS:
        return f"utterance {row.utterance}: expected label bonafide or spoof, got {row.label!r}"
    # Lexical on purpose: a link below the root is the user's own doing, a manifest may come from anywhere.
    clean = posixpath.normpath(row.path.replace("\\", "/"))
    if not row.path or clean in (".", "..") or clean.startswith(("/", "../")) or clean[1:2] == ":":
        return f"utterance {row.utterance}: expected a path below the corpus root, got {row.path!r}"
    try:
        _mos(row.quality)
    except ValueError:
        return f"utterance {row.utterance}: expected a quality (MOS) from 1 to 5 or nothing, got {row.quality!r}"
    return None


def from_rows(rows: Iterable[Row], *, source: str) -> Trials:
    """Check rows and gather them into a table.

    Raises InputError, with all problems by file and line, for a label, path, name or quality that is not valid, an
    utterance listed twice, no trials at all, or only one of the two classes.
    """
    kept = list(rows)
    problems: list[str] = []
    first: dict[str, str] = {}
    for row in kept:
        problem = _problem(row)
        if problem is None and row.utterance in first:
            problem = f"utterance {row.utterance} is listed twice, first at {first[row.utterance]}"
        if problem is not None:
            problems.append(f"{row.where}: {problem}")
        first.setdefault(row.utterance, row.where)
    if problems:
        raise InputError(
            f"{len(problems)} of {len(kept)} trials cannot be used; mend or remove them:\n{listing(problems)}"
        )
    found = {row.label for row in kept}
    if found != set(LABELS):
        have = f"only {found.pop()}" if found else "no trials"
        raise InputError(
            f"{source}: expected bona fide and spoof trials, got {have}; check the split and the label column"
        )
    return Trials(
        utterance=np.array([row.utterance for row in kept]),
        path=np.array([posixpath.normpath(row.path.replace("\\", "/")) for row in kept]),
        speaker=np.array([row.speaker or UNKNOWN for row in kept]),
        is_bonafide=np.array([row.label == "bonafide" for row in kept]),
        attack=np.array([row.attack or UNKNOWN for row in kept]),
        quality=np.array([_mos(row.quality) for row in kept]),
        content=np.array([row.content for row in kept]),
    )


def to_csv(trials: Trials) -> str:
    """The table as CSV text with the header `COLUMNS`; the same table gives the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in range(len(trials)):
        quality = trials.quality[i]
        writer.writerow(
            (
                trials.utterance[i],
                trials.path[i],
                trials.speaker[i],
                LABELS[0] if trials.is_bonafide[i] else LABELS[1],
                trials.attack[i],
                "" if np.isnan(quality) else repr(float(quality)),
                trials.content[i],
            )
        )
    return text.getvalue()


def read(path: Path) -> Trials:
    """Read a table that `to_csv` made. Raises InputError, with the line, where it is not one."""
    if not path.is_file():
        raise InputError(f"{path}: no trial table there; run `dvc repro prepare`")
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}:1: expected the columns {','.join(COLUMNS)}, got {','.join(reader.fieldnames or ())}")
    rows = [Row(where=f"{path}:{reader.line_num}", **{name: cells[name] or "" for name in COLUMNS}) for cells in reader]
    return from_rows(rows, source=str(path))


def read_text(path: Path) -> str:
    """UTF-8 text of a table, whoever wrote it. Raises InputError for other bytes."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}: expected UTF-8 text, got byte {byte:#x}; save it as UTF-8") from None


def fingerprint(trials: Trials) -> str:
    """Sixteen hex digits over the ordered utterances and the bytes of their files; labels do not change features."""
    digest = hashlib.sha256()
    for utterance, content in zip(trials.utterance, trials.content, strict=True):
        digest.update(f"{utterance}\t{content}\n".encode())
    return digest.hexdigest()[:16]
