"""Decode a file by libsndfile, and compare what it gives with the bytes of the file."""

from __future__ import annotations

import io
import re

import soundfile

from pipeline.audio import counting, whole
from pipeline.audio.containers import UNKNOWN_BYTES
from pipeline.audio.track import Hearing, Track
from pipeline.core.errors import InputError

UNKNOWN_FRAMES = 2**62  # where a FLAC file does not state its length, libsndfile gives one above this
BLOCK = 1_000_000  # values read at once: a minute of mono at 16 kHz
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
FORMATS = ("AIFF", "AU", "CAF", "FLAC", "MP3", "NIST", "OGG", "RF64", "W64", "WAV", "WAVEX")  # cut ones are seen
WRONG = "(should be"  # in the log of libsndfile
WRONG_SIZE = re.compile(r"^(?!\s*(?:Bytes/sec|Block Align|Bit Width)).*?(\d+) \(should be (-?\d+)", re.MULTILINE)

NIST_SAMPLES, NIST_HEADER = re.compile(rb"^sample_count -i (\d{1,18})\s*$", re.MULTILINE), 1_024


class UndecodableError(Exception):
    """libsndfile cannot decode the file, with the reason; PyAV perhaps can."""


class _Memory(io.BytesIO):
    """Bytes as a file. A damaged header sends libsndfile to places before its start; it then stays where it is."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset if there is one, and return the place."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def decode(name: str, data: bytes, kind: str | None, hearing: Hearing) -> Track:
    """Decode by libsndfile. Raises UndecodableError where PyAV should try, InputError for a file that is cut off."""
    try:
        with soundfile.SoundFile(_Memory(data)) as file:
            # libsndfile accepts a WAV file that is cut off. Only its log says so.
            log = file.extra_info
            sizes = [(int(stated), int(has)) for stated, has in WRONG_SIZE.findall(log)] if WRONG in log else []
            if wrong := [size for size in sizes if size[0] < UNKNOWN_BYTES]:
                raise whole.cut_off(name, stated=wrong[-1][0], has=wrong[-1][1])
            _check_stated(name, data, kind, file)
            track = Track(name, file.samplerate, hearing)
            hearing.check(file.frames, file.samplerate)
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
        raise UndecodableError(error.error_string.strip().rstrip(".")) from None


def _check_stated(name: str, data: bytes, kind: str | None, file: soundfile.SoundFile) -> None:
    """Compare the length by the header with the frames. Raises as `decode`."""
    if file.format not in FORMATS:
        raise whole.of_another_kind(name, file.format_info)
    if file.frames > UNKNOWN_FRAMES:
        raise UndecodableError("the file does not state its length")
    if kind == "flac" and file.format == "FLAC" and not counting.flac_ends(data, file.frames):
        raise UndecodableError(f"the last frame does not end at the {file.frames} samples that the header states")
    if file.format == "MP3":
        found = counting.mpeg(data)
        if not found.stated:
            raise UndecodableError("the file does not state its length")
        if found.stated > found.frames + 1:  # some encoders count the frame that holds the count
            raise whole.damaged(name, f"{found.frames} frames of the {found.stated} that the header states")
        if found.stated < found.frames - 1:
            raise UndecodableError(f"the header states {found.stated} frames, and {found.frames} are there")


def _check_heard(track: Track, data: bytes, kind: str | None, file: soundfile.SoundFile) -> None:
    """Compare what was decoded with the bytes of the file. Raises as `decode`."""
    if missing := whole.missing(track, whole.counted(data, kind, track.rate)):
        raise UndecodableError(missing)
    stated = NIST_SAMPLES.search(data[:NIST_HEADER]) if file.format == "NIST" else None
    if stated and int(stated[1]) > track.length:
        raise whole.cut_off(track.name, has=track.length, stated=int(stated[1]), of="samples")
    width = PCM_BYTES.get(file.subtype, 0) * file.channels
    if kind in ("caf", "au", None) and width and len(data) - track.length * width > whole.OVERHEAD:
        raise InputError(
            f"{track.name}: the header says {track.seconds:.2f} s, and the file has room for "
            f"{len(data) / width / track.rate:.2f} s of sound; mend the header, or cut off what is no sound"
        )
