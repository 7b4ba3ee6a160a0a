"""Metrics of one system on one set: over all trials and by group, as one JSON object.

EERs and rates of decisions are in percent, costs as they are defined (1 is a system that decides without listening),
Cllr in bits. A higher score means more bona fide, and no sign is ever flipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.core.errors import InputError
from pipeline.core.trial_table import UNKNOWN, Trials
from pipeline.metrics import binomial, bootstrap, verdicts
from pipeline.metrics.abstention import risk_coverage
from pipeline.metrics.binomial import Cost
from pipeline.metrics.bootstrap import Interval, Paired
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.cllr import cllr, cllr_terms, min_cllr
from pipeline.metrics.dcf import act_dcf, dcf, min_dcf
from pipeline.metrics.decisions import at_threshold
from pipeline.metrics.det import Det, checked, det_points
from pipeline.metrics.eer import eer_of, equal_rate, interpolated_eer, official_eer
from pipeline.metrics.tdcf import ASVSPOOF5_RATES, AsvRates, min_tdcf_2019, min_tdcf_2021, tdcf_2019, tdcf_2021
from pipeline.metrics.verdicts import VerdictRule

SEED = 1  # of the resamples, unless another is asked for
FOLDS = 1_000  # resamples for two arrays of scores
PERCENT_DECIMALS = 5  # one trial among 600,000 moves a rate in percent by 0.00008
COST_DECIMALS = 6  # and a cost by 0.000003
_INVERTED = {
    False: "the scores look inverted, as its whole 95 % interval lies above 50 %, but higher must mean more bona fide. "
    "They are evaluated as they are; if higher means spoof in this file, negate its scores",
    True: "its whole 95 % interval lies there, so the system takes the spoof of this set for bona fide. Look at the "
    "labels of the set, and at what the system was trained on; the sign of the scores is right",
}  # by whether the scores are the project's own
FEWEST_SPEAKERS = 10  # for an interval by speaker; fewer say nothing about others
TIES_MATTER = 0.05  # percentage points between the official and the interpolated EER

Scores = NDArray[np.float64]
Metrics = dict[str, Any]


def evaluate(
    trials: Trials,
    scores: Scores,
    *,
    asv: AsvRates | None = None,
    threshold: float | None = None,
    calibration: Calibration | None = None,
    rule: VerdictRule | None = None,
    folds: int,
    seed: int = SEED,
) -> Metrics:
    """Every metric of the scores (N,) of N trials.

        eer, eer_interpolated       %, official, and with ties counted evenly
        eer_interval                %, [low, high] of 95 % confidence, where folds > 0, see `bootstrap` and `binomial`
        eer_interval_by_speaker     with speakers resampled, where all are known and at least ten
        threshold, bonafide, spoof  the score of the official EER; numbers of trials
        min_tdcf_2019, _2021        given `asv`; ASVspoof 5 takes the form of 2021
        min_dcf, act_dcf, cllr      as in ASVspoof 5; the last two for log-likelihood ratios in nats; Cllr in bits
        min_cllr                    bits, after the best monotone calibration
        calibrated                  given `calibration`: slope, offset, and act_dcf and cllr of the calibrated scores
        at_threshold                given `threshold`: accuracy, balanced_accuracy, frr, far, aurc in %, of decisions
        verdicts                    given `rule`: error_rate (0..1), its limits, `verdicts.shares` in %, also by attack
        attacks, vocoders           {name: {eer, spoof}}: the spoof made by it against all bona fide
        codecs, codecs_left_out     {name: {eer, bonafide, spoof}} of each codec's trials; how many have one class only

    Args:
        asv: error rates of the speaker verification system that the t-DCF needs.
        threshold, calibration, rule: by other trials; scores above the threshold are accepted.
        folds, seed: resamples behind the intervals (0 for none), and what draws them.

    Raises:
        ValueError: one class only, nan, or ASV rates that leave the countermeasure nothing to do.
    """
    bonafide, spoof = scores[trials.is_bonafide], scores[~trials.is_bonafide]
    found = _overall(bonafide, spoof, asv)
    found |= {"calibrated": _calibrated(bonafide, spoof, calibration)} if calibration else {}
    found |= {"at_threshold": _decided(bonafide, spoof, threshold)} if threshold is not None else {}
    found |= {"verdicts": _judged(trials, scores, rule)} if rule else {}
    if folds:
        found |= _intervals(scores, trials.is_bonafide, asv, folds=folds, seed=seed)
        found |= _interval_by_speaker(trials, scores, folds=folds, seed=seed)
    found["attacks"] = _against_all_bonafide(trials.attack, trials, scores)
    found["vocoders"] = _against_all_bonafide(trials.vocoder, trials, scores)
    return found | _within("codecs", _known(trials.codec), trials, scores)


def from_scores(
    bonafide: ArrayLike, spoof: ArrayLike, *, asv: AsvRates | None = None, folds: int = FOLDS, seed: int = SEED
) -> Metrics:
    """Metrics of two arrays of scores, such as a notebook has, with intervals of 95 % confidence.

    They have the names, units and numbers of `evaluate`: eer, eer_interpolated, threshold, bonafide, spoof, min_dcf,
    act_dcf, cllr, min_cllr, eer_interval, min_dcf_interval and, given `asv`, both min t-DCFs with their intervals. Here
    alone there is also cllr_interval, in bits.

        >>> found = from_scores([0.9, 0.4, 0.7], [0.1, 0.5])
        >>> found["eer"], found["eer_interval"]
        (41.66667, [0.0, 79.25601])

    Args:
        bonafide: (B,), higher = more bona fide.
        spoof: (S,).
        asv: error rates of the speaker verification system that the t-DCF needs.
        folds, seed: resamples behind the intervals (0 for none), and the seed of their draws.

    Raises:
        ValueError: an empty class, nan, more than one dimension, or ASV rates that leave the countermeasure nothing to
            do.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    found = _overall(kept, refused, asv)
    if folds:
        is_bonafide = np.repeat([True, False], [kept.size, refused.size])
        found |= _intervals(np.concatenate((kept, refused)), is_bonafide, asv, folds=folds, seed=seed)
        interval = bootstrap.interval_of_means(cllr_terms(kept, refused), folds=folds, seed=seed)
        found["cllr_interval"] = _ends(interval, percent=False)
    return found


def by_speaker(trials: Trials, scores: Scores) -> Metrics:
    """`speakers` {name: {eer, bonafide, spoof}}, each of its trials alone; `speakers_left_out` of one class, if any."""
    return _within("speakers", _known(trials.speaker), trials, scores)


def by_view(trials: Trials, scores: Mapping[str, Scores], *, folds: int, seed: int = SEED) -> Metrics:
    """Each view of the trials: eer, and eer_interval where folds > 0, in %, of its scores (N,)."""
    found: Metrics = {}
    for view, own in scores.items():
        det = det_points(own[trials.is_bonafide], own[~trials.is_bonafide])
        found[view] = {"eer": _percent(official_eer(det).eer)}
        if folds:
            interval = _of_eer(own, trials.is_bonafide, folds=folds, seed=seed)
            found[view]["eer_interval"] = _ends(interval, percent=True)
    return found


def by_attack_and_codec(trials: Trials, scores: Scores) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """EERs in percent of each attack through each codec against the bona fide of that codec: attacks, codecs, (A, C).

    nan where one of the two is missing.
    """
    attacks, codecs = _known(trials.attack), _known(trials.codec)
    percent = np.full((len(attacks), len(codecs)), np.nan)
    for column, through in enumerate(codecs.values()):
        bonafide = scores[through][trials.is_bonafide[through]]
        spoof = through[~trials.is_bonafide[through]]
        for row, name in enumerate(attacks):
            chosen = scores[spoof[trials.attack[spoof] == name]]
            if len(bonafide) and len(chosen):
                percent[row, column] = 100 * official_eer(det_points(bonafide, chosen)).eer
    return list(attacks), list(codecs), percent


def eer_difference(trials: Trials, scores: Scores, others: Scores, *, folds: int, seed: int = SEED) -> Paired:
    """The EER of one system minus that of another on the same trials, in percentage points, and its significance."""
    found = bootstrap.paired(scores, others, trials.is_bonafide, equal_rate, folds=folds, seed=seed)
    return Paired(100 * found.difference, 100 * found.low, 100 * found.high, found.p_value)


def has_few_errors(trials: Trials, scores: Scores) -> bool:
    """Whether a comparison of EERs with these scores says too much: its resamples hardly vary."""
    det, bonafide, spoof = _counted(scores, trials.is_bonafide)
    return binomial.has_few_errors(det, bonafide=bonafide, spoof=spoof)


def calibration_warnings(calibration: Calibration, dev: Trials, trials: Trials) -> list[str]:
    """Warnings about the calibrated costs: trials that were fitted too, and a fit that found nothing."""
    found: list[str] = []
    seen = len(set(dev.utterance.tolist()) & set(trials.utterance.tolist()))
    if seen:
        found.append(
            f"{seen} of {len(trials)} trials have names of those that the calibration was fitted on: if they are the "
            "same trials, the costs of the calibrated scores are too good"
        )
    if not calibration.slope:
        found.append(
            "the bona fide of dev do not score higher on average than its spoof, and a sign is never flipped: every "
            "score is calibrated to 0, which says nothing (Cllr 1)"
        )
    return found


def warnings(trials: Trials, scores: Scores, metrics: Mapping[str, Any], *, own: bool = False) -> list[str]:
    """Warnings about the EER: scores that look inverted, and ties that decide it.

    Scores look inverted where the whole 95 % interval of the EER lies above 50 %.

    Args:
        metrics: of these scores, by `evaluate`.
        own: whether this project wrote the scores, in which higher means more bona fide for certain.
    """
    found: list[str] = []
    eer, fair, threshold = metrics["eer"], metrics["eer_interpolated"], metrics["threshold"]
    beyond = scores[scores > threshold]
    tied = [_tied(trials, scores, at) for at in (threshold, beyond.min() if len(beyond) else threshold)]
    if any(tied) and abs(fair - eer) > TIES_MATTER:
        found.append(
            f"{max(tied)} trials of both classes share one score near {threshold}; the official EER is {eer:.2f} %, "
            f"with ties counted evenly it is {fair:.2f} %"
        )
    if _is_inverted(trials, scores, metrics):
        found.insert(0, f"the EER is {eer:.2f} %, above 50 %: {_INVERTED[own]}")
    return found


def _is_inverted(trials: Trials, scores: Scores, metrics: Mapping[str, Any]) -> bool:
    """Whether the whole 95 % interval of the EER lies above 50 %, and ties have no part in it."""
    interval = metrics.get("eer_interval") or _ends(_counted_interval(scores, trials.is_bonafide), percent=True)
    return bool(interval[0] > 50 and metrics["eer_interpolated"] > 50)


def _counted_interval(scores: Scores, is_bonafide: NDArray[np.bool_]) -> Interval:
    """The interval of the EER by counts alone, where nothing was resampled."""
    det, bonafide, spoof = _counted(scores, is_bonafide)
    counted = binomial.of_eer(det, bonafide=bonafide, spoof=spoof)
    return binomial.of_few_errors(counted, det, bonafide=bonafide, spoof=spoof)


def _tied(trials: Trials, scores: Scores, at: float) -> int:
    """How many trials have the score `at`, if both classes do."""
    chosen = trials.is_bonafide[scores == at]
    return len(chosen) if 0 < chosen.sum() < len(chosen) else 0


def checked_asv(rates: Mapping[str, float] | AsvRates, *, where: str) -> AsvRates:
    """ASV rates that a t-DCF can be computed with. Raises InputError, naming `where` they were given."""
    try:
        asv = rates if isinstance(rates, AsvRates) else AsvRates(**rates)
        tdcf_2021(np.ones(1), np.ones(1), asv)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return asv


def corpus_asv(corpus: str | None) -> AsvRates | None:
    """The ASV rates that the official evaluation package of a corpus brings along, if it does."""
    return ASVSPOOF5_RATES if corpus == "asvspoof5" else None


def _percent(share: float) -> float:
    return round(100 * share, PERCENT_DECIMALS)


def _overall(bonafide: Scores, spoof: Scores, asv: AsvRates | None) -> Metrics:
    """The metrics over all trials, without intervals."""
    det = det_points(bonafide, spoof)
    found: Metrics = {"eer": _percent(official_eer(det).eer)}
    found |= {"eer_interpolated": _percent(interpolated_eer(det)), "threshold": official_eer(det).threshold}
    found |= {"bonafide": len(bonafide), "spoof": len(spoof)}
    return found | _rounded(_costs(det, bonafide, spoof, asv))


def _costs(det: Det, bonafide: Scores, spoof: Scores, asv: AsvRates | None) -> dict[str, float]:
    tandem = {}
    if asv:
        tandem = {
            "min_tdcf_2019": min_tdcf_2019(det, asv).value,
            "min_tdcf_2021": min_tdcf_2021(det, asv).value,
        }
    own = _of_ratios(bonafide, spoof)
    return tandem | {"min_dcf": min_dcf(det)} | own | {"min_cllr": min_cllr(bonafide, spoof)}


def _of_ratios(bonafide: Scores, spoof: Scores) -> dict[str, float]:
    """The costs that read scores as log-likelihood ratios in nats."""
    return {"act_dcf": act_dcf(bonafide, spoof), "cllr": cllr(bonafide, spoof)}


def _calibrated(bonafide: Scores, spoof: Scores, calibration: Calibration) -> Metrics:
    ratios = _of_ratios(calibration.apply(bonafide), calibration.apply(spoof))
    return vars(calibration) | _rounded(ratios)


def _decided(bonafide: Scores, spoof: Scores, threshold: float) -> Metrics:
    decided = vars(at_threshold(bonafide, spoof, threshold))
    rates = decided | {"aurc": risk_coverage(bonafide, spoof, threshold).aurc}
    return {"threshold": threshold} | {name: _percent(rate) for name, rate in rates.items()}


def _judged(trials: Trials, scores: Scores, rule: VerdictRule) -> Metrics:
    limits = {"bonafide_from": rule.bonafide_from, "spoof_up_to": rule.spoof_up_to}
    bonafide, spoof = scores[trials.is_bonafide], scores[~trials.is_bonafide]
    shares = verdicts.shares(rule, bonafide, spoof)
    found: Metrics = {"error_rate": rule.error_rate} | {name: at for name, at in limits.items() if at is not None}
    found |= {name: _percent(share) for name, share in shares.items()}
    attacks = _known(trials.attack[~trials.is_bonafide])
    by_attack = {name: verdicts.shares(rule, bonafide, spoof[rows]) for name, rows in attacks.items()}
    return found | {"attacks": {name: _percent(own["spoof_called_bonafide"]) for name, own in by_attack.items()}}


def _rounded(costs: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, COST_DECIMALS) for name, value in costs.items()}


def _intervals(
    scores: Scores, is_bonafide: NDArray[np.bool_], asv: AsvRates | None, *, folds: int, seed: int
) -> Metrics:
    """<metric>_interval: [low, high] of each metric that is read off the DET points."""
    costs: dict[str, Cost] = {"min_dcf": dcf}
    if asv:
        costs["min_tdcf_2019"] = lambda frr, far: tdcf_2019(frr, far, asv)
        costs["min_tdcf_2021"] = lambda frr, far: tdcf_2021(frr, far, asv)
    found = {"eer_interval": _ends(_of_eer(scores, is_bonafide, folds=folds, seed=seed), percent=True)}
    det, bonafide, spoof = _counted(scores, is_bonafide)
    for name, cost in costs.items():
        interval = binomial.of_minimum(cost, det, bonafide=bonafide, spoof=spoof)
        found[f"{name}_interval"] = _ends(interval, percent=False)
    return found


def _of_eer(
    scores: Scores, is_bonafide: NDArray[np.bool_], *, folds: int, seed: int, groups: NDArray[np.str_] | None = None
) -> Interval:
    """The interval of the EER, a share: of the bootstrap, and of the counts where errors are few."""
    drawn = bootstrap.intervals(scores, is_bonafide, {"eer": equal_rate}, folds=folds, seed=seed, groups=groups)["eer"]
    det, bonafide, spoof = _counted(scores, is_bonafide)
    return binomial.of_few_errors(drawn, det, bonafide=bonafide, spoof=spoof)


def _counted(scores: Scores, is_bonafide: NDArray[np.bool_]) -> tuple[Det, int, int]:
    bonafide, spoof = scores[is_bonafide], scores[~is_bonafide]
    return det_points(bonafide, spoof), len(bonafide), len(spoof)


def _interval_by_speaker(trials: Trials, scores: Scores, *, folds: int, seed: int) -> Metrics:
    """eer_interval_by_speaker: [low, high] with speakers resampled, where enough are known."""
    speakers = set(trials.speaker.tolist())
    if UNKNOWN in speakers or len(speakers) < FEWEST_SPEAKERS:
        return {}
    found = _of_eer(scores, trials.is_bonafide, folds=folds, seed=seed, groups=trials.speaker)
    return {"eer_interval_by_speaker": _ends(found, percent=True)}


def _ends(interval: Interval, *, percent: bool) -> list[float]:
    return [_percent(end) if percent else round(end, COST_DECIMALS) for end in (interval.low, interval.high)]


def _known(names: NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    """The rows of each known name, both ascending; in one pass, as there may be thousands of names."""
    numbers: dict[str, int] = {}
    number = np.array([numbers.setdefault(name, len(numbers)) for name in names.tolist()])  # (N,)
    rows = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    return {name: rows[numbers[name]] for name in sorted(numbers) if name != UNKNOWN}


def _against_all_bonafide(names: NDArray[np.str_], trials: Trials, scores: Scores) -> Metrics:
    """The EER of each name's spoof against all bona fide; names (N,)."""
    bonafide, spoof = scores[trials.is_bonafide], scores[~trials.is_bonafide]
    return {
        name: {"eer": _percent(official_eer(det_points(bonafide, spoof[rows])).eer), "spoof": len(rows)}
        for name, rows in _known(names[~trials.is_bonafide]).items()
    }


def _within(kind: str, groups: Mapping[str, NDArray[np.intp]], trials: Trials, scores: Scores) -> Metrics:
    """The EER of the trials of each group of rows; groups of one class only are counted, not evaluated."""
    found: Metrics = {}
    left_out = 0
    for name, rows in groups.items():
        chosen, bonafide = trials.is_bonafide[rows], int(trials.is_bonafide[rows].sum())
        if bonafide in (0, len(rows)):
            left_out += 1
            continue
        eer = eer_of(scores[rows], chosen).eer
        found[name] = {"eer": _percent(eer), "bonafide": bonafide, "spoof": len(rows) - bonafide}
    return {kind: found} | ({f"{kind}_left_out": left_out} if left_out else {})
