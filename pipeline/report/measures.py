"""The metrics of `evaluate` that the leaderboard shows: where they stand in its files, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Interval = tuple[float, float]

EER = "eer"
GROUPS = {"attack": "attacks", "codec": "codecs", "vocoder": "vocoders"}  # kind -> its key in the files of `evaluate`


@dataclass(frozen=True)
class Measure:
    """A metric of a run on a set.

    key: in CSV files. place: the keys that lead to it in a file of `evaluate`. digits: after the decimal point.
    better: `lower`, `higher`, or nothing for a number that is neither. top: the highest value that it can have.
    interval: the key of its 95 % interval. only_with_interval: it is of interest for its interval alone.
    """

    key: str
    label: str
    place: tuple[str, ...]
    digits: int
    better: str = "lower"
    top: float = math.inf
    interval: str = ""
    only_with_interval: bool = False

    def read(self, found: Mapping[str, Any]) -> tuple[float, Interval | None] | None:
        """The value and the interval in the metrics of a run on a set, None where it is not among them.

        Raises KeyError, TypeError or ValueError for another file than that of `evaluate`.
        """
        ends = found.get(self.interval)
        within: Any = found
        for key in self.place:
            if key not in within:
                return None
            within = within[key]
        if self.only_with_interval and ends is None:
            return None
        return finite(within), read_interval(ends)


def _percent(key: str, label: str, *place: str, better: str = "lower") -> Measure:
    return Measure(key, label, place, 2, better, top=100.0, interval=f"{key}_interval")


def _share(key: str, label: str) -> Measure:
    """A share of verdicts. None is better than another by itself: who never tells is never wrong."""
    return Measure(key, label, ("verdicts", key), 2, better="", top=100.0)


def _cost(key: str, label: str, *place: str) -> Measure:
    return Measure(key, label, place, 4, interval=f"{key}_interval")


def _number(key: str, label: str, *place: str) -> Measure:
    return Measure(key, label, place, 4, better="")


MEASURES = (
    _percent(EER, "EER, %", "eer"),
    Measure("eer_by_speaker", "EER, %, interval over speakers", ("eer",), 2, top=100.0,
            interval="eer_interval_by_speaker", only_with_interval=True),
    _percent("eer_interpolated", "EER, %, ties counted evenly", "eer_interpolated"),
    _cost("min_dcf", "min DCF", "min_dcf"),
    _cost("act_dcf", "actual DCF, raw scores", "act_dcf"),
    _cost("act_dcf_calibrated", "actual DCF, calibrated", "calibrated", "act_dcf"),
    _cost("min_tdcf_2019", "min t-DCF, 2019", "min_tdcf_2019"),
    _cost("min_tdcf_2021", "min t-DCF, 2021 and 5", "min_tdcf_2021"),
    _cost("cllr", "Cllr, bits, raw scores", "cllr"),
    _cost("cllr_calibrated", "Cllr, bits, calibrated", "calibrated", "cllr"),
    _cost("min_cllr", "min Cllr, bits", "min_cllr"),
    _percent("frr_at_dev", "bona fide rejected at dev's threshold, %", "at_threshold", "frr"),
    _percent("far_at_dev", "spoof accepted at dev's threshold, %", "at_threshold", "far"),
    _percent("accuracy_at_dev", "accuracy at dev's threshold, %", "at_threshold", "accuracy", better="higher"),
    _percent("balanced_accuracy_at_dev", "balanced accuracy at dev's threshold, %", "at_threshold",
             "balanced_accuracy", better="higher"),
    _percent("aurc_at_dev", "wrong at dev's threshold, %, mean over all coverages", "at_threshold", "aurc"),
    _share("bonafide_called_spoof", "bona fide with the verdict spoof, %"),
    _share("spoof_called_bonafide", "spoof with the verdict bona fide, %"),
    _share("cannot_tell", "without a verdict, %"),
    _number("threshold", "threshold of the EER", "threshold"),
    _number("threshold_dev", "threshold of dev", "at_threshold", "threshold"),
    _number("calibration_slope", "slope of the calibration", "calibrated", "slope"),
    _number("calibration_offset", "offset of the calibration, nats", "calibrated", "offset"),
    _number("bonafide_from", "score below which bona fide is ruled out", "verdicts", "bonafide_from"),
    _number("spoof_up_to", "score above which spoof is ruled out", "verdicts", "spoof_up_to"),
)  # fmt: skip
BY_KEY = {measure.key: measure for measure in MEASURES}


def read_all(found: Mapping[str, Any]) -> dict[str, tuple[float, Interval | None]]:
    """Every measure in the metrics of a run on a set, by key, with its interval."""
    values = {measure.key: measure.read(found) for measure in MEASURES}
    return {key: value for key, value in values.items() if value is not None}


def finite(value: float | str) -> float:
    """A finite number. Raises ValueError for any other."""
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} where a finite number belongs")
    return float(value)


def read_interval(ends: Sequence[float] | None) -> Interval | None:
    """The ends of an interval as finite numbers."""
    if ends is None:
        return None
    low, high = ends
    return finite(low), finite(high)
