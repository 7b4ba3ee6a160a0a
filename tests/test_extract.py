"""Extraction: right numbers in the store, and nothing that happens to it on the way can make them wrong."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import zarr

from pipeline import audio, extract, prepare, xlsr
from pipeline.contracts import Card
from pipeline.errors import InputError
from pipeline.params import ExtractParams, WindowParams
from pipeline.store import CLEAN, Store
from pipeline.trials import Row, from_rows, to_csv
from tests.conftest import TINY, Corpus
from tests.test_store import tree

PARAMS = ExtractParams(
    layers=(1, 3), window=WindowParams(samples=3_200, pad="repeat"), shard=4, batch_size=2, device="cpu"
)


def make_encoder(taps: tuple) -> xlsr.Encoder:
    return xlsr.Encoder(xlsr.load(TINY)[0], taps=taps, normalize=TINY.normalize)


def run(
    corpus: Corpus, root: Path, card: Card, params: ExtractParams = PARAMS, say: Callable[[str], None] = lambda _: None
) -> dict:
    folder, trials = corpus
    return extract.extract(
        trials, set_name="dev", audio_root=folder, root=root, card=card, encoder=make_encoder, params=params, say=say
    )


def store_of(root: Path, receipt: dict) -> Path:
    return root / receipt["store"]


@pytest.mark.parametrize("pad", ["repeat", "zero"])
def test_the_store_holds_what_the_encoder_gives(corpus: Corpus, tmp_path: Path, card: Card, pad: str) -> None:
    params = PARAMS.model_copy(update={"window": WindowParams(samples=3_200, pad=pad)})
    receipt = run(corpus, tmp_path, card, params)
    group = zarr.open_group(store_of(tmp_path, receipt), mode="r")
    encode = make_encoder((1, 3))
    folder, trials = corpus
    for i, name in enumerate(trials.path):
        samples, valid = audio.window(audio.load(folder / name), length=3_200, pad=pad)
        taps, n_frames = encode(torch.from_numpy(samples)[None], torch.tensor([valid]))
        assert group["n_frames"][i] == n_frames.item() == card.frames(valid)
        for layer, features in taps.items():
            got = group[f"clean/layer_{layer:02d}"][i].astype(np.float32)
            frames = features[0, : n_frames.item()].numpy()
            np.testing.assert_allclose(got[: len(frames)], frames, atol=4e-3)  # float16 up to 4
            expected = np.stack([frames.mean(0), frames.std(0)])
            np.testing.assert_allclose(group[f"clean/pooled_{layer:02d}"][i], expected, atol=1e-5)


def test_the_receipt_is_the_same_wherever_and_whenever(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    first, second = run(corpus, tmp_path / "a", card), run(corpus, tmp_path / "b", card)
    assert first == second == run(corpus, tmp_path / "a", card)
    assert tree(store_of(tmp_path / "a", first)) == tree(store_of(tmp_path / "b", second))
    assert first["utterances"] == 10
    assert (first["shards"], first["layers"], first["frames"], first["channels"]) == (3, [1, 3], 9, 32)
    assert str(tmp_path) not in json.dumps(first)


def test_growth_by_a_layer_computes_that_layer_alone(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    receipt = run(corpus, tmp_path, card)
    before = tree(store_of(tmp_path, receipt))
    said: list[str] = []
    taps: list[tuple] = []
    folder, trials = corpus
    grown = extract.extract(
        trials,
        set_name="dev",
        audio_root=folder,
        root=tmp_path,
        card=card,
        encoder=lambda wanted: taps.append(wanted) or make_encoder(wanted),
        params=PARAMS.model_copy(update={"layers": (1, 2, 3)}),
        say=said.append,
    )
    assert taps == [(2,)]
    assert "to do: layers 2 in 3 shards" in said[0]
    assert "layers 1, 3 are there and stay as they are" in said[0]
    after = tree(store_of(tmp_path, grown))
    assert grown["store"] == receipt["store"]
    changed = {name for name in before if before[name] != after[name]}
    assert all(name.startswith("done/") for name in changed)
    fresh = run(corpus, tmp_path / "fresh", card, PARAMS.model_copy(update={"layers": (1, 2, 3)}))
    assert fresh == grown
    assert tree(store_of(tmp_path / "fresh", fresh)) == after


def test_nothing_to_do_needs_no_encoder(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    receipt = run(corpus, tmp_path, card)
    folder, trials = corpus

    def refuse(_taps: tuple) -> xlsr.Encoder:
        raise AssertionError

    said: list[str] = []
    again = extract.extract(
        trials,
        set_name="dev",
        audio_root=folder,
        root=tmp_path,
        card=card,
        encoder=refuse,
        params=PARAMS,
        say=said.append,
    )
    assert again == receipt
    assert "3 of 3 shards are complete; to do: nothing" in said[0]


@pytest.mark.parametrize("change", ["weights", "window", "normalize"])
def test_another_encoder_or_window_makes_a_new_store_and_leaves_the_old(
    corpus: Corpus, tmp_path: Path, card: Card, change: str
) -> None:
    old = run(corpus, tmp_path, card)
    before = tree(store_of(tmp_path, old))
    params = PARAMS
    if change == "weights":
        card = dataclasses.replace(card, weights_sha256="0" * 64)
    elif change == "normalize":
        card = dataclasses.replace(card, normalize="none")
    else:
        params = PARAMS.model_copy(update={"window": WindowParams(samples=2_000, pad="repeat")})
    new = run(corpus, tmp_path, card, params)
    assert new["store"].split("/")[0] != old["store"].split("/")[0]
    assert tree(store_of(tmp_path, old)) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import files, store, trials, xlsr
from tests import test_extract

after = int(sys.argv[3])
whole, count = os.replace, 0

def replace(source, target):
    global count
    count += Path(target).name != "zarr.json"
    if count == after:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(source, target)

os.replace = replace
root = Path(sys.argv[1])
test_extract.run((root, trials.read(Path(sys.argv[2]))), root.parent / "cache", xlsr.load(test_extract.TINY)[1])
"""


@pytest.mark.parametrize("after", [3, 6, 17])
def test_a_killed_extraction_continues_and_ends_byte_identical(
    corpus: Corpus, tmp_path: Path, card: Card, after: int
) -> None:
    """Killed between writing a file and renaming it: a shard file, a marker, the last n_frames."""
    folder, trials = corpus
    table = tmp_path / "trials.csv"
    table.write_text(to_csv(trials))
    command = [sys.executable, "-c", KILLED, str(folder), str(table), str(after)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    said: list[str] = []
    continued = run(corpus, tmp_path / "cache", card, say=said.append)
    done = (after - 1) // 6  # a unit renames 2 layers, 2 pooled arrays, n_frames, marker
    assert f"{done} of 3 shards are complete" in said[0]
    undisturbed = run(corpus, tmp_path / "undisturbed", card)
    assert continued == undisturbed
    assert tree(store_of(tmp_path / "cache", continued)) == tree(store_of(tmp_path / "undisturbed", undisturbed))


def test_too_small_a_disk_is_refused_before_anything_is_computed(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = extract.SPARE_BYTES + 15_000  # ten utterances of two layers take 17 kB
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free))
    with pytest.raises(
        InputError, match=r"expected 17\.4 kB of free disk and 67\.1 MB to spare, got 67\.1 MB, 2\.44 kB too little"
    ):
        run(corpus, tmp_path, card)
    assert not list(tmp_path.rglob("layer_*"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_features_that_do_not_fit_name_the_utterance(value: float) -> None:
    frames = np.zeros((3, 2, 4), np.float32)
    extract.check_range(frames, names=["a", "b", "c"], layer=7)
    frames[1, 1, 2] = value
    with pytest.raises(InputError, match="utterance b: expected finite features below 65504 in layer 7, got"):
        extract.check_range(frames, names=["a", "b", "c"], layer=7)


def test_an_audio_file_that_changed_is_noticed(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    folder, _ = corpus
    soundfile.write(folder / "u3.wav", np.random.default_rng(0).normal(0, 0.1, 5_000), 16_000)
    with pytest.raises(InputError, match=r"(?s)1 of 4 .*utterance u3: .*the file changed: run `dvc repro -f prepare`"):
        run(corpus, tmp_path, card)


def test_other_samples_in_a_file_of_the_same_size_are_other_trials(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    folder, trials = corpus
    first = run(corpus, tmp_path / "cache", card)
    samples, _ = soundfile.read(folder / "u3.wav")
    size = (folder / "u3.wav").stat().st_size
    soundfile.write(folder / "u3.wav", samples[::-1], 16_000)
    assert (folder / "u3.wav").stat().st_size == size
    again = prepare.with_contents(trials, folder)
    second = run((folder, again), tmp_path / "cache", card)
    assert first["trials"] != second["trials"]
    assert first["digest"] != second["digest"]


def test_all_damaged_audio_of_a_shard_is_named(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    folder, trials = corpus
    soundfile.write(folder / "u1.wav", np.zeros(1_000), 16_000)
    late = np.concatenate([np.zeros(3_200), np.ones(100)])  # sound, but none in the window
    soundfile.write(folder / "u2.wav", late, 16_000)
    soundfile.write(folder / "u3.wav", np.full(1_000, np.nan), 16_000, subtype="FLOAT")
    contents = [audio.digest((folder / name).read_bytes()) for name in trials.path]
    table = dataclasses.replace(trials, content=np.array(contents))
    with pytest.raises(InputError, match="3 of 4 utterances of a shard cannot be used") as error:
        run((folder, table), tmp_path, card)
    assert re.search(r"utterance u1: .*u1\.wav: the audio is silent", str(error.value))
    assert re.search(r"utterance u2: .*u2\.wav: the first 3200 samples at 16 kHz are silent", str(error.value))
    assert re.search(r"utterance u3: .*u3\.wav: 1000 samples are NaN", str(error.value))


def test_pool_by_hand() -> None:
    frames = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])  # (2, 3, 1)
    got = extract.pool(frames, torch.tensor([2, 3]))
    expected = [[[2.0], [1.0]], [[5.0], [np.sqrt(26 / 3)]]]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_the_plan_speaks_of_bytes_for_people(tmp_path: Path, card: Card) -> None:
    rows = [Row(f"t:{i}", f"u{i}", f"{i}.wav", "spoof" if i else "bonafide") for i in range(1_000)]
    spec = extract.spec_of(from_rows(rows, source="t"), card, PARAMS)
    target = Store(tmp_path / "x", dataclasses.replace(spec, frames=201, channels=1024, shard=100))
    units = [extract.Unit(shard, (1, 3)) for shard in range(4)]
    # 400 utterances, 2 layers, 201 x 1024 float16 and 2 x 1024 float32 each
    assert extract.needed(target, units) == 400 * 2 * (411_648 + 20 + 8_192 + 20)
    assert "6 of 10 shards are complete; to do: layers 1, 3 in 4 shards" in extract.describe(
        target, units, (1, 3), free=10**12
    )
    assert "336 MB to write, 1 TB free" in extract.describe(target, units, (1, 3), free=10**12)
    assert CLEAN in extract.describe(target, units, (1, 3), free=10**12)


def test_numbers_from_a_file_have_not_changed(tmp_path: Path, card: Card) -> None:
    """Golden numbers of this project's own, from a stereo file at 48 kHz to pooled features.

    If they must change, raise FEATURES_VERSION and write the new ones here: stores made before would be stale.
    """
    seconds = np.arange(12_000) / 48_000
    left, right = 0.3 * np.sin(2 * np.pi * 300 * seconds), 0.1 * np.sin(2 * np.pi * 2_100 * seconds**1.1)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 48_000, subtype="FLOAT")
    rows = [Row("t:2", "x", "x.wav", "bonafide"), Row("t:3", "y", "x.wav", "spoof")]
    table = prepare.with_contents(from_rows(rows, source="t"), tmp_path)
    window = WindowParams(samples=6_000, pad="repeat")
    receipt = run((tmp_path, table), tmp_path / "cache", card, PARAMS.model_copy(update={"window": window}))
    pooled = zarr.open_group(store_of(tmp_path / "cache", receipt), mode="r")["clean/pooled_03"][0]  # (2, 32)
    assert extract.FEATURES_VERSION == 1
    golden = [[-0.20327, 0.76280, -0.19079], [0.30819, 0.20958, 0.19433]]
    np.testing.assert_allclose(pooled[:, [0, 7, 31]], golden, atol=3e-4, err_msg="raise FEATURES_VERSION")
