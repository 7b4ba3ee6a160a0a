"""Views that degrade: what each does to a signal of which that is known."""

import importlib.util

import numpy as np
import pytest

from pipeline.audio import views
from pipeline.audio.windowing import Samples
from pipeline.core.errors import InputError
from pipeline.extraction import planning
from pipeline.views import _shared, packet_loss, reverb, trim

RATE = 16_000


def tone(hz: float, *, seconds: float = 1.0) -> Samples:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32) / 4


def sweep() -> Samples:
    """From 200 to 3,400 Hz in 2 s: narrow enough for a telephone, and like itself at no other delay."""
    at = np.arange(2 * RATE) / RATE
    return (0.3 * np.sin(2 * np.pi * (200 * at + 800 * at**2))).astype(np.float32)


def snr_db(clean: Samples, heard: Samples, *, gain: float = 1.0) -> float:
    noise = heard.astype(np.float64) - gain * clean
    return float(10 * np.log10(np.square(gain * clean, dtype=np.float64).sum() / np.square(noise).sum()))


def delay(clean: Samples, heard: Samples) -> int:
    """In samples, by the peak of the correlation."""
    size = 2 * len(clean)
    correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(clean, size)), size)
    return int((np.argmax(correlation) + len(clean)) % size - len(clean))


@pytest.mark.parametrize("name", ["mp3_16", "aac16", "opus6", "amr4750", "alaw", "mulaw", "resample4"])
def test_a_codec_delays_nothing(name: str) -> None:
    clean = sweep()
    assert abs(delay(clean, views.apply(name, clean, utterance="u"))) <= 2


@pytest.mark.parametrize(("low", "high"), [("mp3_16", "mp3_64"), ("aac16", "aac64"), ("opus6", "opus48")])
def test_more_bits_give_less_noise(low: str, high: str) -> None:
    """At the gain of the codec, as LAME's is 0.95."""
    clean = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    found = []
    for name in (low, high):
        heard = views.apply(name, clean, utterance="u")
        found.append(snr_db(clean, heard, gain=float(heard @ clean / (clean @ clean))))
    assert found[1] > found[0] + 5


@pytest.mark.parametrize(("law", "decoded"), [("ULAW", 988), ("ALAW", 1008)])
def test_g711_of_a_sample_by_hand(law: str, decoded: int) -> None:
    """1,000 of 32,768. µ-law: 1,000 + 132 lies in segment 3, step 1 of 64 there. A-law: segment 2, step 15 of 32."""
    heard = _shared.companded(np.full(5, 1000 / 32768, np.float32), law)
    np.testing.assert_array_equal(heard * 32768, np.full(5, decoded))


@pytest.mark.parametrize(("khz", "kept", "lost"), [(4, 1_000, 3_000), (6, 2_000, 4_000), (12, 5_000, 7_000)])
def test_resampling_keeps_what_is_below_half_the_rate(khz: int, kept: float, lost: float) -> None:
    heard = views.apply(f"resample{khz}", tone(kept) + tone(lost), utterance="u")
    middle = slice(1_000, -1_000)
    np.testing.assert_allclose(heard[middle], tone(kept)[middle], atol=2e-3)


@pytest.mark.parametrize("percent", [1, 5, 10, 20])
def test_clipping_cuts_its_share_of_the_samples(percent: int) -> None:
    clean = np.random.default_rng(0).normal(0, 0.1, 10_001).astype(np.float32)
    heard = views.apply(f"clipping{percent}", clean, utterance="u")
    level = np.abs(heard).max()
    cut = np.abs(heard) == level
    assert cut.sum() == pytest.approx(percent * 100, abs=1)
    np.testing.assert_array_equal(heard[~cut], clean[~cut])
    np.testing.assert_array_equal(heard[cut], np.copysign(level, clean[cut]))


def test_quieter_is_lower_by_its_decibels_in_16_bits() -> None:
    heard = views.apply("quieter20", np.array([0.5, -0.25, 1e-4, 0.0], np.float32), utterance="u")
    np.testing.assert_array_equal(heard * 32768, [1638, -819, 0, 0])  # a tenth of 16,384, −8,192, 3.3 and 0


def test_trimming_cuts_the_silence_before_the_first_sound() -> None:
    silence = np.random.default_rng(0).normal(0, 1e-4, 5 * trim.FRAME + 7).astype(np.float32)
    heard = views.apply("trim", np.concatenate([silence, tone(300)]), utterance="u")
    np.testing.assert_array_equal(heard, np.concatenate([silence[-7:], tone(300)]))
    np.testing.assert_array_equal(views.apply("trim", tone(300), utterance="u"), tone(300))


def test_packets_are_lost_in_bursts_at_their_rate() -> None:
    clean = np.ones(4_000 * packet_loss.PACKET, np.float32)
    heard = views.apply("packet_loss20_0", clean, utterance="u").reshape(-1, packet_loss.PACKET)
    lost = heard[:, 0] == 0
    np.testing.assert_array_equal(heard, np.repeat(1.0 - lost, packet_loss.PACKET).reshape(heard.shape))
    assert lost.mean() == pytest.approx(0.2, abs=0.03)
    bursts = np.count_nonzero(lost[1:] & ~lost[:-1]) + lost[0]
    assert lost.sum() / bursts == pytest.approx(2.0, abs=0.2)


def test_a_packet_at_least_is_lost() -> None:
    for copy in range(20):
        assert 0 in views.apply(f"packet_loss5_{copy}", np.ones(400, np.float32), utterance="u")


def test_a_room_falls_by_60_db_in_its_time() -> None:
    """By Schroeder's integral, below 2 kHz from −5 to −25 dB, and above it in half that time."""
    response = reverb.room(0.6, np.random.default_rng(1))
    direct, noise = response[0], response[1:]
    assert direct == 1
    assert 0 <= -10 * np.log10(np.square(noise).sum()) <= 10
    gap = np.flatnonzero(noise)[0] + 1
    assert 0.002 <= gap / RATE <= 0.010
    spectrum = np.fft.rfft(response[gap:])
    hz = np.fft.rfftfreq(len(response) - gap, 1 / RATE)
    for band, expected in ((hz < 1_900, 0.6), (hz > 2_100, 0.3)):
        energy = np.square(np.fft.irfft(spectrum * band, len(response) - gap))[::-1].cumsum()[::-1]
        level = 10 * np.log10(energy / energy[0])
        first, last = (int(np.argmax(level < db)) for db in (-5, -25))
        assert 3 * (last - first) / RATE == pytest.approx(expected, rel=0.1)


def test_reverberation_is_convolution_with_a_room_at_the_level_before() -> None:
    clean = np.random.default_rng(0).normal(0, 0.01, 7_000).astype(np.float32)
    heard = reverb.apply(clean, variant=300, rng=np.random.default_rng(5))
    expected = np.convolve(clean, reverb.room(0.3, np.random.default_rng(5)))[:7_000]
    expected *= np.linalg.norm(clean) / np.linalg.norm(expected)
    np.testing.assert_allclose(heard, expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["babble", "music"])
@pytest.mark.parametrize("level_db", [0, 20])
def test_noise_lies_its_decibels_below(kind: str, level_db: int) -> None:
    clean = 0.2 * tone(200)
    assert snr_db(clean, views.apply(f"{kind}{level_db}_3", clean, utterance="u")) == pytest.approx(level_db, abs=0.01)
    loud = views.apply(f"{kind}0_3", tone(200) * 4, utterance="u")
    assert np.abs(loud).max() == pytest.approx(1, abs=1e-6)


def test_babble_has_the_spectrum_and_the_rhythm_of_speech() -> None:
    clean = np.zeros(15 * RATE, np.float32)
    clean[0] = 1  # noise of the same energy
    noise = views.apply("babble0_0", clean, utterance="u").astype(np.float64) - clean
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(len(noise), 1 / RATE)
    bands = [power[(hz >= low) & (hz < 2 * low)].mean() for low in (600, 1_200, 2_400)]
    np.testing.assert_allclose(10 * np.log10(np.divide(bands[1:], bands[:-1])), -9, atol=0.5)
    assert power[hz < 60].sum() < 1e-4 * power.sum()
    levels = np.sqrt(np.square(noise).reshape(-1, 1_600).mean(axis=1))  # of 0.1 s each
    assert levels.std() / levels.mean() > 0.12  # 0.07 without syllables


def test_music_is_made_of_tones() -> None:
    clean = np.zeros(4 * RATE, np.float32)
    clean[0] = 1
    music = views.apply("music0_0", clean, utterance="u").astype(np.float64) - clean
    power = np.sort(np.abs(np.fft.rfft(music)) ** 2)[::-1]
    assert power[: len(power) // 50].sum() > 0.9 * power.sum()  # of noise they would hold about a tenth


@pytest.mark.parametrize("size", [1, 7, 100, 1_000])
def test_blockwise_convolution_is_convolution(size: int) -> None:
    rng = np.random.default_rng(size)
    x, taps = rng.normal(size=size), rng.normal(size=30)
    found = _shared.convolve(x, taps, block=64)
    np.testing.assert_allclose(found[: size + 29], np.convolve(x, taps), atol=1e-12)
    np.testing.assert_allclose(found[size + 29 :], 0, atol=1e-12)


def test_without_its_extra_a_view_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'the view mp3_32 needs .* pip install "bonafide\[av\]"'):
        views.computable("mp3_32")
    with pytest.raises(InputError, match=r'the view mp3_32 needs .* pip install "bonafide\[av\]"'):
        planning.views_of(["alaw", "mp3_32"])
    assert views.computable("alaw").kind == "alaw"
    assert views.parse("mp3_32") == views.View("mp3", 32)  # its cached features are read without the extra
