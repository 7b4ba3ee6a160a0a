"""Risk-coverage curves against values by hand and a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.abstention import risk_coverage
from pipeline.metrics.calibration import Calibration
from pipeline.report import curves
from tests.metrics import NO_SCORES, SCORES


def test_the_curve_by_hand() -> None:
    # By distance from 1: 4 (spoof, wrong) at 3, then 3 (bona fide) and -1 (spoof) at 2, then 1.5 (spoof, wrong).
    found = risk_coverage([3.0], [4.0, -1.0, 1.5], 1.0)
    assert found.coverage.tolist() == [1 / 4, 3 / 4, 1.0]
    assert found.risk.tolist() == [1.0, 1 / 3, 1 / 2]
    assert found.aurc == pytest.approx((1 + 2 / 3 + 1 / 2) / 4)


def test_without_errors_there_is_no_risk_and_with_errors_last_little() -> None:
    assert risk_coverage([1.0, 2.0], [-1.0], 0.0).aurc == 0
    last, first = risk_coverage([2.0, 3.0, -1.0], [-4.0], 0.0), risk_coverage([2.0, 3.0, -5.0], [-4.0], 0.0)
    assert (last.aurc, first.aurc) == (pytest.approx(1 / 16), pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4))
    assert last.risk[-1] == first.risk[-1] == 1 / 4


@given(SCORES, SCORES, st.integers(-7, 7).map(float))
def test_the_curve_is_that_of_a_loop(bonafide: list[float], spoof: list[float], threshold: float) -> None:
    found = risk_coverage(bonafide, spoof, threshold)
    trials = [(abs(s - threshold), s <= threshold) for s in bonafide] + [
        (abs(s - threshold), s > threshold) for s in spoof
    ]
    points, area = [], 0.0
    for certainty in sorted({certainty for certainty, _ in trials}, reverse=True):
        decided = [wrong for own, wrong in trials if own >= certainty]
        points.append((len(decided) / len(trials), sum(decided) / len(decided)))
        area += sum(own == certainty for own, _ in trials) / len(trials) * points[-1][1]
    assert list(zip(found.coverage.tolist(), found.risk.tolist(), strict=True)) == points
    assert found.aurc == pytest.approx(area, abs=1e-12)


@given(SCORES, SCORES, st.integers(-7, 7).map(float))
def test_calibrated_scores_give_the_same_curve(bonafide: list[float], spoof: list[float], threshold: float) -> None:
    to_ratios = Calibration(slope=2.0, offset=-4.0)  # exact in floats
    raw = risk_coverage(bonafide, spoof, threshold)
    ratios = risk_coverage(to_ratios.apply(bonafide), to_ratios.apply(spoof), 2.0 * threshold - 4.0)
    np.testing.assert_array_equal(raw.risk, ratios.risk)
    assert raw.aurc == ratios.aurc


@NO_SCORES
def test_what_is_no_list_of_scores_is_refused(bonafide: list[float], spoof: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        risk_coverage(bonafide, spoof, 0.0)
    with pytest.raises(ValueError, match="finite threshold"):
        risk_coverage([1.0], [0.0], float("inf"))


def test_a_long_curve_is_thinned_to_true_points_with_both_ends() -> None:
    rng = np.random.default_rng(1)
    whole = risk_coverage(rng.normal(1, 1, 2_000), rng.normal(0, 1, 3_000), 0.5)
    found = curves.thinned_risk(whole)
    assert len(found.coverage) == curves.RISK_POINTS
    assert (found.coverage[0], found.coverage[-1], found.aurc) == (whole.coverage[0], 1.0, whole.aurc)
    assert np.diff(found.coverage).max() < 1.5 / curves.RISK_POINTS
    points = set(zip(whole.coverage.tolist(), whole.risk.tolist(), strict=True))
    assert set(zip(found.coverage.tolist(), found.risk.tolist(), strict=True)) <= points
