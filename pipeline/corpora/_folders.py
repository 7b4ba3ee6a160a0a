"""The audio files of corpora that have no list of trials, only folders."""

from __future__ import annotations

from pathlib import Path

from pipeline.audio import decode


def audio_files(folder: Path) -> list[Path]:
    """The audio files directly in a folder, by name.

    Names that begin with a dot are left out: macOS puts a file `._a.wav` beside `a.wav`, which holds no audio.
    """
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.suffix.lower() in decode.SUFFIXES)


def deeper(root: Path, pattern: str) -> str:
    """A remark for a message, where what a root lacks lies in a folder of it; empty where it does not."""
    found = next(iter(sorted(root.glob(f"*/{pattern}"))), None)
    return "" if found is None else f"; with `root: {root / found.relative_to(root).parts[0]}` they are there"
