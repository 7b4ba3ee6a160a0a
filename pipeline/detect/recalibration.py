"""Threshold, calibration and rule of verdicts by files of one's own; the trained run stays as it is.

A recalibration is one JSON file. It names the run and the fingerprint of its weights, and serves no other. What it
measured is by cross-validation: each file is decided and calibrated by all others, or by 49 in 50 where there are more
than 50 files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.audio import channels
from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json, write_text
from pipeline.core.sections import MEAN, Channel
from pipeline.corpora import manifest
from pipeline.corpora._formats import ALL
from pipeline.detect.assembly import FusedParts, Parts, calibrated_by
from pipeline.detect.detection import Unreadable
from pipeline.detect.hearing import Heard
from pipeline.detect.system import System
from pipeline.metrics import verdicts
from pipeline.metrics.binomial import clopper_pearson
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.cllr import cllr
from pipeline.metrics.eer import eer_of
from pipeline.metrics.verdicts import VerdictRule
from pipeline.scoring import runs

FEWEST = 2  # files of a class: without one of them there must be another
FOLDS = 50  # with up to as many files each is a fold by itself
MOST_BYTES = 2**20
AGAIN = "make it anew with `bonafide calibrate`"
PERCENT_DECIMALS, BIT_DECIMALS = 2, 4


class Recalibration(BaseModel):
    """What detection reads of the file; `measured` is for people, see `measured`.

    windows, channel: see `System`; files from before there was a choice have none, and are of first windows and of the
    mean of the channels.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    format: Literal[1]
    name: str
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    threshold: float
    calibration: Calibration | None
    verdicts: VerdictRule
    measured: dict[str, Any]
    windows: Heard = "first"
    channel: Channel = MEAN


def by_files(system: System, table: Path, *, root: Path, error_rate: float) -> Recalibration:
    """A recalibration by the files of a manifest (`pipeline.corpora.manifest`). root: where its paths begin.

    Raises InputError for a manifest that cannot be used, for files that cannot be scored, naming them, and for fewer
    than two files of a class.
    """
    trials = manifest.trials(root, table, ALL)
    bonafide = int(trials.is_bonafide.sum())
    if min(bonafide, len(trials) - bonafide) < FEWEST:
        raise InputError(
            f"{table}: expected at least {FEWEST} bona fide and {FEWEST} spoof files, better a few dozen of each, got "
            f"{bonafide} and {len(trials) - bonafide}"
        )
    scores = _scores(system, [root / path for path in trials.path.tolist()], table)
    kept, refused = scores[trials.is_bonafide], scores[~trials.is_bonafide]
    return Recalibration(
        format=1,
        name=system.parts.name,
        weights=_state(system.parts),
        threshold=eer_of(scores, trials.is_bonafide).threshold,
        calibration=calibrated_by(kept, refused),
        verdicts=verdicts.fit(kept, refused, error_rate=error_rate),
        measured=measured(scores, trials.is_bonafide),
        windows=system.windows,
        channel=system.channel,
    )


def _state(parts: Parts) -> str:
    """Sixteen hex digits of what gives the scores: the weights, and what was taught; of a fusion all members'."""
    if isinstance(parts, FusedParts):
        told = [*map(_state, parts.members), *map(repr, (*parts.fusion.weights, parts.fusion.offset))]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    weights = runs.fingerprint(parts.run)
    if parts.neighbours is None:
        return weights
    told = [weights, str(parts.neighbours), *(f"{one.name} {one.label} {one.digest}" for one in parts.taught)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _scores(system: System, paths: Sequence[Path], table: Path) -> NDArray[np.float64]:
    """The scores (N,) of files. Raises InputError naming all that have none."""
    found = list(system.scores(paths))
    if wrong := [one.why for one in found if isinstance(one, Unreadable)]:
        raise InputError(
            f"{table}: {len(wrong)} of {len(found)} files could not be scored; mend them, or leave them out of the "
            f"list:\n{listing(wrong)}"
        )
    return np.array(found)


def measured(scores: NDArray[np.float64], is_bonafide: NDArray[np.bool_]) -> dict[str, Any]:
    """How well files (N,) are decided by others of their kind, JSON-ready.

    frr, far: in %, with exact intervals of 95 % confidence for independent decisions, which these nearly are. cllr: in
    bits; None where a fold cannot be calibrated.
    """
    fold = np.empty(len(scores), np.intp)
    fold[np.argsort(is_bonafide, kind="stable")] = np.arange(len(scores)) % FOLDS  # each fold has both classes alike
    accepted, ratios = np.zeros(len(scores), np.bool_), np.full(len(scores), np.nan)
    for held in (fold == number for number in range(fold.max() + 1)):
        others, known = scores[~held], is_bonafide[~held]
        accepted[held] = scores[held] > eer_of(others, known).threshold
        if line := calibrated_by(others[known], others[~known]):
            ratios[held] = line.apply(scores[held])
    found: dict[str, Any] = {"bonafide": int(is_bonafide.sum()), "spoof": int((~is_bonafide).sum())}
    for name, wrong in (("frr", ~accepted[is_bonafide]), ("far", accepted[~is_bonafide])):
        interval = clopper_pearson(int(wrong.sum()), len(wrong))
        found[name] = round(100 * float(wrong.mean()), PERCENT_DECIMALS)
        found[f"{name}_interval"] = [round(100 * end, PERCENT_DECIMALS) for end in (interval.low, interval.high)]
    known_all = bool(np.isfinite(ratios).all())
    found["cllr"] = round(cllr(ratios[is_bonafide], ratios[~is_bonafide]), BIT_DECIMALS) if known_all else None
    return found


def write(path: Path, found: Recalibration) -> None:
    """Write a recalibration. Raises InputError where there is a file already: none is ever replaced."""
    if path.exists():
        raise InputError(f"{path}: there is a file already, and no calibration is replaced; choose another name")
    write_text(path, json.dumps(found.model_dump(), indent=2) + "\n")


def read(path: Path, parts: Parts) -> Recalibration:
    """A recalibration of a system. Raises InputError where the file is none, damaged, or of another system."""
    told = read_json(path, what="calibration", keys=("format",), remedy=AGAIN, most=MOST_BYTES)
    try:
        found = Recalibration.model_validate_json(json.dumps(told))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: not a calibration; {AGAIN}:\n{listing(problems)}") from None
    own = _state(parts)
    if (found.name, found.weights) != (parts.name, own):
        raise InputError(
            f"{path}: expected a calibration of {parts.name} with weights {own}, got one of {found.name} with weights "
            f"{found.weights}; {AGAIN}"
        )
    return found


def applied(parts: Parts, path: Path, *, windows: Heard | None = None, channel: Channel = MEAN) -> Parts:
    """The parts of a system with the threshold, calibration and rule of a file in place of those of dev.

    windows: None for those that the calibration was made with.

    Raises InputError where the file is none, is damaged, or belongs to another run or to another choice of `windows` or
    `channel`.
    """
    found = read(path, parts)
    heard = (windows or found.windows, channels.name_of(channel))
    own_heard = (found.windows, channels.name_of(found.channel))
    for option, asked, had in zip(("--windows", "--channel"), heard, own_heard, strict=True):
        if asked != had:
            raise InputError(
                f"{path}: expected a calibration of {option} {asked}, got one of {option} {had}; give that to detect, "
                f"or {AGAIN} {option} {asked}"
            )
    return dataclasses.replace(
        parts, threshold=found.threshold, calibration=found.calibration, rule=found.verdicts, doubts=()
    )
