"""`bonafide plot`: its files, and the numbers in them, on made-up scores and on published ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline import commands
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import official_eer
from tests.beside import SCORES, needs

RNG = np.random.default_rng(3)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def systems(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A key of 30 bona fide and 60 spoof with two attacks and two codecs, and two score files."""
    table = trial_table.from_rows(
        [
            Row(
                "t",
                f"u{i}",
                f"{i}.flac",
                "bonafide" if i < 30 else "spoof",
                attack="-" if i < 30 else f"A{i % 2}",
                codec=f"c{i // 3 % 2}",
            )
            for i in range(90)
        ],
        source="t",
    )
    (tmp_path / "key.csv").write_text(trial_table.to_csv(table))
    scores = {}
    for name, gap in (("good", 2.0), ("poor", 0.5)):
        scores[name] = RNG.normal(size=90) + gap * table.is_bonafide
        lines = [f"u{i} {score!r}\n" for i, score in enumerate(scores[name].tolist())]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    return tmp_path, scores


def eer(scores: np.ndarray, bonafide: np.ndarray, spoof: np.ndarray) -> float:
    return 100 * official_eer(det_points(scores[bonafide], scores[spoof])).eer


def test_every_drawing_and_its_numbers(systems: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, scores = systems
    out = folder / "plots"
    files = [str(folder / f"{name}.txt") for name in scores]
    commands.dispatch(
        ["plot", *files, "--key", str(folder / "key.csv"), "--out", str(out), "--threshold", "1", "--threshold", "0.2"]
    )
    stems = ["det", "eer_attacks", "eer_codecs", "histogram/good", "histogram/poor"]
    stems += ["eer_attacks_codecs/good", "eer_attacks_codecs/poor"]
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("csv", "png", "svg")}
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert made == expected | {"transfer.png", "transfer.svg"}

    i = np.arange(90)
    for line in rows(out / "eer_attacks.csv"):
        for attack in (0, 1):
            found = eer(scores[line["system"]], i < 30, (i >= 30) & (i % 2 == attack))
            assert float(line[f"A{attack}"]) == pytest.approx(found, abs=1e-4)
    for line in rows(out / "eer_codecs.csv"):
        for codec in (0, 1):
            of = i // 3 % 2 == codec
            found = eer(scores[line["system"]], of & (i < 30), of & (i >= 30))
            assert float(line[f"c{codec}"]) == pytest.approx(found, abs=1e-4)
    points = [line for line in rows(out / "det.csv") if line["system"] == "poor"]
    assert len(points) == 91
    for line in points[1::10]:
        at = float(line["threshold"])
        assert float(line["frr"]) == pytest.approx((scores["poor"][:30] <= at).mean())
        assert float(line["far"]) == pytest.approx((scores["poor"][30:] > at).mean())


def test_without_thresholds_and_codecs_there_is_nothing_of_them(systems: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = systems
    key = (folder / "key.csv").read_text().replace(",c0,", ",-,").replace(",c1,", ",-,")
    (folder / "key.csv").write_text(key)
    commands.dispatch(
        ["plot", str(folder / "good.txt"), "--key", str(folder / "key.csv"), "--out", str(folder / "plots")]
    )
    made = {path.name for path in (folder / "plots").iterdir()}
    assert not {name for name in made if name.startswith(("transfer", "eer_codecs", "eer_vocoders"))}


def test_names_that_a_table_or_a_formula_would_trip_over(systems: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, scores = systems
    text = (folder / "key.csv").read_text().replace(",A0,", ',"a,b$c{$",')
    (folder / "key.csv").write_text(text)
    (folder / "_x$y{$.txt").write_text((folder / "good.txt").read_text())
    out = folder / "plots"
    commands.dispatch(["plot", str(folder / "_x$y{$.txt"), "--key", str(folder / "key.csv"), "--out", str(out)])
    (line,) = rows(out / "eer_attacks.csv")
    i = np.arange(90)
    assert float(line["a,b$c{$"]) == pytest.approx(eer(scores["good"], i < 30, (i >= 30) & (i % 2 == 0)), abs=1e-4)
    assert "_x$y{$" in (out / "det.svg").read_text()


def test_one_file_twice_is_refused(systems: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = systems
    file = str(folder / "good.txt")
    with pytest.raises(InputError, match="expected different score files"):
        commands.dispatch(["plot", file, file, "--key", str(folder / "key.csv"), "--out", str(folder)])


@needs(SCORES)
def test_published_scores_give_the_published_eers_by_attack(tmp_path: Path) -> None:
    commands.dispatch(["plot", str(SCORES / "la19_eval_amsoftmax.txt"), "--out", str(tmp_path)])
    (line,) = rows(tmp_path / "eer_attacks.csv")
    published = [".22", ".06", ".02", ".63", ".02", ".53", ".27", ".51", ".69", ".51", "13.45", "4.27", ".86"]
    for number, value in enumerate(published, start=7):
        assert float(line[f"A{number:02d}"]) == pytest.approx(float(value), abs=0.005)
