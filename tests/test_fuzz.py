"""Some dozens of mutated files of each kind; `bench/faults.py` tries thousands."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from tests import fuzz, fuzz_kinds
from tests.fuzz import Kind, MisreadError

CASES = 8


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", fuzz_kinds.KINDS, ids=lambda make: make.__name__)
def test_mutated_files_are_read_right_or_refused(make: Callable[[Path], Kind], tmp_path: Path) -> None:
    kind = make(tmp_path)
    found = fuzz.tried(kind, range(CASES), seed=1)
    assert not found.defects, "\n".join(found.defects)
    assert found.outcomes.total() == CASES
    assert found.outcomes[fuzz.REFUSED] > 1


@pytest.mark.parametrize("make", fuzz_kinds.KINDS, ids=lambda make: make.__name__)
@pytest.mark.usefixtures("one_thread")
def test_the_examples_themselves_are_fine(
    make: Callable[[Path], Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = make(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for which, data in enumerate(kind.examples):
        kind.check(data, which)


def test_every_defect_is_seen() -> None:
    def check(data: bytes, _which: int) -> None:
        what = data[0] % 7
        if what == 0:
            raise InputError("no")
        if what == 1:
            raise ValueError("oh")
        if what == 2:
            raise MisreadError("other")
        if what == 3:
            os._exit(7)
        if what == 4 and len(data) % 2:
            time.sleep(60)
        if what == 4:
            start = time.process_time()
            while time.process_time() < start + 0.15:
                pass
        if what == 5:
            raise InputError("")

    kind = Kind("x", [bytes([i]) * 40 for i in range(7)], check)
    cases = range(60)
    found = fuzz.tried(kind, cases, seed=0, patience=0.1)
    wanted = {"refused": 0, "traceback": 0, "misread": 0, "crash": 0, "hang": 0, "fine": 0}
    names = ["refused", "traceback", "misread", "crash", "hang", "misread", "fine"]
    for number in cases:
        data, _ = fuzz.case(kind, number, seed=0)
        wanted[names[data[0] % 7] if data else "traceback"] += 1
    assert dict(found.outcomes) == {name: count for name, count in wanted.items() if count}
    assert len(found.defects) == len(cases) - wanted["refused"] - wanted["fine"]
