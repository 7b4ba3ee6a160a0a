"""The MOS that the corpus itself gives, in its own column: nothing is estimated."""

from __future__ import annotations

estimate = None
