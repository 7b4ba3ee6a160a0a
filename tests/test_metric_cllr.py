"""Cllr against golden numbers, hand-derived cases, and SciPy's isotonic regression."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from pipeline.metrics.cllr import cllr, min_cllr
from tests.golden import Arrays
from tests.metrics import FLOATS, NO_SCORES, SCORES, SETS


def naive_min_cllr(bonafide: list[float], spoof: list[float]) -> float:
    """Fit the share of bona fide to every distinct score by isotonic regression, then price every trial on its own."""
    values = sorted(set(bonafide) | set(spoof))
    counts = [(bonafide.count(value), spoof.count(value)) for value in values]
    shares = [kept / (kept + refused) for kept, refused in counts]
    fitted = isotonic_regression(shares, weights=[sum(pair) for pair in counts]).x
    share = dict(zip(values, fitted.tolist(), strict=True))
    prior = len(bonafide) / len(spoof)
    of_bonafide = [math.log2(1 + (1 - share[score]) / share[score] * prior) for score in bonafide]
    of_spoof = [math.log2(1 + share[score] / (1 - share[score]) / prior) for score in spoof]
    return (sum(of_bonafide) / len(bonafide) + sum(of_spoof) / len(spoof)) / 2


@pytest.mark.parametrize("name", SETS)
def test_cllr_equals_the_reference(metric_arrays: Arrays, name: str) -> None:
    found = cllr(metric_arrays[f"{name}/bona"], metric_arrays[f"{name}/spoof"])
    assert found == pytest.approx(float(metric_arrays[f"{name}/cllr"]), rel=0, abs=1e-12)


@pytest.mark.parametrize("name", SETS)
def test_calibrated_golden_scores_equal_isotonic_regression(metric_arrays: Arrays, name: str) -> None:
    bonafide, spoof = metric_arrays[f"{name}/bona"], metric_arrays[f"{name}/spoof"]
    found = min_cllr(bonafide, spoof)
    assert found == pytest.approx(naive_min_cllr(bonafide.tolist(), spoof.tolist()), rel=0, abs=1e-12)
    assert found <= cllr(bonafide, spoof)


def test_all_golden_sets_are_tested(metric_arrays: Arrays) -> None:
    assert tuple(metric_arrays["set_names"].tolist()) == SETS


def test_a_score_of_zero_costs_one_bit() -> None:
    assert cllr([0.0], [0.0]) == pytest.approx(1, abs=1e-15)
    # e^s = 3: log2(1 + 1/3) for the bona fide, log2(1 + 3) = 2 for the spoof.
    assert cllr([math.log(3)], [math.log(3)]) == pytest.approx((math.log2(4 / 3) + 2) / 2, abs=1e-15)
    # The mean within each class first: one of two bona fide is worth as much as one of three spoof is not.
    assert cllr([0.0, 1e9], [-1e9, -1e9, 0.0]) == pytest.approx((1 / 2 + 1 / 3) / 2, abs=1e-15)


def test_it_does_not_overflow() -> None:
    assert cllr([-1000.0], [1000.0]) == pytest.approx(1000 / math.log(2))
    assert cllr([1000.0], [-1000.0]) == 0
    assert cllr([-math.inf], [0.0]) == math.inf
    assert cllr([math.inf], [-math.inf]) == 0


def test_calibration_by_hand() -> None:
    # At score 0 one of three bona fide and two of three spoof, at 1 the rest: ratios of 1/2 and 2.
    expected = 2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3)
    assert min_cllr([0.0, 1.0, 1.0], [0.0, 0.0, 1.0]) == pytest.approx(expected, abs=1e-15)
    assert cllr(np.log([1 / 2, 2, 2]), np.log([1 / 2, 1 / 2, 2])) == pytest.approx(expected, abs=1e-15)
    # The wrong way round the best is to say nothing.
    assert min_cllr([0.0, 0.0, 1.0], [0.0, 1.0, 1.0]) == pytest.approx(1, abs=1e-15)


def test_separated_inverted_and_equal_scores() -> None:
    assert min_cllr([2.0, 3.0], [0.0, 1.0]) == 0
    assert min_cllr([0.0, 1.0, 1.5], [2.0, 3.0]) == pytest.approx(1, abs=1e-15)
    assert min_cllr([7.0] * 3, [7.0] * 5) == pytest.approx(1, abs=1e-15)


@given(SCORES, SCORES)
def test_calibration_equals_isotonic_regression(bonafide: list[float], spoof: list[float]) -> None:
    assert min_cllr(bonafide, spoof) == pytest.approx(naive_min_cllr(bonafide, spoof), rel=0, abs=1e-12)


@given(SCORES, SCORES, st.floats(0.1, 10), st.floats(-10, 10))
def test_no_scale_and_shift_does_better(bonafide: list[float], spoof: list[float], scale: float, shift: float) -> None:
    kept, refused = np.array(bonafide), np.array(spoof)
    least = min_cllr(kept, refused)
    assert -1e-12 <= least <= cllr(scale * kept + shift, scale * refused + shift) + 1e-12
    assert least <= 1 + 1e-12
    assert min_cllr(np.exp(kept / 3), np.exp(refused / 3)) == least


@given(FLOATS, FLOATS)
def test_negated_scores_of_the_other_class_cost_the_same(bonafide: list[float], spoof: list[float]) -> None:
    kept, refused = np.array(bonafide), np.array(spoof)
    assert cllr(-refused, -kept) == pytest.approx(cllr(kept, refused), rel=1e-12)
    assert min_cllr(-refused, -kept) == pytest.approx(min_cllr(kept, refused), abs=1e-12)


@pytest.mark.parametrize("metric", [cllr, min_cllr])
@NO_SCORES
def test_what_is_no_list_of_scores_is_refused(
    metric: Callable[[list[float], list[float]], float], bonafide: list[float], spoof: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(bonafide, spoof)
