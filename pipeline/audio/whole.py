"""Whether all of a file is there and heard: sizes in its header, its end, and the seconds that its frames hold."""

from __future__ import annotations

from pipeline.audio import containers, counting
from pipeline.audio.containers import UNKNOWN_BYTES
from pipeline.audio.track import Track
from pipeline.core.errors import InputError

READABLE = "WAV, FLAC, OGG, MP3; with the extra `av` also M4A, MOV, WebM, MKA, AAC, AMR, WMA"
DELAY_S = 0.1  # the length that a container states may differ this much, by the encoder's delay and padding
DELAY_SAMPLES = 4_608  # four frames of MP3: what a header may declare as delay and padding, beside DELAY_S
OVERHEAD = 8_192  # bytes that the header of uncompressed audio may take, in formats whose chunks are not walked
MPEG_IN_WAV = (0x50, 0x55)  # format tags


def declared(name: str, data: bytes) -> bytes:
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


def check_end(name: str, data: bytes, kind: str | None) -> None:
    """Raise InputError where the last page of an Ogg file or a box of another container ends after the file."""
    stated = 0
    if kind == "ogg":
        stated = counting.ogg_size(data)
    elif kind == "mp4":
        stated = containers.end_of_boxes(data)
    elif kind == "matroska":
        stated = containers.end_of_segment(data)
    if stated > len(data):
        raise cut_off(name, has=len(data), stated=stated)


def counted(data: bytes, kind: str | None, rate: int) -> float | None:
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


def missing(track: Track, seconds: float | None) -> str:
    """What is missing, in words, where fewer seconds were decoded than there are; empty where nothing is."""
    if seconds is None or track.seconds >= seconds - DELAY_S - DELAY_SAMPLES / track.rate:
        return ""
    return f"{seconds:.2f} s of sound lie in the file, {track.seconds:.2f} s of them were decoded"


def of_another_kind(name: str, kind: str | None, *, reason: str = "") -> InputError:
    """The error for a file that is no audio, or audio of a kind that is not read, by its name."""
    return InputError(
        f"{name}: expected an audio file ({READABLE}), got {f'{kind}, which is not read' if kind else 'none'}{reason}"
    )


def cut_off(name: str, *, has: int, stated: int, of: str = "bytes") -> InputError:
    """The error for a file that ends before its header says. stated: at least so many."""
    return InputError(
        f"{name}: the file is shorter than its header says: it has {has} of at least {stated} {of}; it is cut off, "
        "copy or download it again"
    )


def damaged(name: str, details: str) -> InputError:
    """The error for a file of which something in the middle or at the end cannot be heard."""
    return InputError(f"{name}: the audio breaks off or is damaged ({details}); copy or download it again")
