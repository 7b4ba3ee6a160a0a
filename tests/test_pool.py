"""Pools: several sets that are trained on together, without extracting anything again."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, from_rows
from pipeline.encoder.cards import Card
from pipeline.features import dataset, receipt_files
from stages import pool
from tests.conftest import Corpus
from tests.places import SETTINGS
from tests.test_extract import run


def table(names: str) -> trial_table.Trials:
    rows = [Row(f"t:{i}", name, f"{name}.wav", "spoof" if i % 2 else "bonafide") for i, name in enumerate(names)]
    return from_rows(rows, source="t")


def test_a_pool_has_the_trials_of_its_sets_in_order() -> None:
    found = trial_table.pool({"one": table("ab"), "two": table("dc")})
    assert found.utterance.tolist() == ["a", "b", "d", "c"]
    assert found.path.tolist() == ["a.wav", "b.wav", "d.wav", "c.wav"]
    assert found.is_bonafide.tolist() == [True, False, True, False]


def test_an_utterance_of_two_sets_is_named_with_both() -> None:
    with pytest.raises(InputError, match=r"in one of one, two, got:\n  b: in one and two"):
        trial_table.pool({"one": table("ab"), "two": table("bc")})


def settings(text: str) -> str:
    """The shipped parameters with other pools."""
    return SETTINGS.read_text().replace("pools: {}", f"pools: {text}")


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ("{both: {first: train, second: nope}}", r"pools\.both\.second: expected a set or a pool above, got 'nope'"),
        ("{a: {first: b, second: dev}, b: {first: train, second: eval}}", r"pools\.a\.first: .*got 'b'"),
        ("{a: {first: a, second: dev}}", r"pools\.a\.first: expected a set or a pool above, got 'a'"),
        ("{eval: {first: train, second: dev}}", r"pools\.eval: expected a name that no set has"),
        ("{both: {first: train, second: train}}", r"pools\.both: expected every set once"),
        ("{both: {first: train}}", r"pools\.both\.second: missing"),
    ],
)
def test_pools_that_cannot_be_are_named_with_their_line(tmp_path: Path, pools: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(settings(pools))
    with pytest.raises(InputError, match=r"params\.yaml:\d+: " + message):
        params_file.load(tmp_path / "params.yaml")


def test_dev_is_not_trained_on(tmp_path: Path) -> None:
    text = settings("{both: {first: train, second: dev}}").replace("  set: train ", "  set: both ")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"train\.set: expected a set or a pool without dev, got 'both'"):
        params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("pools", ["{}", "{both: {first: train, second: eval}}"])
def test_what_is_trained_on_is_not_evaluated_on(tmp_path: Path, pools: str) -> None:
    trained_on = "eval" if pools == "{}" else "both"
    (tmp_path / "params.yaml").write_text(settings(pools).replace("\n  set: train ", f"\n  set: {trained_on} "))
    with pytest.raises(InputError, match=r"evaluate\.sets\.0: expected a set that is not trained on, got 'eval'"):
        params_file.load(tmp_path / "params.yaml")


def test_a_pool_of_pools_has_the_sets_of_all(tmp_path: Path) -> None:
    text = settings("{two: {first: eval, second: train}, three: {first: two, second: dev}}")
    (tmp_path / "params.yaml").write_text(text)
    loaded = params_file.load(tmp_path / "params.yaml")
    assert loaded.members("three") == ("eval", "train", "dev")
    assert loaded.members("dev") == ("dev",)


@pytest.fixture
def pooled(corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the corpus was split into two sets, extracted, and pooled by the stage."""
    root, whole = corpus
    (tmp_path / "params.yaml").write_text(settings("{both: {first: eval, second: train}}"))
    for name, rows in (("train", np.arange(4)), ("eval", np.arange(4, 10))):
        part = whole.take(rows)
        (tmp_path / f"{name}.csv").write_text(trial_table.to_csv(part))
        receipt = run((root, part), tmp_path / "cache", card)
        (tmp_path / f"{name}.json").write_text(json.dumps(receipt))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pool", "--pool", "both", "--trials", ".", "--features", "."])
    pool.main()
    return tmp_path


def opened(folder: Path, name: str, table: trial_table.Trials | None = None) -> dataset.Dataset:
    table = trial_table.read(folder / f"{name}.csv") if table is None else table
    return dataset.open_set(folder / f"{name}.json", table, root=folder / "cache", reads="frames")


def test_features_of_a_pool_are_those_of_its_sets(pooled: Path) -> None:
    both, first, second = (opened(pooled, name) for name in ("both", "eval", "train"))
    assert len(both) == 10
    assert both.groups is not None
    assert both.groups.tolist() == [0] * 6 + [1] * 4
    features, _ = both.features(np.arange(10))
    assert np.array_equal(features[:6], first.features(np.arange(6))[0])
    assert np.array_equal(features[6:], second.features(np.arange(4))[0])


def test_a_pool_of_other_trials_is_refused(pooled: Path) -> None:
    table = trial_table.read(pooled / "both.csv")
    for rows in (np.arange(9), np.r_[0:10, 0], np.r_[1, 0, 2:10]):
        with pytest.raises(InputError, match="the trials changed since"):
            opened(pooled, "both", table.take(rows))


def test_receipts_of_a_pool_are_checked_like_others(pooled: Path) -> None:
    found = json.loads((pooled / "both.json").read_text())
    found["pool"]["eval"]["store"] = "../elsewhere"
    (pooled / "both.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="expected a store below the root of features"):
        receipt_files.read_receipts(pooled / "both.json")
    del found["pool"]["eval"]["digest"]
    (pooled / "both.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="got JSON without digest"):
        receipt_files.read_receipts(pooled / "both.json")
