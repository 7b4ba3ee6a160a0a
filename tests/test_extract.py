"""Extraction: right numbers in the store, and nothing that happens to it on the way can make them wrong."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import zarr

from pipeline.audio import decode, inspection, loader, track, views, windowing
from pipeline.core import params_file
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.core.trial_table import Row, from_rows, to_csv
from pipeline.encoder import models, xlsr
from pipeline.encoder.cards import Card
from pipeline.extraction import forward, identity, planning
from pipeline.extraction.units import Unit
from pipeline.features.reader import Reader
from pipeline.features.store import Store
from stages import extract as stage
from tests import dying
from tests.conftest import TINY, Corpus
from tests.places import SETTINGS
from tests.test_store import tree

ROOT = Path(__file__).parents[1]
PARAMS = ExtractParams(
    layers=(1, 3),
    window=WindowParams(samples=3_200, pad="repeat"),
    shard=4,
    batch_size=2,
    device="cpu",
    precision="float32",
)


def make_encoder(taps: tuple) -> xlsr.Encoder:
    return xlsr.Encoder(models.load(TINY)[0], taps=taps, normalize=TINY.normalize)


BOOSTED = PARAMS.model_copy(update={"views": ("rawboost4_0", "narrowband")})
MAKE = Callable[[tuple], xlsr.Encoder]


def run(
    corpus: Corpus,
    root: Path,
    card: Card,
    params: ExtractParams = PARAMS,
    say: Callable[[str], None] = lambda _: None,
    *,
    set_name: str = "dev",
    encoder: MAKE = make_encoder,
) -> dict:
    folder, trials = corpus
    return planning.extract(
        trials, set_name=set_name, audio_root=folder, root=root, card=card, encoder=encoder, params=params, say=say
    )


def boost(corpus: Corpus, root: Path, card: Card, params: ExtractParams = BOOSTED, **more: Any) -> dict:
    """Extraction of a training set."""
    return run(corpus, root, card, params, set_name="train", **more)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Augment in threads, which start sooner, where it does not matter that processes do."""
    monkeypatch.setattr(loader, "processes", lambda: ThreadPoolExecutor(2))


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
        samples, valid = windowing.window(decode.load(folder / name), length=3_200, pad=pad)
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
    grown = planning.extract(
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
    again = planning.extract(
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


def test_doubtful_audio_is_an_error_where_the_encoder_does_not_normalize(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "LOUD", 1e-3)  # every file is
    raw = dataclasses.replace(card, normalize="none")
    with pytest.raises(InputError, match=r"full scale is 1; .* \(the encoder does not normalize its input\)"):
        run(corpus, tmp_path, raw, encoder=lambda taps: xlsr.Encoder(models.load(TINY)[0], taps=taps, normalize="none"))


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.core import trial_table
from pipeline.encoder import models
from pipeline.extraction import units
from tests import test_extract

units.WRITING = 1  # files of one unit after those of another, so that the place of the kill is known
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
test_extract.run((root, trial_table.read(Path(sys.argv[2]))), root.parent / "cache", models.load(test_extract.TINY)[1])
"""


@pytest.mark.parametrize("after", [3, 17])
def test_a_killed_extraction_continues_and_ends_byte_identical(
    corpus: Corpus, tmp_path: Path, card: Card, after: int, warm_env: dict[str, str]
) -> None:
    """Killed between writing a file and renaming it: a shard file, a marker, the last n_frames."""
    folder, trials = corpus
    table = tmp_path / "trials.csv"
    table.write_text(to_csv(trials))
    command = ["python", "-c", KILLED, str(folder), str(table), str(after)]
    killed = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=False)
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
    free = planning.SPARE_BYTES + 15_000  # ten utterances of two layers take 17 kB
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free))
    with pytest.raises(
        InputError, match=r"expected 17\.4 kB of free disk and 67\.1 MB to spare, got 67\.1 MB, 2\.44 kB too little"
    ):
        run(corpus, tmp_path, card)
    assert not list(tmp_path.rglob("layer_*"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_features_that_do_not_fit_name_the_utterance(value: float) -> None:
    frames, n_frames = torch.zeros(3, 2, 4), torch.full((3,), 2)
    found = forward.Features(["a", "b", "c"], (5, 7), torch.device("cpu"))
    found.fill(slice(0, 2), {5: frames[:2], 7: frames[:2].clone()}, n_frames[:2])
    last = frames[2:].clone()
    found.fill(slice(2, 3), {5: frames[2:], 7: last}, n_frames[2:])
    found.blocks()
    last[0, 1, 2] = value
    found.fill(slice(2, 3), {5: frames[2:], 7: last}, n_frames[2:])
    with pytest.raises(InputError, match="utterance c: expected finite features below 65504 in layer 7, got"):
        found.blocks()


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
    again = inspection.with_contents(trials, folder)
    second = run((folder, again), tmp_path / "cache", card)
    assert first["trials"] != second["trials"]
    assert first["digest"] != second["digest"]


@pytest.mark.parametrize("set_name", ["dev", "train"])
def test_all_damaged_audio_of_a_shard_is_named(corpus: Corpus, tmp_path: Path, card: Card, set_name: str) -> None:
    """Decoded by threads, or by processes where there are views."""
    folder, trials = corpus
    soundfile.write(folder / "u1.wav", np.zeros(1_000), 16_000)
    late = np.concatenate([np.zeros(3_200), np.ones(100)])  # sound, but none in the window
    soundfile.write(folder / "u2.wav", late, 16_000)
    soundfile.write(folder / "u3.wav", np.full(1_000, np.nan), 16_000, subtype="FLOAT")
    contents = [decode.digest((folder / name).read_bytes()) for name in trials.path]
    table = dataclasses.replace(trials, content=np.array(contents))
    with pytest.raises(InputError, match="3 of 4 utterances cannot be used") as error:
        run((folder, table), tmp_path, card, BOOSTED, set_name=set_name)
    assert re.search(r"utterance u1: .*u1\.wav: the audio is silent", str(error.value))
    assert re.search(r"utterance u2: .*u2\.wav: the first 3200 samples at 16 kHz are silent", str(error.value))
    assert re.search(r"utterance u3: .*u3\.wav: 1000 samples are NaN", str(error.value))


def test_pool_by_hand() -> None:
    frames = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])  # (2, 3, 1)
    got = forward.mean_and_deviation(frames, torch.tensor([2, 3]))
    expected = [[[2.0], [1.0]], [[5.0], [np.sqrt(26 / 3)]]]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_the_plan_speaks_of_bytes_for_people(tmp_path: Path, card: Card) -> None:
    rows = [Row(f"t:{i}", f"u{i}", f"{i}.wav", "spoof" if i else "bonafide") for i in range(1_000)]
    spec = identity.spec_of(from_rows(rows, source="t"), card, PARAMS)
    target = Store(tmp_path / "x", dataclasses.replace(spec, frames=201, channels=1024, shard=100))
    units = [Unit(shard, CLEAN, (1, 3)) for shard in range(4)]
    # 400 utterances, 2 layers, 201 x 1024 float16 and 2 x 1024 float32 each
    assert planning.needed(target, units) == 400 * 2 * (411_648 + 20 + 8_192 + 20)
    units += [Unit(9, "narrowband", (3,))]  # a shard of 100 utterances, one layer
    assert planning.needed(target, units[-1:]) == 100 * (411_648 + 20 + 8_192 + 20)
    said = planning.describe(target, units, (CLEAN, "narrowband", "noise_0"), (1, 3), free=10**12)
    assert said.splitlines() == [
        "1000 utterances, views clean, narrowband, noise_0, layers 1, 3, 201 frames of 1024, computed in float32, "
        "kept in float16",
        "clean: 6 of 10 shards are complete; to do: layers 1, 3 in 4 shards",
        "narrowband: 9 of 10 shards are complete; to do: layers 3 in 1 shards; layers 1 are there and stay as they are",
        "noise_0: 10 of 10 shards are complete; to do: nothing",
        f"378 MB to write, 1 TB free at {target.path}",
    ]


def test_numbers_from_a_file_have_not_changed(tmp_path: Path, card: Card) -> None:
    """Golden numbers of this project's own, from a stereo file at 48 kHz to pooled features.

    If they must change, raise FEATURES_VERSION and write the new ones here: stores made before would be stale.
    """
    seconds = np.arange(12_000) / 48_000
    left, right = 0.3 * np.sin(2 * np.pi * 300 * seconds), 0.1 * np.sin(2 * np.pi * 2_100 * seconds**1.1)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 48_000, subtype="FLOAT")
    soundfile.write(tmp_path / "y.wav", left, 48_000, subtype="FLOAT")  # a table has both classes
    rows = [Row("t:2", "x", "x.wav", "bonafide"), Row("t:3", "y", "y.wav", "spoof")]
    table = inspection.with_contents(from_rows(rows, source="t"), tmp_path)
    window = WindowParams(samples=6_000, pad="repeat")
    receipt = run((tmp_path, table), tmp_path / "cache", card, PARAMS.model_copy(update={"window": window}))
    pooled = zarr.open_group(store_of(tmp_path / "cache", receipt), mode="r")["clean/pooled_03"][0]  # (2, 32)
    assert identity.FEATURES_VERSION == 1
    golden = [[-0.20327, 0.76280, -0.19079], [0.30819, 0.20958, 0.19433]]
    np.testing.assert_allclose(pooled[:, [0, 7, 31]], golden, atol=3e-4, err_msg="raise FEATURES_VERSION")


@pytest.mark.parametrize("bad", ["audio", "nan", "overflow"])
def test_what_cannot_be_used_stops_its_unit_alone(corpus: Corpus, tmp_path: Path, card: Card, bad: str) -> None:
    folder, _ = corpus
    whole = (folder / "u5.wav").read_bytes()

    class Odd(xlsr.Encoder):
        def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> Any:
            taps, n_frames = super().forward(samples, valid)
            taps = {tap: frames.clone() for tap, frames in taps.items()}
            for row in (samples == wanted).all(dim=1).nonzero():
                taps[3][row, 2, 1] = torch.nan if bad == "nan" else 7e4
            return taps, n_frames

    def make(taps: tuple) -> xlsr.Encoder:
        return Odd(models.load(TINY)[0], taps=taps, normalize=TINY.normalize)

    wanted = torch.from_numpy(windowing.window(decode.load(folder / "u5.wav"), length=3_200, pad="repeat")[0])
    if bad == "audio":
        (folder / "u5.wav").write_bytes(whole[:1_000])
    with pytest.raises(
        InputError,
        match=r"(?s)1 of 3 units cannot be made, .* run the same command again:.*shard 1 of clean: .*utterance u5: ",
    ):
        run(corpus, tmp_path / "cache", card, encoder=make if bad != "audio" else make_encoder)
    (folder / "u5.wav").write_bytes(whole)
    said: list[str] = []
    mended = run(corpus, tmp_path / "cache", card, say=said.append)
    assert "clean: 2 of 3 shards are complete; to do: layers 1, 3 in 1 shards" in said[0]
    undisturbed = run(corpus, tmp_path / "undisturbed", card)
    assert mended == undisturbed
    assert tree(store_of(tmp_path / "cache", mended)) == tree(store_of(tmp_path / "undisturbed", undisturbed))


def test_precision_is_part_of_what_a_store_is(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    half = PARAMS.model_copy(update={"precision": "bfloat16"})

    def make(taps: tuple) -> xlsr.Encoder:
        return xlsr.Encoder(models.load(TINY)[0], taps=taps, normalize=TINY.normalize, precision="bfloat16")

    exact, rough = run(corpus, tmp_path, card), run(corpus, tmp_path, card, half, encoder=make)
    assert (exact["encoder"]["compute_dtype"], rough["encoder"]["compute_dtype"]) == ("float32", "bfloat16")
    assert rough["store"] != exact["store"]
    wanted, got = (zarr.open_group(store_of(tmp_path, r), mode="r")["clean/layer_03"][:] for r in (exact, rough))
    error = np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64))
    assert 1e-3 < error < 0.03


def test_auto_is_what_the_hardware_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = PARAMS.model_copy(update={"precision": "auto"})
    for able, precision in (({}, "float32"), ({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert identity.precision_of(auto) == precision
        assert identity.precision_of(PARAMS) == "float32"


def test_int8_is_the_features_to_half_a_step_of_the_channel_in_the_shard(
    corpus: Corpus, tmp_path: Path, card: Card
) -> None:
    small = PARAMS.model_copy(update={"storage": "int8"})
    whole, rough = run(corpus, tmp_path, card), run(corpus, tmp_path, card, small)
    assert rough["store"].split("/")[0] != whole["store"].split("/")[0]
    assert rough["bytes"] == sum(
        (store_of(tmp_path, rough) / "clean").joinpath(array, "c", str(shard), *zeros).stat().st_size
        - (4 if sharded else 0)  # the checksum of the index
        - (16 * (4 - rows) if sharded else 0)  # entries of the index that the short last shard does not use
        for layer in ("01", "03")
        for shard, rows in enumerate((4, 4, 2))
        for array, zeros, sharded in (
            (f"layer_{layer}", "00", True),
            (f"pooled_{layer}", "00", True),
            (f"scale_{layer}", "0", False),
        )
    )
    exact, kept = (zarr.open_group(store_of(tmp_path, receipt), mode="r") for receipt in (whole, rough))
    reader = Reader(Store.open(store_of(tmp_path, rough)), views=(CLEAN,), layers=(3, 1), pooled=False)
    read = reader.gather(np.array([9, 0, 5, 5])).numpy()
    for column, layer in enumerate((3, 1)):
        features = exact[f"clean/layer_{layer:02d}"][:].astype(np.float64)
        steps, scales = kept[f"clean/layer_{layer:02d}"][:], kept[f"clean/scale_{layer:02d}"][:]
        assert steps.dtype == np.int8
        for shard in range(3):
            rows = slice(4 * shard, 4 * shard + 4)
            largest = np.abs(features[rows]).max(axis=(0, 1))  # (D,)
            np.testing.assert_allclose(scales[shard], largest / 127, rtol=1e-6)
            error = np.abs(steps[rows] * scales[shard].astype(np.float64) - features[rows])
            assert (error <= scales[shard] * 0.5001).all()
            assert error.max() > scales[shard].max() * 0.4
        back = steps * np.repeat(scales, 4, axis=0)[:10, None]
        np.testing.assert_array_equal(read[:, column], back[[9, 0, 5, 5]].astype(np.float16))
        np.testing.assert_array_equal(exact[f"clean/pooled_{layer:02d}"][:], kept[f"clean/pooled_{layer:02d}"][:])


# Views


@pytest.mark.parametrize("pad", ["repeat", "zero"])
@pytest.mark.usefixtures("in_threads")
def test_a_view_holds_what_the_encoder_gives_for_the_augmented_utterance(
    corpus: Corpus, tmp_path: Path, card: Card, pad: str
) -> None:
    """The whole utterance is augmented, and the window cut from the result."""
    params = BOOSTED.model_copy(update={"window": WindowParams(samples=3_200, pad=pad)})
    receipt = boost(corpus, tmp_path, card, params)
    group = zarr.open_group(store_of(tmp_path, receipt), mode="r")
    encode = make_encoder((1, 3))
    folder, trials = corpus
    assert {len(decode.load(folder / name)) > 3_200 for name in trials.path} == {True, False}
    for i, (name, utterance) in enumerate(zip(trials.path, trials.utterance.tolist(), strict=True)):
        for view in ("clean", "rawboost4_0", "narrowband"):
            whole = views.apply(view, decode.load(folder / name), utterance=utterance)
            samples, valid = windowing.window(whole, length=3_200, pad=pad)
            taps, n_frames = encode(torch.from_numpy(samples)[None], torch.tensor([valid]))
            assert group["n_frames"][i] == n_frames.item() == card.frames(valid)
            for layer, features in taps.items():
                frames = features[0, : n_frames.item()].numpy()
                got = group[f"{view}/layer_{layer:02d}"][i].astype(np.float32)
                np.testing.assert_allclose(got[: len(frames)], frames, atol=4e-3)  # float16 up to 4
                expected = np.stack([frames.mean(0), frames.std(0)])
                np.testing.assert_allclose(group[f"{view}/pooled_{layer:02d}"][i], expected, atol=1e-5)


@pytest.mark.usefixtures("in_threads")
def test_receipts_tell_views_and_only_where_there_are_some(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    plain = boost(corpus, tmp_path / "plain", card, PARAMS)
    grown = boost(corpus, tmp_path / "grown", card)
    assert list(plain) == [key for key in grown if key != "views_version"]
    assert (plain["views"], plain["bytes"]) == (["clean"], 10 * 2 * (9 * 32 * 2 + 20 + 2 * 32 * 4 + 20))
    assert (grown["views"], grown["bytes"]) == (["clean", "rawboost4_0", "narrowband"], 3 * plain["bytes"])
    assert grown["views_version"] == views.VIEWS_VERSION
    same = [key for key in plain if key not in ("views", "bytes", "digest")]
    assert [grown[key] for key in same] == [plain[key] for key in same]
    assert grown["digest"] != plain["digest"]
    clean, all_views = (tree(store_of(tmp_path / name, plain)) for name in ("plain", "grown"))
    assert {name: all_views[name] for name in clean} == clean
    others = {name.removeprefix("done/").split("/")[0] for name in all_views if name not in clean}
    assert others == {"rawboost4_0", "narrowband"}


def test_only_what_is_trained_on_is_augmented(tmp_path: Path) -> None:
    text = SETTINGS.read_text().replace("  views: []", "  views: [rawboost4_0]", 1)
    for pools, trained_on, augmented in (
        ("{}", "train", {"train"}),
        ("{both: [eval, train]}", "both", {"train", "eval"}),
    ):
        (tmp_path / "params.yaml").write_text(
            text.replace("sets: [eval] ", "sets: [dev] ")
            .replace("sort_by: eval ", "sort_by: dev ")
            .replace("pools: {}", f"pools: {pools}")
            .replace("\n  set: train ", f"\n  set: {trained_on} ")
        )
        settings = params_file.load(tmp_path / "params.yaml")
        asked = {name: stage.asked_of(settings, name).views for name in settings.sets}
        assert asked == {name: ("rawboost4_0",) if name in augmented else () for name in ("train", "dev", "eval")}


def test_evaluation_sets_are_cached_in_the_views_that_degrade_them(tmp_path: Path) -> None:
    text = SETTINGS.read_text()
    empty = "  views: []  "
    assert text.count(empty) == 3  # extract.views, evaluate.views and atlas.views
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(empty, "  views: [noise_0]  ", 1).replace(empty, "  views: [mp3_32]  ", 1))
    settings = params_file.load(path)
    asked = {name: stage.asked_of(settings, name).views for name in settings.sets}
    assert asked == {"train": ("noise_0",), "dev": (), "eval": ("mp3_32",)}
    path.write_text(path.read_text().replace("mp3_32", "mp3_33"))
    line = next(i for i, line in enumerate(path.read_text().splitlines(), start=1) if "mp3_33" in line)
    with pytest.raises(InputError, match=rf"params.yaml:{line}: evaluate.views: expected a view .* got 'mp3_33'"):
        stage.asked_of(params_file.load(path), "dev")


@pytest.mark.usefixtures("in_threads")
def test_growth_by_a_view_computes_that_view_alone(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    first = boost(corpus, tmp_path, card, PARAMS.model_copy(update={"views": ("narrowband",)}))
    before = tree(store_of(tmp_path, first))
    said: list[str] = []
    seen: list[int] = []

    class Counting(xlsr.Encoder):
        def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> Any:
            seen.append(len(samples))
            return super().forward(samples, valid)

    def make(taps: tuple) -> xlsr.Encoder:
        return Counting(models.load(TINY)[0], taps=taps, normalize=TINY.normalize)

    grown = boost(corpus, tmp_path, card, say=said.append, encoder=make)
    assert sum(seen) == 10
    assert said[0].splitlines()[1:4] == [
        "clean: 3 of 3 shards are complete; to do: nothing",
        "rawboost4_0: 0 of 3 shards are complete; to do: layers 1, 3 in 3 shards",
        "narrowband: 3 of 3 shards are complete; to do: nothing",
    ]
    after = tree(store_of(tmp_path, grown))
    assert {name: after[name] for name in before} == before
    fresh = boost(corpus, tmp_path / "fresh", card)
    assert fresh == grown
    assert tree(store_of(tmp_path / "fresh", fresh)) == after
    assert boost(corpus, tmp_path, card, PARAMS)["digest"] == run(corpus, tmp_path / "clean", card)["digest"]


@pytest.mark.usefixtures("in_threads")
def test_growth_by_a_layer_adds_it_to_every_view(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    before = tree(store_of(tmp_path, boost(corpus, tmp_path, card)))
    wider = BOOSTED.model_copy(update={"layers": (1, 2, 3)})
    taps: list[tuple] = []
    grown = boost(corpus, tmp_path, card, wider, encoder=lambda wanted: taps.append(wanted) or make_encoder(wanted))
    assert taps == [(2,)]
    after = tree(store_of(tmp_path, grown))
    assert all(name.startswith("done/") for name in before if before[name] != after[name])
    for view in ("clean", "rawboost4_0", "narrowband"):
        assert f"{view}/layer_02/c/2/0/0" in after
    fresh = boost(corpus, tmp_path / "fresh", card, wider)
    assert fresh == grown
    assert tree(store_of(tmp_path / "fresh", fresh)) == after


@pytest.mark.usefixtures("in_threads")
def test_a_view_of_another_version_is_refused_and_made_anew_when_deleted(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = boost(corpus, tmp_path, card)
    before = tree(store_of(tmp_path, old))
    monkeypatch.setattr(views, "VIEWS_VERSION", 2)
    folder = store_of(tmp_path, old) / "rawboost4_0"
    message = f"{folder}: expected a view of version 2, got 1; delete that folder, and the next `dvc repro` makes it"
    with pytest.raises(InputError, match=re.escape(message)):
        boost(corpus, tmp_path, card)
    assert tree(store_of(tmp_path, old)) == before
    boost(corpus, tmp_path, card, PARAMS)  # what is clean has no version
    shutil.rmtree(folder)
    with pytest.raises(
        InputError, match=r"narrowband: expected a view of version 2, got 1; .* the code that made narrowband"
    ):
        boost(corpus, tmp_path, card)
    shutil.rmtree(folder.with_name("narrowband"))
    new = boost(corpus, tmp_path, card)
    assert new["views_version"] == 2
    after = tree(store_of(tmp_path, new))
    for name, content in before.items():
        assert (after[name] == content) == (name not in ("rawboost4_0/zarr.json", "narrowband/zarr.json"))


@pytest.mark.usefixtures("in_threads")
def test_a_view_without_a_version_is_refused(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    receipt = boost(corpus, tmp_path, card)
    place = store_of(tmp_path, receipt) / "rawboost4_0" / "zarr.json"
    whole = json.loads(place.read_text())
    place.write_text(json.dumps({**whole, "attributes": {}}))
    with pytest.raises(InputError, match="expected a view of version 1, got None"):
        boost(corpus, tmp_path, card)
    place.unlink()
    with pytest.raises(InputError, match=r"zarr\.json: no view of a feature store there; delete that folder"):
        boost(corpus, tmp_path, card)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rawboost9_0", "expected a view (clean, aac(16|32|64), "),
        ("clean", "expected views beside clean, which is always cached, got 'clean'; remove it"),
    ],
)
@pytest.mark.parametrize("set_name", ["train", "dev"])
def test_names_of_no_augmented_view_are_refused_for_any_set(
    corpus: Corpus, tmp_path: Path, card: Card, name: str, message: str, set_name: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run(corpus, tmp_path, card, PARAMS.model_copy(update={"views": (name,)}), set_name=set_name)


@pytest.mark.usefixtures("in_threads")
def test_the_disk_must_hold_every_view(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=planning.SPARE_BYTES + 52_000))
    with pytest.raises(InputError, match=r"expected 52\.3 kB .* ask for fewer layers or views \(extract\.layers, "):
        boost(corpus, tmp_path, card)
    boost(corpus, tmp_path, card, PARAMS.model_copy(update={"views": ("narrowband",)}))


def test_any_number_of_processes_gives_the_same_bytes(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = []
    for count in (1, 3):
        monkeypatch.setattr(loader, "workers", lambda count=count: count)
        receipt = boost(corpus, tmp_path / str(count), card)
        trees.append(tree(store_of(tmp_path / str(count), receipt)))
    monkeypatch.setattr(loader, "processes", lambda: ThreadPoolExecutor(2))
    trees.append(tree(store_of(tmp_path / "threads", boost(corpus, tmp_path / "threads", card))))
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("after", [24])
def test_a_killed_extraction_of_views_continues_and_ends_byte_identical(
    corpus: Corpus, tmp_path: Path, card: Card, after: int, warm_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the second unit, a view's, and before the marker of the fourth; the workers do not live on."""
    folder, trials = corpus
    table = tmp_path / "trials.csv"
    table.write_text(to_csv(trials))
    script = KILLED.replace("test_extract.run(", "test_extract.boost(")
    command = ["python", "-c", script, str(folder), str(table), str(after)]
    # whoever holds the ends of its pipes is waited for: the workers, too
    killed = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.setattr(loader, "processes", lambda: ThreadPoolExecutor(2))
    said: list[str] = []
    continued = boost(corpus, tmp_path / "cache", card, say=said.append)
    done = sum(int(line.split()[1]) for line in said[0].splitlines()[1:4])
    assert done == (after - 1) // 6  # a unit renames 2 layers, 2 pooled arrays, n_frames, marker
    undisturbed = boost(corpus, tmp_path / "undisturbed", card)
    assert continued == undisturbed
    assert tree(store_of(tmp_path / "cache", continued)) == tree(store_of(tmp_path / "undisturbed", undisturbed))


def test_a_worker_that_dies_while_it_sends_a_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOOK_S", 0.1)
    with pytest.raises(InputError, match="a process that decodes and augments died"):  # noqa: PT012, SIM117
        with loader.open_executor(heavy=True) as executor:
            with contextlib.closing(loader.Loading(executor, 1, 1)) as loading:
                loading.parts += [executor.submit(dying.while_sending), executor.submit(time.sleep, 60)]
                loading.result(0)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error_and_what_is_done_is_kept(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(xlsr.Encoder):
        calls = 0

        def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> Any:
            self.calls += 1
            if self.calls == 5:  # two batches a unit: in the third one
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGKILL)
            return super().forward(samples, valid)

    def make(taps: tuple) -> xlsr.Encoder:
        return Deadly(models.load(TINY)[0], taps=taps, normalize=TINY.normalize)

    with pytest.raises(InputError, match=r"a process that decodes and augments died .* run the same command again"):
        boost(corpus, tmp_path, card, encoder=make)
    assert not multiprocessing.active_children()
    said: list[str] = []
    monkeypatch.setattr(loader, "processes", lambda: ThreadPoolExecutor(2))
    continued = boost(corpus, tmp_path, card, say=said.append)
    assert 3 <= sum(int(line.split()[1]) for line in said[0].splitlines()[1:4]) < 9
    undisturbed = boost(corpus, tmp_path / "undisturbed", card)
    assert continued == undisturbed
    assert tree(store_of(tmp_path, continued)) == tree(store_of(tmp_path / "undisturbed", undisturbed))
