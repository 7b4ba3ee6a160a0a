"""Small files and folders that are either whole or not there, and JSON that is what it should be.

A folder of features may lie on an object store. Its path is then one of universal_pathlib's, which has the methods of
`pathlib.Path`; an object is whole or not there by itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and rename it there; folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write bytes beside their place, flush them to the disk, rename them there; folders are made."""
    if not is_local(path):
        path.write_bytes(bytes(data))
        return
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


def folder_of(url: str) -> Path:
    """A folder by its path in the project, or by a URL such as s3://bucket/features, memory://features.

    Raises InputError for a URL of no file system, or of one that needs a package which is not installed.
    """
    if "://" not in url or url.startswith("file://"):
        return in_project(url.removeprefix("file://"))
    from upath import UPath  # what it needs of an object store takes a while to import

    try:
        found = UPath(url)
        found.fs  # noqa: B018  # made now, to fail here
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: expected a folder, or the URL of one that fsspec can open: {error}") from None
    return cast(Path, found)


def is_local(path: Path) -> bool:
    """Whether a path lies in a file system of this machine, and not on an object store."""
    return isinstance(path, Path)


def read_files(paths: Sequence[Path]) -> dict[Path, bytes]:
    """The bytes of those files that are there; of an object store all at once, as each takes a round trip."""
    if not paths or is_local(paths[0]):
        return {path: path.read_bytes() for path in paths if path.is_file()}
    places = {path.path: path for path in paths}  # type: ignore[attr-defined]  # universal_pathlib's
    found = paths[0].fs.cat(list(places), on_error="omit")  # type: ignore[attr-defined]
    return {places[place]: data for place, data in found.items()}


def names_below(folder: Path) -> set[str]:
    """The paths of all files of an object store below a folder, relative to it."""
    start = folder.path.rstrip("/") + "/"  # type: ignore[attr-defined]
    folder.fs.invalidate_cache()  # type: ignore[attr-defined]  # others may have written
    return {place.removeprefix(start) for place in folder.fs.find(start)}  # type: ignore[attr-defined]


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
    return parse_json(path, path.read_bytes(), what=what, keys=keys, remedy=remedy)


def parse_json(path: Path, data: bytes, *, what: str, keys: Iterable[str] = (), remedy: str) -> dict[str, Any]:
    """A JSON object from the bytes of a file. Raises InputError where they are something else, or lack a key."""
    try:
        found = json.loads(data)
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
