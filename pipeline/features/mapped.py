"""Files mapped side by side at addresses of one's own choice.

Through the C library: Python's own maps each keep a file open, of which a process may have 1,024, and have no say in
where they lie.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import InputError
from pipeline.features.store import REPAIR

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

PROT_NONE = 0
MAP_FIXED = 0x10  # as in Linux and macOS; Python does not name it
NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class NoMoreMapsError(Exception):
    """Not memory has run out, but what a process may map."""


def put(path: Path, at: NDArray[np.uint8]) -> int:
    """Map a file read-only over reserved addresses; its size in bytes.

    Raises InputError where it is missing or empty, or larger than the place.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > len(at):
                raise InputError(
                    f"{path}: expected at most {len(at)} bytes, got {size}; the shard is damaged; {REPAIR}"
                )
            if size:
                flags = mmap.MAP_SHARED | MAP_FIXED
                _mmap(at.ctypes.data, size, mmap.PROT_READ, flags, file=file.fileno(), path=path)
                return size
    except FileNotFoundError:
        pass
    raise InputError(f"{path}: the shard is missing or empty; {REPAIR}")


def reserve(size: int) -> NDArray[np.uint8]:
    """Addresses that nothing else takes and nothing can be read from yet; given back with the last array of them.

    Raises InputError where a process may not have as many.
    """
    try:
        start = _mmap(None, size, PROT_NONE, NOTHING)
    except NoMoreMapsError as error:
        raise InputError(
            f"expected {size:,} bytes of addresses to map features at, which take no memory: {error}; lift the limit "
            "(ulimit -v unlimited)"
        ) from None
    buffer = (ctypes.c_ubyte * size).from_address(start)
    weakref.finalize(buffer, _libc.munmap, start, size).atexit = False  # the array holds the buffer
    return np.ctypeslib.as_array(buffer)


def forget(reserved: NDArray[np.uint8]) -> None:
    """Take all maps out of reserved addresses."""
    _mmap(reserved.ctypes.data, len(reserved), PROT_NONE, NOTHING | MAP_FIXED)


def _mmap(where: int | None, size: int, access: int, flags: int, *, file: int = -1, path: Path | None = None) -> int:
    start = _libc.mmap(where, size, access, flags, file, 0)
    if start == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        if number == errno.ENOMEM:
            raise NoMoreMapsError("the kernel allows this process no more maps of files or addresses")
        raise OSError(number, os.strerror(number), str(path) if path else None)
    return int(start)
