"""The detection cost of ASVspoof5 against golden numbers, hand-derived cases and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from pipeline.metrics.dcf import BAYES_THRESHOLD, act_dcf, dcf, min_dcf
from pipeline.metrics.det import det_points
from tests.golden import Arrays
from tests.metrics import NO_SCORES, SCORES, SETS


@pytest.mark.parametrize("name", SETS)
def test_both_costs_equal_the_reference(metric_arrays: Arrays, name: str) -> None:
    bonafide, spoof = metric_arrays[f"{name}/bona"], metric_arrays[f"{name}/spoof"]
    det = det_points(bonafide, spoof)
    assert min_dcf(det) == pytest.approx(float(metric_arrays[f"{name}/min_dcf"]), rel=0, abs=1e-12)
    assert act_dcf(bonafide, spoof) == pytest.approx(float(metric_arrays[f"{name}/act_dcf"]), rel=0, abs=1e-12)
    # Rounding may pick a neighbour of the reference's threshold: the cost there must be the least all the same.
    there = np.flatnonzero(det.threshold == metric_arrays[f"{name}/min_dcf_threshold"])
    assert dcf(det.frr, det.far)[there].min() == pytest.approx(min_dcf(det), abs=1e-12)


def test_all_golden_sets_are_tested(metric_arrays: Arrays) -> None:
    assert tuple(metric_arrays["set_names"].tolist()) == SETS


def test_the_threshold_follows_from_the_costs(metric_arrays: Arrays) -> None:
    assert pytest.approx(-math.log(1.9), abs=1e-15) == BAYES_THRESHOLD
    assert pytest.approx(float(metric_arrays["act_threshold"]), rel=0, abs=1e-12) == BAYES_THRESHOLD


def test_a_miss_costs_almost_two_false_alarms() -> None:
    # Sorted: s b s s b, so (FRR, FAR) is (0, 1) (0, 2/3) (1/2, 2/3) (1/2, 1/3) (1/2, 0) (1, 0).
    det = det_points([2.0, 5.0], [1.0, 3.0, 4.0])
    np.testing.assert_allclose(dcf(det.frr, det.far), [1, 2 / 3, 0.95 + 2 / 3, 0.95 + 1 / 3, 0.95, 1.9], atol=1e-15)
    assert min_dcf(det) == pytest.approx(2 / 3)


def test_a_score_at_the_threshold_is_accepted() -> None:
    above, below = math.nextafter(BAYES_THRESHOLD, 1), math.nextafter(BAYES_THRESHOLD, -1)
    assert act_dcf([BAYES_THRESHOLD, above], [below]) == 0
    assert act_dcf([BAYES_THRESHOLD, below], [below]) == pytest.approx(0.95)
    assert act_dcf([above], [below, BAYES_THRESHOLD]) == pytest.approx(0.5)


def test_systems_that_say_nothing_or_everything() -> None:
    assert min_dcf(det_points([0.0] * 3, [0.0] * 4)) == 1
    assert min_dcf(det_points([1.0, 2.0], [0.0, 0.5])) == 0
    assert act_dcf([-5.0], [-5.0]) == pytest.approx(1.9)  # it rejects everything
    assert act_dcf([5.0], [5.0]) == 1  # it accepts everything


@given(SCORES, SCORES)
def test_the_least_cost_is_that_of_a_loop_and_below_the_actual_one(bonafide: list[float], spoof: list[float]) -> None:
    det = det_points(bonafide, spoof)
    loop = min((0.95 * frr + 0.5 * far) / 0.5 for frr, far in zip(det.frr.tolist(), det.far.tolist(), strict=True))
    assert min_dcf(det) == pytest.approx(loop, abs=1e-12)
    assert min_dcf(det) <= act_dcf(bonafide, spoof) + 1e-12


@given(SCORES, SCORES)
def test_only_the_actual_cost_knows_the_scale(bonafide: list[float], spoof: list[float]) -> None:
    moved = det_points(np.exp(np.array(bonafide) / 3) - 7, np.exp(np.array(spoof) / 3) - 7)
    assert min_dcf(moved) == min_dcf(det_points(bonafide, spoof))
    assert act_dcf(np.array(bonafide) - 100, np.array(spoof) - 100) == pytest.approx(1.9)


@NO_SCORES
def test_what_is_no_list_of_scores_is_refused(bonafide: list[float], spoof: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act_dcf(bonafide, spoof)
