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
