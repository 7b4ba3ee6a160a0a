"""Projections and the map: samples, axes, coordinates, against loops and values derived by hand."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.analysis import projection
from pipeline.analysis.geometry import Space
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials

NAN = float("nan")


def space(count: int, *, seed: int = 0, mos: float = NAN, level: int = -1) -> Space:
    """Trials a0, a1, ... of seed 0; every fourth bona fide, the others of two attacks or of an unknown one."""
    rng = np.random.default_rng(seed)
    kept = np.arange(count) % 4 == 0
    names = np.array([f"{chr(97 + seed)}{i}" for i in range(count)])
    unknown = np.full(count, "-")
    attack = np.where(kept, "-", np.array(["-", "-", "A10", "A02"])[np.arange(count) % 4])
    quality = np.where(np.arange(count) % 2, mos, NAN)
    table = Trials(names, names, unknown, kept, attack, unknown, unknown, quality, unknown)
    vectors = (rng.normal(size=(count, 5)) + 2 * kept[:, None]).astype(np.float32)
    audio = np.array([f"data/{name}.wav" for name in names])
    return Space(table, vectors, rng.normal(size=count).astype(np.float32), np.full(count, level), unknown, audio)


def made(
    spaces: dict[str, Space], *, count: int = 100, wanted: tuple[str, ...] = ("pca",), k: int = 2
) -> dict[str, Any]:
    run = Centroids(2 * np.eye(5, dtype=np.float32)[:k], normalize_query=True, bias=0.0, reduce="max")
    return projection.build_map("run", spaces, run, count=count, wanted=wanted)


def blob(count: int, *, width: int = 6) -> NDArray[np.float64]:
    return np.random.default_rng(count).normal(size=(count, width)) * np.arange(width, 0, -1)


# ---------------------------------------------------------------- sample


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), count=st.integers(1, 60))
def test_a_sample_keeps_some_of_every_stratum(sizes: list[int], count: int) -> None:
    strata = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    rows = projection.sample(strata, count)
    assert len(rows) == min(count, len(strata))
    assert (np.diff(rows) > 0).all()
    if count >= len(sizes):
        assert set(strata[rows]) == set(strata)
    np.testing.assert_array_equal(rows, projection.sample(strata, count))


def test_shares_go_by_the_root_of_the_size() -> None:
    strata = np.repeat(["large", "middle", "small"], [10_000, 400, 100])
    taken = strata[projection.sample(strata, 130)]
    assert {name: int((taken == name).sum()) for name in ("large", "middle", "small")} == {
        "large": 100,
        "middle": 20,
        "small": 10,
    }
    rows = projection.sample(strata, 130)
    assert rows[:100].mean() == pytest.approx(5_000, abs=900)  # from all over the stratum


# ---------------------------------------------------------------- projections


def test_pca_is_the_singular_value_decomposition() -> None:
    x = blob(40)
    found = projection.pca(x, x[:3])
    left, values, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left * values)[:, :2], atol=1e-9)
    for axis, column in zip(axes, found.points.T, strict=False):
        sign = np.sign(axis[np.abs(axis).argmax()])
        np.testing.assert_allclose(column, sign * (x - x.mean(axis=0)) @ axis, atol=1e-9)
    shares = 100 * values[:2] ** 2 / (values**2).sum()
    assert found.note == f"{shares[0]:.0f} % and {shares[1]:.0f} % of the variance"
    assert found.centroids is not None
    np.testing.assert_allclose(found.centroids, found.points[:3])


def test_pca_of_what_hardly_varies() -> None:
    line = projection.pca(np.array([[0.0], [2.0], [4.0]]), np.array([[5.0]]))
    assert line.points.tolist() == [[-2, 0], [0, 0], [2, 0]]
    assert line.centroids is not None
    assert line.centroids.tolist() == [[3, 0]]
    assert line.note == "100 % and 0 % of the variance"
    still = projection.pca(np.ones((4, 3)))
    assert not still.points.any()
    assert still.note == "0 % and 0 % of the variance"
    assert still.centroids is None


def test_tsne_keeps_groups_together_and_comes_out_the_same() -> None:
    x = np.concatenate((blob(20), blob(20) + 500))
    first, again = (projection.tsne(x, projection.pca(x).points) for _ in range(2))
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.points, again.points)
    assert (first.name, first.note, first.centroids) == ("t-SNE", "perplexity 13", None)
    apart = np.linalg.norm(first.points[:, None] - first.points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert ((apart.argmin(axis=1) < 20) == (np.arange(40) < 20)).all()


@pytest.mark.parametrize("method", [projection.tsne, projection.umap])
def test_too_few_different_embeddings_have_no_map(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace())
    few = np.repeat(blob(4), 10, axis=0)
    assert method(few, projection.pca(few).points) is None
    assert method(np.ones((50, 3)), np.zeros((50, 2))) is None


def test_five_embeddings_are_enough_for_tsne() -> None:
    found = projection.tsne(blob(5), projection.pca(blob(5)).points)
    assert found is not None
    assert np.isfinite(found.points).all()


def test_umap_is_asked_for_a_seeded_map_from_the_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Reducer:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit_transform(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Reducer))
    x = blob(12)
    start = projection.pca(x).points
    found = projection.umap(x, start)
    assert found is not None
    np.testing.assert_allclose(found.points, x[:, :2], rtol=1e-6)
    assert (found.name, found.note) == ("UMAP", "11 neighbours")
    assert (asked["n_neighbors"], asked["random_state"], asked["n_jobs"]) == (11, projection.SEED, 1)
    np.testing.assert_allclose(asked["init"], 10 * start / np.abs(start).max(), rtol=1e-6)


def test_umap_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        InputError, match=r"analyse\.projections: umap needs the extra `umap`; pip install -e '\.\[umap\]'"
    ):
        projection.project(blob(9), ["umap"], centroids=None)


def test_pca_comes_first_and_always() -> None:
    assert [found.name for found in projection.project(blob(30), ["tsne"], centroids=None)] == ["PCA", "t-SNE"]
    assert [found.name for found in projection.project(blob(30), ["tsne", "pca"], centroids=None)] == ["PCA", "t-SNE"]
    assert [found.name for found in projection.project(np.ones((9, 3)), ["tsne"], centroids=None)] == ["PCA"]


def test_neighbours_are_those_of_a_loop() -> None:
    x = blob(25)
    x[3] = x[7]  # two in one place are each other's nearest, and not their own
    found = projection.neighbours(x)
    assert (found[3][0], found[7][0]) == (7, 3)
    for row, near in enumerate(found):
        others = sorted(((x[i] - x[row]) ** 2).sum() for i in range(25) if i != row)
        assert row not in near
        np.testing.assert_allclose([((x[i] - x[row]) ** 2).sum() for i in near], others[:6], atol=1e-9)
    assert [len(near) for near in projection.neighbours(blob(3))] == [2, 2, 2]
    assert projection.neighbours(blob(1)) == [[]]


# ---------------------------------------------------------------- the map


def test_the_map_holds_every_point_in_order() -> None:
    spaces = {"train": space(12), "dev": space(8, seed=1, mos=3.25)}
    found = made(spaces)
    whole = [f"a{i}" for i in range(12)] + [f"b{i}" for i in range(8)]
    assert (found["run"], found["points"], found["bits"]) == ("run", 20, 12)
    assert found["utterance"] == whole
    assert found["audio"] == [f"data/{name}.wav" for name in whole]
    scores = np.concatenate([own.scores for own in spaces.values()])
    assert found["score"] == [round(float(score), 4) for score in scores] == found["numbers"]["score"]
    assert found["numbers"]["MOS"] == [None] * 12 + [None, 3.25] * 4
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_categories_tell_what_each_point_is() -> None:
    spaces = {"train": space(12, level=1), "dev": space(8, seed=1)}
    categories = made(spaces)["categories"]
    told = {kind: [own["names"][code] for code in own["codes"]] for kind, own in categories.items()}
    assert categories["set"]["names"] == ["train", "dev"]
    assert told["set"] == ["train"] * 12 + ["dev"] * 8
    assert categories["class"]["names"] == ["bonafide", "spoof"]
    assert told["class"] == ["bonafide", "spoof", "spoof", "spoof"] * 5
    assert categories["attack"]["names"] == ["bonafide", "A02", "A10", "spoof"]
    assert told["attack"] == ["bonafide", "spoof", "A10", "A02"] * 5
    assert told["quality level"] == ["1"] * 12 + ["-"] * 8
    vectors = np.concatenate([own.vectors for own in spaces.values()])
    assert told["centroid"] == [str(k) for k in vectors[:, :2].argmax(axis=1)]
    assert categories["centroid"]["names"] == ["0", "1"]


def test_numbers_are_ordered_as_numbers() -> None:
    assert projection._coded("centroid", np.array(["10", "2", "-", "2"])) == {
        "names": ["2", "10", "-"],
        "codes": [1, 0, 2, 0],
    }


def test_what_is_not_known_of_any_point_is_left_out() -> None:
    found = made({"train": space(8)})
    assert list(found["categories"]) == ["class", "set", "attack", "centroid"]
    assert list(found["numbers"]) == ["score"]


def test_coordinates_fill_the_frame_and_hold_the_centroids() -> None:
    spaces = {"train": space(40)}
    (found,) = made(spaces)["projections"]
    x = spaces["train"].vectors.astype(np.float64)
    wanted = projection.pca(x / np.linalg.norm(x, axis=1, keepdims=True), np.eye(5)[:2])  # centroids at unit length
    assert wanted.centroids is not None
    every = np.concatenate((wanted.points, wanted.centroids))
    steps = np.rint(4095 * (every - every.min(axis=0)) / np.ptp(every, axis=0))
    told = np.array([*zip(found["x"], found["y"], strict=True), *found["centroids"]])
    assert np.abs(told - steps).max() <= 1
    assert (told.min(axis=0).tolist(), told.max(axis=0).tolist()) == ([0, 0], [4095, 4095])
    assert (found["name"], found["note"]) == ("PCA", wanted.note)


def test_a_run_that_does_not_normalise_has_no_centroids_on_the_map() -> None:
    run = Centroids(np.ones((1, 5), np.float32), normalize_query=False, bias=0.0, reduce="max")
    spaces = {"train": space(20)}
    found = projection.build_map("run", spaces, run, count=50, wanted=["pca"])
    assert found["projections"][0]["centroids"] is None
    whole = projection.pca(spaces["train"].vectors.astype(np.float64)).points[:, 0]
    assert np.argmax(found["projections"][0]["x"]) == np.argmax(whole)
    assert found["categories"]["centroid"] == {"names": ["0"], "codes": [0] * 20}


def test_of_many_trials_a_stratified_sample_is_shown() -> None:
    spaces = {"train": space(400), "dev": space(4, seed=1)}
    found = made(spaces, count=30)
    assert found["points"] == len(found["utterance"]) == 30
    strata = {(found["categories"]["set"]["codes"][i], found["categories"]["attack"]["codes"][i]) for i in range(30)}
    assert len(strata) == 8  # both sets with bona fide and three kinds of spoof
    assert all(i not in near for i, near in enumerate(found["neighbours"]))
    rows = {name: i for i, name in enumerate(spaces["train"].trials.utterance.tolist())}
    for name, score in zip(found["utterance"], found["score"], strict=True):
        if name in rows:
            assert score == round(float(spaces["train"].scores[rows[name]]), 4)


def test_neighbours_on_the_map_are_near_as_scoring_compares() -> None:
    one = space(30)
    scaled = Space(one.trials, one.vectors * np.arange(1, 31, dtype=np.float32)[:, None], *list(vars(one).values())[2:])
    assert made({"train": one})["neighbours"] == made({"train": scaled})["neighbours"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_sets_survive(count: int) -> None:
    found = made({"train": space(count)}, wanted=("pca", "tsne"), k=1)
    assert found["points"] == count
    assert [own["name"] for own in found["projections"]] == ["PCA"]
    json.dumps(found, allow_nan=False)


def test_a_map_fits_what_is_near_and_numbers_what_is_far() -> None:
    points = np.random.default_rng(1).uniform(0, 1, (200, 2))
    all_near = projection._quantized(projection.Projection("PCA", "", points))
    span = np.ptp(points, axis=0)
    np.testing.assert_array_equal(all_near["x"], np.rint(4095 * (points[:, 0] - points[:, 0].min()) / span[0]))
    assert all_near["far"] == []
    points[7], points[9] = (1e6, 0.5), (0.5, -50.0)
    found = projection._quantized(
        projection.Projection("PCA", "", points, centroids=np.array([[0.5, 0.5], [0.5, 9.0]]))
    )
    assert found["far"] == [7, 9]
    assert (found["x"][7], found["y"][9]) == (4095, 0)
    rest = np.delete(points, (7, 9), axis=0)
    low, high = rest.min(axis=0), rest.max(axis=0)
    np.testing.assert_array_equal(
        np.delete(found["x"], (7, 9)), np.rint(4095 * (rest[:, 0] - low[0]) / (high - low)[0])
    )
    assert found["centroids"][1][1] == 4095  # a centroid far away stands at the border, too
    one = projection._quantized(projection.Projection("PCA", "", np.zeros((5, 2))))
    assert (one["far"], one["x"]) == ([], [2048] * 5)
