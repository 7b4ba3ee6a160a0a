"""The quality (MOS) of every utterance of a table, estimated once and kept in a CSV cache.

Each estimate is appended to the cache as one line, and the file is never rewritten. So a run that was killed continues
where it stopped; an unfinished last line is removed. A line is used for the same utterance, the same bytes of its file
and the same version of the estimator. Other lines stay, and older parameters find them again. The cache must not be an
output of DVC, which deletes outputs before a stage runs.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.audio import decode
from pipeline.audio.inspection import AHEAD
from pipeline.core import ahead, files
from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import MOS_RANGE, Trials

HEADER = "utterance,content,estimator,mos\n"
DIGITS = 4  # of a MOS; finer ones differ between processors
WORKERS = os.cpu_count() or 1  # an estimator uses one processor and does not hold the interpreter lock

Key = tuple[str, str]  # utterance, digest of its file's bytes


def with_quality(table: Trials, root: Path, *, estimator: Any, cache: Path) -> Trials:
    """Return the table with the estimated quality, or unchanged where the corpus itself gives it.

    Args:
        table: with the digests of the audio files.
        estimator: a member of `pipeline.quality`.
        cache: the CSV file of estimates; it and its folder are made where they are missing.

    Raises InputError with all utterances whose audio cannot be read or whose estimate is no MOS. The other estimates
    are kept in the cache.
    """
    if estimator.estimate is None:
        return table
    identity = estimator.identity()
    known = _read(cache, identity)
    keys: list[Key] = list(zip(table.utterance.tolist(), table.content.tolist(), strict=True))
    todo = [row for row, key in enumerate(keys) if key not in known]
    if todo:
        known |= _estimate_all(table, root, rows=todo, estimator=estimator, identity=identity, cache=cache)
    return dataclasses.replace(table, quality=np.array([known[key] for key in keys]))


def _estimate_all(
    table: Trials, root: Path, *, rows: list[int], estimator: Any, identity: str, cache: Path
) -> dict[Key, float]:
    """Estimate the rows by several threads and append them to the cache in their order."""

    def outcome(row: int) -> float | str:
        return _estimate(table, row, root=root, estimator=estimator)

    found: dict[Key, float] = {}
    problems: list[str] = []
    line_by_line = cache.open("a", encoding="utf-8", newline="", buffering=1)
    with (
        closing(ahead.in_order(outcome, rows, threads=WORKERS, ahead=AHEAD * WORKERS)) as results,
        line_by_line as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        bar = tqdm(results, total=len(rows), unit="utt", disable=None)
        for row, result in zip(rows, bar, strict=True):
            if isinstance(result, str):
                problems.append(result)
                continue
            key = str(table.utterance[row]), str(table.content[row])
            with files.writing(cache):
                writer.writerow([files.safe_cell(cell) for cell in (*key, identity, result)])
            found[key] = result
    if problems:
        raise InputError(
            f"the quality of {len(problems)} of {len(table)} utterances could not be estimated:\n{listing(problems)}\n"
            f"mend or remove these; what was estimated is kept in {cache}"
        )
    return found


def _estimate(table: Trials, row: int, *, root: Path, estimator: Any) -> float | str:
    """The MOS of one utterance, or a message about it. Errors of the estimator itself are raised."""
    name = f"utterance {table.utterance[row]}"
    try:
        samples = decode.load(root / str(table.path[row]), content=str(table.content[row]))
    except InputError as error:
        return f"{name}: {error}"
    try:
        mos = round(float(estimator.estimate(samples)), DIGITS)
    except Exception as error:
        error.add_note(f"while the quality of {name} was estimated")
        raise
    lowest, highest = MOS_RANGE
    return mos if lowest <= mos <= highest else f"{name}: expected a MOS from {lowest:g} to {highest:g}, got {mos}"


def _read(cache: Path, identity: str) -> dict[Key, float]:
    """Read the estimates of one estimator. A missing cache is begun, and an unfinished last line is removed.

    Raises InputError, with the line, for a file that is no cache of estimates.
    """
    with files.writing(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
    data = cache.read_bytes() if cache.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if HEADER.encode().startswith(data):
        with files.writing(cache):
            cache.write_text(HEADER, encoding="utf-8")
        return {}
    known = _entries(cache, whole, identity)
    if len(whole) < len(data):
        os.truncate(cache, len(whole))
    return known


def _entries(cache: Path, data: bytes, identity: str) -> dict[Key, float]:
    """The estimates of one estimator in the bytes of a cache."""
    known: dict[Key, float] = {}
    lines = csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline=""))
    try:
        if ",".join(next(lines, [])) != HEADER.strip():
            raise ValueError(f"expected the columns {HEADER.strip()}")
        for utterance, content, estimator, mos in lines:
            if estimator == identity:
                known[files.plain_cell(utterance), content] = float(mos)
    except (ValueError, csv.Error) as error:
        line = max(1, lines.line_num)
        raise InputError(f"{cache}:{line}: not a cache of estimates ({error}); move it away") from None
    return known
