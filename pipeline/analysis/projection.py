"""Embeddings in two dimensions, for a map: a stratified sample of trials, projected by PCA, t-SNE or UMAP.

Embeddings are projected as scoring compares them. PCA is fitted on the whole sample, all sets together, in float64; the
centroids of a run that scores at unit length are put into it. t-SNE and UMAP start from the PCA and have no place for
what was not in the sample. Everything is seeded: the same embeddings give the same map on the same machine.
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
LEAST = 5  # different embeddings, for t-SNE and UMAP
PERPLEXITY = 30.0
UMAP_NEIGHBOURS = 15
START = 1e-4  # standard deviation of the start of t-SNE, as its author has it
NEAR = 6  # neighbours of a point that the map names
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

Map = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Projection:
    """Points (N, 2) of a sample, and where the centroids (K, 2) lie among them, if they have a place there."""

    name: str
    note: str
    points: Floats
    centroids: Floats | None = None


def sample(strata: Names, count: int) -> NDArray[np.intp]:
    """Rows (M,), ascending, of at most `count` trials, seeded: from each stratum as many as the root of its size asks.

    So a rare attack keeps more than its share. Every stratum keeps at least one trial where there are not more strata
    than `count`. Source of the allocation: Bankier, Power allocations (1988), with the power 1/2.
    """
    order = np.random.default_rng(SEED).permutation(len(strata))
    _, codes, sizes = np.unique(strata[order], return_inverse=True, return_counts=True)
    together = np.argsort(codes, kind="stable")
    place = np.empty(len(order), np.int64)  # of a trial in its stratum, from 0
    place[together] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[codes[together]]
    due = np.argsort(place / np.sqrt(sizes[codes]), kind="stable")
    return np.sort(order[due[:count]])


def pca(vectors: Floats, centroids: Floats | None = None) -> Projection:
    """Vectors (N, E) on the two axes of most variance; the largest entry of an axis is positive.

    The centroids (K, E) are put on the same axes. An axis without variance gives zeros.
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
    """Vectors (N, E) by t-SNE from the points (N, 2) of a PCA; None where too few differ.

    One thread computes it, as the sums of several depend on which is first.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    if _too_few(vectors):
        return None
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    beginning = (START * start / start[:, 0].std()).astype(np.float32)
    with threadpool_limits(limits=1):
        points = TSNE(perplexity=perplexity, init=beginning, random_state=SEED).fit_transform(vectors)
    return Projection(NAMES["tsne"], f"perplexity {perplexity:.0f}", points.astype(np.float64))


def umap(vectors: Floats, start: Floats) -> Projection | None:
    """Vectors (N, E) by UMAP from the points (N, 2) of a PCA; None where too few differ.

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
    beginning = (10 * start / np.abs(start).max()).astype(np.float32)  # its own spectral start is as wide
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of things that it calls itself
        reducer = library.UMAP(n_neighbors=neighbours, init=beginning, random_state=SEED, n_jobs=1)
        points = reducer.fit_transform(vectors.astype(np.float32))
    return Projection(NAMES["umap"], f"{neighbours} neighbours", points.astype(np.float64))


def _too_few(vectors: Floats) -> bool:
    return len(np.unique(vectors, axis=0)) < LEAST


def project(vectors: Floats, wanted: Sequence[str], *, centroids: Floats | None) -> list[Projection]:
    """The wanted projections of vectors (N, E), PCA first and always; those that so few points do not have left out."""
    first = pca(vectors, centroids)
    methods = {"tsne": tsne, "umap": umap}
    others = [methods[name](vectors, first.points) for name in wanted if name in methods]
    return [first, *(found for found in others if found is not None)]


def neighbours(vectors: Floats) -> list[list[int]]:
    """The nearest other rows of each of vectors (N, E), nearest first."""
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
    """The map of a run: a sample of at most `count` trials of all sets, projected, and what is known of each point.

    Coordinates are whole numbers from 0 to 4095, each axis stretched over all of them. A category is left out where
    nothing is known of it.

    Args:
        spaces: set -> its trials and embeddings; the first one is the training set.
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
        "projections": [_quantised(each) for each in projections],
        "utterance": drawn.trials.utterance.tolist(),
        "audio": drawn.audio.tolist(),
        "score": scores,
        "categories": _categories(drawn, owner, to.nearest(drawn.vectors)[0]),
        "numbers": ({} if set(mos) == {None} else {"MOS": mos}) | {"score": scores},
        "neighbours": neighbours(points),
    }


def _taken(spaces: Mapping[str, Space], chosen: NDArray[np.intp]) -> tuple[Space, Names]:
    """Chosen rows, ascending, of several sets one behind the other, and the set that each (M,) is of."""
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
    """Class and attack (N,)."""
    return np.where(space.trials.is_bonafide, BONAFIDE, np.char.add(f"{SPOOF}\t", space.trials.attack))


def _quantised(projection: Projection) -> Map:
    """A projection as the map holds it."""
    centroids = projection.centroids
    every = projection.points if centroids is None else np.concatenate((projection.points, centroids))
    low, span = every.min(axis=0), np.ptp(every, axis=0)
    steps = np.where(span > 0, (every - low) / np.where(span > 0, span, 1.0), 0.5) * (2**BITS - 1)
    whole = np.rint(steps).astype(np.int64)
    points = whole[: len(projection.points)]
    return {
        "name": projection.name,
        "note": projection.note,
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "centroids": None if centroids is None else whole[len(points) :].tolist(),
    }


def _categories(drawn: Space, owner: Names, nearest: NDArray[np.int64]) -> Map:
    """What points can be coloured by, where it is known of any: names, and the number of the name that each has."""
    found = {
        "class": np.where(drawn.trials.is_bonafide, BONAFIDE, SPOOF),
        "set": owner,
        "attack": drawn.condition,
        "centroid": nearest.astype(str),
        "quality level": np.where(drawn.level < 0, UNKNOWN, drawn.level.astype(str)),
    }
    return {kind: _coded(kind, names) for kind, names in found.items() if (names != UNKNOWN).any()}


def _coded(kind: str, names: Names) -> Map:
    """Distinct names and the code of each: bona fide first, numbers by size, sets as they come."""
    distinct = list(dict.fromkeys(names.tolist()))
    if kind != "set":
        distinct.sort(key=lambda name: (name != BONAFIDE, name.rjust(8) if name.isdigit() else name))
    number = {name: i for i, name in enumerate(distinct)}
    return {"names": distinct, "codes": [number[name] for name in names.tolist()]}
