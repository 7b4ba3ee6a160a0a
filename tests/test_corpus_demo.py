from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from scipy import fft

from pipeline.audio import synthesis
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.corpora import demo

PROTOCOL = Path(demo.__file__)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Trials]]:
    """The first half of each split."""
    root = tmp_path_factory.mktemp("demo")
    half = {split: (utterances // 2, *rest) for split, (utterances, *rest) in demo.SPLITS.items()}
    with mock.patch.dict(demo.SPLITS, half):
        return root, {split: demo.trials(root, PROTOCOL, split) for split in demo.SPLITS}


@pytest.fixture(scope="module")
def audio(corpus) -> list[tuple[bool, np.ndarray]]:
    """(is_bonafide, samples) of the pooled corpus."""
    root, tables = corpus
    return [
        (bool(bonafide), soundfile.read(root / path)[0])
        for table in tables.values()
        for bonafide, path in zip(table.is_bonafide, table.path, strict=True)
    ]


def auc(is_bonafide: np.ndarray, values: np.ndarray) -> float:
    """How often a bona fide value lies above a spoof value, ties counting half."""
    difference = values[is_bonafide][:, None] - values[~is_bonafide]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


@pytest.mark.parametrize(
    ("split", "attacks"),
    [
        ("train", {"-": 90, "D01": 55, "D02": 55}),
        ("dev", {"-": 36, "D01": 22, "D02": 22}),
        ("eval", {"-": 72, "D01": 22, "D02": 22, "D03": 22, "D04": 22}),
    ],
)
def test_counts(corpus, split, attacks):
    planned = [demo.plan(split, i).attack for i in range(demo.SPLITS[split][0])]
    assert Counter(planned) == attacks
    table = corpus[1][split]
    assert table.attack.tolist() == planned[: len(table)]
    assert np.array_equal(table.is_bonafide, table.attack == "-")


def test_the_docstring_gives_the_counts_and_speakers():
    lines = [line.split() for line in demo.__doc__.splitlines()]
    for split, (utterances, speakers, attacks) in demo.SPLITS.items():
        bonafide = sum(demo.plan(split, i).attack == "-" for i in range(utterances))
        names = [f"S{speakers[0]:02d}", "to", f"S{speakers[-1]:02d}"]
        assert [split, str(utterances), str(bonafide), *attacks, *names] in lines


def test_every_speaker_of_a_split_has_both_classes(corpus):
    for table in corpus[1].values():
        assert set(table.speaker[table.is_bonafide]) == set(table.speaker[~table.is_bonafide])
    speakers = {split: set(table.speaker) for split, table in corpus[1].items()}
    assert len(speakers["train"]) == 8
    assert speakers["eval"] - speakers["train"]
    assert speakers["eval"] & speakers["train"]


def test_format_duration_level_and_dc(corpus, audio):
    root, tables = corpus
    info = soundfile.info(root / tables["train"].path[0])
    assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
    for _, x in audio:
        assert 2.0 <= len(x) / 16_000 <= 3.0
        assert np.abs(x).max() < 0.999
        assert abs(x.mean()) < 1 / 32768
        assert -34.1 < 20 * np.log10(x.std()) < -24.9
    assert not list(root.rglob("*.part"))


def near_silence(x: np.ndarray) -> float:
    """Share of the 10 ms frames that lie 30 dB under the loudest."""
    power = (x[: len(x) // 160 * 160].reshape(-1, 160) ** 2).mean(1)
    return float((power < power.max() * 1e-3).mean())


CUES = {
    "level": lambda x: x.std(),
    "peak": lambda x: np.abs(x).max(),
    "duration": len,
    "dc": lambda x: abs(x.mean()),
    "near silence": near_silence,
    "first 80 ms": lambda x: x[:1280].std() / x.std(),
    "last 80 ms": lambda x: x[-1280:].std() / x.std(),
    "polarity": lambda x: (x * x * x).mean(),
    "crest": lambda x: np.abs(x).max() / x.std(),
    "skewness": lambda x: abs((x * x * x).mean()) / x.std() ** 3,
}


@pytest.mark.parametrize("cue", CUES)
def test_no_trivial_cue(audio, cue):
    is_bonafide = np.array([b for b, _ in audio])
    within = 0.15 if cue in ("crest", "skewness") else 0.13  # harmonics and noise differ in crest whatever the phases
    assert auc(is_bonafide, np.array([CUES[cue](x) for _, x in audio])) == pytest.approx(0.5, abs=within)


def test_quality_is_known_varies_and_does_not_tell_the_class(corpus):
    tables = corpus[1].values()
    quality = np.concatenate([t.quality for t in tables])
    assert quality.min() >= 1
    assert quality.max() <= 5
    assert auc(np.concatenate([t.is_bonafide for t in tables]), quality) == pytest.approx(0.5, abs=0.12)
    train = corpus[1]["train"]
    assert 0.2 <= (train.quality[train.is_bonafide] < 2.5).mean() <= 0.4


def test_quality_follows_the_noise_in_the_audio(corpus, audio):
    quality = np.concatenate([t.quality for t in corpus[1].values()])
    floor = np.array([x[:1280].std() / x.std() for _, x in audio])
    assert np.corrcoef(-np.log(floor), quality)[0, 1] > 0.98


def test_the_same_bytes_again(corpus, tmp_path, monkeypatch):
    root, tables = corpus
    monkeypatch.setitem(demo.SPLITS, "dev", (20, *demo.SPLITS["dev"][1:]))
    again = demo.trials(tmp_path, PROTOCOL, "dev")
    for path in again.path:
        assert (tmp_path / path).read_bytes() == (root / path).read_bytes()
    assert np.array_equal(again.quality, tables["dev"].quality[:20])


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("train", 99), ("eval", 9), ("eval", 10), ("eval", 12)])
def test_an_utterance_alone_is_the_one_in_the_corpus(corpus, split, index):
    stored, _ = soundfile.read(corpus[0] / corpus[1][split].path[index], dtype="int16")
    assert np.array_equal(demo.render(demo.plan(split, index)), stored)


def fingerprint(x: np.ndarray) -> np.ndarray:
    """Autocorrelation beyond 20 ms, of unit norm: knows the utterance, not its phases and not where it starts."""
    r = fft.irfft(np.abs(fft.rfft(x, 1 << 17)) ** 2)[320 : 1 << 16]
    return r / np.linalg.norm(r)


def test_the_source_of_a_spoof_is_bona_fide_nowhere(corpus, audio):
    first = fingerprint(soundfile.read(corpus[0] / corpus[1]["eval"].path[0])[0])
    assert fingerprint(demo.speech(demo.plan("eval", 0))) @ first > 0.9
    sources = np.stack([fingerprint(demo.speech(demo.plan("eval", i))) for i in (9, 10, 11, 12)])
    assert max((sources @ fingerprint(x)).max() for is_bonafide, x in audio if is_bonafide) < 0.5


def test_every_attack_keeps_the_words_and_changes_the_waveform():
    p = demo.plan("eval", 0)
    x = demo.speech(p)
    for attack in demo.ATTACKS.values():
        y = attack(x, p.rng(demo.SPOOF))
        assert y.shape == x.shape
        assert y.dtype == np.float32
        loudness = [np.log((v[: len(v) // 800 * 800].reshape(-1, 800) ** 2).mean(1) + 1e-6 * x.var()) for v in (x, y)]
        assert np.corrcoef(*loudness)[0, 1] > 0.9
        assert abs(x @ y) < 0.95 * np.linalg.norm(x) * np.linalg.norm(y)


def test_flat_pitch_has_one_pitch():
    p = demo.plan("eval", 0)
    x = demo.speech(p)
    y = demo.ATTACKS["D04"](x, p.rng(demo.SPOOF))
    spread = []
    for samples in (x, y):
        f0, voiced = synthesis.pitch(samples)
        low, high = np.quantile(f0[voiced > 0.5], (0.2, 0.8))
        spread.append(np.log2(high / low))
    assert spread[1] < 0.02 < 0.1 < spread[0]


def test_all_pass_scatters_phases_and_keeps_magnitudes():
    impulse = np.zeros(8000, np.float32)
    impulse[0] = 1
    y = synthesis.all_pass(impulse, delays=np.array([40, 90, 170]), gains=np.array([0.5, 0.6, 0.7]))
    assert y[0] == pytest.approx(-0.5 * 0.6 * 0.7, abs=1e-3)  # each stage lets -gain through at once
    assert np.abs(fft.rfft(y)) == pytest.approx(np.ones(4001), abs=1e-3)
    assert np.abs(y).max() < 0.5


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="expected the split train, dev, eval, got 'test'"):
        demo.trials(tmp_path, PROTOCOL, "test")
