"""What the bench of `dvc status` changes in the stages of a cell; that it runs is not tried here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from bench import status as bench
from bench.flow import copy

ROOT = Path(__file__).parents[1]


def stages() -> bench.Stages:
    """Stages of a cell, of a few entries each."""
    code = ["stages/x.py", "pipeline/core"]
    return {
        "score": {
            "deps": [*code, f"data/runs/{bench.RUN_OF_SCORE}", "data/trials/${item.set}.csv"],
            "params": ["evaluate.views"],
            "outs": [f"data/scores/{bench.RUN_OF_SCORE}/${{item.set}}.txt"],
        },
        "evaluate": {
            "deps": [*code, "data/scores/${key}", "data/trials"],
            "params": ["evaluate", "sets"],
            "outs": ["data/metrics/${key}"],
            "plots": [{"data/plots/${key}/det": {"x": "far"}}],
        },
    }


def changed(*names: str) -> bench.Stages:
    """The stages after changes."""
    found = stages()
    for name in names:
        for apply in bench.CHANGES[name]:
            apply(found)
    return found


def test_score_goes_into_evaluate() -> None:
    found = changed("score in evaluate")
    assert list(found) == ["evaluate"]
    run_and_trials = ["data/runs/${key}", "data/trials/eval.csv"]
    assert found["evaluate"]["deps"] == ["stages/x.py", "pipeline/core", "data/trials", *run_and_trials]
    assert found["evaluate"]["outs"] == ["data/metrics/${key}", "data/scores/${key}/eval.txt"]


def test_code_becomes_one_file_and_parameters_are_read_from_another() -> None:
    evaluate = changed("parameters as JSON, one file of code")["evaluate"]
    assert evaluate["deps"] == ["data/scores/${key}", "data/trials", "data/code.json"]
    assert evaluate["params"] == [{"data/settings.json": ["evaluate", "sets"]}]


def test_plots_become_one_folder() -> None:
    evaluate = changed("one folder of plots")["evaluate"]
    assert evaluate["outs"] == ["data/metrics/${key}", "data/plots/${key}"]
    assert "plots" not in evaluate


def test_nothing_of_code_and_parameters_is_left() -> None:
    for stage in changed("no parameters, no code").values():
        assert "params" not in stage
        assert not [dep for dep in stage["deps"] if dep.startswith(("pipeline/", "stages/"))]


@pytest.mark.parametrize("name", bench.CHANGES)
def test_every_change_leaves_the_other_stages_as_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "project").mkdir()
    project = copy(ROOT, tmp_path / "project")

    def others() -> dict[str, Any]:
        return {
            f"{path} {stage}": entry
            for path in bench.FILES.values()
            for stage, entry in YAML(typ="safe").load(project / path)["stages"].items()
            if stage not in bench.FILES
        }

    before = others()
    bench.change(project, bench.CHANGES[name])
    assert others() == before
