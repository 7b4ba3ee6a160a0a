"""When something was made and by which commit, for files that are no results, as data/seconds.

Results hold neither, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

WAIT = 10  # seconds for an answer of git


def stamp() -> dict[str, str]:
    """The date and time in UTC, as `2026-01-31T12:00:00Z`, and the commit of the current folder, where git knows one.

    A commit followed by + is one with changes since. Lock files do not count: DVC writes them while stages run.
    """
    now = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return now
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)*dvc.lock")
    return now | {"commit": f"{commit}+" if changed else commit}


def _git(*words: str) -> str:
    """What git says, nothing where it fails or is not installed."""
    try:
        said = subprocess.run(("git", *words), capture_output=True, text=True, timeout=WAIT, check=True)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()
