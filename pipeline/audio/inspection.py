"""Check every audio file of a trial table: find it, decode it, and note the digest of its bytes.

All files that cannot be used are found here and reported together, before hours of computing.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.audio import decode
from pipeline.core import ahead
from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import Trials

THREADS = min(max(4, os.cpu_count() or 1), 32)  # decoding releases the interpreter lock, and some threads wait for disk
AHEAD = 16  # for each worker: items that are in work, or done and not yet taken

OnBadAudio = Literal["fail", "skip"]
Say = Callable[[str], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


def with_contents(
    table: Trials, root: Path, *, on_bad_audio: OnBadAudio = "fail", say: Say = lambda _line: None
) -> Trials:
    """Return the table with the digest of every audio file. Each file is read and decoded once.

    Args:
        on_bad_audio: `skip` drops the trials whose audio is missing or cannot be used; `fail` raises an error.
        say: prints which trials were dropped, how many files belong to no trial, and how many PyAV decoded.

    Raises InputError with all files that are missing, or with all that cannot be used (`fail`); and where all trials of
    a class are dropped (`skip`).
    """
    there = _look_up(table, root, say=say)
    missing = [f"utterance {table.utterance[row]}: {root / str(table.path[row])}" for row in np.flatnonzero(~there)]
    if missing:
        problem = Problem("are missing", "check `root` of the set, the paths in its protocol, and the copy", missing)
        table = _without(table, there, problem, on_bad_audio=on_bad_audio, say=say)
    contents, unusable, by_pyav = _read_all(table, root)
    if by_pyav:
        say(f"audio files that libsndfile cannot decode, decoded by PyAV: {by_pyav} of {len(table)}")
    table = dataclasses.replace(table, content=np.array(contents))
    if unusable:
        problem = Problem("cannot be used", "mend or replace them", unusable)
        table = _without(table, table.content != "", problem, on_bad_audio=on_bad_audio, say=say)
    return table


class Problem(NamedTuple):
    """A problem of some audio files, its remedy, and one line for each file."""

    what: str
    remedy: str
    lines: list[str]


def _without(table: Trials, good: NDArray[np.bool_], problem: Problem, *, on_bad_audio: OnBadAudio, say: Say) -> Trials:
    """Keep the trials that `good` (N,) marks. Raises InputError where others may not be dropped, or a class is lost."""
    message = f"{len(problem.lines)} of {len(table)} audio files {problem.what}:\n{listing(problem.lines)}"
    if on_bad_audio == "fail":
        raise InputError(f"{message}\n{problem.remedy}; or drop these trials: on_bad_audio: skip")
    kept = table.take(good)
    bonafide = int(kept.is_bonafide.sum())
    if not 0 < bonafide < len(kept):
        left = f"{bonafide} bona fide and {len(kept) - bonafide} spoof trials"
        raise InputError(f"{message}\nexpected trials of both classes without these, got {left}; {problem.remedy}")
    say(f"{message}\nthese trials are dropped (on_bad_audio: skip)")
    return kept


def _look_up(table: Trials, root: Path, *, say: Say) -> NDArray[np.bool_]:
    """Which trials have an audio file, (N,) bool. Each folder is listed once, which is faster than asking by file."""
    named: dict[str, set[str]] = {}
    for path in table.path.tolist():
        folder, name = posixpath.split(path)
        named.setdefault(folder, set()).add(name)
    there = {folder: _files(root / folder) for folder in named}
    extra = sum(_is_audio(name) for folder, names in there.items() for name in names - named[folder])
    if extra:
        say(f"audio files in the same folders that no trial names, ignored: {extra}")
    places = (posixpath.split(path) for path in table.path.tolist())
    return np.array([name in there[folder] for folder, name in places], dtype=np.bool_)


def _files(folder: Path) -> set[str]:
    """The names of the files in a folder; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _is_audio(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in decode.SUFFIXES


def _read_all(table: Trials, root: Path) -> tuple[list[str], list[str], int]:
    """The N digests, empty for audio that cannot be used; a line for each of these; the number that PyAV decoded."""

    def read(row: int) -> tuple[str, str, bool]:
        try:
            found = decode.read(root / str(table.path[row]))
        except InputError as error:
            return "", f"utterance {table.utterance[row]}: {error}", False
        return found.content, "", found.decoder == "PyAV"

    contents: list[str] = []
    problems: list[str] = []
    by_pyav = 0
    with closing(ahead.in_order(read, range(len(table)), threads=THREADS, ahead=AHEAD * THREADS)) as results:
        for content, problem, pyav in tqdm(results, total=len(table), unit="file", disable=None):
            contents.append(content)
            problems += [problem] if problem else []
            by_pyav += pyav
    return contents, problems, by_pyav
