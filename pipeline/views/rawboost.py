"""RawBoost: augmentation of raw speech by what telephony does to it: channels, impulses, stationary noise.

Tak, Kamble, Patino, Todisco, Evans, "RawBoost: A raw data boosting and augmentation method applied to automatic speaker
verification anti-spoofing", ICASSP 2022 (arXiv 2111.04433). Eight algorithms: 1 linear and non-linear convolutive noise
(LnL), 2 impulsive signal-dependent noise (ISD), 3 stationary signal-independent noise (SSI); 4 is 1, 2, 3 in series, 5
is 1, 2, 6 is 1, 3, 7 is 2, 3; 8 is the sum of 1 and 2 of the same input. The numbers are those of the published code,
which the constants below name.

Signals are (n,) float64 inside, at 16 kHz. Every step is a drawing of its parameters, which asks the generator, and a
function of them, which does not. No BLAS is asked for long signals: the same bits for any number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.views._shared import Signal, additive, convolve, unclipped

# Notch filters: uniform draws, from low to high
BANDS = 5  # stopped bands of one filter
CENTRE_HZ = (20.0, 8_000.0)
WIDTH_HZ = (100.0, 1_000.0)
TAPS = (10, 100)  # of one band, the upper one excluded; an even number gets one more
EDGE_HZ = 0.001  # how near a band may come to 0 Hz and to half the sampling rate
BLOCK = 4_096  # samples of a fast convolution; at least twice the taps of a filter, which are 491 at most
RESPONSE_POINTS = 512  # frequencies, from 0 up to half the sampling rate, among which the peak gain is looked for

ORDERS = 5  # LnL: powers of the signal, each through a filter of its own
ORDER_1_DB = 0.0  # gain of the linear part
HIGHER_ORDERS_DB = (-20.0, -5.0)  # gains of the others
ISD_PERCENT = (0.0, 10.0)  # samples that are hit
ISD_GAIN = 2.0  # g_sd
SSI_SNR_DB = (10.0, 40.0)

# Filters


def notch_filter(
    centre_hz: NDArray[np.float64], width_hz: NDArray[np.float64], taps: NDArray[np.int64], *, gain_db: float
) -> Signal:
    """A linear-phase FIR filter (L,) that stops the given bands, each argument (bands,), with peak gain `gain_db`."""
    stops = [_band_stop(*band) for band in zip(centre_hz.tolist(), width_hz.tolist(), taps.tolist(), strict=True)]
    together: Signal = functools.reduce(np.convolve, stops)
    response = np.fft.rfft(together, 2 * max(RESPONSE_POINTS, len(together)))  # where it is longer, on a finer grid
    peak = float(np.abs(response[:-1]).max())
    return together * (10 ** (gain_db / 20) / peak)


def _band_stop(centre_hz: float, width_hz: float, taps: int) -> Signal:
    """Window method, Hamming, unit gain at 0 Hz: (taps,), or one more where that is even."""
    nyquist = SAMPLE_RATE / 2
    low, high = centre_hz - width_hz / 2, centre_hz + width_hz / 2
    low = low / nyquist if low > 0 else EDGE_HZ / nyquist
    high = high / nyquist if high < nyquist else 1 - EDGE_HZ / nyquist
    count = taps | 1
    m = np.arange(count) - count // 2
    ideal = low * np.sinc(low * m) + np.sinc(m) - high * np.sinc(high * m)
    h: Signal = ideal * np.hamming(count)
    return h / float(h.sum())


def fir(x: Signal, taps: Signal) -> Signal:
    """A signal (n,) through a causal filter (L,), without the first ⌊(L + 1) / 2⌋ samples: (n,).

    So does the published code: for odd L that is one sample more than the delay, and the output leads by one.
    """
    start = (len(taps) + 1) // 2
    return convolve(x, taps, block=BLOCK)[start : start + len(x)]


# The three noises, of given parameters


def convolutive(x: Signal, filters: Sequence[Signal]) -> Signal:
    """LnL (section 3.1): powers 1, 2, ... of x (n,), each through its filter, added up; no mean, peak at most 1."""
    power, y = np.ones_like(x), np.zeros_like(x)
    for taps in filters:
        power = power * x
        y += fir(power, taps)
    return unclipped(y - y.mean())


def impulsive(x: Signal, index: NDArray[np.int64], u1: Signal, u2: Signal, *, gain: float) -> Signal:
    """ISD (section 3.2): samples `index` (m,) of x times 1 + gain (2 u1 − 1)(2 u2 − 1); peak at most 1.

    u1, u2: (m,), uniform in 0..1.
    """
    y = x.copy()
    y[index] *= 1 + gain * (2 * u1 - 1) * (2 * u2 - 1)
    return unclipped(y)


# The same with drawn parameters


def draw_filter(rng: np.random.Generator, *, gain_db: float) -> Signal:
    """A notch filter (L,) of random bands."""
    centre, width = rng.uniform(*CENTRE_HZ, BANDS), rng.uniform(*WIDTH_HZ, BANDS)
    return notch_filter(centre, width, rng.integers(*TAPS, BANDS), gain_db=gain_db)


def lnl(x: Signal, rng: np.random.Generator) -> Signal:
    """Algorithm 1: (n,) -> (n,)."""
    gains = [ORDER_1_DB, *rng.uniform(*HIGHER_ORDERS_DB, ORDERS - 1).tolist()]
    return convolutive(x, [draw_filter(rng, gain_db=gain) for gain in gains])


def isd(x: Signal, rng: np.random.Generator) -> Signal:
    """Algorithm 2: (n,) -> (n,)."""
    count = int(len(x) * rng.uniform(*ISD_PERCENT) / 100)
    index = rng.choice(len(x), count, replace=False)
    return impulsive(x, index, rng.random(count), rng.random(count), gain=ISD_GAIN)


def ssi(x: Signal, rng: np.random.Generator) -> Signal:
    """Algorithm 3: (n,) -> (n,)."""
    noise = fir(rng.standard_normal(len(x)), draw_filter(rng, gain_db=ORDER_1_DB))
    return additive(x, noise, snr_db=rng.uniform(*SSI_SNR_DB))


SERIES: dict[int, tuple[Callable[[Signal, np.random.Generator], Signal], ...]] = {
    1: (lnl,),
    2: (isd,),
    3: (ssi,),
    4: (lnl, isd, ssi),
    5: (lnl, isd),
    6: (lnl, ssi),
    7: (isd, ssi),
}
PARALLEL = 8
VARIANTS = (*SERIES, PARALLEL)  # the algorithms
RANDOM = True


def apply(samples: Samples, *, variant: int, rng: np.random.Generator) -> Samples:
    """One augmented copy of an utterance, (n,) float32 at 16 kHz -> (n,) float32.

    Raises ValueError for a variant other than 1 to 8 and for what is not one signal.
    """
    if variant not in VARIANTS:
        raise ValueError(f"expected a RawBoost algorithm of {VARIANTS}, got {variant}")
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"expected samples of shape (n,), n > 0, got {samples.shape}")
    x = samples.astype(np.float64)
    if variant == PARALLEL:
        x = unclipped(lnl(x, rng) + isd(x, rng))
    else:
        for step in SERIES[variant]:
            x = step(x, rng)
    return x.astype(np.float32)
