"""Audio files to windows of float32 mono samples at 16 kHz."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import InputError

SAMPLE_RATE = 16_000  # Hz
MIN_SAMPLES = 400  # at 16 kHz: 25 ms, the receptive field of one wav2vec 2.0 frame

OGG_FLAGS, OGG_LAST = 5, 4  # offset of a page's flags, and the flag of the last one (RFC 3533)

Pad = Literal["repeat", "zero"]
Samples = NDArray[np.float32]


def probe(path: Path) -> str:
    """The digest of a usable audio file, judged by its header alone.

    Raises InputError for a file that is missing, empty, cut off, not audio, or shorter than one frame. What only the
    samples can tell (a damaged stream, silence, NaN) is for `load`.
    """
    data = _read(path)
    with _open(path, data) as file:
        _check_header(path, file, data)
    return digest(data)


def digest(data: bytes) -> str:
    """Sixteen hex digits of the sha256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def load(path: Path, *, content: str | None = None) -> Samples:
    """All samples of a file, (samples,) float32 mono at 16 kHz; channels are averaged, other rates resampled.

    Raises InputError where `probe` does, and for a stream that breaks off, NaN or infinite samples, silence (every
    sample the same), and a file whose digest is not `content`, if given.
    """
    data = _read(path)
    if content is not None and digest(data) != content:
        raise InputError(
            f"{path}: expected the bytes that the trial table knows (digest {content}), got {digest(data)}; the file "
            "changed: run `dvc repro -f prepare`"
        )
    with _open(path, data) as file:
        _check_header(path, file, data)
        channels = _decode(path, file)  # (samples, channels)
        rate = file.samplerate
    mono = channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise InputError(
            f"{path}: {np.count_nonzero(~np.isfinite(mono))} samples are NaN or infinite; remove the trial"
        )
    if np.ptp(mono) == 0:
        raise InputError(f"{path}: the audio is silent (every sample is {mono[0]:g}); remove the trial")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the corpus root and the path column")
    data = path.read_bytes()
    if not data:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return data


def _open(path: Path, data: bytes) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path}: expected an audio file (WAV, FLAC, OGG, MP3), got none ({error.error_string})"
        ) from None


def _check_header(path: Path, file: soundfile.SoundFile, data: bytes) -> None:
    # libsndfile shortens a cut-off WAV silently, noting it in its log alone; a whole Ogg stream flags its last page.
    last_page = data.rfind(b"OggS") if data.startswith(b"OggS") else -1
    flags = data[last_page + OGG_FLAGS : last_page + OGG_FLAGS + 1]
    unfinished = last_page >= 0 and not (flags and flags[0] & OGG_LAST)
    if unfinished or "(should be" in file.extra_info:
        raise InputError(f"{path}: the file is shorter than its header says; it is cut off, copy or download it again")
    samples = file.frames * SAMPLE_RATE // file.samplerate
    if samples < MIN_SAMPLES:
        raise InputError(
            f"{path}: expected at least {1000 * MIN_SAMPLES // SAMPLE_RATE} ms of audio (one frame), "
            f"got {1000 * file.frames / file.samplerate:.1f} ms; remove the trial"
        )


def _decode(path: Path, file: soundfile.SoundFile) -> Samples:
    try:
        channels: Samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: the audio breaks off or is damaged ({error}); copy or download it again") from None
    if len(channels) < file.frames:
        raise InputError(
            f"{path}: expected {file.frames} samples by the header, got {len(channels)}; the file is cut off, "
            "copy or download it again"
        )
    return channels


def window(samples: Samples, *, length: int, pad: Pad) -> tuple[Samples, int]:
    """The first `length` samples, (length,), and how many of them are valid.

    A shorter signal is repeated from its start (`repeat`: all samples are valid, as in the public countermeasures) or
    followed by zeros (`zero`: only its own samples are valid).
    """
    if len(samples) >= length:
        return samples[:length], length
    if pad == "repeat":
        return np.resize(samples, length), length
    return np.pad(samples, (0, length - len(samples))), len(samples)
