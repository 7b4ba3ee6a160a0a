"""The layer atlas: its probes against those of the layer probe, and choices without the domain left out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from pipeline.analysis import joint_probes, layer_atlas, layer_probe
from pipeline.core.contracts import Tap

SIZES = {"a1": 90, "a2": 80, "b": 120, "c": 70}
DOMAINS = {"a": ("a1", "a2"), "b": ("b",), "c": ("c",)}
VIEWS = {"c": ["noise_0"]}
LAYERS: tuple[Tap, ...] = (1, 2, "final")
IS_BONAFIDE = {name: np.arange(size) % 3 == 1 for name, size in SIZES.items()}


def read(name: str, view: str, layer: Tap) -> NDArray[np.float32]:
    """Channels of different scales and offsets; layer 2 tells the classes apart best, in every set."""
    number = list(SIZES).index(name)
    rng = np.random.default_rng((number, LAYERS.index(layer), len(view)))
    apart = {1: 0.2, 2: 0.8, "final": 0.5}[layer] * IS_BONAFIDE[name]
    values = rng.normal(size=(SIZES[name], 2, 4)) + apart[:, None, None] + 0.3 * number
    return (10.0 ** np.arange(-2, 2) * (values + 3)).astype(np.float32)


def survey(**changes: NDArray[np.bool_]) -> layer_atlas.Atlas:
    return layer_atlas.survey(read, IS_BONAFIDE | changes, layers=LAYERS, domains=DOMAINS, views=VIEWS)


@pytest.fixture(scope="module")
def atlas() -> layer_atlas.Atlas:
    return survey()


def test_a_training_on_one_set_gives_the_probe_of_that_set() -> None:
    trainings = layer_atlas.Trainings(DOMAINS, dict.fromkeys(SIZES, ("clean",)))
    found = dict(layer_atlas._scores(read, IS_BONAFIDE, 1, trainings))
    for name in SIZES:
        alone = layer_probe.fit(read(name, "clean", 1), IS_BONAFIDE[name])
        for tested in set(SIZES) - {name}:
            wanted = alone.scores(read(tested, "clean", 1))
            for method, scores in found[name, tested, "clean"].items():
                np.testing.assert_allclose(scores, wanted[method], atol=1e-2)


def test_in_a_training_on_several_sets_each_set_weighs_the_same() -> None:
    """Two sets weigh as one set in which the smaller one is repeated until both are equally large."""
    rows = {name: layer_probe.flat(read(name, "clean", 2)) for name in ("b", "c")}
    labels = {name: np.arange(len(x)) % 2 == 0 for name, x in rows.items()}
    rough = joint_probes.Rough.of(list(rows.values()))
    fitted = joint_probes.fit({name: rough(x) for name, x in rows.items()}, labels, {"both": ("b", "c")})
    together = np.concatenate([np.repeat(rows["b"], 7, axis=0), np.repeat(rows["c"], 12, axis=0)])
    classes = np.concatenate([np.repeat(labels["b"], 7), np.repeat(labels["c"], 12)])
    alone = layer_probe.fit(together.reshape(len(together), 2, -1), classes)
    wanted = alone.scores(read("a1", "clean", 2))
    got = fitted.scores(rough(layer_probe.flat(read("a1", "clean", 2))), ["both"])["both"]
    for method, scores in got.items():
        np.testing.assert_allclose(scores, wanted[method], atol=1e-2)


def test_a_set_is_not_tested_by_a_training_that_took_it(atlas: layer_atlas.Atlas) -> None:
    pairs = {(cell.trained, cell.tested) for cell in atlas.cells}
    alone = {(one, other) for one in SIZES for other in SIZES if one != other}
    assert pairs == alone | {(f"all but {domain}", name) for domain, own in DOMAINS.items() for name in own}
    assert {cell.tested for cell in atlas.cells if cell.view == "noise_0"} == {"c"}
    assert len(atlas.cells) == len(LAYERS) * 2 * (len(pairs) + 4)  # four trainings are tested on c in noise, too


def test_the_domain_left_out_has_no_part_in_the_choice(atlas: layer_atlas.Atlas) -> None:
    assert [choice.left_out for choice in atlas.choices] == ["a", "b", "c", None]
    shuffled = survey(c=np.random.default_rng(1).permutation(IS_BONAFIDE["c"]))
    for before, after in zip(atlas.choices, shuffled.choices, strict=True):
        same = (before.layers, before.by) == (after.layers, after.by)
        assert same == (before.left_out == "c")
    assert all(choice.layers[0] == 2 for choice in atlas.choices)
    assert set(atlas.choices[2].eer) == {("c", "clean"), ("c", "noise_0")}


def test_a_choice_is_by_the_mean_over_domains(atlas: layer_atlas.Atlas) -> None:
    """Without c: a is scored by b, in two sets, and b by a1 and by a2."""
    eers = {(one.layer, one.trained, one.tested): one.eer for one in atlas.cells if one.method == "logistic"}
    pairs = [[("b", "a1"), ("b", "a2")], [("a1", "b"), ("a2", "b")]]
    by_hand = {
        layer: np.mean([np.mean([eers[layer, *pair] for pair in of_domain]) for of_domain in pairs]) for layer in LAYERS
    }
    choice = atlas.choices[2]
    assert choice.layers[0] == min(by_hand, key=by_hand.__getitem__)

    def together(trained: str, tested: str) -> float:
        probes = [layer_probe.fit(read(trained, "clean", layer), IS_BONAFIDE[trained]) for layer in choice.layers]
        scores = [one.scores(read(tested, "clean", layer)) for one, layer in zip(probes, choice.layers, strict=True)]
        return layer_probe.eer(np.mean([one["logistic"] for one in scores], axis=0), IS_BONAFIDE[tested])

    assert len(choice.layers) > 1
    by = np.mean([np.mean([together(*pair) for pair in of_domain]) for of_domain in pairs])
    assert choice.by == pytest.approx(by, abs=1e-9)
    assert choice.by < by_hand[choice.layers[0]]


def test_a_channel_that_is_constant_in_one_set_says_nothing_there() -> None:
    rows = {name: layer_probe.flat(read(name, "clean", 2)).copy() for name in ("b", "c")}
    rows["b"][:, 0] = 7.0
    rough = joint_probes.Rough.of(list(rows.values()))
    labels = {name: IS_BONAFIDE[name] for name in rows}
    fitted = joint_probes.fit({name: rough(x) for name, x in rows.items()}, labels, {"b": ("b",), "c": ("c",)})
    assert fitted.scale[0, 0] == 1
    assert abs(fitted.weights[0, 0]) < 0.02 < abs(fitted.weights[0, 1])


def test_a_descent_that_ends_too_early_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_probes, "ITERATIONS", 1)
    with pytest.warns(ConvergenceWarning, match="not at their minimum: .*ITERATIONS"):
        survey()


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(90, 2, D\) finite numbers of layer 1 of a1, clean"):
        layer_atlas.survey(
            lambda *key: np.full_like(read(*key), np.nan), IS_BONAFIDE, layers=[1], domains=DOMAINS, views={}
        )
