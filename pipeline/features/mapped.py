"""Files mapped side by side in one reserved range of addresses.

A memory map makes the bytes of a file look like an array: the system reads a page of the file when that page is used.
This module calls the C library. Python's own `mmap` keeps a file open for each map, and a process may open 1,024 files;
it also cannot choose the address of a map.

    reserve(size)     |................................................|   addresses only, no memory, no reading
    put(file 0, ..)   |file 0 file 0|..................................|
    put(file 2, ..)   |file 0 file 0|...............|file 2 file 2|....|   reads like one array with gaps
    forget(..)        |................................................|   the same addresses, free again
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
MAP_FIXED = 0x10  # map at exactly this address; the value on Linux and macOS, which Python does not name
NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class NoMoreMapsError(Exception):
    """The process has reached the number of maps that the kernel allows; memory is not the problem."""


def put(path: Path, at: NDArray[np.uint8]) -> int:
    """Map a file read-only at the beginning of some reserved addresses, and return its size in bytes.

    Raises InputError for a file that is missing, empty, or larger than the addresses.
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
    """Reserve `size` addresses as an array of bytes, which cannot be read until `put` maps files there.

    Nothing else in the process gets these addresses. They are released when the last array over them is deleted.

    Raises InputError where the process may not reserve that many.
    """
    try:
        start = _mmap(None, size, PROT_NONE, NOTHING)
    except NoMoreMapsError as error:
        raise InputError(
            f"expected {size:,} bytes of addresses to map features at, which take no memory: {error}; lift the limit "
            "(ulimit -v unlimited)"
        ) from None
    # The array holds the buffer. When both are gone, `finalize` releases the addresses; at exit the kernel does it.
    buffer = (ctypes.c_ubyte * size).from_address(start)
    weakref.finalize(buffer, _libc.munmap, start, size).atexit = False
    return np.ctypeslib.as_array(buffer)


def forget(reserved: NDArray[np.uint8]) -> None:
    """Remove all maps from reserved addresses, which stay reserved."""
    _mmap(reserved.ctypes.data, len(reserved), PROT_NONE, NOTHING | MAP_FIXED)


def _mmap(where: int | None, size: int, access: int, flags: int, *, file: int = -1, path: Path | None = None) -> int:
    start = _libc.mmap(where, size, access, flags, file, 0)
    if start == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        if number == errno.ENOMEM:
            raise NoMoreMapsError("the kernel allows this process no more maps of files or addresses")
        raise OSError(number, os.strerror(number), str(path) if path else None)
    return int(start)
