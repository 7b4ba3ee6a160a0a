"""Intervals by counted errors against the binomial sums that define them, naive loops and worlds of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import coverage
from pipeline.metrics import binomial, evaluation
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.dcf import dcf
from pipeline.metrics.det import det_points


def tail(errors: range, trials: int, rate: float) -> float:
    """The probability of one of these numbers of errors."""
    return sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in errors)


@pytest.mark.parametrize(("errors", "trials"), [(1, 4), (3, 27), (26, 27), (50, 100)])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_limits_leave_half_of_the_rest_on_either_side(errors: int, trials: int, level: float) -> None:
    found = binomial.clopper_pearson(errors, trials, level=level)
    assert tail(range(errors, trials + 1), trials, found.low) == pytest.approx((1 - level) / 2)
    assert tail(range(errors + 1), trials, found.high) == pytest.approx((1 - level) / 2)


def test_no_error_and_nothing_but_errors_have_limits_by_hand() -> None:
    end = 0.025 ** (1 / 27)
    assert binomial.clopper_pearson(0, 27) == Interval(0.0, pytest.approx(1 - end))
    assert binomial.clopper_pearson(27, 27) == Interval(pytest.approx(end), 1.0)


def test_the_interval_of_a_minimum_is_that_of_its_two_rates() -> None:
    # The least cost is where 1 of 40 bona fide is rejected and 2 of 10 spoof are accepted: 1.9 / 40 + 0.2. To reject
    # none accepts 6 spoof, to accept none rejects 10 bona fide.
    bonafide = [0.0, *np.linspace(2.0, 2.9, 9), *np.linspace(4.0, 5.0, 30)]
    spoof = [-3.0, -2.0, -1.5, -1.0, 0.5, 0.6, 0.7, 0.8, 3.0, 3.1]
    det = det_points(bonafide, spoof)
    least = 1.9 / 40 + 0.2
    assert dcf(det.frr, det.far).min() == pytest.approx(least)
    miss, alarm = binomial.clopper_pearson(1, 40), binomial.clopper_pearson(2, 10)
    down = ((1.9 * (1 / 40 - miss.low)) ** 2 + (0.2 - alarm.low) ** 2) ** 0.5
    up = ((1.9 * (miss.high - 1 / 40)) ** 2 + (alarm.high - 0.2) ** 2) ** 0.5
    found = binomial.of_minimum(dcf, det, bonafide=40, spoof=10)
    assert found == Interval(pytest.approx(least - down), pytest.approx(least + up))


def test_a_minimum_of_few_trials_ends_at_one_and_at_its_floor() -> None:
    det = det_points([2.0, 3.0], [0.0, 1.0])
    assert binomial.of_minimum(dcf, det, bonafide=2, spoof=2) == Interval(0.0, 1.0)

    def above_a_floor(frr: NDArray[np.float64], far: NDArray[np.float64]) -> NDArray[np.float64]:
        return 0.2 + 0.9 * frr + 0.8 * far

    assert binomial.of_minimum(above_a_floor, det, bonafide=2, spoof=2) == Interval(0.2, 1.0)


@pytest.mark.parametrize(("bonafide", "spoof"), [(27, 300), (300, 27), (4, 4)])
def test_an_eer_without_error_ends_where_the_smaller_class_does(bonafide: int, spoof: int) -> None:
    end = 100 * (1 - 0.025 ** (1 / min(bonafide, spoof)))
    right = evaluation.from_scores(np.ones(bonafide), np.zeros(spoof), folds=20)
    assert (right["eer"], right["eer_interval"]) == (0.0, [0.0, pytest.approx(end, abs=1e-5)])
    wrong = evaluation.from_scores(np.zeros(bonafide), np.ones(spoof), folds=20)
    assert (wrong["eer"], wrong["eer_interval"]) == (100.0, [pytest.approx(100 - end, abs=1e-5), 100.0])


@pytest.mark.parametrize(("errors", "widened"), [(4, True), (5, False)])
def test_an_eer_of_few_errors_reaches_as_far_as_their_limits(errors: int, widened: bool) -> None:
    # `errors` of 50 bona fide lie below all spoof but as many: both rates are errors / 50.
    kept, refused = np.ones(50), np.zeros(50)
    kept[:errors], refused[:errors] = -1, 2
    drawn = Interval(errors / 50 - 0.001, errors / 50 + 0.001)
    found = binomial.of_few_errors(drawn, det_points(kept, refused), bonafide=50, spoof=50)
    limits = binomial.clopper_pearson(errors, 50)
    half = 2**0.5 / 2  # two sides of the same length, each counted by half
    down, up = half * (errors / 50 - limits.low), half * (limits.high - errors / 50)
    counted = Interval(pytest.approx(errors / 50 - down), pytest.approx(errors / 50 + up))
    assert found == (counted if widened else drawn)
    assert binomial.of_few_errors(Interval(0.0, 1.0), det_points(kept, refused), bonafide=50, spoof=50) == Interval(
        0, 1
    )


def test_intervals_of_minima_hold_the_truth_where_the_percentiles_do_not() -> None:
    held = coverage.coverage(100, 200, 2.5, worlds=400, drawn=100, folds=40)
    for name in coverage.COSTS:
        assert held[name] >= 0.92
        assert held[f"{name}, percentile"] < 0.85


def test_the_truth_of_a_world_is_that_of_very_many_trials() -> None:
    truth = coverage.truths(2.5)
    rng = np.random.default_rng(0)
    found = evaluation.from_scores(rng.normal(2.5, 1, 300_000), rng.normal(0, 1, 300_000), folds=0)
    assert found["eer"] == pytest.approx(100 * truth["EER"], rel=0.01)
    assert found["min_dcf"] == pytest.approx(truth["min DCF"], rel=0.01)
