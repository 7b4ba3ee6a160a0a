"""Small files and folders that are either whole or not there, and JSON that is what it should be.

A folder of features may lie on an object store. Its path is then one of universal_pathlib's, which has the methods of
`pathlib.Path`; an object is whole or not there by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pipeline.core.errors import InputError
from pipeline.core.object_store import OPTIONS, is_local, reaching, read_files


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and rename it there; folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview, *, own: str = "") -> None:
    """Write bytes beside their place, flush them to the disk, rename them there; folders are made.

    own: part of the name beside, where others may write the same file at the same time.

    Raises UnreachableError where an object store does not take them, OSError where a disk does not.
    """
    if not is_local(path):
        with reaching(path):
            path.write_bytes(bytes(data))
        return
    # Else a fixed name: what a killed run leaves behind is overwritten by the next.
    beside = path.with_name(f"{path.name}{own and '.'}{own}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush_names(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what could not be written, and how to mend it: of a full disk the system does not even say the file."""
    try:
        yield
    except OSError as error:
        mend = "make room, or allow writing there, and run the same command again"
        raise OSError(error.errno, f"{error.strerror or error}; {mend}", str(path)) from None


def flush_names(folder: Path) -> None:
    """Put a folder's list of names on the disk, so that no later file is there without an earlier one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_of(url: str) -> Path:
    """A folder by its path in the project, or by a URL such as s3://bucket/features.

    Raises InputError for a URL of no file system, or of one that needs a package which is not installed.
    """
    if "://" not in url or url.startswith("file://"):
        return in_project(url.removeprefix("file://"))
    from upath import UPath  # what it needs of an object store takes a while to import

    protocol = url.partition("://")[0]
    # what a listing said is not kept: others may have written since
    options = {"use_listings_cache": False} | OPTIONS.get(protocol, {})
    try:
        found = UPath(url, **options)
        found.fs  # noqa: B018  # made now, to fail here
    except ImportError as error:
        install = 'pip install "bonafide[s3]"' if protocol == "s3" else f"install what fsspec needs for {protocol}://"
        raise InputError(f"{url}: {install}: {error}") from None
    except ValueError as error:
        raise InputError(f"{url}: expected a folder, or the URL of one that fsspec can open: {error}") from None
    return cast(Path, found)


def folder_beside(folder: Path) -> Path:
    """An empty folder to fill before `replace_folder` puts it in place."""
    folder = folder.resolve()  # "." has no name
    beside = folder.parent / f"{folder.name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    with writing(beside):
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
    with writing(folder):
        os.replace(beside, folder)


def read_json(path: Path, *, what: str, keys: Iterable[str] = (), remedy: str) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where it is missing, something else, or lacks a key.

    Args:
        what: what the file should be, for the message. remedy: the command that makes it.
    """
    data = read_files([path]).get(path)
    if data is None:
        raise InputError(f"{path}: no {what} there; {remedy}")
    return parse_json(path, data, what=what, keys=keys, remedy=remedy)


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
