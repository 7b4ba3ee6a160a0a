"""A linear probe of every cached layer, and a greedy choice of layers.

An utterance is x (2D,): the mean and the standard deviation of each of a layer's D channels over the valid frames.
Probes are fitted on the training set. Each class has half of the weight. So a corpus with twice as many spoofs gives
the same probe, and the loss weights the two kinds of error as the EER does.

    z = (x − μ) / σ             μ and σ²: mean and variance of the training set, for each channel
    logistic    w·z + b         w, b = argmin ½ Σ_class mean_class log(1 + exp(−y (w·z + b))) + λ/2 ‖w‖², y = ±1
    centroid    cos(z, c)       c: mean of z / ‖z‖ over the bona fide

`centroid` shows the starting point of a one-class loss (ACS, OC-Softmax): one direction, from the bona fide alone. The
spoofs count only in μ and σ. They are needed there. The scales of XLSR's channels differ by orders of magnitude, so all
raw vectors point in nearly the same direction; and bona fide vectors that are standardized by their own statistics have
no mean direction.

Layers are chosen on dev only. The first one has the lowest EER by `logistic`; each further one lowers the EER of all
chosen layers most. Several layers are scored by the mean of their log-odds w·z + b, the sum rule (Kittler et al., On
combining classifiers, 1998). It is Bayes' rule for layers that are independent given the class. It has no weights to
fit, so it cannot overfit to the training scores or to dev.

Nothing is random: the same features give the same bits on the same machine.
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
from pipeline.metrics.eer import eer_of

TRAIN, DEV = "train", "dev"
LOGISTIC, CENTROID = "logistic", "centroid"
RIDGE = 0.01  # λ; without it 2,048 channels overfit the 2,580 bona fide of a usual training set
TOLERANCE = 1e-4  # of the gradient; the EER stops changing long before
ITERATIONS = 1_000  # the most; about fifty are needed
MOST_LAYERS = 4
BLOCK = 1_024  # utterances that are standardized at once

Read = Callable[[str, Tap], NDArray[np.float32]]  # set, layer -> (N, 2, D)
Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]
Classes = NDArray[np.bool_]  # is_bonafide, (N,)


@dataclass(frozen=True, eq=False)
class Standard:
    """The standardization of one layer. mean, scale: (2D,) float32."""

    mean: Vectors
    scale: Vectors

    def __call__(self, vectors: Vectors) -> Vectors:
        """(N, 2D) -> (N, 2D)."""
        return (vectors - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class Probe:
    """Both probes of one layer. weights, centroid: (2D,) float32, for standardized vectors."""

    standard: Standard
    weights: Vectors
    bias: float
    centroid: Vectors

    def scores(self, pooled: NDArray[np.float32]) -> dict[str, Scores]:
        """Method -> the scores (N,) of pooled features (N, 2, D). Higher means more bona fide."""
        vectors = flat(pooled)
        parts = [self._scores(self.standard(vectors[rows])) for rows in blocks(len(vectors))]
        logistic, centroid = np.concatenate(parts, axis=1).astype(np.float64)
        return {LOGISTIC: logistic + self.bias, CENTROID: centroid}

    def _scores(self, z: Vectors) -> Vectors:
        """(B, 2D) -> (2, B): w·z and cos(z, c)."""
        lengths = np.linalg.norm(z, axis=1) * np.linalg.norm(self.centroid)
        cosine = z @ self.centroid / np.maximum(lengths, np.finfo(np.float32).tiny)
        return np.stack([z @ self.weights, cosine])


@dataclass(frozen=True)
class Step:
    """A step of the choice: the layer that it adds, and set -> EER in percent of all layers chosen so far."""

    layer: Tap
    eer: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """The results of the probes.

    layers: layer -> method -> set -> EER in percent. steps: one for each layer chosen on dev, in order.
    """

    layers: dict[Tap, dict[str, dict[str, float]]]
    steps: tuple[Step, ...]

    @property
    def chosen(self) -> tuple[Tap, ...]:
        """The chosen layers, in order."""
        return tuple(step.layer for step in self.steps)


def probe(
    read: Read, is_bonafide: Mapping[str, Classes], *, layers: Sequence[Tap], evaluation: Sequence[str]
) -> Findings:
    """Probe every layer and choose some. Memory holds one layer of one set at a time, twice.

    Args:
        read: gives the pooled features (N, 2, D) float32 of a set and layer, N as in `is_bonafide`.
        is_bonafide: set -> (N,) for train, dev and the evaluation sets.
        evaluation: sets to report, too. They have no part in the choice.

    Raises ValueError for a set of one class, and for features that have another shape or are not finite.
    """
    reported = tuple(dict.fromkeys((DEV, *evaluation)))
    log_odds: dict[str, dict[Tap, Scores]] = {name: {} for name in reported}
    eers: dict[Tap, dict[str, dict[str, float]]] = {}
    for layer in tqdm(layers, unit="layer", disable=None):
        fitted = fit(_checked(read, is_bonafide, TRAIN, layer), is_bonafide[TRAIN])
        eers[layer] = {LOGISTIC: {}, CENTROID: {}}
        for name in reported:
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

    Raises ValueError for trials of one class only, and for a feature that is not finite.
    """
    standard, z = standardized(flat(pooled), is_bonafide)
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
    """The means and standard deviations of an utterance as one vector: (N, 2, D) -> (N, 2D)."""
    return pooled.reshape(len(pooled), -1)


def standardized(vectors: Vectors, is_bonafide: Classes) -> tuple[Standard, Vectors]:
    """The standardization by vectors (N, 2D), in which each class has half of the weight, and the vectors after it.

    A constant channel becomes zero and has the scale 1.
    """
    weights = balance(is_bonafide)
    # In float64 the mean of a constant is exactly that constant, and the difference is zero.
    mean = sum((weights[rows] @ vectors[rows] for rows in blocks(len(vectors))), start=np.zeros(vectors.shape[1]))
    z = vectors - mean.astype(np.float32)
    scale = np.sqrt(weights.astype(np.float32) @ np.square(z))
    scale[scale == 0] = 1
    z /= scale
    return Standard(mean.astype(np.float32), scale), z


def balance(is_bonafide: Classes) -> NDArray[np.float64]:
    """Weights (N,) that sum to one half over each class. Raises ValueError for one class only."""
    bonafide = int(is_bonafide.sum())
    spoof = len(is_bonafide) - bonafide
    if not bonafide or not spoof:
        raise ValueError(f"expected bona fide and spoof utterances to train on, got {bonafide} and {spoof}")
    return np.where(is_bonafide, 0.5 / bonafide, 0.5 / spoof)


def centroid(z: Vectors) -> Vectors:
    """The mean (2D,) of vectors (N, 2D) after each is brought to unit length. A vector of zeros stays zeros."""
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    mean: Vectors = (z / np.maximum(lengths, np.finfo(np.float32).tiny)).mean(axis=0, dtype=np.float32)
    return mean


def fused(log_odds: Mapping[Tap, Scores], layers: Sequence[Tap]) -> Scores:
    """The scores (N,) of several layers: the mean of their log-odds."""
    mean: Scores = np.mean([log_odds[layer] for layer in layers], axis=0)
    return mean


def choose(log_odds: Mapping[Tap, Scores], is_bonafide: Classes, *, most: int = MOST_LAYERS) -> tuple[Tap, ...]:
    """Choose up to `most` layers. Each step adds the layer that lowers the EER of all chosen layers most.

    The choice ends when no layer lowers the EER. Of equally good layers the first one is taken.
    log_odds: layer -> (N,), of the set that decides.
    """
    return greedy(list(log_odds), lambda layers: eer(fused(log_odds, layers), is_bonafide), most=most)


def greedy(
    layers: Sequence[Tap], error: Callable[[tuple[Tap, ...]], float], *, most: int = MOST_LAYERS
) -> tuple[Tap, ...]:
    """Choose up to `most` layers by the error of several together, as `choose` does."""
    chosen: tuple[Tap, ...] = ()
    lowest = math.inf
    while len(chosen) < min(most, len(layers)):
        rest = [layer for layer in layers if layer not in chosen]
        found = [error((*chosen, layer)) for layer in rest]
        best = int(np.argmin(found))
        if found[best] >= lowest:
            break
        chosen, lowest = (*chosen, rest[best]), found[best]
    return chosen


def eer(scores: Scores, is_bonafide: Classes) -> float:
    """The official EER in percent. Raises ValueError for trials of one class only, and for nan."""
    return 100 * eer_of(scores, is_bonafide).eer


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` rows that cover `count` rows in order."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))
