"""A trained system as the Speech Anti-Spoofing Arena runs one: `load`, `score`, `score_batch`, `unload`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import detect


class ArenaModel:
    """A run of the project in the current folder, or the package in a folder, behind the Arena's interface.

    Higher scores mean more bona fide. A clip that cannot be scored raises InputError; the Arena skips it.
    """

    expected_sample_rate = 16_000  # Hz; other rates are resampled

    def __init__(self, package: str) -> None:
        self.package = package
        self._system: detect.System | None = None

    def load(self) -> None:
        """Load the weights. Raises InputError where the package is not whole."""
        self._system = detect.load(self.package, windows="run")  # as the leaderboard has it

    def score(self, audio: NDArray[np.float32], sr: int) -> float:
        """The score of a clip, (n,) float32 at `sr` Hz."""
        if self._system is None:
            self.load()
        assert self._system is not None  # noqa: S101  # just loaded
        return self._system.score_samples(audio, sr)

    def score_batch(self, audios: Sequence[NDArray[np.float32]], srs: Sequence[int]) -> list[float]:
        """The scores of several clips."""
        return [self.score(audio, sr) for audio, sr in zip(audios, srs, strict=True)]

    def unload(self) -> None:
        """Free the memory of the weights."""
        self._system = None
