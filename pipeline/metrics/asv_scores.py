"""Scores of a speaker verification system (ASV), which the t-DCF needs: the layouts of the ASVspoof packages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core import trial_table
from pipeline.core.errors import SHOWN, InputError, listing
from pipeline.corpora._formats import ALL, PHASES
from pipeline.metrics import layouts
from pipeline.metrics.scorefile import numbers, of_comma

ASV_LAYOUT, ASV_KINDS = "source kind score", ("target", "nontarget", "spoof")
ASV_LAYOUT_2021 = "speaker utterance score"
ASV_KEY = "speaker utterance codec transmission source kind trim phase"

ASV_LIST_2019 = "speaker utterance source kind"

Rows = list[tuple[int, list[str]]]  # number and cells of each line


class AsvScores(NamedTuple):
    """Scores of a speaker verification system by the kind of trial, (M,) float64 each."""

    target: NDArray[np.float64]
    nontarget: NDArray[np.float64]
    spoof: NDArray[np.float64]


def read_asv(
    path: Path, *, attacks: Collection[str] = (), key: Path | None = None, phase: str | None = None
) -> AsvScores:
    """Read scores of a speaker verification system, in one of two layouts.

    2019: lines `source kind score`. kind is target, nontarget or spoof; source is bonafide, or the attack of a spoof.
    2021 LA: lines `speaker utterance score`, with a key whose lines are `speaker utterance codec transmission source
    kind trim phase`; speaker is whom the utterance claims to be. phase: whose trials count; "all" for every one, None
    where the key has one phase only. attacks: of the trials that the rates are for, where they are known.

    Raises InputError, with file and line, for lines that do not fit and scores that are not finite; for scores and
    lines of the key without the other; for a kind without scores; and for scores of other attacks.
    """
    rows = _rows(path)
    if key is not None:
        rows = _with_key(path, rows, _key(key, phase))
    elif rows and len(rows[0][1]) == 3 and rows[0][1][1] not in ASV_KINDS:
        raise InputError(_without_key(path, *rows[0]))
    faults = [
        f"{path}:{number}: expected `{ASV_LAYOUT}` with the kind {', '.join(ASV_KINDS)}, got {' '.join(cells)!r}"
        for number, cells in rows
        if len(cells) != 3 or cells[1] not in ASV_KINDS
    ]
    if not faults:
        score, bad = numbers([cells[0] for _, cells in rows], [cells[2] for _, cells in rows])
        faults = [
            f"{path}:{rows[i][0]}: expected a finite score, got {rows[i][1][2]!r}{of_comma(rows[i][1][2])}"
            for i, _ in bad
        ]
    if faults:
        raise InputError(f"{len(faults)} lines cannot be used; mend or remove them:\n{listing(faults)}")
    kinds = [cells[1] for _, cells in rows]
    if absent := [kind for kind in ASV_KINDS if kind not in kinds]:
        raise InputError(f"{path}: expected scores of every kind in {', '.join(ASV_KINDS)}, got none of {absent[0]}")
    _check_attacks(path, rows, set(attacks))
    return AsvScores(*(score[np.array(kinds) == kind] for kind in ASV_KINDS))


def _rows(path: Path) -> Rows:
    """Number and cells of every line that is not blank."""
    if not path.is_file():
        raise InputError(f"{path}: no ASV score file there")
    return list(layouts.rows(path, trial_table.read_text(path).split("\n"), 0, None))


def _without_key(path: Path, number: int, cells: Sequence[str]) -> str:
    """The message for scores of 2021 that come without their key."""
    usual = path.parent.parent / "trial_metadata.txt"
    return (
        f"{path}:{number}: expected `{ASV_LAYOUT}` with the kind {', '.join(ASV_KINDS)}, got {' '.join(cells)!r}; for "
        "ASV scores of ASVspoof 2021 LA, `speaker utterance score`, give --asv-key "
        f"{usual if usual.is_file() else 'keys/LA/ASV/trial_metadata.txt'}"
    )


def check_no_list(path: Path) -> None:
    """Raise InputError where a file lists the trials of an ASV, and is no key of a countermeasure."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            cells = line.split()
            if cells and not _is_of_2019(cells):
                return
            if cells and cells[3] != "spoof":
                raise InputError(
                    f"{path}:{number}: expected the class bonafide or spoof, got {cells[3]!r}: the file lists the ASV "
                    "trials of ASVspoof 2019 LA or SASV 2022; give the list of the countermeasure, such as "
                    "ASVspoof2019.LA.cm.eval.trl.txt"
                )


def _is_of_2019(cells: Sequence[str]) -> bool:
    """Whether cells are a line of a list of ASV trials of ASVspoof 2019 LA, which SASV 2022 has too."""
    return len(cells) == len(ASV_LIST_2019.split()) and cells[3] in ASV_KINDS


def _key(path: Path, phase: str | None) -> dict[tuple[str, str], tuple[str, str] | None]:
    """Source and kind of each speaker and utterance; None for a trial of another phase."""
    found: dict[tuple[str, str], tuple[str, str] | None] = {}
    faults: list[str] = []
    phases = set()
    for number, cells in _rows(path):
        if _is_of_2019(cells):
            raise InputError(
                f"{path}:{number}: expected `{ASV_KEY}`, got {' '.join(cells)!r}, a line `{ASV_LIST_2019}` of the ASV "
                f"trials of ASVspoof 2019 LA or SASV 2022; ASV scores of these need no key: give lines `{ASV_LAYOUT}` "
                "without --asv-key"
            )
        if len(cells) != len(ASV_KEY.split()) or cells[5] not in ASV_KINDS or cells[7] not in PHASES:
            faults.append(f"{path}:{number}: expected `{ASV_KEY}`, got {' '.join(cells)!r}")
            continue
        phases.add(cells[7])
        trial = (cells[4], cells[5]) if phase in (None, ALL, cells[7]) else None
        if found.setdefault((cells[0], cells[1]), trial) != trial:
            faults.append(f"{path}:{number}: {cells[0]} {cells[1]} stands above as another kind of trial")
    if faults:
        raise InputError(f"{len(faults)} lines of the ASV's key cannot be used:\n{listing(faults)}")
    if phase is None and len(phases) > 1:
        raise InputError(
            f"{path}: expected ASV trials of one phase, got {', '.join(sorted(phases))}; give the ASVspoof 2021 LA key "
            "with --key, and --split, so that the ASV is measured on the phase that is scored"
        )
    return found


def _with_key(path: Path, rows: Rows, key: dict[tuple[str, str], tuple[str, str] | None]) -> Rows:
    """The rows of the phase, as lines of the layout of 2019."""
    faults = [
        f"{path}:{number}: expected `{ASV_LAYOUT_2021}` of a trial of the ASV's key, got {' '.join(cells)!r}"
        for number, cells in rows
        if len(cells) != 3 or (cells[0], cells[1]) not in key
    ]
    if faults:
        raise InputError(f"{len(faults)} lines have no trial in the ASV's key:\n{listing(faults)}")
    scored = {(cells[0], cells[1]) for _, cells in rows}
    if missing := [" ".join(pair) for pair, trial in key.items() if trial and pair not in scored]:
        raise InputError(f"{path}: {len(missing)} trials of the ASV's key have no score:\n{listing(missing)}")
    found = ((number, key[cells[0], cells[1]], cells[2]) for number, cells in rows)
    return [(number, [*trial, score]) for number, trial, score in found if trial]


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
