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

from pipeline.errors import InputError
from pipeline.files import read_json, write_text

SETTLED_S = 2.0  # the coarsest times of a file system in use
MOST = 100  # checksums that are kept


def checksum(files: Sequence[Path], *, by: str, compute: Callable[[], str]) -> str:
    """What `compute` gives, or gave, for these files as they are.

    Args:
        files: all that the checksum depends on; none of them: nothing is remembered. by: how it is computed.
    """
    facts = [_facts(file) for file in files]
    if not facts or any(abs(time.time() - when / 1e9) < SETTLED_S or when > time.time_ns() for *_, when in facts):
        return compute()
    key = hashlib.sha256(json.dumps([by, facts]).encode()).hexdigest()
    known = _known()
    if key not in known:
        known = dict(list(known.items())[-MOST + 1 :]) | {key: compute()}
        with contextlib.suppress(OSError):  # a home that may not be written to: computed again next time
            write_text(_place(), json.dumps(known, indent=1) + "\n")
    return known[key]


def _facts(file: Path) -> tuple[str, int, int, int, int]:
    """Path, size, inode, and the times of the last change of content and of any kind in nanoseconds."""
    found = file.resolve().stat()
    return str(file.resolve()), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _known() -> dict[str, str]:
    try:
        found = read_json(_place(), what="list of checksums", remedy="delete it")
    except InputError:  # none yet, or damaged: computed again
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bonafide" / "checksums.json"
