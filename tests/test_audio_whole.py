"""Audio is heard as a whole or refused: joined files, headers that state too little, and containers of other kinds."""

from __future__ import annotations

import functools
import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pipeline.audio import by_libsndfile, containers, counting, decode, joined, track
from pipeline.core.errors import InputError
from tests.beside import CASES, needs
from tests.long_flac import long_flac
from tests.test_audio import Pipe, encoded, heard, speech

RATE = 16_000


def written(samples: np.ndarray, kind: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    """Samples (n,) or (n, channels) in a file by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def first() -> np.ndarray:
    return speech(RATE, 3.0)


def second() -> np.ndarray:
    """Other samples, (n,), of another length."""
    return 0.5 * speech(RATE, 2.0)[::-1].copy()


@needs(CASES)
@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("joined.mp3", 12.0),
        ("xing_small.mp3", 6.0),
        ("pipe_zero.wav", 6.0),
        ("mp3in.wav", 6.0),
        ("noeos.opus", 6.0),
        ("a.webm", 6.0),
        ("a.amr", 6.0),
    ],
)
def test_the_cases_are_heard_whole(name: str, seconds: float) -> None:
    assert len(decode.load(CASES / name)) / RATE == pytest.approx(seconds, abs=0.04)


@needs(CASES)
def test_a_stale_size_is_refused_with_both_lengths() -> None:
    with pytest.raises(InputError, match=r"32000 bytes of samples, and 192000 bytes follow \(1\.00 s of 6\.00 s\)"):
        decode.load(CASES / "stale_size_1s.wav")


# Joined files


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "AIFF", "CAF"])
def test_joined_files_without_loss_are_read_to_the_bit(tmp_path: Path, kind: str) -> None:
    # the same length twice, too: then the last frame of a FLAC file ends where the first header says
    for others in ([second()], [first()], [second(), first(), second()]):
        parts = [first(), *others]
        got = heard(tmp_path / "x", b"".join(written(part, kind) for part in parts))
        expected = np.concatenate([heard(tmp_path / "y", written(part, kind)).samples for part in parts])
        np.testing.assert_array_equal(got.samples, expected)


def test_joined_wav_files_from_pipes_are_read_to_the_bit(tmp_path: Path) -> None:
    parts = [encoded("wav", "pcm_s16le", part[None], target=Pipe()) for part in (first(), second())]
    zeroed = [part.replace(b"data\xff\xff\xff\xff", b"data\0\0\0\0") for part in parts]
    expected = np.concatenate([heard(tmp_path / "y", part).samples for part in parts])
    for files in (parts, zeroed, parts[:1] + zeroed[1:]):
        np.testing.assert_array_equal(heard(tmp_path / "x", b"".join(files)).samples, expected)


def test_joined_files_of_several_rates_and_channels(tmp_path: Path) -> None:
    stereo = np.stack([second(), 0.5 * second()], axis=1)
    parts = [written(first(), "FLAC"), written(stereo, "FLAC"), written(speech(8_000, 1.0), "FLAC", rate=8_000)]
    got = heard(tmp_path / "x", b"".join(parts))
    expected = np.concatenate([heard(tmp_path / "y", part).samples for part in parts])
    np.testing.assert_array_equal(got.samples, expected)
    assert len(expected) == 6 * RATE


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("ogg", "libopus", 48_000),
        ("ogg", "libvorbis", 16_000),
        ("ogg", "flac", 16_000),
        ("mp3", "mp3", 16_000),
        ("mp3", "mp3", 44_100),
        ("ipod", "aac", 16_000),
        ("mp4", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("matroska", "flac", 16_000),
        ("adts", "aac", 16_000),
        ("asf", "wmav2", 44_100),
        ("mov", "aac", 16_000),
    ],
)
@pytest.mark.parametrize("target", [io.BytesIO, Pipe])
def test_joined_files_with_loss(tmp_path: Path, container: str, codec: str, rate: int, target: type) -> None:
    if target is Pipe and container in ("ipod", "mp4", "mov"):
        pytest.skip("FFmpeg writes these to files alone")
    names = {"libvorbis": "vorbis"}
    options = {"strict": "experimental", "b": "64000"}
    channels = 2 if codec == "libvorbis" else 1

    def one(seconds: float) -> bytes:
        samples = np.repeat(speech(rate, seconds)[None], channels, axis=0)
        return encoded(container, names.get(codec, codec), samples, rate=rate, options=options, target=target())

    alone = [len(heard(tmp_path / "y", one(seconds)).samples) / RATE for seconds in (2.0, 3.0)]
    assert alone == pytest.approx([2.0, 3.0], abs=0.2)
    got = heard(tmp_path / "x", one(2.0) + one(3.0))
    assert len(got.samples) / RATE == pytest.approx(sum(alone), abs=0.05)
    quiet, loud = got.samples[: int(0.4 * RATE)], got.samples[int(0.9 * RATE) : int(1.9 * RATE)]
    again = got.samples[int((alone[0] + 0.2) * RATE) : int((alone[0] + 0.6) * RATE)]
    assert np.abs(quiet).max() < 0.1 * np.abs(loud).max()
    assert np.abs(again).max() < 0.1 * np.abs(loud).max()  # the second part begins quietly, too


@functools.cache
def of_kinds() -> dict[str, bytes]:
    """3 s of sound in files of several kinds; of MP3 also one that counts no frames."""
    told = {"mp3": ("mp3", {}), "bare mp3": ("mp3", {"write_xing": "0"}), "aac": ("adts", {}), "m4a": ("ipod", {})}
    found = {
        name: encoded(kind, "mp3" if kind == "mp3" else "aac", first()[None], container_options=options)
        for name, (kind, options) in told.items()
    }
    found |= {kind: written(first(), kind) for kind in ("FLAC", "WAV", "AIFF", "CAF")}
    return found | {
        "ogg": written(first(), "OGG", "VORBIS"),
        "mka": encoded("matroska", "flac", first()[None]),
        "webm": encoded("webm", "libopus", speech(48_000, 3.0)[None], rate=48_000, target=Pipe()),
    }


@pytest.mark.parametrize("one", ["mp3", "bare mp3", "FLAC", "ogg", "mka", "webm"])
def test_joined_files_of_several_kinds_are_heard_whole_or_refused(tmp_path: Path, one: str) -> None:
    for other, data in of_kinds().items():
        if other == one:
            continue
        try:
            seconds = len(heard(tmp_path / "x", of_kinds()[one] + data).samples) / RATE
        except InputError:
            assert (one, other) == ("FLAC", "mka")  # which holds the opening of its own FLAC
        else:
            assert seconds == pytest.approx(6.0, abs=0.4), other


def test_joined_files_of_three_kinds(tmp_path: Path) -> None:
    several = [of_kinds()[kind] for kind in ("mp3", "FLAC", "mp3", "mp3", "ogg", "FLAC", "webm", "bare mp3")]
    assert len(joined.parts(b"".join(several))) == len(several)
    assert len(heard(tmp_path / "x", b"".join(several)).samples) / RATE == pytest.approx(24.0, abs=0.4)


def test_what_looks_like_another_file_inside_of_tags_is_none(tmp_path: Path) -> None:
    wav = written(second(), "WAV")
    riff = b"\x02" + (len(wav) + 4).to_bytes(3, "big") + b"riff" + wav  # as `flac --keep-foreign-metadata` writes it
    data = of_kinds()["FLAC"]
    got = heard(tmp_path / "x", data[:42] + riff + data[42:])
    np.testing.assert_array_equal(got.samples, heard(tmp_path / "y", data).samples)
    size = bytes(len(wav) + 10 >> shift & 0x7F for shift in (21, 14, 7, 0))
    tagged = b"ID3\x04\0\0" + size + b"GEOB" + bytes(6) + wav + of_kinds()["mp3"]
    assert len(joined.parts(tagged)) == 1


def test_mp4_whose_tables_name_half_of_the_sound_is_refused(tmp_path: Path) -> None:
    data = bytearray(of_kinds()["m4a"])
    for name, at in ((b"stsz", 12), (b"stts", 12), (b"mdhd", 20), (b"mvhd", 20), (b"tkhd", 24), (b"elst", 12)):
        place = data.index(name) + at
        (whole,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", whole // 2)
    with pytest.raises(
        InputError, match=r"\d+ bytes of sound lie in the file, and its tables name \d+ of them, 1\.5\d s"
    ):
        heard(tmp_path / "x.m4a", bytes(data))


def test_kinds_of_which_a_cut_file_looks_whole_are_not_read(tmp_path: Path) -> None:
    for kind in ("VOC", "PVF", "IRCAM"):
        with pytest.raises(InputError, match=f"expected an audio file .*, got .*{kind}.*, which is not read"):
            heard(tmp_path / "x", written(first(), kind))
    nist = written(first(), "NIST")
    assert len(heard(tmp_path / "x", nist).samples) == len(first())
    with pytest.raises(InputError, match=rf"it has \d+ of at least {len(first())} samples; it is cut off"):
        heard(tmp_path / "x", nist[: len(nist) // 2])


def test_a_part_that_is_damaged_is_named(tmp_path: Path) -> None:
    data = written(first(), "FLAC")
    with pytest.raises(InputError, match=r"part 2 of the 2 that were joined: the audio breaks off or is damaged"):
        heard(tmp_path / "x.flac", data + data[: len(data) // 2])


# Headers that state too little


def flac_that_states(samples: int, *, checksum: bool) -> bytes:
    data = bytearray(written(first(), "FLAC"))
    data[22:26] = samples.to_bytes(4, "big")
    if not checksum:
        data[26:42] = bytes(16)
    return bytes(data)


@pytest.mark.parametrize("stated", [4_096, 16_000, 47_999])
@pytest.mark.parametrize("checksum", [True, False])
def test_flac_that_states_too_few_samples_is_read_whole(tmp_path: Path, stated: int, checksum: bool) -> None:
    got = heard(tmp_path / "x.flac", flac_that_states(stated, checksum=checksum))
    np.testing.assert_allclose(got.samples, first(), atol=1 / 32768)


def test_the_last_flac_frame_by_hand() -> None:
    for n in (800, 4_096, 4_097, 48_000, 4_096 * 130 + 5):
        data = written(np.resize(speech(RATE), n), "FLAC")
        assert counting.flac_ends(data, n)
        assert not counting.flac_ends(data, n - 1)
        assert not counting.flac_ends(data[: data.rindex(b"\xff\xf8")], n)
        assert counting.flac_ends(data + b"TAG" + bytes(125), n)


def wav_that_states(size: int, *, behind: bytes = b"", riff: int | None = None) -> bytes:
    """A WAV file of `first` whose data chunk states `size` bytes."""
    samples = (first() * 32767).astype("<i2").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff if riff is not None else 36 + size, b"WAVE", b"fmt ", 16, 1, 1,
                       RATE, 2 * RATE, 2, 16)  # fmt: skip
    return head + b"data" + struct.pack("<I", size) + samples + behind


def test_wav_sizes(tmp_path: Path) -> None:
    whole = len(first()) * 2
    tags = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf62.12.102\0"
    for data in (
        wav_that_states(whole),
        wav_that_states(whole, behind=tags),
        wav_that_states(whole, behind=tags + bytes(4_000)),
        wav_that_states(whole, behind=b"TAG" + bytes(125)),
        wav_that_states(whole, behind=b"odd \3\0\0\0abc" + tags),  # no byte of padding
        wav_that_states(0),
        wav_that_states(0, riff=0),
        wav_that_states(0xFFFF_FFFF, riff=0xFFFF_FFFF),
    ):
        got = heard(tmp_path / "x.wav", data)
        np.testing.assert_allclose(got.samples, first(), atol=2 / 32768)
    for size in (2, 1_000, 32_000, whole - 3_300):
        for riff in (None, whole + 36, 0):
            with pytest.raises(InputError, match=rf"says that there are {size} bytes of samples, and {whole} bytes"):
                heard(tmp_path / "x.wav", wav_that_states(size, riff=riff))
    with pytest.raises(InputError, match=f"it has {whole} of at least {whole + 2_000} bytes; it is cut off"):
        heard(tmp_path / "x.wav", wav_that_states(whole + 2_000))
    two = wav_that_states(whole, behind=b"data" + struct.pack("<I", whole) + bytes(whole - 1) + b"\1")
    with pytest.raises(InputError, match=rf"there are {whole} bytes of samples, and {2 * whole + 8} bytes follow"):
        heard(tmp_path / "x.wav", two)


@pytest.mark.parametrize(("kind", "place", "order"), [("AIFF", b"SSND", ">I"), ("AU", b".snd", ">I")])
def test_stale_sizes_in_other_formats(tmp_path: Path, kind: str, place: bytes, order: str) -> None:
    data = bytearray(written(first(), kind))
    at = data.index(place) + (4 if kind == "AIFF" else 8)
    data[at : at + 4] = struct.pack(order, 32_000)
    with pytest.raises(InputError, match=r"the header says"):
        heard(tmp_path / "x", bytes(data))


def test_a_caf_file_whose_samples_reach_to_its_end_is_read_to_the_bit(tmp_path: Path) -> None:
    """Recorders write -1 for the size until they know it, and some never know it."""
    whole = bytearray(written(first(), "CAF", "PCM_16"))
    place = whole.index(b"data") + 4
    whole[place : place + 8] = (-1).to_bytes(8, "big", signed=True)
    (tmp_path / "caf").write_bytes(whole)
    (tmp_path / "wav").write_bytes(written(first(), "WAV", "PCM_16"))
    assert np.array_equal(decode.load(tmp_path / "caf"), decode.load(tmp_path / "wav"))


def test_a_file_with_two_tracks_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as film:
        streams = [film.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for stream, samples in zip(streams, (first(), second()), strict=True):
            frame = av.AudioFrame.from_ndarray((samples * 32_767).astype("<i2")[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            film.mux([*stream.encode(frame), *stream.encode(None)])
    (tmp_path / "film.mka").write_bytes(file.getvalue())
    with pytest.raises(InputError, match=r"film.mka: expected one track of sound, got 2; .* `ffmpeg -i IN -map 0:a:0"):
        decode.load(tmp_path / "film.mka")


def test_ogg_without_its_end_flag_and_ogg_that_is_cut_off(tmp_path: Path) -> None:
    data = encoded("ogg", "libopus", speech(48_000)[None], rate=48_000)
    pages = list(counting.ogg_pages(data))
    assert (pages[0].first, pages[-1].end) == (True, len(data))
    assert counting.ogg(data).opus == pytest.approx(3 * 48_000, abs=960)
    last = pages[-1].place
    unflagged = bytearray(data)
    unflagged[last + 5] &= ~4
    unflagged[last + 22 : last + 26] = bytes(4)
    unflagged[last + 22 : last + 26] = struct.pack("<I", ogg_checksum(bytes(unflagged[last:])))
    assert len(heard(tmp_path / "x.opus", bytes(unflagged)).samples) / RATE == pytest.approx(3.0, abs=0.04)
    for size, stated in ((len(data) - 10, len(data)), (last + 20, last + 28)):  # a page has 27 bytes before its lengths
        with pytest.raises(InputError, match=f"it has {size} of at least {stated} bytes; it is cut off"):
            heard(tmp_path / "x.opus", data[:size])


def ogg_checksum(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C1_1DB7) & 0xFFFF_FFFF if crc & 0x8000_0000 else crc << 1
    return crc


def test_ogg_whose_last_page_states_too_little_is_refused(tmp_path: Path) -> None:
    for codec, rate in (("libopus", 48_000), ("flac", 16_000)):
        data = bytearray(encoded("ogg", codec, speech(rate, 6.0)[None], rate=rate))
        last = list(counting.ogg_pages(bytes(data)))[-1].place
        data[last + 6 : last + 14] = struct.pack("<q", rate)
        data[last + 22 : last + 26] = bytes(4)
        data[last + 22 : last + 26] = struct.pack("<I", ogg_checksum(bytes(data[last:])))
        try:
            got = heard(tmp_path / "x", bytes(data))
        except InputError as error:
            assert "s of sound lie in the file" in str(error)  # noqa: PT017
        else:
            assert len(got.samples) / RATE == pytest.approx(6.0, abs=0.1)


def test_mp3_that_counts_too_few_frames_is_read_whole(tmp_path: Path) -> None:
    data = encoded("mp3", "mp3", speech(RATE, 6.0)[None])
    at = data.index(b"Info") if b"Info" in data else data.index(b"Xing")
    assert counting.mpeg(data).stated == counting.mpeg(data).frames
    for count in (1, 20, counting.mpeg(data).frames - 2):
        got = heard(tmp_path / "x.mp3", data[: at + 8] + struct.pack(">I", count) + data[at + 12 :])
        assert len(got.samples) / RATE == pytest.approx(6.0, abs=0.15)
    with pytest.raises(InputError, match="frames of the 1000 that the header states"):
        heard(tmp_path / "x.mp3", data[: at + 8] + struct.pack(">I", 1_000) + data[at + 12 :])


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 24_000, 44_100, 48_000])
def test_the_frames_of_mp3_by_ffmpeg(rate: int) -> None:
    data = encoded("mp3", "mp3", speech(rate, 2.0)[None], rate=rate, target=Pipe())
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.samples for packet in file.demux(audio=0) for frame in packet.decode()]
    found = counting.mpeg(data)
    assert found.frames == pytest.approx(len(frames), abs=1)
    assert found.seconds == pytest.approx(found.frames * frames[-1] / rate)
    tagged = b"ID3\x04\0\0\0\0\x01\0" + b"\xff\xfb" * 64 + data + b"TAG" + bytes(125)
    assert counting.mpeg(tagged) == found


# Other containers


@pytest.mark.parametrize(
    ("container", "codec", "rate", "kind"),
    [
        ("webm", "libopus", 48_000, "matroska"),
        ("matroska", "aac", 16_000, "matroska"),
        ("adts", "aac", 16_000, "aac"),
        ("asf", "wmav2", 44_100, "asf"),
        ("mov", "aac", 16_000, "mp4"),
        ("3gp", "aac", 16_000, "mp4"),
        ("caf", "alac", 16_000, "caf"),
        ("au", "pcm_s16be", 16_000, "au"),
        ("caf", "pcm_s16le", 16_000, "caf"),
    ],
)
def test_other_containers_are_read_whole_or_refused_when_cut(
    tmp_path: Path, container: str, codec: str, rate: int, kind: str
) -> None:
    options = {"b": "64000"} if codec == "wmav2" else {}
    data = encoded(container, codec, speech(rate)[None], rate=rate, options=options)
    assert containers.kind(data) == kind
    got = heard(tmp_path / "x", data)
    assert len(got.samples) / RATE == pytest.approx(3.0, abs=0.2)
    assert got.decoder == ("libsndfile" if codec.startswith("pcm") else "PyAV")
    with pytest.raises(InputError):
        heard(tmp_path / "x", data[: len(data) // 2])


@pytest.mark.parametrize(
    ("opening", "name"),
    [(b"wvpk\0\0\0\0", "WavPack"), (b"MAC \x96\x0f", "Monkey's Audio"), (b"RIFF\0\0\0\0AVI LIST", "AVI")],
)
def test_kinds_that_are_not_read_are_named(tmp_path: Path, opening: bytes, name: str) -> None:
    with pytest.raises(InputError, match=f"expected an audio file .*, got {name}, which is not read"):
        heard(tmp_path / "x", opening + bytes(1_000))


# Samples that are absurd, and files that are too long


def test_absurd_samples_are_refused_with_value_and_time(tmp_path: Path) -> None:
    for value, at, channels in ((1e30, 12_345, 1), (-2_000.0, 0, 2), (1_001.0, 47_999, 1)):
        x = np.repeat(first()[:, None], channels, axis=1)
        x[at, -1] = value
        with pytest.raises(InputError, match=rf"within ±1, got {value:g} at {at / RATE:.4f} s".replace("+", r"\+")):
            heard(tmp_path / "x.wav", written(x, "WAV", "FLOAT"))
    x = first()
    x[5] = 999.0
    assert heard(tmp_path / "x.wav", written(x, "WAV", "FLOAT")).samples[5] == 999.0
    x[5], x[6] = np.inf, np.nan
    with pytest.raises(InputError, match="2 samples are NaN or infinite"):
        heard(tmp_path / "x.wav", written(x, "WAV", "FLOAT"))


def test_doubtful_samples_give_warnings(tmp_path: Path) -> None:
    x = first() / np.abs(first()).max()

    def warnings(*channels: np.ndarray) -> tuple[str, ...]:
        return heard(tmp_path / "x.wav", written(np.stack(channels, axis=1), "WAV", "FLOAT")).warnings

    assert warnings(x) == warnings(1.9 * x) == warnings(x, x) == warnings(x, 0 * x) == warnings(x, -0.5 * x) == ()
    assert warnings(*[x if i == 3 else 0 * x for i in range(8)]) == ()
    assert "the peak of the samples is 127, and full scale is 1" in warnings(127 * x)[0]
    assert "the peak of a channel is 1, that of the mean 0.05" in warnings(x, -0.9 * x)[0]
    with pytest.raises(InputError, match="the channels cancel when they are averaged; hear one of them"):
        warnings(x, -x)


def test_long_files_are_joined_from_blocks_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.stack([first(), second().repeat(2)[: len(first())], np.resize(second(), len(first()))], axis=1)
    expected = heard(tmp_path / "x.wav", written(x, "WAV", "FLOAT")).samples
    np.testing.assert_array_equal(expected, x.mean(axis=1, dtype=np.float32))
    monkeypatch.setattr(by_libsndfile, "BLOCK", 3 * 777)
    np.testing.assert_array_equal(heard(tmp_path / "x.wav", written(x, "WAV", "FLOAT")).samples, expected)
    monkeypatch.setattr(track, "LARGE", 1_000)
    np.testing.assert_array_equal(heard(tmp_path / "x.wav", written(x, "WAV", "FLOAT")).samples, expected)
    assert not track._ONE_LARGE.locked()
    monkeypatch.setattr(track, "MOST", 30_000)
    for data in (
        written(x, "WAV"),
        flac_that_states(0, checksum=False),
        written(speech(8_000, 2.0), "WAV", rate=8_000),
    ):
        with pytest.raises(InputError, match="the sound is longer than"):
            heard(tmp_path / "x.wav", data)
        assert not track._ONE_LARGE.locked()


def test_a_header_with_an_absurd_rate_is_refused(tmp_path: Path) -> None:
    for rate in (1, 999, 1_000_001, 2**31 - 1):
        data = bytearray(written(first(), "WAV"))
        data[24:28] = struct.pack("<I", rate)
        with pytest.raises(InputError):
            heard(tmp_path / "x.wav", bytes(data))
    with pytest.raises(InputError, match="expected a sample rate from 1000 to 1000000 Hz, got 1 Hz"):
        decode.of_samples(first(), 1, name="x")


def test_a_long_flac_by_hand(tmp_path: Path) -> None:
    got = heard(tmp_path / "x.flac", long_flac(hours=0.01))
    assert len(got.samples) == 65_535 * 8
    np.testing.assert_array_equal(got.samples[::65_535], np.arange(8) / 32_768)
    assert got.decoder == "libsndfile"
    np.testing.assert_array_equal(heard(tmp_path / "x.flac", long_flac(hours=0.01, stated=False)).samples, got.samples)


def test_a_seek_before_the_start_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    file = by_libsndfile._Memory(b"abc")
    assert (file.seek(2), file.seek(-1), file.seek(0, 2)) == (2, 2, 3)
    assert capfd.readouterr().err == ""
