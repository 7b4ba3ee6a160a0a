"""Decode audio files to float32 mono samples at 16 kHz.

libsndfile is tried first. It refuses M4A, Ogg FLAC and some FLAC files (some of ASVspoof 2021; one cause is irregular
metadata), and it guesses the length of MP3 and FLAC files that do not state it. PyAV (FFmpeg), the extra `av`, decodes
those. FFmpeg skips damaged parts and accepts files that are cut off. So its samples are compared with the length and
the checksum that the file states. A file that is cut off or damaged is refused by both ways.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.audio.windowing import MIN_SAMPLES, SAMPLE_RATE, Samples
from pipeline.core.errors import InputError

SUFFIXES = frozenset({".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav"})

OGG_FLAGS, OGG_LAST = 5, 4  # the offset of a page's flags, and the flag of the last page (RFC 3533)
ID3_HEADER = 10  # bytes of the header of an ID3v2 tag; its last four hold the size, seven bits in each
MPEG_SYNC, MPEG_LAYER = 0xFFE0, 0x0006  # in the first two bytes of an MPEG frame: eleven bits that are set, and a layer
XING_WITHIN = 256  # the frame count, where an MP3 file has it, is in the first bytes of the first frame
UNKNOWN_FRAMES = 2**62  # where a FLAC file does not state its length, libsndfile gives one above this
UNKNOWN_BYTES = 0x7FFF_0000  # a WAV file that was written to a pipe states a size above this, as nobody filled it in
BLOCK = 1_000_000  # samples read at once: a minute at 16 kHz
DELAY_S = 0.1  # the length that a container states may differ this much, by the encoder's delay and padding
Decoder = Literal["libsndfile", "PyAV"]


class Audio(NamedTuple):
    """A decoded file: (samples,) float32 mono at 16 kHz, the digest of the file's bytes, and the decoder."""

    samples: Samples
    content: str
    decoder: Decoder


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

    Raises InputError for a file that is missing, empty, no audio, cut off, damaged, shorter than one frame, or silent
    (all samples are equal); that has NaN or infinite samples or another digest; or that needs PyAV where it is missing.
    """
    data = _bytes(path)
    found = digest(data)
    if content not in (None, found):
        raise InputError(
            f"{path}: expected the bytes that the trial table knows (digest {content}), got {found}; the file "
            "changed: run `dvc repro -f prepare`"
        )
    _check_end(path, data)
    decoder: Decoder = "libsndfile"
    try:
        channels, rate = _by_libsndfile(path, data)
    except _UndecodableError as error:
        decoder = "PyAV"
        channels, rate = _by_pyav(path, data, reason=str(error))
    return Audio(_mono(path, channels, rate), found, decoder)


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the corpus root and the path column")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not data:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return data


def _mono(path: Path, channels: Samples, rate: int) -> Samples:
    """Convert (samples, channels) at any rate to (samples,) at 16 kHz. Raises InputError for unusable samples."""
    if len(channels) * SAMPLE_RATE // rate < MIN_SAMPLES:
        raise InputError(
            f"{path}: expected at least {1000 * MIN_SAMPLES // SAMPLE_RATE} ms of audio (one frame), "
            f"got {1000 * len(channels) / rate:.1f} ms; remove the trial"
        )
    mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise InputError(
            f"{path}: {np.count_nonzero(~np.isfinite(mono))} samples are NaN or infinite; remove the trial"
        )
    if np.ptp(mono) == 0:
        raise InputError(f"{path}: the audio is silent (every sample is {mono[0]:g}); remove the trial")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(mono, dtype=np.float32)


def of_samples(samples: Samples, rate: int, *, name: str) -> Samples:
    """Samples (n,) or (n, channels) float32 at `rate` Hz, as a file that holds them decodes: (samples,) at 16 kHz.

    Raises InputError, which starts with the name, for other arrays and for what `read` refuses in a file.
    """
    found = np.asarray(samples)
    if found.dtype != np.float32 or found.ndim not in (1, 2) or not found.size:
        raise InputError(f"{name}: expected (n,) or (n, channels) float32, got {found.shape} {found.dtype}")
    if rate < 1 or rate != int(rate):
        raise InputError(f"{name}: expected a sample rate in whole Hz, got {rate}")
    return _mono(Path(name), found.reshape(len(found), -1), int(rate))


# Checks of the bytes before decoding


def _container(data: bytes) -> str | None:
    """FFmpeg's name of the container, by the first bytes; None for containers that PyAV does not get."""
    start = _after_id3(data)
    head = data[start : start + 8]
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"OggS"):
        return "ogg"
    if head[4:] == b"ftyp":
        return "mp4"
    first = int.from_bytes(head[:2], "big")
    return "mp3" if start or (first & MPEG_SYNC == MPEG_SYNC and first & MPEG_LAYER) else None


def _after_id3(data: bytes) -> int:
    """The offset of the audio, after an ID3v2 tag if there is one."""
    if not data.startswith(b"ID3"):
        return 0
    size = 0
    for byte in data[ID3_HEADER - 4 : ID3_HEADER]:
        size = size << 7 | byte & 0x7F
    return ID3_HEADER + size


def _counts_frames(data: bytes) -> bool:
    """Whether an MP3 file states its number of frames. If not, libsndfile guesses it from the first bit rate."""
    start = _after_id3(data)
    tag = re.search(rb"(?:Xing|Info)(.{4})(.{4})", data[start : start + XING_WITHIN], re.DOTALL)
    return tag is not None and bool(tag[1][3] & 1) and any(tag[2])


def _check_end(path: Path, data: bytes) -> None:
    """Raise InputError where an Ogg file does not end with a last page, or an MP4 box is longer than the file."""
    whole = True
    if data.startswith(b"OggS"):
        flags = data.rfind(b"OggS") + OGG_FLAGS
        whole = flags < len(data) and bool(data[flags] & OGG_LAST)
    elif _container(data) == "mp4":
        whole = _end_of_boxes(data) <= len(data)
    if not whole:
        raise _cut_off(path)


def _end_of_boxes(data: bytes) -> int:
    """The offset at which the last top-level MP4 box of a file should end (ISO 14496-12, 4.2)."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # the size follows the type
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0 means: up to the end of the file; other values are no box
            break
        place += size
    return place


def _cut_off(path: Path) -> InputError:
    return InputError(f"{path}: the file is shorter than its header says; it is cut off, copy or download it again")


# libsndfile


def _by_libsndfile(path: Path, data: bytes) -> tuple[Samples, int]:
    """Decode by libsndfile: (samples, channels) and their rate.

    Raises _UndecodableError where PyAV should try, InputError for a file that is cut off.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # libsndfile accepts a WAV file that is cut off. Only its log says so.
            if any(int(size) < UNKNOWN_BYTES for size in re.findall(r"(\d+) \(should be", file.extra_info)):
                raise _cut_off(path)
            if file.frames > UNKNOWN_FRAMES or (file.format == "MP3" and not _counts_frames(data)):
                raise _UndecodableError("the file does not state its length")
            # Read in blocks: a damaged header may state billions of samples, and one read would allocate them all.
            blocks = [file.read(BLOCK, dtype="float32", always_2d=True)]
            while len(blocks[-1]) == BLOCK:
                blocks.append(file.read(BLOCK, dtype="float32", always_2d=True))
            channels: Samples = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
            if len(channels) < file.frames:
                raise InputError(
                    f"{path}: expected {file.frames} samples by the header, got {len(channels)}; the file is cut off, "
                    "copy or download it again"
                )
            return channels, file.samplerate
    except soundfile.LibsndfileError as error:
        raise _UndecodableError(error.error_string.strip().rstrip(".")) from None


# PyAV


def _by_pyav(path: Path, data: bytes, *, reason: str) -> tuple[Samples, int]:
    """Decode by PyAV: (samples, channels) and their rate. reason: why libsndfile refused the file.

    Raises InputError for a file that is no audio, cut off or damaged, and where PyAV is not installed.
    """
    container = _container(data)
    if container is None:
        raise InputError(f"{path}: expected an audio file (WAV, FLAC, OGG, MP3, M4A), got none ({reason})")
    try:
        import av  # an extra
    except ImportError:
        raise InputError(
            f'{path}: libsndfile cannot decode it ({reason}); install PyAV, which may: pip install "bonafide[av]"'
        ) from None
    try:
        with av.open(io.BytesIO(data), format=container, metadata_errors="ignore") as file:
            track = _decoded(file)
    except av.error.FFmpegError as error:
        raise _damaged(path, f"libsndfile: {reason}; PyAV: {error.strerror}") from None
    if track is None:
        raise InputError(f"{path}: expected audio in one known format, got none or several; remove the trial")
    if container == "mp3" and not _counts_frames(data):
        track = track._replace(stated=0)  # FFmpeg guesses it, too
    if not _is_whole(track):
        raise _damaged(path, f"libsndfile: {reason}; PyAV: {len(track.samples)} samples, not those that it states")
    return _full_scale(track.samples), track.rate


def _damaged(path: Path, details: str) -> InputError:
    return InputError(f"{path}: the audio breaks off or is damaged ({details}); copy or download it again")


class _Track(NamedTuple):
    """A track as FFmpeg decoded it: (samples, channels) in its own sample type, and facts that the file states.

    stated: the number of samples, 0 where unknown. broken: a packet was damaged, or a frame is missing.
    flac_info: the STREAMINFO block, empty for other codecs.
    """

    samples: NDArray[Any]
    rate: int
    stated: int
    broken: bool
    flac_info: bytes


def _decoded(file: Any) -> _Track | None:
    """Decode the first audio track of an open container; None where there is none, or its format changes."""
    streams = file.streams.audio
    if not streams or streams[0].codec_context is None:  # no audio, or a codec that FFmpeg does not know
        return None
    stream, context = streams[0], streams[0].codec_context
    is_flac = context.name == "flac"
    context.thread_type = "NONE"  # several files are decoded at once, each by one thread
    if is_flac:
        context.options = {"err_detect": "crccheck+explode"}
    blocks: list[NDArray[Any]] = []
    formats: set[tuple[str, int, int]] = set()
    broken, expected = False, None
    for packet in file.demux(stream):
        broken |= packet.is_corrupt
        for frame in packet.decode():
            if is_flac:  # FLAC frames carry the number of their first sample, so a frame that was skipped shows
                broken |= frame.pts is None or expected not in (None, frame.pts)
                expected = (frame.pts or 0) + frame.samples
            formats.add((frame.format.name, frame.layout.nb_channels, frame.sample_rate))
            block = frame.to_ndarray()  # (channels, n) if planar, else (1, n * channels)
            blocks.append(block.T if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels))
    if len(formats) != 1:
        return None
    _, _, rate = formats.pop()
    return _Track(
        samples=np.concatenate(blocks),
        rate=rate,
        stated=int((stream.duration or 0) * stream.time_base * rate),
        broken=broken,
        flac_info=context.extradata if is_flac else b"",
    )


def _is_whole(track: _Track) -> bool:
    """Whether a track has the checksum that the file states (FLAC has one), or else the stated length."""
    checksum = track.flac_info[18:34]
    if any(checksum):
        return _flac_checksum(track) == checksum
    delay = 0 if track.flac_info else DELAY_S * track.rate
    return not track.broken and len(track.samples) >= track.stated - delay


def _flac_checksum(track: _Track) -> bytes:
    """The MD5 of FLAC samples as STREAMINFO (RFC 9639, 8.2) has it: little-endian, channels interleaved."""
    bits = (track.flac_info[12] & 1) << 4 | track.flac_info[13] >> 4
    values = track.samples >> (8 * track.samples.itemsize - bits - 1)  # FFmpeg uses the highest bits of the type
    plain = values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8 + 1]
    return hashlib.md5(plain.tobytes(), usedforsecurity=False).digest()


def _full_scale(samples: NDArray[Any]) -> Samples:
    """FFmpeg's samples, of any type, to float32 with full scale at ±1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    middle = 128 if samples.dtype == np.uint8 else 0
    full = 2.0 ** (8 * samples.itemsize - 1)
    return ((samples - np.float64(middle)) / full).astype(np.float32)
