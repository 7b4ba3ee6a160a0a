"""Files on an object store or any other file system that fsspec opens."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import UnreachableError

# Of an object store: without them s3fs reads ten rows of a batch at once, however many are asked for.
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"max_pool_connections": 64}}}


def is_local(path: Path) -> bool:
    """Whether a path lies in a file system of this machine, and not on an object store."""
    return isinstance(path, Path)


def is_there(path: Path) -> bool:
    """Whether there is a file. Raises UnreachableError where an object store does not tell."""
    if is_local(path):
        return path.is_file()
    with reaching(path):
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
    with reaching(there):
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
    told = [facts.get("LastModified") for facts in found.values()]  # as S3 says it; of others nobody knows
    return max((when.timestamp() for when in told), default=None) if all(told) else None


def remove_folder(folder: Path, *, mark: str) -> None:
    """Delete a folder of an object store, beginning with the file `mark`: without it, it passes for nothing.

    Raises UnreachableError where the object store does not let go of it.
    """
    names = sorted(sizes_below(folder), key=lambda name: name != mark)
    with reaching(folder):
        for some in (names[:1], names[1:]):
            if some:
                folder.fs.rm([f"{folder.path}/{name}" for name in some])  # type: ignore[attr-defined]


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
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
