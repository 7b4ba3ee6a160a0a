"""The evaluate stage: its numbers against direct computation, and the curves that it writes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.core.trial_table import Row, Trials
from pipeline.metrics import join, scorefile
from pipeline.metrics.calibration import fit
from pipeline.metrics.cllr import cllr
from pipeline.metrics.dcf import act_dcf
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import official_eer
from pipeline.metrics.tdcf import ASVSPOOF5_RATES, AsvRates, min_tdcf_2021
from pipeline.report import curves
from stages import evaluate
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
BONAFIDE, SPOOF = 400, 900


@pytest.fixture(scope="module")
def table() -> Trials:
    rows = [Row("here", f"b{i}", f"b{i}.flac", "bonafide") for i in range(BONAFIDE)]
    attacks = ("A02", "A01", "-")
    rows += [Row("here", f"s{i}", f"s{i}.flac", "spoof", attack=attacks[i % 3]) for i in range(SPOOF)]
    return trial_table.from_rows(rows, source="a test")


@pytest.fixture(scope="module")
def scores(table: Trials) -> NDArray[np.float32]:
    noise = np.random.default_rng(1).normal(size=len(table))
    return (noise + 2.0 * table.is_bonafide - 1.0 * (table.attack == "A02")).astype(np.float32)


def write_params(path: Path, **evaluate: object) -> None:
    """The default parameters with another section `evaluate`, and a set of ASVspoof 5."""
    settings = YAML(typ="safe").load(SETTINGS)
    settings["sets"]["five"] = settings["sets"]["eval"] | {"corpus": "asvspoof5"}
    settings["evaluate"] = {"sets": ["eval"], "views": [], "finetuned": [], "bootstrap": 50, "asv": {}} | evaluate
    YAML(typ="safe").dump(settings, path)


def dev_table() -> Trials:
    rows = [Row("here", f"d{i}", f"d{i}.flac", "spoof" if i % 4 else "bonafide") for i in range(400)]
    return trial_table.from_rows(rows, source="a test")


def dev_scores() -> NDArray[np.float32]:
    is_bonafide = dev_table().is_bonafide
    return (np.random.default_rng(2).normal(size=400) + 1.5 * is_bonafide).astype(np.float32)


def write_dev(folder: Path, scores: NDArray[np.floating]) -> None:
    """Write the scores of dev as training does, with its key."""
    scorefile.write(folder / "dev.txt", dev_table(), scores, layout="2019")


def run(
    folder: Path, table: Trials, scores: NDArray[np.floating], *, names: tuple[str, ...] = ("eval",)
) -> tuple[Path, Path]:
    """Run the stage on these scores of every set: the metrics file of the last one and the plots folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text('{"dev_eer": 1.0, "dev_threshold": 0.25}')
    if not (folder / "dev.txt").exists():
        write_dev(folder, dev_scores())
    if not (folder / "params.yaml").exists():
        write_params(folder / "params.yaml", sets=list(names))
    for name in names:
        write_text(folder / f"trials/{name}.csv", trial_table.to_csv(table))
        scorefile.write(folder / f"scores/{name}.txt", table, scores, layout="2021")
    evaluate.main(arguments(folder))
    return folder / "metrics" / f"{names[-1]}.json", folder / "plots"


def arguments(folder: Path) -> list[str]:
    files = {"--scores": "scores", "--trials": "trials", "--params": "params.yaml", "--dev-scores": "dev.txt"}
    files |= {"--training": "training.json", "--metrics": "metrics", "--plots": "plots"}
    return [part for option, file in files.items() for part in (option, str(folder / file))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, table: Trials, scores: NDArray[np.float32]) -> tuple[Path, Path]:
    return run(tmp_path_factory.mktemp("evaluate"), table, scores)


def rows(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    with path.open(newline="") as file:
        header, *cells = csv.reader(file)
    return header, np.array(cells, dtype=np.float64)


def test_the_metrics_equal_direct_computation(
    made: tuple[Path, Path], table: Trials, scores: NDArray[np.float32]
) -> None:
    text = made[0].read_text()
    found = json.loads(text)
    bonafide = scores[table.is_bonafide].astype(np.float64)
    pooled = official_eer(det_points(bonafide, scores[~table.is_bonafide]))
    assert text.endswith("}\n")
    assert list(found) == [
        *("eer", "eer_interpolated", "threshold", "bonafide", "spoof", "min_dcf", "act_dcf", "cllr", "min_cllr"),
        *("calibrated", "at_threshold", "verdicts", "eer_interval", "min_dcf_interval", "attacks", "vocoders"),
        "codecs",
    ]
    assert found["eer"] == round(100 * pooled.eer, 5)
    assert np.float32(found["threshold"]) == np.float32(pooled.threshold)
    assert (found["bonafide"], found["spoof"]) == (BONAFIDE, SPOOF)
    assert list(found["attacks"]) == ["A01", "A02"]
    for name, attack in found["attacks"].items():
        alone = official_eer(det_points(bonafide, scores[table.attack == name]))
        assert attack == {"eer": round(100 * alone.eer, 5), "spoof": SPOOF // 3}
    assert found["attacks"]["A02"]["eer"] < found["eer"] < found["attacks"]["A01"]["eer"]
    spoof = scores[~table.is_bonafide]
    assert found["at_threshold"]["threshold"] == 0.25  # the dev threshold of the training
    assert found["at_threshold"]["far"] == round(100 * float((spoof > 0.25).mean()), 5)
    dev = np.sort(dev_scores()[~dev_table().is_bonafide].astype(np.float64))
    assert found["verdicts"]["error_rate"] == 0.05
    assert np.float32(found["verdicts"]["spoof_up_to"]) == np.float32(dev[-15])  # ⌊0.05 · 301⌋ of 300
    assert found["eer_interval"][0] < found["eer"] < found["eer_interval"][1]


def test_scores_in_other_views_have_an_eer_with_its_interval(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32]
) -> None:
    noisy = scores + np.random.default_rng(2).normal(size=len(table)).astype(np.float32)
    path = tmp_path / "scores/eval.txt"
    folder = tmp_path / "scores/eval"
    write_text(folder / "gone_0.txt", "a view of before")
    scorefile.write_views(path, folder, table, {"clean": scores, "noise_0": noisy, "trim": scores}, layout="2021")
    assert {file.name for file in folder.iterdir()} == {"noise_0.txt", "trim.txt"}
    found = json.loads(run(tmp_path, table, scores)[0].read_text())
    alone = official_eer(det_points(noisy[table.is_bonafide], noisy[~table.is_bonafide]))
    assert list(found["views"]) == ["noise_0", "trim"]
    assert found["views"]["noise_0"]["eer"] == round(100 * alone.eer, 5)
    low, high = found["views"]["noise_0"]["eer_interval"]
    assert low < 100 * alone.eer < high
    assert found["views"]["trim"] == {key: found[key] for key in ("eer", "eer_interval")}
    scorefile.write(folder / "noise_0.txt", table.take(np.arange(5)), noisy[:5], layout="2021")
    with pytest.raises(InputError, match=r"noise_0\.txt: 1295 of 1300 trials have no score"):
        run(tmp_path, table, scores)


def test_the_costs_before_and_after_calibration_on_dev(
    made: tuple[Path, Path], table: Trials, scores: NDArray[np.float32]
) -> None:
    found = json.loads(made[0].read_text())
    chosen, dev = dev_table().is_bonafide, join.read(made[1].parent / "dev.txt", dev_table())
    assert (dev == dev_scores().astype(str).astype(np.float64)).all()
    line = fit(dev[chosen], dev[~chosen])
    own = join.read(made[1].parent / "scores/eval.txt", table)
    bonafide, spoof = own[table.is_bonafide], own[~table.is_bonafide]
    assert found["calibrated"] == {
        "slope": line.slope,
        "offset": line.offset,
        "act_dcf": round(act_dcf(line.apply(bonafide), line.apply(spoof)), 6),
        "cllr": round(cllr(line.apply(bonafide), line.apply(spoof)), 6),
    }
    assert found["cllr"] == round(cllr(bonafide, spoof), 6)
    assert found["min_cllr"] < found["calibrated"]["cllr"] < found["cllr"]


def test_the_calibration_is_of_dev_and_moves_no_eer(
    tmp_path: Path, made: tuple[Path, Path], table: Trials, scores: NDArray[np.float32]
) -> None:
    write_dev(tmp_path, 10 * dev_scores() + 3)  # on another scale than the set
    found, usual = json.loads(run(tmp_path, table, scores)[0].read_text()), json.loads(made[0].read_text())
    other, line = found.pop("calibrated"), usual.pop("calibrated")
    moved, limits = found.pop("verdicts"), usual.pop("verdicts")
    assert moved["spoof_up_to"] == pytest.approx(10 * limits["spoof_up_to"] + 3, rel=1e-5)
    (line_of_set,) = found.pop("warnings")
    assert line_of_set.startswith(f"calibrated on dev, the scores have a Cllr of {other['cllr']:.3f} bits")
    assert found == usual
    assert other["slope"] == pytest.approx(line["slope"] / 10, rel=1e-5)
    assert other["cllr"] > line["cllr"]


def test_the_line_at_the_end_tells_the_cllr_before_and_after(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(run(tmp_path, table, scores)[0].read_text())
    told = capsys.readouterr()
    before, after = found["cllr"], found["calibrated"]["cllr"]
    assert told.out == (
        f"eval: EER {found['eer']:.2f} % (interpolated {found['eer_interpolated']:.2f} %) of 400 bona fide "
        f"and 900 spoof trials; Cllr {before:.3f} bits, {after:.3f} calibrated on dev\n"
    )
    assert told.err == ""


def test_a_set_that_was_calibrated_on_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, _ = run(tmp_path, dev_table(), dev_scores())
    found, told = json.loads(metrics.read_text()), capsys.readouterr()
    assert told.err.startswith(f"warning: {tmp_path / 'scores/eval.txt'}: 400 of 400 trials have names of those")
    assert found["calibrated"]["cllr"] < found["cllr"]


def test_inverted_dev_scores_are_told_and_calibrate_to_nothing(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    write_dev(tmp_path, -dev_scores())
    found = json.loads(run(tmp_path, table, scores)[0].read_text())
    assert found["calibrated"] == {"slope": 0.0, "offset": 0.0, "act_dcf": 1.0, "cllr": 1.0}
    assert found["eer"] < 50
    assert "the bona fide of dev do not score higher on average than its spoof" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: re.sub(" - \\w+", "", text),
            r"dev\.txt: a score file of the layout .* does not say what is bona",
        ),
        (lambda text: text.replace("bonafide", "spoof"), r"dev\.txt: "),
        (lambda text: text.replace("d7 ", "d8 "), r"dev\.txt"),
        (lambda text: "", r"dev\.txt"),
    ],
)
def test_dev_scores_without_a_key_are_refused(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32], change: Callable[[str], str], message: str
) -> None:
    write_dev(tmp_path, dev_scores())
    (tmp_path / "dev.txt").write_text(change((tmp_path / "dev.txt").read_text()))
    with pytest.raises(InputError, match=message):
        run(tmp_path, table, scores)
    assert not {"metrics", "plots"} & {path.name for path in tmp_path.iterdir()}


def test_missing_dev_scores_are_named_with_the_command_that_makes_them(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32]
) -> None:
    run(tmp_path, table, scores)
    (tmp_path / "dev.txt").unlink()
    with pytest.raises(InputError, match=r"dev\.txt: no score file there; run `dvc repro -f train`"):
        evaluate.main(arguments(tmp_path))


def test_dev_scores_that_no_slope_fits_are_refused_by_name(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32]
) -> None:
    write_dev(tmp_path, 1e-200 * dev_scores().astype(np.float64))
    with pytest.raises(InputError, match=r"dev\.txt: expected scores that a slope of at most 1e\+100"):
        run(tmp_path, table, scores)


def test_dev_is_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(tmp_path)
    place = given.index("--dev-scores")
    with pytest.raises(SystemExit):
        evaluate.main(given[:place] + given[place + 2 :])
    assert "required: --dev-scores" in capsys.readouterr().err


def test_the_det_file_holds_true_points_and_the_eer_among_them(
    made: tuple[Path, Path], table: Trials, scores: NDArray[np.float32]
) -> None:
    header, points = rows(made[1] / "det/eval.csv")
    assert header == ["far", "frr", "threshold"]
    assert len(points) <= curves.POINTS
    values = join.read(made[1].parent / "scores/eval.txt", table)
    det = det_points(values[table.is_bonafide], values[~table.is_bonafide])
    all_points = set(zip(det.far.tolist(), det.frr.tolist(), det.threshold.tolist(), strict=True))
    assert set(map(tuple, points.tolist())) <= all_points
    eer = official_eer(det)
    assert (det.far[eer.point], det.frr[eer.point], eer.threshold) in set(map(tuple, points.tolist()))
    assert official_eer(curves.read_det(made[1] / "det/eval.csv")).eer == eer.eer


def test_the_histogram_counts_every_trial_once(
    made: tuple[Path, Path], table: Trials, scores: NDArray[np.float32]
) -> None:
    header, bins = rows(made[1] / "histogram/eval.csv")
    assert header == ["score", "bonafide", "spoof", "spoof/A01", "spoof/A02"]
    assert bins[:, 1:].sum(axis=0) == pytest.approx([1.0] * 4)
    width = bins[1, 0] - bins[0, 0]
    for column, of_class in ((1, table.is_bonafide), (2, ~table.is_bonafide)):
        inside = np.abs(scores[of_class] - bins[30, 0]) < width / 2
        assert bins[30, column] == pytest.approx(inside.mean())
        assert inside.any()


def test_the_same_scores_give_the_same_bytes(
    made: tuple[Path, Path], tmp_path: Path, table: Trials, scores: NDArray[np.float32]
) -> None:
    metrics, plots = run(tmp_path / "again", table, scores)
    assert metrics.read_bytes() == made[0].read_bytes()
    names = sorted(path.relative_to(plots).as_posix() for path in plots.rglob("*.*"))
    assert names == ["det/eval.csv", "histogram/eval.csv", "risk/eval.csv"]
    for name in names:
        assert (plots / name).read_bytes() == (made[1] / name).read_bytes()


def test_a_sign_is_never_flipped(tmp_path: Path, table: Trials) -> None:
    metrics, _ = run(tmp_path, table, np.where(table.is_bonafide, -1.0, 1.0) + np.arange(len(table)) * 1e-6)
    assert json.loads(metrics.read_text())["eer"] == 100.0


def test_ties_that_move_the_eer_are_told(tmp_path: Path, table: Trials, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "tied", table, np.zeros(len(table)))
    told = capsys.readouterr()
    assert "1300 trials of both classes share one score near 0.0" in told.err
    assert "EER is 100.00 %, with ties counted evenly it is 50.00 %" in told.err
    assert told.out.startswith(
        "eval: EER 100.00 % (interpolated 50.00 %) of 400 bona fide and 900 spoof trials; Cllr 1.000 bits, "
    )


def test_a_coarse_eer_without_ties_is_no_cause_for_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("here", f"u{i}", f"u{i}.flac", "bonafide" if i < 3 else "spoof") for i in range(5)]
    run(tmp_path, trial_table.from_rows(rows, source="a test"), np.array([2.0, 4.0, 5.0, 1.0, 3.0]))
    told = capsys.readouterr()  # officially 5/12; interpolated 1/3
    assert told.out.startswith("eval: EER 41.67 % (interpolated 33.33 %) of 3 bona fide and 2 spoof trials; ")
    assert "EER" not in told.err


def test_what_does_not_fit_the_set_is_told_and_stands_in_the_metrics(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    """Spoof that scores 1.5 more than on dev: at the threshold of 0.25 nine in ten are accepted, of dev's 40 %."""
    higher = scores + np.where(table.is_bonafide, 0, 1.5)
    metrics, _ = run(tmp_path, table, higher)
    found = json.loads(metrics.read_text())
    on_dev = 100 * np.mean(dev_scores()[~dev_table().is_bonafide] > 0.25)
    far, cllr = found["at_threshold"]["far"], found["calibrated"]["cllr"]
    assert (far > 1.5 * on_dev, cllr > 1) == (True, True)
    assert found["warnings"] == [
        f"at the threshold of dev {far:.1f} % of the spoof is accepted, of dev's own {on_dev:.1f} %: the threshold "
        "does not fit this set",
        f"calibrated on dev, the scores have a Cllr of {cllr:.3f} bits; above 1 their probabilities are worse than "
        "none",
        f"{found['verdicts']['spoof_called_bonafide']:.1f} % of the spoof have the verdict bonafide, of at most 5 % "
        "that the rule promises for trials like those of dev: these are others, and no promise holds",
    ]
    told = capsys.readouterr().err.splitlines()
    assert told == [f"warning: {tmp_path / 'scores/eval.txt'}: {line}" for line in found["warnings"]]


def test_an_eer_above_one_half_gives_a_warning(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, _ = run(tmp_path, table, -scores)
    eer = json.loads(metrics.read_text())["eer"]
    told = capsys.readouterr()
    assert eer > 80
    assert told.err.startswith(f"warning: {tmp_path / 'scores/eval.txt'}: the EER is {eer:.2f} %, above 50 %")
    lines = told.err.splitlines()
    assert len(lines) == 5
    assert "have the verdict spoof, of at most 5 %" in lines[3]
    assert "have the verdict bonafide, of at most 5 %" in lines[4]
    assert "98.5 % of the bona fide is rejected, of dev's own 14.0 %" in lines[1]
    assert "calibrated on dev, the scores have a Cllr of 3.344 bits" in lines[2]
    assert "takes the spoof of this set for bona fide" in told.err
    assert "negate" not in told.err  # the file is the flow's own


def test_the_set_says_which_asv_and_how_many_resamples(
    tmp_path: Path, table: Trials, scores: NDArray[np.float32]
) -> None:
    rates = {"p_fa": 0.02, "p_miss": 0.03, "p_fa_spoof": 0.5}
    write_params(tmp_path / "params.yaml", sets=["eval", "five"], bootstrap=0, asv={"eval": rates})
    folder = run(tmp_path, table, scores, names=("eval", "five"))[0].parent
    assert sorted(path.name for path in folder.iterdir()) == ["eval.json", "five.json"]
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("eval", "five")}
    det = det_points(scores[table.is_bonafide], scores[~table.is_bonafide])
    expected = {"eval": AsvRates(**rates), "five": ASVSPOOF5_RATES}
    for name, metrics in found.items():
        assert metrics["min_tdcf_2021"] == round(min_tdcf_2021(det, expected[name]).value, 6)
        assert "eer_interval" not in metrics
    assert found["eval"]["min_tdcf_2021"] != found["five"]["min_tdcf_2021"]


@pytest.mark.parametrize(
    ("asv", "training", "message"),
    [
        ({}, '{"dev_eer": 1}', r"training\.json: expected a training's metrics, got JSON without dev_threshold"),
        (
            {"eval": {"p_fa": 0.0, "p_miss": 0.0, "p_fa_spoof": 0.0}},
            '{"dev_threshold": 1}',
            r"params\.yaml:\d+: evaluate\.asv\.eval: expected an ASV with which .* C2 = 0",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_named_with_its_place(
    tmp_path: Path, asv: dict[str, object], training: str, message: str
) -> None:
    write_params(tmp_path / "params.yaml", asv=asv)
    write_dev(tmp_path, dev_scores())
    (tmp_path / "training.json").write_text(training)
    with pytest.raises(InputError, match=message):
        evaluate.main(arguments(tmp_path))
    assert not (tmp_path / "metrics").exists()


def test_scores_of_another_set_are_refused_and_nothing_is_written(tmp_path: Path, table: Trials) -> None:
    run(tmp_path, table, np.arange(len(table)))
    for name in ("metrics", "plots"):
        shutil.rmtree(tmp_path / name)
    write_params(tmp_path / "params.yaml", sets=["eval", "five"])
    shutil.copy(tmp_path / "trials/eval.csv", tmp_path / "trials/five.csv")
    (tmp_path / "scores/five.txt").write_text("b0 1.0\nb1 2.0\n")
    with pytest.raises(InputError, match=r"five\.txt: 1298 of 1300 trials have no score"):
        evaluate.main(arguments(tmp_path))
    assert not {"metrics", "plots"} & {path.name for path in tmp_path.iterdir()}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300), st.lists(st.integers(0, 50), min_size=1, max_size=300))
def test_thinning_keeps_the_ends_the_order_and_the_eer(bonafide: list[int], spoof: list[int]) -> None:
    det = det_points(bonafide, spoof)
    eer = official_eer(det)
    indices = curves.thin(det, keep=[eer.point], points=20)
    assert len(indices) <= 20
    assert {0, det.frr.size - 1, eer.point} <= set(indices.tolist())
    assert (np.diff(indices) > 0).all()
    assert official_eer(curves.taken(det, indices)).eer == eer.eer


def test_thinning_leaves_no_gap_in_a_large_curve() -> None:
    draw = np.random.default_rng(2).normal
    det = det_points(draw(2.0, 1.0, 50_000), draw(0.0, 1.0, 100_000))
    kept = curves.taken(det, curves.thin(det, keep=[]))
    assert 300 < kept.frr.size <= curves.POINTS
    places = [curves.probit(rates, low=0.001, high=0.999) for rates in (kept.frr, kept.far)]
    assert max(np.abs(np.diff(place)).max() for place in places) < 0.1


def test_thinning_to_fewer_points_than_must_stay_is_refused() -> None:
    with pytest.raises(ValueError, match="room for 3 points that must stay, got points=2"):
        curves.thin(det_points([1.0, 2.0], [0.0, 3.0]), keep=[2], points=2)


def test_the_probit_by_known_quantiles() -> None:
    found = curves.probit(np.array([0.0, 0.5, 0.975, 1.0]), low=0.025, high=0.999)
    assert found == pytest.approx([-1.959964, 0.0, 1.959964, 3.090232], abs=1e-6)


def test_one_score_for_all_still_has_a_histogram() -> None:
    found = curves.histogram(np.array([2.0, 2.0, 2.0]), np.array([True, False, False]), bins=4)
    assert found.centre.tolist() == [1.625, 1.875, 2.125, 2.375]
    assert found.bonafide.tolist() == found.spoof.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_starting_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "faiss", "zarr", "matplotlib", "jinja2", "scipy", "sklearn")
    code = f"import sys, stages.evaluate, stages.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
