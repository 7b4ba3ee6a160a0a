"""Several windows of an utterance: how many, where they begin, and the names under which their features are cached.

The first window is that of the view `clean`. Each later one is cached beside it like a view, named by all that its
place depends on: `window_1_of_3`, or `window_1_of_3_hop_8000`. So one window stays as it is, and other choices of
windows share the store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST = 1_000  # windows of an utterance
_NAME = re.compile(r"window_([1-9][0-9]{0,3})_of_([1-9][0-9]{0,3})(?:_hop_([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Window:
    """One of `count` windows, numbered from 0; 0 is the first. hop: samples at 16 kHz from one to the next, or None."""

    number: int
    count: int
    hop: int | None = None

    @property
    def name(self) -> str:
        """The name of its features in a store, for all but the first one."""
        return f"window_{self.number}_of_{self.count}" + (f"_hop_{self.hop}" if self.hop else "")

    def start(self, samples: int, *, length: int) -> int:
        """Where the window begins in an utterance of this many samples. length: of a window, in samples.

        Windows begin `hop` apart. Without a hop, or where the utterance is too short for it, they are spread evenly,
        and the last one ends with the utterance. In an utterance no longer than one window all begin with it.
        """
        steps = self.count - 1
        room = max(samples - length, 0)
        reach = room if self.hop is None else min(room, self.hop * steps)
        return self.number * reach // max(steps, 1)


def parse(name: str) -> Window | None:
    """The window of a name; None where no window has it."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    number, count = int(found[1]), int(found[2])
    return Window(number, count, int(found[3]) if found[3] else None) if number < count <= MOST else None
