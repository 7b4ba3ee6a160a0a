"""Read the FAISS index of a set's embeddings, once its bytes are known to be one that this project writes.

FAISS trusts what it reads: an index may name another file that is then opened, and some that are damaged end the
process. So the file is read here before: kind, metric, width, counts and sizes of a flat, IVF or IVF-PQ index as FAISS
writes it (`faiss/impl/index_write.cpp`), and the ids in the lists. Any other index is refused.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from pipeline.core.errors import InputError

Kind = Literal["flat", "ivf", "ivfpq"]
CODES = {"flat": b"IxF2", "ivf": b"IwFl", "ivfpq": b"IwPQ"}
HEADER = struct.Struct("<iqqq?i")  # width, vectors, two fixed numbers, trained, metric
FIXED, L2 = 1 << 20, 1
BITS = 8  # of a code of IVF-PQ
MOST_LISTS = 2**24


class _OtherIndexError(Exception):
    """The bytes are not those of an index that this project writes, and why."""


@dataclass
class _Bytes:
    """A file that is read from its start."""

    data: mmap.mmap
    place: int = 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next numbers. Raises _OtherIndexError at the end of the file."""
        numbers = struct.Struct("<" + form)
        self.skip(numbers.size)
        return numbers.unpack_from(self.data, self.place - numbers.size)

    def skip(self, size: int) -> None:
        """Pass over bytes. Raises _OtherIndexError at the end of the file."""
        if size < 0 or self.place + size > len(self.data):
            raise _OtherIndexError("it ends too early")
        self.place += size

    def expect(self, what: str, form: str, *wanted: Any) -> None:
        """Raise _OtherIndexError where the next numbers are others."""
        if (got := self.take(form)) != wanted:
            raise _OtherIndexError(f"expected {what} {wanted}, got {got}")


def read_index(path: Path, kind: Kind, *, count: int, width: int, remedy: str) -> Any:
    """Read and map the index of `count` embeddings of a width. Raises InputError for any other file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Bytes(data), kind, count=count, width=width)
        # FAISS has one flag to map flat vectors and another to map inverted lists, and does not accept both.
        mapped = faiss.IO_FLAG_MMAP_IFC if kind == "flat" else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        return faiss.read_index(str(path), mapped)
    except (_OtherIndexError, RuntimeError, ValueError) as error:  # ValueError: an empty file
        raise InputError(
            f"{path}: expected a FAISS index of the kind {kind} with {count} embeddings of width {width}, as this "
            f"project writes it: {error}; {remedy}"
        ) from None


def _check(file: _Bytes, kind: Kind, *, count: int, width: int) -> None:
    """Raise _OtherIndexError for an index that the project does not write."""
    if kind == "flat":
        _check_flat(file, count=count, width=width)
    else:
        file.expect("the kind", "4s", CODES[kind])
        _check_header(file, count=count, width=width)
        lists, probes = file.take("QQ")
        if not 1 <= lists <= min(count, MOST_LISTS) or not 1 <= probes <= lists:
            raise _OtherIndexError(f"expected 1 to {count} lists and as many to search, got {lists} and {probes}")
        _check_flat(file, count=lists, width=width)
        file.expect("no direct map", "BQ", 0, 0)
        size = 4 * width if kind == "ivf" else _check_quantizer(file, width=width)
        _check_lists(file, lists, size, count=count)
    if file.place != len(file.data):
        raise _OtherIndexError(f"{len(file.data) - file.place} bytes follow it")


def _check_header(file: _Bytes, *, count: int, width: int) -> None:
    file.expect("the header", HEADER.format[1:], width, count, FIXED, FIXED, True, L2)


def _check_flat(file: _Bytes, *, count: int, width: int) -> None:
    file.expect("the kind", "4s", CODES["flat"])
    _check_header(file, count=count, width=width)
    file.expect("the number of values", "Q", count * width)
    file.skip(4 * count * width)


def _check_quantizer(file: _Bytes, *, width: int) -> int:
    """The bytes of a product-quantized vector."""
    _, size = file.take("?Q")
    if not 1 <= size <= width or width % size:
        raise _OtherIndexError(f"expected codes of a part of {width} bytes, got {size}")
    file.expect("the quantizer", "QQQQ", width, size, BITS, width << BITS)
    file.skip(4 * width << BITS)
    return int(size)


def _check_lists(file: _Bytes, lists: int, size: int, *, count: int) -> None:
    """Check the lists: vectors of `size` bytes, and their ids, each once."""
    file.expect("lists in the file itself", "4sQQ4sQ", b"ilar", lists, size, b"full", lists)
    lengths = file.take(f"{lists}Q")
    if sum(lengths) != count:
        raise _OtherIndexError(f"expected lists of {count} vectors, got {sum(lengths)}")
    seen = np.zeros(count, np.bool_)
    for length in lengths:
        file.skip(length * size)
        file.skip(8 * length)
        ids = np.frombuffer(file.data[file.place - 8 * length : file.place], "<i8")
        if ((ids < 0) | (ids >= count)).any():
            raise _OtherIndexError(f"expected ids from 0 to {count - 1}, got {ids.min()} to {ids.max()}")
        seen[ids] = True
    if not seen.all():
        raise _OtherIndexError("some ids are missing")
