"""The geometry of a run's embeddings: which trials are near which centroid, how far, and how the centroids moved.

Embeddings have the form in which scoring compares them (`exact_search.compared`). Distances are to the nearest
centroid:

    cosine       1 − cos(x, c_k), where scoring compares embeddings at unit length
    euclidean    ‖x − c‖ for other runs (cross-entropy). The vector of such a run, w_bonafide − w_spoof, is a direction
                 and no point. So c is the mean of the bona fide training embeddings, and K = 1. The similarity matrix
                 and the path over training still use the run's own vectors.

Means and scatter are exact over all trials, in float64 and block by block. The silhouette is computed on a sample with
a fixed seed. Numbers have six significant digits. None stands where there are too few trials for a number.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import familiarity
from pipeline.analysis.exact_search import compared
from pipeline.analysis.familiarity import Search
from pipeline.analysis.gaussians import Gaussians
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, UNKNOWN, Trials
from pipeline.scoring.centroids import unit

BONAFIDE, SPOOF = LABELS
BLOCK = 16_384  # trials in one block
SILHOUETTE_SAMPLE = 2_000  # trials; all distances between them are computed
SPEAKERS = 50  # the most frequent speakers, which are reported
MOS_BIN = 0.5
UNLIKE = (("median_percentile", "beyond_95"), ("median_mahalanobis", "beyond_95_mahalanobis"))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HARDEST, NEIGHBOURS = 10, 5
DIGITS = 6  # significant digits of a number in a file
NO_SPREAD = 1e-20  # a variance below this share of the mean's squared length is a rounding error
SEED = 1

Floats = NDArray[np.float64]
Names = NDArray[np.str_]
Report = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Space:
    """The N trials of a set with their embeddings and scores by one run.

    vectors: (N, E) float32 from the backend, perhaps memory-mapped. scores: (N,). level: (N,) int, quality level, -1
    unknown. corpus: (N,) str, the corpus of each trial. audio: (N,) str, its file relative to the root of the project,
    empty where unknown.
    """

    trials: Trials
    vectors: NDArray[np.float32]
    scores: NDArray[np.float32]
    level: NDArray[np.int64]
    corpus: Names
    audio: Names

    def __post_init__(self) -> None:
        lengths = {name: len(part) for name, part in vars(self).items()}
        if len(set(lengths.values())) != 1 or self.vectors.ndim != 2:
            raise ValueError(f"expected (N, E) vectors and columns of one length, got {self.vectors.shape}, {lengths}")

    @property
    def condition(self) -> Names:
        """The group (N,) of each trial: `bonafide`, the attack of a spoof, or `spoof` where the attack is unknown."""
        attack = np.where(self.trials.attack == UNKNOWN, SPOOF, self.trials.attack)
        return np.where(self.trials.is_bonafide, BONAFIDE, attack)


@dataclass(frozen=True, eq=False)
class Places:
    """The points to which distances are measured: (K, E) float64. normalize: compare embeddings at unit length."""

    vectors: Floats
    normalize: bool

    def nearest(self, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int64], Floats]:
        """The nearest point (N,) of embeddings (N, E), and its distance (N,). Of equal distances the first wins."""
        index, distance = np.empty(len(embeddings), np.int64), np.empty(len(embeddings))
        for rows, block in _blocks(embeddings, normalize=self.normalize):
            if self.normalize:
                apart = 1 - block @ unit(self.vectors).T  # (B, K)
            else:
                apart = np.stack([np.linalg.norm(block - vector, axis=1) for vector in self.vectors], axis=1)
            index[rows] = apart.argmin(axis=1)
            distance[rows] = np.maximum(apart.min(axis=1), 0.0)
        return index, distance


@dataclass(frozen=True, eq=False)
class Cloud:
    """The statistics of some embeddings: their number, mean (E,) and covariance (E, E), divided by the number."""

    count: int
    mean: Floats
    covariance: Floats

    @property
    def scatter(self) -> float:
        """The trace of the covariance: the mean squared distance to the mean."""
        return float(np.trace(self.covariance))

    @property
    def dimension(self) -> float | None:
        """The participation ratio (Σ λ)² / Σ λ² of the eigenvalues λ: the number of directions that share the variance.

        It is from 1 to E, and None without variance. The sums are traces: Σ λ = tr C, Σ λ² = tr C².
        """
        if self.count < 2 or self.scatter <= NO_SPREAD * float(self.mean @ self.mean):
            return None
        return self.scatter**2 / float(np.square(self.covariance).sum())


def between(one: Floats, other: Floats, *, normalize: bool) -> Floats:
    """The distances (...) between vectors (..., E) and others (..., E): cosine where `normalize`, else Euclidean."""
    cosine = (unit(one) * unit(other)).sum(axis=-1)
    apart: Floats = np.maximum(1 - cosine, 0.0) if normalize else np.linalg.norm(one - other, axis=-1)
    return apart


def places(centroids: Centroids, train: Space) -> Places:
    """The points to which distances are measured: the run's centroids, or the mean of the bona fide training set."""
    if centroids.normalize_query:
        return Places(centroids.vectors.astype(np.float64), normalize=True)
    return Places(cloud(train.vectors, train.trials.is_bonafide, normalize=False).mean[None], normalize=False)


def cloud(vectors: NDArray[np.float32], chosen: NDArray[np.bool_], *, normalize: bool) -> Cloud:
    """The statistics of the chosen embeddings of (N, E), as scoring compares them; zeros where none is chosen."""
    count, width = int(chosen.sum()), vectors.shape[1]
    total, products = np.zeros(width), np.zeros((width, width))
    for rows, block in _blocks(vectors, normalize=normalize):
        total += block[chosen[rows]].sum(axis=0)
    mean = total / max(count, 1)
    for rows, block in _blocks(vectors, normalize=normalize):  # subtract the mean first: large squares lose digits
        apart = block[chosen[rows]] - mean
        products += apart.T @ apart
    return Cloud(count, mean, products / max(count, 1))


def merged(clouds: Sequence[Cloud]) -> tuple[Cloud, float, float]:
    """Merge the clouds of the classes, and split the scatter into its parts within and between classes.

    within = Σ n_c/n tr C_c      between = Σ n_c/n ‖m_c − m‖²      within + between = tr C
    """
    count = sum(each.count for each in clouds)
    weights = [each.count / count for each in clouds]
    mean = np.sum([weight * each.mean for weight, each in zip(weights, clouds, strict=True)], axis=0)
    apart = [each.mean - mean for each in clouds]
    covariance = np.sum(
        [w * (each.covariance + np.outer(d, d)) for w, each, d in zip(weights, clouds, apart, strict=True)], axis=0
    )
    within = sum(weight * each.scatter for weight, each in zip(weights, clouds, strict=True))
    between = sum(weight * float(d @ d) for weight, d in zip(weights, apart, strict=True))
    return Cloud(count, mean, covariance), within, between


def groups(space: Space) -> dict[str, Names]:
    """The group (N,) of each trial by kind of group, "" where unknown. Kinds without any known group are left out."""
    table = space.trials
    attack = np.where(table.is_bonafide, "", space.condition)
    bins = np.floor(np.nan_to_num(table.quality, nan=-1.0) / MOS_BIN).astype(np.int64)
    bands = {step: f"{step * MOS_BIN:.1f}-{(step + 1) * MOS_BIN:.1f}" for step in range(int(bins.max()) + 1)}
    levels = {level: str(level) for level in range(int(space.level.max()) + 1)}  # none where all are -1
    found = {
        "class": np.where(table.is_bonafide, BONAFIDE, SPOOF),
        "attack": attack if set(attack.tolist()) - {"", SPOOF} else np.full(len(table), ""),
        "quality_level": _named(space.level, levels),
        "mos": _named(bins, bands),
        "speaker": np.where(table.speaker == UNKNOWN, "", table.speaker),
        "corpus": space.corpus,
    }
    return {kind: names for kind, names in found.items() if (names != "").any()}


def _named(codes: NDArray[np.int64], names: Mapping[int, str]) -> Names:
    return np.array([names.get(code, "") for code in codes.tolist()])


def assignments(space: Space, nearest: NDArray[np.int64], *, count: int) -> Report:
    """The number of trials of each group that are nearest to each of `count` centroids: kind -> group -> counts.

    Of the speakers only the `SPEAKERS` most frequent are reported, the most frequent first.
    """
    found = {}
    for kind, members in groups(space).items():
        names, codes = np.unique(members, return_inverse=True)
        table = np.bincount(codes * count + nearest, minlength=len(names) * count).reshape(-1, count)
        by_name = {str(name): counts.tolist() for name, counts in zip(names, table, strict=True) if name}
        if kind == "speaker":
            by_name = dict(sorted(by_name.items(), key=lambda item: -sum(item[1]))[:SPEAKERS])
        found[kind] = by_name
    return found


def distances(space: Space, distance: Floats) -> Report:
    """The distances of each group's trials to the nearest centroid: group -> n, mean, quantiles."""
    condition = space.condition
    return {
        str(name): {"n": len(own), "mean": own.mean(), "quantiles": np.quantile(own, QUANTILES).tolist()}
        for name in sorted(set(condition.tolist()), key=lambda name: (name != BONAFIDE, name))
        for own in [distance[condition == name]]
    }


def path(vectors: NDArray[np.float32] | None, *, normalize: bool) -> Report | None:
    """How far each centroid of (epochs, K, E) moved in each epoch, and how far it was from its last position.

    Distances are cosine where `normalize`, else Euclidean. `moved` is None for the first epoch.
    """
    if vectors is None or not len(vectors):
        return None
    way = vectors.astype(np.float64)
    nothing: list[list[float | None]] = [[None] * way.shape[1]]
    return {
        "epochs": list(range(1, len(way) + 1)),
        "moved": nothing + between(way[1:], way[:-1], normalize=normalize).tolist(),
        "to_last": between(way, way[-1:], normalize=normalize).tolist(),
    }


def similarity(vectors: NDArray[np.float32]) -> list[list[float]]:
    """The cosines between centroids (K, E)."""
    units = unit(vectors.astype(np.float64))
    cosines: list[list[float]] = (units @ units.T).clip(-1, 1).tolist()
    return cosines


def purity(is_bonafide: NDArray[np.bool_], nearest: NDArray[np.int64]) -> float:
    """The share of trials whose class is the majority class at their nearest centroid.

    It is 1 where each centroid has trials of one class only. With one centroid it is the share of the larger class,
    which is the lowest possible value.
    """
    spoof = np.bincount(nearest[~is_bonafide], minlength=nearest.max() + 1)
    bonafide = np.bincount(nearest[is_bonafide], minlength=nearest.max() + 1)
    return float(np.maximum(spoof, bonafide).sum() / len(nearest))


def silhouette(space: Space, *, normalize: bool) -> float | None:
    """The mean silhouette of the classes, from -1 to 1, on a sample with a fixed seed.

    The silhouette of a trial is (b − a) / max(a, b): a is the mean distance to its own class, b to the other class
    (Rousseeuw, 1987). None for a sample of one class or of fewer than three trials.
    """
    from sklearn.metrics import silhouette_score

    order = np.random.default_rng(SEED).permutation(len(space.trials))
    rows = np.sort(order[:SILHOUETTE_SAMPLE])
    classes = space.trials.is_bonafide[rows]
    if len(rows) < 3 or classes.all() or not classes.any():
        return None
    vectors = compared(space.vectors[rows], normalize=normalize).astype(np.float64)
    return float(silhouette_score(vectors, classes, metric=_metric(normalize)))


def auc(near: Floats, far: Floats) -> float:
    """The probability that a number of `far` is larger than a number of `near`; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate((near, far)))[len(near) :]
    return float((ranks.sum() - len(far) * (len(far) + 1) / 2) / (len(near) * len(far)))


def hardest(name: str, space: Space, *, training: Trials, search: Search) -> list[Report]:
    """The bona fide with the lowest scores and the spoofs with the highest, each with its nearest training trials.

    search: finds the nearest embeddings of the training set. Its distances are always Euclidean.
    """
    bonafide, spoof = (np.flatnonzero(own) for own in (space.trials.is_bonafide, ~space.trials.is_bonafide))
    lowest = bonafide[np.argsort(space.scores[bonafide], kind="stable")][:HARDEST]
    highest = spoof[np.argsort(-space.scores[spoof], kind="stable")][:HARDEST]
    rows = np.concatenate((lowest, highest))
    apart, ids = search(np.asarray(space.vectors[rows]), NEIGHBOURS)
    return [
        {"set": name}
        | _trial(space.trials, row)
        | {"score": float(space.scores[row])}
        | {"neighbours": [_trial(training, i) | {"distance": float(d)} for d, i in zip(*near, strict=True) if i >= 0]}
        for row, *near in zip(rows.tolist(), apart.tolist(), ids.tolist(), strict=True)
    ]


def _trial(table: Trials, row: int) -> Report:
    label = BONAFIDE if table.is_bonafide[row] else SPOOF
    return {"utterance": str(table.utterance[row]), "label": label, "attack": str(table.attack[row])}


def analyse(
    run: str,
    spaces: Mapping[str, Space],
    centroids: Centroids,
    *,
    over_training: NDArray[np.float32] | None,
    search: Search,
) -> Report:
    """The analysis of a run, ready for JSON.

    Args:
        spaces: set -> its trials and embeddings; the first set is the training set.
        over_training: (epochs, K, E), the centroids after each epoch; None where the run did not keep them.
        search: finds the nearest embeddings of the training set, as `Embeddings.search` does.
    """
    train, *others = spaces
    to = places(centroids, spaces[train])
    near = {name: to.nearest(space.vectors) for name, space in spaces.items()}
    clouds = {name: _clouds(space, normalize=to.normalize) for name, space in spaces.items()}
    count = len(to.vectors)
    shifts = _shifts(spaces, train, {name: distance for name, (_, distance) in near.items()}, clouds, to)
    unlike = strangers(spaces, train, search, normalize=to.normalize)
    report = {
        "run": run,
        "centroids": count,
        "embedding_dim": int(to.vectors.shape[1]),
        "distance": _metric(to.normalize),
        "train": train,
        "sets": list(spaces),
        "similarity": similarity(centroids.vectors),
        "assignments": {name: assignments(space, near[name][0], count=count) for name, space in spaces.items()},
        "distances": {name: distances(space, near[name][1]) for name, space in spaces.items()},
        "path": path(over_training, normalize=to.normalize),
        "geometry": {name: _geometry(space, near[name][0], clouds[name], to) for name, space in spaces.items()},
        "shift": {name: shifts[name] | unlike[name] for name in spaces},
        "hardest": [
            trial
            for name in others
            for trial in hardest(name, spaces[name], training=spaces[train].trials, search=search)
        ],
    }
    return dict(_rounded(report))


def _shifts(
    spaces: Mapping[str, Space],
    train: str,
    distance: Mapping[str, Floats],
    clouds: Mapping[str, tuple[Cloud, Cloud]],
    to: Places,
) -> Report:
    """The shift of every set against the training set."""
    bonafide = {name: distance[name][space.trials.is_bonafide] for name, space in spaces.items()}
    means = {name: clouds[name][0].mean for name in spaces}
    apart = {name: float(between(means[name], means[train], normalize=to.normalize)) for name in spaces}
    return {name: shift(bonafide[name], bonafide[train], apart=apart[name]) for name in spaces}


def _clouds(space: Space, *, normalize: bool) -> tuple[Cloud, Cloud]:
    """The clouds of bona fide and spoof."""
    kept = space.trials.is_bonafide
    return cloud(space.vectors, kept, normalize=normalize), cloud(space.vectors, ~kept, normalize=normalize)


def _geometry(space: Space, nearest: NDArray[np.int64], clouds: tuple[Cloud, Cloud], to: Places) -> Report:
    whole, within, between = merged(clouds)
    dimensions = zip(("all", BONAFIDE, SPOOF), (whole, *clouds), strict=True)
    return {
        "purity": purity(space.trials.is_bonafide, nearest),
        "silhouette": silhouette(space, normalize=to.normalize),
        "within": within,
        "between": between,
        "effective_dimension": {name: each.dimension for name, each in dimensions},
    }


def shift(distance: Floats, in_training: Floats, *, apart: float) -> Report:
    """How much farther the bona fide of a set are from the nearest centroid than those of the training set.

    Args:
        distance: to the nearest centroid, of the set's bona fide. in_training: of the training set's bona fide.
        apart: the distance between the means of both.
    """
    if not len(distance) or not len(in_training):
        return {"bonafide_to_train": None, "bonafide_distance": None, "ratio": None, "auc": None}
    mean, usual = float(distance.mean()), float(in_training.mean())
    return {
        "bonafide_to_train": apart,
        "bonafide_distance": mean,
        "ratio": mean / usual if usual > 0 else None,
        "auc": auc(in_training, distance),
    }


def strangers(spaces: Mapping[str, Space], train: str, search: Search, *, normalize: bool) -> Report:
    """How far a sample of each set lies from the training set, by its own percentiles: set -> numbers.

    median_percentile: 50 where a set lies like the training set itself. beyond_95: % of the set beyond the 95th
    percentile. Both by the nearest neighbours (`familiarity`); median_mahalanobis and beyond_95_mahalanobis by the
    Gaussians of both classes (`gaussians`), None where these cannot be fitted. All are None for the training set, whose
    utterances are among those that they are compared with.
    """
    known = spaces[train].vectors
    found: Report = {name: {key: None for of in UNLIKE for key in of} for name in spaces}
    if len(known) < 2:  # no utterance has another one
        return found
    own = familiarity.own_distances(known, search)
    gaussians: Gaussians | None = None
    with contextlib.suppress(InputError):
        gaussians = Gaussians.of(known, spaces[train].trials.is_bonafide, normalize=normalize)
    for name, space in spaces.items():
        if name != train:
            rows = familiarity.sample(len(space.vectors))
            some = np.asarray(space.vectors[rows])
            away, _ = search(some, familiarity.NEIGHBOURS)
            percentiles = [familiarity.percentiles(away, own, count=len(known))]
            if gaussians:
                percentiles.append(gaussians.percentiles(some))
            for (median, beyond), far in zip(UNLIKE, percentiles, strict=False):
                found[name] |= {median: float(np.median(far)), beyond: 100 * float((far > 95).mean())}
    return found


def _metric(normalize: bool) -> str:
    return "cosine" if normalize else "euclidean"


def _blocks(vectors: NDArray[np.float32], *, normalize: bool) -> Iterator[tuple[slice, Floats]]:
    """Yield embeddings (N, E), as scoring compares them, in blocks: their rows, and the vectors (B, E) float64."""
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, compared(np.asarray(vectors[rows]), normalize=normalize).astype(np.float64)


def _rounded(node: Any) -> Any:
    """Round all numbers of a report. A number that is not finite, as in an epoch that diverged, becomes None."""
    if isinstance(node, dict):
        return {key: _rounded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_rounded(value) for value in node]
    if isinstance(node, float):
        return float(f"{node:.{DIGITS}g}") if math.isfinite(node) else None
    return node
