"""Small files and folders that are either whole or not there, and JSON that is what it should be.

A folder of features may lie on an object store. Its path is then one of universal_pathlib's, which has the methods of
`pathlib.Path`; an object is whole or not there by itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.errors import InputError, UnreachableError

# Of an object store: without them s3fs reads ten rows of a batch at once, however many are asked for.
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"max_pool_connections": 64}}}


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and rename it there; folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview, *, own: str = "") -> None:
    """Write bytes beside their place, flush them to the disk, rename them there; folders are made.

    own: part of the name beside, where others may write the same file at the same time.

    Raises UnreachableError where an object store does not take them, OSError where a disk does not.
    """
    if not is_local(path):
        with _reaching(path):
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
        _flush_names(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what could not be written, and how to mend it: of a full disk the system does not even say the file."""
    try:
        yield
    except OSError as error:
        mend = "make room, or allow writing there, and run the same command again"
        raise OSError(error.errno, f"{error.strerror or error}; {mend}", str(path)) from None


def _flush_names(folder: Path) -> None:
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


def is_local(path: Path) -> bool:
    """Whether a path lies in a file system of this machine, and not on an object store."""
    return isinstance(path, Path)


def is_there(path: Path) -> bool:
    """Whether there is a file. Raises UnreachableError where an object store does not tell."""
    if is_local(path):
        return path.is_file()
    with _reaching(path):
        try:
            found: bool = path.fs.info(path.path)["type"] == "file"  # type: ignore[attr-defined]  # universal_pathlib's
        except FileNotFoundError:
            return False
        return found


def read_files(paths: Sequence[Path]) -> dict[Path, bytes]:
    """The bytes of those files that are there; of an object store all at once, as each takes a round trip.

    Raises UnreachableError where an object store does not give them.
    """
    if not paths or is_local(paths[0]):
        return {path: path.read_bytes() for path in paths if path.is_file()}
    whole = [None] * len(paths)
    found = _fetch(paths[0], [path.path for path in paths], whole, whole)  # type: ignore[attr-defined]
    return {path: data for path, data in zip(paths, found, strict=True) if data is not None}


def read_ranges(folder: Path, names: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes | None]:
    """Bytes of files below a folder of an object store, from start to end, all asked for at once; None without a file.

    What goes beyond the end of a file is left out. Raises UnreachableError where the object store does not give them.
    """
    places = [f"{folder.path}/{name}" for name in names]  # type: ignore[attr-defined]  # universal_pathlib's
    return _fetch(folder, places, starts, ends)


def _fetch(
    there: Path, places: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]
) -> list[bytes | None]:
    """Bytes at places of the object store of a path, None for what is missing."""
    fs = there.fs  # type: ignore[attr-defined]  # universal_pathlib's
    with _reaching(there):
        found = fs.cat_ranges(list(places), list(starts), list(ends), on_error="return")
    return [_given(fs.unstrip_protocol(place), data) for place, data in zip(places, found, strict=True)]


def _given(url: str, data: bytes | Exception) -> bytes | None:
    if isinstance(data, bytes):
        return data
    if isinstance(data, FileNotFoundError):
        return None
    if isinstance(data, OSError) and data.errno == errno.EINVAL:  # as s3fs says that a range begins beyond the end
        return b""
    raise _unreachable(url, data)


def sizes_below(folder: Path) -> dict[str, int]:
    """All files below a folder, by their paths relative to it, with their sizes in bytes.

    Raises UnreachableError where an object store does not tell.
    """
    if is_local(folder):
        sizes = {}
        for file in (Path(base, name) for base, _, names in os.walk(folder) for name in names):
            with contextlib.suppress(FileNotFoundError):  # just renamed, by an extraction that runs
                sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
        return sizes
    start = folder.path.rstrip("/") + "/"  # type: ignore[attr-defined]  # universal_pathlib's
    with _reaching(folder):
        found = folder.fs.find(start, detail=True)  # type: ignore[attr-defined]
    return {place.removeprefix(start): int(facts["size"]) for place, facts in found.items()}


def remove_folder(folder: Path, *, mark: str) -> None:
    """Delete a folder of an object store, beginning with the file `mark`: without it, it passes for nothing.

    Raises UnreachableError where the object store does not let go of it.
    """
    names = sorted(sizes_below(folder), key=lambda name: name != mark)
    with _reaching(folder):
        for some in (names[:1], names[1:]):
            if some:
                folder.fs.rm([f"{folder.path}/{name}" for name in some])  # type: ignore[attr-defined]


@contextlib.contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """Tell what keeps an object store from answering: each has errors of its own."""
    try:
        yield
    except Exception as error:
        raise _unreachable(path, error) from None


def _unreachable(where: object, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{where}: expected an object store that can be read and written, got {type(error).__name__}: {error}; check "
        "features.root, the address and the credentials (for S3 the environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE), and run the same command again: what is complete is kept"
    )


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
