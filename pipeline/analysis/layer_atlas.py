"""The layer atlas: the probes of every layer, trained on one set or on all domains but one, and tested on all others.

A domain is a corpus: one set of it, or several, such as its training and evaluation sets. A training takes one set, or
all sets outside one domain. It is tested on the sets that it did not take. Probes are those of `joint_probes`.

Layers are chosen by the leave-one-domain-out rule. For a domain that is left out, the choice is greedy by the mean EER
over the other domains, each of them scored by trainings on single sets of yet other domains. So the domain that is left
out has no part in its own choice. Its EER is then that of the chosen layers together, by the training on all other
domains. A last choice takes all domains.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.analysis.joint_probes import Float64s, Rough, fit
from pipeline.analysis.layer_probe import LOGISTIC, Classes, eer, flat, greedy
from pipeline.core.contracts import CLEAN, Tap

ALL_BUT = "all but "  # before the name of a domain: the training on all others

Read = Callable[[str, str, Tap], NDArray[np.float32]]  # set, view, layer -> (N, 2, D)
Place = tuple[str, str, str]  # training, tested set, its view
LogOdds = Mapping[Place, Mapping[Tap, NDArray[np.float32]]]  # -> layer -> (N,)


@dataclass(frozen=True)
class ProbedCell:
    """The EER, in percent, of one probe. trained: a set, or `all but` a domain. tested: a set, in one view."""

    layer: Tap
    method: str
    trained: str
    tested: str
    view: str
    eer: float


@dataclass(frozen=True)
class Choice:
    """A choice of layers, in order. EERs are in percent.

    left_out: the domain without a part in it; None where all domains decided. by: the mean EER that decided. eer: set
    and view of the domain left out -> EER of the chosen layers, trained on all other domains.
    """

    left_out: str | None
    layers: tuple[Tap, ...]
    by: float
    eer: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Atlas:
    """The results over the stores of one encoder."""

    cells: tuple[ProbedCell, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Trainings:
    """Which sets each training takes, and where it is tested. sets: training -> its sets."""

    domains: Mapping[str, Sequence[str]]
    views: Mapping[str, Sequence[str]]  # set -> all views in which it is tested

    @property
    def names(self) -> tuple[str, ...]:
        """All sets, domain by domain."""
        return tuple(itertools.chain.from_iterable(self.domains.values()))

    @functools.cached_property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """Training -> the sets that it takes: each set alone, and all sets outside each domain."""
        alone: dict[str, tuple[str, ...]] = {name: (name,) for name in self.names}
        if len(self.domains) < 2:
            return alone
        outside = {
            ALL_BUT + domain: tuple(name for name in self.names if name not in own)
            for domain, own in self.domains.items()
        }
        return alone | outside

    def tested(self, training: str) -> tuple[str, ...]:
        """The sets that a training is tested on."""
        if training in self.names:
            return tuple(name for name in self.names if name != training)
        return tuple(self.domains[training.removeprefix(ALL_BUT)])

    def by_domain(self, *, without: str | None) -> list[list[Place]]:
        """What decides on layers: of each domain the pairs (training on one set, set of the domain).

        The training is of another domain; where only one domain decides, of another of its sets.
        """
        left = {name: sets for name, sets in self.domains.items() if name != without}
        found = []
        for domain, sets in left.items():
            others = [one for name, own in left.items() if name != domain or len(left) == 1 for one in own]
            found.append([(one, tested, CLEAN) for one in others for tested in sets if one != tested])
        return [pairs for pairs in found if pairs]


def survey(
    read: Read,
    is_bonafide: Mapping[str, Classes],
    *,
    layers: Sequence[Tap],
    domains: Mapping[str, Sequence[str]],
    views: Mapping[str, Sequence[str]],
) -> Atlas:
    """Probe every layer in all trainings, and choose layers. Memory holds one layer of all sets.

    Args:
        read: gives the pooled features (N, 2, D) float32 of a set, view and layer, N as in `is_bonafide`.
        is_bonafide: set -> (N,). domains: domain -> its sets. views: set -> views beside the clean one, which are
            tested and not trained on.

    Raises ValueError for a set of one class, and for features that are not finite.
    """
    trainings = Trainings(domains, {name: (CLEAN, *views.get(name, ())) for name in is_bonafide})
    cells: list[ProbedCell] = []
    log_odds: dict[Place, dict[Tap, NDArray[np.float32]]] = {}
    for layer in tqdm(layers, unit="layer", disable=None):
        for (trained, tested, view), scores in _scores(read, is_bonafide, layer, trainings):
            cells += [
                ProbedCell(layer, method, trained, tested, view, eer(values, is_bonafide[tested]))
                for method, values in scores.items()
            ]
            if view == CLEAN or trained.startswith(ALL_BUT):
                log_odds.setdefault((trained, tested, view), {})[layer] = scores[LOGISTIC].astype(np.float32)
    return Atlas(tuple(cells), tuple(choices(log_odds, is_bonafide, trainings)))


def choices(log_odds: LogOdds, is_bonafide: Mapping[str, Classes], trainings: Trainings) -> Iterator[Choice]:
    """The choice without each domain, then the one of all domains. None where nothing is left to decide by."""

    @functools.cache
    def together(place: Place, layers: tuple[Tap, ...]) -> float:
        of_place = log_odds[place]
        return eer(np.mean([of_place[layer] for layer in layers], axis=0, dtype=np.float64), is_bonafide[place[1]])

    for left_out in (*(trainings.domains if len(trainings.domains) > 1 else ()), None):
        pairs = trainings.by_domain(without=left_out)
        if not pairs:
            continue

        def mean_over_domains(layers: tuple[Tap, ...], pairs: list[list[Place]] = pairs) -> float:
            return float(np.mean([np.mean([together(place, layers) for place in of_domain]) for of_domain in pairs]))

        chosen = greedy(list(log_odds[pairs[0][0]]), mean_over_domains)
        tested = [(name, view) for name in trainings.domains.get(left_out or "", ()) for view in trainings.views[name]]
        eers = {(name, view): together((f"{ALL_BUT}{left_out}", name, view), chosen) for name, view in tested}
        yield Choice(left_out, chosen, mean_over_domains(chosen), eers)


def _scores(
    read: Read, is_bonafide: Mapping[str, Classes], layer: Tap, trainings: Trainings
) -> Iterator[tuple[Place, dict[str, Float64s]]]:
    """Fit all trainings of a layer and give method -> scores (N,), by training, tested set and view."""
    names = trainings.names
    rows = {name: flat(_checked(read, is_bonafide, name, CLEAN, layer)) for name in names}
    rough = Rough.of(list(rows.values()))
    for name in names:
        rows[name] = rough(rows[name])
    probes = fit(rows, {name: is_bonafide[name] for name in names}, trainings.sets)
    for name in names:
        which = [training for training in trainings.sets if name in trainings.tested(training)]
        for view in trainings.views[name]:
            x = rows[name] if view == CLEAN else rough(flat(_checked(read, is_bonafide, name, view, layer)))
            for training, scores in probes.scores(x, which).items():
                yield (training, name, view), scores


def _checked(read: Read, is_bonafide: Mapping[str, Classes], name: str, view: str, layer: Tap) -> NDArray[np.float32]:
    pooled = read(name, view, layer)
    expected = len(is_bonafide[name])
    if pooled.ndim != 3 or pooled.shape[:2] != (expected, 2) or not np.isfinite(pooled).all():
        raise ValueError(
            f"expected ({expected}, 2, D) finite numbers of layer {layer} of {name}, {view}; got {pooled.shape}"
        )
    return pooled
