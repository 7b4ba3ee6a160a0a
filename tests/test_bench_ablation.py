"""What the bench of ablations divides and what it asks for; that it runs is not tried here."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from bench import ablation as bench
from pipeline.core import params_file
from tests.places import SETTINGS


def test_the_cost_of_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "processors", lambda: 2)
    ran = bench.Ran(20.0, (6.0, 2.0), ())
    assert (ran.one_by_one, ran.side_by_side) == (6.0, 8.0)  # (20 - 8) / 2 and (20 - 8 / 2) / 2
    assert bench.Ran(3.0, (), ()).one_by_one == 3.0


def test_aims_are_met_or_missed() -> None:
    assert bench.met(0.6, 0.6) == "0.6 s: met"
    assert bench.met(0.61, 0.6) == "0.6 s: **missed**"


@pytest.mark.parametrize(("quick", "cells"), [(False, 36), (True, 9)])
def test_the_grid_is_one_that_the_project_takes(tmp_path: Path, quick: bool, cells: int) -> None:
    place, path = bench.Place(tmp_path, quick), tmp_path / "params.yaml"
    params = YAML(typ="safe").load(SETTINGS)
    place.shorten(params)
    place.grow(params)
    YAML(typ="safe").dump(params, path)
    assert len(params_file.load(path).grid.runs) == cells


def test_the_recipe_has_the_cells_that_stand_for_all() -> None:
    settings = params_file.load(bench.RECIPE)
    assert len(settings.grid.runs) == 108
    assert set(bench.SAMPLED) <= set(settings.grid.backend)
    assert settings.grid.seed[0] == 1
