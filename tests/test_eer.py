"""The EER against golden numbers, published score files, hand-derived cases and a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.det import Det, det_points
from pipeline.metrics.eer import eer_of, interpolated_eer, official_eer
from tests import beside
from tests.beside import needs
from tests.golden import Arrays
from tests.metrics import FLOATS, NO_SCORES, SCORES, SETS


def eer(bonafide: list[float], spoof: list[float]) -> float:
    return official_eer(det_points(bonafide, spoof)).eer


def naive_det(bonafide: list[float], spoof: list[float]) -> list[tuple[float, float]]:
    """(FRR, FAR) of every point by walking through the trials one by one."""
    trials = sorted([(score, 0) for score in bonafide] + [(score, 1) for score in spoof])
    rejected, accepted = 0, len(spoof)
    points = [(0.0, 1.0)]
    for _, is_spoof in trials:
        rejected, accepted = (rejected, accepted - 1) if is_spoof else (rejected + 1, accepted)
        points.append((rejected / len(bonafide), accepted / len(spoof)))
    return points


@pytest.mark.parametrize("name", SETS)
def test_det_points_equal_the_reference(metric_arrays: Arrays, name: str) -> None:
    det = det_points(metric_arrays[f"{name}/bona"], metric_arrays[f"{name}/spoof"])
    for key in ("frr", "far", "threshold"):
        np.testing.assert_allclose(getattr(det, key), metric_arrays[f"{name}/det_{key}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SETS)
def test_the_eer_equals_the_reference(metric_arrays: Arrays, name: str) -> None:
    bonafide, spoof = metric_arrays[f"{name}/bona"], metric_arrays[f"{name}/spoof"]
    found = official_eer(det_points(bonafide, spoof))
    assert found.eer == pytest.approx(float(metric_arrays[f"{name}/eer"]), rel=0, abs=1e-12)
    assert found.threshold == pytest.approx(float(metric_arrays[f"{name}/eer_threshold"]), rel=0, abs=1e-12)
    negated = official_eer(det_points(-bonafide, -spoof))
    assert negated.eer == pytest.approx(float(metric_arrays[f"{name}/eer_negated"]), rel=0, abs=1e-12)


def test_all_golden_sets_are_tested(metric_arrays: Arrays) -> None:
    assert tuple(metric_arrays["set_names"].tolist()) == SETS


# Percent, of score files on the ASVspoof 2019 LA evaluation set; the OC-Softmax file holds higher = spoof.
PUBLISHED = {
    "ocsoftmax": (-1, 2.17799, (0.12, 0.18, 0.12, 1.14, 0.12, 0.47, 0.22, 0.69, 1.40, 0.33, 9.18, 0.90, 0.87)),
    "amsoftmax": (1, 3.16500, (0.22, 0.06, 0.02, 0.63, 0.02, 0.53, 0.27, 0.51, 0.69, 0.51, 13.45, 4.27, 0.86)),
    "softmax": (1, 5.05777, (0.37, 0.14, 0.02, 1.18, 0.37, 0.43, 0.69, 4.99, 5.44, 0.23, 23.48, 0.20, 1.34)),
}


@needs(beside.SCORES)
@pytest.mark.parametrize("system", PUBLISHED)
def test_published_score_files_give_their_published_values(system: str) -> None:
    path = beside.SCORES / f"la19_eval_{system}.txt"
    sign, pooled, attacks = PUBLISHED[system]
    rows = [line.split() for line in path.read_text().splitlines()]
    attack = np.array([row[1] for row in rows])
    is_bonafide = np.array([row[2] == "bonafide" for row in rows])
    scores = sign * np.array([float(row[3]) for row in rows])
    assert round(100 * eer_of(scores, is_bonafide).eer, 5) == pooled
    bonafide, spoof = scores[is_bonafide], scores[~is_bonafide]
    names = [f"A{number:02d}" for number in range(7, 20)]
    single = [official_eer(det_points(bonafide, spoof[attack[~is_bonafide] == name])).eer for name in names]
    assert tuple(round(100 * value, 2) for value in single) == attacks


def test_one_bona_fide_below_one_spoof_of_three_each() -> None:
    # Sorted: s s b s b b. After four: one of three bona fide rejected, no spoof accepted; after three: 1/3 and 1/3.
    found = official_eer(det_points([3.0, 5.0, 6.0], [1.0, 2.0, 4.0]))
    assert (found.eer, found.threshold, found.point) == (pytest.approx(1 / 3), 3.0, 3)


def test_the_mean_is_taken_where_the_rates_never_meet() -> None:
    # Sorted: s b s b b. Points (FRR, FAR): (0, 1) (0, 1/2) (1/3, 1/2) (1/3, 0): least apart at the third.
    found = official_eer(det_points([2.0, 4.0, 5.0], [1.0, 3.0]))
    assert found.eer == pytest.approx(5 / 12)
    assert found.threshold == 2.0


def test_the_eer_of_scores_and_labels_is_that_of_the_two_classes() -> None:
    scores, is_bonafide = np.array([4.0, 1.0, 2.0, 3.0, 5.0]), np.array([True, False, True, False, True])
    assert eer_of(scores, is_bonafide) == official_eer(det_points([2.0, 4.0, 5.0], [1.0, 3.0]))
    with pytest.raises(ValueError, match="at least one bona fide"):
        eer_of(scores, np.zeros(5, dtype=bool))


def test_separated_and_inverted_classes() -> None:
    assert eer([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert eer([0.0, 1.0], [2.0, 3.0]) == 1.0


def test_equal_scores_give_one_officially_and_one_half_interpolated() -> None:
    det = det_points([0.5] * 3, [0.5] * 7)
    assert official_eer(det).eer == 1.0
    assert interpolated_eer(det) == 0.5


def test_the_interpolated_eer_of_a_tie_by_hand() -> None:
    # One score, 1, is shared: (FRR, FAR) goes straight from (0, 1/2) to (1/2, 0), crossing the diagonal at 1/4.
    assert interpolated_eer(det_points([1.0, 2.0], [0.0, 1.0])) == 0.25


def test_interpolation_starts_at_the_first_point_where_its_threshold_rounds_away() -> None:
    assert 1e20 - 0.001 == 1e20
    assert interpolated_eer(det_points([1e20], [1e20])) == 0.5


@given(SCORES, SCORES)
def test_the_vectorised_walk_equals_a_loop(bonafide: list[float], spoof: list[float]) -> None:
    det, points = det_points(bonafide, spoof), naive_det(bonafide, spoof)
    assert list(zip(det.frr.tolist(), det.far.tolist(), strict=True)) == points
    frr, far = min(points, key=lambda point: abs(point[0] - point[1]))  # min takes the first of equals
    assert official_eer(det).eer == (frr + far) / 2


@given(FLOATS, FLOATS)
def test_rates_are_monotone_and_thresholds_reject_what_they_say(bonafide: list[float], spoof: list[float]) -> None:
    det = det_points(bonafide, spoof)
    assert (np.diff(det.frr) >= 0).all()
    assert (np.diff(det.far) <= 0).all()
    assert (det.frr[0], det.far[0], det.frr[-1], det.far[-1]) == (0.0, 1.0, 1.0, 0.0)
    ends = np.append(det.threshold[1:] != det.threshold[:-1], True)
    for frr, far, threshold in zip(det.frr[ends], det.far[ends], det.threshold[ends], strict=True):
        assert frr == np.mean(np.array(bonafide) <= threshold)
        assert far == np.mean(np.array(spoof) > threshold)


@given(SCORES, SCORES)
def test_a_monotone_transform_of_the_scores_changes_nothing(bonafide: list[float], spoof: list[float]) -> None:
    before = det_points(bonafide, spoof)
    after = det_points(np.exp(np.array(bonafide) / 3) - 7, np.exp(np.array(spoof) / 3) - 7)
    assert official_eer(after).eer == official_eer(before).eer
    assert official_eer(after).point == official_eer(before).point
    assert interpolated_eer(after) == interpolated_eer(before)


@given(SCORES, SCORES)
def test_the_interpolated_eer_is_symmetric_under_negation(bonafide: list[float], spoof: list[float]) -> None:
    turned = det_points([-score for score in bonafide], [-score for score in spoof])
    assert interpolated_eer(turned) == pytest.approx(1 - interpolated_eer(det_points(bonafide, spoof)), abs=1e-12)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_without_ties_both_values_are_within_half_a_step(order: list[int], cut: int) -> None:
    bonafide, spoof = order[:cut], order[cut:]
    det = det_points(bonafide, spoof)
    step = 1 / min(len(bonafide), len(spoof))
    assert abs(official_eer(det).eer - interpolated_eer(det)) <= step / 2 + 1e-12


@NO_SCORES
def test_what_is_no_list_of_scores_is_refused(bonafide: list[float], spoof: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        det_points(bonafide, spoof)


def test_results_are_frozen() -> None:
    det = det_points([1.0], [0.0])
    assert isinstance(det, Det)
    with pytest.raises(AttributeError):
        det.frr = det.far  # type: ignore[misc]
