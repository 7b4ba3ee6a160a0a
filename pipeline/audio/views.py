"""Views: named ways to hear an utterance, of which the clean one is always cached and the others augment training.

    clean             the samples as they are
    rawboost4_0       RawBoost algorithm 4 (1 to 8: pipeline/audio/rawboost.py), copy 0; other copies are other draws
    noise_0           Gaussian noise between white and pink at 5 to 20 dB, copy 0
    narrowband        down to 8 kHz and back, as a telephone line has it

A view is applied to the whole utterance, and the window is cut from the result: so do the published training scripts
(SSL_Anti-spoofing, QAMO: load, RawBoost, then pad or cut). Every draw comes from a generator seeded by the utterance
and the view's name, so that order, worker count and restarts change nothing.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import numpy as np
import soxr

from pipeline.audio import rawboost
from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError

VIEWS_VERSION = 1  # raise it when a view of the same audio gives other samples
NAMES = f"{CLEAN}, rawboost1_0 to rawboost8_99, noise_0 to noise_99, narrowband"

NOISE_SNR_DB = (5.0, 20.0)
NARROWBAND_HZ = 8_000  # sampling rate

_PATTERN = re.compile(r"(?:rawboost([1-8])|(noise))_(0|[1-9][0-9]?)|(clean|narrowband)")


class View(NamedTuple):
    """What a name stands for; algorithm is RawBoost's, 0 for the other kinds; copy is 0 where all would be equal."""

    kind: str
    algorithm: int = 0
    copy: int = 0


def parse(name: str) -> View:
    """What a view is, by its name. Raises InputError for a name that no view has."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise InputError(f"expected a view ({NAMES}), got {name!r}")
    algorithm, noise, copy, single = match.groups()
    if algorithm:
        return View("rawboost", int(algorithm), int(copy))
    return View(noise, copy=int(copy)) if noise else View(single)


def apply(name: str, samples: Samples, *, utterance: str) -> Samples:
    """A view of an utterance, (n,) float32 at 16 kHz -> (n,) float32; the same for the same names and samples.

    Raises InputError for a name of no view.
    """
    view = parse(name)
    rng = generator(name, utterance=utterance)
    if view.kind == "rawboost":
        return rawboost.boost(samples, algorithm=view.algorithm, rng=rng)
    if view.kind == "noise":
        return noisy(samples, rng)
    return narrowband(samples) if view.kind == "narrowband" else samples


def generator(name: str, *, utterance: str) -> np.random.Generator:
    """The generator of one view of one utterance."""
    digest = hashlib.sha256(f"{utterance}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def noisy(samples: Samples, rng: np.random.Generator) -> Samples:
    """Samples (n,) and Gaussian noise of power 1 / f^s, s uniform between 0 (white) and 1 (pink)."""
    slope, snr_db = rng.uniform(0, 1), rng.uniform(*NOISE_SNR_DB)
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, len(samples))
    return rawboost.additive(samples.astype(np.float64), noise, snr_db=snr_db).astype(np.float32)


def narrowband(samples: Samples) -> Samples:
    """Samples (n,) without what is above 4 kHz."""
    narrow = soxr.resample(samples, SAMPLE_RATE, NARROWBAND_HZ, quality="HQ")
    wide: Samples = soxr.resample(narrow, NARROWBAND_HZ, SAMPLE_RATE, quality="HQ")
    return wide[: len(samples)]  # odd lengths come back with a sample more
