"""The metrics of a system, against naive loops over the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials
from pipeline.metrics import evaluation
from pipeline.metrics.bootstrap import intervals, paired
from pipeline.metrics.calibration import Calibration, fit
from pipeline.metrics.det import det_points
from pipeline.metrics.tdcf import AsvRates
from pipeline.metrics.verdicts import VerdictRule

ASV = AsvRates(p_fa=0.02, p_miss=0.03, p_fa_spoof=0.6)
ATTACKS, VOCODERS, CODECS = ("A2", "A1", "-"), ("neural", "-"), ("mp3", "-", "ogg", "m4a")


def make(count: int = 600, speakers: int = 12) -> Trials:
    """Trials of which every third is bona fide; codec m4a has spoof only, speaker S0 bona fide only."""
    rows = []
    for i in range(count):
        spoof = bool(i % 3)
        codec = CODECS[(i // 3) % (4 if spoof else 3)]
        speaker = (i // 6) % (speakers - 1) + 1 if spoof else (i // 3) % speakers
        kinds = {"attack": ATTACKS[i % 5 % 3], "vocoder": VOCODERS[i % 2]} if spoof else {}
        rows.append(
            Row("here", f"u{i}", "-", "spoof" if spoof else "bonafide", speaker=f"S{speaker}", codec=codec, **kinds)
        )
    return trial_table.from_rows(rows, source="a test")


@pytest.fixture(scope="module")
def table() -> Trials:
    return make()


@pytest.fixture(scope="module")
def scores(table: Trials) -> NDArray[np.float64]:
    shift = 2.0 * table.is_bonafide - (table.attack == "A2") + 0.5 * (table.codec == "mp3")
    return np.random.default_rng(1).normal(size=len(table)) + shift


def naive_eer(bonafide: NDArray[np.float64], spoof: NDArray[np.float64]) -> float:
    """The official EER in percent by its definition: every point, bona fide rejected first."""
    ordered = sorted([(s, False) for s in bonafide.tolist()] + [(s, True) for s in spoof.tolist()])
    rejected, refused, best, eer = 0, 0, 2.0, 0.0
    for _, is_spoof in [(None, None), *ordered]:
        rejected, refused = rejected + (is_spoof is False), refused + (is_spoof is True)
        frr, far = rejected / len(bonafide), 1 - refused / len(spoof)
        if abs(frr - far) < best - 1e-12:
            best, eer = abs(frr - far), (frr + far) / 2
    return round(100 * eer, 5)


def test_the_whole_equals_the_definitions(table: Trials, scores: NDArray[np.float64]) -> None:
    found = evaluation.evaluate(table, scores, asv=ASV, threshold=0.7, folds=0)
    bonafide, spoof = scores[table.is_bonafide], scores[~table.is_bonafide]
    assert found["eer"] == naive_eer(bonafide, spoof)
    assert abs(found["eer_interpolated"] - found["eer"]) < 0.5
    assert (found["bonafide"], found["spoof"]) == (200, 400)
    assert (spoof > found["threshold"]).mean() == pytest.approx(found["eer"] / 100, abs=0.005)
    det = det_points(bonafide, spoof)
    c0 = 0.9405 * 0.03 + 0.0095 * 10 * 0.02
    c1, c2 = 0.9405 - c0, 0.5 * 0.6
    tandem = min((c0 + c1 * frr + c2 * far) / (c0 + min(c1, c2)) for frr, far in zip(det.frr, det.far, strict=True))
    assert found["min_tdcf_2021"] == pytest.approx(tandem, abs=1e-6)
    m = min(c1, c2)
    assert (c0 + m * found["min_tdcf_2019"]) / (c0 + m) == pytest.approx(tandem, abs=1e-6)
    dcf = min((0.95 * frr + 0.5 * far) / 0.5 for frr, far in zip(det.frr, det.far, strict=True))
    assert found["min_dcf"] == pytest.approx(dcf, abs=1e-6)
    at_bayes = (0.95 * (bonafide < -np.log(1.9)).mean() + 0.5 * (spoof >= -np.log(1.9)).mean()) / 0.5
    assert found["act_dcf"] == pytest.approx(at_bayes, abs=1e-6)
    bits = np.log2(1 + np.exp(-bonafide)).mean() / 2 + np.log2(1 + np.exp(spoof)).mean() / 2
    assert found["cllr"] == pytest.approx(bits, abs=1e-6)
    assert 0 < found["min_cllr"] < found["cllr"]


def test_decisions_at_a_given_threshold(table: Trials, scores: NDArray[np.float64]) -> None:
    found = evaluation.evaluate(table, scores, threshold=0.7, folds=0)["at_threshold"]
    right = (scores > 0.7) == table.is_bonafide
    frr = 100 * (scores[table.is_bonafide] <= 0.7).mean()
    far = 100 * (scores[~table.is_bonafide] > 0.7).mean()
    expected = {"threshold": 0.7, "frr": frr, "far": far}
    expected |= {"accuracy": 100 * right.mean(), "balanced_accuracy": 100 - (frr + far) / 2}
    order = np.argsort(-np.abs(scores - 0.7))
    expected["aurc"] = 100 * np.mean(np.cumsum(~right[order]) / np.arange(1, len(scores) + 1))
    assert found == pytest.approx(expected, abs=1e-5)


def test_verdicts_by_counting(table: Trials, scores: NDArray[np.float64]) -> None:
    rule = VerdictRule(0.05, bonafide_from=0.2, spoof_up_to=0.9, bonafide=40, spoof=40)
    found = evaluation.evaluate(table, scores, rule=rule, folds=0)["verdicts"]
    said = np.array([rule.verdict(score) for score in scores.tolist()])
    called = {name: 100 * np.mean(said[table.attack == name] == "bonafide") for name in sorted({*table.attack} - {"-"})}
    assert len(called) > 1
    assert found.pop("attacks") == pytest.approx(called, abs=1e-5)
    expected = {"error_rate": 0.05, "bonafide_from": 0.2, "spoof_up_to": 0.9}
    expected |= {"bonafide_called_spoof": 100 * np.mean(said[table.is_bonafide] == "spoof")}
    expected |= {"spoof_called_bonafide": 100 * np.mean(said[~table.is_bonafide] == "bonafide")}
    assert found == pytest.approx(expected | {"cannot_tell": 100 * np.mean(said == "cannot_tell")}, abs=1e-5)
    never = VerdictRule(0.05, bonafide_from=None, spoof_up_to=None, bonafide=1, spoof=1)
    found = evaluation.evaluate(table, scores, rule=never, folds=0)["verdicts"]
    assert {"bonafide_from", "spoof_up_to"} & set(found) == set()
    assert (found["cannot_tell"], set(found["attacks"].values())) == (100, {0.0})


def test_costs_after_calibration_stand_beside_those_before(table: Trials, scores: NDArray[np.float64]) -> None:
    raw = evaluation.evaluate(table, scores, asv=ASV, threshold=0.7, folds=20)
    calibration = Calibration(slope=1.7, offset=-2.25)
    found = evaluation.evaluate(table, scores, asv=ASV, threshold=0.7, calibration=calibration, folds=20)
    told = found.pop("calibrated")
    assert found == raw
    assert list(told) == ["slope", "offset", "act_dcf", "cllr"]
    assert (told["slope"], told["offset"]) == (1.7, -2.25)
    bonafide, spoof = (1.7 * scores[chosen] - 2.25 for chosen in (table.is_bonafide, ~table.is_bonafide))
    at_bayes = (0.95 * (bonafide < -np.log(1.9)).mean() + 0.5 * (spoof >= -np.log(1.9)).mean()) / 0.5
    assert told["act_dcf"] == pytest.approx(at_bayes, abs=1e-6)
    bits = np.log2(1 + np.exp(-bonafide)).mean() / 2 + np.log2(1 + np.exp(spoof)).mean() / 2
    assert told["cllr"] == pytest.approx(bits, abs=1e-6)
    assert told["cllr"] != raw["cllr"]
    assert told["act_dcf"] != raw["act_dcf"]


def test_a_fitted_calibration_moves_costs_and_no_eer(table: Trials, scores: NDArray[np.float64]) -> None:
    cosines = np.tanh(scores / 4)
    calibration = fit(cosines[table.is_bonafide][::2], cosines[~table.is_bonafide][::2])
    found = evaluation.evaluate(table, cosines, calibration=calibration, folds=0)
    after = evaluation.evaluate(table, calibration.apply(cosines), folds=0)
    told = found["calibrated"]
    assert all(found[name] == after[name] for name in ("eer", "min_dcf", "min_cllr", "attacks", "codecs"))
    assert all(told[name] == after[name] for name in ("act_dcf", "cllr"))
    assert found["min_cllr"] < told["cllr"] < found["cllr"] - 0.1
    assert found["min_dcf"] <= told["act_dcf"] < found["act_dcf"]


def test_what_was_not_given_is_not_told(table: Trials, scores: NDArray[np.float64]) -> None:
    found = evaluation.evaluate(table, scores, folds=0)
    assert not [name for name in found if "tdcf" in name or "interval" in name]
    assert not {"at_threshold", "calibrated", "verdicts"} & set(found)


def test_trials_that_the_calibration_has_seen_are_told() -> None:
    def of(names: str) -> Trials:
        words = ("bonafide", "spoof")
        return trial_table.from_rows(
            [Row("t", name, "-", words[i % 2]) for i, name in enumerate(names)], source="a test"
        )

    dev, others, line = of("abc"), of("def"), Calibration(1.0, 0.0)
    assert evaluation.calibration_warnings(line, dev, others) == []
    for table, count in ((dev, "3 of 3"), (of("ebfa"), "2 of 4")):
        (warning,) = evaluation.calibration_warnings(line, dev, table)
        assert warning.startswith(f"{count} trials have names of those that the calibration was fitted on")
    (warning,) = evaluation.calibration_warnings(Calibration(0.0, 0.0), dev, others)
    assert "do not score higher on average" in warning
    assert len(evaluation.calibration_warnings(Calibration(0.0, 0.0), dev, dev)) == 2


def test_groups_equal_a_loop_over_their_trials(table: Trials, scores: NDArray[np.float64]) -> None:
    found = evaluation.evaluate(table, scores, folds=0) | evaluation.by_speaker(table, scores)
    bonafide = scores[table.is_bonafide]
    for kind, column in (("attacks", table.attack), ("vocoders", table.vocoder)):
        assert list(found[kind]) == sorted({*column.tolist()} - {"-"})
        for name, group in found[kind].items():
            spoof = scores[(column == name) & ~table.is_bonafide]
            assert group == {"eer": naive_eer(bonafide, spoof), "spoof": len(spoof)}
    assert list(found["codecs"]) == ["mp3", "ogg"]  # "-" is unknown
    assert list(found["speakers"]) == sorted(f"S{i}" for i in range(1, 12))
    for kind, column in (("codecs", table.codec), ("speakers", table.speaker)):
        for name, group in found[kind].items():
            own, other = (scores[(column == name) & chosen] for chosen in (table.is_bonafide, ~table.is_bonafide))
            assert group == {"eer": naive_eer(own, other), "bonafide": len(own), "spoof": len(other)}
    assert (found["codecs_left_out"], found["speakers_left_out"]) == (1, 1)
    assert sum(group["spoof"] for group in found["speakers"].values()) == 400


def test_a_corpus_that_knows_nothing_has_empty_groups() -> None:
    rows = [Row("here", f"u{i}", "-", "spoof" if i % 2 else "bonafide") for i in range(6)]
    bare = trial_table.from_rows(rows, source="a test")
    found = evaluation.evaluate(bare, np.arange(6.0), folds=20) | evaluation.by_speaker(bare, np.arange(6.0))
    assert [found[kind] for kind in ("attacks", "vocoders", "codecs", "speakers")] == [{}, {}, {}, {}]
    assert not [name for name in found if "left_out" in name]
    assert "eer_interval_by_speaker" not in found


def test_intervals_are_those_of_the_bootstrap(table: Trials, scores: NDArray[np.float64]) -> None:
    found = evaluation.evaluate(table, scores, asv=ASV, folds=200, seed=3)
    assert found == evaluation.evaluate(table, scores, asv=ASV, folds=200, seed=3)
    for name in ("eer", "min_dcf", "min_tdcf_2019", "min_tdcf_2021"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high

    def eer(frr: NDArray[np.float64], far: NDArray[np.float64]) -> float:
        return float((frr + far)[np.argmin(np.abs(frr - far))]) / 2

    trial = intervals(scores, table.is_bonafide, {"eer": eer}, folds=200, seed=3)["eer"]
    speaker = intervals(scores, table.is_bonafide, {"eer": eer}, folds=200, seed=3, groups=table.speaker)["eer"]
    assert found["eer_interval"] == pytest.approx([100 * trial.low, 100 * trial.high], abs=1e-5)
    assert found["eer_interval_by_speaker"] == pytest.approx([100 * speaker.low, 100 * speaker.high], abs=1e-5)
    assert found["eer_interval"] != found["eer_interval_by_speaker"]


@pytest.mark.parametrize(("speakers", "told"), [(9, False), (10, True)])
def test_few_speakers_have_no_interval_of_their_own(speakers: int, told: bool) -> None:
    few = make(120, speakers=speakers)
    found = evaluation.evaluate(few, np.random.default_rng(0).normal(size=120), folds=20)
    assert ("eer_interval_by_speaker" in found) is told


def test_the_difference_of_two_systems_is_paired(table: Trials, scores: NDArray[np.float64]) -> None:
    worse = scores + np.random.default_rng(2).normal(size=len(scores))
    found = evaluation.eer_difference(table, worse, scores, folds=200, seed=3)
    eers = [evaluation.evaluate(table, values, folds=0)["eer"] for values in (worse, scores)]
    assert found.difference == pytest.approx(eers[0] - eers[1], abs=1e-4)
    assert 0 < found.low < found.difference < found.high

    def eer(frr: NDArray[np.float64], far: NDArray[np.float64]) -> float:
        return float((frr + far)[np.argmin(np.abs(frr - far))]) / 2

    share = paired(worse, scores, table.is_bonafide, eer, folds=200, seed=3)
    assert (found.low, found.high, found.p_value) == (100 * share.low, 100 * share.high, share.p_value)


def told(table: Trials, scores: NDArray[np.float64]) -> list[str]:
    return evaluation.warnings(table, scores, evaluation.evaluate(table, scores, folds=0))


def test_inverted_scores_give_a_warning_and_their_number_as_it_is(table: Trials, scores: NDArray[np.float64]) -> None:
    assert told(table, scores) == []
    upright, inverted = (evaluation.evaluate(table, s, folds=0) for s in (scores, -scores))
    assert inverted["eer"] == pytest.approx(100 - upright["eer"], abs=0.3)
    (warning,) = told(table, -scores)
    assert warning.startswith(f"the EER is {inverted['eer']:.2f} %, above 50 %: the scores look inverted")


def test_ties_that_move_the_eer_are_told_and_are_no_inversion(table: Trials) -> None:
    (warning,) = told(table, np.zeros(len(table)))
    assert warning == (
        "600 trials of both classes share one score near 0.0; the official EER is 100.00 %, "
        "with ties counted evenly it is 50.00 %"
    )


def test_ties_just_beyond_the_eer_point_are_told() -> None:
    # Ascending: 4 bona fide, 11 spoof, then 4 bona fide and 9 spoof of one score, then 2 bona fide. The walk stops
    # before the tie, at (0.4 + 0.45) / 2; counted evenly the line from (.4, .45) to (.8, 0) meets at .4 + .4 / 17.
    rows = [Row("t", f"u{i}", f"{i}.wav", "spoof" if i < 20 else "bonafide") for i in range(30)]
    scores = np.array([0.0] * 11 + [1.0] * 9 + [-1.0] * 4 + [1.0] * 4 + [2.0] * 2)
    found = told(trial_table.from_rows(rows, source="t"), scores)
    assert found == [
        "13 trials of both classes share one score near 0.0; the official EER is 42.50 %, with ties counted evenly it "
        "is 42.35 %"
    ]


def test_an_eer_above_half_by_chance_is_no_inversion() -> None:
    # Three bona fide: the official point is (2/3, 1/2), where the line between (1/3, 1/2) and it crosses at 1/2.
    rows = [Row("t", f"u{i}", f"{i}.wav", "bonafide" if i < 3 else "spoof") for i in range(43)]
    table = trial_table.from_rows(rows, source="t")
    scores = np.concatenate(([0.5, 19.5, 41.5], np.arange(40.0)))
    metrics = evaluation.evaluate(table, scores, folds=0)
    assert metrics["eer"] > 50 >= metrics["eer_interpolated"]
    assert told(table, scores) == []
    for few, inverted in ((3, False), (5, False), (6, True)):  # (0.025)^(1/n) is 0.478 for 5, 0.541 for 6
        rows = [Row("t", f"u{i}", f"{i}.wav", "bonafide" if i < few else "spoof") for i in range(few + 30)]
        table, scores = trial_table.from_rows(rows, source="t"), np.arange(few + 30.0)
        assert bool(told(table, scores)) == inverted
        resampled = evaluation.warnings(table, scores, evaluation.evaluate(table, scores, folds=100))
        assert bool(resampled) == inverted


def test_a_grid_of_attacks_and_codecs_equals_a_loop(table: Trials, scores: NDArray[np.float64]) -> None:
    attacks, codecs, percent = evaluation.by_attack_and_codec(table, scores)
    assert (attacks, codecs) == (sorted({*table.attack} - {"-"}), sorted({*table.codec} - {"-"}))
    for row, attack in enumerate(attacks):
        for column, codec in enumerate(codecs):
            of = table.codec == codec
            own, other = scores[of & table.is_bonafide], scores[of & ~table.is_bonafide & (table.attack == attack)]
            if len(own) and len(other):
                assert percent[row, column] == pytest.approx(naive_eer(own, other), abs=1e-4)
            else:
                assert np.isnan(percent[row, column])
    assert np.isfinite(percent).any()


def test_ties_within_a_class_are_no_cause_for_a_warning(table: Trials) -> None:
    assert told(table, np.where(table.is_bonafide, 1.0, -1.0)) == []


def test_asv_rates_that_cannot_be_used_are_named_with_their_place() -> None:
    rates = {"p_fa": 0.02, "p_miss": 0.03, "p_fa_spoof": 0.6}
    assert evaluation.checked_asv(rates, where="x") == ASV
    with pytest.raises(InputError, match=r"^x: expected p_miss in 0\.\.1, got 3"):
        evaluation.checked_asv(rates | {"p_miss": 3}, where="x")
    with pytest.raises(InputError, match=r"^x: expected an ASV with which"):
        evaluation.checked_asv(AsvRates(0.0, 0.0, 0.0), where="x")


@pytest.mark.parametrize("asv", [None, ASV])
def test_two_arrays_give_the_metrics_of_their_trials(
    table: Trials, scores: NDArray[np.float64], asv: AsvRates | None
) -> None:
    found = evaluation.from_scores(scores[table.is_bonafide], scores[~table.is_bonafide].tolist(), asv=asv, folds=50)
    whole = evaluation.evaluate(table, scores, asv=asv, folds=50)
    of_trials = {"eer_interval_by_speaker", "attacks", "vocoders", "codecs", "codecs_left_out"}
    assert found.keys() - whole.keys() == {"cllr_interval"}
    assert whole.keys() - found.keys() == of_trials
    assert {name: found[name] for name in found.keys() & whole.keys()} == {
        name: value for name, value in whole.items() if name not in of_trials
    }
    low, high = found["cllr_interval"]
    assert low < found["cllr"] < high
    without = evaluation.from_scores(scores[table.is_bonafide], scores[~table.is_bonafide], asv=asv, folds=0)
    assert not [name for name in without if name.endswith("_interval")]


def test_the_interval_of_cllr_is_that_of_a_naive_loop() -> None:
    rng = np.random.default_rng(3)
    bonafide, spoof = rng.normal(1, 1, size=40), rng.normal(-1, 2, size=70)
    found = evaluation.from_scores(bonafide, spoof, folds=200, seed=5)["cllr_interval"]
    values = []
    for fold in range(200):
        draw = np.random.default_rng((5, fold))
        kept, refused = bonafide[draw.integers(40, size=40)], spoof[draw.integers(70, size=70)]
        values.append((np.log2(1 + np.exp(-kept)).mean() + np.log2(1 + np.exp(refused)).mean()) / 2)
    assert found == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=1e-6)


def test_two_arrays_are_checked() -> None:
    with pytest.raises(ValueError, match="at least one spoof score"):
        evaluation.from_scores([1.0], [])
    with pytest.raises(ValueError, match="1 nan of 2"):
        evaluation.from_scores([1.0, np.nan], [0.0])
