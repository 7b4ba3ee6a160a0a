"""Decode audio files to float32 mono samples at 16 kHz.

libsndfile is tried first. It refuses M4A, WebM, Ogg FLAC and some FLAC files (some of ASVspoof 2021; one cause is
irregular metadata), and it guesses the length of MP3 and FLAC files that do not state it. PyAV (FFmpeg), the extra
`av`, decodes those. FFmpeg skips damaged parts and accepts files that are cut off. So its samples are compared with the
length and the checksum that the file states.

A file is heard as a whole or refused. Files that were joined to one are decoded one after another. Where a header
states too little, the length that `containers` and `counting` find in the bytes decides.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.audio import by_libsndfile, by_pyav, channels, containers, joined, parquet_rows, whole
from pipeline.audio.track import Decoder, Hearing, Track, samples_of, warnings_of
from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.core.errors import InputError
from pipeline.core.sections import MEAN, Channel

SUFFIXES = frozenset(
    {".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}
    | {".3gp", ".aac", ".amr", ".m4a", ".mka", ".mov", ".mp4", ".webm", ".wma"}  # by PyAV
)


class Audio(NamedTuple):
    """A decoded file: (samples,) float32 mono at 16 kHz, its content, the decoder, and warnings.

    content: the digest of the file's bytes, and the channel unless it is the mean; see `channels`.
    warnings: what makes the samples doubtful, with the remedy; mostly none.
    """

    samples: Samples
    content: str
    decoder: Decoder
    warnings: tuple[str, ...] = ()


def digest(data: bytes) -> str:
    """The first sixteen hex digits of the sha256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def load(path: Path, *, content: str | None = None) -> Samples:
    """All samples of a file, (samples,) float32 mono at 16 kHz. See `read`."""
    return read(path, content=content).samples


def read(path: Path, *, content: str | None = None, channel: Channel = MEAN, keep: int | None = None) -> Audio:
    """Read and decode a file. Channels are averaged, and other rates are resampled to 16 kHz.

    content: what the trial table says of the file: the digest that it should have, and the channel; None accepts any
    bytes. channel: the channel that is heard, where no content says it. keep: how many samples are wanted, from the
    start; None for all. They are the same as those of the whole, to the bit.

    With `keep`, a file is still decoded to its end, in blocks, and all checks are made: memory is bounded, not time.
    `prepare` has made them, but perhaps by other versions of the decoders or for a table from elsewhere, and only the
    end of a file shows which decoder must decode its beginning.

    Raises InputError for a file that is missing, empty, no audio, cut off, damaged, shorter than one frame, longer than
    `MOST`, or silent (all samples are equal); that holds more sound than can be decoded; that has NaN, infinite or
    absurd samples or another digest; that lacks the channel; or that needs PyAV where it is missing.
    """
    data = _bytes(path)
    found = digest(data)
    if content is not None:
        expected, channel = channels.of_content(content)
        if expected != found:
            raise InputError(
                f"{path}: expected the bytes that the trial table knows (digest {expected}), got {found}; the file "
                "changed: run `dvc repro -f prepare`"
            )
    try:
        with Hearing(str(path), channel=channel, keep=keep) as hearing:
            tracks = _tracks(path, data, hearing)
            samples = samples_of(str(path), tracks, keep=keep)
    except MemoryError:
        raise InputError(f"{path}: there is not enough memory to decode it; cut it into shorter files") from None
    decoder: Decoder = "PyAV" if any(track.decoder == "PyAV" for track in tracks) else "libsndfile"
    return Audio(samples, channels.content_of(found, channel), decoder, warnings_of(tracks))


def _tracks(path: Path, data: bytes, hearing: Hearing) -> list[Track]:
    """The parts of a file, decoded one after another."""
    tracks: list[Track] = []
    parts = joined.parts(data)
    for i, part in enumerate(parts):
        track = _decode(_part_name(path, i, len(parts)), part, hearing)
        tracks.append(track)
        hearing.before += track.length * SAMPLE_RATE // track.rate
    return tracks


def _part_name(path: Path, part: int, parts: int) -> str:
    return str(path) if parts == 1 else f"{path}: part {part + 1} of the {parts} that were joined"


def _bytes(path: Path) -> bytes:
    try:
        found = path.read_bytes() if path.is_file() else parquet_rows.read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(f"{path}: there is not enough memory to read it; cut it into shorter files") from None
    if found is None:
        raise InputError(f"{path}: no such file; check the corpus root and the path column")
    if not found:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return found


def of_samples(samples: Samples, rate: int, *, name: str, channel: Channel = MEAN) -> tuple[Samples, tuple[str, ...]]:
    """Samples (n,) or (n, channels) float32 at `rate` Hz, as a file that holds them decodes: (samples,) at 16 kHz.

    Returns them, and what makes them doubtful, as `Audio` has it.

    Raises InputError, which starts with the name, for other arrays and for what `read` refuses in a file.
    """
    found = np.asarray(samples)
    if found.dtype != np.float32 or found.ndim not in (1, 2) or not found.size:
        raise InputError(f"{name}: expected (n,) or (n, channels) float32, got {found.shape} {found.dtype}")
    if rate < 1 or rate != int(rate):
        raise InputError(f"{name}: expected a sample rate in whole Hz, got {rate}")
    with Hearing(name, channel=channel) as hearing:
        track = Track(name, int(rate), hearing)
        track.add(found.reshape(len(found), -1))
        return samples_of(name, [track]), warnings_of([track])


def _decode(name: str, data: bytes, hearing: Hearing) -> Track:
    """Decode one file that is not several. Raises InputError where not all of it can be heard."""
    kind = containers.kind(data)
    if kind in ("wav", "aiff"):
        declared = whole.declared(name, data)
        if declared is not data:
            data, kind = declared, containers.kind(declared) or kind
    if kind == "caf":
        data = containers.caf_with_size(data)
    whole.check_end(name, data, kind)
    before = hearing.samples
    try:
        return by_libsndfile.decode(name, data, kind, hearing)
    except by_libsndfile.UndecodableError as error:
        hearing.samples = before
        return by_pyav.decode(name, data, kind, hearing, reason=str(error))
