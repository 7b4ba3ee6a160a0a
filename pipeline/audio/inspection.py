"""Check every audio file of a trial table: find it, decode it, and note the digest of its bytes.

All files that cannot be used are found here and reported together, before hours of computing. So are doubtful samples,
and one file under several names, which its digest tells.
"""

from __future__ import annotations

import dataclasses
import os
import re
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.audio import decode, lookup
from pipeline.audio.lookup import Say
from pipeline.core import ahead
from pipeline.core.errors import InputError, listing
from pipeline.core.sections import MEAN, Channel
from pipeline.core.trial_table import LABELS, Trials

THREADS = min(max(4, os.cpu_count() or 1), 32)  # decoding releases the interpreter lock, and some threads wait for disk
AHEAD = 16  # for each worker: items that are in work, or done and not yet taken

OnBadAudio = Literal["fail", "skip"]


def with_contents(
    table: Trials,
    root: Path,
    *,
    on_bad_audio: OnBadAudio = "fail",
    normalized: bool = True,
    channel: Channel = MEAN,
    protocol: Path | None = None,
    say: Say = lambda _line: None,
) -> Trials:
    """Return the table with the digest of every audio file. Each file is read and decoded once.

    Args:
        on_bad_audio: `skip` drops the trials whose audio is missing or cannot be used; `fail` raises an error.
        channel: the channel that is heard; it becomes part of the content unless it is the mean.
        normalized: whether the encoder normalizes its input. If not, audio of doubtful scale cannot be used.
        protocol: the file that lists the trials; messages name its lines.
        say: prints which trials were dropped, how many files belong to no trial, how many PyAV decoded, which
            have doubtful samples, and how many trials have the audio of another one.

    Raises InputError with all files that are missing, or with all that cannot be used (`fail`); where all trials of
    a class are dropped (`skip`); where one file is listed as bona fide and as spoof.
    """
    there = lookup.look_up(table, root, say=say)
    if missing := lookup.missing(table, root, there):
        problem = Problem("are missing", "check `root` of the set, the paths in its protocol, and the copy", missing)
        table = _without(table, there, problem, on_bad_audio=on_bad_audio, say=say)
    contents, unusable, doubtful, by_pyav = _read_all(table, root, normalized=normalized, channel=channel)
    if by_pyav:
        say(f"audio files that libsndfile cannot decode, decoded by PyAV: {by_pyav} of {len(table)}")
    if doubtful:
        say(f"warning: the samples of {len(doubtful)} of {len(table)} audio files are doubtful:\n{listing(doubtful)}")
    table = dataclasses.replace(table, content=np.array(contents))
    if unusable:
        problem = Problem("cannot be used", "mend or replace them", unusable)
        table = _without(table, table.content != "", problem, on_bad_audio=on_bad_audio, say=say)
    _check_repeated(table, protocol, say=say)
    return table


def _check_repeated(table: Trials, protocol: Path | None, *, say: Say) -> None:
    """Say how many trials have the audio of another one. Raises InputError where their labels contradict each other."""
    rows: dict[str, list[int]] = {}
    for row, content in enumerate(table.content.tolist()):
        rows.setdefault(content, []).append(row)
    repeated = [same for same in rows.values() if len(same) > 1]
    labels = table.is_bonafide
    against = [(same[0], next(row for row in same if labels[row] != labels[same[0]])) for same in repeated
               if len({bool(labels[row]) for row in same}) > 1]  # fmt: skip
    if against:
        places = _lines(protocol, {str(table.utterance[row]) for pair in against for row in pair})
        told = [" and ".join(_told(table, row, places) for row in pair) for pair in against]
        raise InputError(
            f"{len(against)} audio files are listed as bona fide and as spoof (the bytes are the same):\n"
            f"{listing(told)}\ncorrect the labels, or remove one line of each pair"
        )
    if repeated:
        trials = sum(len(same) for same in repeated)
        told = [f"{table.utterance[first]} and {table.utterance[second]}" for first, second, *_ in repeated]
        say(
            f"warning: {trials} of {len(table)} trials have the same audio as others, byte by byte; different files: "
            f"{len(repeated)}\n{listing(told)}"
        )


def _told(table: Trials, row: int, places: dict[str, str]) -> str:
    """A trial with its label, path and line."""
    utterance, label = str(table.utterance[row]), LABELS[0] if table.is_bonafide[row] else LABELS[1]
    return f"{places.get(utterance, '')}utterance {utterance}, {label}, {table.path[row]}"


def _lines(protocol: Path | None, utterances: set[str]) -> dict[str, str]:
    """`file:line: ` of the first line that names each utterance, or else a file of its name."""
    if protocol is None or not protocol.is_file():
        return {}
    named: dict[str, str] = {}
    paths: dict[str, str] = {}
    for number, line in enumerate(protocol.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        for word in {*re.split(r"[\s,;|\"]+", line), *map(str.strip, re.split(r"[\t,;|\"]+", line))}:
            for name, found in ((word, named), (PurePosixPath(word).stem, paths)):
                if name in utterances:
                    found.setdefault(name, f"{protocol}:{number}: ")
    return paths | named


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


class _Reading(NamedTuple):
    """What was found in one file: its digest, empty where it cannot be used; why not; what is doubtful; who decoded."""

    content: str
    problem: str = ""
    doubt: str = ""
    by_pyav: bool = False


def _read_all(
    table: Trials, root: Path, *, normalized: bool, channel: Channel
) -> tuple[list[str], list[str], list[str], int]:
    """The N digests, empty for audio that cannot be used; a line for each of these; a line for each file with doubtful
    samples; the number of files that PyAV decoded.
    """

    def read(row: int) -> _Reading:
        path, name = root / str(table.path[row]), f"utterance {table.utterance[row]}"
        try:
            found = decode.read(path, channel=channel, keep=0)
        except InputError as error:
            return _Reading("", problem=f"{name}: {error}")
        doubt = f"{name}: {path}: {'; '.join(found.warnings)}" if found.warnings else ""
        if doubt and not normalized:
            return _Reading("", problem=f"{doubt} (encoder.normalize is none)")
        return _Reading(found.content, doubt=doubt, by_pyav=found.decoder == "PyAV")

    with closing(ahead.in_order(read, range(len(table)), threads=THREADS, ahead=AHEAD * THREADS)) as results:
        found = list(tqdm(results, total=len(table), unit="file", disable=None))
    problems = [one.problem for one in found if one.problem]
    doubts = [one.doubt for one in found if one.doubt]
    return [one.content for one in found], problems, doubts, sum(one.by_pyav for one in found)
