"""Verdicts of three against tables by hand, a naive loop, and the promise itself in simulations."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.metrics import transfer, verdicts
from pipeline.metrics.verdicts import BONAFIDE, CANNOT_TELL, SPOOF, VerdictRule
from tests.metrics import NO_SCORES, SCORES

RATES = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.29, 0.5, 0.9])


def test_the_limits_by_hand() -> None:
    # k = ⌊0.2 · 10⌋ = 2 of nine bona fide: the second lowest; ⌊0.2 · 6⌋ = 1 of five spoof: the highest.
    rule = verdicts.fit([9, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 3, 2, 4], error_rate=0.2)
    assert rule == VerdictRule(0.2, bonafide_from=2.0, spoof_up_to=4.0, bonafide=9, spoof=5)
    said = {1.9: SPOOF, 2.0: CANNOT_TELL, 3.0: CANNOT_TELL, 4.0: CANNOT_TELL, 4.1: BONAFIDE}
    assert {score: rule.verdict(score) for score in said} == said


def test_between_classes_that_do_not_overlap_neither_is_likely() -> None:
    rule = verdicts.fit([5.0, 6.0, 7.0], [0.0, 1.0, 2.0], error_rate=0.25)
    assert (rule.spoof_up_to, rule.bonafide_from) == (2.0, 5.0)
    said = {2.0: SPOOF, 2.1: CANNOT_TELL, 4.9: CANNOT_TELL, 5.0: BONAFIDE}
    assert {score: rule.verdict(score) for score in said} == said


@pytest.mark.parametrize(
    ("error_rate", "count", "k"),
    [(0.05, 18, 0), (0.05, 19, 1), (0.05, 38, 1), (0.05, 39, 2), (0.29, 99, 29), (0.1, 9, 1), (0.9, 1, 1), (0.5, 1, 1)],
)
def test_the_rank_is_exact(error_rate: float, count: int, k: int) -> None:
    assert verdicts.rank(error_rate, count) == k  # 0.29 · 100 is 28.999999999999996 in floats
    assert (k > 0) == (count >= verdicts.fewest(error_rate))


def test_too_few_trials_promise_nothing_and_say_so() -> None:
    rule = verdicts.fit(np.arange(18.0), np.arange(100.0) - 200, error_rate=0.05)
    assert (rule.bonafide_from, rule.spoof_up_to) == (None, -105.0)
    assert rule.lacking == (
        "18 bonafide trials are too few to rule out bonafide at an error rate of 0.05, which takes 19; the verdict is "
        "never spoof",
    )
    assert [rule.verdict(score) for score in (-1e9, -105.0, -104.0)] == [CANNOT_TELL, CANNOT_TELL, BONAFIDE]
    few = verdicts.fit([1.0], [0.0], error_rate=0.05)
    assert len(few.lacking) == 2
    assert {few.verdict(score) for score in (-1e9, 0.5, 1e9)} == {CANNOT_TELL}
    assert verdicts.fit(np.arange(19.0), np.arange(19.0), error_rate=0.05).lacking == ()


def p_value(score: float, own: list[float], *, low: bool) -> Fraction:
    """The share of a class, the score itself among it, that is at least as strange as the score."""
    strange = sum(other <= score if low else other >= score for other in own)
    return Fraction(1 + strange, 1 + len(own))


@given(SCORES, SCORES, RATES, st.integers(-7, 7).map(float))
def test_the_verdict_is_that_of_two_p_values(
    bonafide: list[float], spoof: list[float], rate: float, score: float
) -> None:
    alpha = Fraction(str(rate))
    no_bonafide = p_value(score, bonafide, low=True) <= alpha
    no_spoof = p_value(score, spoof, low=False) <= alpha
    wanted = CANNOT_TELL if no_bonafide == no_spoof else SPOOF if no_bonafide else BONAFIDE
    assert verdicts.fit(bonafide, spoof, error_rate=rate).verdict(score) == wanted


@given(SCORES, RATES)
def test_the_promise_holds_exactly_for_any_scores_with_ties(scores: list[float], rate: float) -> None:
    """Each of the scores may be the new one, with the same probability: that is what exchangeable means."""
    alpha, new = Fraction(str(rate)), range(len(scores))
    for other in (1.0, -1.0):  # both classes: the rule is the same upside down
        ruled_out = 0
        for one in new if len(scores) > 1 else ():
            dev = [other * scores[i] for i in new if i != one]
            ruled_out += bool(verdicts.fit(dev, [0.0], error_rate=rate).rules_out_bonafide(other * scores[one]))
            mirrored = verdicts.fit([0.0], [-score for score in dev], error_rate=rate)
            assert bool(mirrored.rules_out_spoof(-other * scores[one])) == bool(
                verdicts.fit(dev, [0.0], error_rate=rate).rules_out_bonafide(other * scores[one])
            )
        assert Fraction(ruled_out, len(scores)) <= alpha


@pytest.mark.parametrize(("bonafide", "spoof"), [(19, 19), (50, 400)])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_promise_holds_in_a_simulation_and_ends_under_shift(bonafide: int, spoof: int, rounded: bool) -> None:
    rng, rate, devs = np.random.default_rng(5), 0.1, 3_000

    def drawn(mean: float, size: int) -> np.ndarray:
        scores = rng.normal(mean, 1.0, size)
        return np.round(scores) if rounded else scores

    wrong, shifted, within = [], [], []
    for _ in range(devs // 10):
        rule = verdicts.fit(drawn(1.5, bonafide), drawn(0.0, spoof), error_rate=rate)
        found = verdicts.shares(rule, drawn(1.5, 200), drawn(0.0, 200))
        wrong.append((found["bonafide_called_spoof"], found["spoof_called_bonafide"]))
        shifted.append(verdicts.shares(rule, drawn(1.5, 200), drawn(1.5, 200))["spoof_called_bonafide"])
        assert rule.bonafide_from is not None
        true = stats.norm.cdf(rule.bonafide_from, 1.5, 1.0)
        promised = rule.promised(BONAFIDE)
        within.append(promised.low <= true <= promised.high)
    error = 3 * np.std(wrong, axis=0) / math.sqrt(len(wrong))
    assert (np.mean(wrong, axis=0) <= rate + error).all()
    assert np.mean(shifted) > 3 * rate
    if not rounded:
        # The share ruled out has the mean k / (n + 1): with 19 trials 2 / 20, with 50 5 / 51.
        assert np.mean(wrong, axis=0)[0] == pytest.approx(verdicts.rank(rate, bonafide) / (bonafide + 1), abs=error[0])
        assert 0.90 <= np.mean(within) <= 0.99


def test_how_far_one_small_dev_may_be_from_its_promise() -> None:
    # By the lowest of 19: the chance that all 19 lie above a share q is (1 - q)^19.
    promised = verdicts.fit(np.arange(19.0), np.arange(400.0), error_rate=0.05).promised(BONAFIDE)
    assert promised.low == pytest.approx(1 - 0.975 ** (1 / 19))
    assert promised.high == pytest.approx(1 - 0.025 ** (1 / 19))  # 17.6 %
    assert verdicts.fit([1.0], [0.0], error_rate=0.05).promised(SPOOF).high == 0


def test_shares_by_hand() -> None:
    rule = VerdictRule(0.5, bonafide_from=1.0, spoof_up_to=2.0, bonafide=3, spoof=3)
    found = verdicts.shares(rule, [0.5, 1.0, 2.0, 3.0], [0.0, 1.5, 2.5, 2.5, 0.9])
    assert found == {"bonafide_called_spoof": 1 / 4, "spoof_called_bonafide": 2 / 5, "cannot_tell": 3 / 9}


@NO_SCORES
def test_what_is_no_list_of_scores_is_refused(bonafide: list[float], spoof: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdicts.fit(bonafide, spoof, error_rate=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"error_rate": 0.0},
        {"error_rate": 1.0},
        {"error_rate": math.nan},
        {"bonafide_from": math.inf},
        {"bonafide_from": None},  # 19 trials give a limit
        {"spoof": 18},  # and 18 give none
        {"spoof": 0, "spoof_up_to": None},
    ],
)
def test_a_rule_that_no_trials_give_is_refused(wrong: dict[str, float | None]) -> None:
    right = {"error_rate": 0.05, "bonafide_from": 1.0, "spoof_up_to": 0.0, "bonafide": 19, "spoof": 19}
    assert VerdictRule(**right)
    with pytest.raises(ValueError, match="expected"):
        VerdictRule(**right | wrong)


@pytest.mark.parametrize(
    ("percent", "told"),
    [  # Of 19 trials the promise may be off up to 17.65 %; Clopper and Pearson's limits of 1,000 trials by tables
        (20.5, True),  # begin at 18.04 %
        (19.5, False),  # 17.09 %
    ],
)
def test_a_broken_promise_by_tables(percent: float, told: bool) -> None:
    rule = verdicts.fit(np.arange(19.0), np.arange(19.0), error_rate=0.05)
    metrics = {"bonafide": 1000, "spoof": 1000}
    metrics["verdicts"] = {"bonafide_called_spoof": percent, "spoof_called_bonafide": 0.0}
    assert bool(transfer.verdict_warnings(metrics, rule)) is told


def test_a_set_that_breaks_the_promise_is_told_and_one_like_dev_seldom() -> None:
    rng = np.random.default_rng(7)

    def warned(shift: float) -> list[str]:
        rule = verdicts.fit(rng.normal(2, 1, 60), rng.normal(0, 1, 300), error_rate=0.05)
        shares = verdicts.shares(rule, rng.normal(2, 1, 500), rng.normal(shift, 1, 900))
        metrics = {"bonafide": 500, "spoof": 900, "verdicts": {name: 100 * share for name, share in shares.items()}}
        return transfer.verdict_warnings(metrics, rule)

    assert sum(bool(warned(0.0)) for _ in range(60)) <= 3
    told = [warned(1.5) for _ in range(20)]
    assert all("of the spoof have the verdict bonafide, of at most 5 % that" in lines[0] for lines in told)
