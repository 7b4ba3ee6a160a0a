"""Lines and cells of protocol files: UTF-8 text whose cells white space, commas or other characters part."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from pipeline.core.errors import InputError, listing

SHOWN = 100  # characters of a line in a message


def csv_cells(path: Path, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line of a CSV file that is not blank, the header among them.

    A row over several lines has the number of its first one. Raises InputError with file and line where there is no
    file, no UTF-8 text, or no CSV.
    """
    reader = csv.reader(lines(path), strict=True, delimiter=separator)
    first = 1
    try:
        for cells in reader:
            if cells:
                yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{first}: not valid CSV: {error}; is a quote left open?") from None


def named_cells(path: Path, wanted: Sequence[str], separator: str = ",") -> Iterator[tuple[str, list[str]]]:
    """File and line, and the cells of the wanted columns, of every trial of a CSV file whose header names its columns.

    Raises InputError for a missing column, and after the last line for all lines that are too short or too long.
    """
    numbered = csv_cells(path, separator)
    first, names = next(numbered, (1, []))
    if missing := [name for name in wanted if name not in names]:
        got = separator.join(names)[:SHOWN]
        raise InputError(
            f"{path}:{first}: expected the columns {', '.join(wanted)}; {', '.join(missing)} not in {got!r}"
        )
    places = [names.index(name) for name in wanted]
    wrong = []
    for number, cells in numbered:
        if len(cells) == len(names):
            yield f"{path}:{number}", [cells[place] for place in places]
        else:
            wrong.append(f"{path}:{number}: expected {len(names)} cells, got {len(cells)}")
    if wrong:
        raise InputError(f"{len(wrong)} lines are not as the header says; mend or remove them:\n{listing(wrong)}")


def worded_lines(path: Path, *forms: str) -> Iterator[tuple[str, list[str]]]:
    """File and line, and the cells, of every line whose cells white space parts.

    forms: the names of the cells of each kind of line; all lines are of the kind of the first.

    Raises InputError, after the last line, for all lines that have more or fewer cells.
    """
    form, wrong = "", []
    for number, text in enumerate(lines(path), start=1):
        cells = text.split()
        if cells and not form:
            form = next((kind for kind in forms if len(kind.split()) == len(cells)), forms[0])
        if cells and len(cells) == len(form.split()):
            yield f"{path}:{number}", cells
        elif cells:
            wrong.append(f"{path}:{number}: expected `{form}`, got {text.strip()[:SHOWN]!r}")
    if wrong:
        raise InputError(f"{len(wrong)} lines cannot be used; mend or remove them:\n{listing(wrong)}")


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte order mark; they may end in LF, CR LF or CR."""
    if not path.is_file():
        raise InputError(f"{path}: no such protocol or key; check the path")
    file = io.BytesIO(path.read_bytes())  # at once: whoever stops reading leaves no file open
    for number, line in enumerate(chain.from_iterable(map(_at_cr, file)), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            byte = f"{line[error.start]:#x}"
            raise InputError(f"{path}:{number}: expected UTF-8 text, got byte {byte}; save it as UTF-8") from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _at_cr(line: bytes) -> list[bytes]:
    """A line that ends in LF or CR LF, as the lines in it that end in CR."""
    return line.splitlines(keepends=True) if b"\r" in line else [line]
