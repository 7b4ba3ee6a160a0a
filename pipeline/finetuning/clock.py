"""The time and memory that a fine-tuning takes, from its first steps."""

from __future__ import annotations

import itertools
import time

import torch

from pipeline.finetuning import memory
from pipeline.training.loop import Say

TIMED = 5  # steps from which the time of an epoch is estimated; the one before them warms up


class Clock:
    """Says once, after the first steps, how long an epoch takes, and how much memory of a GPU."""

    def __init__(self, *, each: int, epochs: int, device: torch.device, say: Say) -> None:
        self._each, self._epochs, self._device, self._say = each, epochs, device, say
        self._count = itertools.count()
        self._start = 0.0

    def tick(self) -> None:
        """A step is done."""
        count = next(self._count)
        if count == 0:
            self._start = time.perf_counter()
            if taken := memory.peak(self._device):
                self._say(taken)
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
