"""Find the audio files of a trial table, and files whose names nearly are those that are missing."""

from __future__ import annotations

import errno
import functools
import os
import posixpath
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import decode, parquet_rows
from pipeline.core.errors import SHOWN
from pipeline.core.trial_table import Trials

Say = Callable[[str], None]
MOST_ABOVE, MOST_BELOW = 3, 100  # folders above the root, and in it, in which a missing file is looked for
NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # also a link that leads to itself


def look_up(table: Trials, root: Path, *, say: Say) -> NDArray[np.bool_]:
    """Which trials have an audio file, (N,) bool. Each folder is listed once, which is faster than asking by file."""
    named: dict[str, set[str]] = {}
    for path in table.path.tolist():
        folder, name = posixpath.split(path)
        named.setdefault(folder, set()).add(name)
    there = {folder: _files(root / folder) for folder in named}
    extra = sum(_is_audio(name) for folder, names in there.items() for name in names - named[folder])
    if extra:
        say(f"audio files in the same folders that no trial names, ignored: {extra}")
    places = (posixpath.split(path) for path in table.path.tolist())
    return np.array([name in there[folder] for folder, name in places], dtype=np.bool_)


def _files(folder: Path) -> set[str]:
    """The names of the files in a folder, or of the rows in a column of a Parquet file; none where there is neither."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        return parquet_rows.names(folder)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file; a link that leads to itself is none, and no other file is worse for it."""
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _is_audio(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in decode.SUFFIXES


def missing(table: Trials, root: Path, there: NDArray[np.bool_]) -> list[str]:
    """A line for each trial without a file. The first ones say which file there is with nearly the same name."""
    _names.cache_clear()  # of an earlier look
    lines = [f"utterance {table.utterance[row]}: {root / str(table.path[row])}" for row in np.flatnonzero(~there)]
    for i, row in enumerate(np.flatnonzero(~there)[:SHOWN]):
        lines[i] += nearly(root, str(table.path[row])) or _elsewhere(root, str(table.path[row]))
    return lines


def _elsewhere(root: Path, path: str) -> str:
    """A remark on a folder above `root`, or in it, below which a path is there; or on a link to nowhere; or none."""
    try:
        if (root / path).is_symlink():
            return f"; it is a link to {(root / path).readlink()}, which is not there"
        below = [place for place in sorted(root.iterdir())[:MOST_BELOW] if place.is_dir()] if root.is_dir() else []
        places = [*below, *list(root.absolute().parents)[:MOST_ABOVE]]
        found = next((place for place in places if (place / path).is_file()), None)
    except OSError:  # no such folder, or none that may be read
        return ""
    return "" if found is None else f"; with `root: {found}` it is there"


def nearly(root: Path, path: str) -> str:
    """A remark on the file below `root` whose name differs from a path by its suffix, case or Unicode form; or none.

    The folders in the path may differ in case and Unicode form, too.
    """
    found = root
    *folders, name = path.split("/")
    for part in folders:
        same = part if (found / part).is_dir() else _names(found)[0].get(_folded(part))
        if same is None:
            return ""
        found /= same
    whole, stems = _names(found)
    same = whole.get(_folded(name)) or stems.get(_folded(_stem(name)))
    if same is None or not (found / same).is_file():
        return ""
    near = posixpath.relpath(found / same, root)
    return f"; there is {near!r}, with {_difference(path, near)}"


def _difference(path: str, near: str) -> str:
    """What two nearly equal paths differ by."""
    form, other = (unicodedata.normalize("NFC", text) for text in (path, near))
    if form == other:
        return "another Unicode form of the name"
    return "other capitals" if form.casefold() == other.casefold() else "another suffix"


@functools.lru_cache(maxsize=64)
def _names(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The names in a folder by their folded forms, and its audio files by those of their names without the suffix."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        names = []
    return {_folded(name): name for name in names}, {_folded(_stem(name)): name for name in names if _is_audio(name)}


def _stem(name: str) -> str:
    """A name without the suffix of an audio file."""
    return posixpath.splitext(name)[0] if _is_audio(name) else name


def _folded(name: str) -> str:
    """The form of a name in which case and Unicode form make no difference."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
