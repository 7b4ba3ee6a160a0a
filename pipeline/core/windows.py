"""Several windows of an utterance: how many, where they begin, and the names under which their features are cached.

The first window has the name of the view alone, such as `clean` or `mp3_32`. Each later one is cached beside it, named
by all that its place depends on: `window_1_of_3` of the clean utterance, or `window_1_of_3_hop_8000`, and
`mp3_32_window_1_of_3` of a view. So one window stays as it is, and other choices of windows share the store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.core.contracts import CLEAN

MOST = 1_000  # windows of an utterance
_NAME = re.compile(r"(?:(.+)_)?window_([1-9][0-9]{0,3})_of_([1-9][0-9]{0,3})(?:_hop_([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Window:
    """One of `count` windows, numbered from 0; 0 is the first. hop: samples at 16 kHz from one to the next, or None."""

    number: int
    count: int
    hop: int | None = None

    def name(self, view: str = CLEAN) -> str:
        """The name of its features in a store: those of an utterance in a view."""
        if self.number == 0:
            return view
        own = f"window_{self.number}_of_{self.count}" + (f"_hop_{self.hop}" if self.hop else "")
        return own if view == CLEAN else f"{view}_{own}"

    def start(self, samples: int, *, length: int) -> int:
        """Where the window begins in an utterance of this many samples. length: of a window, in samples.

        Windows begin `hop` apart. Without a hop, or where the utterance is too short for it, they are spread evenly,
        and the last one ends with the utterance. In an utterance no longer than one window all begin with it.
        """
        steps = self.count - 1
        room = max(samples - length, 0)
        reach = room if self.hop is None else min(room, self.hop * steps)
        return self.number * reach // max(steps, 1)


FIRST = Window(0, 1)


def parse(name: str) -> tuple[str, Window]:
    """The view and the window of the name of cached features. A name that has no later window is that of a view."""
    found = _NAME.fullmatch(name)
    if not found or not int(found[2]) < int(found[3]) <= MOST:
        return name, FIRST
    return found[1] or CLEAN, Window(int(found[2]), int(found[3]), int(found[4]) if found[4] else None)
