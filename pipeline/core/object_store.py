"""Files on an object store or any other file system that fsspec opens."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import UnreachableError

# For an object store by protocol. Without this s3fs reads only ten rows of a batch at once.
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"max_pool_connections": 64}}}


def is_local(path: Path) -> bool:
    """True for a path in a file system of this machine, False for one on an object store."""
    return isinstance(path, Path)


def is_there(path: Path) -> bool:
    """Whether a file exists. Raises UnreachableError where an object store does not answer."""
    if is_local(path):
        return path.is_file()
    with reaching(path):
        try:
            found: bool = path.fs.info(path.path)["type"] == "file"  # type: ignore[attr-defined]  # universal_pathlib's
        except FileNotFoundError:
            return False
        return found


def read_files(paths: Sequence[Path]) -> dict[Path, bytes]:
    """The bytes of the files that exist. From an object store they are all requested at once, which is faster.

    Raises UnreachableError where an object store does not answer.
    """
    if not paths or is_local(paths[0]):
        return {path: path.read_bytes() for path in paths if path.is_file()}
    whole = [None] * len(paths)
    found = _fetch(paths[0], [path.path for path in paths], whole, whole)  # type: ignore[attr-defined]
    return {path: data for path, data in zip(paths, found, strict=True) if data is not None}


def read_ranges(folder: Path, names: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes | None]:
    """Bytes of files in a folder of an object store, from start to end, all requested at once; None for a missing file.

    A range beyond the end of a file gives fewer bytes. Raises UnreachableError where the object store does not answer.
    """
    places = [f"{folder.path}/{name}" for name in names]  # type: ignore[attr-defined]  # universal_pathlib's
    return _fetch(folder, places, starts, ends)


def _fetch(
    there: Path, places: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]
) -> list[bytes | None]:
    """Bytes at places of the object store that holds `there`; None for a missing file."""
    fs = there.fs  # type: ignore[attr-defined]  # universal_pathlib's
    with reaching(there):
        found = fs.cat_ranges(list(places), list(starts), list(ends), on_error="return")
    return [_given(fs.unstrip_protocol(place), data) for place, data in zip(places, found, strict=True)]


def _given(url: str, data: bytes | Exception) -> bytes | None:
    if isinstance(data, bytes):
        return data
    if isinstance(data, FileNotFoundError):
        return None
    if isinstance(data, OSError) and data.errno == errno.EINVAL:  # s3fs: the range begins beyond the end of the file
        return b""
    raise _unreachable(url, data)


def sizes_below(folder: Path) -> dict[str, int]:
    """All files below a folder: relative path -> size in bytes.

    Raises UnreachableError where an object store does not answer.
    """
    if is_local(folder):
        sizes = {}
        for file in (Path(base, name) for base, _, names in os.walk(folder) for name in names):
            with contextlib.suppress(FileNotFoundError):  # an extraction has just renamed it
                sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
        return sizes
    start = folder.path.rstrip("/") + "/"  # type: ignore[attr-defined]  # universal_pathlib's
    with reaching(folder):
        found = folder.fs.find(start, detail=True)  # type: ignore[attr-defined]
    return {place.removeprefix(start): int(facts["size"]) for place, facts in found.items()}


def last_change_below(folder: Path) -> float | None:
    """When a file below a folder last changed, in seconds since 1970; None where an object store does not tell."""
    if is_local(folder):
        times = [folder.stat().st_mtime]
        for file in (Path(base, name) for base, _, names in os.walk(folder) for name in names):
            with contextlib.suppress(FileNotFoundError):
                times.append(file.stat().st_mtime)
        return max(times)
    with reaching(folder):
        found = folder.fs.find(folder.path.rstrip("/") + "/", detail=True)  # type: ignore[attr-defined]
    told = [facts.get("LastModified") for facts in found.values()]  # the key that S3 has; other stores may have none
    return max((when.timestamp() for when in told), default=None) if all(told) else None


def remove_folder(folder: Path, *, mark: str) -> None:
    """Delete a folder of an object store. The file `mark` goes first: without it nothing takes the rest for a store.

    Raises UnreachableError where the object store does not answer or refuses.
    """
    names = sorted(sizes_below(folder), key=lambda name: name != mark)
    with reaching(folder):
        for some in (names[:1], names[1:]):
            if some:
                folder.fs.rm([f"{folder.path}/{name}" for name in some])  # type: ignore[attr-defined]


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Turn every error of an object store into UnreachableError; each kind of store has its own errors."""
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
