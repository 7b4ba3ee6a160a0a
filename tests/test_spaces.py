"""What is written of an analysis: JSON, tables, and pictures that say what they show."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.report import analysis_files, analysis_pictures


def report(*, k: int = 2, path: bool = True, groups: int = 1, distance: str = "cosine") -> dict[str, Any]:
    def own(n: int) -> dict[str, Any]:
        return {"n": n, "mean": 0.5, "quantiles": [0.1, 0.2, 0.4, 0.6, 1.5]}

    dimension = {"all": 3.25, "bonafide": 2.0, "spoof": None}
    neighbours = [{"utterance": f"t{i}", "label": "spoof", "attack": "A01", "distance": 0.1 * i} for i in range(2)]
    return {
        "run": "linear_$run$",
        "centroids": k,
        "embedding_dim": 64,
        "distance": distance,
        "train": "train",
        "sets": ["train", "dev"],
        "similarity": [[1.0 if i == j else 0.25 for j in range(k)] for i in range(k)],
        "assignments": {"train": {"class": {"bonafide": [5, 1], "spoof": [0, 4]}}, "dev": {"class": {"spoof": [1, 2]}}},
        "distances": {
            "train": {"bonafide": own(1234), "A01": own(4)},
            "dev": {"bonafide": own(3)} | {f"A{i:02}": own(100 + i) for i in range(groups)},
        },
        "path": {"epochs": [1, 2], "moved": [[None] * k, [0.5] * k], "to_last": [[0.5] * k, [0.0] * k]}
        if path
        else None,
        "geometry": {
            name: {"purity": 0.9, "silhouette": None, "within": 0.5, "between": 0.25, "effective_dimension": dimension}
            for name in ("train", "dev")
        },
        "shift": {
            name: {"bonafide_to_train": 0.0, "bonafide_distance": 0.5, "ratio": ratio, "auc": 0.5}
            | {"median_percentile": median, "beyond_95": beyond}
            | {"median_mahalanobis": median, "beyond_95_mahalanobis": None}
            for name, ratio, median, beyond in (("train", 1.0, None, None), ("dev", 1.5, 87.5, 40.0))
        },
        "hardest": [
            {
                "set": "dev",
                "utterance": f"d{i}",
                "label": label,
                "attack": "A02",
                "score": score,
                "neighbours": neighbours,
            }
            for i, (label, score) in enumerate([("bonafide", -1.5), ("spoof", 0.875), ("spoof", 0.25)])
        ],
    }


def chart(*, attacks: int = 2, centroids: list[list[int]] | None = None, mos: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    names = ["bonafide", *(f"A{i:02}" for i in range(attacks))]
    codes = [i % len(names) for i in range(60)]
    x, y = rng.integers(0, 4096, size=(2, 60)).tolist()
    projections = [{"name": name, "note": "a note", "x": x, "y": y, "centroids": None} for name in ("PCA", "t-SNE")]
    projections[0]["centroids"] = centroids
    return {
        "run": "r",
        "points": 60,
        "bits": 12,
        "projections": projections,
        "categories": {
            "class": {"names": ["bonafide", "spoof"], "codes": [int(code > 0) for code in codes]},
            "attack": {"names": names, "codes": codes},
            "centroid": {"names": ["0"] if centroids is None else ["0", "1"], "codes": [0] * 60},
            "quality level": {"names": ["0", "1", "-"], "codes": [i % 3 for i in range(60)]},
        },
        "numbers": ({"MOS": [None, *np.linspace(1, 5, 59).tolist()]} if mos else {}) | {"score": [0.5] * 60},
    }


def words(path: Path) -> list[str]:
    """All text of an SVG file, in order."""
    tree = ElementTree.fromstring(path.read_text())  # noqa: S314  # our own file
    return ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(analysis_pictures, "save", lambda figure, _: kept.append(figure))
    return kept


# ---------------------------------------------------------------- files


def test_a_folder_holds_json_tables_and_pictures(tmp_path: Path) -> None:
    analysis_files.write(tmp_path, report(), chart())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "analysis.json",
        "assignments.csv",
        "distances.csv",
        "distances.png",
        "geometry.csv",
        "hardest.csv",
        "map.json",
        "path.csv",
        "path.png",
        "pca.png",
        "shift.csv",
        "similarity.png",
        "tsne.png",
    ]
    assert json.loads((tmp_path / "analysis.json").read_text()) == report()
    assert json.loads((tmp_path / "map.json").read_text()) == chart()
    assert ", " not in (tmp_path / "map.json").read_text()


def test_what_there_is_not_is_not_drawn(tmp_path: Path) -> None:
    analysis_files.write(tmp_path, report(k=1, path=False), chart())
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["distances.png", "pca.png", "tsne.png"]
    assert (tmp_path / "path.csv").read_text() == "epoch,centroid,moved,to_last\n"


def test_the_same_analysis_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        analysis_files.write(tmp_path / name, report(), chart(centroids=[[9, 9], [4000, 100]]))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("drawn")
def test_tables_hold_what_the_report_holds(tmp_path: Path) -> None:
    analysis_files.write(tmp_path, report(), chart())
    rows = {path.stem: list(csv.reader(path.read_text().splitlines())) for path in tmp_path.glob("*.csv")}
    assert rows["assignments"] == [
        ["set", "kind", "group", "centroid", "count"],
        ["train", "class", "bonafide", "0", "5"],
        ["train", "class", "bonafide", "1", "1"],
        ["train", "class", "spoof", "0", "0"],
        ["train", "class", "spoof", "1", "4"],
        ["dev", "class", "spoof", "0", "1"],
        ["dev", "class", "spoof", "1", "2"],
    ]
    assert rows["distances"][:2] == [
        ["set", "group", "n", "mean", "q05", "q25", "q50", "q75", "q95"],
        ["train", "bonafide", "1234", "0.5", "0.1", "0.2", "0.4", "0.6", "1.5"],
    ]
    assert rows["path"] == [
        ["epoch", "centroid", "moved", "to_last"],
        ["1", "0", "", "0.5"],
        ["1", "1", "", "0.5"],
        ["2", "0", "0.5", "0.0"],
        ["2", "1", "0.5", "0.0"],
    ]
    dimensions = ["effective_dimension_all", "effective_dimension_bonafide", "effective_dimension_spoof"]
    assert rows["geometry"][0] == ["set", "purity", "silhouette", "within", "between", *dimensions]
    assert rows["geometry"][2] == ["dev", "0.9", "", "0.5", "0.25", "3.25", "2.0", ""]
    assert rows["shift"] == [
        [
            "set",
            "bonafide_to_train",
            "bonafide_distance",
            "ratio",
            "auc",
            "median_percentile",
            "beyond_95",
            "median_mahalanobis",
            "beyond_95_mahalanobis",
        ],
        ["train", "0.0", "0.5", "1.0", "0.5", "", "", "", ""],
        ["dev", "0.0", "0.5", "1.5", "0.5", "87.5", "40.0", "87.5", ""],
    ]
    neighbour = ["neighbour_utterance", "neighbour_label", "neighbour_attack", "distance"]
    assert rows["hardest"][0] == ["set", "utterance", "label", "attack", "score", "rank", *neighbour]
    assert rows["hardest"][2] == ["dev", "d0", "bonafide", "A02", "-1.5", "2", "t1", "spoof", "A01", "0.1"]
    assert len(rows["hardest"]) == 1 + 3 * 2


def test_the_summary_tells_what_is_essential() -> None:
    assert analysis_files.summary(report()).splitlines() == [
        "linear_$run$: 2 centroids, embeddings of width 64; cosines between centroids 0.25 to 0.25",
        "train: silhouette of the classes unknown, purity 0.90, effective dimension 3.25, bona fide 1.00 times as far "
        "from the centroids as in train",
        "dev: silhouette of the classes unknown, purity 0.90, effective dimension 3.25, bona fide 1.50 times as far "
        "from the centroids as in train",
        "dev: the spoof d1 (A02) scores 0.875",
    ]
    assert analysis_files.summary(report(k=1)).splitlines()[0] == "linear_$run$: 1 centroid, embeddings of width 64"


# ---------------------------------------------------------------- pictures


def test_a_projection_has_a_panel_for_each_thing_that_is_known(drawn: list[Figure]) -> None:
    analysis_pictures.draw_projection(Path("x"), chart(centroids=[[9, 9], [4000, 100]]), 0)
    analysis_pictures.draw_projection(Path("x"), chart(mos=False), 1)
    titles = [[axes.get_title() for axes in figure.axes] for figure in drawn]
    assert titles == [["class", "attack", "centroid", "quality level", "MOS"], ["class", "attack", "quality level"]]
    crosses = [line for line in drawn[0].axes[0].lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[9, 9], [4000, 100]]]
    assert not [line for line in drawn[1].axes[0].lines if line.get_marker() == "x"]
    assert drawn[1].get_suptitle() == "r: t-SNE of 60 trials, a note"


def test_points_have_the_colour_of_their_name(drawn: list[Figure]) -> None:
    given = chart()
    analysis_pictures.draw_projection(Path("x"), given, 0)
    axes = drawn[0].axes[0]
    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    named = dict(zip(labels, (line.get_color() for line in legend.get_lines()), strict=True))
    assert named == {"bona fide": analysis_pictures.BONAFIDE_COLOUR, "spoof": analysis_pictures.SPOOF_COLOUR}
    points = axes.collections[0]
    place = dict(zip(map(tuple, points.get_offsets().tolist()), points.get_facecolors().tolist(), strict=True))
    wide = [tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)) for colour in named.values()]
    own = given["projections"][0]
    for x, y, code in zip(own["x"], own["y"], given["categories"]["class"]["codes"], strict=True):
        assert place[x, y][:3] == pytest.approx(wide[code])


def test_many_attacks_share_the_colour_of_the_rest(drawn: list[Figure]) -> None:
    analysis_pictures.draw_projection(Path("x"), chart(attacks=9), 0)
    analysis_pictures.draw_projection(Path("x"), chart(attacks=30), 0)
    few, many = ([text.get_text() for text in figure.axes[1].get_legend().get_texts()] for figure in drawn)
    assert few == ["bona fide", *(f"A{i:02}" for i in range(9))]
    assert many == ["bona fide", *(f"A{i:02}" for i in range(8)), "22 others"]


def test_quality_levels_are_named_and_the_unknown_pale(drawn: list[Figure]) -> None:
    analysis_pictures.draw_projection(Path("x"), chart(), 0)
    legend = drawn[0].axes[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "unknown"]
    assert legend.get_lines()[2].get_color() == analysis_pictures.PALE_COLOUR


def test_points_without_a_number_are_pale(drawn: list[Figure]) -> None:
    analysis_pictures.draw_projection(Path("x"), chart(), 0)
    pale, known = drawn[0].axes[3].collections
    assert len(pale.get_offsets()) == 1
    assert known.get_array().tolist() == pytest.approx(np.linspace(1, 5, 59))


def test_boxes_are_the_quantiles(drawn: list[Figure]) -> None:
    analysis_pictures.draw_distances(Path("x"), report())
    train, dev = drawn[0].axes
    assert [label.get_text() for label in train.get_yticklabels()] == ["bona fide  1,234", "A01  4"]
    assert sorted(set(train.patches[0].get_path().vertices[:4, 0])) == [0.2, 0.6]
    ends = {x for line in train.lines for x in line.get_xdata()}
    assert ends == {0.1, 0.2, 0.4, 0.5, 0.6, 1.5}
    assert (train.get_title(loc="left"), dev.get_title(loc="left")) == ("train", "dev")
    assert dev.get_xlabel() == "cosine distance to the nearest centroid"
    analysis_pictures.draw_distances(Path("x"), report(distance="euclidean"))
    assert drawn[1].axes[1].get_xlabel() == "Euclidean distance to the centroid"


def test_of_many_groups_the_largest_are_drawn(drawn: list[Figure]) -> None:
    analysis_pictures.draw_distances(Path("x"), report(groups=40))
    dev = drawn[0].axes[1]
    labels = [label.get_text() for label in dev.get_yticklabels()]
    assert labels == ["bona fide  3", *(f"A{i:02}  {100 + i}" for i in range(17, 40))]
    assert dev.get_title(loc="left") == "dev (24 of 41 groups)"


def test_the_path_is_a_line_a_centroid(drawn: list[Figure]) -> None:
    analysis_pictures.draw_path(Path("x"), report())
    moved, to_last = drawn[0].axes
    for axes, wanted in ((moved, [np.nan, 0.5]), (to_last, [0.5, np.nan])):  # a scale of logarithms has no 0
        assert len(axes.lines) == 2
        np.testing.assert_equal(np.asarray(axes.lines[0].get_ydata(), float), wanted)
        assert axes.get_yscale() == "log"
    assert [text.get_text() for text in moved.get_legend().get_texts()] == ["centroid 0", "centroid 1"]


def test_a_path_that_never_moves_and_one_of_many_centroids_can_be_drawn(drawn: list[Figure]) -> None:
    still = report(k=11)
    still["path"] = {"epochs": [1], "moved": [[None] * 11], "to_last": [[0.0] * 11]}
    analysis_pictures.draw_path(Path("x"), still)
    assert drawn[0].axes[1].get_yscale() == "linear"
    assert drawn[0].axes[0].get_legend() is None


def test_a_similarity_is_written_into_its_cell_unless_there_are_many(drawn: list[Figure]) -> None:
    for k in (2, 13):
        analysis_pictures.draw_similarity(Path("x"), report(k=k))
    few, many = ([text.get_text() for text in figure.axes[0].texts] for figure in drawn)
    assert few == ["1.00", "0.25", "0.25", "1.00"]
    assert many == []


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    analysis_pictures.draw_distances(tmp_path / "d.svg", report())
    assert "linear_$run$" in words(tmp_path / "d.svg")
