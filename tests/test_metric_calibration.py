"""Linear calibration against scikit-learn, a naive search, hand-derived optima, and the true ratio of two Gaussians."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri
from sklearn.linear_model import LogisticRegression

from pipeline.metrics import calibration
from pipeline.metrics.calibration import Calibration, fit
from pipeline.metrics.cllr import cllr, min_cllr
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import official_eer

Floats = NDArray[np.float64]

GRID = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=20)
WIDE = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)
SCORES = st.one_of(GRID, WIDE)


def calibrated(bonafide: Floats | list[float], spoof: Floats | list[float]) -> tuple[Calibration, float]:
    """The calibration of the scores, and their Cllr after it."""
    found = fit(bonafide, spoof)
    return found, cllr(found.apply(bonafide), found.apply(spoof))


def overlap(bonafide: list[float], spoof: list[float]) -> bool:
    """Is there a finite optimum with a slope above 0? By the exact sums, not by the code's means."""
    higher = math.fsum(bonafide) * len(spoof) > math.fsum(spoof) * len(bonafide)
    return min(bonafide) < max(spoof) and higher


def drawn(seed: int, counts: tuple[int, int], *, scale: float = 1.0, shift: float = 0.0) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed).normal
    return scale * draw(1.5, 1.0, counts[0]) + shift, scale * draw(0.0, 1.3, counts[1]) + shift


def regression(bonafide: Floats, spoof: Floats) -> tuple[float, float]:
    """Slope and offset by scikit-learn, both classes weighing the same."""
    model = LogisticRegression(C=np.inf, class_weight="balanced", solver="newton-cholesky", tol=1e-12)
    scores = np.concatenate((bonafide, spoof))
    model.fit(scores[:, None], np.arange(len(scores)) < len(bonafide))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def naive_cllr(slope: float, offset: float, bonafide: list[float], spoof: list[float]) -> float:
    """Cllr in bits by its definition, trial by trial."""
    of_bonafide = sum(math.log2(1 + math.exp(-slope * s - offset)) for s in bonafide) / len(bonafide)
    return (of_bonafide + sum(math.log2(1 + math.exp(slope * s + offset)) for s in spoof) / len(spoof)) / 2


def naive_search(bonafide: list[float], spoof: list[float]) -> tuple[float, float, float]:
    """The least Cllr by looking around on ever finer grids: its slope and offset, and itself."""
    slope, offset, width = 0.0, 0.0, 2.0
    least = naive_cllr(slope, offset, bonafide, spoof)
    while width > 1e-7:
        around = [(slope + i * width, offset + j * width) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best, a, b = min((naive_cllr(a, b, bonafide, spoof), a, b) for a, b in around if a >= 0)
        if best < least:
            least, slope, offset = best, a, b
        else:
            width /= 2
    return slope, offset, least


@pytest.mark.parametrize("counts", [(200, 200), (2580, 22800), (5, 3000), (400, 7)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.05, 0.9), (3.0, -20.0)])
def test_it_is_the_balanced_logistic_regression(counts: tuple[int, int], scale: float, shift: float) -> None:
    bonafide, spoof = drawn(1, counts, scale=scale, shift=shift)
    found = fit(bonafide, spoof)
    assert (found.slope, found.offset) == pytest.approx(regression(bonafide, spoof), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_naive_search_finds_the_same_optimum(seed: int) -> None:
    bonafide, spoof = (scores.tolist() for scores in drawn(seed, (9, 14)))
    assert overlap(bonafide, spoof)
    found, cost = calibrated(bonafide, spoof)
    slope, offset, least = naive_search(bonafide, spoof)
    assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=1e-5)
    assert cost == pytest.approx(least, abs=1e-12)
    assert cost == pytest.approx(naive_cllr(found.slope, found.offset, bonafide, spoof), abs=1e-12)


def test_two_scores_get_the_ratios_of_their_shares() -> None:
    # At score 0 a third of the bona fide and two thirds of the spoof, at 1 the rest: ratios of 1/2 and 2.
    found = fit([0.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    assert (found.slope, found.offset) == pytest.approx((2 * math.log(2), -math.log(2)), abs=1e-12)
    # Shares of 1/4 and 1/2, then 3/4 and 1/2, whatever the numbers of trials.
    found = fit([3.0, 5.0, 5.0, 5.0], [3.0, 5.0] * 50)
    assert found.apply([3.0, 5.0]) == pytest.approx([math.log(1 / 2), math.log(3 / 2)], abs=1e-12)


def test_gaussian_scores_get_their_true_ratio() -> None:
    # log N(s; 2, σ²) / N(s; −1, σ²) with σ = 1.5 is (3 s − 1.5) / σ²; the classes as their quantiles, so free of noise.
    at, deviation = (np.arange(100_000) + 0.5) / 100_000, 1.5
    found = fit(2 + deviation * ndtri(at), -1 + deviation * ndtri(at[::2]))
    assert (found.slope, found.offset) == pytest.approx((3 / 2.25, -1.5 / 2.25), abs=1e-3)


def test_scores_that_are_ratios_already_stay_as_they_are() -> None:
    at = (np.arange(100_000) + 0.5) / 100_000  # ratios of Gaussians 2 apart are Gaussians at ±2 of variance 4
    found = fit(2 + 2 * ndtri(at), -2 + 2 * ndtri(at))
    assert (found.slope, found.offset) == pytest.approx((1, 0), abs=1e-3)


def test_separated_classes_claim_no_more_than_their_numbers_bear() -> None:
    # Logits of Platt's targets: 4/5 of three bona fide, 1/9 of seven spoof.
    found = fit([1.0] * 3, [-1.0] * 7)
    assert found.apply([1.0, -1.0]) == pytest.approx([math.log(4), -math.log(8)], abs=1e-10)
    found = fit([1.0], [0.0])
    assert (found.slope, found.offset) == pytest.approx((math.log(4), -math.log(2)), abs=1e-12)
    # They touch at 1, whose ratio is 1 by symmetry; the others get the logits of 3/4 and 1/4.
    found = fit([1.0, 2.0], [0.0, 1.0])
    assert (found.slope, found.offset) == pytest.approx((math.log(3), -math.log(3)), abs=1e-12)


def test_separated_classes_equal_a_regression_on_soft_targets() -> None:
    bonafide, spoof = drawn(2, (40, 90))
    spoof -= spoof.max() - bonafide.min() + 0.1
    scores = np.concatenate((bonafide, spoof))
    target = np.repeat([41 / 42, 1 / 92], [40, 90])
    share = np.repeat([1 / 40, 1 / 90], [40, 90])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12)
    twice, labels = np.concatenate((scores, scores))[:, None], np.repeat([1, 0], 130)
    model.fit(twice, labels, sample_weight=np.concatenate((share * target, share * (1 - target))))
    found = fit(bonafide, spoof)
    assert (found.slope, found.offset) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-6)
    assert np.abs(found.apply(scores)).max() < 30


def test_one_trial_out_of_place_is_an_overlap() -> None:
    bonafide, spoof = [2.0, 3.0, 4.0, 0.5], [-1.0, -2.0, 0.6]
    found = fit(bonafide, spoof)
    assert (found.slope, found.offset) == pytest.approx(regression(np.array(bonafide), np.array(spoof)), rel=1e-6)


@pytest.mark.parametrize(
    ("bonafide", "spoof"),
    [
        ([0.1] * 3, [0.1] * 7),  # whose means differ by rounding
        ([7.0], [7.0]),
        ([0.0, 1.0], [2.0, 3.0]),  # separated the wrong way round
        ([0.0, 3.0, 1.0], [2.0, 3.0, 1.0]),
        ([-1.0, 1.0], [-2.0, 2.0]),  # equal means
        ([-1e100], [1e100]),
    ],
)
def test_scores_that_do_not_rise_say_nothing_and_no_sign_is_flipped(bonafide: list[float], spoof: list[float]) -> None:
    found, cost = calibrated(bonafide, spoof)
    assert found == Calibration(0.0, 0.0)
    assert cost == pytest.approx(1, abs=1e-15)


def test_equal_classes_of_other_numbers_cost_one_bit() -> None:
    found, cost = calibrated([0.1, 0.2] * 3, [0.2, 0.1] * 7)
    assert found.slope == pytest.approx(0, abs=1e-12)
    assert cost == pytest.approx(1, abs=1e-12)


def test_a_slope_that_only_rounding_makes_negative_is_0() -> None:
    bonafide, spoof = [0.1, -1.4, -1.8], [-1.4, -1.8, 0.1]  # equal, but their means are not
    assert np.mean(bonafide) > np.mean(spoof)
    assert fit(bonafide, spoof).slope == 0


@given(SCORES, SCORES, st.floats(0, 20), st.floats(-20, 20))
@example([2.0, 3.0], [0.0, 1.0], 20.0, -20.0)
def test_no_other_rising_line_costs_less(
    bonafide: list[float], spoof: list[float], slope: float, offset: float
) -> None:
    found, cost = calibrated(bonafide, spoof)
    assert min_cllr(bonafide, spoof) - 1e-12 <= cost <= 1 + 1e-12
    if min(bonafide) >= max(spoof) and len(set(bonafide + spoof)) > 1:
        return  # the classes are separated: steeper lines cost less
    scale = max(map(abs, bonafide + spoof)) or 1.0
    others = [(slope, offset), (slope / scale, offset), (found.slope * (1 + slope / 100), found.offset)]
    others += [(1.0, 0.0), (0.0, offset), (found.slope, found.offset + offset / 100)]
    kept, refused = np.array(bonafide), np.array(spoof)
    assert cost <= min(cllr(a * kept + b, a * refused + b) for a, b in others) + 1e-12


@given(SCORES, SCORES)
def test_the_slope_is_0_just_where_the_scores_do_not_rise(bonafide: list[float], spoof: list[float]) -> None:
    difference = math.fsum(bonafide) / len(bonafide) - math.fsum(spoof) / len(spoof)
    assume(abs(difference) > 1e-9 * max(map(abs, bonafide + spoof)))
    assert (fit(bonafide, spoof).slope > 0) == (difference > 0)


@given(GRID, GRID, st.sampled_from([1e-6, 0.3, 1000.0, 1e9]), st.sampled_from([0.0, -3.0, 50.0]))
def test_scaled_and_shifted_scores_get_the_same_ratios(
    bonafide: list[float], spoof: list[float], scale: float, shift: float
) -> None:
    found = fit(bonafide, spoof)
    kept, refused = scale * (np.array(bonafide) + shift), scale * (np.array(spoof) + shift)
    other = fit(kept, refused)
    assert other.slope * scale == pytest.approx(found.slope, rel=1e-7, abs=1e-12)
    assert other.apply(kept) == pytest.approx(found.apply(bonafide), rel=1e-7, abs=1e-9)
    assert other.apply(refused) == pytest.approx(found.apply(spoof), rel=1e-7, abs=1e-9)


@given(SCORES, SCORES)
def test_a_power_of_two_scales_the_slope_to_the_bit(bonafide: list[float], spoof: list[float]) -> None:
    found, other = fit(bonafide, spoof), fit(1024 * np.array(bonafide), 1024 * np.array(spoof))
    assert (other.slope * 1024, other.offset) == (found.slope, found.offset)


@given(GRID, GRID)
def test_negated_scores_of_the_other_class_negate_the_offset(bonafide: list[float], spoof: list[float]) -> None:
    found, other = fit(bonafide, spoof), fit(-np.array(spoof), -np.array(bonafide))
    assert (other.slope, -other.offset) == pytest.approx((found.slope, found.offset), rel=1e-7, abs=1e-9)


@given(GRID, GRID)
def test_every_trial_twice_changes_nothing_where_they_overlap(bonafide: list[float], spoof: list[float]) -> None:
    assume(overlap(bonafide, spoof))
    found, other = fit(bonafide, spoof), fit(bonafide * 2, spoof * 5)
    assert (other.slope, other.offset) == pytest.approx((found.slope, found.offset), rel=1e-7, abs=1e-9)


def test_the_eer_stays_and_the_costs_fall() -> None:
    bonafide, spoof = drawn(3, (500, 4000), scale=0.1, shift=0.5)
    found, cost = calibrated(bonafide, spoof)
    before, after = (
        official_eer(det_points(found_bonafide, found_spoof))
        for found_bonafide, found_spoof in ((bonafide, spoof), (found.apply(bonafide), found.apply(spoof)))
    )
    assert (before.eer, before.point) == (after.eer, after.point)
    assert min_cllr(bonafide, spoof) == min_cllr(found.apply(bonafide), found.apply(spoof))
    assert min_cllr(bonafide, spoof) < cost < cllr(bonafide, spoof) - 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_outlier_on_its_own_side_decides_nothing_however_far(sign: float) -> None:
    bonafide, spoof = drawn(4, (60, 80))
    pair = (np.append(bonafide, 1e3), spoof) if sign > 0 else (bonafide, np.append(spoof, -1e3))
    near = fit(*pair)
    far = fit(*(np.where(np.abs(scores) == 1e3, sign * 1e100, scores) for scores in pair))
    assert near.slope > 0.5
    assert (far.slope, far.offset) == pytest.approx((near.slope, near.offset), rel=1e-9)


def test_steps_whose_promise_is_less_than_rounding_are_taken() -> None:
    draw = np.random.default_rng(0).normal
    bonafide, spoof = draw(1.0, 1.0, 1000), draw(0.0, 1.3, 2000)
    pairs = ((np.append(bonafide, [e, 0.3 * e]), np.append(spoof, -0.5 * e)) for e in (1e4, 1e20, 1e60))
    near, *others = (fit(*pair) for pair in pairs)
    for far in others:
        assert (far.slope, far.offset) == pytest.approx((near.slope, near.offset), rel=1e-9)


def test_a_step_that_leads_too_far_is_halved() -> None:
    bonafide, spoof = [-0.5] * 2 + [-0.3] * 3 + [3.6] * 315, [-0.4] * 28
    found = fit(bonafide, spoof)
    shares = 1 / (1 + np.exp(found.apply(bonafide))), 1 / (1 + np.exp(-found.apply(spoof)))
    assert np.mean(shares[0]) == pytest.approx(np.mean(shares[1]), abs=1e-14)  # the gradient is 0
    assert np.mean(shares[0] * bonafide) == pytest.approx(np.mean(shares[1] * spoof), abs=1e-14)


def test_an_outlier_on_the_wrong_side_takes_what_was_learnt() -> None:
    bonafide, spoof = drawn(4, (60, 80))
    found, cost = calibrated(np.append(bonafide, 1e100), np.append(spoof, 1e99))
    assert 0 < found.slope < 1e-98
    assert 0.9 < cost < 1


@pytest.mark.parametrize("scale", [1e-90, 1e-30, 1e30, 1e98])
@pytest.mark.parametrize("gap", [0.0, 20.0])
def test_scores_of_any_size_get_the_same_ratios(scale: float, gap: float) -> None:
    bonafide, spoof = drawn(5, (60, 80))
    bonafide += gap  # which separates the classes
    found, other = fit(bonafide, spoof), fit(scale * bonafide, scale * spoof)
    assert other.apply(scale * bonafide) == pytest.approx(found.apply(bonafide), rel=1e-9, abs=1e-9)
    assert np.isfinite(other.apply([1e100, -1e100])).all()


def test_scores_of_many_sizes_have_an_optimum_too() -> None:
    # Symmetric: the offset is 0. Of ten trials two are wrong, by 1e-12; with a slope a the others cost little.
    sizes = np.array([1.0, 1e-3, 1e-6, 1e-9])
    found, cost = calibrated(np.append(sizes, -1e-12), np.append(-sizes, 1e-12))
    assert found.offset == pytest.approx(0, abs=1e-9)
    gradient = np.sum(sizes / (1 + np.exp(np.minimum(found.slope * sizes, 700.0)))) - 1e-12 / (
        1 + math.exp(-found.slope * 1e-12)
    )
    assert gradient == pytest.approx(0, abs=1e-18)
    assert 0.2 < cost < 0.21


def test_scores_far_from_0_keep_their_digits() -> None:
    bonafide, spoof = (np.round(scores, 6) for scores in drawn(6, (60, 80)))
    near, far = fit(bonafide, spoof), fit(bonafide + 2.0**20, spoof + 2.0**20)
    assert far.slope == pytest.approx(near.slope, rel=1e-8)
    assert far.apply(spoof + 2.0**20) == pytest.approx(near.apply(spoof), abs=1e-7)


def test_it_is_repeatable_and_leaves_its_input_alone() -> None:
    bonafide, spoof = drawn(7, (50, 70))
    kept, refused = bonafide.copy(), spoof.copy()
    assert fit(bonafide, spoof) == fit(bonafide, spoof)
    assert (bonafide == kept).all()
    assert (spoof == refused).all()
    assert fit([3, 1], [2, 0]) == fit(np.array([3.0, 1.0], np.float32), (2.0, 0.0))


def test_the_usual_scores_take_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    bonafide, spoof = drawn(8, (2580, 22800))
    for scale, gap, most in ((1.0, 0.0, 8), (0.01, 0.0, 8), (100.0, 0.0, 8), (1.0, 20.0, 16)):
        monkeypatch.setattr(calibration, "MOST_STEPS", most)
        fit(scale * (bonafide + gap), scale * spoof)
    monkeypatch.setattr(calibration, "MOST_STEPS", 3)
    with pytest.raises(AssertionError, match="no calibration after 3 steps"):
        fit(bonafide, spoof)


def test_a_calibration_is_a_line() -> None:
    line = Calibration(slope=2.0, offset=-1.0)
    assert line.apply([0.0, 1.0, -3.0]).tolist() == [-1.0, 1.0, -7.0]
    assert line.apply(np.ones((2, 3), np.float32)).dtype == np.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        line.slope = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("slope", "offset", "message"),
    [
        (-0.5, 0.0, "expected a slope from 0 to 1e\\+100, got -0.5"),
        (math.nan, 0.0, "got nan"),
        (math.inf, 0.0, "got inf"),
        (1.0, math.inf, "expected a finite offset, got inf"),
        (1.0, math.nan, "expected a finite offset, got nan"),
    ],
)
def test_what_is_no_rising_line_is_refused(slope: float, offset: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration(slope, offset)


@pytest.mark.parametrize(
    ("bonafide", "spoof", "message"),
    [
        ([], [1.0], "at least one bona fide score"),
        ([1.0], [], "at least one spoof score"),
        ([math.nan], [1.0], "got 1 nan of 1"),
        ([[1.0]], [1.0], r"got shape \(1, 1\)"),
        ([math.inf, 1.0], [0.0], r"expected scores from -1e\+100 to 1e\+100, got inf"),
        ([1.0], [0.0, -2e100], r"got -2e\+100"),
        ([2e-200, 1e-200], [0.0, 1.5e-200], "got scores from 0.0 to 2e-200 that are too close together; multiply"),
        ([5e-324], [0.0], "too close together"),
        ([1e-120, 1.0, 0.0], [-1e-120, -1.0, 1e-130], "too close together"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(bonafide: list[float], spoof: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(bonafide, spoof)
