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
from collections.abc import Sequence
from dataclasses import dataclass

BEST = "*"
NEAR = "~"
ONE_SEED, TWO_SEEDS = "trials only", "2 seeds"  # beside an interval
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # for 1, 2, ... degrees of freedom
QUANTILE = statistics.NormalDist().inv_cdf(0.975)  # 1.96: of the 95 % interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Attack:
    """One attack of a set: its EER in percent against all bona fide, and its number of spoof trials."""

    eer: float
    spoof: int


@dataclass(frozen=True)
class Result:
    """One run on one set: the EER and its 95 % interval in percent, its threshold, trial counts, attacks by name.

    warnings: of `evaluate`, for people.
    """

    eer: float
    interval: Interval | None
    threshold: float
    bonafide: int
    spoof: int
    attacks: dict[str, Attack]
    warnings: tuple[str, ...] = ()

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """The counts that must be equal for two runs to be comparable."""
        return self.bonafide, self.spoof, {name: attack.spoof for name, attack in self.attacks.items()}


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
    """An EER in percent over the seeds of a system: mean, standard deviation (None for one seed), 95 % interval.

    half: half the width of the interval, before it is cut at 0 and 100. runs: one a seed.
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


def over_seeds(eers: Sequence[float], intervals: Sequence[Interval | None]) -> Value:
    """The EER of a system from the EERs and intervals of its runs, all in percent."""
    count = len(eers)
    mean = math.fsum(eers) / count
    deviation = statistics.stdev(eers) if count > 1 else None
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return Value(mean, deviation, None, None, count)
    trials = math.fsum(high - low for low, high in known) / len(known) / 2
    if deviation is None:
        return Value(mean, None, known[0], trials, count)
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else QUANTILE
    half = math.hypot(trials, quantile * deviation / math.sqrt(count))
    return Value(mean, deviation, (max(mean - half, 0.0), min(mean + half, 100.0)), half, count)


@dataclass(frozen=True)
class Leaderboard:
    """Systems from best to worst on the set `sort_by`.

    runs: system -> its runs. results: one for each (run, set). trainings: one for each run. rescored: systems that
    score by the embedding index of a trained system. finetuned: the system that was trained with the encoder.
    encoder_seed: of the fine-tuning; None where the encoder is frozen.
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

    @property
    def chosen(self) -> str:
        """The trained system with the lowest dev EER, of equals the first by name.

        Systems that score by an embedding index cannot be deployed.
        """
        trained = (system for system in self.systems if system not in self.rescored)
        return min(trained, key=lambda system: (self.dev_eer(system).mean, system))

    @property
    def tied(self) -> tuple[str, ...]:
        """The other trained systems with the dev EER of the one that dev chose."""
        lowest = self.dev_eer(self.chosen).mean
        others = (name for name in self.systems if name not in self.rescored and name != self.chosen)
        return tuple(sorted(name for name in others if self.dev_eer(name).mean == lowest))

    @property
    def caveats(self) -> frozenset[str]:
        """What the intervals of some systems do not say."""
        return frozenset(self.eer(system, name).caveat for system in self.systems for name in self.sets) - {""}

    def first(self, name: str) -> Result:
        """Any result on the set, for facts that all runs share: the counts of trials, and the attacks."""
        return next(result for (_, on), result in self.results.items() if on == name)

    def eer(self, system: str, name: str) -> Value:
        """The EER of a system on a set."""
        found = [self.results[run, name] for run in self.runs[system]]
        return over_seeds([result.eer for result in found], [result.interval for result in found])

    def dev_eer(self, system: str) -> Value:
        """The EER of a system on the dev set, as `train` measured it to select checkpoints. It has no interval."""
        return over_seeds([self.trainings[run].dev_eer for run in self.runs[system]], [])

    def attack(self, system: str, name: str, attack: str) -> float:
        """The mean EER in percent on one attack of a set."""
        eers = [self.results[run, name].attacks[attack].eer for run in self.runs[system]]
        return math.fsum(eers) / len(eers)

    def best_on(self, name: str, attack: str) -> float:
        """The lowest EER in percent on one attack of a set."""
        return min(self.attack(system, name, attack) for system in self.systems)

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

    def mark(self, system: str, name: str) -> str:
        """`*` for the best system on a set, `~` for a system within noise of it, else nothing."""
        best = min((self.eer(other, name) for other in self.systems), key=lambda value: value.mean)
        value = self.eer(system, name)
        if value.mean == best.mean:
            return BEST
        halves = [half for half in (value.half, best.half) if half is not None]
        within = len(halves) == 2 and value.mean - best.mean <= math.hypot(*halves)
        return NEAR if within else ""
