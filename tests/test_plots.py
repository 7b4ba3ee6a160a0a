"""The drawings: what they say, that they are whole files, and that the same data give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.metrics.det import Det, det_points
from pipeline.report import curves, plots

RNG = np.random.default_rng(1)
BONAFIDE, SPOOF = RNG.normal(1.0, 1.0, 60), RNG.normal(-1.0, 1.0, 90)
ATTACK = np.array(["-"] * 60 + ["A01", "A02", "A03"] * 30)


def dets() -> dict[str, Det]:
    return {"good": det_points(BONAFIDE + 1, SPOOF), "poor": det_points(BONAFIDE - 1, SPOOF)}


def shares() -> curves.Histogram:
    scores, is_bonafide = np.concatenate((BONAFIDE, SPOOF)), np.arange(150) < 60
    return curves.histogram(scores, is_bonafide, attack=ATTACK)


def heatmap(path: Path) -> None:
    plots.draw_heatmap(path, rows=["r1", "r2"], columns=["A01", "A02"], percent=np.array([[1.5, np.nan], [2.25, 50]]))


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "det": lambda path: plots.draw_dets(path, dets()),
    "histogram": lambda path: plots.draw_histogram(path, shares(), thresholds={"EER": 0.5, "dev": 0.25}),
    "heatmap": heatmap,
    "transfer": lambda path: plots.draw_transfer(path, dets(), thresholds={"good": 0.5, "poor": 0.25}),
}


def words(path: Path) -> list[str]:
    """All text of an SVG file, in order."""
    tree = ElementTree.fromstring(path.read_text())  # noqa: S314  # our own file
    return ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_data_give_the_same_bytes(tmp_path: Path, name: str, suffix: str) -> None:
    one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    DRAWINGS[name](one)
    DRAWINGS[name](two)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_det_plot_names_every_system_with_its_eer(tmp_path: Path) -> None:
    DRAWINGS["det"](tmp_path / "d.svg")
    said = " ".join(words(tmp_path / "d.svg"))
    for name, bonafide in (("good", BONAFIDE + 1), ("poor", BONAFIDE - 1)):
        gaps = [(abs((bonafide <= t).mean() - (t < SPOOF).mean()), t) for t in np.concatenate((bonafide, SPOOF))]
        at = min(gaps)[1]
        eer = 50 * ((bonafide <= at).mean() + (at < SPOOF).mean())
        assert re.search(rf"{name} +{eer:.2f} %", said), said


def test_a_heatmap_shows_its_numbers_and_leaves_unknown_ones_blank(tmp_path: Path) -> None:
    heatmap(tmp_path / "h.svg")
    said = words(tmp_path / "h.svg")
    assert [word for word in said if re.fullmatch(r"[0-9.]+|nan", word)] == ["1.50", "2.25", "50.00"]
    assert {"r1", "r2", "A01", "A02"} <= set(said)


def test_a_histogram_holds_every_attack(tmp_path: Path) -> None:
    found = shares()
    assert list(found.attacks) == ["A01", "A02", "A03"]
    for share in found.attacks.values():
        assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(sum(found.attacks.values()) / 3, found.spoof)  # 30 trials each
    curves.write_histogram(tmp_path / "h.csv", found)
    header, first = (tmp_path / "h.csv").read_text().splitlines()[:2]
    assert header == "score,bonafide,spoof,spoof/A01,spoof/A02,spoof/A03"
    assert float(first.split(",")[3]) == found.attacks["A01"][0]
    DRAWINGS["histogram"](tmp_path / "h.svg")
    assert {"A01", "A02", "A03", "EER", "dev", "bona fide"} <= set(words(tmp_path / "h.svg"))


def test_a_transfer_plot_marks_both_thresholds_of_each_system(tmp_path: Path) -> None:
    DRAWINGS["transfer"](tmp_path / "t.svg")
    said = words(tmp_path / "t.svg")
    assert {"good", "poor", "own EER", "transferred"} <= set(said)


LONG = "a neural codec language model that differs at its end alone, 声 $x_y$, number {:03d}"


@pytest.mark.parametrize(("name", "count"), [("A{:03d}", 1), ("A{:03d}", 65), (LONG, 33)])
def test_many_and_long_names_are_all_there_and_differ(tmp_path: Path, count: int, name: str) -> None:
    """All warnings are errors here, those of matplotlib too. A legend has 32 in a column, a histogram up to 9 lines."""
    names, rng = [name.format(i) for i in range(count)], np.random.default_rng(2)
    many = {one: curves.thinned(det_points(rng.normal(2, 1, 60), rng.normal(0, 1, 60))) for one in names}
    attack = np.array(["-"] * 60 + names * 6)
    scores = rng.normal(size=len(attack))
    split = curves.histogram(scores, np.arange(len(attack)) < 60, attack=attack)
    percent = np.arange(2.0 * count).reshape(2, count)
    plots.draw_dets(tmp_path / "d.svg", many)
    plots.draw_histogram(tmp_path / "h.svg", split, thresholds={"EER": 0.5})
    plots.draw_heatmap(tmp_path / "m.svg", rows=["r1", "r2"], columns=names, percent=percent)
    panels = names[:7]  # a frame each, three across
    plots.draw_transfer(tmp_path / "t.svg", {one: many[one] for one in panels}, thresholds=dict.fromkeys(panels, 0.5))
    for drawing in "dhmt":
        said = words(tmp_path / f"{drawing}.svg")
        ends = {match[1] for word in said if (match := re.search(r"(?:A|number )(\d{3})(?=$|  )", word))}
        assert ends == {one[-3:] for one in (panels if drawing == "t" else names)}, drawing
    assert {f"{value:.2f}" for value in percent.ravel()} <= set(words(tmp_path / "m.svg"))


def test_names_are_cut_in_the_middle_and_stay_different() -> None:
    assert plots.shortened(["abc", "abcdefghijkl"], longest=9) == ["abc", "abc…hijkl"]
    assert plots.shortened(["abcXXXXhijkl", "abcYYYYhijkl"], longest=9) == ["abcXXXXhijkl", "abcYYYYhijkl"]
    assert plots.shortened(["$1$"]) == [r"\$1\$"]


def test_a_legend_of_many_systems_stands_beside_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: found.update({path.name: figure}))
    for count in (2, 33):
        many = {f"system {i}": det_points(BONAFIDE, SPOOF) for i in range(count)}
        plots.draw_dets(tmp_path / f"{count}", many)
        figure = found[f"{count}"]
        figure.draw_without_rendering()
        frame, legend = figure.axes[0].get_window_extent(), figure.axes[0].get_legend().get_window_extent()
        assert (legend.x0 >= frame.x1) == (count == 33)
        assert legend.x1 <= figure.bbox.x1 + 1
        assert legend.y0 >= figure.bbox.y0
        assert frame.width > 400
