"""Views that take their sound from recordings of the user's own: what is drawn, how loud it is, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch
import zarr

from pipeline.audio import decode, loader, recordings, views, windowing
from pipeline.audio.recordings import Recordings
from pipeline.audio.windowing import Samples
from pipeline.core.errors import InputError
from pipeline.core.members import member
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.encoder import models, xlsr
from pipeline.encoder.cards import Card
from pipeline.extraction import hdf5, planning
from pipeline.features import receipt_files
from pipeline.features.store import Store
from pipeline.views import _shared
from tests.conftest import TINY, Corpus
from tests.test_store import tree

RATE = 16_000
EACH = ["recorded_noise10_0", "recorded_music5_1", "recorded_babble0_3", "recorded_reverb_0"]


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/recordings").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "processes", lambda: ThreadPoolExecutor(2))


def noise(seed: int, *, seconds: float = 1.0) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def save(name: str, samples: Samples, *, rate: int = RATE) -> Path:
    path = Path("mine", name)
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def line(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n"


def listed(kind: str, paths: Sequence[Path]) -> Recordings:
    (recordings.FOLDER / f"{kind}.txt").write_text("".join(map(line, paths)))
    return recordings.of(kind, recordings.FOLDER)


def heard(name: str, samples: Samples, *, utterance: str = "u") -> Samples:
    return views.apply(name, samples, utterance=utterance, recordings=views.recordings_of(name, recordings.FOLDER))


def ordered(found: Recordings, paths: Sequence[Path]) -> list[Path]:
    """In the order in which they are numbered."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("kind", ["noise", "music", "babble"])
@pytest.mark.parametrize("snr_db", [0, 20])
def test_what_is_added_lies_its_decibels_below(kind: str, snr_db: int) -> None:
    listed(kind, [save(f"{i}.wav", noise(i, seconds=1 + i / 2)) for i in range(8)])
    clean = 0.1 * noise(99)
    added = heard(f"recorded_{kind}{snr_db}_0", clean).astype(np.float64) - clean
    found = 10 * np.log10(np.square(clean, dtype=np.float64).sum() / np.square(added).sum())
    assert found == pytest.approx(snr_db, abs=1e-3)


def test_a_long_recording_gives_a_passage_that_lies_within_it() -> None:
    whole = np.arange(1, 1_001, dtype=np.float64) / 1_000
    found = listed("noise", [save("long.wav", whole.astype(np.float32))])
    starts = set()
    for seed in range(200):
        passage = _shared.passage(found, 0, 900, np.random.default_rng(seed))
        start = round(passage[0] * 1_000) - 1
        np.testing.assert_allclose(passage, whole[start : start + 900], atol=1e-7)
        starts.add(start)
    assert {min(starts), max(starts)} <= {*range(3), *range(98, 101)}


def test_a_short_recording_is_heard_again_from_its_start() -> None:
    whole = np.arange(1, 501, dtype=np.float32) / 1_000
    found = listed("noise", [save("short.wav", whole)])
    passage = _shared.passage(found, 0, 1_200, np.random.default_rng(0))
    start = round(passage[0] * 1_000) - 1
    np.testing.assert_allclose(passage, [whole[(start + i) % 500] for i in range(1_200)], atol=1e-7)


def test_a_silent_passage_begins_at_the_next_sound() -> None:
    whole = np.zeros(20_000, np.float32)
    whole[12_000:12_500] = noise(0)[:500]
    found = listed("noise", [save("mostly_silent.wav", whole)])
    silent = [seed for seed in range(50) if np.random.default_rng(seed).integers(20_000 - 400 + 1) + 400 <= 12_000]
    assert silent
    for seed in silent:
        passage = _shared.passage(found, 0, 400, np.random.default_rng(seed))
        np.testing.assert_allclose(passage, whole[12_000:12_400], atol=1e-7)


def test_babble_is_the_sum_of_six_equally_loud_and_different_recordings() -> None:
    paths = [save(f"{i}.wav", noise(i) * 10.0**-i) for i in range(6)]
    found = listed("babble", paths)
    clean = 0.01 * noise(99)
    added = heard("recorded_babble0_0", clean).astype(np.float64) - clean
    voices = [noise(i).astype(np.float64) for i in range(6)]
    # of each the whole is drawn, as it is as long as the utterance
    shares = [added @ voice / (np.linalg.norm(added) * np.linalg.norm(voice)) for voice in voices]
    np.testing.assert_allclose(shares, 1 / np.sqrt(6), atol=0.03)
    assert len(found) == 6


def test_of_few_recordings_babble_takes_some_twice() -> None:
    listed("babble", [save("one.wav", noise(0, seconds=3))])
    assert not np.array_equal(heard("recorded_babble5_0", noise(9)), noise(9))


def test_a_response_keeps_the_direct_sound_in_its_place_and_the_level() -> None:
    response = np.zeros(3_000, np.float32)
    response[[690, 700, 1_500]] = 0.1, -0.8, 0.3
    listed("reverb", [save("room.wav", response)])
    clean = 0.3 * noise(1)
    got = heard("recorded_reverb_0", clean)
    expected = np.convolve(clean.astype(np.float64), response)[700:][:RATE]
    expected *= np.linalg.norm(clean) / np.linalg.norm(expected)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    lags = [float(np.dot(clean[50:-50], got[50 + lag : RATE - 50 + lag])) for lag in range(-50, 51)]
    assert int(np.argmax(np.abs(lags))) == 50


def test_of_a_response_with_channels_the_first_is_heard() -> None:
    first, second = np.zeros(400, np.float32), np.zeros(400, np.float32)
    first[0], second[7] = 0.5, 0.9
    listed("reverb", [save("two.wav", np.stack([first, second], axis=1))])
    np.testing.assert_allclose(heard("recorded_reverb_0", noise(0)), noise(0), atol=1e-6)


def test_another_rate_and_more_channels_are_heard_at_16_khz() -> None:
    at = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 1_000 * at).astype(np.float32)
    found = listed("noise", [save("tone.wav", np.stack([tone, tone], axis=1), rate=44_100)])
    whole = found.read(0)
    assert len(whole) == pytest.approx(RATE, abs=1)
    np.testing.assert_allclose(
        whole[1_000:-1_000], 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(len(whole)) / RATE)[1_000:-1_000], atol=2e-3
    )


@pytest.mark.parametrize("name", EACH)
def test_draws_depend_on_the_utterance_the_copy_and_the_content_alone(name: str) -> None:
    kind = member("views", views.parse(name).kind).RECORDINGS
    paths = [save(f"{i}.wav", noise(i, seconds=0.5 + i / 10)) for i in range(12)]
    digest = listed(kind, paths).digest
    first = heard(name, noise(50))
    assert first.shape == (RATE,)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(heard(name, noise(50)), first)
    assert not np.array_equal(heard(name, noise(50), utterance="v"), first)
    copies = [heard(f"{name[:-1]}{copy}", noise(50)) for copy in range(1, 10)]  # a copy may draw the same recording
    assert not all(np.array_equal(copy, first) for copy in copies)
    moved = [path.rename(path.with_name(f"moved_{9 - i}.wav")) for i, path in enumerate(paths)]
    assert listed(kind, [*moved[::-1], moved[0]]).digest == digest  # another order, other names, and one twice
    np.testing.assert_array_equal(heard(name, noise(50)), first)
    assert listed(kind, moved[1:]).digest != digest


def test_without_a_list_the_message_has_the_command() -> None:
    with pytest.raises(InputError, match=r"recorded_noise10_0 takes .* data/recordings/noise.txt: .* xargs -0r sha256"):
        views.all_recordings(["clean", "noise_0", "recorded_noise10_0"], recordings.FOLDER)
    with pytest.raises(InputError, match="recorded_noise10_0 takes its sound from recordings, and none were given"):
        views.apply("recorded_noise10_0", noise(0), utterance="u")
    assert views.parse("recorded_noise10_0") == views.View("recorded_noise", 10)  # cached features need none


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "noise.txt: expected at least one recording, got an empty list"),
        ("a.wav\n", "noise.txt:1: expected a line of `sha256sum` .*, got 'a.wav'"),
        (f"{'0' * 64}  a.wav\n\n", "noise.txt:2: expected a line of `sha256sum`"),
        (f"{'0' * 64}  -\n", "noise.txt:1: expected a line of `sha256sum`"),
        (f"{'0' * 63}  a.wav\n", "noise.txt:1: expected a line of `sha256sum`"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(text: str, said: str) -> None:
    Path("data/recordings/noise.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        views.recordings_of("recorded_noise0_0", recordings.FOLDER)


def test_a_recording_that_cannot_be_used_is_named_with_the_list() -> None:
    good = save("good.wav", noise(0))
    silent, empty = save("silent.wav", np.zeros(RATE, np.float32)), Path("mine/empty.wav")
    empty.touch()
    for path, why in ((silent, "silent"), (empty, "empty"), (Path("mine/none.wav"), "no such file")):
        text = line(path) if path.exists() else f"{'0' * 64}  {path}\n"
        Path("data/recordings/noise.txt").write_text(text)
        with pytest.raises(
            InputError, match=f"mine/{path.name}: .*{why}.*; or take it out of data/recordings/noise.txt"
        ):
            heard("recorded_noise0_0", noise(1))
    found = listed("noise", [good])
    save("good.wav", noise(5))
    with pytest.raises(
        InputError, match=r"mine/good.wav: expected the file that .* lists \(sha256 .*, got .*; put it b"
    ):
        found.read(0)


STORED = ExtractParams(
    layers=(1, 3),
    views=("narrowband", "recorded_noise10_0"),
    window=WindowParams(samples=3_200, pad="repeat"),
    shard=4,
    batch_size=2,
    device="cpu",
    precision="float32",
)


def extracted(corpus: Corpus, card: Card, params: ExtractParams = STORED) -> tuple[dict, list[str]]:
    """The receipt, and what the plan says of each view."""
    said: list[str] = []
    folder, trials = corpus
    receipt = planning.extract(
        trials,
        set_name="train",
        audio_root=folder,
        root=Path("cache"),
        card=card,
        encoder=lambda taps: xlsr.Encoder(models.load(TINY)[0], taps=taps, normalize="utterance"),
        params=params,
        say=said.append,
        recordings=views.all_recordings(params.views, recordings.FOLDER),
    )
    return receipt, said[0].splitlines()[1:-1]


@pytest.mark.parametrize("pool", [lambda: ThreadPoolExecutor(2), loader.processes])
def test_a_store_holds_the_view_of_the_recordings_and_says_which(
    corpus: Corpus, card: Card, monkeypatch: pytest.MonkeyPatch, pool: Callable[[], Executor]
) -> None:
    monkeypatch.setattr(loader, "processes", pool)
    found = listed("noise", [save(f"{i}.wav", noise(i)) for i in range(3)])
    receipt, _ = extracted(corpus, card)
    assert receipt["recordings"] == {"recorded_noise10_0": found.digest}
    store = Store.open(Path("cache") / receipt["store"])
    assert store.attributes("recorded_noise10_0") == {"views_version": 1, "recordings": found.digest}
    group = zarr.open_group(store.path, mode="r")
    folder, trials = corpus
    encode = xlsr.Encoder(models.load(TINY)[0], taps=(3,), normalize="utterance")
    for i, name in enumerate(trials.path):
        sound = heard("recorded_noise10_0", decode.load(folder / name), utterance=str(trials.utterance[i]))
        cut, valid = windowing.window(sound, length=3_200, pad="repeat")
        taps, _ = encode(torch.from_numpy(cut)[None], torch.tensor([valid]))
        np.testing.assert_allclose(group["recorded_noise10_0/layer_03"][i], taps[3][0].numpy(), atol=4e-3)
    chosen = receipt_files.selected(store, receipt, layers=[1], views=["recorded_noise10_0"])
    assert chosen["recordings"] == receipt["recordings"]
    assert "recordings" not in receipt_files.selected(store, receipt, layers=[1], views=["narrowband"])
    plain, _ = extracted(corpus, card, STORED.model_copy(update={"views": ("narrowband",)}))
    assert "recordings" not in plain


@pytest.mark.usefixtures("in_threads")
def test_another_list_is_refused_and_its_view_alone_made_anew(corpus: Corpus, card: Card) -> None:
    paths = [save(f"{i}.wav", noise(i)) for i in range(3)]
    listed("noise", paths)
    receipt, _ = extracted(corpus, card)
    store = Path("cache") / receipt["store"]
    before = tree(store)
    listed("noise", paths[1:])
    with pytest.raises(
        InputError, match=r"recorded_noise10_0: expected a view by the recordings of .*; delete that fol"
    ):
        extracted(corpus, card)
    assert tree(store) == before
    shutil.rmtree(store / "recorded_noise10_0")
    anew, said = extracted(corpus, card)
    assert [line.partition(";")[0] for line in said] == [
        "clean: 3 of 3 shards are complete",
        "narrowband: 3 of 3 shards are complete",
        "recorded_noise10_0: 0 of 3 shards are complete",
    ]
    after = tree(store)
    assert all("recorded_noise10_0" in name for name in before if before[name] != after[name])
    assert anew["recordings"] != receipt["recordings"]
    shutil.rmtree(store / "recorded_noise10_0")
    listed("noise", paths)
    assert extracted(corpus, card)[0] == receipt
    assert tree(store) == before


@pytest.mark.usefixtures("in_threads")
def test_a_file_of_features_carries_the_digest(corpus: Corpus, card: Card) -> None:
    listed("noise", [save("one.wav", noise(0))])
    receipt, _ = extracted(corpus, card)
    store = Store.open(Path("cache") / receipt["store"])
    Path("train.json").write_text(json.dumps(receipt))
    hdf5.export(Path("train.json"), Path("train.h5"), root=Path("cache"), trials=corpus[1])
    other = hdf5.bring_back(Path("train.h5"), root=Path("other"))
    assert other.attributes("recorded_noise10_0") == store.attributes("recorded_noise10_0")
    with h5py.File("train.h5", "r+") as file:
        file["recorded_noise10_0"].attrs["attributes"] = '{"views_version": 1, "recordings": "../../etc"}'
    with pytest.raises(InputError, match="expected the version of recorded_noise10_0, got the attributes"):
        hdf5.bring_back(Path("train.h5"), root=Path("third"))


def test_a_list_that_changed_in_use_is_refused() -> None:
    found = listed("noise", [save("a.wav", noise(0))])
    listed("noise", [save("b.wav", noise(1))])
    with pytest.raises(InputError, match=r"noise.txt: the list changed while it was in use"):
        found.read(0)
