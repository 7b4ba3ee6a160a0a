"""Small files and folders that are either whole or not there, and JSON that is what it should be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and rename it there; folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes beside their place, flush them to the disk, rename them there; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed name: what a killed run leaves behind is overwritten by the next.
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _flush_names(path.parent)


def _flush_names(folder: Path) -> None:
    """Put a folder's list of names on the disk, so that no later file is there without an earlier one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_beside(folder: Path) -> Path:
    """An empty folder to fill before `replace_folder` puts it in place."""
    folder = folder.resolve()  # "." has no name
    beside = folder.parent / f"{folder.name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def check_place(folder: Path, *, mark: str) -> None:
    """Raise InputError where `replace_folder` would refuse: a folder of something else is in the way."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(
            f"{folder}: expected a free place or an older folder with {mark}, got a folder of other things"
        )


def replace_folder(beside: Path, folder: Path, *, mark: str) -> None:
    """Put a folder that was filled beside its place there, in place of an older one that has the file `mark` too.

    Raises InputError where a folder of something else is in the way; it is left alone.
    """
    check_place(folder, mark=mark)
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def read_json(path: Path, *, what: str, keys: Iterable[str] = (), remedy: str) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where it is missing, something else, or lacks a key.

    Args:
        what: what the file should be, for the message. remedy: the command that makes it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no {what} there; {remedy}")
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: expected a {what}, got something that is not JSON; {remedy}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a {what}, got another JSON value; {remedy}")
    if missing := [key for key in keys if key not in found]:
        raise InputError(f"{path}: expected a {what}, got JSON without {', '.join(missing)}; {remedy}")
    return found


def in_project(path: str | Path) -> Path:
    """A relative path as the project's own, for what neither git nor DVC brings along: stores, audio, estimates.

    An experiment of DVC (`dvc exp run --temp`, `--queue`) runs in a copy of the project that has none of them, and DVC
    tells its stages where the project itself is.
    """
    project = os.environ.get("DVC_ROOT")
    if project is None or Path(project).resolve() == Path.cwd():
        return Path(path)
    return Path(project) / path
