"""Audio files to windows of float32 mono samples at 16 kHz.

libsndfile decodes first. It refuses M4A, Ogg FLAC and some FLAC files (part of ASVspoof 2021; irregular metadata is one
cause), and guesses the length of an MP3 or FLAC file that does not state it; those go to PyAV (FFmpeg), the extra `av`.
FFmpeg skips over damage and reads as far as a file goes, so what it decodes is held against the length and the checksum
that the file itself states: a file that is cut off or damaged is refused whoever decodes it.
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

OGG_FLAGS, OGG_LAST = 5, 4  # offset of a page's flags, and the flag of the last one (RFC 3533)
ID3_HEADER = 10  # bytes before an ID3v2 tag, its size in the last four, seven bits each
MPEG_SYNC, MPEG_LAYER = 0xFFE0, 0x0006  # of an MPEG audio frame's first two bytes: the first eleven set, and a layer
XING_WITHIN = 256  # bytes from the start of the first MPEG frame that hold the frame count, if there is one
UNKNOWN_FRAMES = 2**62  # libsndfile's length of a FLAC file that does not state its own is above this
UNKNOWN_BYTES = 0x7FFF_0000  # sizes above this stand in the header of a WAV that was piped: nobody filled them in
BLOCK = 1_000_000  # samples read at once: a minute at 16 kHz
DELAY_S = 0.1  # encoder delay and padding: what containers count and decoders drop, or the other way round
Decoder = Literal["libsndfile", "PyAV"]


class Audio(NamedTuple):
    """A usable audio file: (samples,) float32 mono at 16 kHz, the digest of its bytes, and what decoded it."""

    samples: Samples
    content: str
    decoder: Decoder


class _UndecodableError(Exception):
    """libsndfile cannot decode the file, and why; PyAV may."""


def digest(data: bytes) -> str:
    """Sixteen hex digits of the sha256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def load(path: Path, *, content: str | None = None) -> Samples:
    """All samples of a file, (samples,) float32 mono at 16 kHz. See `read`."""
    return read(path, content=content).samples


def read(path: Path, *, content: str | None = None) -> Audio:
    """Read and decode a file; channels are averaged, other rates resampled.

    Raises InputError for a file that is missing, empty, not audio, cut off, damaged, shorter than one frame, silent
    (every sample the same), has NaN or infinite samples, or whose digest is not `content`, if given; and where PyAV is
    needed and not installed.
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
    """(samples, channels) at any rate to (samples,) at 16 kHz. Raises InputError for what cannot be used."""
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


# What the bytes tell before anything is decoded


def _container(data: bytes) -> str | None:
    """FFmpeg's name of the container, by the first bytes; None for those that PyAV is not asked for."""
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
    """Where the audio starts: behind an ID3v2 tag, if there is one."""
    if not data.startswith(b"ID3"):
        return 0
    size = 0
    for byte in data[ID3_HEADER - 4 : ID3_HEADER]:
        size = size << 7 | byte & 0x7F
    return ID3_HEADER + size


def _counts_frames(data: bytes) -> bool:
    """Whether an MP3 file states its number of frames; libsndfile guesses it from the first bit rate otherwise."""
    start = _after_id3(data)
    tag = re.search(rb"(?:Xing|Info)(.{4})(.{4})", data[start : start + XING_WITHIN], re.DOTALL)
    return tag is not None and bool(tag[1][3] & 1) and any(tag[2])


def _check_end(path: Path, data: bytes) -> None:
    """Raise InputError where an Ogg stream lacks its flagged last page, or an MP4 box reaches beyond the file."""
    whole = True
    if data.startswith(b"OggS"):
        flags = data.rfind(b"OggS") + OGG_FLAGS
        whole = flags < len(data) and bool(data[flags] & OGG_LAST)
    elif _container(data) == "mp4":
        whole = _end_of_boxes(data) <= len(data)
    if not whole:
        raise _cut_off(path)


def _end_of_boxes(data: bytes) -> int:
    """Where the last of a file's top-level MP4 boxes (ISO 14496-12, 4.2) says that it ends."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # the size follows the type
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0 is up to the end of the file; anything else is no box
            break
        place += size
    return place


def _cut_off(path: Path) -> InputError:
    return InputError(f"{path}: the file is shorter than its header says; it is cut off, copy or download it again")


# libsndfile


def _by_libsndfile(path: Path, data: bytes) -> tuple[Samples, int]:
    """(samples, channels) and their rate. Raises _UndecodableError, or InputError for a file that PyAV cannot mend."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # libsndfile shortens a cut-off WAV silently, noting it in its log alone
            if any(int(size) < UNKNOWN_BYTES for size in re.findall(r"(\d+) \(should be", file.extra_info)):
                raise _cut_off(path)
            if file.frames > UNKNOWN_FRAMES or (file.format == "MP3" and not _counts_frames(data)):
                raise _UndecodableError("the file does not state its length")
            # block by block: a damaged header may state billions of samples, and they would be allocated at once
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
    """(samples, channels) and their rate. Raises InputError for what is not whole; `reason` is libsndfile's refusal."""
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
        track = track._replace(stated=0)  # FFmpeg guesses, too
    if not _is_whole(track):
        raise _damaged(path, f"libsndfile: {reason}; PyAV: {len(track.samples)} samples, not those that it states")
    return _full_scale(track.samples), track.rate


def _damaged(path: Path, details: str) -> InputError:
    return InputError(f"{path}: the audio breaks off or is damaged ({details}); copy or download it again")


class _Track(NamedTuple):
    """What FFmpeg decoded: (samples, channels) in its own sample type, and what the file states of them.

    stated: the number of samples, 0 where unknown. broken: a packet was damaged, or frames do not follow each other.
    flac_info: the STREAMINFO block, empty for other codecs.
    """

    samples: NDArray[Any]
    rate: int
    stated: int
    broken: bool
    flac_info: bytes


def _decoded(file: Any) -> _Track | None:
    """The first audio track of an open container; None where there is none, or its format changes on the way."""
    streams = file.streams.audio
    if not streams or streams[0].codec_context is None:  # no audio, or in a codec that FFmpeg does not know
        return None
    stream, context = streams[0], streams[0].codec_context
    is_flac = context.name == "flac"
    context.thread_type = "NONE"  # files are decoded side by side
    if is_flac:
        context.options = {"err_detect": "crccheck+explode"}
    blocks: list[NDArray[Any]] = []
    formats: set[tuple[str, int, int]] = set()
    broken, expected = False, None
    for packet in file.demux(stream):
        broken |= packet.is_corrupt
        for frame in packet.decode():
            if is_flac:  # whose frames are numbered by samples; one with a damaged header is skipped
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
    """Whether a track has the checksum that it states (FLAC does), or else the length."""
    checksum = track.flac_info[18:34]
    if any(checksum):
        return _flac_checksum(track) == checksum
    delay = 0 if track.flac_info else DELAY_S * track.rate
    return not track.broken and len(track.samples) >= track.stated - delay


def _flac_checksum(track: _Track) -> bytes:
    """The MD5 of FLAC samples as STREAMINFO (RFC 9639, 8.2) has it: little-endian, channels interleaved."""
    bits = (track.flac_info[12] & 1) << 4 | track.flac_info[13] >> 4
    values = track.samples >> (8 * track.samples.itemsize - bits - 1)  # FFmpeg fills the type from above
    plain = values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8 + 1]
    return hashlib.md5(plain.tobytes(), usedforsecurity=False).digest()


def _full_scale(samples: NDArray[Any]) -> Samples:
    """FFmpeg's samples, of any type, to float32 with full scale at ±1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    middle = 128 if samples.dtype == np.uint8 else 0
    full = 2.0 ** (8 * samples.itemsize - 1)
    return ((samples - np.float64(middle)) / full).astype(np.float32)
