"""The layer probe: its two methods against their formulas, and a choice that dev alone makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.analysis import layer_probe
from pipeline.core.contracts import Tap

SIZES = {"train": 120, "dev": 90, "eval": 70}
SHIFTS: dict[Tap, float] = {1: 0.2, 2: 0.7, "final": 0.5}  # how far a layer tells the classes apart
CHANNELS = 5
IS_BONAFIDE = {name: np.arange(size) % 4 == 1 for name, size in SIZES.items()}


def read(name: str, layer: Tap) -> NDArray[np.float32]:
    """Channels of very different scales and offsets; bona fide lie higher in all of them."""
    rng = np.random.default_rng((list(SIZES).index(name), list(SHIFTS).index(layer)))
    noise = rng.normal(size=(SIZES[name], 2, CHANNELS)) + SHIFTS[layer] * IS_BONAFIDE[name][:, None, None]
    return (10.0 ** np.arange(-2, 3) * (noise + 3)).astype(np.float32)


def find(**changes: NDArray[np.bool_]) -> layer_probe.Findings:
    return layer_probe.probe(read, IS_BONAFIDE | changes, layers=list(SHIFTS), evaluation=["eval"])


def test_standardization_by_hand() -> None:
    """Bona fide 0, 2 and spoof 4, 8, 6, 6: mean (1 + 6) / 2, variance (7.25 + 8.25) / 2; a constant channel is zero."""
    vectors = np.array([[0, 0.1], [4, 0.1], [8, 0.1], [2, 0.1], [6, 0.1], [6, 0.1]], np.float32)
    is_bonafide = np.array([True, False, False, True, False, False])
    standard, z = layer_probe.standardized(vectors, is_bonafide)
    np.testing.assert_allclose(standard.mean, [3.5, 0.1], rtol=1e-6)
    np.testing.assert_allclose(standard.scale, [np.sqrt(7.75), 1], rtol=1e-6)
    np.testing.assert_allclose(z[:, 0], (vectors[:, 0] - 3.5) / np.sqrt(7.75), rtol=1e-6)
    assert (z[:, 1] == 0).all()
    np.testing.assert_array_equal(standard(vectors), z)


def test_a_large_offset_leaves_the_scale_alone() -> None:
    rng = np.random.default_rng(0)
    is_bonafide = np.arange(4_000) % 2 == 0
    vectors = (1_000 + rng.normal(size=(4_000, 1))).astype(np.float32)
    standard, _ = layer_probe.standardized(vectors, is_bonafide)
    np.testing.assert_allclose(standard.scale, vectors.astype(np.float64).std(axis=0), rtol=1e-3)


def test_the_centroid_by_hand() -> None:
    """Lengths 5, 2 and none: unit vectors (0.6, 0.8), (0, 1) and (0, 0)."""
    got = layer_probe.centroid(np.array([[3, 4], [0, 2], [0, 0]], np.float32))
    np.testing.assert_allclose(got, [0.2, 0.6], rtol=1e-6)


def test_the_centroid_is_of_the_bona_fide_and_its_score_a_cosine() -> None:
    pooled, is_bonafide = read("train", 2), IS_BONAFIDE["train"]
    _, z = layer_probe.standardized(layer_probe.flat(pooled), is_bonafide)
    units = [row / np.linalg.norm(row) for row in z.astype(np.float64)]
    mean = sum(unit for unit, bonafide in zip(units, is_bonafide, strict=True) if bonafide) / is_bonafide.sum()
    expected = [unit @ mean / np.linalg.norm(mean) for unit in units]
    got = layer_probe.fit(pooled, is_bonafide).scores(pooled)[layer_probe.CENTROID]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert layer_probe.eer(got, is_bonafide) < 30


def test_a_vector_without_direction_scores_zero() -> None:
    one = np.ones(2, np.float32)
    made = layer_probe.Probe(layer_probe.Standard(one, one), weights=one, bias=0.25, centroid=one)
    got = made.scores(np.ones((1, 2, 1), np.float32))
    assert (got[layer_probe.CENTROID][0], got[layer_probe.LOGISTIC][0]) == (0, 0.25)


def test_the_logistic_fit_is_at_the_minimum_of_its_loss() -> None:
    """The gradient of ½ Σ_class mean log(1 + exp(−y s)) + λ/2 ‖w‖², written down, is zero there and not beside it."""
    pooled, is_bonafide = read("train", 1), IS_BONAFIDE["train"]
    fitted = layer_probe.fit(pooled, is_bonafide)
    z = fitted.standard(layer_probe.flat(pooled)).astype(np.float64)
    y = np.where(is_bonafide, 1.0, -1.0)

    def gradient(weights: NDArray[np.float64], bias: float) -> NDArray[np.float64]:
        total = np.append(layer_probe.RIDGE * weights, 0.0)
        for of_class in (is_bonafide, ~is_bonafide):
            pull = -y[of_class] / (1 + np.exp(y[of_class] * (z[of_class] @ weights + bias)))
            total += 0.5 * np.append((pull[:, None] * z[of_class]).mean(0), pull.mean())
        return total

    weights = fitted.weights.astype(np.float64)
    assert np.abs(gradient(weights, fitted.bias)).max() < 3e-4
    assert np.abs(gradient(1.1 * weights, fitted.bias)).max() > 2e-3
    assert np.abs(gradient(weights, fitted.bias + 0.05)).max() > 2e-3


def test_scores_do_not_depend_on_how_rows_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = read("train", 1)
    fitted = layer_probe.fit(pooled, IS_BONAFIDE["train"])
    z = fitted.standard(layer_probe.flat(pooled))
    for block in (1, 7, 120, 1_024):
        monkeypatch.setattr(layer_probe, "BLOCK", block)
        got = fitted.scores(pooled)
        np.testing.assert_allclose(got[layer_probe.LOGISTIC], z @ fitted.weights + fitted.bias, atol=1e-5)
        assert got[layer_probe.CENTROID].shape == (120,)


def test_more_spoof_of_the_same_kind_give_the_same_probe() -> None:
    pooled, is_bonafide = read("train", 1), IS_BONAFIDE["train"]
    rows = np.concatenate([np.arange(120), *[np.flatnonzero(~is_bonafide)] * 3])
    one, more = layer_probe.fit(pooled, is_bonafide), layer_probe.fit(pooled[rows], is_bonafide[rows])
    np.testing.assert_allclose(more.standard.mean, one.standard.mean, rtol=1e-5)
    for method, scores in one.scores(pooled).items():
        np.testing.assert_allclose(more.scores(pooled)[method], scores, atol=2e-3)


def test_the_layer_that_tells_the_classes_apart_comes_first() -> None:
    found = find()
    assert found.chosen[0] == 2
    for method in (layer_probe.LOGISTIC, layer_probe.CENTROID):
        for name in ("dev", "eval"):
            eers = {layer: methods[method][name] for layer, methods in found.layers.items()}
            assert min(eers, key=eers.__getitem__) == 2
            assert eers[2] < 30 < eers[1] < 60
    assert list(found.layers) == list(SHIFTS)


def test_eers_are_those_of_the_scores_alone_and_together() -> None:
    found = find()
    alone = {layer: layer_probe.fit(read("train", layer), IS_BONAFIDE["train"]) for layer in SHIFTS}
    for name in ("dev", "eval"):
        scores = {layer: fitted.scores(read(name, layer)) for layer, fitted in alone.items()}
        for layer, by_method in scores.items():
            for method, values in by_method.items():
                assert found.layers[layer][method][name] == layer_probe.eer(values, IS_BONAFIDE[name])
        together = np.zeros(SIZES[name])
        for step in found.steps:
            together += scores[step.layer][layer_probe.LOGISTIC]  # the sum ranks as the mean does
            assert step.eer[name] == pytest.approx(layer_probe.eer(together, IS_BONAFIDE[name]))


def test_the_eer_is_in_percent_and_higher_is_bona_fide() -> None:
    is_bonafide = np.array([True, False, True, False])
    assert layer_probe.eer(np.array([3.0, 1.0, 4.0, 2.0]), is_bonafide) == 0
    assert layer_probe.eer(np.array([1.0, 3.0, 4.0, 2.0]), is_bonafide) == 50
    assert layer_probe.eer(np.array([1.0, 3.0, 2.0, 4.0]), is_bonafide) == 100


def test_a_choice_by_hand() -> None:
    """Layers a and b each mistake other trials and have all right together; c is a again, so that it adds nothing."""
    is_bonafide = np.array([True, True, True, False, False, False])
    a = np.array([-1.0, 2.0, 2.0, -2.0, -2.0, 1.0])
    b = np.array([2.0, 2.0, -1.5, 1.5, -2.0, -2.0])
    assert layer_probe.eer(a, is_bonafide) == layer_probe.eer(b, is_bonafide) == pytest.approx(100 / 3)
    scores = {"a": a, "c": a.copy(), "b": b}
    assert layer_probe.choose(scores, is_bonafide) == ("a", "b")
    assert layer_probe.choose({"c": a, "a": a, "b": b}, is_bonafide) == ("c", "b")
    assert layer_probe.choose(scores, is_bonafide, most=1) == ("a",)
    np.testing.assert_allclose(layer_probe.fused(scores, ("a", "b")), [0.5, 2, 0.25, -0.25, -2, -0.5])


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), layers=st.integers(1, 6), most=st.integers(1, 4))
def test_the_choice_is_that_of_a_naive_search(seed: int, layers: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    is_bonafide = np.arange(40) < 15
    scores = {layer: rng.normal(size=40) + rng.uniform(0, 1.5) * is_bonafide for layer in range(layers)}

    def together(chosen: list[int]) -> float:
        return layer_probe.eer(
            np.array([sum(scores[c][i] for c in chosen) / len(chosen) for i in range(40)]), is_bonafide
        )

    chosen: list[int] = []
    while len(chosen) < most:
        ranked = sorted((together([*chosen, c]), c) for c in scores if c not in chosen)
        if not ranked or (chosen and ranked[0][0] >= together(chosen)):
            break
        chosen.append(ranked[0][1])
    assert layer_probe.choose(scores, is_bonafide, most=most) == tuple(chosen)


def test_at_most_four_layers_are_chosen() -> None:
    rng = np.random.default_rng(1)
    is_bonafide = np.arange(2_000) < 500
    scores = {layer: rng.normal(size=2_000) + is_bonafide for layer in range(8)}
    assert len(layer_probe.choose(scores, is_bonafide)) == 4
    assert len(layer_probe.choose(scores, is_bonafide, most=8)) > 4


def test_the_evaluation_sets_decide_nothing() -> None:
    honest = find()
    shuffled = find(eval=np.random.default_rng(3).permutation(IS_BONAFIDE["eval"]))
    alone = layer_probe.probe(read, IS_BONAFIDE, layers=list(SHIFTS), evaluation=[])
    assert len(honest.chosen) > 1
    assert honest.chosen == shuffled.chosen == alone.chosen
    for a, b, c in zip(honest.steps, shuffled.steps, alone.steps, strict=True):
        assert a.eer["dev"] == b.eer["dev"] == c.eer["dev"]
        assert list(c.eer) == ["dev"]
    assert honest.layers != shuffled.layers


def test_dev_may_be_an_evaluation_set_too() -> None:
    found = layer_probe.probe(read, IS_BONAFIDE, layers=[2], evaluation=["dev", "train"])
    assert list(found.layers[2][layer_probe.LOGISTIC]) == ["dev", "train"]


def test_the_same_features_give_the_same_bits() -> None:
    assert find() == find()
    first, second = (layer_probe.fit(read("train", 1), IS_BONAFIDE["train"]) for _ in range(2))
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.centroid.tobytes() == second.centroid.tobytes()


def test_features_are_read_layer_by_layer_and_left_as_they_are() -> None:
    asked: list[tuple[str, Tap]] = []
    given = {(name, layer): read(name, layer) for name in SIZES for layer in SHIFTS}

    def reading(name: str, layer: Tap) -> NDArray[np.float32]:
        asked.append((name, layer))
        return given[name, layer]

    layer_probe.probe(reading, IS_BONAFIDE, layers=list(SHIFTS), evaluation=["eval"])
    assert asked == [(name, layer) for layer in SHIFTS for name in SIZES]
    for (name, layer), pooled in given.items():
        np.testing.assert_array_equal(pooled, read(name, layer))


@pytest.mark.parametrize(
    ("pooled", "message"),
    [
        (np.zeros((120, 2, 3)), "float64"),
        (np.zeros((119, 2, 3), np.float32), r"expected \(120, 2, D\) float32 of layer 1 of train, got \(119, 2, 3\)"),
        (np.zeros((120, 3, 2), np.float32), r"got \(120, 3, 2\)"),
        (np.zeros((120, 6), np.float32), r"got \(120, 6\)"),
        (np.full((120, 2, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_features_of_another_shape_are_refused(pooled: NDArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_probe.probe(lambda _name, _layer: pooled, IS_BONAFIDE, layers=[1], evaluation=[])


@pytest.mark.parametrize("bonafide", [True, False])
def test_one_class_is_refused(bonafide: bool) -> None:
    with pytest.raises(ValueError, match="expected bona fide and spoof utterances to train on, got"):
        find(train=np.full(120, bonafide))
    with pytest.raises(ValueError, match="expected at least one"):
        find(dev=np.full(90, bonafide))
