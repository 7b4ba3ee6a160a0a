"""Whether anything changed since all was up to date: told by the names, sizes and times of files alone.

DVC resolves the whole flow and looks at every stage, which takes as long as there are cells. So a sweep that ends with
all up to date leaves a note: of every file and folder that a stage reads or makes, and of the files that describe the
flow, the facts by which DVC itself decides whether to read a file again. The next sweep compares them. Where one
differs, DVC looks at everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.files import write_text

NOTE = Path(".dvc/tmp/sweep/up_to_date.json")
FLOW_FILES = ("dvc.yaml", "dvc.lock", ".dvcignore")
CONFIG = (".dvc/config", ".dvc/config.local")
NOT_SEARCHED = {"data", "__pycache__"}  # for files of the flow; nor are folders with a dot in front


def root_of(folder: Path) -> Path | None:
    """The folder with `.dvc` of the project that a folder belongs to."""
    return next((place for place in (folder, *folder.parents) if (place / ".dvc").is_dir()), None)


def is_as_noted(root: Path) -> bool:
    """Whether all that the note of a project names is as it was. False where there is no note."""
    try:
        noted = json.loads((root / NOTE).read_text(encoding="utf-8"))
        same = facts_of(map(Path, noted["facts"])) == noted["facts"] and flow_files(root) == noted["flow"]
    except (OSError, ValueError, KeyError, TypeError):  # no note, or one that was cut off
        return False
    return bool(same)


def was_up_to_date(root: Path) -> bool:
    """Whether all of a project was up to date after some sweep."""
    return (root / NOTE).is_file()


class Seen:
    """What a sweep saw of files when DVC said that a stage is up to date.

    root: the project's folder. Make it before DVC reads the flow.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._described = facts_of(Path(path) for path in flow_files(root) if not path.endswith(".lock"))
        self._facts: dict[str, str] = {}
        self._changed = False

    def take(self, found: dict[str, str]) -> None:
        """Take in the facts of files that a stage reads or makes."""
        self._changed |= any(self._facts.get(path, fact) != fact for path, fact in found.items())
        self._facts |= found

    def note(self) -> None:
        """Write the note, unless something changed since DVC looked."""
        (self._root / NOTE).unlink(missing_ok=True)
        seen, flow = self._facts | self._described, flow_files(self._root)
        locks = facts_of(Path(path) for path in flow if path.endswith(".lock"))  # which the sweep itself writes
        if self._changed or {*flow} - {*locks} != {*self._described} or seen != facts_of(map(Path, seen)):
            return
        (self._root / NOTE).parent.mkdir(parents=True, exist_ok=True)
        write_text(self._root / NOTE, json.dumps({"flow": flow, "facts": seen | locks}))


def facts_of(paths: Iterable[Path]) -> dict[str, str]:
    """The facts of files and folders by path."""
    return {str(path): facts(path) for path in paths}


def facts(path: Path) -> str:
    """Size, time of the last change and inode of a file, or a digest of those of all files below a folder.

    Empty where nothing is there. What Python compiled is left out, as DVC ignores it.
    """
    return _facts(str(path))


def _facts(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116  a Path costs as much again, and a sweep asks tens of thousands of times
    except OSError:
        return ""
    if not stat.S_ISDIR(found.st_mode):
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
    lines = []
    for base, folders, files in os.walk(path):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        lines += [f"{base}/{name}\0{_facts(f'{base}/{name}')}" for name in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def flow_files(root: Path) -> list[str]:
    """The files of a project that describe the flow and what it made."""
    found = [root / name for name in CONFIG]
    for base, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_SEARCHED and not name.startswith(".")]
        found += [Path(base, name) for name in files if name in FLOW_FILES or name.endswith(".dvc")]
    return sorted(map(str, found))
