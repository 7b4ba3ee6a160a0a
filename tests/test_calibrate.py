"""`bonafide calibrate`: the numbers against direct computation, what detection makes of them, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline import commands, detect
from pipeline.core.errors import InputError
from pipeline.detect import assembly, recalibration
from pipeline.metrics import calibration, verdicts
from pipeline.metrics.binomial import clopper_pearson
from pipeline.metrics.cllr import cllr
from pipeline.metrics.eer import eer_of
from tests import systems
from tests.systems import FRAMES, POOLED

pytestmark = pytest.mark.usefixtures("one_thread")


def calibrate(*arguments: str) -> None:
    commands.dispatch(["calibrate", POOLED, "--on", "audio/mine.csv", "--out", "mine.json", *arguments])


def write_list(rows: list[tuple[str, str]]) -> None:
    Path("audio/mine.csv").write_text("".join(f"{path},{label}\n" for path, label in [("path", "label"), *rows]))


@pytest.fixture
def listed(copied: Path) -> Path:
    """The project, and the files of eval as a user's own."""
    write_list([(f"eval/{i}.flac", "spoof" if i % 2 else "bonafide") for i in range(12)])
    return copied


def scores() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array(list(systems.scores(POOLED))), np.arange(12) % 2 == 0


def test_the_numbers_are_those_of_the_files_and_detection_takes_them(
    listed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in Path("data/runs").rglob("*.*")}
    calibrate("--error-rate", "0.25", "--windows", "first")
    told = capsys.readouterr()
    found, (score, is_bonafide) = json.loads(Path("mine.json").read_text()), scores()
    kept, refused = score[is_bonafide], score[~is_bonafide]
    assert found["threshold"] == pytest.approx(eer_of(score, is_bonafide).threshold, abs=1e-5)
    line = calibration.fit(kept, refused)
    assert found["calibration"] == pytest.approx({"slope": line.slope, "offset": line.offset}, rel=1e-3)
    rule = verdicts.fit(kept, refused, error_rate=0.25)
    assert found["verdicts"] == pytest.approx(vars(rule), abs=1e-5)
    assert told.err == ""
    assert told.out.splitlines()[0] == f"{POOLED}: 6 bona fide and 6 spoof files"
    assert re.search(
        r"verdicts   bonafide is ruled out below [-\d.]+, by mistake in 0\.4 to 45\.9 % \(25 % on average", told.out
    )
    commands.dispatch(["detect", "audio/eval", "--run", POOLED, "--calibration", "mine.json", "--json"])
    detected = {one["file"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    for i in range(12):
        one = detected[f"audio/eval/{i}.flac"]
        assert one["decision"] == ("bonafide" if one["score"] > found["threshold"] else "spoof")
        ratio = np.exp(found["calibration"]["slope"] * one["score"] + found["calibration"]["offset"])
        assert one["probability"] == pytest.approx(ratio / (1 + ratio), abs=1e-9)
        assert one["verdict"] == verdicts.VerdictRule(**found["verdicts"]).verdict(one["score"])
    assert before == {path: path.read_bytes() for path in Path("data/runs").rglob("*.*")}


def test_a_calibration_is_of_one_choice_of_windows(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate("--windows", "min")
    found = json.loads(Path("mine.json").read_text())
    score = np.array(list(detect.load(POOLED, windows="min").scores(systems.audio("eval"))))
    assert np.abs(score - scores()[0]).max() > 1e-3  # some files are longer than a window
    assert found["threshold"] == pytest.approx(eer_of(score, scores()[1]).threshold, abs=1e-6)
    parts = assembly.find(POOLED)
    path = Path("mine.json")
    assert recalibration.applied(parts, path, windows="min").threshold == found["threshold"]
    with pytest.raises(InputError, match="of --windows first, got one of --windows min; give that to detect"):
        recalibration.applied(parts, path, windows="first")
    del found["windows"]  # a file from before there was a choice
    path.write_text(json.dumps(found))
    assert recalibration.applied(parts, path).threshold == found["threshold"]
    with pytest.raises(InputError, match="of --windows mean, got one of --windows first"):
        recalibration.applied(parts, path, windows="mean")


def test_a_calibration_is_of_one_channel(listed: Path) -> None:
    for i, path in enumerate(systems.audio("eval")):
        samples, rate = soundfile.read(path, dtype="float32")
        noise = np.random.default_rng(i).normal(scale=0.05, size=len(samples)).astype(np.float32)
        soundfile.write(path, np.stack([noise, samples], axis=1), rate)
    calibrate("--channel", "right", "--windows", "first")
    path, parts = Path("mine.json"), assembly.find(POOLED)
    found = json.loads(path.read_text())
    heard = (detect.load(POOLED, channel=one, windows="first") for one in (0, 1))
    left, right = (np.array(list(system.scores(systems.audio("eval")))) for system in heard)
    assert np.abs(left - right).max() > 1e-3
    assert found["threshold"] == pytest.approx(eer_of(right, scores()[1]).threshold, abs=1e-6)
    for same in ("right", 1):
        assert recalibration.applied(parts, path, channel=same).threshold == found["threshold"]
    with pytest.raises(InputError, match="of --channel mean, got one of --channel right; give that to detect"):
        recalibration.applied(parts, path)
    with pytest.raises(InputError, match="of --channel left, got one of --channel right"):
        commands.dispatch(["detect", "audio/eval", "--run", POOLED, "--calibration", "mine.json", "--channel", "0"])
    del found["channel"]  # a file from before there was a choice
    path.write_text(json.dumps(found))
    assert recalibration.applied(parts, path).threshold == found["threshold"]
    path.write_text(json.dumps(found | {"channel": -1}))
    with pytest.raises(InputError, match=r"(?s)not a calibration.*channel"):
        recalibration.applied(parts, path)


@pytest.mark.parametrize("count", [30, 130])
def test_each_file_is_judged_by_the_others(count: int) -> None:
    rng = np.random.default_rng(count)
    is_bonafide = rng.permutation(np.arange(count) % 3 == 0)
    score = rng.normal(size=count) + 1.5 * is_bonafide
    found = recalibration.measured(score, is_bonafide)
    if count <= recalibration.FOLDS:  # each by itself
        wrong, ratios = [], []
        for i in range(count):
            others, known = np.delete(score, i), np.delete(is_bonafide, i)
            wrong.append((score[i] > eer_of(others, known).threshold) != is_bonafide[i])
            ratios.append(float(calibration.fit(others[known], others[~known]).apply(score[i])))
        ratio, errors = np.array(ratios), np.array(wrong)
        assert found["frr"] == round(100 * errors[is_bonafide].mean(), 2)
        assert found["far"] == round(100 * errors[~is_bonafide].mean(), 2)
        assert found["cllr"] == round(cllr(ratio[is_bonafide], ratio[~is_bonafide]), 4)
    own = clopper_pearson(round(found["far"] * found["spoof"] / 100), found["spoof"])
    assert found["far_interval"] == [round(100 * own.low, 2), round(100 * own.high, 2)]
    assert 5 < found["frr"] < 45


def test_few_files_say_so_and_promise_nothing(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate()
    told = capsys.readouterr()
    assert told.err.count("warning: audio/mine.csv: 6 ") == 2
    assert "verdicts   spoof is never ruled out" in told.out
    assert json.loads(Path("mine.json").read_text())["verdicts"]["bonafide_from"] is None
    commands.dispatch(["detect", "audio/eval/0.flac", "--run", POOLED, "--calibration", "mine.json"])
    told = capsys.readouterr()
    assert "cannot_tell" in told.out
    assert "6 bonafide trials are too few to rule out bonafide at an error rate of 0.05" in told.err


def test_nothing_is_replaced_and_another_run_is_refused(listed: Path) -> None:
    calibrate()
    written = Path("mine.json").read_bytes()
    with pytest.raises(InputError, match=r"mine\.json: there is a file already"):
        calibrate()
    assert Path("mine.json").read_bytes() == written
    with pytest.raises(InputError, match=rf"mine\.json: expected a calibration of {FRAMES} with weights"):
        recalibration.applied(assembly.find(FRAMES), Path("mine.json"))
    told = json.loads(written)
    for changes, said in (
        ({"weights": "0" * 16}, "with weights 0000"),
        ({"threshold": "high"}, "not a calibration.*threshold"),
        ({"verdicts": {"error_rate": 2}}, "not a calibration.*verdicts"),
        ({"format": 2}, "not a calibration.*format"),
    ):
        Path("mine.json").write_text(json.dumps(told | changes))
        with pytest.raises(InputError, match=f"(?s){said}"):
            recalibration.applied(assembly.find(POOLED), Path("mine.json"))
    with pytest.raises(InputError, match="no calibration there; make it anew"):
        recalibration.applied(assembly.find(POOLED), Path("none.json"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("eval/0.flac", "bonafide"), ("none.wav", "spoof"), ("eval/1.flac", "spoof"), ("eval/2.flac", "bonafide")],
         r"mine\.csv: 1 of 4 files could not be scored.*\n  audio/none\.wav: no such file"),
        ([("eval/0.flac", "bonafide"), ("eval/1.flac", "spoof"), ("eval/2.flac", "bonafide")],
         "expected at least 2 bona fide and 2 spoof files, .* got 2 and 1"),
        ([("eval/0.flac", "bonafide"), ("eval/2.flac", "bonafide")], "got only bonafide"),
        ([("eval/0.flac", "1"), ("eval/2.flac", "0")], r"mine\.csv:2: .*bonafide or spoof, got '1'"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used(copied: Path, rows: list[tuple[str, str]], said: str) -> None:
    write_list(rows)
    with pytest.raises(InputError, match=f"(?s){said}"):
        calibrate()
    assert not Path("mine.json").exists()


def test_the_parts_of_a_system_are_otherwise_the_same(listed: Path) -> None:
    calibrate()
    parts = assembly.find(POOLED)
    other = recalibration.applied(parts, Path("mine.json"))
    assert other.threshold != parts.threshold
    (raw,), (moved,) = (list(detect.of_parts(one).scores(["audio/eval/0.flac"])) for one in (parts, other))
    assert raw == moved
