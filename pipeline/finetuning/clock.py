"""The time that a fine-tuning takes, estimated from its first steps."""

from __future__ import annotations

import itertools
import time

from pipeline.training.loop import Say

TIMED = 5  # steps from which the time of an epoch is estimated; the one before them warms up


class Clock:
    """Says once, after the first steps, how long an epoch takes."""

    def __init__(self, *, each: int, epochs: int, say: Say) -> None:
        self._each, self._epochs, self._say = each, epochs, say
        self._count = itertools.count()
        self._start = 0.0

    def tick(self) -> None:
        """A step is done."""
        count = next(self._count)
        if count == 0:
            self._start = time.perf_counter()
        if count == TIMED:
            epoch = (time.perf_counter() - self._start) / TIMED * self._each
            self._say(
                f"about {_duration(epoch)} an epoch, {_duration(epoch * self._epochs)} for all {self._epochs}, without "
                "scoring the dev set"
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
