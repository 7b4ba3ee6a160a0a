"""What several views share: noise at a given level, rooms, recordings, lossy codecs, bounds of peak and length."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.audio.recordings import Recordings
from pipeline.audio.windowing import SAMPLE_RATE, Samples

Signal = NDArray[np.float64]


def additive(x: Signal, noise: Signal, *, snr_db: float) -> Signal:
    """x (n,) plus noise (n,) of any level, scaled to the given ratio of norms; the peak may exceed 1.

    SSI of RawBoost (section 3.3 of arXiv 2111.04433).
    """
    ratio = math.sqrt(np.square(x).sum() / np.square(noise).sum())
    return x + noise * (ratio / 10 ** (snr_db / 20))


def unclipped(x: Signal) -> Signal:
    """x divided by its peak where that is above 1."""
    return x / max(1.0, float(np.abs(x).max()))


def convolve(x: Signal, taps: Signal, *, block: int) -> Signal:
    """All of the convolution of x (n,) and a filter (L,), and zeros after it: (n + L − 1 or more,).

    block: samples of a fast Fourier transform, at least twice L. The same bits for any number of threads.
    """
    tail = len(taps) - 1
    hop = block - tail
    blocks = np.pad(x, (0, -len(x) % hop)).reshape(-1, hop)
    filtered = np.fft.irfft(np.fft.rfft(blocks, block) * np.fft.rfft(taps, block), block)  # (blocks, block)
    out = np.zeros((len(blocks) + 1, hop))
    out[:-1] = filtered[:, :hop]
    out[1:, :tail] += filtered[:, hop:]
    return out.ravel()


def reverberated(samples: Samples, response: Signal, *, direct: int) -> Samples:
    """Samples (n,) convolved with a response (L,), at the level that they had; peak at most 1.

    direct: the place of the direct sound in the response, which is taken as no delay.
    """
    x = samples.astype(np.float64)
    block = 2 ** math.ceil(math.log2(2 * len(response)))
    heard = convolve(x, response, block=block)[direct:][: len(x)]
    level = math.sqrt(np.square(x).sum() / max(np.square(heard).sum(), np.finfo(np.float64).tiny))
    return unclipped(heard * level).astype(np.float32)


def passage(recordings: Recordings, number: int, count: int, rng: np.random.Generator) -> Signal:
    """A passage (count,) of a recording from a drawn place on. A shorter recording is heard again from its start.

    A passage that would be silent begins at the next sound.
    """
    whole = recordings.read(number)
    place = int(rng.integers(len(whole) if len(whole) < count else len(whole) - count + 1))
    onward = np.roll(whole, -place)
    if not onward[:count].any():
        onward = np.roll(onward, -int(onward.nonzero()[0][0]))
    return np.resize(onward, count)


def fitted(samples: Samples, length: int) -> Samples:
    """The first `length` of samples (n,), with zeros after them where there are fewer: (length,)."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def at_rate(samples: Samples, rate: int, through: Any) -> Samples:
    """Samples (n,) at 16 kHz, taken to another rate (Hz) for the function `through` and back: (n,)."""
    there: Samples = through(soxr.resample(samples, SAMPLE_RATE, rate, quality="HQ"))
    return fitted(soxr.resample(there, rate, SAMPLE_RATE, quality="HQ"), len(samples))


def coded(samples: Samples, codec: str, *, container: str, rate: int, bits: int) -> Samples:
    """Samples (n,) at `rate` Hz as they sound after one of FFmpeg's codecs at a bit rate in bit/s: at 16 kHz.

    By PyAV, the extra `av`. What the container states of the codec's delay is taken away.
    """
    import av  # an extra; the view says that it needs it

    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream: Any = target.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = bits
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        shaped = av.AudioResampler(
            stream.codec_context.format, "mono", rate, frame_size=stream.codec_context.frame_size or None
        )
        for part in [*shaped.resample(frame), *shaped.resample(None), None]:
            target.mux(stream.encode(part))
    file.seek(0)
    with av.open(file) as source:
        plain = av.AudioResampler("flt", "mono")
        parts = [part for frame in source.decode(audio=0) for part in plain.resample(frame)]
        heard = np.concatenate([part.to_ndarray()[0] for part in parts])
    at_16_khz: Samples = soxr.resample(heard, parts[0].sample_rate, SAMPLE_RATE, quality="HQ")
    return at_16_khz


def companded(samples: Samples, law: str) -> Samples:
    """Samples (n,) as they sound after 8 bits each of ITU-T G.711. law: `ALAW` or `ULAW`, as libsndfile names them."""
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), 8_000, format="RAW", subtype=law)
    file.seek(0)
    heard: Samples = soundfile.read(file, dtype="float32", channels=1, samplerate=8_000, format="RAW", subtype=law)[0]
    return heard
