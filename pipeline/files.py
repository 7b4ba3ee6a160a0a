"""Writing small files so that they are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and rename it there; folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes beside their place, flush them to the disk, rename them there; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed name: what a killed run leaves behind is overwritten by the next.
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
