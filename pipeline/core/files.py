"""Files and folders that are written in one step, so that nobody sees half of one; JSON and CSV.

A folder of features may be on an object store. Its path then comes from universal_pathlib and has the methods of
`pathlib.Path`. Object stores themselves write an object in one step.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import itertools
import json
import os
import re
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pipeline.core.errors import MAKE_ROOM, InputError
from pipeline.core.object_store import OPTIONS, is_local, reaching, read_files

FORMULA = "=+-@'"  # how a formula begins, and the quote that marks text
OWN_PART = re.compile(r"(.*)\.([0-9a-f]{8})-([0-9]+)-[0-9]+(\.[^.]*)?\.part").fullmatch
CALLS = itertools.count()  # of `folder_beside` in this process
MARKED = re.compile(r"'+[=+\-@]").match  # a quote in front of a formula, or in front of such a quote
DEVICES = Path("/dev")
DEEPEST = 64  # levels of lists and objects in a JSON file; those of this project have six at most


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` writes bytes."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview, *, own: str = "") -> None:
    """Write bytes to a file beside `path`, flush it to the disk, and rename it to `path`. Missing folders are made.

    own: part of the temporary name, needed where several processes may write the same file at the same time.

    Raises UnreachableError where an object store refuses, OSError where a disk does.
    """
    if not is_local(path):
        with reaching(path):
            path.write_bytes(bytes(data))
        return
    # Without `own` the temporary name is fixed, so the next run overwrites the rest of a killed one.
    beside = path.parent / f"{path.name}{own and '.'}{own}.part"
    with writing(path):
        check_file_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError:
            beside.unlink(missing_ok=True)  # half a file takes room on a full disk
            raise
        flush_names(path.parent)


def check_file_place(path: Path) -> None:
    """Raise InputError where no file may be renamed to a path, as a folder, a device or a pipe is there.

    To rename a file to /dev/null would take the device from the whole machine.
    """
    if path.is_dir():
        raise InputError(_blocked(path))
    if path.absolute().parent == DEVICES or (path.exists() and not path.is_file()):
        raise InputError(f"{path}: expected a free place or a file, got a device or a pipe; name another place")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the path and a remedy to an OSError: for a full disk the system does not even name the file.

    Raises InputError where a file stands in the place of a folder.
    """
    try:
        yield
    except (NotADirectoryError, FileExistsError, IsADirectoryError):
        raise InputError(_blocked(path)) from None
    except OSError as error:
        if MAKE_ROOM in str(error):  # the message has a path already
            raise
        raise OSError(error.errno, f"{error.strerror or error}; {MAKE_ROOM}", str(path)) from None


def _blocked(path: Path) -> str:
    """What stands in the way of a path that cannot be written."""
    if path.is_dir():
        return f"{path}: expected a free place or a file, got a folder; name another place"
    for above in path.parents:
        if above.exists() and not above.is_dir():
            return f"{path}: expected folders above it, got the file {above}; name another place"
    return f"{path}: expected a free place or a folder, got a file; name another place"


def flush_names(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that no later file is there without an earlier one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_of(url: str) -> Path:
    """The folder at a path in the project, or at a URL such as s3://bucket/features.

    Raises InputError for an empty one, for a URL that fsspec does not know, or that needs a package which is not
    installed; and where a file is in the place of a folder.
    """
    if not url.strip():
        raise InputError(f"expected a folder, or the URL of one, such as s3://bucket/features, got {url!r}")
    if "://" not in url or url.startswith("file://"):
        found_here = in_project(url.removeprefix("file://"))
        for path in (found_here, *found_here.parents):
            if path.is_file():
                raise InputError(f"{found_here}: expected a folder, got the file {path}; name another place")
        return found_here
    import fsspec  # type: ignore[import-untyped]  # here, because the packages for object stores import slowly
    from upath import UPath

    protocol = url.partition("://")[0]
    if protocol not in fsspec.available_protocols():
        raise InputError(
            f"{url}: expected a folder, or the URL of one, such as s3://bucket/features; fsspec knows no {protocol!a}://"
        )
    # Listings are not cached, because other processes may write.
    options = {"use_listings_cache": False} | OPTIONS.get(protocol, {})
    try:
        found = UPath(url, **options)
        found.fs  # noqa: B018  # opens the file system, so that errors come here
        found / "folder"  # some kinds, such as data://, have nothing below them
    except ImportError as error:
        install = 'pip install "bonafide[s3]"' if protocol == "s3" else f"install what fsspec needs for {protocol}://"
        raise InputError(f"{url}: {install}: {error}") from None
    except Exception as error:  # each kind of store has its own errors
        raise InputError(f"{url}: expected a folder, or the URL of one that fsspec can open: {error}") from None
    if isinstance(found, Path):  # as universal_pathlib takes URLs that it does not know
        raise InputError(
            f"{url}: expected a folder, or the URL of one, such as s3://bucket/features; {protocol}:// is none"
        )
    return cast(Path, found)


def folder_beside(folder: Path) -> Path:
    """Make an empty folder beside `folder`, to be filled and then moved there by `replace_folder`.

    Each call makes a folder of its own, because several processes may write the same folder at the same time. Folders
    of processes of this machine that have ended are removed.
    """
    folder = folder.resolve()  # "." has no name
    machine = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in folder.parent.iterdir():
            found = OWN_PART(path.name)
            if (
                found
                and found[1] + (found[4] or "") == folder.name
                and found[2] == machine
                and not _runs(int(found[3]))
            ):
                shutil.rmtree(path, ignore_errors=True)
        beside = folder.parent / f"{folder.stem}.{machine}-{os.getpid()}-{next(CALLS)}{folder.suffix}.part"
        beside.mkdir()
    return beside


def _runs(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def check_place(folder: Path, *, mark: str) -> None:
    """Raise InputError where `replace_folder` would: a folder without the file `mark` is in the way."""
    if folder.is_dir():
        with _alone_in(folder.resolve().parent):
            _check_place(folder, mark)


def _check_place(folder: Path, mark: str) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(
            f"{folder}: expected a free place or an older folder with {mark}, got a folder of other things"
        )


def replace_folder(beside: Path, folder: Path, *, mark: str) -> None:
    """Move a folder that `folder_beside` made to its place, and delete an older one there that has the file `mark`.

    All is flushed to the disk before it is moved. Of several writers the last one stays. Raises InputError where a
    folder of other things is in the way; it is not changed.
    """
    folder = folder.resolve()
    with writing(folder):
        flush_folder(beside)
        older = folder_beside(folder)
        try:
            with _alone_in(folder.parent):
                _check_place(folder, mark)
                _exchange(beside, folder, older)
        finally:
            shutil.rmtree(older, ignore_errors=True)


def _exchange(beside: Path, folder: Path, older: Path) -> None:
    """Move the folder at a place, if there is one, to `older`, and `beside` to its place."""
    there = folder.is_dir()
    if there:
        os.replace(folder, older)  # moved and later deleted, so that the place is empty for a moment only
    try:
        os.replace(beside, folder)
    except OSError:
        if there:
            os.replace(older, folder)
        raise
    flush_names(folder.parent)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process moves folders into a folder. The kernel ends the wait where such a process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Flush all files below a folder to the disk, and their names."""
    for place, _, names in os.walk(folder):
        for name in names:
            flush(Path(place, name))
        flush_names(Path(place))


def flush(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_json(
    path: Path, *, what: str, keys: Iterable[str] = (), remedy: str, most: int | None = None
) -> dict[str, Any]:
    """Read a JSON object from a file. Raises InputError where it is missing, is no JSON object, or lacks a key.

    what: the kind of file, for the message. remedy: the command that makes it. most: bytes that it may have.
    """
    if most is not None and path.is_file() and (size := path.stat().st_size) > most:
        raise InputError(f"{path}: expected a {what} of at most {most:,} bytes, got {size:,}; {remedy}")
    data = read_files([path]).get(path)
    if data is None:
        raise InputError(f"{path}: no {what} there; {remedy}")
    return parse_json(path, data, what=what, keys=keys, remedy=remedy)


def parse_json(path: Path, data: bytes, *, what: str, keys: Iterable[str] = (), remedy: str) -> dict[str, Any]:
    """Read a JSON object from the bytes of a file, as `read_json` does."""
    try:
        found = json.loads(data)
    except ValueError:
        raise InputError(f"{path}: expected a {what}, got something that is not JSON; {remedy}") from None
    except RecursionError:
        found = None
    if found is None or _deeper_than(DEEPEST, found):
        raise InputError(f"{path}: expected a {what}, got JSON that nests more than {DEEPEST} deep; {remedy}")
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a {what}, got another JSON value; {remedy}")
    if missing := [key for key in keys if key not in found]:
        raise InputError(f"{path}: expected a {what}, got JSON without {', '.join(missing)}; {remedy}")
    return found


def _deeper_than(most: int, value: Any) -> bool:
    """Whether lists and objects of a JSON value nest deeper than some levels; without recursion."""
    level = [value]
    for _ in range(most):
        level = [
            part
            for one in level
            if isinstance(one, list | dict)
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, list | dict)
        ]
        if not level:
            return False
    return True


def in_project(path: str | Path) -> Path:
    """A relative path in the project itself, for files that neither git nor DVC copies: stores, audio, estimates.

    An experiment of DVC (`dvc exp run --temp`, `--queue`) runs in a copy of the project without these files. DVC gives
    the stages the place of the project itself in `DVC_ROOT`.
    """
    project = os.environ.get("DVC_ROOT")
    if project is None or Path(project).resolve() == Path.cwd():
        return Path(path)
    return Path(project) / path


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells as CSV text; None is an empty cell. Text that a spreadsheet would compute gets a quote in front."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [safe_cell(cell) if cell.__class__ is str and cell[:1] in FORMULA else cell for cell in row] for row in rows
    )
    return text.getvalue()


def safe_cell(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; `plain_cell` undoes it. Numbers and a single dash stay."""
    if cell.__class__ is not str or cell[:1] not in FORMULA or cell in ("", "-"):
        return cell
    if cell[0] == "'":
        return f"'{cell}" if MARKED(cell) else cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def plain_cell(cell: str) -> str:
    """The text of a cell that `safe_cell` made."""
    return cell[1:] if MARKED(cell) else cell


def readable_size(count: int) -> str:
    """A number of bytes with three digits and a unit, such as 1.25 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
