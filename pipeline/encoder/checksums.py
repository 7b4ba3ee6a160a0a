"""Checksums that take a while, remembered from one command to the next in the user's cache folder.

A file is known by its path, size and times: of its content and, which nobody sets by hand, of its last change of any
kind. What changed moments ago is not remembered: a second change may leave the same times.
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

SETTLED_S = 2.0  # the coarsest times of a file system in use
MOST = 100  # checksums that are kept

# Of each file: path as given, path without links, size, inode, times of the last change of content and of any kind (ns)
Facts = Sequence[tuple[str, str, int, int, int, int]]


def facts(files: Sequence[Path]) -> Facts:
    """What is known of files, to be asked before they are read. Empty for none, and where one is not there."""
    try:
        return [_facts(file) for file in files]
    except OSError:
        return []


def checksum(before: Facts, *, by: str, compute: Callable[[], str]) -> str:
    """What `compute` gives, or gave, for what was read of some files.

    Args:
        before: of all that the checksum depends on, from before it was read; nothing is remembered of no files, or
            where they have changed since. by: how it is computed.
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
        with contextlib.suppress(OSError):  # a home that may not be written to: computed again next time
            write_text(_place(), json.dumps(known, indent=1) + "\n")
    return known[key]


def _facts(file: Path) -> tuple[str, str, int, int, int, int]:
    place = file.resolve()
    found = place.stat()
    return str(file.absolute()), str(place), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _known() -> dict[str, str]:
    try:
        found = read_json(_place(), what="list of checksums", remedy="delete it")
    except InputError:  # none yet, or damaged: computed again
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bonafide" / "checksums.json"
