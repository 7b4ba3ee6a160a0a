"""Batches: features as they were stored, labels as they were meant, bona fide in every batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dataset
from pipeline.contracts import Card
from pipeline.errors import InputError
from pipeline.trials import Row, Trials, from_rows
from tests.conftest import Corpus
from tests.test_extract import run, store_of


def table(qualities: list[str], speakers: str = "ab-b") -> Trials:
    rows = [
        Row(f"t:{i}", f"u{i}", f"{i}.wav", "bonafide" if i < 3 else "spoof", speaker=speakers[i % 4], quality=quality)
        for i, quality in enumerate(qualities)
    ]
    return from_rows(rows, source="t")


@pytest.mark.parametrize("reads", ["pooled", "frames"])
def test_features_come_in_the_shape_a_backend_reads(corpus: Corpus, tmp_path: Path, card: Card, reads: str) -> None:
    receipt = run(corpus, tmp_path / "cache", card)
    (tmp_path / "dev.json").write_text(json.dumps(receipt))
    data = dataset.open_set(tmp_path / "dev.json", corpus[1], root=tmp_path / "cache", reads=reads)
    features, n_frames = data.features(np.array([7, 2]))
    assert features.shape == ((2, 2, 2, 32) if reads == "pooled" else (2, 2, 9, 32))
    assert features.dtype == torch.float32
    assert n_frames.tolist() == [9, 9]
    assert (data.layers, data.channels, len(data), data.digest) == ((1, 3), 32, 10, receipt["digest"])
    both = data.features(np.array([2]))[0]
    assert torch.equal(both[0], features[1])


def test_pooled_is_the_statistics_of_frames(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    (tmp_path / "dev.json").write_text(json.dumps(run(corpus, tmp_path / "cache", card)))
    rows = np.arange(10)
    pooled, frames = (
        dataset.open_set(tmp_path / "dev.json", corpus[1], root=tmp_path / "cache", reads=reads).features(rows)[0]
        for reads in ("pooled", "frames")
    )
    torch.testing.assert_close(pooled[:, :, 0], frames.mean(2), rtol=0, atol=2e-3)
    torch.testing.assert_close(pooled[:, :, 1], frames.std(2, correction=0), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no receipt", "no receipt there; run `dvc repro -f extract`"),
        ("no store", "no feature store there; run `dvc repro -f extract`"),
        ("no marker", "is missing; run `dvc repro -f extract`"),
        ("other bytes", "expected the bytes that .* stands for, got others; run `dvc repro -f extract`"),
        ("other spec", "the store has another spec than .*; go back to those parameters, or move the store away"),
        ("other trials", "the trials changed since these features were extracted; run `dvc repro extract`"),
        ("other format", "expected store format 1, got 0"),
        ("not a receipt", "expected a receipt, got JSON without store, encoder"),
        ("a path", r"expected a store below the root of features, got '\.\./x\.zarr'"),
        ("not json", "expected a receipt, got something that is not JSON"),
    ],
)
def test_a_receipt_that_does_not_fit_its_store_is_refused(
    corpus: Corpus, tmp_path: Path, card: Card, fault: str, message: str
) -> None:
    receipt = run(corpus, tmp_path, card)
    trials = corpus[1]
    store = store_of(tmp_path, receipt)
    if fault == "no store":
        store.rename(tmp_path / "away")
    elif fault == "no marker":
        (store / "done" / "clean" / "00001.json").unlink()
    elif fault == "other bytes":
        marker = store / "done" / "clean" / "00001.json"
        marker.write_text(marker.read_text().replace('"clean/layer_01": "', '"clean/layer_01": "0'))
    elif fault == "other trials":
        trials = table(["3"] * 4)
    elif fault == "other spec":
        receipt["encoder"] = {**receipt["encoder"], "normalize": "none"}
    elif fault == "a path":
        receipt["store"] = "../x.zarr"
    elif fault == "not a receipt":
        receipt = {"format": 1}
    elif fault == "other format":
        receipt["format"] = 0
    if fault != "no receipt":
        (tmp_path / "dev.json").write_text("{" if fault == "not json" else json.dumps(receipt))
    with pytest.raises(InputError, match=message):
        dataset.open_set(tmp_path / "dev.json", trials, root=tmp_path, reads="pooled")


def test_levels_by_hand() -> None:
    trials = table(["1.0", "2.5", "", "4.9"])
    labels = dataset.labels(trials, (2.5, 4.0))
    assert labels.level.tolist() == [0, 1, -1, 2]
    assert labels.is_bonafide.tolist() == [True, True, True, False]
    assert labels.speaker.tolist() == [0, 1, -1, 1]
    some = dataset.take(labels, np.array([3, 0]))
    assert (some.level.tolist(), some.speaker.tolist(), some.is_bonafide.tolist()) == ([2, 0], [1, 0], [False, True])


def test_thresholds_are_given_or_quantiles_of_the_bona_fide() -> None:
    trials = table(["1", "2", "4", "5", "5"])
    assert dataset.thresholds(trials, levels=2, given=None) == (2.0,)
    assert dataset.thresholds(trials, levels=2, given=[2.5]) == (2.5,)
    assert dataset.thresholds(trials, levels=1, given=None) == ()
    np.testing.assert_allclose(dataset.thresholds(trials, levels=3, given=None), [1 + 2 / 3, 2 + 2 / 3])
    assert np.bincount(dataset.labels(trials, (2.0,)).level[:3]).tolist() == [1, 2]
    with pytest.raises(InputError, match="expected a quality"):
        dataset.thresholds(table(["", "", "", "3"]), levels=2, given=None)


@given(bonafide=st.integers(1, 60), spoof=st.integers(1, 60), size=st.integers(2, 33), epoch=st.integers(0, 3))
def test_every_batch_has_bona_fide_and_every_utterance_its_turn(
    bonafide: int, spoof: int, size: int, epoch: int
) -> None:
    is_bonafide = np.random.default_rng(0).permutation(np.arange(bonafide + spoof) < bonafide)
    batches = list(dataset.batches(is_bonafide, size=size, seed=3, epoch=epoch))
    assert len(batches) == -(-(bonafide + spoof) // size)
    seen = np.bincount(np.concatenate(batches), minlength=len(is_bonafide))
    assert all(is_bonafide[rows].any() for rows in batches)
    assert (seen[~is_bonafide] == 1).all()
    assert seen[is_bonafide].min() >= 1
    assert seen[is_bonafide].sum() == max(bonafide, len(batches))
    counts = [int(is_bonafide[rows].sum()) for rows in batches]
    assert max(counts) - min(counts) <= 1
    assert max(len(rows) for rows in batches) <= size + 1


def test_order_depends_on_seed_and_epoch_alone() -> None:
    is_bonafide = np.arange(40) < 10

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(dataset.batches(is_bonafide, size=8, seed=seed, epoch=epoch))).tolist()

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(*key)) for key in ((1, 1), (1, 2), (2, 1))}) == 3
