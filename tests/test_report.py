"""The report stage: its values against the metrics that it gathers, and the page that it writes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.core.trial_table import Row, from_rows
from pipeline.metrics import evaluation
from pipeline.metrics.abstention import risk_coverage
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.det import det_points
from pipeline.metrics.tdcf import ASVSPOOF5_RATES
from pipeline.metrics.verdicts import VerdictRule
from pipeline.report import build, curves, leaderboard, leaderboard_files, measures, shifts
from pipeline.report.page import charts, embedding_space, layer_curve, page
from pipeline.training.dropped import Dropped
from tests import analysed

SETS = ("dev", "eval")
# EERs on dev and eval of each run. Not in order, "b" and "a" tied on eval, a name that would break a page that does not
# escape it, and a system of two runs.
EERS = {
    "linear-<b>": (1.5, 9.0),
    "b": (2.0, 3.25),
    "a": (1.25, 3.25),
    "asp-qamo-1": (6.0, 0.4),
    "asp-qamo-2": (8.0, 0.6),
}
RUNS = {run: run.removesuffix("-1").removesuffix("-2") for run in EERS}
LAYERS = """layer,method,set,eer
2,logistic,dev,5.5
2,logistic,eval,9
2,centroid,dev,20
10,logistic,dev,4
final,logistic,dev,3.25
"""
SHOWN = ("b", "asp-qamo-2")  # analysed
NOTE = "Generated & <claims nothing>"


def metrics(eer: float, *, spoof: int = 6) -> dict[str, Any]:
    attacks = {"A<1>": {"eer": eer / 2, "spoof": 4}, "A2": {"eer": min(2 * eer, 100.0), "spoof": spoof - 4}}
    found = {"eer": eer, "eer_interval": [eer - 0.3, eer + 0.2]}
    return found | {"threshold": 0.5, "bonafide": 1234, "spoof": spoof, "attacks": attacks}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with metrics, plots and training curves of all runs on two sets, and seconds of two runs."""
    for folder in ("metrics", "curves", "seconds"):
        (tmp_path / folder).mkdir()
    for seed, (run, eers) in enumerate(EERS.items()):
        trained = {"dev_eer": eers[0] + 0.25, "parameters": 1000 + seed, "weights": f"of {run}"}
        (tmp_path / "metrics" / f"{run}.json").write_text(json.dumps(trained))
        rng = np.random.default_rng(seed)
        for name, eer in zip(SETS, eers, strict=True):
            write_text(tmp_path / "metrics" / run / f"{name}.json", json.dumps(metrics(eer)))
            bonafide, spoof = rng.normal(1.5, 1, 50), rng.normal(0, 1, 80)
            plots = tmp_path / "plots" / run
            curves.write_det(plots / f"det/{name}.csv", det_points(bonafide, spoof))
            is_bonafide = np.arange(130) < 50
            shares = curves.histogram(np.concatenate((bonafide, spoof)), is_bonafide)
            curves.write_histogram(plots / f"histogram/{name}.csv", shares)
        (tmp_path / "curves" / f"{run}.csv").write_text(
            f"epoch,loss,dev_loss,train_eer,dev_eer\n1,0.9,1.1,9,20.5\n2,0.4,,,\n3,0.3,0.8,4,{eers[0]}\n"
        )
    for run, seconds in (("b", 12.34), ("asp-qamo-2", 5.0)):
        timed = {"seconds": seconds, "weights": f"of {run}"}
        (tmp_path / "seconds" / f"{run}.json").write_text(json.dumps(timed))
    return tmp_path


def run(
    inputs: Path,
    *,
    runs: dict[str, str] = RUNS,
    sort_by: str = "eval",
    out: str = "out",
    shown: Collection[str] = (),
    rescored: Collection[str] = (),
    finetuned: Collection[str] = (),
    fused: Collection[str] = (),
    early: Sequence[Dropped] = (),
) -> Path:
    text = build.build(
        inputs / out,
        inputs / f"{out}.json",
        build.Inputs(
            *(inputs / name for name in ("metrics", "plots", "curves", "seconds")),
            layers=inputs / "layers",
            analysis=inputs / "analysis",
        ),
        runs=runs,
        sets=SETS,
        sort_by=sort_by,
        note=NOTE,
        analysed=shown,
        rescored=rescored,
        finetuned=finetuned,
        fused=fused,
        stopped=early,
    )
    assert text == (inputs / out / "leaderboard.txt").read_text()
    return inputs / out


def gathered(inputs: Path, runs: dict[str, str], sets: Sequence[str], sort_by: str) -> leaderboard.Leaderboard:
    seconds = inputs / "seconds"
    return leaderboard_files.gather(inputs / "metrics", runs=runs, sets=sets, sort_by=sort_by, seconds=seconds)


def test_systems_that_were_stopped_early_have_no_row_but_a_table_of_their_own(inputs: Path) -> None:
    early = [Dropped("mlp-<c>", (), 10, 12.5), Dropped("mlp-d", (), 5, 31.0), Dropped("mlp-e", (), 5, 40.0)]
    made = run(inputs, early=early)
    said = (
        "ystems stopped early by their dev EER, without a row: 2 after epoch 5, 1 after epoch 10; the rows are what a"
    )
    assert f"s{said} search on dev kept\n" in (made / "leaderboard.txt").read_text()
    page_of = Page((made / "index.html").read_text())
    assert f"S{said} search on dev kept." in page_of.text
    assert [row for row in page_of.rows if row and row[0].startswith("mlp")] == [
        ["mlp-<c>", "10", "12.50"], ["mlp-d", "5", "31.00"], ["mlp-e", "5", "40.00"],
    ]  # fmt: skip
    assert "stopped early" not in (run(inputs, out="none") / "index.html").read_text()


VOID = ("meta", "path", "circle", "rect", "input")  # never closed, or closed at once


class Page(HTMLParser):
    """What a reader or a browser finds: tags, references, the text, table rows, and what is marked as best."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.best: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"{tag} is closed out of turn"

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()
        if self.open[-1:] == ["strong"]:
            self.best.append(data)


ORDER = ["asp-qamo", "a", "b", "linear-<b>"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_holds_the_metrics_sorted_by_the_set_and_then_by_name(inputs: Path) -> None:
    rows = rows_of(run(inputs) / "leaderboard.csv")
    assert [row["system"] for row in rows] == ORDER
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["runs"] for row in rows] == ["2", "1", "1", "1"]
    assert [float(row["dev_eer"]) for row in rows] == [7.25, 1.5, 2.25, 1.75]
    assert [row["seconds"] for row in rows] == ["5.0", "", "12.34", ""]
    assert [row["parameters"] for row in rows] == ["1003", "1002", "1001", "1000"]
    for row in rows[1:]:  # of one run: what was measured
        for name in SETS:
            saved = json.loads((inputs / "metrics" / row["system"] / f"{name}.json").read_text())
            assert float(row[f"eer/{name}"]) == saved["eer"]
            assert [float(row[f"eer/{name}_{end}"]) for end in ("low", "high")] == saved["eer_interval"]
            assert row[f"eer/{name}_sd"] == ""
            for attack, value in saved["attacks"].items():
                assert float(row[f"eer/{name}/{attack}"]) == value["eer"]
    assert [row["chosen"] for row in rows] == ["", "chosen", "", ""]
    # and of every set a threshold, which is the only other measure here
    assert len(rows[0]) == 6 + len(SETS) * 5 + 2 + len(SETS) * 2 + len(SETS)


MEASURED = {
    "eer_interpolated": 3.5, "min_dcf": 0.25, "min_dcf_interval": [0.125, 0.5], "act_dcf": 0.75,
    "min_tdcf_2019": 0.375, "min_tdcf_2019_interval": [0.25, 0.5], "min_tdcf_2021": 0.5, "cllr": 1.5, "min_cllr": 0.125,
    "eer_interval_by_speaker": [2.0, 8.0],
    "calibrated": {"slope": 2.0, "offset": -1.0, "act_dcf": 0.625, "cllr": 0.875},
    "at_threshold": {"threshold": 0.25, "accuracy": 90.0, "balanced_accuracy": 80.0, "frr": 5.0, "far": 52.0,
                     "aurc": 7.5},
    "verdicts": {"error_rate": 0.05, "bonafide_from": 0.125, "spoof_up_to": 0.375, "bonafide_called_spoof": 4.0,
                 "spoof_called_bonafide": 6.0, "cannot_tell": 30.0},
    "codecs": {"C<1>": {"eer": 4.5, "bonafide": 7, "spoof": 3}}, "vocoders": {"V1": {"eer": 5.5, "spoof": 6}},
}  # fmt: skip


def measure_all(inputs: Path) -> None:
    """Add to the metrics of every run on every set all that `evaluate` measures; to b a min DCF that is better."""
    for path in (inputs / "metrics").glob("*/*.json"):
        better = {"min_dcf": 0.0625, "at_threshold": MEASURED["at_threshold"] | {"accuracy": 95.0}}
        own = MEASURED | (better if path.parent.name == "b" else {})
        path.write_text(json.dumps(json.loads(path.read_text()) | own))


def test_every_metric_of_evaluate_is_in_the_csv_files(inputs: Path) -> None:
    measure_all(inputs)
    rows = rows_of(run(inputs) / "metrics.csv")
    own = {
        (row["by"], row["group"], row["metric"]): (row["value"], row["low"], row["high"])
        for row in rows
        if (row["run"], row["set"]) == ("asp-qamo-2", "eval")
    }
    assert own == {
        ("all", "", "eer"): ("0.6", str(0.6 - 0.3), str(0.6 + 0.2)),
        ("all", "", "eer_by_speaker"): ("0.6", "2.0", "8.0"),
        ("all", "", "eer_interpolated"): ("3.5", "", ""),
        ("all", "", "min_dcf"): ("0.25", "0.125", "0.5"),
        ("all", "", "act_dcf"): ("0.75", "", ""),
        ("all", "", "act_dcf_calibrated"): ("0.625", "", ""),
        ("all", "", "min_tdcf_2019"): ("0.375", "0.25", "0.5"),
        ("all", "", "min_tdcf_2021"): ("0.5", "", ""),
        ("all", "", "cllr"): ("1.5", "", ""),
        ("all", "", "cllr_calibrated"): ("0.875", "", ""),
        ("all", "", "min_cllr"): ("0.125", "", ""),
        ("all", "", "frr_at_dev"): ("5.0", "", ""),
        ("all", "", "far_at_dev"): ("52.0", "", ""),
        ("all", "", "accuracy_at_dev"): ("90.0", "", ""),
        ("all", "", "balanced_accuracy_at_dev"): ("80.0", "", ""),
        ("all", "", "aurc_at_dev"): ("7.5", "", ""),
        ("all", "", "bonafide_called_spoof"): ("4.0", "", ""),
        ("all", "", "spoof_called_bonafide"): ("6.0", "", ""),
        ("all", "", "cannot_tell"): ("30.0", "", ""),
        ("all", "", "threshold"): ("0.5", "", ""),
        ("all", "", "threshold_dev"): ("0.25", "", ""),
        ("all", "", "calibration_slope"): ("2.0", "", ""),
        ("all", "", "calibration_offset"): ("-1.0", "", ""),
        ("all", "", "bonafide_from"): ("0.125", "", ""),
        ("all", "", "spoof_up_to"): ("0.375", "", ""),
        ("attack", "A<1>", "eer"): ("0.3", "", ""),
        ("attack", "A2", "eer"): ("1.2", "", ""),
        ("codec", "C<1>", "eer"): ("4.5", "", ""),
        ("vocoder", "V1", "eer"): ("5.5", "", ""),
    }
    assert len(rows) == len(EERS) * len(SETS) * len(own)
    wide = {row["system"]: row for row in rows_of(inputs / "out/leaderboard.csv")}
    assert (wide["a"]["min_dcf/eval"], wide["b"]["min_dcf/eval"]) == ("0.25", "0.0625")
    assert wide["asp-qamo"]["cllr_calibrated/dev"] == "0.875"
    assert wide["a"]["eer_by_codec/eval/C<1>"] == "4.5"
    assert wide["a"]["eer_by_vocoder/dev/V1"] == "5.5"


def test_evaluate_measures_nothing_that_the_report_does_not_know() -> None:
    rng = np.random.default_rng(1)
    rows = [Row(f"t:{i}", f"u{i}", f"u{i}.wav", "spoof" if i % 2 else "bonafide", speaker=f"s{i % 12}", attack="A1",
                codec="c", vocoder="v") for i in range(240)]  # fmt: skip
    found = evaluation.evaluate(
        from_rows(rows, source="t"), rng.normal(size=240), asv=ASVSPOOF5_RATES, threshold=0.0, folds=20,
        calibration=Calibration(1.0, 0.0), rule=VerdictRule(0.05, 0.0, 0.0, 120, 120),
    )  # fmt: skip
    known = {measure.place[0] for measure in measures.MEASURES} | {measure.interval for measure in measures.MEASURES}
    known |= {*measures.GROUPS.values(), "bonafide", "spoof"}
    assert set(found) <= known
    assert {("calibrated", key) for key in found["calibrated"]} <= {each.place for each in measures.MEASURES}
    assert {("at_threshold", key) for key in found["at_threshold"]} <= {each.place for each in measures.MEASURES}
    assert set(measures.read_all(found)) == {each.key for each in measures.MEASURES}


def test_a_set_that_lies_elsewhere_than_dev_is_marked_with_its_number(inputs: Path) -> None:
    def found(auc: float | None, *, bonafide: int = 40) -> dict[str, str]:
        facts = analysed.analysis("b")
        facts["shift"]["eval"]["auc"] = auc
        facts["distances"]["eval"]["bonafide"]["n"] = bonafide
        analysed.write(inputs / "analysis", "b", facts=facts)
        return shifts.found(embedding_space.gather(inputs / "analysis", ["b"]), SETS)

    # Dev has 0.5. Unknown; a tenth away from it; more, but of two bona fide.
    assert found(None) == found(0.6) == found(0.4) == found(0.85, bonafide=2) == shifts.found([], SETS) == {}
    assert found(0.15)["eval"].startswith("eval: its bona fide lie nearer to the centroids than those of dev (AUC 0.15")
    (said,) = found(0.85).values()
    assert said.startswith("eval: its bona fide lie farther from the centroids than those of dev (AUC 0.85 against ")
    assert "training, dev 0.50, 0.5 is no difference; embeddings of b);" in said
    made = run(inputs, shown=("b",))
    text, page_of = (made / "leaderboard.txt").read_text(), Page((made / "index.html").read_text())
    assert re.search(r"\(dev\) +dev +eval § +seconds", text)
    assert f"§ {said}\n" in text
    assert f"§ {said}." in page_of.text
    assert [cell for cell in page_of.rows[0] if "§" in cell] == ["eval§ unlike dev1,234 bona fide6 spoof"]


def test_the_standard_error_of_an_auc_by_a_table() -> None:
    # Hanley and McNeil 1982: an area of 0.893 with 51 abnormal and 58 normal images has a standard error of 0.032.
    assert shifts.standard_error(0.893, 58, 51) == pytest.approx(0.032, abs=6e-4)
    assert shifts.standard_error(1.0, 10, 10) == 0


def test_the_page_draws_risk_over_coverage_where_it_was_measured(inputs: Path) -> None:
    assert "Risk and coverage" not in (run(inputs) / "index.html").read_text()
    found = risk_coverage(np.linspace(0.1, 2, 20), -np.linspace(-1.05, 2, 20), 0.0)
    curves.write_risk(inputs / "plots/a/risk/eval.csv", found)
    np.testing.assert_array_equal(
        curves.read_risk(inputs / "plots/a/risk/eval.csv"), np.stack((found.coverage, found.risk), axis=1)
    )
    html = (run(inputs) / "index.html").read_text()
    section = html[html.index('<h2 id="risk">') : html.index('<h2 id="det">')]
    assert section.count("<figure>") == 1  # of eval alone
    board = gathered(inputs, RUNS, SETS, "eval")
    chart = page.risk_chart(board, page.Curves({}, {}, {}, {("a", "eval"): np.array([[0.01, 1], [0.5, 0.2]])}), "eval")
    assert chart is not None
    assert [(line.name, line.points.tolist()) for line in chart.lines] == [("a", [[50.0, 20.0]])]


def test_the_page_holds_every_metric_and_marks_its_best(inputs: Path) -> None:
    measure_all(inputs)
    html = (run(inputs) / "index.html").read_text()
    menu = re.findall(r'<option value="([a-z_0-9]+)"', html[html.index('id="measure"') : html.index("</select>")])
    assert menu == [measure.key for measure in measures.MEASURES if measure.better]
    cells = {key: re.findall(rf'<td class="m {key}".*?</td>', html) for key in menu}
    assert {len(found) for found in cells.values()} == {len(ORDER) * len(SETS)}
    best = [re.sub("<.*?>", " ", cell).split()[0] for cell in cells["min_dcf"] if "<strong>" in cell]
    assert best == ["0.0625"] * len(SETS)
    assert [cell for cell in cells["min_dcf"] if "0.1250 to 0.5000" in cell]
    assert all("<strong>95.00" in cell for cell in cells["accuracy_at_dev"][4:6])  # the highest: that of b
    assert sum("<strong>" in cell for cell in cells["accuracy_at_dev"]) == len(SETS)
    assert re.findall(r'<option value="group-\d"[^>]*>(.*?)<', html) == [
        f"{kind} in {name}" for name in ("eval", "dev") for kind in ("Attacks", "Codecs", "Vocoders")
    ]
    decided = html[html.index('id="decisions"') : html.index('id="det"')]
    row = re.search(r"a</th>(.*?)</tr>", decided)
    assert row is not None
    assert re.findall(r"<td>(.*?)</td>", row[1]) == [
        "3.25", "0.5000", "0.2500", "5.00", "52.00", "0.7500", "0.6250", "1.5000", "0.8750", "0.1250", "2.0000",
        "-1.0000", "7.50", "4.00", "6.00", "30.00",
    ]  # fmt: skip
    scores = html[html.index('id="scores"') :]
    assert scores.count("<title>dev threshold</title>") == len(ORDER) * len(SETS)


def test_a_metric_that_one_run_lacks_is_a_dash(inputs: Path) -> None:
    measure_all(inputs)
    path = inputs / "metrics/a/eval.json"
    found = json.loads(path.read_text())
    del found["min_tdcf_2019"]
    path.write_text(json.dumps(found))
    out = run(inputs)
    assert [row["min_tdcf_2019/eval"] for row in rows_of(out / "leaderboard.csv")] == ["0.375", "", "0.375", "0.375"]
    assert '<td class="m min_tdcf_2019">-</td>' in (out / "index.html").read_text()


def test_marks_of_costs_and_of_what_is_better_the_higher(inputs: Path) -> None:
    measure_all(inputs)
    board = gathered(inputs, RUNS, SETS, "eval")
    assert [board.mark(system, "eval", "min_dcf") for system in ORDER] == ["~", "~", "*", "~"]
    assert [board.mark(system, "eval", "accuracy_at_dev") for system in ORDER] == ["", "", "*", ""]
    assert {board.mark(system, "eval", "threshold") for system in ORDER} == {""}
    # both intervals are 0.375 wide, so a difference of 0.1875 * sqrt 2 = 0.2652 is the least that counts
    path = inputs / "metrics/a/eval.json"
    for value, mark in ((0.327, "~"), (0.328, "")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"min_dcf": value}))
        assert gathered(inputs, RUNS, SETS, "eval").mark("a", "eval", "min_dcf") == mark
    unbounded = leaderboard.over_seeds([1.0, 3.0], [(1.0, 2.0)] * 2, top=float("inf")).interval
    assert unbounded == (0.0, pytest.approx(2 + (12.706**2 + 0.5**2) ** 0.5))


def test_of_two_seeds_the_csv_holds_the_mean_the_deviation_and_an_interval_of_both(inputs: Path) -> None:
    row = rows_of(run(inputs) / "leaderboard.csv")[0]
    # (6, 8): the standard deviation of two is |6 - 8| / sqrt 2, that of their mean 1; the trials' interval is 0.5 wide
    assert float(row["eer/dev"]) == 7.0
    assert float(row["eer/dev_sd"]) == pytest.approx(2**0.5)
    half = ((12.706 * 1.0) ** 2 + 0.25**2) ** 0.5  # Student's t with one degree of freedom
    assert float(row["eer/dev_low"]) == max(7 - half, 0.0)
    assert float(row["eer/dev_high"]) == pytest.approx(7 + half, abs=1e-6)
    assert float(row["eer/dev/A2"]) == 14.0
    assert float(row["dev_eer_sd"]) == pytest.approx(2**0.5)


def test_eers_in_other_views_are_in_a_table_of_their_own_and_in_the_csv_files(inputs: Path) -> None:
    """Of two seeds their mean; a system that was scored clean alone has no row there."""
    measured = {"asp-qamo-1": (12.5, 11.0, 14.0), "asp-qamo-2": (13.5, 12.0, 15.0), "b": (30.0, 28.0, 33.0)}
    for name, (eer, low, high) in measured.items():
        path = inputs / "metrics" / name / "eval.json"
        own = {"views": {"mp3_32": {"eer": eer, "eer_interval": [low, high]}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    html = (run(inputs) / "index.html").read_text()
    shown = html[html.index('id="views"') :]
    shown = shown[: shown.index("<h2")]
    assert re.findall(r"<h3>(.*?)</h3>", shown) == ["eval"]
    assert re.findall(r'<th scope="col"><span>(.*?)<', shown) == ["clean", "mp3_32"]
    rows = {
        re.sub("<.*?>", "", row[0]).strip(): row[1]
        for row in re.findall(r"<tr data-row=\"\d+\">(.*?</th>)(.*?)</tr>", shown)
    }
    assert list(rows) == [system for system in ORDER if system in ("asp-qamo", "b")]
    assert rows["b"].endswith('<td class="h30">30.00<small>28.00 to 33.00</small></td>')
    assert '<td class="h13"><strong>13.00</strong>' in rows["asp-qamo"]
    wide = {row["system"]: row["eer_in_view/eval/mp3_32"] for row in rows_of(inputs / "out/leaderboard.csv")}
    assert wide == {"asp-qamo": "13.0", "b": "30.0", "a": "", "linear-<b>": ""}
    lines = [row for row in rows_of(inputs / "out/metrics.csv") if row["by"] == "view"]
    assert [
        (row["run"], row["group"], row["value"], row["low"], row["high"]) for row in lines if row["run"] == "b"
    ] == [("b", "mp3_32", "30.0", "28.0", "33.0")]
    assert len(lines) == 3


def test_every_run_has_a_line_of_its_own(inputs: Path) -> None:
    rows = rows_of(run(inputs) / "runs.csv")
    assert [row["run"] for row in rows] == ["asp-qamo-1", "asp-qamo-2", "a", "b", "linear-<b>"]
    assert {row["run"]: (float(row["eer/dev"]), float(row["eer/eval"])) for row in rows} == EERS
    assert [row["seconds"] for row in rows] == ["", "5.0", "", "12.34", ""]


def test_seconds_of_other_weights_stay_blank(inputs: Path) -> None:
    """As after DVC brought back an earlier run, or where the file is of a time before weights were told apart."""
    for run_name, timed in (("b", {"seconds": 12.34, "weights": "of a"}), ("asp-qamo-2", {"seconds": 5.0})):
        (inputs / "seconds" / f"{run_name}.json").write_text(json.dumps(timed))
    out = run(inputs)
    assert [row["seconds"] for row in rows_of(out / "runs.csv")] == [""] * 5
    assert [row["seconds"] for row in rows_of(out / "leaderboard.csv")] == [""] * 4
    (inputs / "metrics" / "b.json").write_text(json.dumps({"dev_eer": 1.0, "parameters": 1}))  # rescored, or of before
    assert rows_of(run(inputs) / "runs.csv")[3]["seconds"] == ""


def test_the_summary_has_the_eer_of_each_system_and_the_one_that_dev_chooses(inputs: Path) -> None:
    run(inputs)
    assert json.loads((inputs / "out.json").read_text()) == {
        "chosen": {"system": "a", "dev_eer": 1.5, "eer": {"dev": 1.25, "eval": 3.25}},
        "eer": {"a": 3.25, "asp-qamo": 0.5, "b": 3.25, "linear-<b>": 9.0},
    }


def test_dev_chooses_no_score_by_an_embedding_index(inputs: Path) -> None:
    out = run(inputs, rescored=["a"])
    summary = json.loads((inputs / "out.json").read_text())
    assert summary["chosen"] == {"system": "linear-<b>", "dev_eer": 1.75, "eer": {"dev": 1.5, "eval": 9.0}}
    assert summary["eer"]["a"] == 3.25
    lines = (out / "leaderboard.txt").read_text().splitlines()
    assert [line.split()[:3] for line in lines[3:7]] == [
        ["1", "asp-qamo", "2"], ["2", "a", "†"], ["3", "b", "1"], ["4", "linear-<b>", "1"],
    ]  # fmt: skip
    assert "† by the embedding index of the trained system, and left out of what dev chooses" in lines
    seen = Page((out / "index.html").read_text())
    assert [row[0] for row in seen.rows if row[0].startswith("a")] == ["asp-qamo", "a†"] * 5
    assert "† is by the embedding index" in seen.text
    assert "†" not in (run(inputs) / "index.html").read_text()
    with pytest.raises(InputError, match="expected at least one trained run, got only scores by an index: "):
        run(inputs, rescored=RUNS)


def test_dev_chooses_no_fusion_and_its_row_is_marked(inputs: Path) -> None:
    out = run(inputs, fused=["a"])
    assert json.loads((inputs / "out.json").read_text())["chosen"]["system"] == "linear-<b>"
    lines = (out / "leaderboard.txt").read_text().splitlines()
    assert lines[4].split()[:3] == ["2", "a", "+"]
    assert "+ fuses the scores of other runs, (dev) out of fold; left out of what dev chooses" in lines
    seen = Page((out / "index.html").read_text())
    assert [row[0] for row in seen.rows if row[0].startswith("a")] == ["asp-qamo", "a+"] * 5
    assert "+ fuses the scores of other runs: its EER on dev is out of fold" in seen.text
    assert "fuses" not in (run(inputs) / "index.html").read_text()


def test_what_dev_chose_is_said_with_those_that_share_its_eer(inputs: Path) -> None:
    out = run(inputs)
    assert "dev chooses a, with 1.50 %" in (out / "leaderboard.txt").read_text().splitlines()
    assert "Dev chooses a, with 1.50 %." in Page((out / "index.html").read_text()).text
    assert "tied" not in json.loads((inputs / "out.json").read_text())["chosen"]
    path = inputs / "metrics" / "b.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dev_eer": 1.5}))
    out = run(inputs)
    assert "dev chooses a, with 1.50 %; the same EER has b" in (out / "leaderboard.txt").read_text().splitlines()
    assert json.loads((inputs / "out.json").read_text())["chosen"]["tied"] == ["b"]


def test_what_trainings_told_is_marked_and_listed(inputs: Path) -> None:
    path = inputs / "metrics" / "asp-qamo-2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"remarks": ["the loss <did> not fall", "at chance"]}))
    out = run(inputs)
    lines = (out / "leaderboard.txt").read_text().splitlines()
    assert next(line.split()[:3] for line in lines if "asp-qamo" in line)[1:] == ["asp-qamo", "!"]
    assert lines[-4:-2] == ["! asp-qamo-2: the loss <did> not fall", "! asp-qamo-2: at chance"]
    told = {row["run"]: row["remarks"] for row in rows_of(out / "runs.csv")}
    assert told == dict.fromkeys(RUNS, "") | {"asp-qamo-2": "the loss <did> not fall; at chance"}
    page = (out / "index.html").read_text()
    assert "<li>asp-qamo-2: the loss &lt;did&gt; not fall</li>" in page
    path.write_text(json.dumps(json.loads(path.read_text()) | {"remarks": [f"remark {i}" for i in range(13)]}))
    assert "! and 3 more, in runs.csv and on the page" in (run(inputs) / "leaderboard.txt").read_text()


def test_what_evaluations_told_is_marked_and_listed(inputs: Path) -> None:
    path = inputs / "metrics" / "a" / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warnings": ["52.0 % of the <spoof>"]}))
    out = run(inputs)
    lines = (out / "leaderboard.txt").read_text().splitlines()
    assert next(line.split()[1:3] for line in lines if line.startswith("2 ")) == ["a", "!"]
    assert lines[-3] == "! a: on eval, 52.0 % of the <spoof>"
    told = {row["run"]: row["remarks"] for row in rows_of(out / "runs.csv")}
    assert told == dict.fromkeys(RUNS, "") | {"a": "on eval, 52.0 % of the <spoof>"}
    assert "<li>a: on eval, 52.0 % of the &lt;spoof&gt;</li>" in (out / "index.html").read_text()


def test_deviations_over_seeds_say_that_the_encoder_has_one(inputs: Path) -> None:
    told = "the encoder was fine-tuned once, with seed 7"
    board = leaderboard_files.gather(
        inputs / "metrics", runs=RUNS, sets=SETS, sort_by="eval", seconds=inputs / "seconds", encoder_seed=7
    )
    assert told in leaderboard_files.to_text(board)
    single = {run: run for run in RUNS}
    alone = leaderboard_files.gather(
        inputs / "metrics", runs=single, sets=SETS, sort_by="eval", seconds=inputs / "seconds", encoder_seed=7
    )
    assert "the encoder was" not in leaderboard_files.to_text(alone)
    assert "the encoder was" not in leaderboard_files.to_text(gathered(inputs, RUNS, SETS, "eval"))


def test_the_run_that_the_encoder_was_fine_tuned_with_is_marked_and_may_be_chosen(inputs: Path) -> None:
    out = run(inputs, finetuned=["a"])
    assert json.loads((inputs / "out.json").read_text())["chosen"]["system"] == "a"
    lines = (out / "leaderboard.txt").read_text().splitlines()
    assert [line.split()[:3] for line in lines[4:6]] == [["2", "a", "‡"], ["3", "b", "1"]]
    assert "‡ trained with the encoder, whose parameters it counts; all others read its features" in lines
    seen = Page((out / "index.html").read_text())
    assert [row[0] for row in seen.rows if row[0].startswith("a")] == ["asp-qamo", "a‡"] * 5
    assert "‡ was trained with the encoder, whose parameters it counts" in seen.text
    assert rows_of(out / "leaderboard.csv")[1]["system"] == "a"
    assert "‡" not in (run(inputs) / "index.html").read_text() + (inputs / "out/leaderboard.txt").read_text()


def test_the_text_is_aligned_and_marks_the_best(inputs: Path) -> None:
    text = (run(inputs) / "leaderboard.txt").read_text()
    assert [re.sub(" {2,}", "  ", line) for line in text.splitlines()] == [
        "EER in percent, sorted by eval: an order to look at, no selection",
        "",
        "  system  runs  (dev)  dev  eval  seconds  parameters",
        "1  asp-qamo  2  7.25 ± 1.41  7.00 ± 1.41 [0.00, 19.71] 2 seeds ~  0.50 ± 0.14 [0.00, 1.79] 2 seeds *  "
        "5.0  1,003",
        "2  a  1  1.50  1.25 [0.95, 1.45] trials only *  3.25 [2.95, 3.45] trials only  -  1,002",
        "3  b  1  2.25  2.00 [1.70, 2.20] trials only  3.25 [2.95, 3.45] trials only  12.3  1,001",
        "4  linear-<b>  1  1.75  1.50 [1.20, 1.70] trials only ~  9.00 [8.70, 9.20] trials only  -  1,000",
        "",
        "* best of its column, ~ within noise of it; [] 95 % interval; ± standard deviation over seeds",
        "(dev): the dev set, as training saw it when it chose its checkpoints; seconds: of training a run",
        "dev chooses a, with 1.50 %",
        "trials only: one seed; the interval says nothing about other seeds",
        "2 seeds: an interval over seeds needs three",
        "dev: 1234 bona fide, 6 spoof",
        "eval: 1234 bona fide, 6 spoof",
    ]
    table = text.splitlines()[2:7]
    assert {line.index("7.00") if "7.00" in line else None for line in table} == {table[0].index("dev  ") + 1, None}
    assert len({len(line) for line in table}) == 1


def test_noise_is_told_by_both_standard_errors(inputs: Path) -> None:
    board = gathered(inputs, RUNS, SETS, "dev")
    assert [board.mark(system, "dev") for system in board.systems] == ["*", "~", "", "~"]
    assert board.systems == ("a", "linear-<b>", "b", "asp-qamo")
    # both intervals are 0.5 wide, so a difference of 0.25 * sqrt 2 = 0.3536 is the least that counts
    for difference, mark in ((0.353, "~"), (0.354, "")):
        (inputs / "metrics/b/dev.json").write_text(json.dumps(metrics(1.25 + difference)))
        assert gathered(inputs, RUNS, SETS, "dev").mark("b", "dev") == mark


def test_without_intervals_and_seeds_nothing_is_called_noise(inputs: Path) -> None:
    for path in (inputs / "metrics").glob("*/dev.json"):
        found = json.loads(path.read_text())
        del found["eer_interval"]
        path.write_text(json.dumps(found))
    board = gathered(inputs, RUNS, SETS, "dev")
    assert [board.mark(system, "dev") for system in board.systems] == ["*", "", "", ""]
    assert board.eer("a", "dev").interval is None
    assert board.eer("asp-qamo", "dev").interval is None
    assert board.eer("asp-qamo", "dev").deviation == pytest.approx(2**0.5)


def test_an_interval_ends_where_eers_end_but_noise_does_not() -> None:
    found = leaderboard.over_seeds([0.1, 0.2, 2.4], [(0.0, 1.0)] * 3)
    deviation = (((0.1 - 0.9) ** 2 + (0.2 - 0.9) ** 2 + (2.4 - 0.9) ** 2) / 2) ** 0.5
    half = (0.5**2 + (4.303 * deviation) ** 2 / 3) ** 0.5
    assert (found.mean, found.half) == (pytest.approx(0.9), pytest.approx(half))
    assert found.interval == (0.0, pytest.approx(0.9 + half))
    assert leaderboard.over_seeds([99.0, 100.0], [(98.0, 99.5)] * 2).interval[1] == 100.0


def test_of_three_seeds_an_interval_has_no_caveat(inputs: Path) -> None:
    assert gathered(inputs, RUNS, SETS, "eval").caveats == {"trials only", "2 seeds"}
    of_three = gathered(inputs, dict.fromkeys(list(RUNS)[:3], "three"), SETS, "eval")
    assert of_three.eer("three", "eval").interval is not None
    assert of_three.caveats == frozenset()


def test_student_quantiles_are_those_of_the_distribution() -> None:
    exact = stats.t.ppf(0.975, np.arange(1, len(leaderboard.T_QUANTILES) + 1))
    np.testing.assert_allclose(leaderboard.T_QUANTILES, exact, rtol=0, atol=6e-4)


def test_the_page_shows_every_value_and_marks_the_best(inputs: Path) -> None:
    seen = Page((run(inputs) / "index.html").read_text())
    assert seen.rows[0] == [
        "System",
        "eval1,234 bona fide6 spoof",
        "dev1,234 bona fide6 spoof",
        "(dev)chose thecheckpoints",
        "Runsseeds",
        "Secondsof training",
        "Parameters",
    ]
    assert [row[0] for row in seen.rows[1:5]] == ORDER
    assert [" ".join(cell.split()) for cell in seen.rows[1]] == [
        "asp-qamo", "0.50± 0.140.00 to 1.79, 2 seeds", "7.00 ± 1.41~0.00 to 19.71, 2 seeds", "7.25 ± 1.41", "2",
        "5.0", "1,003",
    ]  # fmt: skip
    assert [" ".join(cell.split()) for cell in seen.rows[4]] == [
        "linear-<b>", "9.008.70 to 9.20, trials only", "1.50~1.20 to 1.70, trials only", "1.75", "1", "-", "1,000",
    ]  # fmt: skip
    assert seen.rows[5] == ["System", "A<1>4", "A22"]
    means = {"asp-qamo": 0.5} | {name: EERS[name][1] for name in ORDER[1:]}
    assert seen.rows[6:10] == [[name, f"{means[name] / 2:.2f}", f"{means[name] * 2:.2f}"] for name in ORDER]
    assert seen.best == ["0.50", "1.25", "0.25", "1.00", "0.62", "2.50"]
    assert [row[3] for row in seen.rows[1:5]] == ["7.25 ± 1.41", "1.50chosen by dev", "2.25", "1.75"]
    assert NOTE in seen.text
    assert "Charts show one run of a system, of its lowest dev EER." in seen.text


def test_charts_show_the_run_that_dev_selected_of_as_many_systems_as_look_different(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = gathered(inputs, RUNS, SETS, "eval")
    assert board.selected("asp-qamo") == "asp-qamo-1"
    monkeypatch.setattr(page, "COLOURS", 1)
    assert page.charted(board) == ("asp-qamo", "a", "b")
    html = (run(inputs) / "index.html").read_text()
    assert html.count("<details") == 3
    assert "and the best 3 systems." in html
    assert html.count("<tr data-row=") == 5 * len(ORDER)


def test_the_page_draws_every_system_on_every_set(inputs: Path) -> None:
    html = (run(inputs) / "index.html").read_text()
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    assert [figure.count("<polyline") for figure in figures] == [4, 4, 4, 4, 4, 4] + [3] * len(ORDER) * len(SETS)
    assert [figure.count("<circle") for figure in figures[:4]] == [4] * 4
    assert html.count("<details") == len(ORDER)
    assert "nan" not in re.sub(r"<(style|script)>.*?</", "", html, flags=re.DOTALL)


def test_the_page_needs_nothing_from_elsewhere(inputs: Path) -> None:
    whole(inputs)
    html = (run(inputs, shown=SHOWN) / "index.html").read_text()
    seen = Page(html)
    beside = {path.name for path in (inputs / "out").iterdir()}
    targets = [reference.removeprefix("href=") for reference in seen.references]
    assert {name for name in targets if not name.startswith("#")} == {"leaderboard.csv", "metrics.csv", "runs.csv"}
    assert {name for name in targets if not name.startswith("#")} < beside
    assert all(f'id="{name[1:]}"' in html for name in targets if name.startswith("#"))
    assert not {"link", "iframe", "object", "img", "base"} & seen.tags
    assert "default-src 'none'" in html
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_names_and_notes_are_escaped(inputs: Path) -> None:
    html = (run(inputs) / "index.html").read_text()
    assert "linear-<b>" not in html
    assert "linear-&lt;b&gt;" in html
    assert "A<1>" not in html
    assert "Generated &amp; &lt;claims nothing&gt;" in html


def test_no_note_no_banner(inputs: Path) -> None:
    board = gathered(inputs, {"a": "a"}, ["dev"], "dev")
    shown = page.Curves(
        dets={("a", "dev"): curves.read_det(inputs / "plots/a/det/dev.csv")},
        histograms={("a", "dev"): curves.read_histogram(inputs / "plots/a/histogram/dev.csv")},
        trainings={"a": curves.read_training(inputs / "curves/a.csv")},
    )
    assert 'role="note"' not in page.render(board, shown)
    assert 'role="note"' in page.render(board, shown, note="mind the gap")


def whole(inputs: Path, *, layers: str = LAYERS) -> None:
    """Add the layer probe, and the analysis of two runs."""
    (inputs / "layers").mkdir()
    (inputs / "layers/layers.csv").write_text(layers)
    (inputs / "layers/chosen.json").write_text('{"chosen": [2, "final"]}')
    for name in SHOWN:
        analysed.write(inputs / "analysis", name)


def test_a_run_that_was_not_trained_is_left_out_of_the_training_curves(inputs: Path) -> None:
    (inputs / "curves/a.csv").unlink()
    html = (run(inputs) / "index.html").read_text()
    training = html[html.index('<h2 id="training">') : html.index('<h2 id="scores">')]
    titles = [re.findall(r"<title>(.*?)</title>", figure) for figure in training.split("<figure>")[1:]]
    assert [names[:3] for names in titles] == [["asp-qamo", "b", "linear-&lt;b&gt;"]] * 4
    assert re.findall(r'polyline class="(c\d)', training) == ["c0", "c2", "c3"] * 4  # each keeps its colour
    captions = ["loss in training", "loss on dev", "EER of a sample of the training set", "EER on dev"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", training) == captions
    for path in (inputs / "curves").iterdir():
        path.unlink()
    assert '<h2 id="training">' not in (run(inputs) / "index.html").read_text()


def test_what_no_training_measured_has_no_chart(inputs: Path) -> None:
    for path in (inputs / "curves").iterdir():
        path.write_text("epoch,loss,dev_loss,train_eer,dev_eer\n1,0.9,nan,nan,20.5\n2,0.5,nan,nan,9.5\n")
    html = (run(inputs) / "index.html").read_text()
    training = html[html.index('<h2 id="training">') : html.index('<h2 id="scores">')]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", training) == ["loss in training", "EER on dev"]


def test_the_atlas_is_a_heat_map_for_each_encoder_and_method(inputs: Path) -> None:
    header = "encoder,layer,method,trained,tested,view,eer\n"
    (inputs / "layers").mkdir()
    whole_file = header + "ab,1,logistic,all but w,w,clean,60\nab,2,logistic,all but w,w,clean,12.5\n"
    (inputs / "layers/atlas.csv").write_text(whole_file + "ab,1,centroid,a,w,mp3_32,30\n")
    html = (run(inputs) / "index.html").read_text()
    shown = html[html.index('<h2 id="atlas">') : html.index('<h2 id="training">')]
    assert shown.count("<details") == 2
    assert '<td class="h50" title="layer 1, all but w on w">60.00</td>' in shown
    assert '<td class="h12" title="layer 2, all but w on w"><strong>12.50</strong></td>' in shown
    assert '<th class="word" scope="row">w, mp3_32</th>' in shown
    (inputs / "layers/atlas.csv").write_text(header)
    assert 'id="atlas"' not in (run(inputs) / "index.html").read_text()
    (inputs / "layers/atlas.csv").write_text(header + "ab,1,logistic,a,w,clean,101\n")
    with pytest.raises(InputError, match=r"atlas\.csv:2: expected an EER in percent, got '101'"):
        run(inputs)


def test_the_layer_curve_shows_every_set_and_method_and_the_chosen_layers(inputs: Path) -> None:
    assert '<h2 id="layers">' not in (run(inputs) / "index.html").read_text()
    whole(inputs)
    curve = layer_curve.read(inputs / "layers")
    assert curve is not None
    assert curve.layers == ["2", "10", "final"]
    chart = layer_curve.chart(curve)
    assert [(line.name, line.style) for line in chart.lines] == [
        ("dev, logistic", "c0 d0"), ("eval, logistic", "c1 d0"), ("dev, centroid", "c0 d2"),
    ]  # fmt: skip
    assert chart.lines[0].points.tolist() == [[0, 5.5], [1, 4.0], [2, 3.25]]
    assert chart.lines[2].points.tolist() == [[0, 20.0]]
    assert [(ring.x, ring.y, ring.text) for ring in chart.rings] == [(0, 5.5, "1"), (2, 3.25, "2")]
    assert [text for _, text in chart.x.ticks] == ["2", "10", "fin."]
    html = (run(inputs) / "index.html").read_text()
    layers = html[html.index('<h2 id="layers">') : html.index('<h2 id="training">')]
    assert layers.count("<polyline") == 3
    assert layers.count('class="ring"') == 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            "layer,method,eer\n",
            r"layers\.csv:1: expected the columns layer,method,set,eer, missing set; run `dvc repro",
        ),
        ("layer,method,set,eer\n", r"layers\.csv: expected at least one row"),
        ("layer,method,set,eer\n1,logistic,dev,x\n", r"layers\.csv:2: expected an EER in percent, got 'x'"),
        ("layer,method,set,eer\n1,logistic,dev,101\n", r"layers\.csv:2: expected an EER in percent, got '101'"),
        ("layer,method,set,eer\n1,logistic,dev\n", r"layers\.csv:2: expected an EER in percent, got None"),
        ("layer,method,set,eer\n2,logistic,dev,1\n", r"expected the EER on dev by logistic of layer final, got none"),
    ],
)
def test_another_file_than_the_probes_is_named(inputs: Path, layers: str, message: str) -> None:
    whole(inputs, layers=layers)
    with pytest.raises(InputError, match=message):
        run(inputs)


def test_analysed_runs_are_shown_the_best_system_first(inputs: Path) -> None:
    whole(inputs)
    (inputs / "analysis/.gitkeep").touch()
    html = (run(inputs, shown=SHOWN) / "index.html").read_text()
    assert re.findall(r'<section data-run="(.*?)"', html) == ["asp-qamo-2", "b"]
    assert html.count('id="map-index"') == 1
    index = json.loads(re.search(r'id="map-index">(.*?)</script>', html).group(1))  # type: ignore[union-attr]
    out = (inputs / "out").resolve()
    assert (out / index["root"]).resolve() == Path.cwd()
    assert analysed.HOSTILE not in html
    assert "A<b>" not in html


def test_runs_that_are_no_longer_analysed_are_not_shown(inputs: Path) -> None:
    whole(inputs)
    html = (run(inputs, shown=["b"]) / "index.html").read_text()
    assert re.findall(r'<section data-run="(.*?)"', html) == ["b"]
    assert "<section" not in (run(inputs) / "index.html").read_text()


def test_an_analysis_that_is_not_there_is_named(inputs: Path) -> None:
    whole(inputs)
    with pytest.raises(InputError, match=r"analysis/a/analysis\.json: no such file; run `dvc repro -f flow/analyse"):
        run(inputs, shown=["a", "b"])
    assert not (inputs / "out").exists()


def test_the_panels_show_the_numbers_of_the_analysis(inputs: Path) -> None:
    whole(inputs)
    html = (run(inputs, shown=SHOWN) / "index.html").read_text()
    seen = Page(html[html.index('<section data-run="b"') : html.rindex("</section>") + len("</section>")]).rows
    rows = {row[0]: row[1:] for row in seen}
    facts = analysed.analysis("b")
    assert seen[1][1:] == [f"{value:.2f}" for value in facts["similarity"][0]]
    assert rows["Silhouetteby class: 1 apart, 0 overlapping, below 0 mixed"] == ["0.000", "0.125", "0.250"]
    base = rows["Base rateof the purity: the share of the larger class, without any centroid"]
    sizes = [sum(facts["assignments"]["train"]["class"][name]) for name in ("bonafide", "spoof")]
    assert base == [f"{max(sizes) / sum(sizes):.3f}"] * 3
    assert rows["Ratioof that distance to the one on train"] == ["1.00", "2.00", "-"]
    assert rows["of the spoof"] == ["-", "-", "-"]
    assert rows["Effective dimensionnumber of directions that share the variance"] == ["3.2", "4.2", "5.2"]
    hard = rows["dev_hard_1"]
    assert hard[:3] == ["bonafide", "-", "-0.500"]
    assert "u12" in hard[3]
    assert "spoof, A01, 0.100" in hard[3]
    counts = facts["assignments"]["train"]["class"]["bonafide"]
    widths = re.findall(r'<rect class="c(\d)" x="(\d+)" width="(\d+)"', html)[:2]
    assert widths == [("0", "0", str(counts[0])), ("1", str(counts[0]), str(counts[1]))]


def test_the_same_inputs_give_the_same_bytes_in_any_order_of_runs(inputs: Path) -> None:
    whole(inputs)
    first = run(inputs, shown=SHOWN)
    again = run(inputs, runs=dict(list(RUNS.items())[::-1]), out="again", shown=SHOWN[::-1])
    for name in ("leaderboard.csv", "leaderboard.txt", "index.html"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_sorting_by_another_set(inputs: Path) -> None:
    rows = rows_of(run(inputs, sort_by="dev") / "leaderboard.csv")
    assert [row["system"] for row in rows] == ["a", "linear-<b>", "b", "asp-qamo"]


def test_missing_metrics_name_the_command_that_makes_them(inputs: Path) -> None:
    (inputs / "metrics/a/eval.json").unlink()
    with pytest.raises(
        InputError, match=r"(?s)1 of 15 files of metrics.*a/eval\.json: no metrics there; run `dvc repro flow/eval"
    ):
        run(inputs)
    assert not (inputs / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"eer": "x"}', json.dumps(metrics(float("nan")))])
def test_malformed_metrics_are_named(inputs: Path, text: str) -> None:
    (inputs / "metrics/a/eval.json").write_text(text)
    with pytest.raises(InputError, match=r"a/eval\.json: expected .*run `dvc repro -f flow/evaluate/dvc.yaml`"):
        run(inputs)


def test_runs_on_different_trials_are_not_compared(inputs: Path) -> None:
    (inputs / "metrics/a/eval.json").write_text(json.dumps(metrics(1.0, spoof=7)))
    with pytest.raises(InputError, match=r"a/eval\.json and .*/eval\.json count different trials"):
        run(inputs)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("plots/a/det/eval.csv", None, r"det/eval\.csv: no such file; run `dvc repro flow/evaluate/dvc.yaml`"),
        (
            "plots/a/det/eval.csv",
            "far,frr\n0,1\n",
            r"eval\.csv:1: expected the columns .* missing threshold; run `dvc ",
        ),
        (
            "plots/a/histogram/dev.csv",
            "score,bonafide,spoof\n0,1,x\n",
            r"dev\.csv:2: expected a number, got 'x'",
        ),
        (
            "curves/a.csv",
            "epoch,loss,dev_loss,train_eer,dev_eer\n",
            r"a\.csv: expected at least one row; run `dvc repro -f train`",
        ),
    ],
)
def test_missing_or_malformed_curves_are_named(inputs: Path, path: str, text: str | None, message: str) -> None:
    (inputs / path).unlink()
    if text is not None:
        (inputs / path).write_text(text)
    with pytest.raises(InputError, match=message):
        run(inputs)


@pytest.mark.parametrize(
    ("runs", "sets", "sort_by", "message"),
    [
        ([], ["dev"], "dev", "at least one run, got none"),
        (["a"], [], "dev", "at least one set, got none"),
        (["a", "b"], ["dev", "dev"], "dev", "every set once, got dev twice"),
        (["a"], ["dev"], "eval", "expected to sort by one of the sets dev, got eval"),
    ],
)
def test_names_that_make_no_table(inputs: Path, runs: list[str], sets: list[str], sort_by: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gathered(inputs, {run: run for run in runs}, sets, sort_by)


@pytest.mark.parametrize(
    ("values", "ends", "texts"),
    [
        ([0.0, 10.0], (0.0, 10.0), ["0", "2", "4", "6", "8", "10"]),
        ([0.31, 0.99], (0.2, 1.0), ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([-3.0, 4.0], (-4.0, 4.0), ["−4", "−2", "0", "2", "4"]),
        ([5.0, 5.0], (5.0, 10.0), ["5", "6", "7", "8", "9", "10"]),
        ([], (0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([float("nan"), 0.0, 1.0], (0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_axes_have_round_ticks(values: list[float], ends: tuple[float, float], texts: list[str]) -> None:
    axis = charts.linear_axis("x", np.array(values))
    assert (axis.low, axis.high) == pytest.approx(ends)
    assert [text for _, text in axis.ticks] == texts
    assert axis.ticks[0][0] == pytest.approx(axis.low)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 0.000015], ["0", "5e−6", "1.0e−5", "1.5e−5"]),
        ([-2e-5, 2e-5], ["−2e−5", "−1e−5", "0", "1e−5", "2e−5"]),
        ([0.0, 4e6], ["0", "1e6", "2e6", "3e6", "4e6"]),
        ([1e300, 1e300], ["1.0e300", "1.2e300", "1.4e300", "1.6e300", "1.8e300", "2.0e300"]),
    ],
)
def test_small_and_large_ticks_have_powers_of_ten(values: list[float], texts: list[str]) -> None:
    assert [text for _, text in charts.linear_axis("x", np.array(values)).ticks] == texts


@pytest.mark.parametrize(
    "values", [[5e-324, 1e-323], [-1e308, 1e308], [1.0, 1.0 + 1e-16], [1e-9, 1.0], [1e16, 1e16 + 64]]
)
def test_axes_of_any_numbers_have_ticks_that_differ(values: list[float]) -> None:
    axis = charts.linear_axis("x", np.array(values))
    assert axis.high > axis.low
    texts = [text for _, text in axis.ticks]
    assert len(set(texts)) == len(texts) >= 2


def test_margins_hold_the_ticks() -> None:
    x = charts.linear_axis("x", np.array([0.0, 1.0]))
    for values, least in (([0.0, 5.0], 46), ([100_000.0, 100_001.0], 24 + 8 * 6)):
        chart = charts.Chart("c", (330, 190), x, charts.linear_axis("y", np.array(values)), ())
        assert chart.left >= least
        assert chart.left >= 24 + 6 * max(len(text) for _, text in chart.y.ticks)
        assert chart.right >= 3 * len(x.ticks[-1][1])


def test_epochs_are_whole_and_values_may_end_between_ticks() -> None:
    assert [text for _, text in charts.linear_axis("epoch", np.array([1.0, 2.0]), whole=True).ticks] == ["1", "2"]
    axis = charts.linear_axis("score", np.array([-0.5, 2.5]), snap=False)
    assert (axis.low, axis.high) == (-0.5, 2.5)
    assert [text for _, text in axis.ticks] == ["0", "1", "2"]


def test_a_chart_places_values_in_pixels_with_the_origin_below() -> None:
    axis = charts.Axis("x", 0.0, 10.0, ())
    chart = charts.Chart("c", (200, 100), axis, axis, ())
    line = charts.Line("l", "c0", np.array([[0.0, 0.0], [5.0, 10.0], [10.0, 99.0]]))
    assert chart.path(line) == "0,100 100,0 200,-20"


def test_the_det_range_follows_what_is_shown() -> None:
    separate, mixed = det_points([2.0] * 10, [0.0] * 10), det_points(range(5000), range(5000))
    assert curves.det_limits([separate], [0.0]) == (0.05, 0.4)
    assert curves.det_limits([separate, mixed], [0.0, 0.5]) == (0.0001, 0.6)
    assert curves.det_limits([separate], [1.0]) == (0.05, 0.99)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no metrics there"), ("{}", "KeyError"), ('{"dev_eer": NaN}', "nan")]
)
def test_missing_or_malformed_metrics_of_training_are_named(inputs: Path, text: str | None, message: str) -> None:
    path = inputs / "metrics" / "b.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        run(inputs)
    assert str(path) in str(error.value)
    assert "dvc repro" in str(error.value)
