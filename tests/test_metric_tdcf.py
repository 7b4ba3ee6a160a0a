"""The t-DCF against golden numbers, real score files with their published values, and hand-derived cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.metrics.det import Det, det_points, equal_point
from pipeline.metrics.tdcf import (
    ASVSPOOF5_RATES,
    PRIOR_NONTARGET,
    PRIOR_SPOOF,
    PRIOR_TARGET,
    AsvRates,
    Minimum,
    asv_rates,
    min_tdcf_2019,
    min_tdcf_2021,
    tdcf_2019,
    tdcf_2021,
)
from tests import beside
from tests.beside import needs
from tests.golden import Arrays
from tests.metrics import SCORES, SETS

FORMS = {"min_tdcf_legacy": min_tdcf_2019, "min_tdcf_2021": min_tdcf_2021}

# What an ASV may do such that a countermeasure matters.
RATES = st.builds(AsvRates, p_fa=st.floats(0, 0.5), p_miss=st.floats(0, 0.5), p_fa_spoof=st.floats(0.01, 1))

Form = Callable[[Det, AsvRates], Minimum]


def rates_of(row: NDArray[np.float64]) -> AsvRates:
    p_fa, p_miss, _, p_fa_spoof = row.tolist()
    return AsvRates(p_fa=p_fa, p_miss=p_miss, p_fa_spoof=p_fa_spoof)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", range(3))
def test_the_minimum_equals_the_reference(metric_arrays: Arrays, name: str, form: str, row: int) -> None:
    det = det_points(metric_arrays[f"{name}/bona"], metric_arrays[f"{name}/spoof"])
    found = FORMS[form](det, rates_of(metric_arrays["asv_rates"][row]))
    value, threshold = metric_arrays[f"{name}/{form}"][row]
    assert found.value == pytest.approx(value, rel=0, abs=1e-12)
    assert found.threshold == pytest.approx(threshold, rel=0, abs=1e-12)


def test_all_golden_sets_and_rates_are_tested(metric_arrays: Arrays) -> None:
    assert tuple(metric_arrays["set_names"].tolist()) == SETS
    assert metric_arrays["asv_names"].tolist() == ["asv", "asvspoof5", "bad"]


def test_the_asv_rates_equal_the_reference(metric_arrays: Arrays) -> None:
    found = asv_rates(metric_arrays["asv/tar"], metric_arrays["asv/non"], metric_arrays["asv/spoof"])
    expected = (found.p_fa, found.p_miss, found.p_miss_spoof, found.p_fa_spoof)
    np.testing.assert_allclose(expected, metric_arrays["asv/rates"], rtol=0, atol=1e-12)


def test_the_constants_of_asvspoof5_equal_the_reference(metric_arrays: Arrays) -> None:
    row = metric_arrays["asv_rates"][metric_arrays["asv_names"].tolist().index("asvspoof5")]
    found = (ASVSPOOF5_RATES.p_fa, ASVSPOOF5_RATES.p_miss, ASVSPOOF5_RATES.p_miss_spoof, ASVSPOOF5_RATES.p_fa_spoof)
    np.testing.assert_allclose(found, row, rtol=0, atol=1e-12)


def test_the_priors_add_up() -> None:
    assert pytest.approx(1) == PRIOR_TARGET + PRIOR_NONTARGET + PRIOR_SPOOF
    assert pytest.approx(0.99) == PRIOR_TARGET / (PRIOR_TARGET + PRIOR_NONTARGET)


@pytest.fixture(scope="module")
def la19_asv() -> dict[str, NDArray[np.float64]]:
    rows = [line.split() for line in (beside.SCORES / "la19_asv_eval_scores.txt").read_text().splitlines()]
    return {kind: np.array([float(row[2]) for row in rows if row[1] == kind]) for kind in sorted({r[1] for r in rows})}


@needs(beside.SCORES)
def test_the_asv_of_asvspoof_2019_has_its_published_rates(la19_asv: dict[str, NDArray[np.float64]]) -> None:
    assert set(la19_asv) == {"target", "nontarget", "spoof"}
    det = det_points(la19_asv["target"], la19_asv["nontarget"])
    point = equal_point(det.frr, det.far)
    assert round(50 * (det.frr[point] + det.far[point]), 5) == 2.45778
    found = asv_rates(**la19_asv)
    percent = [round(100 * rate, 5) for rate in (found.p_fa, found.p_miss, found.p_fa_spoof)]
    assert percent == [2.46047, 2.45810, 76.06525]


# Minimum of the 2019 and of the 2021 form; the OC-Softmax file holds higher = spoof.
PUBLISHED = {
    "ocsoftmax": (-1, 0.05582, 0.11505),
    "amsoftmax": (1, 0.07715, 0.13504),
    "softmax": (1, 0.12084, 0.17599),
}


@needs(beside.SCORES)
@pytest.mark.parametrize("system", PUBLISHED)
def test_published_score_files_give_their_published_values(
    la19_asv: dict[str, NDArray[np.float64]], system: str
) -> None:
    path = beside.SCORES / f"la19_eval_{system}.txt"
    sign, legacy, revised = PUBLISHED[system]
    rows = [line.split() for line in path.read_text().splitlines()]
    is_bonafide = np.array([row[2] == "bonafide" for row in rows])
    scores = sign * np.array([float(row[3]) for row in rows])
    det, rates = det_points(scores[is_bonafide], scores[~is_bonafide]), asv_rates(**la19_asv)
    of_2019, of_2021 = min_tdcf_2019(det, rates), min_tdcf_2021(det, rates)
    assert round(of_2019.value, 5) == legacy
    assert round(of_2021.value, 5) == revised
    assert of_2019.threshold == of_2021.threshold
    alone, weight = 0.02546, 0.38033  # C0 and min(C1, C2) = C2 on this set, as published
    assert of_2021.value == pytest.approx((alone + weight * of_2019.value) / (alone + weight), abs=1e-5)


def test_both_forms_by_hand() -> None:
    # C0 = .9405 · .1 + .0095 · 10 · .2 = .11305, C1 = .9405 − C0 = .82745, C2 = .05 · 10 · .5 = .25.
    # Sorted: s s b s b b. After two: no bona fide rejected, a third of the spoof accepted; all others cost more.
    det, rates = det_points([3.0, 5.0, 6.0], [1.0, 2.0, 4.0]), AsvRates(p_fa=0.2, p_miss=0.1, p_fa_spoof=0.5)
    assert min_tdcf_2019(det, rates).value == pytest.approx(1 / 3, abs=1e-15)
    assert min_tdcf_2021(det, rates).value == pytest.approx((0.11305 + 0.25 / 3) / (0.11305 + 0.25), abs=1e-15)
    assert min_tdcf_2019(det, rates).threshold == min_tdcf_2021(det, rates).threshold == 2.0
    one = np.array([0.5])
    assert tdcf_2019(one, one / 2, rates)[0] == pytest.approx((0.82745 * 0.5 + 0.25 * 0.25) / 0.25, abs=1e-15)
    expected = (0.11305 + 0.82745 * 0.5 + 0.25 * 0.25) / (0.11305 + 0.25)
    assert tdcf_2021(one, one / 2, rates)[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize("p_miss", [0.1, 0.8], ids=["a miss is dearer", "a false alarm is dearer"])
def test_scores_that_say_nothing_cost_one(form: Form, p_miss: float) -> None:
    rates = AsvRates(p_fa=0.1, p_miss=p_miss, p_fa_spoof=0.9)
    assert form(det_points([0.0, 0.0, 0.0], [0.0, 0.0]), rates).value == pytest.approx(1, abs=1e-15)
    assert form(det_points([0.0, 1.0], [2.0, 3.0]), rates).value == pytest.approx(1, abs=1e-15)


def test_a_perfect_countermeasure_leaves_nothing_in_2019_and_the_asv_in_2021() -> None:
    det, rates = det_points([1.0, 2.0], [0.0]), AsvRates(p_fa=0.2, p_miss=0.1, p_fa_spoof=0.5)
    assert min_tdcf_2019(det, rates) == Minimum(value=0.0, threshold=0.0)
    assert min_tdcf_2021(det, rates).value == pytest.approx(0.11305 / 0.36305)


@pytest.mark.parametrize("form", FORMS.values())
def test_of_equal_costs_the_first_gives_the_threshold(form: Form) -> None:
    rates = AsvRates(p_fa=0.0, p_miss=0.5, p_fa_spoof=0.9405)  # C1 = C2 = .47025: either class may be given up
    assert form(det_points([0.0], [1.0]), rates) == Minimum(value=1.0, threshold=-0.001)


@given(SCORES, SCORES, RATES)
def test_the_forms_are_two_scales_of_one_cost(bonafide: list[float], spoof: list[float], rates: AsvRates) -> None:
    alone = PRIOR_TARGET * rates.p_miss + PRIOR_NONTARGET * 10 * rates.p_fa
    weight = min(PRIOR_TARGET - alone, PRIOR_SPOOF * 10 * rates.p_fa_spoof)
    det = det_points(bonafide, spoof)
    legacy, revised = min_tdcf_2019(det, rates).value, min_tdcf_2021(det, rates).value
    assert revised == pytest.approx((alone + weight * legacy) / (alone + weight), abs=1e-12)
    assert -1e-12 <= legacy <= revised + 1e-12 <= 1 + 2e-12


@given(SCORES, SCORES, RATES)
def test_the_minimum_is_that_of_a_loop(bonafide: list[float], spoof: list[float], rates: AsvRates) -> None:
    det = det_points(bonafide, spoof)
    for curve, form in ((tdcf_2019, min_tdcf_2019), (tdcf_2021, min_tdcf_2021)):
        costs = [
            float(curve(np.array([frr]), np.array([far]), rates)[0]) for frr, far in zip(det.frr, det.far, strict=True)
        ]
        point = min(range(len(costs)), key=lambda index, costs=costs: costs[index])  # min takes the first of equals
        assert form(det, rates) == Minimum(value=costs[point], threshold=float(det.threshold[point]))


def test_an_asv_accepts_from_its_threshold_up() -> None:
    # Sorted: n n t n t t. The rates differ least after three, at the threshold 2, which is a target's: one of three
    # non-targets is above it, and no target below it; the spoof at 2 is accepted too.
    found = asv_rates(target=[2.0, 4.0, 5.0], nontarget=[0.0, 1.0, 3.0], spoof=[1.5, 2.0, 2.5, 9.0])
    assert found == AsvRates(p_fa=1 / 3, p_miss=0.0, p_fa_spoof=0.75)
    assert found.p_miss_spoof == 0.25


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize(
    "rates",
    [
        AsvRates(p_fa=0.0, p_miss=1.0, p_fa_spoof=0.5),
        AsvRates(p_fa=1.0, p_miss=0.95, p_fa_spoof=0.5),
        AsvRates(p_fa=0.1, p_miss=0.1, p_fa_spoof=0.0),
    ],
    ids=["it rejects all targets", "C1 below 0", "it accepts no spoof"],
)
def test_an_asv_with_which_the_countermeasure_does_not_matter_is_refused(form: Form, rates: AsvRates) -> None:
    with pytest.raises(ValueError, match=r"both cost something, got C1 = .* and C2 = .* with AsvRates"):
        form(det_points([1.0], [0.0]), rates)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["p_fa", "p_miss", "p_fa_spoof"])
def test_rates_are_shares(name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=rf"expected {name} in 0..1, got {rate}"):
        AsvRates(**{"p_fa": 0.1, "p_miss": 0.1, "p_fa_spoof": 0.5, name: rate})


@pytest.mark.parametrize(("kind", "name"), [("target", "target"), ("nontarget", "non-target"), ("spoof", "ASV spoof")])
def test_asv_scores_must_be_there_and_numbers(kind: str, name: str) -> None:
    good = {"target": [1.0], "nontarget": [0.0], "spoof": [0.5]}
    with pytest.raises(ValueError, match=f"at least one {name} score"):
        asv_rates(**{**good, kind: []})
    with pytest.raises(ValueError, match=f"expected {name} scores that are numbers, got 1 nan of 2"):
        asv_rates(**{**good, kind: [1.0, float("nan")]})
