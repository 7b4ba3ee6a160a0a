"""Decode audio files to float32 mono samples at 16 kHz.

libsndfile is tried first. It refuses M4A, WebM, Ogg FLAC and some FLAC files (some of ASVspoof 2021; one cause is
irregular metadata), and it guesses the length of MP3 and FLAC files that do not state it. PyAV (FFmpeg), the extra
`av`, decodes those. FFmpeg skips damaged parts and accepts files that are cut off. So its samples are compared with the
length and the checksum that the file states.

A file is heard as a whole or refused. Files that were joined to one are decoded one after another. Where a header
states too little, the length that `containers` and `counting` find in the bytes decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.audio import containers, counting
from pipeline.audio.containers import UNKNOWN_BYTES
from pipeline.audio.windowing import MIN_SAMPLES, SAMPLE_RATE, Samples
from pipeline.core.errors import InputError

SUFFIXES = frozenset(
    {".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}
    | {".3gp", ".aac", ".amr", ".m4a", ".mka", ".mov", ".mp4", ".webm", ".wma"}  # by PyAV
)

UNKNOWN_FRAMES = 2**62  # where a FLAC file does not state its length, libsndfile gives one above this
BLOCK = 1_000_000  # values read at once: a minute of mono at 16 kHz
DELAY_S = 0.1  # the length that a container states may differ this much, by the encoder's delay and padding
DELAY_SAMPLES = 4_608  # four frames of MP3: what a header may declare as delay and padding, beside DELAY_S
OVERHEAD = 8_192  # bytes that the header of uncompressed audio may take, in formats whose chunks are not walked
RATES = (1_000, 1_000_000)  # Hz; a header with another rate is wrong
LARGE = 2**24  # samples of one channel: files with more, 17 minutes at 16 kHz, are decoded one at a time
MOST = 2**29  # samples of one channel, at the rate of the file or at 16 kHz: the most that is decoded; 2 GB of memory
ABSURD = 1e3  # full scale is 1
LOUD = 4.0  # a peak above this is not clipping: the samples have another scale
CANCELS = 3  # channels cancel where the peak of their mean is this much below that of one channel alone
PCM_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "ULAW": 1,
    "ALAW": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
}
WRONG_SIZE = re.compile(r"^(?!\s*(?:Bytes/sec|Block Align|Bit Width)).*?(\d+) \(should be", re.MULTILINE)  # in the log
MPEG_IN_WAV = (0x50, 0x55)  # format tags
READABLE = "WAV, FLAC, OGG, MP3; with the extra `av` also M4A, MOV, WebM, MKA, AAC, AMR, WMA"
Decoder = Literal["libsndfile", "PyAV"]

_ONE_LARGE = threading.Lock()


class Audio(NamedTuple):
    """A decoded file: (samples,) float32 mono at 16 kHz, the digest of the file's bytes, the decoder, and warnings.

    warnings: what makes the samples doubtful, with the remedy; mostly none.
    """

    samples: Samples
    content: str
    decoder: Decoder
    warnings: tuple[str, ...] = ()


class _UndecodableError(Exception):
    """libsndfile cannot decode the file, with the reason; PyAV perhaps can."""


def digest(data: bytes) -> str:
    """The first sixteen hex digits of the sha256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def load(path: Path, *, content: str | None = None) -> Samples:
    """All samples of a file, (samples,) float32 mono at 16 kHz. See `read`."""
    return read(path, content=content).samples


def read(path: Path, *, content: str | None = None) -> Audio:
    """Read and decode a file. Channels are averaged, and other rates are resampled to 16 kHz.

    content: the digest that the file should have; None accepts any.

    Raises InputError for a file that is missing, empty, no audio, cut off, damaged, shorter than one frame, longer than
    `MOST`, or silent (all samples are equal); that holds more sound than can be decoded; that has NaN, infinite or
    absurd samples or another digest; or that needs PyAV where it is missing.
    """
    data = _bytes(path)
    found = digest(data)
    if content not in (None, found):
        raise InputError(
            f"{path}: expected the bytes that the trial table knows (digest {content}), got {found}; the file "
            "changed: run `dvc repro -f prepare`"
        )
    try:
        with _Room(str(path)) as room:
            parts = containers.parts(data)
            tracks = [_decode(_part_name(path, i, len(parts)), part, room) for i, part in enumerate(parts)]
            samples = _samples(str(path), tracks)
    except MemoryError:
        raise InputError(f"{path}: there is not enough memory to decode it; cut it into shorter files") from None
    decoder: Decoder = "PyAV" if any(track.decoder == "PyAV" for track in tracks) else "libsndfile"
    return Audio(samples, found, decoder, _warnings(tracks))


def _part_name(path: Path, part: int, parts: int) -> str:
    return str(path) if parts == 1 else f"{path}: part {part + 1} of the {parts} that were joined"


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the corpus root and the path column")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(f"{path}: there is not enough memory to read it; cut it into shorter files") from None
    if not data:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return data


def of_samples(samples: Samples, rate: int, *, name: str) -> Samples:
    """Samples (n,) or (n, channels) float32 at `rate` Hz, as a file that holds them decodes: (samples,) at 16 kHz.

    Raises InputError, which starts with the name, for other arrays and for what `read` refuses in a file.
    """
    found = np.asarray(samples)
    if found.dtype != np.float32 or found.ndim not in (1, 2) or not found.size:
        raise InputError(f"{name}: expected (n,) or (n, channels) float32, got {found.shape} {found.dtype}")
    if rate < 1 or rate != int(rate):
        raise InputError(f"{name}: expected a sample rate in whole Hz, got {rate}")
    with _Room(name) as room:
        track = _Track(name, int(rate), room)
        track.add(found.reshape(len(found), -1))
        return _samples(name, [track])


# Samples as they come from a decoder


class _Room:
    """The memory that one file may take. A file of many samples waits until no other such file is decoded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self.held = contextlib.ExitStack()

    def __enter__(self) -> _Room:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.held.close()

    def take(self, samples: int, rate: int) -> None:
        """Make room for more samples of one channel. Raises InputError where the file has too many."""
        before = self.samples
        self.samples += max(samples, samples * SAMPLE_RATE // rate)
        if self.samples > MOST:
            hours = MOST / max(rate, SAMPLE_RATE) / 3600
            raise InputError(
                f"{self.name}: the sound is longer than the {hours:.1f} hours at {rate} Hz that are decoded at most; "
                "cut it into shorter files, or mend its header if that is wrong"
            )
        if before <= LARGE < self.samples:
            self.held.enter_context(_ONE_LARGE)


class _Track:
    """A track that is being decoded: the mean of its channels, and what is wrong with its samples.

    lowest, highest: of the mean. peak: of any channel. bad: how many samples are NaN or infinite.
    absurd: the first value beyond ABSURD, and its time in seconds.
    """

    def __init__(self, name: str, rate: int, room: _Room) -> None:
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(
                f"{name}: expected a sample rate from {RATES[0]} to {RATES[1]} Hz, got {rate} Hz; mend the header"
            )
        self.name, self.rate, self.room = name, rate, room
        self.decoder: Decoder = "libsndfile"
        self.length, self.channels, self.bad = 0, 0, 0
        self.lowest, self.highest, self.peak = np.inf, -np.inf, 0.0
        self.absurd: tuple[float, float] | None = None
        self._mono: Samples = np.empty(0, np.float32)

    @property
    def mono(self) -> Samples:
        """The samples so far, (length,) float32 at the rate of the file."""
        return self._mono[: self.length]

    @property
    def seconds(self) -> float:
        """How long it is so far."""
        return self.length / self.rate

    def add(self, block: Samples) -> None:
        """Append a block (n, channels) float32. Raises InputError where the file gets too long."""
        if not len(block):
            return
        self.room.take(len(block), self.rate)
        self.channels = block.shape[1]
        mono = block[:, 0] if self.channels == 1 else block.mean(axis=1, dtype=np.float32)
        self._measure(block, mono)
        if not self.length:
            self._mono = mono
        else:
            if self.length + len(mono) > len(self._mono):
                if self._mono.base is not None or not self._mono.flags.owndata:
                    self._mono = self._mono.copy()
                # realloc moves pages and copies nothing: memory never holds the samples twice
                self._mono.resize(self.length + max(len(mono), self.length // 4), refcheck=False)
            self._mono[self.length : self.length + len(mono)] = mono
        self.length += len(mono)

    def _measure(self, block: Samples, mono: Samples) -> None:
        low, high = float(block.min()), float(block.max())
        if not (np.isfinite(low) and np.isfinite(high)):
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


def _samples(name: str, tracks: Sequence[_Track]) -> Samples:
    """The samples of all parts of a file, (samples,) at 16 kHz. Raises InputError for unusable samples."""
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
            raise InputError(f"{name}: the channels cancel when they are averaged; keep one channel of the file alone")
        raise InputError(f"{name}: the audio is silent (every sample is {tracks[0].highest:g}); remove the trial")
    found = [_at_16_khz(track) for track in tracks]
    return np.ascontiguousarray(found[0] if len(found) == 1 else np.concatenate(found), dtype=np.float32)


def _at_16_khz(track: _Track) -> Samples:
    if track.rate == SAMPLE_RATE:
        return track.mono
    resampled: Samples = soxr.resample(track.mono, track.rate, SAMPLE_RATE, quality="HQ")
    return resampled


def _warnings(tracks: Sequence[_Track]) -> tuple[str, ...]:
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
                f"mean {mean:.3g}; keep one channel of the file alone"
            )
    return tuple(dict.fromkeys(found))


# The bytes before decoding


def _decode(name: str, data: bytes, room: _Room) -> _Track:
    """Decode one file that is not several. Raises InputError where not all of it can be heard."""
    kind = containers.kind(data)
    if kind in ("wav", "aiff"):
        data = _declared(name, data)
        kind = containers.kind(data) or kind
    _check_end(name, data, kind)
    try:
        return _by_libsndfile(name, data, kind, room)
    except _UndecodableError as error:
        room.samples = 0
        return _by_pyav(name, data, kind, room, reason=str(error))


def _declared(name: str, data: bytes) -> bytes:
    """A WAV or AIFF file whose header states all samples; or the MP3 stream inside of a WAV file.

    Raises InputError where the header states fewer samples than there are.
    """
    found = containers.chunks(data)
    if found is None:
        return data
    if found.size == 0 and found.unheard and data.startswith(b"RIFF"):  # from a pipe: nobody filled in the size
        return containers.with_size(data, found)
    if found.size < UNKNOWN_BYTES and found.unheard > max(DELAY_S * found.rate, 0 if found.rate else OVERHEAD):
        size = found.size + found.unheard
        seconds = f" ({found.size / found.rate:.2f} s of {size / found.rate:.2f} s)" if found.rate else ""
        raise InputError(
            f"{name}: the header says that there are {found.size} bytes of samples, and {size} bytes follow{seconds}; "
            "mend the header, as `sox --ignore-length IN OUT` does, or cut off what is no sound"
        )
    if found.codec in MPEG_IN_WAV and found.size:
        return data[found.start : found.start + found.size]
    return data


def _check_end(name: str, data: bytes, kind: str | None) -> None:
    """Raise InputError where the last page of an Ogg file or a box of another container ends after the file."""
    whole = True
    if kind == "ogg":
        whole = counting.ogg_is_whole(data)
    elif kind == "mp4":
        whole = containers.end_of_boxes(data) <= len(data)
    elif kind == "matroska":
        whole = containers.end_of_segment(data) <= len(data)
    if not whole:
        raise _cut_off(name)


def _counted(data: bytes, kind: str | None, rate: int) -> float | None:
    """The seconds of sound in a file by its frames or packets; None where only decoding tells."""
    if kind == "mp3":
        return counting.mpeg(data).seconds
    if kind == "aac":
        return counting.aac_seconds(data)
    if kind == "amr":
        return counting.amr_seconds(data)
    if kind == "ogg":
        found = counting.ogg(data)
        if found.opus is not None:
            return found.opus / 48_000
        return found.largest / rate if found.largest > found.last else None
    return None


def _missing(track: _Track, counted: float | None) -> str:
    """What is missing, in words, where fewer seconds were decoded than were counted; empty where nothing is."""
    if counted is None or track.seconds >= counted - DELAY_S - DELAY_SAMPLES / track.rate:
        return ""
    return f"{counted:.2f} s of sound lie in the file, {track.seconds:.2f} s of them were decoded"


def _cut_off(name: str) -> InputError:
    return InputError(f"{name}: the file is shorter than its header says; it is cut off, copy or download it again")


def _damaged(name: str, details: str) -> InputError:
    return InputError(f"{name}: the audio breaks off or is damaged ({details}); copy or download it again")


# libsndfile


class _Memory(io.BytesIO):
    """Bytes as a file. A damaged header sends libsndfile to places before its start; it then stays where it is."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset if there is one, and return the place."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _by_libsndfile(name: str, data: bytes, kind: str | None, room: _Room) -> _Track:
    """Decode by libsndfile. Raises _UndecodableError where PyAV should try, InputError for a file that is cut off."""
    try:
        with soundfile.SoundFile(_Memory(data)) as file:
            # libsndfile accepts a WAV file that is cut off. Only its log says so.
            if any(int(size) < UNKNOWN_BYTES for size in WRONG_SIZE.findall(file.extra_info)):
                raise _cut_off(name)
            _check_stated(name, data, kind, file)
            track = _Track(name, file.samplerate, room)
            if file.frames > MOST:
                room.take(file.frames, file.samplerate)
            # Read in blocks: a damaged header may state billions of samples, and one read would allocate them all.
            size = max(1, BLOCK // file.channels)
            block = file.read(size, dtype="float32", always_2d=True)
            track.add(block)
            while len(block) == size:
                block = file.read(size, dtype="float32", always_2d=True)
                track.add(block)
            if track.length < file.frames:
                raise InputError(
                    f"{name}: expected {file.frames} samples by the header, got {track.length}; the file is cut off, "
                    "copy or download it again"
                )
            _check_heard(track, data, kind, file)
            return track
    except soundfile.LibsndfileError as error:
        raise _UndecodableError(error.error_string.strip().rstrip(".")) from None


def _check_stated(name: str, data: bytes, kind: str | None, file: soundfile.SoundFile) -> None:
    """Compare the length by the header with the frames. Raises as `_by_libsndfile`."""
    if file.frames > UNKNOWN_FRAMES:
        raise _UndecodableError("the file does not state its length")
    if kind == "flac" and file.format == "FLAC" and not counting.flac_ends(data, file.frames):
        raise _UndecodableError(f"the last frame does not end at the {file.frames} samples that the header states")
    if file.format == "MP3":
        found = counting.mpeg(data)
        if not found.stated:
            raise _UndecodableError("the file does not state its length")
        if found.stated > found.frames + 1:  # some encoders count the frame that holds the count
            raise _damaged(name, f"{found.frames} frames of the {found.stated} that the header states")
        if found.stated < found.frames - 1:
            raise _UndecodableError(f"the header states {found.stated} frames, and {found.frames} are there")


def _check_heard(track: _Track, data: bytes, kind: str | None, file: soundfile.SoundFile) -> None:
    """Compare what was decoded with the bytes of the file. Raises as `_by_libsndfile`."""
    if missing := _missing(track, _counted(data, kind, track.rate)):
        raise _UndecodableError(missing)
    width = PCM_BYTES.get(file.subtype, 0) * file.channels
    if kind in ("caf", "au", None) and width and len(data) - track.length * width > OVERHEAD:
        raise InputError(
            f"{track.name}: the header says {track.seconds:.2f} s, and the file has room for "
            f"{len(data) / width / track.rate:.2f} s of sound; mend the header, or cut off what is no sound"
        )


# PyAV


def _by_pyav(name: str, data: bytes, kind: str | None, room: _Room, *, reason: str) -> _Track:
    """Decode by PyAV. reason: why libsndfile refused the file.

    Raises InputError for a file that is no audio, cut off or damaged, and where PyAV is not installed.
    """
    if kind in (None, "wav", "aiff"):
        other = f"{containers.not_read(data)}, which is not read" if containers.not_read(data) else "none"
        raise InputError(f"{name}: expected an audio file ({READABLE}), got {other} ({reason})")
    try:
        import av  # an extra
    except ImportError:
        raise InputError(
            f'{name}: libsndfile cannot decode it ({reason}); install PyAV, which may: pip install "bonafide[av]"'
        ) from None
    frames = counting.mpeg(data) if kind == "mp3" else None
    if frames and frames.stated and abs(frames.stated - frames.frames) > 1:
        data = data[frames.after_tag :]  # FFmpeg, too, would cut off what a wrong count does not cover
    data = counting.without_tags(data) if frames else data
    try:
        with av.open(io.BytesIO(data), format=kind, metadata_errors="ignore") as file:
            found = _decoded(file, name, room)
    except av.error.FFmpegError as error:
        raise _damaged(name, f"libsndfile: {reason}; PyAV: {error.strerror}") from None
    if found is None:
        raise InputError(f"{name}: expected audio in one known format, got none or several; remove the trial")
    guesses = kind == "asf" and not containers.asf_states_length(data)
    if kind in ("aac", "amr") or guesses or (frames and not frames.stated):
        found = found._replace(stated=0)  # FFmpeg guesses it, too
    details = _missing(found.track, _counted(data, kind, found.track.rate))
    if not details and not _is_whole(found):
        details = f"{found.track.length} samples, not those that it states ({found.stated})"
    if details:
        raise _damaged(name, f"libsndfile: {reason}; PyAV: {details}")
    return found.track


class _Stream(NamedTuple):
    """A track as FFmpeg decoded it, and facts that the file states.

    stated: the number of samples, 0 where unknown. broken: a packet was damaged, or a frame is missing.
    flac_info: the STREAMINFO block, empty for other codecs. checksum: of the samples, for FLAC.
    """

    track: _Track
    stated: int
    broken: bool
    flac_info: bytes
    checksum: bytes


def _decoded(file: Any, name: str, room: _Room) -> _Stream | None:
    """Decode the first audio track of an open container; None where there is none, or its format changes."""
    streams = file.streams.audio
    if not streams or streams[0].codec_context is None:  # no audio, or a codec that FFmpeg does not know
        return None
    stream, context = streams[0], streams[0].codec_context
    is_flac = context.name == "flac"
    context.thread_type = "NONE"  # several files are decoded at once, each by one thread
    if is_flac:
        context.options = {"err_detect": "crccheck+explode"}
    track: _Track | None = None
    first: tuple[str, int, int] | None = None
    broken, expected, checksum = False, None, hashlib.md5(usedforsecurity=False)
    for packet in file.demux(stream):
        broken |= packet.is_corrupt
        for frame in packet.decode():
            if is_flac and stream.time_base * frame.sample_rate == 1:
                # FLAC frames carry the number of their first sample, so a frame that was skipped shows.
                broken |= frame.pts is None or expected not in (None, frame.pts)
                expected = (frame.pts or 0) + frame.samples
            form = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
            if track is None:
                first, track = form, _Track(name, frame.sample_rate, room)
            if form != first:
                return None
            block = frame.to_ndarray()  # (channels, n) if planar, else (1, n * channels)
            block = block.T if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels)
            if is_flac:
                checksum.update(_flac_bytes(block, context.extradata))
            track.add(_full_scale(block))
    if track is None:
        return None
    track.decoder = "PyAV"
    info = context.extradata if is_flac else b""
    return _Stream(track, _stated(file, stream, track.rate), broken, info, checksum.digest())


def _stated(file: Any, stream: Any, rate: int) -> int:
    """The number of samples that a container states, 0 where it does not."""
    if stream.duration:
        return int(stream.duration * stream.time_base * rate)
    return int((file.duration or 0) * rate / 1_000_000)


def _is_whole(found: _Stream) -> bool:
    """Whether a track has the checksum that the file states (FLAC has one), or else the stated length."""
    checksum = found.flac_info[18:34]
    if any(checksum):
        return found.checksum == checksum
    delay = 0 if found.flac_info else DELAY_S * found.track.rate
    return not found.broken and found.track.length >= found.stated - delay


def _flac_bytes(samples: NDArray[Any], info: bytes) -> bytes:
    """FLAC samples (n, channels) as the MD5 of STREAMINFO (RFC 9639, 8.2) has them: little-endian, interleaved."""
    bits = (info[12] & 1) << 4 | info[13] >> 4
    values = samples >> (8 * samples.itemsize - bits - 1)  # FFmpeg uses the highest bits of the type
    return values.astype("<i4", order="C").view(np.uint8).reshape(-1, 4)[:, : bits // 8 + 1].tobytes()


def _full_scale(samples: NDArray[Any]) -> Samples:
    """FFmpeg's samples, of any type, to float32 with full scale at ±1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    middle = 128 if samples.dtype == np.uint8 else 0
    full = 2.0 ** (8 * samples.itemsize - 1)
    return ((samples - np.float64(middle)) / full).astype(np.float32)
