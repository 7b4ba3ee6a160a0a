"""A linear probe of every cached layer, from its pooled features alone, and a greedy choice of layers.

An utterance is x (2D,): the mean and the standard deviation over its valid frames of each of a layer's D channels.
Everything is fitted on the training set, both classes weighing half whatever their sizes: so a corpus with twice as
many spoof gives the same probe, and the loss weighs the two errors as the EER does.

    z = (x − μ) / σ             μ and σ² are the mean and the variance of the training set, by channel
    logistic    w·z + b         w, b = argmin ½ Σ_class mean_class log(1 + exp(−y (w·z + b))) + λ/2 ‖w‖², y = ±1
    centroid    cos(z, c)       c = mean of z / ‖z‖ over the bona fide

`centroid` is what a one-class loss (ACS, OC-Softmax) would start from: one direction, of the bona fide alone; the spoof
enter by μ and σ. They have to: channels of XLSR differ in scale by orders of magnitude, so that raw vectors all point
the same way, and bona fide standardised by statistics of their own have no mean direction.

Layers are chosen on dev, and dev alone: first the one of the lowest EER by `logistic`, then each time the one that
lowers the EER of the layers together most. Together means the mean of their log-odds w·z + b, the sum rule (Kittler et
al., On combining classifiers, 1998): Bayes' rule for layers that are independent given the class. It has no weights to
fit, so that neither overconfident training scores nor the labels of dev can bend them.

Nothing here is drawn at random: the same features give the same bits on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from pipeline.core.contracts import Tap
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import official_eer

TRAIN, DEV = "train", "dev"
LOGISTIC, CENTROID = "logistic", "centroid"
RIDGE = 0.01  # λ; without it 2,048 channels part the 2,580 bona fide of a usual training set by heart
TOLERANCE = 1e-4  # of the gradient; the EER has long stopped moving by then
ITERATIONS = 1_000  # it takes some fifty
MOST_LAYERS = 4
BLOCK = 1_024  # utterances that are standardised at a time

Read = Callable[[str, Tap], NDArray[np.float32]]  # set, layer -> (N, 2, D)
Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]
Classes = NDArray[np.bool_]  # is_bonafide, (N,)


@dataclass(frozen=True, eq=False)
class Standard:
    """The standardisation of one layer: mean and scale are (2D,) float32."""

    mean: Vectors
    scale: Vectors

    def __call__(self, vectors: Vectors) -> Vectors:
        """(N, 2D) -> (N, 2D)."""
        return (vectors - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class Probe:
    """Both probes of one layer: weights and centroid are (2D,) float32 for standardised vectors."""

    standard: Standard
    weights: Vectors
    bias: float
    centroid: Vectors

    def scores(self, pooled: NDArray[np.float32]) -> dict[str, Scores]:
        """The scores (N,) of pooled features (N, 2, D) by method; higher means more bona fide."""
        vectors = flat(pooled)
        blocks = [self._scores(self.standard(vectors[rows])) for rows in _blocks(len(vectors))]
        logistic, centroid = np.concatenate(blocks, axis=1).astype(np.float64)
        return {LOGISTIC: logistic + self.bias, CENTROID: centroid}

    def _scores(self, z: Vectors) -> Vectors:
        """(B, 2D) -> (2, B): w·z and cos(z, c)."""
        lengths = np.linalg.norm(z, axis=1) * np.linalg.norm(self.centroid)
        cosine = z @ self.centroid / np.maximum(lengths, np.finfo(np.float32).tiny)
        return np.stack([z @ self.weights, cosine])


@dataclass(frozen=True)
class Step:
    """A step of the choice: the layer that it adds, and the EER in percent of all layers so far together, by set."""

    layer: Tap
    eer: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """What the probes of all layers came to.

    layers: layer -> method -> set -> EER in percent. steps: the layers chosen on dev, in the order of their choice.
    """

    layers: dict[Tap, dict[str, dict[str, float]]]
    steps: tuple[Step, ...]

    @property
    def chosen(self) -> tuple[Tap, ...]:
        """The layers chosen, in the order of their choice."""
        return tuple(step.layer for step in self.steps)


def probe(
    read: Read, is_bonafide: Mapping[str, Classes], *, layers: Sequence[Tap], evaluation: Sequence[str]
) -> Findings:
    """Probe every layer and choose some; one layer of one set is in memory at a time, twice over.

    Args:
        read: gives the pooled features (N, 2, D) float32 of a set and layer, N as in `is_bonafide`.
        is_bonafide: set -> (N,); holds train, dev and the evaluation sets.
        evaluation: sets whose EER is told beside that of dev; they decide nothing.

    Raises ValueError for a set of one class, for features of another shape, and for such as are not finite.
    """
    told = tuple(dict.fromkeys((DEV, *evaluation)))
    log_odds: dict[str, dict[Tap, Scores]] = {name: {} for name in told}
    eers: dict[Tap, dict[str, dict[str, float]]] = {}
    for layer in tqdm(layers, unit="layer", disable=None):
        fitted = fit(_checked(read, is_bonafide, TRAIN, layer), is_bonafide[TRAIN])
        eers[layer] = {LOGISTIC: {}, CENTROID: {}}
        for name in told:
            scores = fitted.scores(_checked(read, is_bonafide, name, layer))
            log_odds[name][layer] = scores[LOGISTIC]
            for method, values in scores.items():
                eers[layer][method][name] = eer(values, is_bonafide[name])
    chosen = choose(log_odds[DEV], is_bonafide[DEV])
    return Findings(eers, tuple(_steps(chosen, log_odds, is_bonafide)))


def _checked(read: Read, is_bonafide: Mapping[str, Classes], name: str, layer: Tap) -> NDArray[np.float32]:
    pooled = read(name, layer)
    if pooled.ndim != 3 or pooled.shape[:2] != (len(is_bonafide[name]), 2) or pooled.dtype != np.float32:
        raise ValueError(
            f"expected ({len(is_bonafide[name])}, 2, D) float32 of layer {layer} of {name}, "
            f"got {pooled.shape} {pooled.dtype}"
        )
    return pooled


def _steps(
    chosen: Sequence[Tap], log_odds: Mapping[str, Mapping[Tap, Scores]], is_bonafide: Mapping[str, Classes]
) -> Iterator[Step]:
    for count, layer in enumerate(chosen, start=1):
        so_far = chosen[:count]
        yield Step(layer, {name: eer(fused(scores, so_far), is_bonafide[name]) for name, scores in log_odds.items()})


def fit(pooled: NDArray[np.float32], is_bonafide: Classes) -> Probe:
    """Fit both probes of a layer on the training set's pooled features (N, 2, D).

    Raises ValueError where there are not both classes, or a feature is not finite.
    """
    standard, z = standardised(flat(pooled), is_bonafide)
    regression = LogisticRegression(
        C=1 / (RIDGE * len(z)), class_weight="balanced", tol=TOLERANCE, max_iter=ITERATIONS
    ).fit(z, is_bonafide)
    return Probe(
        standard=standard,
        weights=regression.coef_[0].astype(np.float32),
        bias=float(regression.intercept_[0]),
        centroid=centroid(z[is_bonafide]),
    )


def flat(pooled: NDArray[np.float32]) -> Vectors:
    """(N, 2, D) -> (N, 2D)."""
    return pooled.reshape(len(pooled), -1)


def standardised(vectors: Vectors, is_bonafide: Classes) -> tuple[Standard, Vectors]:
    """The standardisation by vectors (N, 2D), both classes weighing half, and the vectors after it.

    A channel that does not vary becomes zero and keeps its scale.
    """
    weights = balance(is_bonafide)
    # in float64: the mean of a constant is that constant, and what is left of it nothing
    mean = sum((weights[rows] @ vectors[rows] for rows in _blocks(len(vectors))), start=np.zeros(vectors.shape[1]))
    z = vectors - mean.astype(np.float32)
    scale = np.sqrt(weights.astype(np.float32) @ np.square(z))
    scale[scale == 0] = 1
    z /= scale
    return Standard(mean.astype(np.float32), scale), z


def balance(is_bonafide: Classes) -> NDArray[np.float64]:
    """Weights (N,) that sum to one half over each class. Raises ValueError where there is one class only."""
    bonafide = int(is_bonafide.sum())
    spoof = len(is_bonafide) - bonafide
    if not bonafide or not spoof:
        raise ValueError(f"expected bona fide and spoof utterances to train on, got {bonafide} and {spoof}")
    return np.where(is_bonafide, 0.5 / bonafide, 0.5 / spoof)


def centroid(z: Vectors) -> Vectors:
    """The mean (2D,) of vectors (N, 2D) of length one; those of length zero count as they are."""
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    mean: Vectors = (z / np.maximum(lengths, np.finfo(np.float32).tiny)).mean(axis=0)
    return mean


def fused(log_odds: Mapping[Tap, Scores], layers: Sequence[Tap]) -> Scores:
    """The scores (N,) of some layers together: the mean of their log-odds."""
    mean: Scores = np.mean([log_odds[layer] for layer in layers], axis=0)
    return mean


def choose(log_odds: Mapping[Tap, Scores], is_bonafide: Classes, *, most: int = MOST_LAYERS) -> tuple[Tap, ...]:
    """Choose at most so many layers greedily: each lowers the EER of all together most; none that does not is taken.

    log_odds: layer -> (N,), of the one set that decides. Of layers that are equally good the first one is taken.
    """
    chosen: tuple[Tap, ...] = ()
    lowest = math.inf
    while len(chosen) < min(most, len(log_odds)):
        rest = [layer for layer in log_odds if layer not in chosen]
        found = [eer(fused(log_odds, (*chosen, layer)), is_bonafide) for layer in rest]
        best = int(np.argmin(found))
        if found[best] >= lowest:
            break
        chosen, lowest = (*chosen, rest[best]), found[best]
    return chosen


def eer(scores: Scores, is_bonafide: Classes) -> float:
    """The official EER in percent. Raises ValueError for a set of one class, and for nan."""
    return 100 * official_eer(det_points(scores[is_bonafide], scores[~is_bonafide])).eer


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))
