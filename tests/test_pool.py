"""Pools: several sets that are trained on together, without extracting anything again."""

import dataclasses
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

SETS = ("one", "two", "three")


def table(names: str) -> trial_table.Trials:
    rows = [Row(f"t:{i}", name, f"{name}.wav", "spoof" if i % 2 else "bonafide") for i, name in enumerate(names)]
    return from_rows(rows, source="t")


ONE, OTHER = ("manifest", "/one"), ("manifest", "/other")


def test_a_pool_has_the_trials_of_its_sets_in_order() -> None:
    found = trial_table.pool({"one": table("ab"), "two": table("dc"), "three": table("ef")}, dict.fromkeys(SETS, ONE))
    assert found.utterance.tolist() == ["a", "b", "d", "c", "e", "f"]
    assert found.path.tolist() == ["a.wav", "b.wav", "d.wav", "c.wav", "e.wav", "f.wav"]
    assert found.is_bonafide.tolist() == [True, False] * 3


def test_an_utterance_of_two_sets_of_a_corpus_is_named_with_both() -> None:
    tables = {"one": table("ab"), "two": table("xb"), "three": table("bc")}
    with pytest.raises(InputError, match=r"in one of one, two, three, got:\n  b: in one and three$"):
        trial_table.pool(tables, {"one": ONE, "two": OTHER, "three": ONE})


def test_equal_names_of_different_corpora_stay_apart() -> None:
    def named(speakers: str, attacks: str, names: str) -> trial_table.Trials:
        made = table(names)
        attack = np.where(made.is_bonafide, "-", np.array([f"A{letter}" for letter in attacks]))
        return dataclasses.replace(made, speaker=np.array(list(speakers)), attack=attack)

    tables = {"one": named("xy", "-1", "ab"), "two": named("x-", "-1", "cd"), "three": named("zz", "-2", "ef")}
    found = trial_table.pool(tables, {"one": ONE, "two": OTHER, "three": ONE})
    assert found.speaker.tolist() == ["one/x", "y", "two/x", "-", "z", "z"]
    assert found.attack.tolist() == ["-", "one/A1", "-", "two/A1", "-", "A2"]
    assert found.utterance.tolist() == list("abcdef")
    same = trial_table.pool(tables, dict.fromkeys(SETS, ONE))  # parts of one corpus: its own names
    assert (same.speaker.tolist(), same.attack.tolist()) == (list("xyx-zz"), ["-", "A1", "-", "A1", "-", "A2"])
    tables["two"] = named("x-", "-1", "bd")
    found = trial_table.pool(tables, {"one": ONE, "two": OTHER, "three": ONE})
    assert found.utterance.tolist() == ["one/a", "one/b", "two/b", "two/d", "three/e", "three/f"]
    assert len(trial_table.from_rows(_rows(found), source="t")) == 6


def _rows(found: trial_table.Trials) -> list[Row]:
    labels = np.where(found.is_bonafide, "bonafide", "spoof").tolist()
    return [Row("t", *cells) for cells in zip(found.utterance.tolist(), found.path.tolist(), labels, strict=True)]


def settings(text: str) -> str:
    """The shipped parameters with other pools."""
    return SETTINGS.read_text().replace("pools: {}", f"pools: {text}")


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ("{both: [train, nope]}", r"pools\.both\.1: expected one of the sets train, dev, eval, got 'nope'"),
        ("{two: [train, eval], three: [two, dev]}", r"pools\.three\.0: expected one of the sets .*, got 'two'"),
        ("{eval: [train, dev]}", r"pools\.eval: expected a name that no set has"),
        ("{both: [train, train]}", r"pools\.both: expected each entry once, got \['train', 'train'\]"),
        ("{both: [train]}", r"pools\.both: expected a list of at least two sets, such as \[train, more\], got \['tr"),
        ("{both: {first: train, second: eval}}", r"pools\.both: expected a list of at least two sets, such as .*first"),
    ],
)
def test_pools_that_cannot_be_are_named_with_their_line(tmp_path: Path, pools: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(settings(pools))
    with pytest.raises(InputError, match=r"params\.yaml:\d+: " + message):
        params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("several", ["[train, eval]", "[{corpus: demo}, {corpus: mlaad}]", "{corpus: [demo, mlaad]}"])
def test_a_list_of_corpora_in_one_set_is_referred_to_pools(tmp_path: Path, several: str) -> None:
    (tmp_path / "params.yaml").write_text(settings("{}").replace("\npools:", f"\n  many: {several}\npools:"))
    with pytest.raises(InputError, match=r"^\S+params\.yaml:\d+: sets\.many: expected one corpus, .*`pools: {both: "):
        params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("on", ["true", "false"])
def test_the_set_of_fine_tuning_is_there_though_a_pool_is_trained_on(tmp_path: Path, on: str) -> None:
    text = (
        settings("{both: [first, eval]}").replace("\n  train:\n", "\n  first:\n", 1).replace("on: false", f"on: {on}")
    )
    (tmp_path / "params.yaml").write_text(text)
    message = r"params\.yaml:\d+: encoder\.finetune\.set: expected one of the sets first, eval, also .*, got 'train'"
    with pytest.raises(InputError, match=message):
        params_file.load(tmp_path / "params.yaml")


def test_dev_is_not_trained_on(tmp_path: Path) -> None:
    text = settings("{both: [train, dev]}").replace("  set: train ", "  set: both ")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"train\.set: expected a set or a pool without dev, got 'both'"):
        params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("pools", ["{}", "{both: [train, eval]}"])
def test_what_is_trained_on_is_not_evaluated_on(tmp_path: Path, pools: str) -> None:
    trained_on = "eval" if pools == "{}" else "both"
    (tmp_path / "params.yaml").write_text(settings(pools).replace("\n  set: train ", f"\n  set: {trained_on} "))
    with pytest.raises(InputError, match=r"evaluate\.sets\.0: expected a set that is not trained on, got 'eval'"):
        params_file.load(tmp_path / "params.yaml")


def test_a_pool_has_its_sets_in_order(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(settings("{three: [eval, train, dev]}"))
    loaded = params_file.load(tmp_path / "params.yaml")
    assert loaded.members("three") == ("eval", "train", "dev")
    assert loaded.members("dev") == ("dev",)


def test_sets_of_one_corpus_have_its_place_in_common(tmp_path: Path) -> None:
    text = settings("{}").replace("root: data/demo", "root: /", 1)
    (tmp_path / "params.yaml").write_text(text)
    sets = params_file.load(tmp_path / "params.yaml").sets
    assert sets["dev"].origin == sets["eval"].origin == ("demo", "data/demo")
    assert sets["train"].origin == ("demo", "pipeline/corpora/demo.py")


@pytest.fixture
def pooled(corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the corpus was split into two sets, extracted, and pooled by the stage."""
    (tmp_path / "params.yaml").write_text(settings("{both: [eval, train]}"))
    (tmp_path / "noted").mkdir()
    for name, rows in (("train", np.arange(4)), ("eval", np.arange(4, 10))):
        extract(corpus, tmp_path, card, name=name, rows=rows)
    monkeypatch.chdir(tmp_path)
    make(monkeypatch)
    return tmp_path


def extract(corpus: Corpus, folder: Path, card: Card, *, name: str, rows: np.ndarray) -> None:
    """Trial table, receipt and digests of a set of some of the corpus's trials."""
    root, whole = corpus
    part = whole.take(rows)
    (folder / f"{name}.csv").write_text(trial_table.to_csv(part))
    (folder / f"{name}.json").write_text(json.dumps(run((root, part), folder / "cache", card)))
    noted = receipt_files.extracted(table=folder / f"{name}.csv", receipt=folder / f"{name}.json")
    (folder / f"noted/{name}.json").write_text(json.dumps(noted))


def make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stage in the working folder."""
    words = "pool --pool both --trials . --features . --extracted noted"
    monkeypatch.setattr(sys, "argv", words.split())
    pool.main()


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


def test_sets_of_other_corpora_may_share_names(
    pooled: Path, corpus: Corpus, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(corpus, pooled, card, name="eval", rows=np.arange(6))
    with pytest.raises(InputError, match=r"expected every utterance in one of eval, train, got:\n"):
        make(monkeypatch)
    text = (pooled / "params.yaml").read_text()
    (pooled / "params.yaml").write_text(text.replace("root: data/demo", "root: data/other", 1))
    make(monkeypatch)
    both, first, second = (opened(pooled, name) for name in ("both", "eval", "train"))
    names = first.trials.utterance.tolist()
    assert both.trials.utterance.tolist() == [f"eval/{name}" for name in names] + [
        f"train/{name}" for name in names[:4]
    ]
    features, _ = both.features(np.arange(10))
    assert np.array_equal(features[:6], first.features(np.arange(6))[0])
    assert np.array_equal(features[6:], second.features(np.arange(4))[0])


def test_a_set_that_changed_after_its_extraction_is_not_pooled(pooled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (pooled / "train.csv").read_text()
    (pooled / "train.csv").write_text(text.replace("spoof", "bonafide", 1))
    with pytest.raises(
        InputError, match=r"noted/train\.json: expected the trial table train.csv and the receipt train."
    ):
        make(monkeypatch)


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
