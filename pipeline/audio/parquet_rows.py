"""Audio inside Parquet files, as datasets of the Hugging Face hub keep it: a row has the bytes of an audio file.

Such audio has a path as a file has, of the Parquet file, the column and the row: `data/test-00000.parquet/audio/17`.
The column holds the bytes, or a struct with the field `bytes`. A file is read by row groups, and the last ones are
kept, so rows that are read in order cost one reading, and nothing is unpacked to the disk. Where the order is mixed,
more row groups are kept, up to a gigabyte; beyond that a row costs the reading of its whole group. A file of a few
kilobytes can state any number of rows, and name one value in all of them: both are bounded.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError

SUFFIX = ".parquet"
KEPT = 2  # row groups of audio in memory, where rows are read in order
HELD = 2**30  # bytes of row groups in memory, at most, where they are not
MOST_ROWS = 2**22  # of a file
MOST_BYTES = 2**32  # of the audio of a row group
ALONE = threading.Lock()  # so that threads that want the same row group read it once


def open_file(path: Path) -> Any:
    """Open a Parquet file, as a `pyarrow.parquet.ParquetFile`. Raises InputError where that is impossible."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{path}: Parquet files need pyarrow; pip install "bonafide[parquet]"') from None
    with telling(path):
        file = parquet.ParquetFile(path, memory_map=True)
    if file.metadata.num_rows > MOST_ROWS:
        raise InputError(
            f"{path}: expected at most {MOST_ROWS:,} rows, got {file.metadata.num_rows:,}; write it anew in several "
            "files"
        )
    return file


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Raise InputError in place of the errors of pyarrow, for a Parquet file that cannot be read."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: expected a whole Parquet file: {said}; copy or download it again") from None


def names(folder: Path) -> set[str]:
    """The names of the rows in a "folder", a column of a Parquet file; none for any other path."""
    if not _is_column(folder):
        return set()
    return {str(row) for row in range(open_file(folder.parent).metadata.num_rows)}


def read(path: Path) -> bytes | None:
    """The audio of a row; None where the path is of no row of a Parquet file.

    Raises InputError where the file cannot be read, or has no such column, or the row has no bytes.
    """
    column = path.parent
    if not _is_column(column) or not path.name.isdigit():
        return None
    with ALONE:
        changed = column.parent.stat().st_mtime_ns
        starts = _starts(column.parent, changed)
        row = int(path.name)
        if row >= starts[-1]:
            return None
        group = bisect.bisect_right(starts, row) - 1
        found = GROUPS.row(column, changed, group, row - starts[group]).as_py()
    if not found:
        raise InputError(f"{path}: the row holds no bytes of audio, but perhaps the name of a file; embed the audio")
    return bytes(found)


def _is_column(folder: Path) -> bool:
    return folder.parent.suffix == SUFFIX and folder.parent.is_file()


@functools.lru_cache(maxsize=64)
def _starts(file: Path, _changed: int) -> tuple[int, ...]:
    """The first row of each row group, and the number of rows. _changed: the time, so that a new file is read anew."""
    told = open_file(file).metadata
    sizes = (told.row_group(i).num_rows for i in range(told.num_row_groups))
    return tuple(itertools.accumulate(sizes, initial=0))


class RowGroups:
    """The row groups in memory; the one that was not read for longest goes first.

    A group that is wanted again, though rows of it were left when it went, shows that rows are read in no order. Then
    one group more is kept. So with G groups that fit into the memory, at most G readings are in vain.
    """

    def __init__(self) -> None:
        self.most = KEPT
        self.groups: dict[tuple[Path, int, int], Any] = {}  # the arrays of bytes, the last that was read at the end
        self.unread: dict[tuple[Path, int, int], int] = {}  # how many readings of rows a group still has before it

    def row(self, column: Path, changed: int, group: int, row: int) -> Any:
        """A row of a row group, counted within it. changed: as for `_starts`."""
        key = (column, changed, group)
        if (found := self.groups.pop(key, None)) is None:
            self.most += self.unread.get(key, 0) > 0
            found = _group(column, group)
            self.unread[key] = len(found)
            self._make_room(found.nbytes)
        self.groups[key] = found
        self.unread[key] -= 1
        return found[row]

    def _make_room(self, size: int) -> None:
        """Drop groups where one more of this size, in bytes, does not fit."""
        held = sum(array.nbytes for array in self.groups.values())
        while len(self.groups) >= self.most or (len(self.groups) >= KEPT and held + size > HELD):
            held -= self.groups.pop(next(iter(self.groups))).nbytes


GROUPS = RowGroups()


def _group(column: Path, group: int) -> Any:
    """The bytes of the rows of a row group, as a pyarrow array."""
    import pyarrow

    file = open_file(column.parent)
    kind = file.schema_arrow.field(column.name).type if column.name in file.schema_arrow.names else None
    if kind is None or not _has_bytes(kind):
        raise InputError(
            f"{column.parent}: expected a column {column.name} with the bytes of audio files, got {kind or 'none'}; "
            f"its columns are {', '.join(file.schema_arrow.names)}"
        )
    rows, size = [], 0
    with telling(column.parent):
        for row in file.iter_batches(1, row_groups=[group], columns=[column.name], use_threads=False):
            rows.append(row.column(0))
            if (size := size + row.nbytes) > MOST_BYTES:
                raise InputError(
                    f"{column.parent}: expected row groups of at most {MOST_BYTES:,} bytes of audio, got more in row "
                    f"group {group}; write it anew with fewer rows in a group"
                )
        found = pyarrow.concat_arrays(rows)
    if len(found) != (stated := file.metadata.row_group(group).num_rows):
        raise InputError(
            f"{column.parent}: expected {stated:,} rows in row group {group}, got {len(found):,}; copy or download it "
            "again"
        )
    return found.field("bytes") if pyarrow.types.is_struct(kind) else found


def _has_bytes(kind: Any) -> bool:
    """Whether a type of a column is bytes, or a struct with bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
