"""Decode a file by PyAV (FFmpeg), the extra `av`, and compare what it gives with the length and checksum of the file.

FFmpeg skips damaged parts and accepts files that are cut off, and says little of it.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import containers, counting, whole
from pipeline.audio.track import Hearing, Track
from pipeline.audio.windowing import Samples
from pipeline.core.errors import InputError

UNNAMED = 0.05  # of the bytes of sound in an MP4 file: so many may be named by none of its tables


def decode(name: str, data: bytes, kind: str | None, hearing: Hearing, *, reason: str) -> Track:
    """Decode by PyAV. reason: why libsndfile refused the file.

    Raises InputError for a file that is no audio, cut off or damaged, and where PyAV is not installed.
    """
    if kind in (None, "wav", "aiff"):
        raise whole.of_another_kind(name, containers.not_read(data), reason=f" ({reason})")
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
            found = _decoded(file, name, hearing)
    except av.error.FFmpegError as error:
        raise whole.damaged(name, f"libsndfile: {reason}; PyAV: {error.strerror}") from None
    except _ChangeError as change:
        lengths = f"{change.heard:.2f} s of {whole.counted(data, kind, change.rate) or change.stated:.2f} s"
        raise InputError(
            f"{name}: expected audio in one format, got {change} after {lengths}; cut the file there, or write it anew "
            "in one format"
        ) from None
    if found is None:
        raise InputError(f"{name}: expected audio in one known format, got none; remove the trial")
    held = containers.bytes_of_media(data) if kind == "mp4" else 0
    if held - found.size > max(UNNAMED * held, whole.OVERHEAD):
        raise InputError(
            f"{name}: {held} bytes of sound lie in the file, and its tables name {found.size} of them, "
            f"{found.track.seconds:.2f} s; mend the header, or write the file anew with all of its sound"
        )
    guesses = kind == "asf" and not containers.asf_states_length(data)
    if kind in ("aac", "amr") or guesses or (frames and not frames.stated):
        found = found._replace(stated=0)  # FFmpeg guesses it, too
    details = whole.missing(found.track, whole.counted(data, kind, found.track.rate))
    if not details and not _is_whole(found):
        details = f"{found.track.length} samples, not those that it states ({found.stated})"
    if details:
        raise whole.damaged(name, f"libsndfile: {reason}; PyAV: {details}")
    return found.track


class _ChangeError(Exception):
    """The format of a track changes. heard: seconds before. stated: seconds in all, as the container says; 0 unknown.

    rate: in Hz, before the change.
    """

    def __init__(self, before: tuple[str, int, int], after: tuple[str, int, int], *, heard: float, stated: float):
        said = (f"{rate} Hz (channels: {channels}, {form})" for form, channels, rate in (before, after))
        super().__init__(" and then ".join(said))
        self.rate, self.heard, self.stated = before[2], heard, stated


class _Stream(NamedTuple):
    """A track as FFmpeg decoded it, and facts that the file states.

    stated: the number of samples, 0 where unknown. broken: a packet was damaged, or a frame is missing. size: the bytes
    of all packets, also those of pictures.
    flac_info: the STREAMINFO block, empty for other codecs. checksum: of the samples, for FLAC.
    """

    track: Track
    stated: int
    broken: bool
    size: int
    flac_info: bytes
    checksum: bytes


def _decoded(file: Any, name: str, hearing: Hearing) -> _Stream | None:
    """Decode the audio track of an open container; None where there is none.

    Raises _ChangeError where its format changes, InputError where there are several tracks.
    """
    if (stream := _only_stream(file, name)) is None:
        return None
    context = stream.codec_context
    is_flac = context.name == "flac"
    context.thread_type = "NONE"  # several files are decoded at once, each by one thread
    if is_flac:
        context.options = {"err_detect": "crccheck+explode"}
    track: Track | None = None
    first: tuple[str, int, int] | None = None
    broken, size, expected, checksum = False, 0, None, hashlib.md5(usedforsecurity=False)
    for packet in file.demux():
        size += packet.size
        if packet.stream.index != stream.index:
            continue
        broken |= packet.is_corrupt
        for frame in packet.decode():
            if is_flac and stream.time_base * frame.sample_rate == 1:
                # FLAC frames carry the number of their first sample, so a frame that was skipped shows.
                broken |= frame.pts is None or expected not in (None, frame.pts)
                expected = (frame.pts or 0) + frame.samples
            form = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
            if track is None:
                first, track = form, Track(name, frame.sample_rate, hearing)
            if first is not None and form != first:
                stated = _stated(file, stream, track.rate) / track.rate
                raise _ChangeError(first, form, heard=track.seconds, stated=stated)
            block = frame.to_ndarray()  # (channels, n) if planar, else (1, n * channels)
            block = block.T if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels)
            if is_flac:
                checksum.update(_flac_bytes(block, context.extradata))
            track.add(_full_scale(block))
    if track is None:
        return None
    track.decoder = "PyAV"
    info = context.extradata if is_flac else b""
    return _Stream(track, _stated(file, stream, track.rate), broken, size, info, checksum.digest())


def _only_stream(file: Any, name: str) -> Any:
    """The audio track of an open container; None where there is none. Raises InputError where there are several."""
    streams = [one for one in file.streams.audio if one.codec_context is not None]  # None: FFmpeg knows no such codec
    if len(streams) > 1:
        raise InputError(
            f"{name}: expected one track of sound, got {len(streams)}; write the one that is meant to a file of its "
            "own, as `ffmpeg -i IN -map 0:a:0 OUT` does"
        )
    return streams[0] if streams else None


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
    delay = 0 if found.flac_info else whole.DELAY_S * found.track.rate
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
