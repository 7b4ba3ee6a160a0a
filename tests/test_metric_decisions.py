"""Decisions at a fixed threshold against hand-derived cases, a naive loop, and the DET points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.decisions import Decisions, at_threshold
from pipeline.metrics.det import det_points, equal_point

SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=20)


def test_rates_and_accuracies_by_hand() -> None:
    # Up to 1 is rejected: one of four bona fide; above it is accepted: two of three spoof.
    found = at_threshold([0.5, 1.5, 2.0, 3.0], [0.0, 1.2, 4.0], 1.0)
    assert found == Decisions(
        frr=1 / 4,
        far=2 / 3,
        accuracy=pytest.approx(4 / 7),
        balanced_accuracy=pytest.approx((3 / 4 + 1 / 3) / 2),
    )


def test_a_score_at_the_threshold_is_rejected() -> None:
    assert at_threshold([1.0], [1.0], 1.0) == Decisions(frr=1.0, far=0.0, accuracy=0.5, balanced_accuracy=0.5)
    below = math.nextafter(1.0, 0)
    assert at_threshold([1.0], [1.0], below) == Decisions(frr=0.0, far=1.0, accuracy=0.5, balanced_accuracy=0.5)


def test_accuracy_follows_the_larger_class_and_balanced_accuracy_does_not() -> None:
    found = at_threshold([0.0], [-1.0] * 99, 0.0)  # rejects everything
    assert (found.accuracy, found.balanced_accuracy) == (0.99, 0.5)


@pytest.mark.parametrize(("threshold", "frr", "far"), [(-math.inf, 0.0, 1.0), (math.inf, 1.0, 0.0)])
def test_everything_is_accepted_or_rejected_at_infinity(threshold: float, frr: float, far: float) -> None:
    found = at_threshold([0.0, 1.0], [0.0, 1.0], threshold)
    assert (found.frr, found.far) == (frr, far)


@given(SCORES, SCORES, st.integers(-7, 7).map(float))
def test_the_rates_are_those_of_a_loop(bonafide: list[float], spoof: list[float], threshold: float) -> None:
    found = at_threshold(bonafide, spoof, threshold)
    missed = sum(1 for score in bonafide if not score > threshold)
    passed = sum(1 for score in spoof if score > threshold)
    trials = len(bonafide) + len(spoof)
    assert (found.frr, found.far) == (missed / len(bonafide), passed / len(spoof))
    assert found.accuracy == pytest.approx((trials - missed - passed) / trials, abs=1e-15)
    assert found.balanced_accuracy == pytest.approx(
        ((len(bonafide) - missed) / len(bonafide) + (len(spoof) - passed) / len(spoof)) / 2, abs=1e-15
    )


@given(SCORES, SCORES)
def test_at_the_thresholds_of_a_det_it_rejects_what_the_ends_of_its_ties_reject(
    bonafide: list[float], spoof: list[float]
) -> None:
    det = det_points(bonafide, spoof)
    ends = np.append(det.threshold[1:] != det.threshold[:-1], True)
    for frr, far, threshold, is_end in zip(det.frr, det.far, det.threshold, ends, strict=True):
        found = at_threshold(bonafide, spoof, threshold)
        assert found.frr >= frr
        assert found.far <= far
        if is_end:
            assert (found.frr, found.far) == (frr, far)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_without_ties_the_eer_threshold_gives_the_rates_of_its_point(order: list[int], cut: int) -> None:
    det = det_points(order[:cut], order[cut:])
    point = equal_point(det.frr, det.far)
    found = at_threshold(order[:cut], order[cut:], det.threshold[point])
    assert (found.frr, found.far) == (det.frr[point], det.far[point])
    assert 1 - found.balanced_accuracy == pytest.approx((det.frr[point] + det.far[point]) / 2)


@pytest.mark.parametrize(
    ("bonafide", "spoof", "threshold", "message"),
    [
        ([], [1.0], 0.0, "at least one bona fide score"),
        ([1.0], [], 0.0, "at least one spoof score"),
        ([1.0], [float("nan")], 0.0, "got 1 nan of 1"),
        ([[1.0]], [1.0], 0.0, r"got shape \(1, 1\)"),
        ([1.0], [0.0], float("nan"), "a threshold that is a number, got nan"),
    ],
)
def test_what_is_no_score_or_threshold_is_refused(
    bonafide: list[float], spoof: list[float], threshold: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        at_threshold(bonafide, spoof, threshold)
