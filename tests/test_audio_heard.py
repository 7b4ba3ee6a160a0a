"""Which channel of a file is heard, and how much of it is kept."""

from __future__ import annotations

import contextlib
import os
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio import by_libsndfile, channels, decode, inspection, loader, track
from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.sections import WindowParams
from pipeline.core.trial_table import Row
from tests.long_flac import long_flac
from tests.test_audio import encoded, speech
from tests.test_audio_whole import written

RATE = 16_000


@pytest.fixture
def stereo(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file of two channels, and each of them, (n,)."""
    left, right = speech(RATE, 2.0), 0.5 * speech(RATE, 2.0)[::-1].copy()
    (tmp_path / "s.wav").write_bytes(written(np.stack([left, right], axis=1), "WAV", "FLOAT"))
    return tmp_path / "s.wav", left, right


# Channels


def test_one_channel_or_their_mean_is_heard(stereo: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, left, right = stereo
    np.testing.assert_array_equal(decode.read(path).samples, (left + right) / 2)
    for channel in ("left", 0):
        np.testing.assert_array_equal(decode.read(path, channel=channel).samples, left)
    for channel in ("right", 1):
        np.testing.assert_array_equal(decode.read(path, channel=channel).samples, right)
    digest = decode.digest(path.read_bytes())
    named = {channel: decode.read(path, channel=channel).content for channel in ("mean", "left", 0, "right", 1)}
    assert named == {"mean": digest, "left": f"{digest}:left", "right": f"{digest}:right"} | {
        0: f"{digest}:left",
        1: f"{digest}:right",
    }
    np.testing.assert_array_equal(decode.load(path, content=f"{digest}:right"), right)
    np.testing.assert_array_equal(decode.load(path, content=digest), (left + right) / 2)


def test_pyav_hears_the_same_channel(stereo: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    _, left, right = stereo
    data = encoded("matroska", "pcm_f32le", np.stack([left, right]))
    (tmp_path / "s.mka").write_bytes(data)
    got = decode.read(tmp_path / "s.mka", channel="right")
    assert got.decoder == "PyAV"
    np.testing.assert_array_equal(got.samples, right)


def test_a_channel_that_is_not_there_is_refused(stereo: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, left, _ = stereo
    with pytest.raises(InputError, match=r"s\.wav: expected a file with the channel 2 \(counted from 0\), got 2 chann"):
        decode.read(path, channel=2)
    (tmp_path / "m.wav").write_bytes(written(left, "WAV", "FLOAT"))
    np.testing.assert_array_equal(decode.read(tmp_path / "m.wav", channel="left").samples, left)
    with pytest.raises(InputError, match=r"expected a file with the channel right .*, got 1 channel;"):
        decode.read(tmp_path / "m.wav", channel="right")


def test_the_remedy_for_channels_that_cancel_is_one(tmp_path: Path) -> None:
    x = speech(RATE, 1.0)
    for other, said in ((-x, None), (-0.95 * x, "the channels cancel")):
        (tmp_path / "s.wav").write_bytes(written(np.stack([x, other], axis=1), "WAV", "FLOAT"))
        if said is None:
            with pytest.raises(InputError, match="hear one of them: `channel: left` in its set"):
                decode.read(tmp_path / "s.wav")
        else:
            (warning,) = decode.read(tmp_path / "s.wav").warnings
            assert said in warning
            assert "`channel: left` in its set of the parameters, or `bonafide detect --channel left`" in warning
        got = decode.read(tmp_path / "s.wav", channel="left")
        np.testing.assert_array_equal(got.samples, x)
        assert got.warnings == ()


def test_what_is_wrong_in_a_channel_that_is_not_heard_does_not_matter(tmp_path: Path) -> None:
    x = speech(RATE, 1.0)
    for bad in (np.nan, np.inf, 1e30):
        other = x.copy()
        other[99] = bad
        (tmp_path / "s.wav").write_bytes(written(np.stack([x, other], axis=1), "WAV", "FLOAT"))
        np.testing.assert_array_equal(decode.read(tmp_path / "s.wav", channel="left").samples, x)
        for channel in ("mean", "right"):
            with pytest.raises(InputError, match=r"NaN or infinite|within ±1"):
                decode.read(tmp_path / "s.wav", channel=channel)


def test_names_of_channels() -> None:
    for channel, name in (("mean", "f00"), ("left", "f00:left"), (1, "f00:right"), (5, "f00:5")):
        assert channels.content_of("f00", channel) == name
        assert channels.content_of(*channels.of_content(name)) == name
    for name in ("Left", "-1", "1.0", "", "٣", "9999"):
        with pytest.raises(InputError, match="expected a channel"):
            channels.of_content(f"f00:{name}")


def test_the_fingerprint_knows_a_channel_only_where_one_is_chosen(
    stereo: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    _, left, right = stereo
    (tmp_path / "t.wav").write_bytes(written(np.stack([right, left], axis=1), "WAV", "FLOAT"))
    rows = [Row("t:2", "u1", "s.wav", "bonafide"), Row("t:3", "u2", "t.wav", "spoof")]
    table = trial_table.from_rows(rows, source="t")
    found = {
        channel: trial_table.fingerprint(inspection.with_contents(table, tmp_path, channel=channel))
        for channel in ("mean", "left", 0, "right", 1)
    }
    assert found["left"] == found[0]
    assert found["right"] == found[1]
    assert len(set(found.values())) == 3
    plain = [row._replace(content=decode.digest((tmp_path / row.path).read_bytes())) for row in rows]
    assert found["mean"] == trial_table.fingerprint(trial_table.from_rows(plain, source="t"))
    heard = inspection.with_contents(table, tmp_path, channel="right")
    window = WindowParams(samples=3_200, pad="repeat")
    got, valid = loader.load_window(loader.clip_of(heard, 0, audio_root=tmp_path), view=CLEAN, window=window)
    assert valid == 3_200
    np.testing.assert_array_equal(got, right[:3_200])


# How much is kept


def kinds() -> dict[str, bytes]:
    """Files of 3 s and more of several kinds, rates and decoders."""
    x, y = speech(RATE, 3.0), 0.5 * speech(RATE, 3.0)[::-1]
    wide = speech(44_100, 3.0)
    return {
        "FLAC": written(x, "FLAC"),
        "two channels": written(np.stack([x, y], axis=1), "WAV"),
        "44.1 kHz": written(wide, "FLAC", rate=44_100),
        "8 kHz": written(speech(8_000, 3.0), "WAV", rate=8_000),
        "MP3": encoded("mp3", "mp3", wide[None], rate=44_100),
        "Opus": encoded("ogg", "libopus", speech(48_000, 3.0)[None], rate=48_000),
        "M4A by PyAV": encoded("ipod", "aac", x[None]),
        "joined FLAC": written(x, "FLAC") + written(y, "FLAC") * 2,
        "joined at other rates": written(x[:RATE], "WAV") + written(wide, "WAV", rate=44_100),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_what_is_kept_are_the_first_samples_to_the_bit(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(kinds()[kind])
    whole = decode.read(tmp_path / "x")
    for keep in (0, 1, 400, 15_999, 16_001, 47_000, len(whole.samples), 10**6):
        for content in (None, whole.content):
            got = decode.read(tmp_path / "x", content=content, keep=keep)
            np.testing.assert_array_equal(got.samples, whole.samples[:keep])
            assert (got.content, got.decoder) == (whole.content, whole.decoder)


def test_blocks_and_what_is_kept_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_libsndfile, "BLOCK", 1_000)
    x = speech(RATE, 2.0)
    (tmp_path / "x.wav").write_bytes(written(x, "WAV", "FLOAT"))
    for keep in (1, 999, 1_000, 1_001, 25_500):
        for content in (None, decode.digest((tmp_path / "x.wav").read_bytes())):
            got = decode.read(tmp_path / "x.wav", keep=keep, content=content).samples
            np.testing.assert_array_equal(got, x[:keep])


def test_the_end_of_a_file_that_was_heard_before_is_still_looked_at(tmp_path: Path) -> None:
    x = speech(RATE, 3.0)
    flac, wav = written(x, "FLAC"), written(x, "WAV")
    for data in (flac[:-900], flac + flac[:-900], wav[:-2_000], wav + wav[:-2_000]):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(InputError, match=r"breaks off|cut off"):
            decode.read(tmp_path / "x", keep=8_000, content=decode.digest(data))


def test_what_nobody_heard_before_is_checked_to_its_end(tmp_path: Path) -> None:
    path, x = tmp_path / "x.wav", speech(RATE, 3.0)
    spoilt = x.copy()
    spoilt[-5] = 1e30
    good = written(x, "FLAC")
    for data, said in (
        (written(spoilt, "WAV", "FLOAT"), "within ±1, got 1e"),
        (written(x, "WAV")[:-2_000], "cut off"),
        (good[: len(good) - 500] + bytes(500), "damaged|breaks off"),
        (good + good[:-900], "part 2 of the 2 that were joined"),
    ):
        path.write_bytes(data)
        for keep in (0, 400, None):
            with pytest.raises(InputError, match=said):
                decode.read(path, keep=keep)


def test_a_silent_beginning_is_not_a_silent_file(tmp_path: Path) -> None:
    x = np.concatenate([np.zeros(8_000), speech(RATE, 1.0)])
    soundfile.write(tmp_path / "x.wav", x, RATE)
    content = decode.digest((tmp_path / "x.wav").read_bytes())
    assert not decode.read(tmp_path / "x.wav", keep=4_000, content=content).samples.any()
    clip = loader.Clip("u", tmp_path / "x.wav", content)
    with pytest.raises(InputError, match="the first 4000 samples at 16 kHz are silent"):
        loader.load_window(clip, view=CLEAN, window=WindowParams(samples=4_000, pad="repeat"))


@pytest.mark.parametrize("peak", [0.9, 300.0])
def test_doubtful_samples_are_refused_for_an_encoder_that_does_not_normalize(tmp_path: Path, peak: float) -> None:
    x = speech(RATE, 1.0)
    (tmp_path / "x.wav").write_bytes(written(peak * x / np.abs(x).max(), "WAV", "FLOAT"))
    clip = loader.Clip("u", tmp_path / "x.wav", decode.digest((tmp_path / "x.wav").read_bytes()))
    window = WindowParams(samples=4_000, pad="repeat")
    with ThreadPoolExecutor(1) as executor:
        for normalized in (True, False):
            loading = loader.load(executor, [clip], view=CLEAN, window=window, normalized=normalized)
            with contextlib.closing(loading):
                if normalized or peak < 1:
                    assert loader.loaded(loading, slice(0, 1))[1].tolist() == [4_000]
                    continue
                with pytest.raises(InputError, match=r"u: .*x\.wav: the peak of the samples is 300, .*not normalize"):
                    loader.loaded(loading, slice(0, 1))


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_are_where_the_workers_left_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    """The rows of some utterances, by threads, which write as processes do; and after all, no open file is left."""
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    window, clips = WindowParams(samples=4_000, pad="repeat"), []
    for i in range(20):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.9 * np.random.default_rng(i).uniform(-1, 1, 3_000 + 100 * i), RATE, subtype="FLOAT")
        clips.append(loader.Clip(path.stem, path, decode.digest(path.read_bytes())))
    open_files = Path("/proc/self/fd")
    before = {path.name for path in open_files.iterdir()}
    with ThreadPoolExecutor(3) as executor:
        loading = loader.load(executor, clips, view=CLEAN, window=window)
        with contextlib.closing(loading):
            got, valid = loader.loaded(loading, slice(5, 19))
            assert sorted(path.suffix for path in tmp_path.iterdir()) == [".wav"] * 20
    expected = [loader.load_window(clip, view=CLEAN, window=window) for clip in clips[5:19]]
    np.testing.assert_array_equal(got, np.stack([samples for samples, _ in expected]))
    assert valid.tolist() == [count for _, count in expected]
    del got, loading
    assert {path.name for path in open_files.iterdir()} == before


def test_memory_is_that_of_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.flac").write_bytes(long_flac(hours=0.5))  # 115 MB of samples
    tracemalloc.start()
    try:
        got = decode.read(tmp_path / "x.flac", keep=64_600)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(got.samples) == 64_600
    assert peak < 20e6
    assert not track._ONE_LARGE.locked()


def test_a_large_file_that_pyav_decodes_again_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise by_libsndfile.UndecodableError("something at the end")

    x = speech(RATE, 1.0)
    (tmp_path / "x.flac").write_bytes(written(x, "FLAC"))
    expected = decode.load(tmp_path / "x.flac")
    monkeypatch.setattr(track, "LARGE", 1_000)
    monkeypatch.setattr(by_libsndfile, "_check_heard", refuse)
    got = decode.read(tmp_path / "x.flac")  # it would wait for itself
    assert got.decoder == "PyAV"
    np.testing.assert_array_equal(got.samples, expected)
    assert not track._ONE_LARGE.locked()
