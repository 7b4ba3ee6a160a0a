"""Stores, receipts, cards and parameters that earlier versions wrote are found again, and nothing is computed anew."""

import shutil
from pathlib import Path

import pytest

from pipeline.extraction import planning
from stages import extract
from tests.test_store import tree

STORES = Path(__file__).parent / "stores"


@pytest.mark.parametrize("version", sorted(path.name for path in STORES.iterdir()))
def test_a_store_that_an_earlier_version_wrote_is_found(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two layers and two views of six utterances; the audio is not there any more."""
    shutil.copytree(STORES / version, tmp_path, dirs_exist_ok=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "cache").rename(tmp_path / "data/cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "_make", None)  # what would compute
    before = tree(tmp_path / "data/cache")
    words = "--set train --trials train.csv --card encoder.json --receipt again.json"
    monkeypatch.setattr("sys.argv", ["extract", *words.split()])
    extract.main()
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "receipt.json").read_bytes()
    after = tree(tmp_path / "data/cache")
    assert {name: data for name, data in after.items() if not name.endswith(".lock")} == before
    assert "clean: 2 of 2 shards are complete" in capsys.readouterr().out
