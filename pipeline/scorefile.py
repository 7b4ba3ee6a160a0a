"""Score files: one line a trial, `utterance score`, parted by one space; higher means more bona fide.

It is the format of the ASVspoof 2021 keys. The reader never flips a sign and never fills a hole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import InputError, listing
from pipeline.trials import Trials


def write(path: Path, utterances: Sequence[str] | NDArray[np.str_], scores: NDArray[np.floating[Any]]) -> None:
    """Write the scores (N,) of N utterances beside their place and rename the file there.

    A score gets the digits that its type needs to come back exactly. Raises InputError, naming the utterances, for a
    score that is not finite, and ValueError for lengths that differ or a name that the format cannot hold.
    """
    names = [str(name) for name in utterances]
    if scores.shape != (len(names),):
        raise ValueError(f"expected one score for each of {len(names)} utterances, got shape {scores.shape}")
    if unfit := [name for name in names if not name or len(name.split()) != 1 or name != name.strip()]:
        raise ValueError(f"expected utterance names without white space, got {unfit[0]!r}")
    if bad := [f"utterance {names[i]}: {scores[i]}" for i in np.flatnonzero(~np.isfinite(scores))]:
        raise InputError(
            f"{path}: {len(bad)} of {len(names)} scores are not finite; the training has probably diverged, look at "
            f"its loss and lower the learning rate:\n{listing(bad)}"
        )
    # str() of a NumPy scalar is the shortest text that reads back as the same number of its own type.
    text = "".join(f"{name} {score!s}\n" for name, score in zip(names, scores, strict=True))
    files.write_text(path, text)


def read(path: Path, trials: Trials) -> NDArray[np.float64]:
    """Read a score file into the order of the trials: (N,) float64.

    Raises InputError, with file and line, for a line that is not `utterance score`, a score that is not finite and an
    utterance scored twice; and for trials without a score or scores without a trial, with their number and the first.
    """
    found = _parse(path)
    names: list[str] = trials.utterance.tolist()
    missing = [name for name in names if name not in found]
    surplus = found.keys() - set(names) if len(found) + len(missing) > len(names) else set()
    if missing or surplus:
        raise InputError(_mismatch(path, missing, [name for name in found if name in surplus], total=len(names)))
    return np.array([found[name] for name in names], dtype=np.float64)


def _parse(path: Path) -> dict[str, float]:
    """Every score by its utterance, in the file's order."""
    if not path.is_file():
        raise InputError(f"{path}: no score file there; run `dvc repro score`")
    scores: dict[str, float] = {}
    first: dict[str, int] = {}
    problems: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                name, _, text = line.rstrip("\n").partition(" ")
                score = _score(text)
                if name and score is not None and name not in first:
                    scores[name], first[name] = score, number
                else:
                    problems.append(f"{path}:{number}: {_problem(line.rstrip(), first.get(name))}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text with lines `utterance score`; {error}") from None
    if problems:
        raise InputError(f"{len(problems)} lines cannot be used; mend or remove them:\n{listing(problems)}")
    return scores


def _score(text: str) -> float | None:
    """A finite score, or None; float() alone would also take white space around it, and 1_0."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) and "_" not in text and text == text.strip() else None


def _problem(line: str, first: int | None) -> str:
    """What is wrong with a line that `_parse` could not take; `first` is the line that has its utterance already."""
    cells = line.split(" ")
    if len(cells) != 2 or not all(cells):
        return f"expected `utterance score` parted by one space, got {line!r}"
    if _score(cells[1]) is None:
        return f"utterance {cells[0]}: expected a finite score, got {cells[1]!r}"
    return f"utterance {cells[0]} is scored twice, first in line {first}"


def _mismatch(path: Path, missing: Sequence[str], surplus: Sequence[str], *, total: int) -> str:
    parts: list[str] = []
    if missing:
        parts.append(f"{len(missing)} of {total} trials have no score:\n{listing(missing)}")
    if surplus:
        parts.append(f"{len(surplus)} scores belong to no trial:\n{listing(surplus)}")
    remedy = "the file was made for another set or an older trial table; run `dvc repro score` to make it anew"
    return f"{path}: " + "\n".join(parts) + f"\n{remedy}"
