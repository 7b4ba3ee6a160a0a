"""Audio: decoding, conversion, windows, and a clear refusal of everything that cannot be used."""

import hashlib
import io
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pipeline.audio import by_pyav, decode, windowing
from pipeline.core.errors import InputError
from tests.golden import read_golden


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


def test_window_repeats_like_the_reference() -> None:
    golden = read_golden("window")
    for i in range(len(golden["lengths"])):
        for length in (64_600, 66_800):
            got, valid = windowing.window(golden[f"s{i}/x"], length=length, pad="repeat")
            np.testing.assert_array_equal(got, golden[f"s{i}/w{length}"])
            assert valid == length


def test_window_by_hand() -> None:
    x = np.array([1, 2, 3], dtype=np.float32)
    repeated, valid = windowing.window(x, length=7, pad="repeat")
    assert (repeated.tolist(), valid) == ([1, 2, 3, 1, 2, 3, 1], 7)
    zeros, valid = windowing.window(x, length=5, pad="zero")
    assert (zeros.tolist(), valid) == ([1, 2, 3, 0, 0], 3)
    head, valid = windowing.window(x, length=2, pad="zero")
    assert (head.tolist(), valid) == ([1, 2], 2)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(16_000), -0.5 * tone(16_000)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(decode.load(tmp_path / "x.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_rates_become_16_khz(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "x.flac", tone(rate), rate)
    got = decode.load(tmp_path / "x.flac")
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
        decode.load(path)
    assert str(path) in str(error.value)


def test_shortest_usable_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(16_000)[:400], 16_000)
    assert len(decode.load(tmp_path / "x.wav")) == 400
    content = decode.read(tmp_path / "x.wav").content
    assert content == hashlib.sha256((tmp_path / "x.wav").read_bytes()).hexdigest()[:16]
    assert len(decode.load(tmp_path / "x.wav", content=content)) == 400
    with pytest.raises(InputError, match=r"expected the bytes that the trial table knows \(digest 0\)"):
        decode.load(tmp_path / "x.wav", content="0")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_whole_ogg_is_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "x.ogg", tone(16_000, seconds=3), 16_000, format="OGG", subtype=subtype)
    assert abs(len(decode.load(tmp_path / "x.ogg")) - 48_000) < 400


# What libsndfile cannot decode, and PyAV does


def speech(rate: int, seconds: float = 3.0) -> np.ndarray:
    """Quiet, then loud: an encoder with a variable bit rate spends few bits first. (samples,) float32."""
    rng = np.random.default_rng(7)
    n = int(rate * seconds)
    level = np.where(np.arange(n) < n / 4, 0.001, 0.3)
    return (level * (np.sin(2 * np.pi * 440 * np.arange(n) / rate) + rng.normal(0, 0.05, n))).astype(np.float32)


def encoded(
    container: str,
    codec: str,
    channels: np.ndarray,
    *,
    rate: int = 16_000,
    container_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    target: object = None,
) -> bytes:
    """Samples (channels, n) in a container by FFmpeg; `target` is what it writes to, seekable or not."""
    target = target or io.BytesIO()
    layout = "mono" if len(channels) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    with av.open(target, "w", format=container, options=container_options or {}) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, options=options or {})
        for part in av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate).resample(frame):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return target.getvalue()


class Pipe:
    """A target that cannot be rewound: whoever writes to it cannot fill in lengths afterwards."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)

    def getvalue(self) -> bytes:
        return self.data


def flac_parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """STREAMINFO, VORBIS_COMMENT and the frames of a FLAC file that has these two blocks alone."""
    size = int.from_bytes(data[43:46], "big")
    assert (data[4], data[42], data[5:8]) == (0, 0x84, b"\0\0\x22")
    return data[8:42], data[46 : 46 + size], data[46 + size :]


def flac_of(info: bytes, comment: bytes, frames: bytes) -> bytes:
    return (
        b"fLaC\0" + len(info).to_bytes(3, "big") + info + b"\x84" + len(comment).to_bytes(3, "big") + comment + frames
    )


def irregular_flac(
    *, checksum: bool = True, length: bool = True, subtype: str = "PCM_16", samples: int = 48_000
) -> bytes:
    """Sound FLAC whose comment block is longer than its comments, which libsndfile refuses."""
    file = io.BytesIO()
    soundfile.write(file, speech(16_000)[:samples], 16_000, format="FLAC", subtype=subtype)
    info, comment, frames = flac_parts(file.getvalue())
    if not length:
        info = info[:13] + bytes([info[13] & 0xF0]) + bytes(4) + info[18:]
    if not checksum:
        info = info[:18] + bytes(16)
    return flac_of(info, comment + bytes(7), frames)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


def heard(path: Path, data: bytes) -> decode.Audio:
    path.write_bytes(data)
    return decode.read(path)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_flac_with_irregular_metadata_is_read_to_the_bit(
    tmp_path: Path, subtype: str, checksum: bool, length: bool
) -> None:
    soundfile.write(tmp_path / "x.flac", speech(16_000), 16_000, subtype=subtype)
    regular = decode.read(tmp_path / "x.flac")
    data = irregular_flac(checksum=checksum, length=length, subtype=subtype)
    with pytest.raises(soundfile.LibsndfileError, match="unknown error in flac decoder"):
        soundfile.SoundFile(io.BytesIO(data))
    got = heard(tmp_path / "y.flac", data)
    np.testing.assert_array_equal(got.samples, regular.samples)
    assert (got.decoder, regular.decoder) == ("PyAV", "libsndfile")
    assert got.content == decode.digest(data)


def test_flac_that_was_piped_states_no_length(tmp_path: Path) -> None:
    got = heard(tmp_path / "x.flac", encoded("flac", "flac", speech(16_000)[None], target=Pipe()))
    assert got.decoder == "PyAV"
    np.testing.assert_allclose(got.samples, speech(16_000), atol=1 / 32768)


def test_wav_that_was_piped_states_no_length(tmp_path: Path) -> None:
    got = heard(tmp_path / "x.wav", encoded("wav", "pcm_s16le", speech(16_000)[None], target=Pipe()))
    assert got.decoder == "libsndfile"
    np.testing.assert_allclose(got.samples, speech(16_000), atol=1 / 32768)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "atol"),
    [
        ("ipod", "alac", 16_000, 1 / 32768),
        ("ogg", "flac", 16_000, 1 / 32768),
        ("ipod", "aac", 16_000, 0.05),
        ("ipod", "aac", 44_100, 0.05),
        ("mp4", "libopus", 48_000, 0.05),
        ("mp3", "mp3", 16_000, 0.05),
    ],
)
def test_formats_keep_level_and_time(tmp_path: Path, container: str, codec: str, rate: int, atol: float) -> None:
    x = 0.3 * np.sin(2 * np.pi * 200 * np.arange(3 * rate) / rate) * np.hanning(3 * rate)
    data = encoded(container, codec, x.astype(np.float32)[None], rate=rate)
    got = heard(tmp_path / "x", data)
    assert got.decoder == ("libsndfile" if container == "mp3" else "PyAV")
    expected = 0.3 * np.sin(2 * np.pi * 200 * np.arange(48_000) / 16_000) * np.hanning(48_000)
    assert 0 <= len(got.samples) - 48_000 < 1_024  # padding to whole frames of the codec
    np.testing.assert_allclose(got.samples[:48_000], expected, atol=atol)


def test_channels_of_m4a_are_averaged(tmp_path: Path) -> None:
    left, right = speech(16_000), -0.5 * speech(16_000)
    got = heard(tmp_path / "x.m4a", encoded("ipod", "alac", np.stack([left, right])))
    np.testing.assert_allclose(got.samples, (left + right) / 2, atol=1 / 32768)


def test_full_scale_of_every_type_of_sample() -> None:
    for dtype, low, high in (("u1", 0, 255), ("i2", -(2**15), 2**15 - 1), ("i4", -(2**31), 2**31 - 1)):
        middle = 128 if dtype == "u1" else 0
        got = by_pyav._full_scale(np.array([[low], [middle], [high]], dtype))
        np.testing.assert_allclose(got, [[-1], [0], [1]], atol=2 / 2 ** (8 * np.dtype(dtype).itemsize))
        assert got.dtype == np.float32


@pytest.mark.parametrize("options", [{}, {"flags": "+qscale", "global_quality": "472"}], ids=["constant", "variable"])
@pytest.mark.parametrize("target", [io.BytesIO, Pipe])
def test_mp3_is_read_to_its_end(tmp_path: Path, options: dict[str, str], target: type) -> None:
    # without a frame count libsndfile takes the length from the first bit rate and stops there; FFmpeg guesses, too
    x = speech(16_000, seconds=10.0)
    got = heard(tmp_path / "x.mp3", encoded("mp3", "mp3", x[None], options=options, target=target()))
    if target is io.BytesIO:
        assert (got.decoder, len(got.samples)) == ("libsndfile", len(x))
    else:
        assert got.decoder == "PyAV"
        assert len(x) < len(got.samples) < len(x) + 2_400  # the encoder's delay and padding


def damaged(kind: str) -> bytes:
    """One kind of file that FFmpeg reads in part, with a hole, or with a noise, and mostly without a word."""
    x = speech(16_000)[None]
    if kind.startswith("m4a"):
        data = encoded("ipod", "aac", x)
        moov = data.index(b"moov") - 4
        middle = data.index(b"mdat") + (moov - data.index(b"mdat")) // 2
        if kind == "m4a cut in the index":
            return data[:-300]
        if kind == "m4a cut in fragments":
            movflags = {"movflags": "frag_keyframe+empty_moov"}
            data = encoded("ipod", "aac", x, container_options=movflags, options={"g": "10"})
            return data[: int(0.6 * len(data))]
        if kind == "m4a cut in a box without a size":
            movflags = {"movflags": "frag_keyframe+empty_moov"}
            data = encoded("mp4", "libopus", speech(48_000)[None], rate=48_000, container_options=movflags)
            box = data.rindex(b"mdat") - 4
            end = box + int.from_bytes(data[box : box + 4], "big")
            return data[:box] + bytes(4) + data[box + 4 : end - 20]
        if kind == "m4a cut, index first":
            free = data.index(b"free") - 4
            return data[:free] + data[moov:] + data[free : (free + moov) // 2]
        return data[:middle] + bytes(2_000) + data[middle + 2_000 :]
    if kind.startswith("mp3"):
        data = encoded("mp3", "mp3", x)
        if kind == "mp3 cut":
            return data[: len(data) // 2]
        return data[: len(data) // 2] + bytes(2_000) + data[len(data) // 2 + 2_000 :]
    if kind.startswith("opus"):
        seconds = 0.8 if "one" in kind else 3.0
        data = encoded("ogg", "libopus", speech(48_000, seconds)[None], rate=48_000)
        return flipped(data, len(data) // 2)
    if kind.startswith("ogg flac"):
        data = encoded("ogg", "flac", x)
        return data[: len(data) // 2] if kind == "ogg flac cut" else flipped(data, len(data) // 2)
    states = {"checksum": "without" not in kind and "nothing" not in kind, "length": "nothing" not in kind}
    if "last frame" in kind:
        data = irregular_flac(**states, samples=11 * 4_096 + 800)
        return data[: data.rindex(b"\xff\xf8")]
    data = irregular_flac(**states)
    if "cut" in kind:
        return data[: len(data) // 2]
    return flipped(data, len(data) - 100 if "late" in kind else len(data) // 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flac cut", "breaks off or is damaged"),
        ("flac flipped", "breaks off or is damaged"),
        ("flac without checksum cut", "breaks off or is damaged"),
        ("flac without checksum flipped", "breaks off or is damaged"),
        ("flac that states nothing cut", "breaks off or is damaged"),
        ("flac without checksum, last frame lost", "breaks off or is damaged"),
        ("flac that states nothing flipped", "breaks off or is damaged"),
        ("flac that states nothing flipped late", "breaks off or is damaged"),
        ("ogg flac cut", "cut off"),
        ("ogg flac flipped", "breaks off or is damaged"),
        ("opus in one page", "breaks off or is damaged"),
        ("opus in many pages", "cut off"),
        ("m4a cut in the index", "cut off"),
        ("m4a cut, index first", "cut off"),
        ("m4a cut in fragments", "cut off"),
        ("m4a cut in a box without a size", "breaks off or is damaged"),
        ("m4a zeroed", "breaks off or is damaged"),
        ("mp3 cut", "breaks off or is damaged"),
        ("mp3 zeroed", "breaks off or is damaged"),
    ],
)
def test_damage_is_refused_whoever_decodes(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "bad.audio"
    path.write_bytes(damaged(kind))
    with pytest.raises(InputError, match=message) as error:
        decode.load(path)
    assert str(path) in str(error.value)


def test_a_film_without_sound_and_other_containers(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        film.mux(stream.encode(None))
    with pytest.raises(InputError, match="expected audio in one known format, got none"):
        heard(tmp_path / "x.mp4", file.getvalue())
    unknown = encoded("ipod", "alac", speech(16_000)[None]).replace(b"alac", b"xxxx")
    with pytest.raises(InputError, match="expected audio in one known format, got none"):
        heard(tmp_path / "x.m4a", unknown)


def test_a_format_that_changes_is_refused_with_both_lengths(tmp_path: Path) -> None:
    first, second = (
        encoded("adts", "aac", speech(rate, s)[None], rate=rate) for rate, s in ((16_000, 1.0), (44_100, 2.0))
    )
    alone = [len(heard(tmp_path / "x.aac", data).samples) / 16_000 for data in (first, second)]
    with pytest.raises(
        InputError, match=r"one format, got 16000 Hz .* and then 44100 Hz .* of \d\.\d\d s; cut"
    ) as error:
        heard(tmp_path / "x.aac", first + second)
    said = re.search(r"after (\d\.\d\d) s of (\d\.\d\d) s", str(error.value))
    assert said is not None
    assert float(said[1]) == pytest.approx(alone[0], abs=0.01)
    assert float(said[2]) == pytest.approx(sum(alone), abs=0.07)


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("flac", "flac"), ("mp3", "mp3")])
def test_what_follows_frames_of_aac_is_heard(tmp_path: Path, container: str, codec: str) -> None:
    """FFmpeg passes over it, and says nothing."""
    first = encoded("adts", "aac", speech(16_000, 1.0)[None])
    found = heard(tmp_path / "x.aac", first + encoded(container, codec, speech(16_000, 2.0)[None]))
    assert len(found.samples) / 16_000 == pytest.approx(3.0, abs=0.2)
    whole = heard(tmp_path / "x.aac", first + b"no sound" * 99)
    assert np.array_equal(whole.samples, heard(tmp_path / "y.aac", first).samples)


@pytest.mark.parametrize("data", [irregular_flac(), encoded("ipod", "aac", speech(16_000)[None])], ids=["flac", "m4a"])
def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r'install PyAV, which may: pip install "bonafide\[av\]"'):
        heard(tmp_path / "x", data)
    soundfile.write(tmp_path / "x.wav", speech(16_000), 16_000)
    assert decode.read(tmp_path / "x.wav").decoder == "libsndfile"


def test_odd_tags_of_a_sound_file_do_no_harm(tmp_path: Path) -> None:
    tag = b"ID3\x04\0\0\0\0\x08\0" + bytes(1_024)  # padding alone
    info, comment, frames = flac_parts(irregular_flac())
    vendor = comment[: 4 + int.from_bytes(comment[:4], "little")]
    latin = vendor + b"\1\0\0\0\x0b\0\0\0" + "ARTIST=Zoë?".encode("latin-1") + bytes(7)
    for data in (tag + irregular_flac(), flac_of(info, latin, frames)):
        got = heard(tmp_path / "x.flac", data)
        np.testing.assert_allclose(got.samples, speech(16_000), atol=1 / 32768)


def test_a_header_that_states_billions_of_samples_allocates_nothing_of_the_sort(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    soundfile.write(path, (0.3 * np.sin(np.arange(24_000) / 20)).astype(np.float32), 16_000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # STREAMINFO: the length of the stream is 36 bits, here all ones
    data[22:26] = b"\xff" * 4
    data[26:42] = bytes(16)  # no checksum, which would prove that all samples are there
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"breaks off or is damaged .*24000 samples, not those that it states"):
        decode.load(path)
