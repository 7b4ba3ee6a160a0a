"""Helpers for files: CSV text, sizes for people, folders that are written beside their place and moved there."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError, printable
from pipeline.core.files import (
    csv_text,
    folder_beside,
    folder_of,
    plain_cell,
    readable_size,
    replace_folder,
    safe_cell,
    write_bytes,
    write_text,
)


def test_csv_has_a_line_for_each_row_and_quotes_where_needed() -> None:
    assert csv_text([("a", "b"), (1, 0.25), (None, "x,y")]) == 'a,b\n1,0.25\n,"x,y"\n'
    assert csv_text([]) == ""


def test_sizes_have_three_digits_and_a_unit() -> None:
    sizes = {0: "0 B", 999: "999 B", 1_000: "1 kB", 1_250_000: "1.25 MB", 261_400_000_000: "261 GB", 5 * 10**12: "5 TB"}
    assert {size: readable_size(size) for size in sizes} == sizes


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd()", "'=cmd()"), ("+1+1", "'+1+1"), ("-x", "'-x"), ("@a", "'@a"), ("'=a", "''=a"), ("''-a", "'''-a"),
        ("-", "-"), ("", ""), ("a", "a"), ("'a", "'a"), ("-1.5", "-1.5"), ("+2", "+2"), ("-inf", "-inf"), ("'", "'"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula_and_all_come_back(text: str, cell: str) -> None:
    assert safe_cell(text) == cell
    assert plain_cell(cell) == text
    assert csv_text([(text, -1.5, None)]) == f"{cell},-1.5,\n"


@given(st.text("'=+-@a1.", max_size=8))
def test_any_cell_comes_back(text: str) -> None:
    cell = safe_cell(text)
    assert plain_cell(cell) == text
    assert cell[:1] not in tuple("=@")


# ---------------------------------------------------------------- folders that are replaced


def test_every_writer_has_a_folder_of_its_own_and_the_last_one_stays(tmp_path: Path) -> None:
    place = tmp_path / "run.v1"
    first, second = folder_beside(place), folder_beside(place)
    assert first != second
    for number, folder in enumerate((first, second)):
        (folder / "mark").write_text(str(number))
        (folder / f"only{number}").touch()
    replace_folder(first, place, mark="mark")
    assert sorted(path.name for path in place.iterdir()) == ["mark", "only0"]
    replace_folder(second, place, mark="mark")
    assert sorted(path.name for path in place.iterdir()) == ["mark", "only1"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_of_other_things_stays(tmp_path: Path) -> None:
    place = tmp_path / "run"
    beside = folder_beside(place)
    (beside / "mark").touch()
    place.mkdir()
    (place / "thesis.tex").touch()
    with pytest.raises(InputError, match="got a folder of other things"):
        replace_folder(beside, place, mark="mark")
    assert [path.name for path in place.iterdir()] == ["thesis.tex"]


WRITER = """
import sys
from pathlib import Path
from pipeline.core.files import folder_beside, replace_folder
for i in range(60):
    beside = folder_beside(Path(sys.argv[1]))
    for name in "abc":
        (beside / name).write_text(sys.argv[2])
    replace_folder(beside, Path(sys.argv[1]), mark="a")
"""


def test_writers_at_the_same_time_leave_one_whole_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    writers = [subprocess.Popen([*words, name], env=environment) for name in ("x", "y", "z")]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == set("abc")
    assert len({path.read_text() for path in (tmp_path / "run").iterdir()}) == 1


def test_what_a_dead_writer_left_is_removed_and_the_living_keep_theirs(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pipeline.core.files import folder_beside as f; "
    code += "print(f(Path(sys.argv[1])))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=environment, capture_output=True, text=True, check=True
    )
    left = Path(ended.stdout.strip())
    assert left.is_dir()
    elsewhere = tmp_path / "run.00000000-1-0.part"  # of another machine, where nobody knows who runs
    mine, others = folder_beside(tmp_path / "other"), tmp_path / left.name.replace("run.", "runs.")
    elsewhere.mkdir()
    others.mkdir()
    beside = folder_beside(tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, others, mine, beside])


def test_all_is_flushed_before_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watched(handle: int, real: Any = os.fsync) -> None:
        calls.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    def moved(*paths: Path, real: Any = os.replace) -> None:
        calls.append("moved")
        real(*paths)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", moved)
    beside = folder_beside(tmp_path / "run")
    (beside / "in").mkdir()
    for name in ("mark", "in/deep"):
        (beside / name).write_text(name)
    replace_folder(beside, tmp_path / "run", mark="mark")
    at = calls.index("moved")
    assert set(calls[:at]) == {str(beside / name) for name in ("", "in", "mark", "in/deep")} | {str(beside)} - {""}
    assert calls[at + 1 :] == [str(tmp_path)]


@pytest.mark.parametrize(
    "url", [" ", "nobody://x/y", "http2://x", "://x", "a b://c", "abfs://", "\0://x", "data://x", "arrow_hdfs://x"]
)
def test_a_url_that_nobody_opens_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=re.escape(printable(url)[:4].strip("\0"))):
        folder_of(url)


@pytest.mark.parametrize("place", ["/dev/null", "/dev/stdout", "/dev/of_no_device", "pipe"])
def test_no_file_takes_the_place_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(os, "replace", None)  # if it were called, this machine would lose its device
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=f"{place}: expected a free place or a file, got a device or a pipe"):
        write_text(tmp_path / place, "text")
    assert not Path(f"{tmp_path / place}.part").exists()


def test_the_current_folder_is_no_place_for_a_file() -> None:
    with pytest.raises(InputError, match=r"\.: expected a free place or a file, got a folder"):
        write_text(Path(), "text")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    blocking, folder = tmp_path / "data.csv", tmp_path / "folder"
    blocking.touch()
    folder.mkdir()
    for place in (blocking, blocking / "x/y"):
        with pytest.raises(
            InputError, match=rf"{place}: expected a folder, got the file {blocking}; name another place"
        ):
            folder_of(str(place))
    above = rf"expected folders above it, got the file {blocking}; name another place"
    with pytest.raises(InputError, match=rf"{blocking}/x/y: {above}"):
        write_text(blocking / "x/y", "text")
    with pytest.raises(InputError, match=rf"{blocking}/x: {above}"):
        folder_beside(blocking / "x")
    with pytest.raises(InputError, match=rf"{folder}: expected a free place or a file, got a folder; name another"):
        write_text(folder, "text")
    with pytest.raises(InputError, match=rf"{blocking}: expected a free place or a folder, got a file; name another"):
        replace_folder(folder_beside(blocking), blocking, mark="mark")


def test_where_moving_fails_the_older_folder_stays(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "mark").write_text("old")
    beside = folder_beside(place)
    (beside / "mark").write_text("new")
    beside.rename(tmp_path / "gone")
    with pytest.raises(OSError, match="No such file or directory; make room"):
        replace_folder(beside, place, mark="mark")
    assert (place / "mark").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone", "run"]


def test_half_a_file_does_not_stay_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("older")
    monkeypatch.setattr(os, "fsync", full)
    for own in ("", "0123"):
        with pytest.raises(OSError, match="make room"):
            write_bytes(tmp_path / "a", b"newer", own=own)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "older")]
