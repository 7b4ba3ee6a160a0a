"""Batches: features as they were stored, labels as they were meant, bona fide in every batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.encoder.cards import Card
from pipeline.features import dataset, sampling, streaming
from pipeline.features.sampling import Augment
from tests.conftest import Corpus
from tests.test_extract import run, store_of
from tests.test_gather import VIEWS, Cache, make_cache


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
        (
            "other bytes",
            "expected the bytes that .* stands for, got others; move the store away, .* `dvc repro -f extract`",
        ),
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
    labels = sampling.labels(trials, (2.5, 4.0))
    assert labels.level.tolist() == [0, 1, -1, 2]
    assert labels.is_bonafide.tolist() == [True, True, True, False]
    assert labels.speaker.tolist() == [0, 1, -1, 1]
    some = sampling.take(labels, np.array([3, 0]))
    assert (some.level.tolist(), some.speaker.tolist(), some.is_bonafide.tolist()) == ([2, 0], [1, 0], [False, True])


def test_thresholds_are_given_or_quantiles_of_the_bona_fide() -> None:
    trials = table(["1", "2", "4", "5", "5"])
    assert sampling.thresholds(trials, levels=2, given=None) == (2.0,)
    assert sampling.thresholds(trials, levels=2, given=[2.5]) == (2.5,)
    assert sampling.thresholds(trials, levels=1, given=None) == ()
    np.testing.assert_allclose(sampling.thresholds(trials, levels=3, given=None), [1 + 2 / 3, 2 + 2 / 3])
    assert np.bincount(sampling.labels(trials, (2.0,)).level[:3]).tolist() == [1, 2]
    with pytest.raises(InputError, match="expected a quality"):
        sampling.thresholds(table(["", "", "", "3"]), levels=2, given=None)


@pytest.mark.parametrize(
    ("mos", "probability", "counts"),
    [
        (["4", "4.5", "", "1"], 0.0, "got 0, 2 from the lowest up and 1 of unknown MOS"),  # a spoof fills no level
        (["4", "4.5", "", "1"], 0.4, None),  # augmented views lower what is high
        (["4", "4.5", "", "1"], 1.0, "got 0, 2 from the lowest up"),  # and then none of it stays high
        (["1", "1.5", "2", "4"], 0.4, "got 3, 0 from the lowest up and 0 of unknown MOS"),  # none is raised
        (["1", "4", "2", "4"], 0.0, None),
        (["", "", "", "4"], 0.4, "got 0, 0 from the lowest up and 3 of unknown MOS"),
    ],
)
def test_a_quality_level_without_bona_fide_is_refused(mos: list[str], probability: float, counts: str | None) -> None:
    labels = sampling.labels(table(mos), (2.5,))
    augment = sampling.Augment(("narrowband_0",), probability)
    if counts is None:
        sampling.check_levels(labels, augment, levels=2, where="x")
        return
    with pytest.raises(InputError, match=rf"^x: expected bona fide .* at each of 2 quality levels, {counts}.*null for"):
        sampling.check_levels(labels, augment, levels=2, where="x")


def test_views_that_are_never_drawn_fill_no_level_and_one_level_needs_no_mos() -> None:
    labels = sampling.labels(table(["4", "4.5", "", "1"]), (2.5,))
    with pytest.raises(InputError, match="got 0, 2 from"):
        sampling.check_levels(labels, sampling.NO_AUGMENT, levels=2, where="x")
    sampling.check_levels(sampling.labels(table(["", "", "", ""]), ()), sampling.NO_AUGMENT, levels=1, where="x")


@given(bonafide=st.integers(1, 60), spoof=st.integers(1, 60), size=st.integers(2, 33), epoch=st.integers(0, 3))
def test_every_batch_has_bona_fide_and_every_utterance_its_turn(
    bonafide: int, spoof: int, size: int, epoch: int
) -> None:
    is_bonafide = np.random.default_rng(0).permutation(np.arange(bonafide + spoof) < bonafide)
    batches = list(sampling.batches(is_bonafide, size=size, seed=3, epoch=epoch))
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
        return np.concatenate(list(sampling.batches(is_bonafide, size=8, seed=seed, epoch=epoch))).tolist()

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(*key)) for key in ((1, 1), (1, 2), (2, 1))}) == 3


# ---------------------------------------------------------------- layers and views


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path, "train")


def test_without_a_choice_all_layers_and_the_clean_view_alone(cache: Cache) -> None:
    data = cache.open()
    assert (data.layers, data.views, data.name) == ((2, 5, "final"), (), "train")
    np.testing.assert_array_equal(data.features(np.arange(10))[0].numpy(), cache.frames[0].astype(np.float32))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"layers": (2, 7, 9)},
            r"expected the layers 7, 9, the features have 2, 5, final; add them to extract\.layers",
        ),
        ({"views": ("noise_0", "noise_1")}, r"expected the views noise_1, .*clean, rawboost4_0.* to extract\.views"),
    ],
)
def test_a_layer_or_view_that_is_not_cached_is_named(cache: Cache, choice: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cache.open(**choice)


# ---------------------------------------------------------------- several sets as one


def test_joined_sets_are_their_sets_one_after_the_other(tmp_path: Path) -> None:
    first, second = make_cache(tmp_path, "one"), make_cache(tmp_path, "two", seed=1, first=10)
    joined = dataset.join([cache.open(views=VIEWS, hold=hold) for cache, hold in ((first, "disk"), (second, "ram"))])
    everything = np.concatenate([first.frames, second.frames], axis=1).reshape(60, 3, 5, 4)
    addresses = np.random.default_rng(0).permutation(60)
    features, n_frames = joined.features(addresses)
    np.testing.assert_array_equal(features.numpy(), everything[addresses].astype(np.float32))
    np.testing.assert_array_equal(n_frames, addresses % 10 % 5 + 1)
    for rows, (block, _) in zip([addresses[:7]], streaming.stream(joined.source, [addresses[:7]]), strict=True):
        np.testing.assert_array_equal(block.numpy(), everything[rows].astype(np.float32))
    assert joined.groups.tolist() == [0] * 10 + [1] * 10
    assert joined.trials.utterance.tolist() == [f"u{i}" for i in range(20)]
    assert joined.trials.speaker.tolist()[:4] == ["-", "one/s1", "one/s0", "one/s1"]
    assert joined.trials.speaker.tolist()[10:14] == ["two/s0", "two/s1", "-", "two/s1"]
    assert joined.trials.is_bonafide.tolist() == [i % 3 == 0 for i in range(20)]
    assert (len(joined), joined.kind, joined.views, joined.name) == (20, first.open().kind, VIEWS, "one+two")
    swapped = dataset.join([second.open(views=VIEWS), first.open(views=VIEWS)])
    assert len({joined.digest, swapped.digest, first.open().digest}) == 3


def test_names_that_sets_share_get_the_sets_name_ahead(tmp_path: Path) -> None:
    first, second = make_cache(tmp_path, "one"), make_cache(tmp_path, "two", seed=1, first=9)
    joined = dataset.join([first.open(), second.open()])
    assert joined.trials.utterance.tolist()[8:12] == ["one/u8", "one/u9", "two/u9", "two/u10"]
    with pytest.raises(InputError, match=r"expected each utterance once.*one, one; give the sets different names"):
        dataset.join([first.open(), first.open()])


def test_sets_of_another_kind_are_not_joined(tmp_path: Path) -> None:
    first, second = make_cache(tmp_path, "one"), make_cache(tmp_path, "two", seed=1, first=10)
    for choice in ({"layers": (2, 5)}, {"layers": (5, 2, "final")}, {"reads": "pooled"}, {"views": VIEWS}):
        with pytest.raises(InputError, match=r"two has features of .* one of .* run `dvc repro extract`"):
            dataset.join([first.open(), second.open(**choice)])


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(any), min_size=1, max_size=4),
    size=st.integers(8, 33),
)
def test_every_batch_holds_the_corpora_in_equal_shares(sizes: list[tuple[int, int]], size: int) -> None:
    kinds = np.array([(g, b) for g, (bona, spoof) in enumerate(sizes) for b in [1] * bona + [0] * spoof])
    groups, is_bonafide = np.random.default_rng(0).permutation(kinds).T
    is_bonafide = is_bonafide.astype(bool)
    batches = list(sampling.batches(is_bonafide, size=size, seed=3, epoch=1, groups=groups))
    seen = np.bincount(np.concatenate(batches), minlength=len(groups))
    assert seen.min() >= 1
    largest = max(bona + spoof for bona, spoof in sizes)
    assert len(batches) == -(-len(sizes) * largest // size)
    assert max(map(len, batches)) <= size + 2 * len(sizes)
    totals = []
    for g, (bona, spoof) in enumerate(sizes):
        counts = [int((groups[rows] == g).sum()) for rows in batches]
        assert max(counts) - min(counts) <= 1
        totals.append(sum(counts))
        of_bonafide = [int(((groups[rows] == g) & is_bonafide[rows]).sum()) for rows in batches]
        assert max(of_bonafide) - min(of_bonafide) <= 1
        assert min(of_bonafide) >= bool(bona)
        for mask in ((groups == g) & is_bonafide, (groups == g) & ~is_bonafide):
            if mask.any():
                assert seen[mask].max() - seen[mask].min() <= 1
        if bona >= len(batches) and spoof:  # no class comes more often than the other, but for rounding
            assert abs(sum(of_bonafide) / sum(counts) - bona / (bona + spoof)) < 1 / sum(counts)
    assert len(set(totals)) == 1


def test_equal_shares_need_room_for_each_corpus() -> None:
    groups, is_bonafide = np.arange(30) % 5, np.arange(30) % 2 == 0
    with pytest.raises(InputError, match=r"train\.batch_size: expected at least 10 for 5 sets, got 9"):
        list(sampling.batches(is_bonafide, size=9, seed=0, epoch=1, groups=groups))


def test_order_of_corpora_depends_on_seed_and_epoch_alone() -> None:
    groups, is_bonafide = np.arange(40) // 25, np.arange(40) % 3 == 0

    def order(seed: int, epoch: int) -> list[int]:
        batches = sampling.batches(is_bonafide, size=8, seed=seed, epoch=epoch, groups=groups)
        return np.concatenate(list(batches)).tolist()

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(*key)) for key in ((1, 1), (1, 2), (2, 1))}) == 3


def test_order_without_corpora_is_what_it_was() -> None:
    """The bits of published runs: written down when the sampler was."""
    is_bonafide = np.arange(12) % 4 == 0
    batches = [rows.tolist() for rows in sampling.batches(is_bonafide, size=5, seed=1, epoch=2)]
    assert batches == [[0, 3, 7, 2], [4, 10, 5, 6], [8, 9, 11, 1]]


@pytest.mark.parametrize(("views", "probability"), [(("noise_0",), 1.5), (("noise_0",), -0.1), ((), 0.5)])
def test_augmentation_that_makes_no_sense_is_refused(views: tuple, probability: float) -> None:
    with pytest.raises(ValueError, match="expected views and a probability from 0 to 1"):
        Augment(views, probability)
