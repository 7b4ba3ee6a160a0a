"""Scores of a speaker verification system (ASV), which the t-DCF needs: the layout of the ASVspoof packages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core import trial_table
from pipeline.core.errors import SHOWN, InputError, listing
from pipeline.metrics.scorefile import numbers

ASV_LAYOUT, ASV_KINDS = "source kind score", ("target", "nontarget", "spoof")


class AsvScores(NamedTuple):
    """Scores of a speaker verification system by the kind of trial, (M,) float64 each."""

    target: NDArray[np.float64]
    nontarget: NDArray[np.float64]
    spoof: NDArray[np.float64]


def read_asv(path: Path, *, attacks: Collection[str] = ()) -> AsvScores:
    """Read scores of a speaker verification system: lines `source kind score`, as ASVspoof 2019 publishes them.

    kind is target, nontarget or spoof; source is bonafide, or the attack of a spoof. attacks: of the trials that the
    rates are for, where they are known.

    Raises InputError, with file and line, for lines that do not fit and scores that are not finite; for a kind without
    scores; and for scores of other attacks.
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
        score, bad = numbers([cells[0] for _, cells in rows], [cells[2] for _, cells in rows])
        faults = [f"{path}:{rows[i][0]}: expected a finite score, got {rows[i][1][2]!r}" for i, _ in bad]
    if faults:
        raise InputError(f"{len(faults)} lines cannot be used; mend or remove them:\n{listing(faults)}")
    kinds = [cells[1] for _, cells in rows]
    if absent := [kind for kind in ASV_KINDS if kind not in kinds]:
        raise InputError(f"{path}: expected scores of every kind in {', '.join(ASV_KINDS)}, got none of {absent[0]}")
    _check_attacks(path, rows, set(attacks))
    return AsvScores(*(score[np.array(kinds) == kind] for kind in ASV_KINDS))


def _check_attacks(path: Path, rows: Sequence[tuple[int, Sequence[str]]], expected: set[str]) -> None:
    """The attacks of the ASV's spoof are those of the trials; a source that bona fide have too names no attack."""
    bonafide = {cells[0] for _, cells in rows if cells[1] != "spoof"} | {trial_table.UNKNOWN, "spoof"}
    found = {cells[0] for _, cells in rows if cells[1] == "spoof"} - bonafide
    if not found or not expected or found == expected:
        return
    differences = [
        f"{len(names)} only {where}: {', '.join(sorted(names)[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for where, names in (("in the file", found - expected), ("in the key", expected - found))
        if names
    ]
    raise InputError(
        f"{path}: expected ASV scores of the attacks of the key, got other attacks ({'; '.join(differences)}); "
        "give the ASV scores of the trials that the key lists, or the rates with --asv-rates"
    )
