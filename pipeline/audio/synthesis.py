"""Speech-like signals, and vocoders that turn them into spoofs: sources, filters, vocoders, a recording chain.

A signal is (samples,) float32 at 16 kHz. A short-time spectrum is (T, F) complex64, a frame every HOP samples. The same
input and generator give the same bits for any number of threads: no BLAS, and no state between calls.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft, ndimage, signal

from pipeline.audio.windowing import SAMPLE_RATE

Array = NDArray[np.float32]
Spectra = NDArray[np.complex64]
Times = NDArray[np.float64]  # (P,) in samples, with fractions

HOP, WINDOW, FFT = 128, 512, 1024  # samples; the padding up to FFT holds the ringing of the formants
HANN = signal.get_window("hann", WINDOW).astype(np.float32)
HERTZ = fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)  # (F,) of the bins
F0_RANGE_HZ = (70.0, 400.0)

# Signals and frames


def noise(rng: np.random.Generator, n: int) -> Array:
    """White Gaussian noise of power one, (n,)."""
    return rng.standard_normal(n, np.float32)


def rms(x: NDArray[np.floating]) -> float:
    """Root mean square."""
    return float(np.sqrt((x**2).mean()))


def frame_count(n: int) -> int:
    """The number of frames T of n samples."""
    return -(-n // HOP) + WINDOW // HOP - 1


def stretch(track: Array, n: int) -> Array:
    """Interpolate a track (T,), which has a value at the centre of each frame, to (n,) samples."""
    centres = np.arange(len(track)) * HOP + HOP - WINDOW / 2
    return np.interp(np.arange(n), centres, track).astype(np.float32)


def stft(x: Array) -> Spectra:
    """(n,) -> (T, F); every sample lies in WINDOW / HOP frames."""
    padded = np.pad(x, (WINDOW - HOP, frame_count(len(x)) * HOP - len(x)))
    spectra: Spectra = fft.rfft(sliding_window_view(padded, WINDOW)[::HOP] * HANN, FFT, axis=1)
    return spectra


def overlap_add(spectra: Spectra, n: int) -> Array:
    """Add filtered frames, with their ringing, to (n,) samples. The windows add up to 2."""
    return _add_frames(fft.irfft(spectra, FFT, axis=1), n) / 2.0


def _windowed_overlap_add(spectra: Spectra, n: int) -> Array:
    """The signal (n,) with the STFT nearest to `spectra`. The squared windows add up to 1.5."""
    return _add_frames(fft.irfft(spectra, FFT, axis=1)[:, :WINDOW] * HANN, n) / 1.5


def _add_frames(frames: Array, n: int) -> Array:
    """Add frames (T, WINDOW or FFT), each HOP samples after the one before, to (n,) samples."""
    blocks = frames.reshape(len(frames), -1, HOP)
    out = np.zeros((len(frames) + blocks.shape[1], HOP), np.float32)
    for i in range(blocks.shape[1]):
        out[i : i + len(frames)] += blocks[:, i]
    return out.ravel()[WINDOW - HOP :][:n]


# Source and filter


def pulse_times(f0: Array) -> Times:
    """The times (P,) at which the phase of f0 (samples,), in Hz, completes a period."""
    phase = np.cumsum(f0, dtype=np.float64) / SAMPLE_RATE
    return np.interp(np.arange(1, int(phase[-1])), phase, np.arange(len(f0)))


def pulses(times: Times, strength: NDArray[np.float64], n: int) -> Array:
    """Pulses as a signal (n,). A pulse between two samples is divided between them."""
    times = np.clip(times, 0, n - 2)
    at = times.astype(np.int64)
    late = times - at
    both = np.bincount(at, strength * (1 - late), n) + np.bincount(at + 1, strength * late, n)
    return both.astype(np.float32)


def glottal_pulses(times: Times, strength: NDArray[np.float64], *, opening: float, n: int) -> Array:
    """The derivative of the glottal flow, (n,). It opens slowly within `opening` seconds and closes at once."""
    t = np.linspace(0, 1, int(opening * SAMPLE_RATE), dtype=np.float32)
    return np.convolve(pulses(times, strength, n), 3 * t**2 - 4 * t**3)[:n]


def vocal_tract(formants: Array) -> Spectra:
    """Response (T, F) of a cascade of resonators at `formants` (T, K) in Hz."""
    delay = np.exp(-2j * np.pi * HERTZ / SAMPLE_RATE).astype(np.complex64)
    response = np.ones((len(formants), len(HERTZ)), np.complex64)
    for hz in formants.T[:, :, None]:
        radius = np.exp(-np.pi * (50 + 0.04 * hz) / SAMPLE_RATE)  # bandwidth in Hz grows with frequency
        a1 = (-2 * radius * np.cos(2 * np.pi * hz / SAMPLE_RATE)).astype(np.float32)
        a2 = (radius**2).astype(np.float32)
        response *= (1 + a1 + a2) / (1 + delay * (a1 + a2 * delay))
    return response


def pitch(x: Array) -> tuple[Array, Array]:
    """F0 in Hz and voicing from 0 to 1, both (samples,), by autocorrelation. F0 is interpolated where x is unvoiced."""
    width = 640
    frames = sliding_window_view(np.pad(x, width // 2), width)[::HOP] * signal.get_window("hann", width)
    r = fft.irfft(np.abs(fft.rfft(frames, 2048, axis=1)) ** 2, axis=1)
    shortest, longest = (int(SAMPLE_RATE / hz) for hz in F0_RANGE_HZ[::-1])
    lag = shortest + r[:, shortest:longest].argmax(1)
    clear = np.take_along_axis(r, lag[:, None], 1)[:, 0] > 0.35 * r[:, 0]
    voiced = ndimage.median_filter((clear & (r[:, 0] > 0.01 * r[:, 0].max())).astype(np.float32), 5)
    at = np.flatnonzero(voiced)
    assert at.size, "a generated utterance is voiced somewhere"  # noqa: S101
    f0 = np.interp(np.arange(len(lag)), at, ndimage.median_filter(SAMPLE_RATE / lag[at], 5))
    time = np.arange(len(x)) / HOP
    return tuple(np.interp(time, np.arange(len(lag)), v).astype(np.float32) for v in (f0, voiced))


def excitation(x: Array, rng: np.random.Generator, *, breath: float) -> Array:
    """The input of a vocoder's filter, (samples,) with power one: pulses where x is voiced, noise elsewhere.

    breath: the share of noise, in power, where x is voiced.
    """
    f0, voiced = pitch(x)
    times = pulse_times(f0)
    bare = pulses(times, np.sqrt(SAMPLE_RATE / np.interp(times, np.arange(len(x)), f0)), len(x))
    # Each pulse is spread over about 2 ms, as narrow-band vocoders do. The peak of a bare pulse is too easy to detect.
    spread = noise(rng, 96) * np.exp(-np.arange(96, dtype=np.float32) / 24)
    buzz = np.convolve(bare, spread / np.sqrt((spread**2).sum()))[: len(x)]
    voiced = voiced * np.float32(1 - breath)
    return buzz * np.sqrt(voiced) + noise(rng, len(x)) * np.sqrt(1 - voiced)


# Vocoders: (samples,) -> (samples,)


def griffin_lim(x: Array, rng: np.random.Generator, *, mels: int, rounds: int) -> Array:
    """A mel spectrogram turned back into a signal: phases begin at random and are improved by iteration."""
    spectra = stft(x)
    bank = _mel_bank(mels)
    # einsum, not BLAS: the same bits for any number of threads.
    energy = np.einsum("tf,mf->tm", np.abs(spectra) ** 2, bank / bank.sum(1, keepdims=True))
    magnitude = np.sqrt(np.einsum("tm,mf->tf", energy, bank))
    phase = np.exp(2j * np.pi * rng.random(spectra.shape, np.float32))
    for _ in range(rounds):
        spectra = stft(_windowed_overlap_add(magnitude * phase, len(x)))
        phase = spectra / np.maximum(np.abs(spectra), 1e-9)
    return _windowed_overlap_add(magnitude * phase, len(x))


def _mel_bank(mels: int) -> Array:
    """Triangular filters on the mel scale, (mels, F). They add up to one between the first and the last centre."""
    mel = 2595 * np.log10(1 + HERTZ / 700)
    centre = np.linspace(0, mel[-1], mels + 2)[1:-1]
    bank: Array = np.maximum(0, 1 - np.abs(mel - centre[:, None]) * (mels + 1) / mel[-1]).astype(np.float32)
    return bank


def lpc_vocoder(x: Array, rng: np.random.Generator, *, order: int, breath: float) -> Array:
    """An all-pole envelope for each frame, excited by pulses at the pitch of x."""
    r = fft.irfft(np.abs(stft(x)) ** 2, axis=1)[:, : order + 1]  # (T, order + 1), autocorrelation
    error = r[:, 0] * 1.0001 + 1e-9
    a = np.zeros_like(r)
    a[:, 0] = 1
    for k in range(1, order + 1):  # Levinson and Durbin, all frames at once
        reflection = -(a[:, :k] * r[:, k:0:-1]).sum(1) / error
        a[:, 1 : k + 1] += reflection[:, None] * a[:, k - 1 :: -1][:, :k]
        error = error * (1 - reflection**2)
    gain = np.sqrt(error / (HANN**2).sum())[:, None]
    return overlap_add(stft(excitation(x, rng, breath=breath)) * gain / fft.rfft(a, FFT, axis=1), len(x))


def homomorphic_vocoder(x: Array, rng: np.random.Generator, *, quefrencies: int) -> Array:
    """An envelope for each frame from the low quefrencies of the cepstrum, with zero phase, excited as above."""
    cepstrum = fft.irfft(np.log(np.abs(stft(x)) + 1e-2 * rms(x)), axis=1)  # (T, FFT)
    cepstrum[:, quefrencies : 1 - quefrencies] = 0
    plain = stft(excitation(x, rng, breath=0.0)) / np.sqrt((HANN**2).sum())
    envelope: Array = np.exp(fft.rfft(cepstrum, axis=1).real)
    return overlap_add(plain * envelope, len(x))


def flat_pitch(x: Array, *, periods: float) -> Array:
    """Grains of x, `periods` periods long, placed again at a constant pitch, the median of x (PSOLA)."""
    f0, voiced = pitch(x)
    old, new = pulse_times(f0), pulse_times(np.full_like(f0, np.median(f0[voiced > 0.5])))
    centre = old[np.abs(old[:, None] - new).argmin(0)].astype(np.int64)  # (P,), the nearest grain
    reach = int(periods / 2 * SAMPLE_RATE / F0_RANGE_HZ[0]) + 1
    offset = np.arange(2 * reach)
    turn = (offset - reach) * f0[centre, None] / SAMPLE_RATE * 2 / periods  # (P, 2 reach), in half grains
    window = np.where(np.abs(turn) < 1, 0.5 + 0.5 * np.cos(np.pi * turn), 0)
    grains = np.pad(x, reach)[centre[:, None] + offset] * window
    at = new.astype(np.int64)[:, None] + offset
    return np.bincount(at.ravel(), grains.ravel(), len(x) + 2 * reach)[reach:-reach].astype(np.float32)


# Recording: (samples,) -> (samples,)


def all_pass(x: Array, *, delays: NDArray[np.int64], gains: NDArray[np.float64]) -> Array:
    """x through a cascade of Schroeder's all-pass reverberators (1961), which change phases and keep magnitudes.

    delays: (K,) in samples. gains: (K,), below one in magnitude.
    """
    size = fft.next_fast_len(len(x) + SAMPLE_RATE // 2, real=True)  # half a second until the echoes are gone
    turn = np.linspace(0, np.pi, size // 2 + 1, dtype=np.float32)
    spectrum = fft.rfft(x, size)
    for delay, gain in zip(delays, gains.astype(np.float32), strict=True):
        z = np.exp(-1j * turn * np.float32(delay))
        spectrum *= (z - gain) / (1 - gain * z)
    y: Array = fft.irfft(spectrum, size)[: len(x)]
    return y


def limited(x: Array, ceiling: float) -> Array:
    """x limited smoothly to `ceiling` times its own RMS."""
    top = np.float32(ceiling * rms(x))
    y: Array = top * np.tanh(x / top)
    return y


def slope(x: Array, db_per_octave: float) -> Array:
    """x with a spectral slope of `db_per_octave` that leaves 1 kHz unchanged, and nothing at 0 Hz."""
    size = fft.next_fast_len(len(x), real=True)
    hz = fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gain = (np.maximum(hz, 60) / 1000) ** (db_per_octave / 6.02) * hz**2 / (hz**2 + 60**2)
    y: Array = fft.irfft(fft.rfft(x, size) * gain.astype(np.float32), size)[: len(x)]
    return y
