"""The libraries that make features: named in the store, told where they are others, and no part of what it is."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands import cache as command
from pipeline.core.contracts import CLEAN
from pipeline.encoder.cards import Card
from pipeline.features import libraries
from pipeline.features.receipt_files import open_receipts
from pipeline.features.store import Store
from tests.conftest import Corpus
from tests.test_cache import Project, project
from tests.test_extract import run
from tests.test_store import SPEC, blocks

__all__ = ["project"]  # a fixture
OLDER = "torch 1.13, transformers 4.2, soxr 0.1, libsndfile 1.0"


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    libraries._warn.cache_clear()


def test_the_versions_are_major_and_minor() -> None:
    assert re.fullmatch(
        r"torch \d+\.\d+, transformers \d+\.\d+, soxr \d+\.\d+, libsndfile \d+\.\d+", libraries.at_work()
    )
    texts = ("2.9.1+cpu", "4.57", "1.2.2rc1", "7", "unknown")
    assert [libraries._minor(text) for text in texts] == ["2.9", "4.57", "1.2", "7", "unknown"]


def test_extraction_names_them_and_says_nothing_of_its_own(
    corpus: Corpus, tmp_path: Path, card: Card, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = run(corpus, tmp_path, card)
    store = Store.open(tmp_path / receipt["store"])
    layers = receipt["layers"]
    assert layers
    assert store.made((CLEAN,), layers) == {(CLEAN, layer): {libraries.at_work()} for layer in layers}
    assert run(corpus, tmp_path, card) == receipt
    assert capsys.readouterr().err == ""


def test_a_store_by_others_is_told_once_and_stays_as_it_is(
    corpus: Corpus, tmp_path: Path, card: Card, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with one version and continued with another: the folder, the receipt and the first shards are the same."""
    with monkeypatch.context() as patched:
        patched.setattr(libraries, "at_work", lambda: OLDER)
        receipt = run(corpus, tmp_path, card)
    assert capsys.readouterr().err == ""
    store = Store.open(tmp_path / receipt["store"])
    path = store.shard_path("clean/layer_01", 0)
    path.unlink()
    for _ in range(2):
        assert run(corpus, tmp_path, card) == receipt
    said = capsys.readouterr().err
    now = libraries.at_work()
    assert said.count("warning: ") == 2  # when it was continued, and of the mixture
    assert f"{store.path}: its features were made by {OLDER}; here are {now}. Last digits" in said
    assert f"{store.path}: its features were made by {OLDER} and by {now}; here are {now}. Last digits" in said
    assert store.made((CLEAN,), (1,))[CLEAN, 1] == {OLDER, libraries.at_work()}


def test_reading_tells_it_once_and_says_nothing_where_nobody_knows(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt, root = project.receipts / "train.json", project.root
    open_receipts(receipt, root=root)  # of a store that names none
    assert capsys.readouterr().err == ""
    store, one = Store.open(project.store("train")), project.sets["train"]
    for made, told in ((libraries.at_work(), 0), (libraries.IMPORTED, 0), (OLDER, 1)):
        frames, pooled = {5: one.frames[0, :4, 1]}, {5: one.pooled[0, :4, 1]}
        store.write(CLEAN, 0, frames, pooled, np.arange(4, dtype=np.int32) + 1, made=made)
        for _ in range(2):
            open_receipts(receipt, root=root)
        assert capsys.readouterr().err.count(f"warning: {store.path}: its features were made by {made}") == told
    command.main(["ls"])
    assert f"  clean: layers 2, 5, final; 3 of 3 shards\n    made by {OLDER}\n" in capsys.readouterr().out


def test_growth_by_a_layer_keeps_who_made_the_others(tmp_path: Path) -> None:
    store = Store.create(tmp_path, "dev", SPEC)
    store.add_arrays(CLEAN, (1, 2))
    store.write(CLEAN, 0, *blocks(SPEC, 0, (1,)), made=OLDER)
    store.write(CLEAN, 0, *blocks(SPEC, 0, (2,)), made="torch 2.9")
    made = functools.partial(store.made, (CLEAN,))
    assert made((1, 2)) == {(CLEAN, 1): {OLDER}, (CLEAN, 2): {"torch 2.9"}}
    store.write(CLEAN, 0, *blocks(SPEC, 0, (1,)))
    assert made((1, 2)) == {(CLEAN, 1): set(), (CLEAN, 2): {"torch 2.9"}}
