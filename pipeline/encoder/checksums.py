"""Slow checksums, remembered in the user's cache folder from one command to the next.

A file counts as unchanged while its path, size, inode and two times stay the same: the time when its content changed,
and the time when anything about it changed, which no program sets at will. A file that changed moments ago is not
remembered, because a second change could leave the same times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import read_json, write_text

SETTLED_S = 2.0  # seconds; some file systems keep times no finer than this
MOST = 100  # checksums that are kept

# For each file: path as given, path without links, size, inode, times of the change of content and of any change (ns)
FileFacts = Sequence[tuple[str, str, int, int, int, int]]


def facts(files: Sequence[Path]) -> FileFacts:
    """The facts of some files; ask for them before you read the files. Empty where one of the files is missing."""
    try:
        return [_facts(file) for file in files]
    except OSError:
        return []


def checksum(before: FileFacts, *, by: str, compute: Callable[[], str]) -> str:
    """The result of `compute`, remembered while the files that it depends on do not change.

    Args:
        before: the facts of these files, from before they were read. Nothing is remembered where this is empty, or
            where the files have changed since. by: names the way of computing; another name is computed again.
    """
    if not before or any(abs(time.time() - when / 1e9) < SETTLED_S or when > time.time_ns() for *_, when in before):
        return compute()
    key = hashlib.sha256(json.dumps([by, before]).encode()).hexdigest()
    known = _known()
    same = facts([Path(place) for place, *_ in before]) == before
    if not same or key not in known:
        found = compute()
        if not same or facts([Path(place) for place, *_ in before]) != before:
            return found
        known = dict(list(known.items())[-MOST + 1 :]) | {key: found}
        with contextlib.suppress(OSError):  # the folder is read-only: compute it again next time
            write_text(_place(), json.dumps(known, indent=1) + "\n")
    return known[key]


def _facts(file: Path) -> tuple[str, str, int, int, int, int]:
    place = file.resolve()
    found = place.stat()
    return str(file.absolute()), str(place), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _known() -> dict[str, str]:
    try:
        found = read_json(_place(), what="list of checksums", remedy="delete it")
    except InputError:  # there is none yet, or it is damaged: compute again
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bonafide" / "checksums.json"
