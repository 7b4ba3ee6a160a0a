"""The samples of one file as a decoder gives them: the mean of the channels, and what is wrong with it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import numpy as np
import soxr

from pipeline.audio import channels
from pipeline.audio.windowing import MIN_SAMPLES, SAMPLE_RATE, Samples
from pipeline.core.errors import InputError
from pipeline.core.sections import MEAN, Channel

RATES = (1_000, 1_000_000)  # Hz; a header with another rate is wrong
LARGE = 2**24  # samples of one channel: files with more, 17 minutes at 16 kHz, are decoded one at a time
MOST = 2**29  # samples of one channel, at the rate of the file or at 16 kHz: the most that is decoded; 2 GB of memory
ABSURD = 1e3  # full scale is 1
LOUD = 4.0  # a peak above this is not clipping: the samples have another scale
CANCELS = 3  # channels cancel where the peak of their mean is this much below that of one channel alone
MARGIN_S = 1  # kept beyond what is wanted of other rates; 0.1 s is enough for the same bits after resampling
REMEDY = "hear one of them: `channel: left` in its set of the parameters, or `bonafide detect --channel left`"
Decoder = Literal["libsndfile", "PyAV"]

_ONE_LARGE = threading.Lock()


class Hearing:
    """How one file is heard: which channel, how much of it is kept, and the memory that it may take.

    keep: how many samples at 16 kHz are kept, from the start; None for all. What follows is decoded, checked, counted
    and forgotten.
    A file of which many samples are kept waits until no other such file is decoded.
    """

    def __init__(self, name: str, *, channel: Channel = MEAN, keep: int | None = None) -> None:
        self.name, self.channel = name, channel
        self.keep = None if keep is None else max(keep, MIN_SAMPLES)  # a file of fewer is refused
        self.samples = 0
        self.before = 0  # samples at 16 kHz of the parts that were heard before this one
        self._holds_lock = False

    def __enter__(self) -> Hearing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._holds_lock:
            _ONE_LARGE.release()

    def wanted(self, rate: int) -> float:
        """How many samples of the next part are kept, at its rate: with a margin, so that resampling gives the same."""
        if self.keep is None:
            return math.inf
        left = self.keep - self.before
        return 0 if left <= 0 else -(-left * rate // SAMPLE_RATE) + MARGIN_S * rate * (rate != SAMPLE_RATE)

    def take(self, samples: int, rate: int) -> None:
        """Make room for more samples of one channel. Raises InputError where the file has too many."""
        self.samples += max(samples, samples * SAMPLE_RATE // rate)
        self.check(self.samples, rate)
        if self.keep is None and self.samples > LARGE and not self._holds_lock:
            self._holds_lock = _ONE_LARGE.acquire()

    def check(self, samples: int, rate: int) -> None:
        """Raise InputError where a file has more samples than are decoded."""
        if samples > MOST:
            hours = MOST / max(rate, SAMPLE_RATE) / 3600
            raise InputError(
                f"{self.name}: the sound is longer than the {hours:.1f} hours at {rate} Hz that are decoded at most; "
                "cut it into shorter files, or mend its header if that is wrong"
            )


class Track:
    """A track that is being decoded: the mean of its channels or one of them, and what is wrong with its samples.

    length: the samples that were decoded, also where not all are kept. channels: those that
    are heard. lowest, highest: of their mean. peak: of any of them. bad: how many samples are NaN or infinite. absurd:
    the first value beyond ABSURD, and its time in seconds.
    """

    def __init__(self, name: str, rate: int, hearing: Hearing) -> None:
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(
                f"{name}: expected a sample rate from {RATES[0]} to {RATES[1]} Hz, got {rate} Hz; mend the header"
            )
        self.name, self.rate, self.hearing = name, rate, hearing
        self.decoder: Decoder = "libsndfile"
        self.length, self.channels, self.bad = 0, 0, 0
        self.kept = hearing.wanted(rate)
        self.lowest, self.highest, self.peak = np.inf, -np.inf, 0.0
        self.absurd: tuple[float, float] | None = None
        self._mono: Samples = np.empty(0, np.float32)

    @property
    def mono(self) -> Samples:
        """The samples so far that are kept, (min(length, kept),) float32 at the rate of the file."""
        return self._mono[: self._stored]

    @property
    def _stored(self) -> int:
        return int(min(self.length, self.kept))

    @property
    def seconds(self) -> float:
        """How long it is so far."""
        return self.length / self.rate

    def add(self, block: Samples) -> None:
        """Append a block (n, channels) float32. Raises InputError where the file gets too long."""
        if not len(block):
            return
        self.hearing.take(len(block), self.rate)
        block, mono = channels.mono(block, self.hearing.channel, name=self.name)
        self.channels = block.shape[1]
        self._measure(block, mono)
        self._store(mono)
        self.length += len(mono)

    def _store(self, mono: Samples) -> None:
        """Keep the samples of a block that are wanted."""
        stored = self._stored
        mono = mono[: int(min(len(mono), self.kept - stored))]
        if not stored:
            self._mono = mono if self.kept == math.inf else mono.copy()  # a part would hold on to the whole block
        elif len(mono):
            if stored + len(mono) > len(self._mono):
                if self._mono.base is not None or not self._mono.flags.owndata:
                    self._mono = self._mono.copy()
                # realloc moves pages and copies nothing: memory never holds the samples twice
                self._mono.resize(stored + max(len(mono), stored // 4), refcheck=False)
            self._mono[stored : stored + len(mono)] = mono

    def _measure(self, block: Samples, mono: Samples) -> None:
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.bad += int(np.count_nonzero(~np.isfinite(mono)))
            return
        peak = max(high, -low)
        self.peak = max(self.peak, peak)
        if peak > ABSURD and self.absurd is None:
            row = int((np.abs(block) > ABSURD).any(axis=1).argmax())
            self.absurd = float(block[row][np.abs(block[row]).argmax()]), (self.length + row) / self.rate
        if self.channels > 1:
            low, high = float(mono.min()), float(mono.max())
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)


def samples_of(name: str, tracks: Sequence[Track], *, keep: int | None = None) -> Samples:
    """The samples of all parts of a file, (samples,) at 16 kHz, or the first `keep` of them.

    Raises InputError for unusable samples, also behind those that are kept.
    """
    if sum(track.length * SAMPLE_RATE // track.rate for track in tracks) < MIN_SAMPLES:
        raise InputError(
            f"{name}: expected at least {1000 * MIN_SAMPLES // SAMPLE_RATE} ms of audio (one frame), "
            f"got {1000 * sum(track.seconds for track in tracks):.1f} ms; remove the trial"
        )
    for track in tracks:
        if track.bad:
            raise InputError(f"{track.name}: {track.bad} samples are NaN or infinite; remove the trial")
        if track.absurd:
            value, seconds = track.absurd
            raise InputError(
                f"{track.name}: expected samples within ±1, got {value:g} at {seconds:.4f} s; the samples are damaged, "
                "or have the scale of integers: write the file anew with full scale at 1"
            )
    if max(track.highest for track in tracks) == min(track.lowest for track in tracks):
        if max(track.peak for track in tracks) > abs(tracks[0].highest):
            raise InputError(f"{name}: the channels cancel when they are averaged; {REMEDY}")
        raise InputError(f"{name}: the audio is silent (every sample is {tracks[0].highest:g}); remove the trial")
    found = [_at_16_khz(track) for track in tracks if len(track.mono)]
    whole = found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.float32), *found])
    return np.ascontiguousarray(whole[:keep], dtype=np.float32)


def _at_16_khz(track: Track) -> Samples:
    if track.rate == SAMPLE_RATE:
        return track.mono
    resampled: Samples = soxr.resample(track.mono, track.rate, SAMPLE_RATE, quality="HQ")
    return resampled


def warnings_of(tracks: Sequence[Track]) -> tuple[str, ...]:
    """What makes the samples of a file doubtful, with the remedy."""
    found = []
    for track in tracks:
        mean = max(track.highest, -track.lowest)
        if track.peak > LOUD:
            found.append(
                f"the peak of the samples is {track.peak:.4g}, and full scale is 1; write the file anew at that scale"
            )
        if track.channels > 1 and mean * track.channels * CANCELS < track.peak:
            found.append(
                f"the channels cancel when they are averaged: the peak of a channel is {track.peak:.3g}, that of the "
                f"mean {mean:.3g}; {REMEDY}"
            )
    return tuple(dict.fromkeys(found))
