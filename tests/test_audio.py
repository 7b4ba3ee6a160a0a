"""Audio: decoding, conversion, windows, and a clear refusal of everything that cannot be used."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import audio
from pipeline.errors import InputError

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "window.npz"


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden folder beside the project")
def test_window_repeats_like_the_reference() -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for i in range(len(golden["lengths"])):
            for length in (64_600, 66_800):
                got, valid = audio.window(golden[f"s{i}/x"], length=length, pad="repeat")
                np.testing.assert_array_equal(got, golden[f"s{i}/w{length}"])
                assert valid == length


def test_window_by_hand() -> None:
    x = np.array([1, 2, 3], dtype=np.float32)
    repeated, valid = audio.window(x, length=7, pad="repeat")
    assert (repeated.tolist(), valid) == ([1, 2, 3, 1, 2, 3, 1], 7)
    zeros, valid = audio.window(x, length=5, pad="zero")
    assert (zeros.tolist(), valid) == ([1, 2, 3, 0, 0], 3)
    head, valid = audio.window(x, length=2, pad="zero")
    assert (head.tolist(), valid) == ([1, 2], 2)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(16_000), -0.5 * tone(16_000)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(audio.load(tmp_path / "x.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_rates_become_16_khz(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "x.flac", tone(rate), rate)
    got = audio.load(tmp_path / "x.flac")
    expected = tone(16_000)
    assert abs(len(got) - len(expected)) <= 1
    middle = slice(1_000, 7_000)  # the resampling filter rings at both ends
    np.testing.assert_allclose(got[middle], expected[middle], atol=2e-3)


def write_bad(kind: str, path: Path) -> None:
    """Write one kind of unusable audio."""
    x = tone(16_000, seconds=3)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "not audio":
        path.write_text("utterance,label\n")
    elif kind in ("cut wav", "cut flac", "cut ogg"):
        soundfile.write(path, x + np.random.default_rng(0).normal(0, 0.1, len(x)), 16_000, format=kind[4:])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "silent":
        soundfile.write(path, np.zeros(8_000), 16_000, format="wav")
    elif kind == "short":
        soundfile.write(path, x[:399], 16_000, format="wav")
    elif kind == "short at 48 kHz":
        soundfile.write(path, x[:1199], 48_000, format="wav")
    elif kind == "nan":
        x[7] = np.nan
        soundfile.write(path, x, 16_000, format="wav", subtype="FLOAT")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", "0 bytes"),
        ("not audio", "expected an audio file"),
        ("cut wav", "cut off"),
        ("cut flac", "breaks off"),
        ("cut ogg", "cut off"),
        ("silent", "silent"),
        ("short", "expected at least 25 ms"),
        ("short at 48 kHz", "expected at least 25 ms"),
        ("nan", "1 samples are NaN"),
    ],
)
def test_unusable_audio_is_refused_by_name(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "bad.audio"
    write_bad(kind, path)
    with pytest.raises(InputError, match=message) as error:
        audio.load(path)
    assert str(path) in str(error.value)


def test_shortest_usable_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(16_000)[:400], 16_000)
    assert len(audio.load(tmp_path / "x.wav")) == 400
    content = audio.probe(tmp_path / "x.wav")
    assert content == hashlib.sha256((tmp_path / "x.wav").read_bytes()).hexdigest()[:16]
    assert len(audio.load(tmp_path / "x.wav", content=content)) == 400
    with pytest.raises(InputError, match=r"expected the bytes that the trial table knows \(digest 0\)"):
        audio.load(tmp_path / "x.wav", content="0")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_whole_ogg_is_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "x.ogg", tone(16_000, seconds=3), 16_000, format="OGG", subtype=subtype)
    assert abs(len(audio.load(tmp_path / "x.ogg")) - 48_000) < 400
