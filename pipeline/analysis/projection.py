"""A map of embeddings: a stratified sample of trials, projected to two dimensions by PCA, t-SNE or UMAP.

Embeddings have the form in which scoring compares them. PCA is fitted on the whole sample of all sets, in float64. The
centroids of a run that scores at unit length are projected, too. t-SNE and UMAP start from the PCA. They cannot place
points outside the sample, so their maps have no centroids. Seeds are fixed: the same embeddings give the same map on
the same machine.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.exact_search import compared
from pipeline.analysis.geometry import BONAFIDE, SEED, SPOOF, Floats, Names, Space, places
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import UNKNOWN, Trials
from pipeline.scoring.centroids import unit

BITS = 12  # of a coordinate in the map
LEAST = 5  # different embeddings that t-SNE and UMAP need
PERPLEXITY = 30.0
UMAP_NEIGHBOURS = 15
START = 1e-4  # standard deviation of the start of t-SNE, as its author recommends
NEAR = 6  # neighbours that the map names for each point
BULK, FAR = 0.01, 1.0  # a map fits the middle 98 % of its points, and this many times their width on either side
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

Map = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Projection:
    """The points (N, 2) of a sample, and the centroids (K, 2) where the projection can place them."""

    name: str
    note: str
    points: Floats
    centroids: Floats | None = None


def sample(strata: Names, count: int) -> NDArray[np.intp]:
    """Draw the rows (M,), ascending, of at most `count` trials with a fixed seed, in proportion to √(size of stratum).

    So a rare attack gets more than its share. Every stratum keeps at least one trial where `count` allows it.
    Source: Bankier, Power allocations (1988), with the power 1/2.
    """
    order = np.random.default_rng(SEED).permutation(len(strata))
    _, codes, sizes = np.unique(strata[order], return_inverse=True, return_counts=True)
    together = np.argsort(codes, kind="stable")
    place = np.empty(len(order), np.int64)  # the position of a trial in its stratum, from 0
    place[together] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[codes[together]]
    due = np.argsort(place / np.sqrt(sizes[codes]), kind="stable")
    return np.sort(order[due[:count]])


def pca(vectors: Floats, centroids: Floats | None = None) -> Projection:
    """Project vectors (N, E), and centroids (K, E), on the two axes of most variance.

    The entry of an axis with the largest magnitude is positive. An axis without variance gives zeros.
    """
    mean = vectors.mean(axis=0)
    apart = vectors - mean
    values, axes = np.linalg.eigh(apart.T @ apart)  # ascending
    axes, values = axes[:, ::-1][:, :2], values[::-1].clip(min=0.0)
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    if axes.shape[1] == 1:  # embeddings of width 1
        axes, values = np.column_stack((axes, np.zeros(1))), np.append(values, 0.0)
    shares = 100 * values[:2] / max(float(values.sum()), np.finfo(np.float64).tiny)
    note = f"{shares[0]:.0f} % and {shares[1]:.0f} % of the variance"
    placed = None if centroids is None else (centroids - mean) @ axes
    return Projection(NAMES["pca"], note, apart @ axes, placed)


def tsne(vectors: Floats, start: Floats) -> Projection | None:
    """Project vectors (N, E) by t-SNE, starting from the points (N, 2) of a PCA; None where too few vectors differ.

    It runs in one thread, because the sums of several threads depend on their timing.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if _too_few(vectors):
        return None
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    beginning = (START * start / start[:, 0].std()).astype(np.float32)
    with threadpool_limits(limits=1):
        points = TSNE(perplexity=perplexity, init=beginning, random_state=SEED).fit_transform(vectors)
    return Projection(NAMES["tsne"], f"perplexity {perplexity:.0f}", points.astype(np.float64))


def umap(vectors: Floats, start: Floats) -> Projection | None:
    """Project vectors (N, E) by UMAP, starting from the points (N, 2) of a PCA; None where too few vectors differ.

    Raises InputError where the extra `umap` is not installed.
    """
    try:
        library = importlib.import_module("umap")
    except ImportError:
        raise InputError(
            "analyse.projections: umap needs the extra `umap`; pip install -e '.[umap]', or leave it out"
        ) from None
    if _too_few(vectors):
        return None
    neighbours = min(UMAP_NEIGHBOURS, len(vectors) - 1)
    beginning = (10 * start / np.abs(start).max()).astype(np.float32)  # as wide as UMAP's own spectral start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns about its own calls
        reducer = library.UMAP(n_neighbors=neighbours, init=beginning, random_state=SEED, n_jobs=1)
        points = reducer.fit_transform(vectors.astype(np.float32))
    return Projection(NAMES["umap"], f"{neighbours} neighbours", points.astype(np.float64))


def _too_few(vectors: Floats) -> bool:
    return len(np.unique(vectors, axis=0)) < LEAST


def project(vectors: Floats, wanted: Sequence[str], *, centroids: Floats | None) -> list[Projection]:
    """The wanted projections of vectors (N, E). PCA always comes first; others need enough different points."""
    first = pca(vectors, centroids)
    methods = {"tsne": tsne, "umap": umap}
    others = [methods[name](vectors, first.points) for name in wanted if name in methods]
    return [first, *(found for found in others if found is not None)]


def neighbours(vectors: Floats) -> list[list[int]]:
    """The rows of the nearest others of each of vectors (N, E), nearest first."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEAR, len(vectors) - 1)
    if not count:
        return [[] for _ in vectors]
    found: NDArray[np.int64] = (
        NearestNeighbors(n_neighbors=count, algorithm="brute").fit(vectors).kneighbors(return_distance=False)
    )
    return [row.tolist() for row in found]


def build_map(
    run: str,
    spaces: Mapping[str, Space],
    centroids: Centroids,
    *,
    count: int,
    wanted: Sequence[str],
) -> Map:
    """The map of a run: a sample of at most `count` trials of all sets, their projections, and facts about each.

    Coordinates are whole numbers from 0 to 4095, and each axis uses the full range. A category without known values is
    left out.

    Args:
        spaces: set -> its trials and embeddings; the first set is the training set.
        wanted: names of projections.
    """
    strata = [np.char.add(f"{name}\t", _stratum(space)) for name, space in spaces.items()]
    drawn, owner = _taken(spaces, sample(np.concatenate(strata), count))
    to = places(centroids, next(iter(spaces.values())))
    points = compared(drawn.vectors, normalize=to.normalize).astype(np.float64)
    projections = project(points, wanted, centroids=unit(to.vectors) if to.normalize else None)
    scores = [round(score, 4) for score in drawn.scores.tolist()]
    mos = [None if math.isnan(value) else round(value, 3) for value in drawn.trials.quality.tolist()]
    return {
        "run": run,
        "points": len(points),
        "bits": BITS,
        "projections": [_quantized(each) for each in projections],
        "utterance": drawn.trials.utterance.tolist(),
        "audio": drawn.audio.tolist(),
        "score": scores,
        "categories": _categories(drawn, owner, to.nearest(drawn.vectors)[0]),
        "numbers": ({} if set(mos) == {None} else {"MOS": mos}) | {"score": scores},
        "neighbours": neighbours(points),
    }


def _taken(spaces: Mapping[str, Space], chosen: NDArray[np.intp]) -> tuple[Space, Names]:
    """Take chosen rows, ascending, of several sets that are counted one after the other; and the set (M,) of each."""
    parts, names, start = [], [], 0
    for name, space in spaces.items():
        rows = chosen[(start <= chosen) & (chosen < start + len(space.trials))] - start
        start += len(space.trials)
        names += [name] * len(rows)
        columns = {key: column[rows] for key, column in vars(space).items() if key != "trials"}
        parts.append((vars(space.trials.take(rows)), columns))
    table = Trials(**{key: np.concatenate([own[key] for own, _ in parts]) for key in parts[0][0]})
    return Space(table, **{key: np.concatenate([own[key] for _, own in parts]) for key in parts[0][1]}), np.array(names)


def _stratum(space: Space) -> Names:
    """The stratum (N,) of each trial: its class and attack."""
    return np.where(space.trials.is_bonafide, BONAFIDE, np.char.add(f"{SPOOF}\t", space.trials.attack))


def _quantized(projection: Projection) -> Map:
    """A projection in the form of the map, with whole numbers as coordinates.

    The map fits the points that are near. The others stand at its border, and `far` numbers them.
    """
    centroids = projection.centroids
    every = projection.points if centroids is None else np.concatenate((projection.points, centroids))
    near = _near(projection.points, every)
    low, span = every[near].min(axis=0), np.ptp(every[near], axis=0)
    steps = np.where(span > 0, (every - low) / np.where(span > 0, span, 1.0), 0.5) * (2**BITS - 1)
    whole = np.rint(steps.clip(0, 2**BITS - 1)).astype(np.int64)
    points = whole[: len(projection.points)]
    return {
        "name": projection.name,
        "note": projection.note,
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "centroids": None if centroids is None else whole[len(points) :].tolist(),
        "far": np.flatnonzero(~near[: len(points)]).tolist(),
    }


def _near(points: Floats, every: Floats) -> NDArray[np.bool_]:
    """Which places (M, 2) are near the bulk of points (N, 2): the middle 98 % of each axis, and its width more.

    An axis whose bulk has no width has no far points.
    """
    low, high = np.quantile(points, (BULK, 1 - BULK), axis=0)
    reach = np.where(high > low, FAR * (high - low), np.inf)
    near: NDArray[np.bool_] = ((every >= low - reach) & (every <= high + reach)).all(axis=1)
    return near


def _categories(drawn: Space, owner: Names, nearest: NDArray[np.int64]) -> Map:
    """The categories by which points can be coloured: their names, and for each point the number of its name."""
    found = {
        "class": np.where(drawn.trials.is_bonafide, BONAFIDE, SPOOF),
        "set": owner,
        "attack": drawn.condition,
        "centroid": nearest.astype(str),
        "quality level": np.where(drawn.level < 0, UNKNOWN, drawn.level.astype(str)),
    }
    return {kind: _coded(kind, names) for kind, names in found.items() if (names != UNKNOWN).any()}


def _coded(kind: str, names: Names) -> Map:
    """The distinct names, and the code of each entry. Bona fide comes first, numbers by size, sets in given order."""
    distinct = list(dict.fromkeys(names.tolist()))
    if kind != "set":
        distinct.sort(key=lambda name: (name != BONAFIDE, name.rjust(8) if name.isdigit() else name))
    number = {name: i for i, name in enumerate(distinct)}
    return {"names": distinct, "codes": [number[name] for name in names.tolist()]}
