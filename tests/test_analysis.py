"""The numbers of an analysis against loops and values derived by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.analysis import geometry
from pipeline.analysis.gaussians import Gaussians
from pipeline.analysis.geometry import Cloud, Places, Space
from pipeline.core import trial_table
from pipeline.core.contracts import Centroids
from pipeline.core.trial_table import Row, Trials

NAN = float("nan")


def table(*rows: tuple[Any, ...]) -> Trials:
    """Trials of (label, attack, speaker, MOS), whatever their classes are."""
    columns = list(zip(*rows, strict=True))
    names = np.array([f"u{i}" for i in range(len(rows))])
    unknown = np.full(len(rows), "-")
    return Trials(
        utterance=names,
        path=names,
        speaker=np.array(columns[2]),
        is_bonafide=np.array([label == "bonafide" for label in columns[0]]),
        attack=np.array(columns[1]),
        codec=unknown,
        vocoder=unknown,
        quality=np.array(columns[3], dtype=np.float64),
        content=unknown,
    )


def space(whole: Trials, vectors: Any, *, scores: Any = None, level: Any = None) -> Space:
    count = len(whole)
    return Space(
        whole,
        np.asarray(vectors, dtype=np.float32),
        np.asarray(np.zeros(count) if scores is None else scores, dtype=np.float32),
        np.full(count, -1) if level is None else np.asarray(level),
        np.full(count, "demo"),
        np.full(count, ""),
    )


def drawn(count: int, *, width: int = 4, seed: int = 0, shift: float = 1.0) -> Space:
    """Some random trials, every third one bona fide, the first two of both classes."""
    rng = np.random.default_rng(seed)
    rows = [("spoof" if i % 3 else "bonafide", f"A{i % 2}" if i % 3 else "-", f"s{i % 4}", 3.0) for i in range(count)]
    whole = table(*rows)
    vectors = rng.normal(size=(count, width)) + shift * whole.is_bonafide[:, None]
    return space(whole, vectors, scores=rng.normal(size=count))


def centroids(vectors: Any, *, normalize: bool = True) -> Centroids:
    return Centroids(np.asarray(vectors, dtype=np.float32), normalize, 0.0, "max")


def brute(spaced: Space, *, normalize: bool) -> Any:
    """The search of a training set, by a loop."""

    def search(queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        mine, others = (
            v / np.linalg.norm(v, axis=1, keepdims=True) if normalize else v for v in (queries, spaced.vectors)
        )
        apart = np.linalg.norm(mine[:, None] - others[None], axis=2)
        ids = np.argsort(apart, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(apart, ids, axis=1), ids

    return search


def report_of(spaces: dict[str, Space], made: Centroids, **further: Any) -> dict[str, Any]:
    search = brute(next(iter(spaces.values())), normalize=made.normalize_query)
    return geometry.analyse("run", spaces, made, search=search, **({"over_training": None} | further))


# ---------------------------------------------------------------- places


@given(count=st.integers(1, 20), k=st.integers(1, 4), normalize=st.booleans(), seed=st.integers(0, 99))
def test_the_nearest_place_is_that_of_a_loop(count: int, k: int, normalize: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, embeddings = rng.normal(size=(k, 3)), rng.normal(size=(count, 3)).astype(np.float32)
    nearest, distance = Places(vectors, normalize).nearest(embeddings)
    for x, found, away in zip(embeddings.astype(np.float64), nearest, distance, strict=True):
        if normalize:
            every = [1 - x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in vectors]
        else:
            every = [np.sqrt(((x - c) ** 2).sum()) for c in vectors]
        assert away == pytest.approx(min(every), abs=1e-6)
        assert every[found] == pytest.approx(min(every), abs=1e-6)


def test_blocks_change_nothing_and_of_equal_places_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = np.random.default_rng(1).normal(size=(23, 3)).astype(np.float32)
    to = Places(np.random.default_rng(2).normal(size=(5, 3)), normalize=True)
    whole, cloud = to.nearest(embeddings), geometry.cloud(embeddings, np.arange(23) % 2 == 0, normalize=True)
    monkeypatch.setattr(geometry, "BLOCK", 7)
    parts, again = to.nearest(embeddings), geometry.cloud(embeddings, np.arange(23) % 2 == 0, normalize=True)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-12)
    np.testing.assert_allclose(cloud.covariance, again.covariance, atol=1e-12)
    assert Places(np.ones((3, 3)), normalize=False).nearest(embeddings)[0].tolist() == [0] * 23


def test_what_is_at_a_centroid_is_no_negative_distance_away() -> None:
    made = np.random.default_rng(3).normal(size=(50, 7))
    assert (Places(made, normalize=True).nearest(made.astype(np.float32))[1] >= 0).all()
    assert (geometry.between(made, made, normalize=True) >= 0).all()


def test_a_run_that_does_not_normalise_is_measured_to_the_mean_of_its_training_bona_fide() -> None:
    rows = [("bonafide", "-", "-", NAN), ("spoof", "-", "-", NAN), ("bonafide", "-", "-", NAN)]
    train = space(table(*rows), [[1, 0], [50, 50], [3, 4]])
    to = geometry.places(centroids([[9, 9]], normalize=False), train)
    assert (to.vectors.tolist(), to.normalize) == ([[2.0, 2.0]], False)
    report = report_of({"train": train}, centroids([[9, 9]], normalize=False))
    assert (report["centroids"], report["distance"]) == (1, "euclidean")
    assert report["distances"]["train"]["spoof"]["mean"] == pytest.approx(np.sqrt(2) * 48, rel=1e-5)
    own = geometry.places(centroids([[0, 9], [9, 0]]), train)
    assert (own.vectors.tolist(), own.normalize) == ([[0.0, 9.0], [9.0, 0.0]], True)


# ---------------------------------------------------------------- scatter


@given(bonafide=st.integers(1, 9), spoof=st.integers(1, 9), seed=st.integers(0, 99))
def test_scatter_within_and_between_make_up_that_of_all(bonafide: int, spoof: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(bonafide + spoof, 3)).astype(np.float32)
    kept = np.arange(len(vectors)) < bonafide
    whole, within, between = geometry.merged([geometry.cloud(vectors, own, normalize=False) for own in (kept, ~kept)])
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(whole.mean, wide.mean(axis=0))
    np.testing.assert_allclose(whole.covariance, np.cov(wide.T, bias=True), atol=1e-12)
    by_hand = sum(((own - own.mean(axis=0)) ** 2).sum() for own in (wide[kept], wide[~kept])) / len(wide)
    assert within == pytest.approx(by_hand)
    assert within + between == pytest.approx(((wide - wide.mean(axis=0)) ** 2).sum() / len(wide))


def test_a_cloud_is_of_embeddings_as_they_are_compared() -> None:
    vectors = np.array([[3, 0], [0, 5]], np.float32)
    assert geometry.cloud(vectors, np.array([True, True]), normalize=True).mean.tolist() == [0.5, 0.5]
    assert geometry.cloud(vectors, np.array([True, True]), normalize=False).mean.tolist() == [1.5, 2.5]


def test_the_effective_dimension_counts_directions() -> None:
    def of(variances: list[float]) -> float | None:
        return Cloud(9, np.zeros(len(variances)), np.diag(variances)).dimension

    assert of([1, 1, 1]) == pytest.approx(3)
    assert of([4, 0, 0]) == pytest.approx(1)
    assert of([4, 1]) == pytest.approx(25 / 17)
    assert of([0, 0]) is None
    assert Cloud(1, np.zeros(2), np.eye(2)).dimension is None


def test_equal_embeddings_have_no_dimension() -> None:
    same = np.full((7, 3), 1 / 3, np.float32)
    assert geometry.cloud(same, np.ones(7, bool), normalize=True).dimension is None
    rotated = np.random.default_rng(4).normal(size=(30, 5)).astype(np.float32)
    values = np.linalg.eigvalsh(np.cov(rotated.T.astype(np.float64), bias=True))
    found = geometry.cloud(rotated, np.ones(30, bool), normalize=False).dimension
    assert found == pytest.approx(values.sum() ** 2 / (values**2).sum())


def test_purity_by_hand() -> None:
    kept = np.array([True, True, False, False, False])
    assert geometry.purity(kept, np.array([0, 0, 1, 1, 1])) == 1
    assert geometry.purity(kept, np.array([0, 1, 1, 1, 0])) == 3 / 5  # a tie at 0, two spoof of three at 1
    assert geometry.purity(kept, np.array([0, 2, 2, 2, 2])) == 4 / 5  # nobody at 1
    assert geometry.purity(kept, np.zeros(5, int)) == 3 / 5
    assert geometry.purity(~kept, np.zeros(5, int)) == 3 / 5


@pytest.mark.parametrize("normalize", [True, False])
def test_the_silhouette_is_that_of_a_loop(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn(17)
    x = made.vectors.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = 1 - x @ x.T
    if not normalize:
        apart = np.linalg.norm(made.vectors[:, None].astype(np.float64) - made.vectors[None], axis=2)
    kept, every = made.trials.is_bonafide, []
    for i in range(17):
        own, other = kept == kept[i], kept != kept[i]
        own[i] = False
        a, b = apart[i, own].mean(), apart[i, other].mean()
        every.append((b - a) / max(a, b))
    assert geometry.silhouette(made, normalize=normalize) == pytest.approx(np.mean(every), abs=1e-6)
    monkeypatch.setattr(geometry, "SILHOUETTE_SAMPLE", 9)
    sampled = geometry.silhouette(made, normalize=normalize)
    assert sampled != pytest.approx(np.mean(every), abs=1e-6)
    assert sampled == geometry.silhouette(made, normalize=normalize)


def test_one_class_or_two_trials_have_no_silhouette() -> None:
    alone = table(*[("bonafide", "-", "-", NAN)] * 4)
    assert geometry.silhouette(space(alone, np.eye(4)), normalize=True) is None
    assert geometry.silhouette(drawn(2), normalize=True) is None


# ---------------------------------------------------------------- who is where


def test_assignments_by_hand() -> None:
    whole = table(
        ("bonafide", "-", "s1", 2.4), ("bonafide", "-", "-", 2.5), ("spoof", "A1", "s1", NAN), ("spoof", "-", "s2", 0.0)
    )
    found = geometry.assignments(space(whole, np.eye(4), level=[0, 1, -1, 0]), np.array([0, 1, 1, 1]), count=3)
    assert found == {
        "class": {"bonafide": [1, 1, 0], "spoof": [0, 2, 0]},
        "attack": {"A1": [0, 1, 0], "spoof": [0, 1, 0]},
        "quality_level": {"0": [1, 1, 0], "1": [0, 1, 0]},
        "mos": {"0.0-0.5": [0, 1, 0], "2.0-2.5": [1, 0, 0], "2.5-3.0": [0, 1, 0]},
        "speaker": {"s1": [1, 1, 0], "s2": [0, 1, 0]},
        "corpus": {"demo": [1, 3, 0]},
    }


def test_kinds_of_which_nothing_is_known_are_left_out() -> None:
    whole = table(("bonafide", "-", "-", NAN), ("spoof", "-", "-", NAN))
    found = geometry.assignments(space(whole, np.eye(2)), np.array([0, 0]), count=1)
    assert found == {"class": {"bonafide": [1], "spoof": [1]}, "corpus": {"demo": [2]}}


def test_of_many_speakers_the_most_frequent_are_told() -> None:
    rows = [("spoof", "-", f"s{i:02}", NAN) for i in range(60)] + [("bonafide", "-", "s57", NAN)]
    found = geometry.assignments(space(table(*rows), np.eye(61)), np.zeros(61, int), count=1)["speaker"]
    assert list(found) == ["s57", *(f"s{i:02}" for i in range(49))]
    assert found["s57"] == [2]


def test_distances_are_told_for_bona_fide_and_every_attack() -> None:
    rows = [("bonafide", "-", "-", NAN)] * 5 + [("spoof", "A2", "-", NAN), ("spoof", "-", "-", NAN)]
    away = np.array([1, 2, 3, 4, 5, 7.5, 9])
    found = geometry.distances(space(table(*rows), np.zeros((7, 2))), away)
    assert list(found) == ["bonafide", "A2", "spoof"]
    assert found["bonafide"]["n"] == 5
    assert found["bonafide"]["mean"] == 3
    np.testing.assert_allclose(found["bonafide"]["quantiles"], [1.2, 2, 3, 4, 4.8])
    assert found["A2"] == {"n": 1, "mean": 7.5, "quantiles": [7.5] * 5}


# ---------------------------------------------------------------- centroids


def test_cosines_between_centroids() -> None:
    found = geometry.similarity(np.array([[2, 0], [3, 3], [0, -1]], np.float32))
    np.testing.assert_allclose(found, [[1, 2**-0.5, 0], [2**-0.5, 1, -(2**-0.5)], [0, -(2**-0.5), 1]], atol=1e-7)


def test_the_path_by_hand() -> None:
    turning = np.array([[[1, 0]], [[0, 2]], [[0, -3]]], np.float32)  # a quarter, then a half
    assert geometry.path(turning, normalize=True) == {
        "epochs": [1, 2, 3],
        "moved": [[None], [1.0], [2.0]],
        "to_last": [[1.0], [2.0], [0.0]],
    }
    straight = geometry.path(turning, normalize=False)
    assert straight is not None
    assert straight["moved"] == [[None], [pytest.approx(5**0.5)], [5.0]]
    assert straight["to_last"] == [[pytest.approx(10**0.5)], [5.0], [0.0]]
    two = geometry.path(np.zeros((1, 2, 3), np.float32), normalize=False)
    assert two == {"epochs": [1], "moved": [[None, None]], "to_last": [[0.0, 0.0]]}
    assert geometry.path(None, normalize=True) is None


# ---------------------------------------------------------------- shift


@given(
    near=st.lists(st.integers(0, 5), min_size=1, max_size=8), far=st.lists(st.integers(0, 5), min_size=1, max_size=8)
)
def test_the_auc_counts_pairs(near: list[int], far: list[int]) -> None:
    pairs = [(f > n) + (f == n) / 2 for n in near for f in far]
    assert geometry.auc(np.array(near, float), np.array(far, float)) == pytest.approx(np.mean(pairs))


def test_shift_by_hand() -> None:
    found = geometry.shift(np.array([2.0, 4.0]), np.array([1.0, 2.0]), apart=0.25)
    assert found == {"bonafide_to_train": 0.25, "bonafide_distance": 3.0, "ratio": 2.0, "auc": 0.875}
    assert geometry.shift(np.array([1.0]), np.zeros(2), apart=0.0)["ratio"] is None
    nothing = geometry.shift(np.zeros(0), np.ones(2), apart=0.0)
    assert set(nothing.values()) == {None}


def test_the_training_set_is_not_shifted_from_itself_and_another_is() -> None:
    train, later = drawn(30), drawn(30, seed=1, shift=-2.0)
    found = report_of({"train": train, "dev": later}, centroids([[1, 1, 1, 1]]))["shift"]
    assert (found["train"]["bonafide_to_train"], found["train"]["ratio"], found["train"]["auc"]) == (0.0, 1.0, 0.5)
    assert found["dev"]["ratio"] > 1
    assert found["dev"]["auc"] > 0.9

    def middle(own: Space) -> NDArray[np.float64]:
        x = own.vectors[own.trials.is_bonafide].astype(np.float64)
        mean: NDArray[np.float64] = (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(axis=0)
        return mean / np.linalg.norm(mean)

    assert found["dev"]["bonafide_to_train"] == pytest.approx(1 - middle(train) @ middle(later), abs=1e-5)


def test_a_set_like_training_and_a_stranger_one_by_their_percentiles() -> None:
    train, like, far = drawn(60), drawn(60, seed=1), drawn(60, seed=2)
    far = replace(far, vectors=far.vectors + 10)
    made = centroids([[1, 1, 1, 1]], normalize=False)
    found = report_of({"train": train, "dev": like, "eval": far}, made)["shift"]
    vectors = train.vectors.astype(np.float64)

    def mean_of_five(one: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        return float(np.sort(np.linalg.norm(others - one, axis=1))[:5].mean())

    own = np.array([mean_of_five(vectors[i], np.delete(vectors, i, axis=0)) for i in range(60)])
    wanted = [100 * np.mean(own <= mean_of_five(one, vectors)) for one in like.vectors.astype(np.float64)]
    assert found["dev"]["median_percentile"] == pytest.approx(np.median(wanted), abs=1e-3)
    assert found["dev"]["beyond_95"] == pytest.approx(100 * np.mean(np.array(wanted) > 95), abs=1e-3)
    assert (found["eval"]["median_percentile"], found["eval"]["beyond_95"]) == (100, 100)
    assert (found["eval"]["median_mahalanobis"], found["eval"]["beyond_95_mahalanobis"]) == (100, 100)
    by_class = Gaussians.of(train.vectors, train.trials.is_bonafide, normalize=False).percentiles(like.vectors)
    assert found["dev"]["median_mahalanobis"] == pytest.approx(np.median(by_class), abs=1e-3)
    assert found["dev"]["beyond_95_mahalanobis"] == pytest.approx(100 * np.mean(by_class > 95), abs=1e-3)
    assert all(found["train"][key] is None for of in geometry.UNLIKE for key in of)


# ---------------------------------------------------------------- hardest


def test_the_hardest_are_low_bona_fide_and_high_spoof_with_their_neighbours() -> None:
    train, later = drawn(20), drawn(60, seed=5)
    found = geometry.hardest("dev", later, training=train.trials, search=brute(train, normalize=True))
    kept = later.trials.is_bonafide
    for label, own, sign in (("bonafide", kept, 1), ("spoof", ~kept, -1)):
        told = [trial for trial in found if trial["label"] == label]
        wanted = sorted((sign * later.scores[i], i) for i in np.flatnonzero(own))[:10]
        assert [trial["utterance"] for trial in told] == [f"u{i}" for _, i in wanted]
        assert [trial["score"] for trial in told] == [later.scores[i] for _, i in wanted]
    first = found[0]
    row = int(first["utterance"][1:])
    apart, ids = brute(train, normalize=True)(later.vectors[[row]], 5)
    assert [near["utterance"] for near in first["neighbours"]] == [f"u{i}" for i in ids[0]]
    assert [near["distance"] for near in first["neighbours"]] == apart[0].tolist()
    assert [near["attack"] for near in first["neighbours"]] == train.trials.attack[ids[0]].tolist()


def test_what_the_index_did_not_find_is_no_neighbour() -> None:
    def search(queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return np.ones((len(queries), 2), np.float32), np.array([[1, -1]] * len(queries))

    found = geometry.hardest("dev", drawn(6), training=drawn(3).trials, search=search)
    assert len(found) == 6
    assert [[near["utterance"] for near in trial["neighbours"]] for trial in found] == [["u1"]] * 6


# ---------------------------------------------------------------- the whole


def test_the_report_is_json_without_nan_and_counts_every_trial() -> None:
    spaces = {"both": drawn(40), "dev": drawn(9, seed=1), "eval": drawn(12, seed=2)}
    made = centroids([[1, 0, 0, 0], [0, 1, 0, 0]])
    report = report_of(spaces, made, over_training=np.ones((3, 2, 4), np.float32))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["run"], report["train"], report["sets"]) == ("run", "both", ["both", "dev", "eval"])
    assert (report["centroids"], report["embedding_dim"], report["distance"]) == (2, 4, "cosine")
    for name, own in spaces.items():
        assert sum(map(sum, report["assignments"][name]["class"].values())) == len(own.trials)
        assert sum(group["n"] for group in report["distances"][name].values()) == len(own.trials)
        assert set(report["geometry"][name]["effective_dimension"]) == {"all", "bonafide", "spoof"}
        assert 0 < report["geometry"][name]["within"] + report["geometry"][name]["between"] <= 1
    assert {trial["set"] for trial in report["hardest"]} == {"dev", "eval"}


def test_an_epoch_that_diverged_is_null() -> None:
    steps = np.array([[[1, 0, 0, 0]], [[np.nan] * 4], [[0, 1, 0, 0]]], np.float32)
    found = report_of({"train": drawn(30)}, centroids([[1, 0, 0, 0]]), over_training=steps)["path"]
    assert found == {"epochs": [1, 2, 3], "moved": [[None]] * 3, "to_last": [[1.0], [None], [0.0]]}


def test_numbers_are_told_to_six_digits() -> None:
    report = report_of({"train": drawn(30)}, centroids([[1, 0, 0, 0]]))
    mean = report["distances"]["train"]["bonafide"]["mean"]
    assert mean == float(f"{mean:.6g}")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("labels", [["bonafide"], ["spoof"], ["bonafide", "spoof"], ["spoof"] * 3])
def test_tiny_sets_survive(labels: list[str], normalize: bool) -> None:
    tiny = space(table(*[(label, "-", "-", NAN) for label in labels]), np.ones((len(labels), 2)))
    report = report_of({"train": tiny, "dev": tiny}, centroids([[1, 0]], normalize=normalize))
    assert report["geometry"]["dev"]["silhouette"] is None
    assert set(report["geometry"]["dev"]["effective_dimension"].values()) == {None}
    assert (report["shift"]["dev"]["auc"] is None) == ("bonafide" not in labels)
    json.dumps(report, allow_nan=False)


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns of one length, got \(3, 2\), .*'trials': 2"):
        space(table(*[("spoof", "-", "-", NAN)] * 2), np.zeros((3, 2)))


def test_from_a_table_that_was_read() -> None:
    rows = [Row("x", f"u{i}", "p.wav", label, attack="A01" if i else "-") for i, label in enumerate(trial_table.LABELS)]
    found = geometry.groups(space(trial_table.from_rows(rows, source="x"), np.eye(2)))
    assert {kind: names.tolist() for kind, names in found.items()} == {
        "class": ["bonafide", "spoof"],
        "attack": ["", "A01"],
        "corpus": ["demo", "demo"],
    }
