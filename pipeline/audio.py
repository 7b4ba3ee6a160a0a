"""Audio files to windows of float32 mono samples at 16 kHz."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import InputError

SAMPLE_RATE = 16_000  # Hz
MIN_SAMPLES = 400  # at 16 kHz: 25 ms, the receptive field of one wav2vec 2.0 frame

Pad = Literal["repeat", "zero"]
Samples = NDArray[np.float32]


def probe(path: Path) -> int:
    """Size in bytes of a usable audio file, judged by its header alone.

    Raises InputError for a file that is missing, empty, cut off, not audio, or shorter than one frame. What only the
    samples can tell (a damaged stream, silence, NaN) is for `load`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the corpus root and the path column")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    with _open(path) as file:
        _check_header(path, file)
    return size


def load(path: Path) -> Samples:
    """All samples of a file, (samples,) float32 mono at 16 kHz; channels are averaged, other rates resampled.

    Raises InputError where `probe` does, and for a stream that breaks off, NaN or infinite samples, and silence (every
    sample the same).
    """
    probe(path)
    with _open(path) as file:
        try:
            channels = file.read(dtype="float32", always_2d=True)  # (samples, channels)
        except soundfile.LibsndfileError as error:
            raise InputError(
                f"{path}: the audio breaks off or is damaged ({error}); copy or download it again"
            ) from None
        if len(channels) < file.frames:
            raise InputError(
                f"{path}: expected {file.frames} samples by the header, got {len(channels)}; the file is cut off, "
                "copy or download it again"
            )
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


def _open(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path}: expected an audio file (WAV, FLAC, OGG, MP3), got none ({error.error_string})"
        ) from None


def _check_header(path: Path, file: soundfile.SoundFile) -> None:
    # libsndfile shortens a cut-off WAV silently and only notes it in its log.
    if "(should be" in file.extra_info:
        raise InputError(f"{path}: the file is shorter than its header says; it is cut off, copy or download it again")
    samples = file.frames * SAMPLE_RATE // file.samplerate
    if samples < MIN_SAMPLES:
        raise InputError(
            f"{path}: expected at least {1000 * MIN_SAMPLES // SAMPLE_RATE} ms of audio (one frame), "
            f"got {1000 * file.frames / file.samplerate:.1f} ms; remove the trial"
        )


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
