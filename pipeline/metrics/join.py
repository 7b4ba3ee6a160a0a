"""A score file joined with a key or a trial table: one score for each trial, or an error that names those missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import LABELS, UNKNOWN, Trials
from pipeline.metrics.scorefile import ScoreFile, parse

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a")


@dataclass(frozen=True, eq=False)
class JoinedScores:
    """scores: (N,) float64 in the order of N trials. surplus: utterances with a score that are none of the trials."""

    scores: NDArray[np.float64]
    surplus: list[str]


def join(found: ScoreFile, trials: Trials, *, remedy: str) -> JoinedScores:
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
    return JoinedScores(found.score[rows], surplus)


def _contradictions(found: ScoreFile, trials: Trials, rows: NDArray[np.intp]) -> list[str]:
    """Lines of a 2019 file with another class or attack than the trial has; an unknown attack contradicts nothing."""
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
    return f"{path}: " + "\n".join([*parts, *_hints(missing, surplus), remedy])


def _hints(missing: Sequence[str], surplus: Sequence[str]) -> Iterator[str]:
    """A hint where names differ only by the suffix of an audio file, the folder before them, or a comma after them."""
    scored, wanted = set(surplus), set(missing)
    for suffix in AUDIO_SUFFIXES:
        if any(name + suffix in scored for name in missing):
            yield f"the names of the scores end in {suffix}, those of the trials do not; write them alike"
        if any(name + suffix in wanted for name in surplus):
            yield f"the names of the trials end in {suffix}, those of the scores do not; write them alike"
    trials = {_parts(name)[1]: name for name in missing}
    for name in surplus:
        folder, file = _parts(name)
        if file in trials and _parts(trials[file])[0] != folder:
            yield f"{name} of the scores and {trials[file]} of the trials have another folder; write them alike"
            break
    if any(f"{name}," in scored for name in missing):
        yield "the names of the scores end in a comma; give --columns utterance=1,score=2"


def _parts(name: str) -> tuple[str, str]:
    """The folder before a name, and the name without the suffix of an audio file."""
    folder, slash, file = name.replace("\\", "/").rpartition("/")
    suffix = next((suffix for suffix in AUDIO_SUFFIXES if file.endswith(suffix)), "")
    return folder + slash, file.removesuffix(suffix)


def read_views(folder: Path, trials: Trials) -> dict[str, NDArray[np.float64]]:
    """Read the scores (N,) of a set by view, as `scorefile.write_views` puts them into a folder, which may be missing.

    Raises as `read`.
    """
    return {file.stem: read(file, trials) for file in sorted(folder.glob("*.txt"))}


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
