"""Working ahead: results in order, a bounded number of items ahead, and no thread that outlives its use."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from pipeline.core import ahead


def test_results_come_in_the_order_of_the_items() -> None:
    def slow(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    assert list(ahead.in_order(slow, range(40), threads=4, ahead=8)) == [i * i for i in range(40)]
    assert list(ahead.in_order(slow, [], threads=4, ahead=8)) == []


def test_items_are_taken_as_far_ahead_as_asked_and_worked_on_by_threads() -> None:
    taken: list[int] = []
    done: list[str] = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    with contextlib.closing(
        ahead.in_order(lambda _item: done.append(threading.current_thread().name), items(), threads=2, ahead=5)
    ) as results:
        for used in range(1, 10):
            next(results)
            assert len(taken) <= used + 5
    assert 9 <= len(taken) <= 15
    assert all(name.startswith("ahead") for name in done)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_error_comes_in_its_place() -> None:
    def fussy(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = ahead.in_order(fussy, range(9), threads=2, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
