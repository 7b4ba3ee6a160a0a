"""Recordings of the user's own that views take sound from: noise, speech, music, impulse responses of rooms.

A list in the folder `data/recordings` names the files of one kind, as `sha256sum` prints them:

    5f0c...e1  /data/musan/noise/free-sound/noise-free-sound-0000.wav

The list decides, and not the folder that the files are in: DVC depends on the list, and each file is held against its
checksum when it is read. Files are numbered in the order of their checksums, so that their names and places change no
draw.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import channels, decode
from pipeline.core.errors import InputError
from pipeline.core.files import in_project
from pipeline.core.sections import MEAN, Channel

FOLDER = Path("data/recordings")  # of the lists
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")

CHANGED = "the list changed while it was in use; run the same command again"


@dataclass(frozen=True)
class Recordings:
    """The recordings of a list. digest: sixteen hex digits of the sha256 over their checksums."""

    listing: Path
    digest: str

    def __len__(self) -> int:
        return len(self._files())

    def read(self, number: int, *, channel: Channel = MEAN) -> NDArray[np.float64]:
        """All samples of one recording, (n,) at 16 kHz.

        Raises InputError for a file that is missing, is no sound or only silence, or has another checksum; and where
        the list is another one by now.
        """
        sha256, path = self._files()[number]
        try:
            heard = decode.read(in_project(path), channel=channel)
        except InputError as error:
            raise InputError(f"{error}; or take it out of {self.listing}") from None
        got, _ = channels.of_content(heard.content)
        if not sha256.startswith(got):
            raise InputError(
                f"{path}: expected the file that {self.listing} lists (sha256 {sha256[:16]}...), got {got}...; put it "
                "back, or list the files anew"
            )
        return heard.samples.astype(np.float64)

    def _files(self) -> tuple[tuple[str, str], ...]:
        try:
            facts = self.listing.stat()
        except OSError:
            raise InputError(f"{self.listing}: {CHANGED}") from None
        return _same(self.listing, self.digest, (facts.st_size, facts.st_mtime_ns))


def of(kind: str, folder: Path) -> Recordings:
    """The recordings that `<kind>.txt` in a folder lists. Raises InputError where it is missing or no such list."""
    listing = folder / f"{kind}.txt"
    if not listing.is_file():
        raise InputError(
            f"{listing}: expected a list of recordings, got no file; make it with `find FOLDER -name '*.wav' -print0 | "
            f"xargs -0r sha256sum > {listing}`"
        )
    return Recordings(listing, _digest(_listed(listing)))


@functools.lru_cache(maxsize=16)
def _same(listing: Path, digest: str, _facts: tuple[int, int]) -> tuple[tuple[str, str], ...]:
    """The files of a list, read again when its size or time changes. Raises InputError where it has another digest."""
    found = _listed(listing)
    if _digest(found) != digest:
        raise InputError(f"{listing}: {CHANGED}")
    return found


def _listed(listing: Path) -> tuple[tuple[str, str], ...]:
    """Checksum and path of each file of a list, in the order of the checksums; of equal files the first."""
    found: dict[str, str] = {}
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{listing}: expected a list of recordings in UTF-8, got what cannot be read: {error}"
        ) from None
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line)
        if match is None or match[2] == "-":
            raise InputError(
                f"{listing}:{number}: expected a line of `sha256sum` (64 hex digits, two spaces, the path of a file), "
                f"got {line[:100]!r}"
            )
        found.setdefault(match[1], match[2])
    if not found:
        raise InputError(f"{listing}: expected at least one recording, got an empty list; is the folder empty?")
    return tuple(sorted(found.items()))


def _digest(files: tuple[tuple[str, str], ...]) -> str:
    return hashlib.sha256("".join(f"{sha256}\n" for sha256, _ in files).encode()).hexdigest()[:16]
