"""Analyses and maps as the page reads them: checked, made into panels, and into data that nothing can break out of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis import geometry, projection
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, from_rows
from pipeline.report.page import embedding_space
from tests import analysed

RUN = "linear-qamo-all-clean-1"
VALUES = st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner))


def made(name: str, *, trials: int = 30) -> geometry.Space:
    """A set as `analyse` opens it: noise around one place for bona fide and one for spoof."""
    rng = np.random.default_rng(len(name))
    rows = [
        Row("trials.csv", f"{name}_{i}", f"{i}.flac", "spoof" if i % 3 else "bonafide", attack="A01" if i % 3 else "-")
        for i in range(trials)
    ]
    table = from_rows(rows, source="trials.csv")
    vectors = (rng.normal(size=(trials, 4)) + np.where(table.is_bonafide, 2, -2)[:, None]).astype(np.float32)
    names = np.full(trials, "demo")
    scores = vectors[:, 0]
    return geometry.Space(table, vectors, scores, np.full(trials, -1), names, np.full(trials, "data/x.flac"))


@pytest.mark.parametrize("normalize", [True, False])
def test_what_analyse_writes_is_what_the_page_reads(tmp_path: Path, normalize: bool) -> None:
    spaces = {name: made(name) for name in ("train", "dev")}
    vectors = np.eye(4, dtype=np.float32)[: 2 if normalize else 1]
    centroids = Centroids(vectors, normalize_query=normalize, bias=0.0, reduce="max")
    course = np.stack([vectors + 0.1 * epoch for epoch in range(3)])
    facts = geometry.analyse(
        RUN, spaces, centroids, over_training=course,
        search=lambda queries, k: (np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)),
    )  # fmt: skip
    points = projection.build_map(RUN, spaces, centroids, count=40, wanted=["pca"])
    analysed.write(tmp_path, RUN, facts=facts, points=points)
    found = embedding_space.read(tmp_path / RUN)
    assert found.run == RUN
    assert found.analysis.model_dump(mode="json") == facts
    assert found.map.model_dump(mode="json") == points
    assert len(found.path_charts) == 2


def read(tmp_path: Path, *, facts: Any = None, points: Any = None) -> embedding_space.AnalysedRun:
    analysed.write(tmp_path, RUN, facts=facts, points=points)
    return embedding_space.read(tmp_path / RUN)


def test_runs_are_gathered_in_the_order_asked_for_and_all_of_them(tmp_path: Path) -> None:
    assert embedding_space.gather(tmp_path / "nowhere", []) == ()
    for name in ("a", "b", "stale"):
        analysed.write(tmp_path, name)
    assert [found.run for found in embedding_space.gather(tmp_path, ["b", "a"])] == ["b", "a"]
    with pytest.raises(InputError, match=r"absent/analysis\.json: no such file; run `dvc repro -f flow/analyse"):
        embedding_space.gather(tmp_path, ["b", "absent", "a"])


def test_assignments_are_turned_to_kinds_and_hardest_trials_to_sets(tmp_path: Path) -> None:
    facts = analysed.analysis(RUN)
    found = read(tmp_path, facts=facts)
    assert list(found.assignments) == ["class", "attack", "quality level", "MOS"]
    assert list(found.assignments["MOS"]) == list(analysed.SETS)
    expected = tuple(facts["assignments"]["dev"]["quality_level"]["1"])
    assert found.assignments["quality level"]["dev"]["1"] == expected
    assert {name: len(trials) for name, trials in found.hardest.items()} == {"dev": 3, "eval": 3}
    assert [line.style for line in found.centroid_lines] == ["c0 d0", "c1 d0"]


def test_the_axis_of_distances_begins_at_0_and_holds_every_quantile(tmp_path: Path) -> None:
    facts = analysed.analysis(RUN)
    facts["distances"] = {"dev": {"bonafide": {"n": 3, "mean": 0.3, "quantiles": [0.1, 0.2, 0.3, 0.4, 0.95]}}}
    axis = read(tmp_path, facts=facts).distance_axis
    assert (axis.low, axis.high) == (0.0, 1.0)
    assert [axis.share(value) for value in (0.0, 0.25, 1.0, 7.0)] == [0.0, 25.0, 100.0, 100.0]


def test_the_path_has_a_line_a_centroid_without_the_first_epoch(tmp_path: Path) -> None:
    facts = analysed.analysis(RUN)
    facts["path"] = {
        "epochs": [1, 2, 3],
        "moved": [[None, None], [0.5, 0.25], [0.125, 0]],
        "to_last": [[0.6, 0.2], [0.1, 0], [0, 0]],
    }
    moved, to_last = read(tmp_path, facts=facts).path_charts
    assert [line.points.tolist() for line in moved.lines] == [[[2, 0.5], [3, 0.125]], [[2, 0.25], [3, 0]]]
    assert to_last.lines[0].points.tolist() == [[1, 0.6], [2, 0.1], [3, 0]]
    assert [line.name for line in moved.lines] == ["centroid 0", "centroid 1"]
    assert moved.y.low == 0
    assert read(tmp_path, facts=facts | {"path": None}).path_charts == ()


def test_of_many_centroids_the_path_shows_as_many_as_look_different(tmp_path: Path) -> None:
    moved, _ = read(tmp_path, facts=analysed.analysis(RUN, centroids=40)).path_charts
    assert len(moved.lines) == 24
    assert len({line.style for line in moved.lines}) == 24


FAULTS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "another run": (lambda a, m: a.update(run="other"), r"analysis\.json: expected the run linear.*, got 'other'"),
    "another map": (lambda a, m: m.update(run="other"), r"map\.json: expected the run linear.*, got 'other'"),
    "no similarity": (lambda a, m: a.pop("similarity"), r"analysis\.json: expected .*\n  similarity: Field required"),
    "a short row": (lambda a, m: a["similarity"][1].pop(), "similarity: numbers of row 1: expected 2, got 1"),
    "text": (lambda a, m: a.update(centroids="2"), "centroids: Input should be a valid integer"),
    "not finite": (lambda a, m: a["hardest"][0].update(score=float("nan")), r"hardest\.0\.score: .*finite"),
    "counts": (
        lambda a, m: a["assignments"]["dev"]["class"]["spoof"].append(1),
        "counts of train, class, spoof: expected 2, got 3",
    ),
    "quantiles": (
        lambda a, m: a["distances"]["dev"]["A01"]["quantiles"].reverse(),
        r"distances\.dev\.A01: .*ascending",
    ),
    "four quantiles": (lambda a, m: a["distances"]["dev"]["A01"]["quantiles"].pop(), "at least 5 items"),
    "epochs": (lambda a, m: a["path"]["moved"].pop(), "moved: epochs: expected 4, got 3"),
    "an epoch": (lambda a, m: a["path"]["moved"][2].pop(), "moved: numbers of row 2: expected 2, got 1"),
    "a distance": (lambda a, m: a.update(distance="miles"), "distance: String should match pattern"),
    "a column": (lambda a, m: m["audio"].pop(), "audio: entries: expected 60, got 59"),
    "places": (lambda a, m: m["projections"][1]["y"].pop(), "projection t-SNE, y: entries: expected 60, got 59"),
    "out of bits": (lambda a, m: m["projections"][0]["x"].__setitem__(3, 4096), "PCA: places: expected .* below 4096"),
    "a code": (
        lambda a, m: m["categories"]["attack"]["codes"].__setitem__(3, 4),
        "category attack: codes: expected numbers below 4, got 4",
    ),
    "codes": (lambda a, m: m["categories"]["set"]["codes"].pop(), "category set: entries: expected 60, got 59"),
    "no sets": (lambda a, m: m["categories"].pop("set"), "categories: expected `set` among them, got class, attack"),
    "a number": (lambda a, m: m["numbers"]["MOS"].pop(), "MOS: entries: expected 60, got 59"),
    "a neighbour": (lambda a, m: m["neighbours"][2].append(60), "neighbours: points: expected numbers below 60"),
    "neighbours": (lambda a, m: m["neighbours"].pop(), "neighbours: entries: expected 60, got 59"),
    "below 0": (lambda a, m: m["neighbours"][2].append(-1), "greater than or equal to 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_as_analyse_writes_it_is_told_with_a_remedy(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    facts, points = analysed.analysis(RUN), analysed.chart(RUN)
    change(facts, points)
    with pytest.raises(InputError, match=f"(?s){message}.*run `dvc repro -f flow/analyse/dvc.yaml`"):
        read(tmp_path, facts=facts, points=points)


@pytest.mark.parametrize("name", ["analysis.json", "map.json"])
def test_missing_files_and_other_files_are_named(tmp_path: Path, name: str) -> None:
    analysed.write(tmp_path, RUN)
    (tmp_path / RUN / name).write_text("no JSON")
    with pytest.raises(InputError, match=rf"{name}: expected what `analyse` writes, got\n  file: Invalid JSON"):
        embedding_space.read(tmp_path / RUN)
    (tmp_path / RUN / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: no such file; run `dvc repro"):
        embedding_space.read(tmp_path / RUN)


@given(VALUES)
def test_json_comes_back_and_cannot_end_its_element(value: Any) -> None:
    text = embedding_space.to_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&\n") & set(text)


def test_columns_that_runs_share_are_there_once(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        analysed.write(tmp_path, name, points=analysed.chart(name, seed=seed))
    data = embedding_space.map_data(embedding_space.gather(tmp_path, ["a", "b"]), root="../..")
    index = json.loads(data.index)
    columns = {name: json.loads(text) for name, text in data.columns.items()}
    assert index["root"] == "../.."
    first, second = index["maps"]
    for key in ("utterance", "audio", "neighbours"):
        assert first[key] == second[key]
        assert columns[first[key]] == analysed.chart("a")[key]
    assert [entry["name"] for entry in first["numbers"]] == ["score", "MOS"]
    assert first["numbers"][0]["values"] != second["numbers"][0]["values"]
    for entry, seed in ((first, 1), (second, 2)):
        for got, wanted in zip(entry["projections"], analysed.chart("", seed=seed)["projections"], strict=True):
            assert got | {"x": columns[got["x"]], "y": columns[got["y"]]} == {"far": []} | wanted
    assert len(columns) == len(set(data.columns.values()))


def test_full_paths_of_audio_become_relative_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    points = analysed.chart(RUN)
    points["audio"][:3] = ["", f"{tmp_path}/corpus/a.flac", "../near/b.flac"]
    data = embedding_space.map_data([read(tmp_path, points=points)], root="../..")
    audio = json.loads(data.columns[json.loads(data.index)["maps"][0]["audio"]])
    assert audio[:4] == ["", "../corpus/a.flac", "../near/b.flac", "audio/u3.flac"]
