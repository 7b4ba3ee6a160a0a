"""Remembered checksums: those of the files as they are, or computed again."""

import os
import time
from pathlib import Path

import pytest

from pipeline.encoder import checksums


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(checksums, "SETTLED_S", 0)
    return tmp_path / "bonafide" / "checksums.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_text("a")
    return path


def ask(*files: Path, by: str = "way 1", answer: str = "new") -> str:
    return checksums.checksum(checksums.facts(files), by=by, compute=lambda: answer)


def test_it_is_computed_once(place: Path, file: Path) -> None:
    assert ask(file, answer="first") == "first"
    assert ask(file) == "first"
    assert ask(file, by="way 2") == "new"
    assert ask(file, answer="third") == "first"


def test_a_file_that_changed_is_computed_again_whatever_its_times_say(place: Path, file: Path) -> None:
    ask(file, answer="first")
    before = file.stat()
    time.sleep(0.02)  # longer than a tick of the file system's clock
    file.write_text("b")  # of the same size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert ask(file) == "new"


def test_another_file_and_a_copy_in_its_place_are_computed_again(place: Path, file: Path) -> None:
    ask(file, answer="first")
    other = file.with_name("other")
    other.write_text("a")
    assert ask(other, answer="second") == "second"
    assert ask(file, other, answer="third") == "third"
    os.replace(other, file)
    assert ask(file) == "new"


def test_what_changed_moments_ago_is_not_remembered(place: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "SETTLED_S", 60)
    assert [ask(file, answer=answer) for answer in "ab"] == ["a", "b"]
    monkeypatch.setattr(checksums, "SETTLED_S", 0)
    monkeypatch.setattr(checksums.time, "time", lambda: 0.0)  # the clock was set back
    monkeypatch.setattr(checksums.time, "time_ns", lambda: 0)
    assert [ask(file, answer=answer) for answer in "ab"] == ["a", "b"]
    assert not place.exists()


def test_nothing_is_remembered_of_no_files(place: Path) -> None:
    assert [ask(answer=answer) for answer in "ab"] == ["a", "b"]


def test_a_damaged_list_or_a_home_that_cannot_be_written_costs_time_alone(
    place: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(file, answer="first")
    place.write_text("{")
    assert ask(file, answer="second") == "second"
    assert ask(file) == "second"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert [ask(file, answer=answer) for answer in "ab"] == ["a", "b"]


def test_the_list_stays_short(place: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MOST", 3)
    for i in range(5):
        ask(file, by=str(i), answer=str(i))
    assert list(checksums._known().values()) == ["2", "3", "4"]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(place: Path, file: Path) -> None:
    before = checksums.facts([file])
    time.sleep(0.02)
    file.write_text("b")
    assert checksums.checksum(before, by="way 1", compute=lambda: "of a, or of b") == "of a, or of b"
    assert ask(file) == "new"

    def change() -> str:
        time.sleep(0.02)
        file.write_text("c")
        return "of b"

    before = checksums.facts([file])
    assert checksums.checksum(before, by="way 2", compute=change) == "of b"
    assert ask(file, by="way 2") == "new"


def test_what_was_read_before_a_change_is_not_taken_for_what_is_known_since(place: Path, file: Path) -> None:
    before = checksums.facts([file])
    time.sleep(0.02)
    file.write_text("b")
    ask(file, answer="of b")
    assert checksums.checksum(before, by="way 1", compute=lambda: "of a") == "of a"
    assert ask(file) == "of b"


def test_a_file_that_is_not_there_is_not_remembered(place: Path, tmp_path: Path) -> None:
    assert [ask(tmp_path / "none", answer=answer) for answer in "ab"] == ["a", "b"]


def test_a_link_that_is_switched_while_it_is_read_is_not_remembered(place: Path, file: Path) -> None:
    other, link = file.with_name("other"), file.with_name("link")
    other.write_text("b")
    link.symlink_to(file)
    before = checksums.facts([link])
    link.unlink()
    link.symlink_to(other)
    assert checksums.checksum(before, by="way 1", compute=lambda: "of b") == "of b"
    assert ask(file) == "new"
