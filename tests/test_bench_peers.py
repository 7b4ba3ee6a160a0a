"""The comparison with DeepFense, as far as it goes without it: equal plans, the table, what is missing, a restart."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import peers as bench
from pipeline.core import params_file

ONE, SIX, ALL = bench.FULL.grids
NUMBERS = {"seconds": 30.0, "eer": 40.0}


def test_both_are_given_the_same(tmp_path: Path) -> None:
    case = bench.FULL
    for grid in (ONE, ALL):
        bench.write_yaml(tmp_path / "params.yaml", bench.params(case, tmp_path, grid))
        ours = params_file.load(tmp_path / "params.yaml")
        assert list(ours.grid.runs) == [f"{head}-{loss}-last-clean-{seed}" for head, loss, seed in grid.cells]
        for cell in grid.cells:
            theirs = bench.config(case, tmp_path, cell, tmp_path)
            there, data = theirs["training"], theirs["data"]
            assert there["epochs"] == ours.train.epochs == ours.train.patience
            assert set(vars(ours.train.learning_rate).values()) == {there["optimizer"]["lr"]}
            assert there["optimizer"]["weight_decay"] == ours.train.weight_decay
            assert {data[name]["batch_size"] for name in ("train", "val", "test")} == {ours.train.batch_size}
            assert data["train"]["base_transform"][0]["max_len"] == ours.extract.window.samples
            assert theirs["model"]["frontend"]["args"]["ckpt_path"] == ours.encoder.source
            assert theirs["model"]["frontend"]["args"]["freeze"] is (ours.encoder.finetune is None)
            assert data["label_map"] == {"bonafide": 1, "spoof": 0}


def test_the_cells_are_those_that_the_page_names() -> None:
    assert [len(grid.cells) for grid in (ONE, SIX, ALL)] == [1, 6, 36]
    assert (bench.threads(ONE), bench.threads(SIX)) == (bench.processors(), 1)
    page = bench.PAGE.read_text()
    assert all(f"`{head}`" in page for head in bench.HEADS)
    assert bench.into(bench.into(page, "old"), "new") == bench.into(page, "new") != page


def test_constants_of_a_loss_are_equal() -> None:
    ours, theirs = bench.LOSSES["oc_softmax"]
    assert list(ours.values()) == [theirs[name] for name in ("w_posi", "w_nega", "alpha")]
    ours, theirs = bench.LOSSES["am_softmax"]
    assert list(ours.values()) == [theirs[name] for name in ("s", "m")]


def test_the_table() -> None:
    found: Mapping[str, Mapping[str, float]] = {
        "ours: features": {"seconds": 20.0},
        **{f"ours: {grid.name}": {"seconds": 10.0, "eer": 12.34} for grid in bench.FULL.grids},
        "DeepFense: one cell": {"seconds": 60.0, "eer": 43.21},
    }
    lines = bench.table(bench.FULL, found).splitlines()
    assert lines[2] == "| one cell | 60 s | 30 s | 2.0 | 10 s | 6.0 | 43.2 %, 12.3 % |"
    assert lines[4] == "| 36 cells | - | 30 s | - | 10 s | - | -, 12.3 % |"


def test_without_deepfense_it_says_so_and_measures_ours_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def stand_in(name: str) -> Any:
        return lambda *_: done.append(name) or NUMBERS

    for name in ("make_inputs", "our_features", "our_cells", "their_cells", "their_start", "compare"):
        monkeypatch.setattr(bench, name, stand_in(name))
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path), "--deepfense", sys.executable])
    bench.main()
    assert bench.MISSING in capsys.readouterr().out
    assert done == ["make_inputs", "our_features", *["our_cells"] * 3]
    monkeypatch.setattr(bench, "has_deepfense", bool)
    bench.main()
    assert done[5:] == ["compare", "their_start", *["their_cells"] * 3]
    bench.main()
    assert len(done) == 10
    monkeypatch.setattr(bench, "processors", lambda: 1024)
    with pytest.raises(SystemExit, match="other conditions"):
        bench.main()
