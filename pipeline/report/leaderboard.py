"""The leaderboard: every system's metrics on every set, sorted by the EER on one of them, as CSV, text and JSON.

The runs of a system differ only in the seed, and the system's EER is their mean. Two things make it uncertain: the
choice of trials (the bootstrap interval of each run) and the choice of seeds (the standard deviation s over n runs).
Let e be the standard error that belongs to the mean bootstrap interval, and t the quantile of Student's distribution
with n - 1 degrees of freedom. Then the 95 % interval of the system is its mean ± sqrt((1.96 e)² + t² s²/n). A single
run keeps its own interval, of the trials alone, and without bootstrap there is no interval. For two seeds t is 12.7:
an interval over seeds needs three.

A system is within noise of the best one where their difference is at most the root of the sum of both squared half
widths, as for independent numbers. But numbers on the same trials are not independent, and the best of many is partly
lucky. To claim that two systems differ, choose them before you look, and compare them trial by trial
(`bonafide metrics A B`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.report.measures import EER, GROUPS, MEASURES, Interval, Measure
from pipeline.training.dropped import Dropped

BEST = "*"
NEAR = "~"
CHOSEN, TIED = "chosen", "tied"  # by the EER on dev
ONE_SEED, TWO_SEEDS = "trials only", "2 seeds"  # beside an interval
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # for 1, 2, ... degrees of freedom
QUANTILE = statistics.NormalDist().inv_cdf(0.975)  # 1.96: of the 95 % interval


@dataclass(frozen=True)
class Attack:
    """One attack, codec or vocoder of a set: its EER in percent, and its number of spoof trials.

    The EER of an attack or vocoder is against all bona fide, that of a codec against the bona fide of that codec.
    """

    eer: float
    spoof: int


@dataclass(frozen=True)
class Result:
    """One run on one set: the EER and its 95 % interval in percent, its threshold, trial counts, attacks by name.

    codecs, vocoders: by name. views: the EER in percent, and its interval, by view. measures: all that `evaluate`
    measured, by key of `MEASURES`, each with its interval. warnings: of `evaluate`, for people.
    """

    eer: float
    interval: Interval | None
    threshold: float
    bonafide: int
    spoof: int
    attacks: dict[str, Attack]
    codecs: dict[str, Attack] = field(default_factory=dict)
    vocoders: dict[str, Attack] = field(default_factory=dict)
    views: Mapping[str, tuple[float, Interval | None]] = field(default_factory=dict)
    measures: Mapping[str, tuple[float, Interval | None]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def groups(self, kind: str) -> dict[str, Attack]:
        """The attacks, codecs or vocoders. kind: a key of `GROUPS`."""
        return {"attack": self.attacks, "codec": self.codecs, "vocoder": self.vocoders}[kind]

    def measure(self, key: str) -> tuple[float, Interval | None] | None:
        """The value of a measure and its interval, None where it was not measured."""
        return (self.eer, self.interval) if key == EER else self.measures.get(key)

    def counts(self) -> tuple[int, int, dict[str, dict[str, int]]]:
        """The counts that must be equal for two runs to be comparable."""
        groups = {kind: {name: group.spoof for name, group in self.groups(kind).items()} for kind in GROUPS}
        return self.bonafide, self.spoof, groups


@dataclass(frozen=True)
class TrainedFacts:
    """Facts of a trained run: dev EER in percent, number of learned parameters, seconds (None: not of these weights).

    remarks: what its training told its user.
    """

    dev_eer: float
    parameters: int
    seconds: float | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A metric over the seeds of a system: mean, standard deviation (None for one seed), 95 % interval.

    half: half the width of the interval, before it is cut at the ends of the scale. runs: one a seed.
    """

    mean: float
    deviation: float | None
    interval: Interval | None
    half: float | None
    runs: int

    @property
    def caveat(self) -> str:
        """What the interval does not say: `ONE_SEED`, `TWO_SEEDS`, or nothing."""
        return {1: ONE_SEED, 2: TWO_SEEDS}.get(self.runs, "") if self.interval else ""


def over_seeds(values: Sequence[float], intervals: Sequence[Interval | None], *, top: float = 100.0) -> Value:
    """The metric of a system from the values and intervals of its runs, on a scale from 0 to `top`."""
    count = len(values)
    mean = math.fsum(values) / count
    deviation = statistics.stdev(values) if count > 1 else None
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return Value(mean, deviation, None, None, count)
    trials = math.fsum(high - low for low, high in known) / len(known) / 2
    if deviation is None:
        return Value(mean, None, known[0], trials, count)
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else QUANTILE
    half = math.hypot(trials, quantile * deviation / math.sqrt(count))
    return Value(mean, deviation, (max(mean - half, 0.0), min(mean + half, top)), half, count)


@dataclass(frozen=True)
class Leaderboard:
    """Systems from best to worst on the set `sort_by`.

    runs: system -> its runs. results: one for each (run, set). trainings: one for each run. rescored: systems that
    score by the embedding index of a trained system. finetuned: the system that was trained with the encoder.
    encoder_seed: of the fine-tuning; None where the encoder is frozen. stopped: systems that a search stopped early.
    shifts: a sentence for each set that lies elsewhere than dev. fused: rows that fuse the scores of others.
    """

    systems: tuple[str, ...]
    runs: dict[str, tuple[str, ...]]
    sets: tuple[str, ...]
    sort_by: str
    trainings: dict[str, TrainedFacts]
    results: dict[tuple[str, str], Result]
    rescored: frozenset[str] = frozenset()
    finetuned: frozenset[str] = frozenset()
    encoder_seed: int | None = None
    stopped: tuple[Dropped, ...] = ()
    shifts: Mapping[str, str] = field(default_factory=dict)
    fused: frozenset[str] = frozenset()

    @cached_property
    def chosen(self) -> str:
        """The trained system with the lowest dev EER, of equals the first by name.

        Systems that score by an embedding index and fusions cannot be deployed.
        """
        trained = (system for system in self.systems if system not in self.rescored | self.fused)
        return min(trained, key=lambda system: (self.dev_eer(system).mean, system))

    @cached_property
    def tied(self) -> tuple[str, ...]:
        """The other trained systems with the dev EER of the one that dev chose."""
        lowest = self.dev_eer(self.chosen).mean
        others = (name for name in self.systems if name not in self.rescored | self.fused | {self.chosen})
        return tuple(sorted(name for name in others if self.dev_eer(name).mean == lowest))

    @cached_property
    def caveats(self) -> frozenset[str]:
        """What the intervals of some systems do not say."""
        return frozenset(self.eer(system, name).caveat for system in self.systems for name in self.sets) - {""}

    def first(self, name: str) -> Result:
        """Any result on the set, for facts that all runs share: the counts of trials, and the names of groups."""
        return next(result for (_, on), result in self.results.items() if on == name)

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """What was measured of some run on some set, in the order of `MEASURES`."""
        keys = {EER}.union(*(result.measures for result in self.results.values()))
        return tuple(measure for measure in MEASURES if measure.key in keys)

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], Value | None]:
        """(system, set, key of a measure) -> its value. Sorting, marks and tables read them again and again."""
        return {
            (system, name, measure.key): self._over_runs(system, name, measure)
            for system in self.systems
            for name in self.sets
            for measure in self.measures
        }

    def _over_runs(self, system: str, name: str, measure: Measure) -> Value | None:
        found = [self.results[run, name].measure(measure.key) for run in self.runs[system]]
        known = [pair for pair in found if pair is not None]
        if len(known) < len(found):
            return None
        return over_seeds([value for value, _ in known], [interval for _, interval in known], top=measure.top)

    def value(self, system: str, name: str, key: str) -> Value | None:
        """A measure of a system on a set, None where it was not measured for all its runs."""
        return self._values[system, name, key]

    def eer(self, system: str, name: str) -> Value:
        """The EER of a system on a set."""
        value = self._values[system, name, EER]
        assert value is not None  # noqa: S101  # every result has one
        return value

    def dev_eer(self, system: str) -> Value:
        """The EER of a system on the dev set, as `train` measured it to select checkpoints. It has no interval."""
        return over_seeds([self.trainings[run].dev_eer for run in self.runs[system]], [])

    @cached_property
    def _groups(self) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
        """(set, kind) -> group -> system -> the mean EER in percent."""
        return {
            (name, kind): {
                group: {
                    system: math.fsum(self.results[run, name].groups(kind)[group].eer for run in runs) / len(runs)
                    for system, runs in self.runs.items()
                }
                for group in self.first(name).groups(kind)
            }
            for name in self.sets
            for kind in GROUPS
        }

    def group(self, name: str, kind: str, group: str) -> dict[str, float]:
        """The mean EER in percent of each system on an attack, codec or vocoder of a set."""
        return self._groups[name, kind][group]

    def views(self, name: str) -> tuple[str, ...]:
        """The views in which some system was scored on a set, beside the clean one."""
        found = (result.views for (_, on), result in self.results.items() if on == name)
        return tuple(dict.fromkeys(view for views in found for view in views))

    def in_view(self, system: str, name: str, view: str) -> Value | None:
        """The EER of a system on a set in a view, None where it was not scored in it."""
        found = [self.results[run, name].views.get(view) for run in self.runs[system]]
        known = [pair for pair in found if pair is not None]
        if len(known) < len(found):
            return None
        return over_seeds([eer for eer, _ in known], [interval for _, interval in known])

    def parameters(self, system: str) -> int:
        """The number of learned parameters of backend and loss, and of the encoder where it was trained with them."""
        return self.trainings[self.runs[system][0]].parameters

    def seconds(self, system: str) -> float | None:
        """The mean time of training a run, of those that were trained here; None where none was."""
        known = [seconds for run in self.runs[system] if (seconds := self.trainings[run].seconds) is not None]
        return math.fsum(known) / len(known) if known else None

    def remarks(self, system: str) -> tuple[str, ...]:
        """What the trainings and evaluations of a system told their user, each with the name of its run."""
        return tuple(f"{run}: {line}" for run in self.runs[system] for line in self.remarks_on(run))

    def remarks_on(self, run: str) -> tuple[str, ...]:
        """What the training of a run told, and its evaluations, each with the name of its set."""
        evaluated = [f"on {name}, {line}" for name in self.sets for line in self.results[run, name].warnings]
        return (*self.trainings[run].remarks, *evaluated)

    @property
    def one_encoder(self) -> str:
        """What the deviations over seeds leave out; nothing where the encoder is frozen, or no system has two seeds."""
        if self.encoder_seed is None or all(len(runs) == 1 for runs in self.runs.values()):
            return ""
        return (
            "± is over the seeds of backend and loss alone: the encoder was fine-tuned once, with seed "
            f"{self.encoder_seed}, and another seed of its own moves all rows"
        )

    def selected(self, system: str) -> str:
        """The run that charts show for a system: the one with the lowest dev EER."""
        return min(self.runs[system], key=lambda run: (self.trainings[run].dev_eer, run))

    @cached_property
    def _best(self) -> dict[tuple[str, str], Value]:
        """(set, key of a measure) -> the best value of all systems."""
        found = {}
        for name in self.sets:
            for measure in self.measures:
                values = [self._values[system, name, measure.key] for system in self.systems]
                known = [value for value in values if value is not None]
                if known and measure.better:
                    choose = min if measure.better == "lower" else max
                    found[name, measure.key] = choose(known, key=lambda value: value.mean)
        return found

    def mark(self, system: str, name: str, key: str = EER) -> str:
        """`*` for the best system on a set, `~` for a system within noise of it, else nothing."""
        value, best = self._values[system, name, key], self._best.get((name, key))
        if value is None or best is None:
            return ""
        if value.mean == best.mean:
            return BEST
        halves = [half for half in (value.half, best.half) if half is not None]
        within = len(halves) == 2 and abs(value.mean - best.mean) <= math.hypot(*halves)
        return NEAR if within else ""

    def choice(self, system: str) -> str:
        """`chosen` for the system that dev chose, `tied` for one that shares its dev EER, else nothing."""
        return CHOSEN if system == self.chosen else TIED if system in self.tied else ""
