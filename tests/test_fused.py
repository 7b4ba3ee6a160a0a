"""Fusions of runs in detection: their scores are those of the flow, from files, in memory, and over time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import commands, detect
from pipeline.core.errors import InputError
from pipeline.detect import assembly
from stages import fuse
from tests import systems
from tests.systems import FRAMES, POOLED

pytestmark = pytest.mark.usefixtures("one_thread")


def fuse_runs(*members: str) -> None:
    """The fusion `both` in the project in the current folder, by its stage."""
    settings = YAML(typ="safe").load(Path("params.yaml"))
    YAML(typ="safe").dump(settings | {"fuse": {"both": list(members)}}, Path("params.yaml"))
    out = Path("data/fusions/both")
    options = {
        "name": "both", "trials": "data/trials", "members": "data/scores", "members-dev": "data/dev_scores",
        "scores": f"{out}/scores", "dev-scores": f"{out}/dev.txt", "fusion": f"{out}/fusion.json",
        "metrics": "data/metrics/both.json",
    }  # fmt: skip
    fuse.main([part for name, value in options.items() for part in (f"--{name}", value)])


@pytest.fixture
def both(copied: Path) -> Path:
    """A copy of the project, with the fusion of its two runs."""
    fuse_runs(POOLED, FRAMES)
    return copied


def fused_scores() -> list[float]:
    lines = Path("data/fusions/both/scores/eval.txt").read_text().splitlines()
    return [float(line.split()[1]) for line in lines]


@pytest.mark.usefixtures("both")
def test_the_scores_are_those_of_the_flow() -> None:
    system = detect.load("both")
    assert list(system.scores(systems.audio("eval"))) == pytest.approx(fused_scores(), abs=1e-5)
    assert system.threshold == json.loads(Path("data/metrics/both.json").read_text())["dev_threshold"]


@pytest.mark.usefixtures("both")
def test_the_score_is_the_weighted_sum_and_the_rest_is_of_the_leading_member() -> None:
    told = json.loads(Path("data/fusions/both/fusion.json").read_text())
    files = systems.audio("eval")
    single = {run: list(detect.load(run).detect(files, explain=True)) for run in (POOLED, FRAMES)}
    lead = max(told["weights"], key=told["weights"].get)
    for own, found in zip(
        zip(*single.values(), strict=True), detect.load("both").detect(files, explain=True), strict=True
    ):
        wanted = sum(told["weights"][run] * one.score for run, one in zip(single, own, strict=True)) + told["offset"]
        assert found.score == pytest.approx(wanted, abs=1e-5)
        of_lead = dict(zip(single, own, strict=True))[lead]
        assert (found.centroid, found.distance_percentile) == (of_lead.centroid, of_lead.distance_percentile)
        assert [near.utterance for near in found.neighbours] == [near.utterance for near in of_lead.neighbours]


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("windows", ["mean", "min"])
def test_all_windows_and_timelines_are_sums_window_by_window(windows: str) -> None:
    told = json.loads(Path("data/fusions/both/fusion.json").read_text())
    path = systems.audio("eval")[1]
    lines = {run: detect.load(run).timeline(path).score for run in (POOLED, FRAMES)}
    wanted = sum(told["weights"][run] * lines[run].astype(float) for run in lines) + told["offset"]
    system = detect.load("both", windows=windows)  # type: ignore[arg-type]
    np.testing.assert_allclose(system.timeline(path).score, wanted, atol=1e-5)
    assert system.score(path) == pytest.approx(getattr(wanted, windows)(), abs=1e-5)


@pytest.mark.usefixtures("both")
def test_a_calibration_is_of_one_fusion() -> None:
    rows = [f"eval/{i}.flac,{'spoof' if i % 2 else 'bonafide'}" for i in range(12)]
    Path("audio/mine.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    commands.dispatch(["calibrate", "both", "--on", "audio/mine.csv", "--out", "mine.json"])
    commands.dispatch(["detect", "audio/eval/0.flac", "--run", "both", "--calibration", "mine.json"])
    with pytest.raises(InputError, match="expected a calibration of linear"):
        commands.dispatch(["detect", "audio/eval/0.flac", "--run", POOLED, "--calibration", "mine.json"])
    path = Path("data/fusions/both/fusion.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"offset": 1.5}))
    with pytest.raises(InputError, match="expected a calibration of both with weights"):
        commands.dispatch(["detect", "audio/eval/0.flac", "--run", "both", "--calibration", "mine.json"])


@pytest.mark.usefixtures("both")
def test_a_fusion_that_is_not_there_or_another_is_told() -> None:
    assert isinstance(assembly.find("both"), assembly.FusedParts)
    shutil.rmtree(f"data/runs/{FRAMES}")
    with pytest.raises(InputError, match=f"in data/runs, got {FRAMES}"):
        assembly.find("both")
    settings = YAML(typ="safe").load(Path("params.yaml"))
    YAML(typ="safe").dump(settings | {"fuse": {"both": [FRAMES, POOLED]}}, Path("params.yaml"))
    with pytest.raises(InputError, match="of other runs than"):
        assembly.find("both")
    shutil.rmtree("data/fusions")
    with pytest.raises(InputError, match=r"fusion\.json"):
        assembly.find("both")
