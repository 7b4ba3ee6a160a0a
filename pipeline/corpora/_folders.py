"""The audio files of corpora that have no list of trials, only folders."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from pipeline.audio import decode


def audio_files(folder: Path) -> list[Path]:
    """The audio files directly in a folder, by name.

    Names that begin with a dot are left out: macOS puts a file `._a.wav` beside `a.wav`, which holds no audio.
    """
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.suffix.lower() in decode.SUFFIXES)


def other_root(root: Path, pattern: str) -> str:
    """A remark for a message, where what a root lacks lies below another folder, in it or above it; else empty."""
    above = (place for place in list(root.absolute().parents)[:2] if any(place.glob(pattern)))
    below = (root / found.relative_to(root).parts[0] for found in sorted(root.glob(f"*/{pattern}")))
    place = next(chain(below, above), None)
    return "" if place is None else f"; with `root: {place}` they are there"
