"""Fusions of runs in detection: their scores are those of the flow, from files, in memory, and over time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import commands, detect
from pipeline.core import params_file
from pipeline.core.errors import InputError
from pipeline.detect import assembly, package, package_card
from pipeline.encoder import models
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
    system = detect.load("both", windows="first")
    assert list(system.scores(systems.audio("eval"))) == pytest.approx(fused_scores(), abs=1e-5)
    assert system.threshold == json.loads(Path("data/metrics/both.json").read_text())["dev_threshold"]


@pytest.mark.usefixtures("both")
def test_the_score_is_the_weighted_sum_and_the_rest_is_of_the_leading_member() -> None:
    told = json.loads(Path("data/fusions/both/fusion.json").read_text())
    files = systems.audio("eval")
    single = {run: list(detect.load(run, windows="first").detect(files, explain=True)) for run in (POOLED, FRAMES)}
    lead = max(told["weights"], key=told["weights"].get)
    for own, found in zip(
        zip(*single.values(), strict=True),
        detect.load("both", windows="first").detect(files, explain=True),
        strict=True,
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
def test_a_fusion_is_not_taught() -> None:
    with pytest.raises(InputError, match=f"both: expected one run to teach, got a fusion of {POOLED}, {FRAMES}"):
        commands.dispatch(["teach", "both", "audio/eval", "--name", "new", "--label", "spoof", "--out", "taught"])


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


@pytest.mark.usefixtures("both")
def test_weights_that_are_no_numbers_are_told() -> None:
    path = Path("data/fusions/both/fusion.json")
    for weight in ("1", None, -1.0, float("nan"), True):
        path.write_text(json.dumps({"weights": {POOLED: weight, FRAMES: 2.0}, "offset": 0.5}))
        with pytest.raises(InputError, match=r"fusion\.json: expected"):
            assembly.find("both")


# ---------------------------------------------------------------- packages


@pytest.fixture
def packed(both: Path, tmp_path: Path) -> Path:
    """The package of the fusion; the current folder is still the project."""
    folder = tmp_path / "packed"
    commands.dispatch(["package", "both", "--out", str(folder)])
    return folder


def test_a_package_scores_as_the_fusion_with_no_project_around(
    packed: Path, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [both / path for path in systems.audio("eval")]
    wanted = list(detect.load("both").detect(files, explain=True))
    shutil.move(both / "data", both / "gone")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert list(detect.load(packed).detect(files, explain=True)) == wanted


def test_a_package_holds_members_side_by_side(packed: Path) -> None:
    assert sorted(path.name for path in packed.iterdir()) == [
        "embeddings", "members", "model_card.md", "package.json", "runs", "trials",
    ]  # fmt: skip
    for run in (POOLED, FRAMES):
        files = json.loads((packed / "members" / f"{run}.json").read_text())["files"]
        assert {name.split("/")[1] for name in files if name.startswith("runs/")} == {run}
    assert f"| {FRAMES} |" in (packed / "model_card.md").read_text()


def test_a_local_encoder_is_stored_once(both: Path, tmp_path: Path) -> None:
    settings = params_file.load(Path("params.yaml"))
    model, card = models.load(settings.encoder)
    models.save(model, Path("own"), card=card)
    text = YAML(typ="safe").load(Path("params.yaml"))
    text["encoder"] = {"source": str(both / "own"), "normalize": settings.encoder.normalize}
    YAML(typ="safe").dump(text, Path("params.yaml"))
    before = list(detect.load("both").scores(systems.audio("eval")))
    package.write("both", tmp_path / "packed")
    assert [path.parent.name for path in (tmp_path / "packed").rglob("*.safetensors")].count("encoder") == 1
    shutil.rmtree("own")
    assert list(detect.load(tmp_path / "packed").scores(systems.audio("eval"))) == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("weights", {}, "at least 1 item"),
        ("weights", {POOLED: -1.0}, "greater than or equal to 0"),
        ("weights", {"../" + POOLED: 1.0}, "should match pattern"),
        ("weights", {POOLED: "1"}, "valid number"),
        ("weights", {POOLED: float("nan")}, "finite number"),
        ("weights", {"other": 1.0}, "expected the digests of all files that are needed"),
        ("offset", float("inf"), "finite number"),
        ("threshold", None, "valid number"),
        ("files", {"../x": "0" * 64}, "should match pattern"),
        ("format", 1, "expected format 2"),
    ],
)
def test_a_card_that_is_none_is_refused(packed: Path, key: str, value: object, said: str) -> None:
    path = packed / "package.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=said):
        assembly.find(packed)


def test_a_damaged_member_is_named(packed: Path) -> None:
    for name in (f"members/{POOLED}.json", f"runs/{FRAMES}/backend.safetensors"):
        path = packed / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(InputError, match=f"missing or damaged(.|\n)*{name}"):
            assembly.find(packed)
        path.write_bytes(before)
    swapped = packed / "members" / f"{POOLED}.json"
    swapped.write_bytes((packed / "members" / f"{FRAMES}.json").read_bytes())
    card = packed / "package.json"
    told = json.loads(card.read_text())
    told["files"][f"members/{POOLED}.json"] = package_card.digest(swapped)
    card.write_text(json.dumps(told))
    with pytest.raises(InputError, match="of the runs they name"):
        assembly.find(packed)


def test_a_link_out_of_a_package_is_not_followed(packed: Path, tmp_path: Path) -> None:
    path = packed / "members" / f"{POOLED}.json"
    path.rename(tmp_path / "outside.json")
    path.symlink_to(tmp_path / "outside.json")
    with pytest.raises(InputError, match="links that lead out"):
        assembly.find(packed)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("run", ["both", POOLED])
def test_a_package_keeps_a_calibration(run: str, tmp_path: Path) -> None:
    rows = [f"eval/{i}.flac,{'spoof' if i % 2 else 'bonafide'}" for i in range(12)]
    Path("audio/mine.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    commands.dispatch(["calibrate", run, "--on", "audio/mine.csv", "--out", "mine.json"])
    folder = tmp_path / "kept"
    commands.dispatch(["package", run, "--calibration", "mine.json", "--out", str(folder)])
    told = json.loads(Path("mine.json").read_text())
    system = detect.load(folder)
    assert (system.threshold, vars(system.parts.rule)) == (told["threshold"], told["verdicts"])  # type: ignore[arg-type]
    assert system.threshold != detect.load(run).threshold
    assert f"{told['measured']['bonafide']} bona fide and 6 spoof files" in (folder / "model_card.md").read_text()
    with pytest.raises(InputError, match="expected a calibration of --windows min, got one of --windows mean"):
        detect.load(folder, windows="min")
    with pytest.raises(InputError, match="expected a calibration of"):
        package.write(FRAMES, tmp_path / "other", calibration=Path("mine.json"))
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match="missing or damaged"):
        assembly.find(folder)
