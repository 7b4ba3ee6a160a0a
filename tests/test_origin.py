"""What the report says of itself, and the date and commit that a training leaves beside its seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.core import params_file
from pipeline.core.params import Params
from pipeline.report import origin
from pipeline.training import provenance
from tests.places import SETTINGS


def git(*words: str) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(["git", *words], env={**os.environ, **identity}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_stamp_names_the_commit_and_whether_there_are_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert set(provenance.stamp()) == {"date"}  # no repository
    git("init", "-q")
    assert set(provenance.stamp()) == {"date"}  # no commit
    for name in ("code.py", "dvc.lock"):
        Path(name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "--short=12", "HEAD")
    assert provenance.stamp()["commit"] == head
    Path("dvc.lock").write_text("2")
    Path("data.txt").write_text("untracked")
    assert provenance.stamp()["commit"] == head
    Path("code.py").write_text("2")
    assert provenance.stamp()["commit"] == f"{head}+"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", provenance.stamp()["date"])
    monkeypatch.setenv("PATH", "")
    assert set(provenance.stamp()) == {"date"}  # no git


def settings(**changes: dict[str, object]) -> Params:
    found = YAML(typ="safe").load(SETTINGS)
    for section, own in changes.items():
        found[section] |= own
    return Params.model_validate(found)


def test_the_newest_run_gives_date_and_commit(tmp_path: Path) -> None:
    first, second, *_ = settings().grid.runs
    assert (origin.of(settings(), tmp_path).date, origin.of(settings(), tmp_path).commit) == ("", "")
    (tmp_path / f"{first}.json").write_text(json.dumps({"seconds": 1.0}))  # by an older version
    assert origin.of(settings(), tmp_path).date == ""
    for run, date, commit in ((first, "2026-02-01T00:00:00Z", "bbb"), (second, "2026-01-31T23:59:59Z", "ccc")):
        (tmp_path / f"{run}.json").write_text(json.dumps({"seconds": 1.0, "date": date, "commit": commit}))
    (tmp_path / "gone-from-the-grid.json").write_text(json.dumps({"date": "2027-01-01T00:00:00Z"}))
    found = origin.of(settings(), tmp_path)
    assert (found.date, found.commit) == ("2026-02-01 00:00:00 UTC", "bbb")
    assert found == origin.of(settings(), tmp_path)


def test_encoder_and_corpora_in_words(tmp_path: Path) -> None:
    found = origin.of(settings(), tmp_path)
    assert found.encoder == "random weights, 4 layers of 128"
    assert found.corpora == {"train": "demo (train)", "dev": "demo (dev)", "eval": "demo (eval)"}
    hub = settings(encoder={"source": "hub/name", "revision": "abc", "random": None}, report={"title": "Mine"})
    assert origin.of(hub, tmp_path).encoder == "hub/name, revision abc"
    assert origin.of(hub, tmp_path).title == "Mine"
    tuning = YAML(typ="safe").load(SETTINGS)["encoder"]["finetune"] | {"on": True}
    tuned = settings(encoder={"finetune": tuning})
    assert origin.of(tuned, tmp_path).encoder.endswith(
        f", fine-tuned on train with {tuning['backend']} and {tuning['loss']}"
    )


def test_every_system_has_its_choices_of_the_axes() -> None:
    shipped = params_file.load(SETTINGS)
    assert set(shipped.axes) == set(shipped.runs.values())
    assert shipped.axes["asp-aoc"] == {"backend": "asp", "loss": "aoc", "layers": "all", "views": "clean"}
    assert shipped.axes["linear-qamo-knn"] == shipped.axes["linear-qamo"] | {"scoring": "knn"}
    grown = settings(grid={"layers": ["all", "upper"], "seed": [3, 1]}, analyse={"seed": [3]})
    assert set(grown.axes) == set(grown.runs.values())
    assert grown.axes["linear-qamo-upper"]["layers"] == "upper"
