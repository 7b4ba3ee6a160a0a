"""The progress of an extraction: a bar on a terminal, a line each minute elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta

from tqdm import tqdm

SAY_S = 60  # seconds from one line to the next where there is no terminal


class ExtractionProgress:
    """Shows a bar on a terminal; elsewhere, as in the log of a cluster, it prints a line each minute."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="utt", disable=None)
        self._total = total
        self._done = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> ExtractionProgress:
        return self

    def update(self, count: int) -> None:
        """Count more utterances that are done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._bar.disable and now - self._said >= SAY_S:
            self._said = now
            rate = self._done / (now - self._began)
            left = timedelta(seconds=round((self._total - self._done) / rate))
            print(f"{self._done} of {self._total} utterances, {rate:.1f} a second, {left} left", flush=True)  # noqa: T201

    def __exit__(self, *_: object) -> None:
        self._bar.close()
