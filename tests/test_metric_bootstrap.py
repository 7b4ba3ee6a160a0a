"""The bootstrap against resamples done plainly, theory, and simulated worlds whose truth is known."""

from __future__ import annotations

from collections import Counter
from math import factorial
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.metrics import bootstrap
from pipeline.metrics.bootstrap import Interval, Paired, Statistic, intervals, paired
from pipeline.metrics.det import det_points, equal_point

Scores = NDArray[np.float64]

LABELLED = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda trials: len({label for _, label in trials}) == 2
)


def eer(frr: Scores, far: Scores) -> float:
    point = equal_point(frr, far)
    return float(frr[point] + far[point]) / 2


def cost(miss: float, false_alarm: float) -> Statistic:
    return lambda frr, far: float((miss * frr + false_alarm * far).min())


# The shapes that detection costs have, one of either class cheap; and the plain EER.
STATISTICS = {"eer": eer, "few misses": cost(1.9, 1.0), "few alarms": cost(0.3, 1.0), "even": cost(1.0, 1.0)}


def plain(
    scores: Scores, is_bonafide: NDArray[np.bool_], statistic: Statistic, *, folds: int, seed: int
) -> list[float]:
    """The statistic of every fold: gather the drawn scores, sort them, walk all points."""
    bonafide, spoof = scores[is_bonafide], scores[~is_bonafide]
    values = []
    for fold in range(folds):
        rng = np.random.default_rng((seed, fold))
        kept = bonafide[rng.integers(bonafide.size, size=bonafide.size)]
        refused = spoof[rng.integers(spoof.size, size=spoof.size)]
        det = det_points(kept, refused)
        values.append(statistic(det.frr, det.far))
    return values


@pytest.fixture
def trial_by_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every trial on its own, as `plain` does; else it is only counted how often a large cell is drawn."""
    monkeypatch.setattr(bootstrap, "LARGE", 10**9)


def ends(values: list[float], level: float = 0.95) -> Interval:
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return Interval(low=pytest.approx(float(low), abs=1e-15), high=pytest.approx(float(high), abs=1e-15))


def normal(bonafide: int, spoof: int, *, apart: float, seed: int) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores of unit variance, the classes so far apart; in random order."""
    rng = np.random.default_rng(seed)
    is_bonafide = rng.permutation(np.arange(bonafide + spoof) < bonafide)
    return rng.standard_normal(bonafide + spoof) + apart * is_bonafide, is_bonafide


def width(interval: Interval) -> float:
    return interval.high - interval.low


SETS = ("plain", "ties", "separated", "inverted", "nothing", "imbalance", "more bona fide", "tiny")


def sampled(name: str) -> tuple[Scores, NDArray[np.bool_]]:
    if name == "tiny":
        return np.array([0.3, 0.1, 0.2]), np.array([True, True, False])
    sizes = {"imbalance": (9, 900), "more bona fide": (700, 50)}
    apart = {"separated": 40.0, "inverted": -40.0, "nothing": 0.0}
    scores, is_bonafide = normal(*sizes.get(name, (60, 200)), apart=apart.get(name, 1.5), seed=3)
    return (np.round(scores) if name == "ties" else scores), is_bonafide


@pytest.mark.usefixtures("trial_by_trial")
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("name", SETS)
def test_every_interval_is_that_of_plain_resampling(name: str, statistic: str) -> None:
    scores, is_bonafide = sampled(name)
    found = intervals(scores, is_bonafide, {statistic: STATISTICS[statistic]}, folds=40, seed=11)
    assert found == {statistic: ends(plain(scores, is_bonafide, STATISTICS[statistic], folds=40, seed=11))}


@given(LABELLED, st.integers(0, 2**32))
def test_every_resample_is_exact(trials: list[tuple[int, bool]], seed: int) -> None:
    scores = np.array([float(score) for score, _ in trials])
    is_bonafide = np.array([label for _, label in trials])
    found = intervals(scores, is_bonafide, STATISTICS, folds=1, seed=seed)
    for name, statistic in STATISTICS.items():
        (value,) = plain(scores, is_bonafide, statistic, folds=1, seed=seed)
        assert found[name] == Interval(low=value, high=value)


@given(LABELLED, st.integers(0, 2**32))
def test_a_statistic_sees_points_of_the_walk_and_no_others(trials: list[tuple[int, bool]], seed: int) -> None:
    scores = np.array([float(score) for score, _ in trials])
    is_bonafide = np.array([label for _, label in trials])
    shown: list[list[tuple[float, float]]] = []
    walked: list[list[tuple[float, float]]] = []
    for points, run in ((shown, intervals), (walked, plain)):

        def note(frr: Scores, far: Scores, points: list[list[tuple[float, float]]] = points) -> float:
            points.append(list(zip(frr.tolist(), far.tolist(), strict=True)))
            return 0.0

        run(scores, is_bonafide, {"": note} if run is intervals else note, folds=1, seed=seed)  # type: ignore[operator]
    (some,), (every,) = shown, walked
    assert set(some) <= set(every)
    assert some == sorted(some, key=lambda point: (point[0], -point[1]))
    assert (some[0], some[-1]) == ((0.0, 1.0), (1.0, 0.0))


@pytest.mark.usefixtures("trial_by_trial")
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_level_is_the_share_of_resamples_inside(level: float) -> None:
    scores, is_bonafide = normal(40, 300, apart=1.5, seed=0)
    values = plain(scores, is_bonafide, eer, folds=200, seed=5)
    found = intervals(scores, is_bonafide, {"eer": eer}, folds=200, seed=5, level=level)["eer"]
    assert found == ends(values, level)
    inside = [np.mean([found.low <= value <= found.high for value in values])]
    inside.append(np.mean([found.low < value < found.high for value in values]))
    assert inside[0] + 0.01 >= level >= inside[1] - 0.01


def test_draws_depend_on_seed_and_fold_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, is_bonafide = normal(500, 3_000, apart=2.0, seed=1)
    found = intervals(scores, is_bonafide, STATISTICS, folds=50, seed=7)
    assert intervals(scores, is_bonafide, STATISTICS, folds=50, seed=7) == found
    assert intervals(scores, is_bonafide, {"even": STATISTICS["even"]}, folds=50, seed=7)["even"] == found["even"]
    assert intervals(scores, is_bonafide, STATISTICS, folds=50, seed=8)["eer"] != found["eer"]
    np.random.seed(0)  # noqa: NPY002
    monkeypatch.setattr(bootstrap, "MOST_THREADS", 1)
    assert intervals(scores, is_bonafide, STATISTICS, folds=50, seed=7) == found


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    is_bonafide = rng.random(300) < 0.4
    scores = rng.normal(size=300) + is_bonafide
    alone = intervals(scores, is_bonafide, STATISTICS, folds=99, seed=1)
    monkeypatch.setattr(bootstrap, "FEW", 0)
    assert intervals(scores, is_bonafide, STATISTICS, folds=99, seed=1) == alone


def test_the_interval_knows_only_the_order_of_the_scores() -> None:
    scores, is_bonafide = normal(300, 900, apart=2.0, seed=1)
    found = intervals(scores, is_bonafide, STATISTICS, folds=30, seed=7)
    assert intervals(np.exp(scores) - 3, is_bonafide, STATISTICS, folds=30, seed=7) == found


@pytest.mark.parametrize("large", [1, 20, 64])
@pytest.mark.parametrize("name", SETS)
def test_what_is_drawn_by_the_cell_is_a_resample_too(monkeypatch: pytest.MonkeyPatch, name: str, large: int) -> None:
    monkeypatch.setattr(bootstrap, "LARGE", large)
    scores, is_bonafide = sampled(name)
    walk = bootstrap._walk(scores, is_bonafide)
    ((kept, refused),) = bootstrap._draw_trials([walk])(np.random.default_rng(0))
    drawn = []
    for mine, block, counts in ((is_bonafide, walk.bonafide, kept), (~is_bonafide, walk.spoof, refused)):
        assert counts.sum() == mine.sum()
        of_block = {number: scores[mine][block == number] for number in range(walk.blocks)}
        times = {number: int(count) for number, count in enumerate(counts) if count}
        drawn.append(np.concatenate([np.resize(of_block[number], count) for number, count in times.items()]))
    det, points = det_points(*drawn), bootstrap._det(kept, refused)
    assert [statistic(*points) for statistic in STATISTICS.values()] == [
        statistic(det.frr, det.far) for statistic in STATISTICS.values()
    ]


def test_cells_are_drawn_as_often_as_their_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two systems, six trials of one class: cells of three, of two and of one trial.
    blocks, draws = np.array([[0, 0, 0, 1, 1, 3], [2, 2, 2, 0, 0, 0]]), 6_000
    found = {}
    for large in (1, 2, 3, 4):  # all cells large, ..., none
        monkeypatch.setattr(bootstrap, "LARGE", large)
        cells, rng = bootstrap._cells(blocks, [4, 3]), np.random.default_rng(large)
        found[large] = Counter(tuple(np.concatenate(cells.draw(rng)).astype(int).tolist()) for _ in range(draws))
    for outcome in set().union(*found.values()):
        first, second, none, last, *others = outcome
        assert (none, *others) == (0, second + last, 0, first)  # the second system has the same trials elsewhere
        ways = factorial(6) / (factorial(first) * factorial(second) * factorial(last))
        expected = draws * ways * (3 / 6) ** first * (2 / 6) ** second * (1 / 6) ** last
        for large in found:
            assert abs(found[large][outcome] - expected) < 5 * expected**0.5 + 5


def test_drawing_by_the_cell_and_by_the_trial_give_the_same_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, is_bonafide = normal(1_000, 9_000, apart=3.0, seed=2)
    by_cell = intervals(scores, is_bonafide, STATISTICS, folds=2_000, seed=7)
    monkeypatch.setattr(bootstrap, "LARGE", 10**9)
    by_trial = intervals(scores, is_bonafide, STATISTICS, folds=2_000, seed=7)
    assert by_cell != by_trial
    for name, one in by_cell.items():
        other = by_trial[name]
        assert width(one) == pytest.approx(width(other), rel=0.12)
        assert one.low + one.high == pytest.approx(other.low + other.high, abs=0.1 * width(one))


def test_the_width_is_that_of_theory() -> None:
    # Around the threshold both empirical rates are binomial, and of normal classes of one variance the EER is moved by
    # half of either: var = e (1 − e) (1/B + 1/S) / 4.
    bonafide, spoof, apart = 3_000, 12_000, 3.0
    truth = NormalDist().cdf(-apart / 2)
    scores, is_bonafide = normal(bonafide, spoof, apart=apart, seed=4)
    found = intervals(scores, is_bonafide, {"eer": eer}, folds=2_000, seed=0)["eer"]
    deviation = (truth * (1 - truth) * (1 / bonafide + 1 / spoof)) ** 0.5 / 2
    assert width(found) == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert found.low < truth < found.high


def test_ninety_percent_of_ninety_percent_intervals_hold_the_truth() -> None:
    truth, worlds = NormalDist().cdf(-0.75), 150
    held = 0
    for world in range(worlds):
        scores, is_bonafide = normal(150, 450, apart=1.5, seed=1_000 + world)
        found = intervals(scores, is_bonafide, {"eer": eer}, folds=50, seed=world, level=0.9)["eer"]
        held += found.low <= truth <= found.high
    assert held / worlds == pytest.approx(0.9, abs=0.075)  # three standard errors


def test_no_error_has_an_interval_of_no_width() -> None:
    found = intervals([2.0, 3.0, 0.0, 1.0], [True, True, False, False], {"eer": eer}, folds=20, seed=0)
    assert found == {"eer": Interval(low=0.0, high=0.0)}


# Groups


def speakers(count: int, each: int, *, spread: float, seed: int) -> tuple[Scores, NDArray[np.bool_], NDArray[np.str_]]:
    """Speakers with as many trials of either class; each has a bias of its own on its bona fide and on its spoof."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(count), 2 * each)
    is_bonafide = np.tile(np.arange(2 * each) < each, count)
    bias = spread * rng.standard_normal((count, 2))[number, is_bonafide.astype(int)]
    scores = rng.standard_normal(number.size) + 2 * is_bonafide + bias
    return scores, is_bonafide, np.array([f"speaker {index}" for index in number])


def plain_groups(
    scores: Scores, is_bonafide: NDArray[np.bool_], groups: NDArray[np.str_], statistic: Statistic, *, seed: int
) -> float:
    """Draw groups from each stratum, put all their trials together, walk all points."""
    strata: dict[tuple[bool, bool], list[str]] = {(True, True): [], (True, False): [], (False, True): []}
    for name in sorted(set(groups.tolist())):
        labels = is_bonafide[groups == name]
        strata[bool(labels.any()), bool((~labels).any())].append(name)
    rng = np.random.default_rng((seed, 0))
    trials: list[int] = []
    for members in strata.values():
        if members:
            for drawn in rng.integers(len(members), size=len(members)):
                trials += np.flatnonzero(groups == members[drawn]).tolist()
    labels, resampled = is_bonafide[trials], scores[trials]
    det = det_points(resampled[labels], resampled[~labels])
    return statistic(det.frr, det.far)


@given(
    st.lists(st.tuples(st.integers(-6, 6), st.booleans(), st.sampled_from("abcdef")), min_size=2, max_size=40),
    st.integers(0, 2**32),
)
def test_every_resample_of_groups_is_exact(trials: list[tuple[int, bool, str]], seed: int) -> None:
    trials += [(0, True, "a"), (1, False, "a"), (-1, True, "b"), (2, False, "b")]  # two that hold both classes
    scores = np.array([float(score) for score, _, _ in trials])
    is_bonafide = np.array([label for _, label, _ in trials])
    groups = np.array([name for _, _, name in trials])
    found = intervals(scores, is_bonafide, STATISTICS, folds=1, seed=seed, groups=groups)
    for name, statistic in STATISTICS.items():
        value = plain_groups(scores, is_bonafide, groups, statistic, seed=seed)
        assert found[name] == Interval(low=value, high=value)


def test_groups_of_one_trial_are_trials() -> None:
    scores, is_bonafide = normal(60, 200, apart=1.5, seed=2)
    alone = intervals(scores, is_bonafide, STATISTICS, folds=50, seed=1, groups=np.arange(260))
    assert alone == intervals(scores, is_bonafide, STATISTICS, folds=50, seed=1)


def test_trials_that_resemble_each_other_count_for_less() -> None:
    scores, is_bonafide, groups = speakers(40, 50, spread=1.0, seed=0)
    single = intervals(scores, is_bonafide, {"eer": eer}, folds=300, seed=1)["eer"]
    grouped = intervals(scores, is_bonafide, {"eer": eer}, folds=300, seed=1, groups=groups)["eer"]
    assert width(grouped) > 2 * width(single)


def test_groups_that_mean_nothing_change_little() -> None:
    scores, is_bonafide, groups = speakers(200, 10, spread=0.0, seed=0)
    single = intervals(scores, is_bonafide, {"eer": eer}, folds=1_000, seed=1)["eer"]
    grouped = intervals(scores, is_bonafide, {"eer": eer}, folds=1_000, seed=1, groups=groups)["eer"]
    assert width(grouped) == pytest.approx(width(single), rel=0.2)


def test_intervals_of_new_speakers_hold_the_truth_and_those_of_trials_do_not() -> None:
    # A score is the sum of two normal draws: the EER over all speakers is that of classes 2 / √2 deviations apart.
    truth, worlds = NormalDist().cdf(-1 / 2**0.5), 60
    held = {"trials": 0, "groups": 0}
    for world in range(worlds):
        scores, is_bonafide, groups = speakers(50, 10, spread=1.0, seed=world)
        for name, given_groups in (("trials", None), ("groups", groups)):
            found = intervals(scores, is_bonafide, {"eer": eer}, folds=50, seed=0, groups=given_groups)["eer"]
            held[name] += found.low <= truth <= found.high
    assert held["groups"] / worlds > 0.85
    assert held["trials"] / worlds < 0.75


def test_a_class_that_few_speakers_have_is_never_lost() -> None:
    scores, is_bonafide = normal(2, 300, apart=1.5, seed=2)
    groups = np.where(is_bonafide, "the only one", np.arange(302).astype(str))
    found = intervals(scores, is_bonafide, STATISTICS, folds=100, seed=1, groups=groups)
    assert all(0 <= interval.low <= interval.high for interval in found.values())


# Pairs


def pair(*, better: float, seed: int, trials: int = 400) -> tuple[Scores, Scores, NDArray[np.bool_]]:
    """Two systems that share most of what makes a trial hard; the first may be better."""
    rng = np.random.default_rng(seed)
    is_bonafide = np.arange(trials) % 4 == 0
    common = 2 * rng.standard_normal(trials) + 4 * is_bonafide
    first, second = rng.standard_normal((2, trials))
    return common + first + better * is_bonafide, common + second, is_bonafide


@pytest.mark.usefixtures("trial_by_trial")
def test_a_pair_is_the_difference_on_the_same_resamples() -> None:
    a, b, is_bonafide = pair(better=0.5, seed=0)
    found = paired(a, b, is_bonafide, eer, folds=60, seed=3)
    both = [plain(scores, is_bonafide, eer, folds=60, seed=3) for scores in (a, b)]
    differences = [first - second for first, second in zip(*both, strict=True)]
    sample = [det_points(scores[is_bonafide], scores[~is_bonafide]) for scores in (a, b)]
    beyond = 1 + min(sum(value <= 0 for value in differences), sum(value >= 0 for value in differences))
    assert found == Paired(
        difference=eer(sample[0].frr, sample[0].far) - eer(sample[1].frr, sample[1].far),
        low=ends(differences).low,
        high=ends(differences).high,
        p_value=min(1.0, 2 * beyond / 61),
    )
    assert found.difference < 0


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_system_does_not_differ_from_itself(statistic: str) -> None:
    scores, _, is_bonafide = pair(better=2, seed=0, trials=1_000)
    found = paired(scores, scores, is_bonafide, STATISTICS[statistic], folds=50, seed=3)
    assert found == Paired(difference=0.0, low=0.0, high=0.0, p_value=1.0)
    assert paired(scores, np.exp(scores), is_bonafide, STATISTICS[statistic], folds=50, seed=3) == found


@pytest.mark.parametrize("large", [2, 64])
def test_turned_round_the_difference_changes_its_sign_alone(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(bootstrap, "LARGE", large)
    a, b, is_bonafide = pair(better=0.2, seed=1, trials=4_000)
    a, b = np.round(2 * a), np.round(2 * b)  # so that many trials share a cell
    there, back = (paired(*both, is_bonafide, eer, folds=99, seed=3) for both in ((a, b), (b, a)))
    assert (back.difference, back.p_value) == (-there.difference, there.p_value)
    assert (back.low, back.high) == (pytest.approx(-there.high), pytest.approx(-there.low))


def test_what_is_plainly_better_has_the_least_p_value() -> None:
    a, b, is_bonafide = pair(better=3, seed=0, trials=2_000)
    found = paired(a, b, is_bonafide, eer, folds=199, seed=3)
    assert found.p_value == 2 / 200
    assert found.low < found.difference < found.high < 0
    assert paired([2.0, 0.0], [0.0, 2.0], [True, False], eer, folds=99, seed=0) == Paired(-1.0, -1.0, -1.0, 2 / 100)


def test_equal_systems_are_seldom_told_apart() -> None:
    worlds = 100
    p_values = np.array(
        [
            paired(*pair(better=0, seed=world, trials=2_000), eer, folds=50, seed=world).p_value
            for world in range(worlds)
        ]
    )
    assert np.mean(p_values < 0.05) < 0.05 + 0.07  # the nominal share and three standard errors
    assert np.mean(p_values < 0.5) == pytest.approx(0.5, abs=0.15)


def test_what_both_systems_find_hard_cancels() -> None:
    a, b, is_bonafide = pair(better=0, seed=0, trials=2_000)
    found = paired(a, b, is_bonafide, eer, folds=300, seed=3)
    single = [intervals(scores, is_bonafide, {"": eer}, folds=300, seed=3)[""] for scores in (a, b)]
    apart = (width(single[0]) ** 2 + width(single[1]) ** 2) ** 0.5
    assert found.high - found.low < 0.8 * apart


def test_pairs_know_groups() -> None:
    scores, is_bonafide, groups = speakers(30, 20, spread=0.0, seed=0)
    rng = np.random.default_rng(9)
    other = scores + rng.standard_normal(30)[np.repeat(np.arange(30), 40)]
    single = paired(scores, other, is_bonafide, eer, folds=200, seed=3)
    grouped = paired(scores, other, is_bonafide, eer, folds=200, seed=3, groups=groups)
    assert grouped.difference == single.difference
    assert grouped.high - grouped.low > 1.3 * (single.high - single.low)


# What is refused

GOOD = {"scores": [2.0, 3.0, 0.0, 1.0], "is_bonafide": [True, True, False, False], "folds": 5, "seed": 0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"is_bonafide": [True] * 4}, "at least one spoof score"),
        ({"is_bonafide": [False] * 4}, "at least one bona fide score"),
        ({"is_bonafide": [1, 1, 0, 0]}, r"is_bonafide \(N,\) of bool, got \(4,\) and \(4,\) of int64"),
        ({"is_bonafide": [True, False]}, r"got \(4,\) and \(2,\)"),
        ({"scores": [[2.0, 3.0, 0.0, 1.0]]}, r"got \(1, 4\) and \(4,\)"),
        ({"scores": [2.0, float("nan"), 0.0, 1.0]}, "got 1 nan of 2"),
        ({"folds": 0}, "expected folds ≥ 1, got 0"),
        ({"level": 0.0}, "expected 0 < level < 1, got 0"),
        ({"level": 95}, "expected 0 < level < 1, got 95"),
        ({"seed": -1}, "non-negative"),
        ({"groups": ["a", "b"]}, r"expected groups \(4,\), one name a trial, got \(2,\)"),
        ({"groups": ["a"] * 4}, r"at least two groups that hold the same classes, got 1 group\(s\)"),
        ({"groups": ["a", "a", "b", "b"]}, r"at least two groups that hold the same classes, got 2 group\(s\)"),
        ({"statistics": {"eer": lambda frr, far: float("nan")}}, "nan in 5 of 5"),
    ],
)
def test_what_has_no_interval_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intervals(**{"statistics": {"eer": eer}, **GOOD, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "message"),
    [([2.0, 3.0], r"got \(2,\) and \(4,\)"), ([2.0, 3.0, 0.0, float("nan")], "got 1 nan of 2")],
)
def test_both_systems_must_have_all_trials(scores: list[float], message: str) -> None:
    for both in ((GOOD["scores"], scores), (scores, GOOD["scores"])):
        with pytest.raises(ValueError, match=message):
            paired(*both, GOOD["is_bonafide"], eer, folds=5, seed=0)
    with pytest.raises(ValueError, match="folds ≥ 1"):
        paired(GOOD["scores"], GOOD["scores"], GOOD["is_bonafide"], eer, folds=0, seed=0)
