"""The demo corpus: speech-like signals and four kinds of spoof, generated from one constant seed.

It shows that the machinery runs from audio to leaderboard without a download. It is not speech, and no number measured
on it says anything about detecting real deepfakes. The attacks are coarse and the recordings alike, so that a small
encoder with random weights can find a difference.

Layout below the corpus root: `flac/<split>/<utterance>.flac`, 16 kHz, mono, 16 bit, 2 to 3 s.

split   utterances   bona fide   attacks              speakers
train   200          90          D01 D02              S01 to S08
dev     80           36          D01 D02              S05 to S10
eval    160          72          D01 D02 D03 D04      S07 to S14

attack  made by
D01     Griffin-Lim from a mel spectrogram of few bands, one iteration
D02     LPC vocoder: all-pole envelope of low order, a breathy excitation at the F0 estimated from the signal
D03     homomorphic vocoder: smooth cepstral envelope with zero phase, excited by pulses and noise
D04     pitch-flattened: PSOLA at one constant F0, from short grains

Bona fide: glottal pulses with a pitch contour, jitter and shimmer, aspiration and frication noise, seven moving
formants, syllables and pauses drawn at random. Every spoof has a source of its own, which is in no other utterance.

Chain, the same draws for both classes and after the spoofing: margins of silence, all-pass reverberation (the cue is in
the magnitudes, not in the phases), limiter, room noise, channel, DC removal, polarity, level, 16 bit. `quality` is
linear in the room's signal-to-noise ratio, which is known because the noise is added here. It has the range of a MOS
but is no MOS: nobody listened.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import ndimage, signal

from pipeline.audio import synthesis
from pipeline.audio.synthesis import Array, noise, rms, stretch
from pipeline.audio.windowing import SAMPLE_RATE
from pipeline.core.errors import InputError
from pipeline.core.files import flush, writing
from pipeline.core.trial_table import Row, Trials, from_rows

SEED = 20_211_105
LENGTH_RANGE_S, MARGIN_RANGE_S = (2.0, 3.0), (0.08, 0.25)
SNR_RANGE_DB = (22.0, 46.0)
QUALITY_SNR_DB = (19.0, 47.0)  # where the stand-in for a MOS is 1 and 5
LEVEL_RANGE_DB = (-34.0, -25.0)  # RMS relative to full scale; leaves 25 dB for the crest, so nothing clips
ECHOES, ECHO_RANGE_S, ECHO_GAIN_RANGE = 5, (0.001, 0.012), (0.5, 0.7)
CEILING_RANGE = (1.3, 7.0)  # of the limiter, in RMS
NOISE_SLOPE_RANGE_DB, CHANNEL_SLOPE_RANGE_DB = (-4.5, -3.5), (-0.2, 0.2)  # per octave
FLOOR_DB = -50  # relative to the speech: no recording is empty between the words

SPLITS: dict[str, tuple[int, range, tuple[str, ...]]] = {  # utterances, speakers, attacks
    "train": (200, range(1, 9), ("D01", "D02")),
    "dev": (80, range(5, 11), ("D01", "D02")),
    "eval": (160, range(7, 15), ("D01", "D02", "D03", "D04")),
}
BONAFIDE_OF_20 = 9
SPEECH, SPOOF, ROOM, VOICE = range(4)  # streams of random numbers, independent of each other

# F1, F2, F3 in Hz of an adult male voice, rounded.
VOWELS_HZ = ((280, 2250, 2900), (400, 2000, 2550), (550, 1770, 2500), (700, 1300, 2500),
             (620, 1100, 2450), (480, 900, 2400), (320, 850, 2300), (500, 1450, 2450))  # fmt: skip
UPPER_FORMANTS_HZ = np.array([[3500, 4500, 5500, 6600]], np.float32)


@dataclass(frozen=True)
class Plan:
    """One utterance to make: its split, index in the split, speaker, and attack ("-" for bona fide)."""

    split: str
    index: int
    speaker: int
    attack: str

    @property
    def utterance(self) -> str:
        """The name; it does not show the class."""
        return f"demo_{self.split}_{self.index:04d}"

    def rng(self, stream: int) -> np.random.Generator:
        """The generator of one stream of this utterance alone."""
        return np.random.default_rng((SEED, stream, list(SPLITS).index(self.split), self.index))


@dataclass(frozen=True)
class Voice:
    """The constants of a speaker: F0 in Hz, its range in octaves, formant scale, glottal opening in s, and timbre."""

    f0: float
    f0_range: float
    formant_scale: float
    opening: float
    tilt: float
    roughness: float  # jitter as a share of the period; shimmer is eight times that
    breath: float


@dataclass(frozen=True)
class Room:
    """The recording whatever its class: lengths of all and of the margins in samples, signal-to-noise ratio in dB."""

    samples: int
    lead: int
    tail: int
    snr: float


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """Generate one split below `root` and return its table; the same bytes every time.

    `protocol` is unused: it names this file in params.yaml, so that editing the generator makes the corpus stale.
    Raises InputError for an unknown split.
    """
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        raise InputError(f"demo: expected the split {known}, got {split!r}; mend `split` of the set")
    plans = [plan(split, index) for index in range(SPLITS[split][0])]
    (root / "flac" / split).mkdir(parents=True, exist_ok=True)
    # Threads: the time goes into transforms and array arithmetic, which release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda p: _write(root, p), plans))
    return from_rows(rows, source=f"demo {split}")


def plan(split: str, index: int) -> Plan:
    """Utterance `index` of `split`; classes, attacks and speakers are balanced by counting."""
    _, speakers, attacks = SPLITS[split]
    group, place = divmod(index, 20)
    if place < BONAFIDE_OF_20:
        return Plan(split, index, speakers[(group * BONAFIDE_OF_20 + place) % len(speakers)], "-")
    turn, attack = divmod(group * (20 - BONAFIDE_OF_20) + place - BONAFIDE_OF_20, len(attacks))
    return Plan(split, index, speakers[turn % len(speakers)], attacks[attack])


def render(p: Plan) -> NDArray[np.int16]:
    """One utterance, (samples,) at 16 kHz, a function of its plan alone."""
    rng = p.rng(ROOM)
    room = _room(rng)
    x = speech(p)
    if p.attack != "-":
        x = ATTACKS[p.attack](x, p.rng(SPOOF))
    return _record(x, room, rng)


def speech(p: Plan) -> Array:
    """The speech of utterance `p` before any attack and room, (samples without margins,)."""
    room, rng, voice = _room(p.rng(ROOM)), p.rng(SPEECH), _voice(p.speaker)
    n = room.samples - room.lead - room.tail
    track = _articulation(rng, n)  # (T, 7)
    excitation = _glottis(rng, voice, track, n)
    friction = noise(rng, n) * stretch(track[:, 2], n)
    bump = np.exp(-0.5 * ((synthesis.HERTZ - track[:, 3:4]) / (0.22 * track[:, 3:4])) ** 2)  # (T, F)
    moving, fixed = (np.minimum(hz * voice.formant_scale, 7600) for hz in (track[:, 4:], UPPER_FORMANTS_HZ))
    tract = synthesis.vocal_tract(moving) * synthesis.vocal_tract(fixed)  # (T, F) * (1, F)
    x = synthesis.overlap_add(synthesis.stft(excitation) * tract + synthesis.stft(friction) * bump, n)
    return x + noise(rng, n) * np.float32(rms(x) * 10 ** (FLOOR_DB / 20))


def quality(p: Plan) -> float:
    """The stand-in for a MOS, from 1 to 5."""
    worst, best = QUALITY_SNR_DB
    return round(1 + 4 * (_room(p.rng(ROOM)).snr - worst) / (best - worst), 3)


def _write(root: Path, p: Plan) -> Row:
    path = root / "flac" / p.split / f"{p.utterance}.flac"
    beside = path.with_name(path.name + ".part")
    with writing(path):
        try:
            soundfile.write(beside, render(p), SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        except soundfile.LibsndfileError as error:  # a full disk among others
            raise OSError(errno.EIO, str(error)) from None
        flush(beside)
        os.replace(beside, path)
    return Row(
        where=f"demo {p.split} {p.index}",
        utterance=p.utterance,
        path=path.relative_to(root).as_posix(),
        label="bonafide" if p.attack == "-" else "spoof",
        speaker=f"S{p.speaker:02d}",
        attack=p.attack,
        quality=str(quality(p)),
    )


# What speakers say


def _voice(speaker: int) -> Voice:
    rng = np.random.default_rng((SEED, VOICE, speaker))
    low = speaker % 2 == 0
    f0 = rng.uniform(90, 140) if low else rng.uniform(160, 235)
    return Voice(
        f0=f0,
        f0_range=rng.uniform(0.2, 0.45),
        formant_scale=rng.uniform(0.92, 1.04) if low else rng.uniform(1.06, 1.2),
        opening=rng.uniform(0.5, 0.7) / f0,
        tilt=rng.uniform(0.0, 0.5),
        roughness=rng.uniform(0.004, 0.012),
        breath=rng.uniform(0.1, 0.5),
    )


def _syllable(rng: np.random.Generator) -> list[tuple[float, ...]]:
    """Segments (seconds, voicing, aspiration, friction, friction Hz, F1, F2, F3): a consonant or pause, and a vowel."""
    vowel = np.array(VOWELS_HZ[rng.integers(len(VOWELS_HZ))]) * rng.normal(1, 0.04, 3)
    locus = (0.5 * vowel + 0.5 * np.array([250, rng.uniform(900, 2200), 2400])).tolist()
    kind = rng.choice(["nasal", "glide", "fricative", "voiced fricative", "stop", "none", "pause"])
    hz = rng.uniform(2200, 6500)
    length = rng.uniform(0.05, 0.12)
    onset: dict[str, list[tuple[float, ...]]] = {
        "nasal": [(length, 0.4, 0, 0, hz, 260, 1150, 2300)],
        "glide": [(length, 0.7, 0, 0, hz, *locus)],
        "fricative": [(length, 0, 0.1, rng.uniform(0.2, 0.7), hz, *locus)],
        "voiced fricative": [(length, 0.4, 0.1, rng.uniform(0.1, 0.3), hz, *locus)],
        "stop": [(length, 0, 0, 0, hz, *locus), (0.02, 0, 0.3, rng.uniform(0.5, 1.0), hz, *locus)],
        "none": [],
        "pause": [(length + 0.1, 0, 0, 0, hz, *locus)],
    }
    stress = rng.uniform(0.6, 1.0)
    return [*onset[str(kind)], (rng.uniform(0.08, 0.22), stress, 0.3 * stress, 0, hz, *vowel)]


def _articulation(rng: np.random.Generator, n: int) -> Array:
    """Controls at the centres of the STFT frames of n samples, (T, 7): the columns of a syllable after its length."""
    frames = synthesis.frame_count(n)
    segments: list[tuple[float, ...]] = []
    while sum(s[0] for s in segments) * SAMPLE_RATE < (frames + 1) * synthesis.HOP:
        segments += _syllable(rng)
    table = np.array(segments)
    ends = np.cumsum(table[:, 0]) * SAMPLE_RATE / synthesis.HOP
    steps = table[np.searchsorted(ends, np.arange(frames)), 1:]
    steps[:, :3] = ndimage.gaussian_filter1d(steps[:, :3], 0.8, axis=0)  # sources switch in about 10 ms
    steps[:, 3:] = ndimage.gaussian_filter1d(steps[:, 3:], 3.0, axis=0)  # articulators move in about 40 ms
    return steps.astype(np.float32)


def _glottis(rng: np.random.Generator, voice: Voice, track: Array, n: int) -> Array:
    """Pulses of the derivative of the glottal flow, and aspiration strongest while the glottis is open, (n,)."""
    wander = ndimage.gaussian_filter1d(rng.standard_normal(len(track)), 12) * 6  # deviation about 1, 0.2 s slow
    f0 = voice.f0 * 2 ** (stretch(voice.f0_range * wander, n) - np.linspace(-0.1, 0.15, n))
    times = synthesis.pulse_times(np.clip(f0, *synthesis.F0_RANGE_HZ))
    times += rng.standard_normal(len(times)) * voice.roughness * SAMPLE_RATE / voice.f0
    strength = np.exp(rng.standard_normal(len(times)) * 8 * voice.roughness)
    strength *= np.interp(times, np.arange(n), stretch(track[:, 0], n))
    pulses = synthesis.glottal_pulses(times, strength, opening=voice.opening, n=n)
    turn = np.interp(np.arange(n), times, 2 * np.pi * np.arange(len(times)))
    breath = voice.breath * stretch(track[:, 1] + 0.05 * track[:, 0], n) * (0.6 + 0.4 * np.cos(turn))
    flow: Array = signal.lfilter([1 - voice.tilt], [1, -voice.tilt], pulses + breath * noise(rng, n))
    return flow.astype(np.float32)


# Attacks: (samples,) -> (samples,), by a generator of their own

ATTACKS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "D01": lambda x, rng: synthesis.griffin_lim(x, rng, mels=6, rounds=1),
    "D02": lambda x, rng: synthesis.lpc_vocoder(x, rng, order=3, breath=0.7),
    "D03": lambda x, rng: synthesis.homomorphic_vocoder(x, rng, quefrencies=20),
    "D04": lambda x, _rng: synthesis.flat_pitch(x, periods=0.5),
}


# The chain that both classes pass


def _room(rng: np.random.Generator) -> Room:
    ranges = LENGTH_RANGE_S, MARGIN_RANGE_S, MARGIN_RANGE_S
    samples, lead, tail = (int(rng.uniform(*seconds) * SAMPLE_RATE) for seconds in ranges)
    return Room(samples, lead, tail, snr=rng.uniform(*SNR_RANGE_DB))


def _record(x: Array, room: Room, rng: np.random.Generator) -> NDArray[np.int16]:
    """Speech in a room through a channel to 16 bit, (room.samples,)."""
    delays = np.rint(rng.uniform(*ECHO_RANGE_S, ECHOES) * SAMPLE_RATE).astype(np.int64)
    gains = rng.uniform(*ECHO_GAIN_RANGE, ECHOES)
    y = synthesis.all_pass(np.pad(x, (room.lead, room.tail)), delays=delays, gains=gains)
    y = synthesis.limited(y, rng.uniform(*CEILING_RANGE))
    hiss = synthesis.slope(noise(rng, len(y)), rng.uniform(*NOISE_SLOPE_RANGE_DB))
    y = y + hiss * np.float32(rms(y) / rms(hiss) * 10 ** (-room.snr / 20))
    y = synthesis.slope(y, rng.uniform(*CHANNEL_SLOPE_RANGE_DB))
    y = y - y.mean()
    gain = rng.choice([-1.0, 1.0]) * 10 ** (rng.uniform(*LEVEL_RANGE_DB) / 20) / rms(y)
    samples = np.rint(y * gain * 32768)
    assert np.abs(samples).max() < 32767, "the level leaves room for every crest"  # noqa: S101
    quantized: NDArray[np.int16] = samples.astype(np.int16)
    return quantized
