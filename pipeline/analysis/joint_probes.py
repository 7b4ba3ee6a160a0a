"""The probes of one layer in many trainings at once, each on one set or on several.

They are those of `layer_probe`:

    z = (x − μ) / σ             μ and σ²: mean and variance for each channel
    logistic    w·z + b         w, b = argmin mean_set ½ Σ_class mean_class log(1 + exp(−y (w·z + b))) + λ/2 ‖w‖²
    centroid    cos(z, c)       c: mean of z / ‖z‖ over the bona fide

In a training on several sets each set has the same weight, and in it each class: a large corpus counts as much as a
small one. On one set these are the probes of `layer_probe`, up to the tolerance of the fit.

All trainings of a layer descend together: one pass over the rows serves all of them, because a pass costs what reading
the rows from memory costs. The sum of independent convex losses has its minimum where each loss has its own.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from pipeline.analysis.layer_probe import (
    CENTROID,
    ITERATIONS,
    LOGISTIC,
    RIDGE,
    TOLERANCE,
    Classes,
    Vectors,
    balance,
    blocks,
)

SAMPLE = 1_000  # rows of each set that give the rough scale of each channel
STEERING = 5_000  # rows of each set that give the curvature of the losses
CONSTANT = 1e-10  # a variance below this, where 1 is usual: the channel is constant in a training
FAR = 10  # times the tolerance, of a gradient where a descent ended too early

Float64s = NDArray[np.float64]
T = TypeVar("T")


def in_threads(work: Callable[..., T], *of_each: Iterable[Any]) -> list[T]:
    """The results of some work, in order, by one thread a processor; each thread multiplies matrices by itself."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(work, *of_each))


@dataclass(frozen=True, eq=False)
class Rough:
    """A rough standardization that all sets share, so that float32 is enough for what follows. centre, scale: (2D,)."""

    centre: Vectors
    scale: Vectors

    @classmethod
    def of(cls, sets: Sequence[Vectors]) -> Rough:
        """From some rows of each set (N, 2D)."""
        some = np.concatenate([x[:: max(1, len(x) // SAMPLE)] for x in sets]).astype(np.float64)
        scale = some.std(axis=0)
        scale[scale == 0] = 1
        return cls(some.mean(axis=0).astype(np.float32), scale.astype(np.float32))

    def __call__(self, x: Vectors) -> Vectors:
        """(N, 2D) -> (N, 2D)."""
        out = x - self.centre
        out /= self.scale
        return out


@dataclass(frozen=True, eq=False)
class Probes:
    """The probes of one layer in F trainings, for vectors in the rough standardization.

    mean, scale, weights, centroid: (2D, F). bias: (F,).
    """

    names: tuple[str, ...]
    mean: Float64s
    scale: Float64s
    weights: Float64s
    bias: Float64s
    centroid: Float64s

    def scores(self, x: Vectors, names: Sequence[str]) -> dict[str, dict[str, Float64s]]:
        """Training -> method -> scores (N,) of vectors (N, 2D), for some trainings."""
        which = [self.names.index(name) for name in names]
        mean, scale, centroid = self.mean[:, which], self.scale[:, which], self.centroid[:, which]
        weights, directions = self.weights[:, which] / scale, centroid / scale
        offsets, norms = self.bias[which] - (weights * mean).sum(axis=0), np.linalg.norm(centroid, axis=0)
        shifts = (directions * mean).sum(axis=0)

        def of_block(rows: slice) -> tuple[Float64s, Float64s]:
            block = x[rows].astype(np.float64)
            lengths = np.maximum(_lengths(block, mean, scale) * norms, np.finfo(np.float32).tiny)
            return block @ weights + offsets, (block @ directions - shifts) / lengths

        found = zip(*in_threads(of_block, blocks(len(x))), strict=True)
        scores = dict(zip((LOGISTIC, CENTROID), map(np.concatenate, found), strict=True))
        return {name: {method: values[:, i] for method, values in scores.items()} for i, name in enumerate(names)}


def fit(
    rows: Mapping[str, Vectors], is_bonafide: Mapping[str, Classes], trainings: Mapping[str, Sequence[str]]
) -> Probes:
    """Fit both probes in all trainings. rows: set -> (N, 2D) in the rough standardization. trainings: name -> sets.

    Warns where the descent ended before it was at the minimum.
    """
    shares = np.array([[(name in sets) / len(sets) for sets in trainings.values()] for name in rows])  # (S, F)
    weights = [balance(is_bonafide[name]) for name in rows]
    firsts, seconds = zip(*in_threads(_moments, rows.values(), weights), strict=True)
    mean = np.stack(firsts, axis=1) @ shares  # (2D, F)
    variance = np.stack(seconds, axis=1) @ shares - mean**2
    scale = np.where(variance > CONSTANT, np.sqrt(np.maximum(variance, CONSTANT)), 1.0)
    loss = Loss(list(rows.values()), weights, [is_bonafide[name] for name in rows], shares, mean, scale)
    whitened = Whitened(loss, _curvatures(list(rows.values()), weights, shares, scale))
    start = np.zeros(mean.size + mean.shape[1])
    options = {"gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps, "maxiter": ITERATIONS, "maxls": 50}
    ended = minimize(whitened, start, method="L-BFGS-B", jac=True, options=options)
    if np.abs(ended.jac).max() > FAR * TOLERANCE:
        warnings.warn(f"the probes are not at their minimum: {ended.message}", ConvergenceWarning, stacklevel=2)
    found = whitened.table(ended.x)
    centroid = _centroids(list(rows.values()), loss.is_bonafide, shares, mean, scale)
    return Probes(tuple(trainings), mean, scale, found[:-1], found[-1], centroid)


@dataclass(frozen=True, eq=False)
class Loss:
    """The sum of the logistic losses of F trainings over S sets, and its gradient.

    rows: of each set (N, 2D). weights, is_bonafide: of each set (N,). shares: (S, F), of a set in a training.
    mean, scale: (2D, F).
    """

    rows: Sequence[Vectors]
    weights: Sequence[Float64s]
    is_bonafide: Sequence[Classes]
    shares: Float64s
    mean: Float64s
    scale: Float64s

    def __call__(self, parameters: Float64s) -> tuple[float, Float64s]:
        """The loss and its gradient at parameters ((2D + 1) · F,): rows of weights, and then the biases."""
        table = parameters.reshape(-1, self.shares.shape[1])
        weights, bias = table[:-1], table[-1]
        slopes = weights / self.scale  # for rows as they are: w·z + b = slopes·x + offsets
        offsets = bias - (slopes * self.mean).sum(axis=0)
        total = 0.5 * RIDGE * float((weights**2).sum())
        pull, pulls = np.zeros_like(weights), np.zeros_like(bias)
        chosen = [np.flatnonzero(shares) for shares in self.shares]  # the trainings that take each set

        def of_set(number: int) -> tuple[float, Float64s, Float64s]:
            mine = chosen[number]
            return self._of_set(number, slopes[:, mine], offsets[mine], self.shares[number, mine])

        for mine, (loss, of_slopes, of_offsets) in zip(chosen, in_threads(of_set, range(len(self.rows))), strict=True):
            total += loss
            pull[:, mine] += of_slopes
            pulls[mine] += of_offsets
        gradient = (pull - self.mean * pulls) / self.scale + RIDGE * weights
        return total, np.concatenate([gradient.ravel(), pulls])

    def _of_set(
        self, number: int, slopes: Float64s, offsets: Float64s, shares: Float64s
    ) -> tuple[float, Float64s, Float64s]:
        """What one set adds: loss, its derivatives by slopes (2D, f) and by offsets (f,), in f trainings.

        All rows are multiplied at once: with few columns, products of blocks take two to eight times as long.
        """
        x, signs = self.rows[number], np.where(self.is_bonafide[number], 1.0, -1.0)[:, None]
        margins = signs * (x @ slopes.astype(np.float32) + offsets)  # (N, f)
        heavy = self.weights[number][:, None] * shares
        pull = -signs * heavy * expit(-margins)
        of_slopes = (np.ascontiguousarray(pull.T, np.float32) @ x).T.astype(np.float64)
        return float((heavy * np.logaddexp(0, -margins)).sum()), of_slopes, pull.sum(axis=0)


@dataclass(frozen=True, eq=False)
class Whitened:
    """The loss in coordinates v = Lᵀ w, in which its curvature is about the same everywhere, so that few steps suffice.

    loss: of F trainings. factors: (F, 2D, 2D), the L of H = L Lᵀ, the curvature at w = 0.
    """

    loss: Loss
    factors: NDArray[np.float32]

    def table(self, parameters: Float64s) -> Float64s:
        """The rows of w, and then the biases, (2D + 1, F), at parameters ((2D + 1) · F,)."""
        table = parameters.reshape(-1, len(self.factors)).copy()
        for i, factor in enumerate(self.factors):
            column = table[:-1, i].astype(np.float32)
            table[:-1, i] = solve_triangular(factor, column, lower=True, trans="T", check_finite=False)
        return table

    def __call__(self, parameters: Float64s) -> tuple[float, Float64s]:
        """The loss and its gradient at parameters ((2D + 1) · F,)."""
        loss, gradient = self.loss(self.table(parameters).ravel())
        table = gradient.reshape(-1, len(self.factors))
        for i, factor in enumerate(self.factors):
            column = table[:-1, i].astype(np.float32)
            table[:-1, i] = solve_triangular(factor, column, lower=True, check_finite=False)
        return loss, table.ravel()


def _curvatures(
    rows: Sequence[Vectors], weights: Sequence[Float64s], shares: Float64s, scale: Float64s
) -> NDArray[np.float32]:
    """The Cholesky factors (F, 2D, 2D) of the curvature of each training's loss at zero, ¼ E[z zᵀ] + λ I."""
    products, centres = zip(*map(_products, rows, weights), strict=True)

    def of_training(share: Vectors, inverse: Vectors) -> NDArray[np.float32]:
        centre, curvature = np.zeros_like(inverse), np.zeros_like(products[0])
        for part, product, of_set in zip(share, products, centres, strict=True):
            if part:
                curvature += part * product
                centre += part * of_set
        curvature -= np.outer(centre, centre)
        curvature *= np.outer(inverse, inverse)
        np.fill_diagonal(curvature, curvature.diagonal() + RIDGE)
        try:
            factor: NDArray[np.float32] = cholesky(curvature, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:  # by rounding; the descent then takes more steps
            factor = np.eye(len(inverse), dtype=np.float32)
        return factor

    return np.stack(in_threads(of_training, shares.T.astype(np.float32), (0.5 / scale.T).astype(np.float32)))


def _products(x: Vectors, weights: Float64s) -> tuple[Vectors, Vectors]:
    """The weighted means of x xᵀ, (2D, 2D), and of x, (2D,), over some of the vectors (N, 2D).

    They steer the descent and move no minimum, so some are enough.
    """
    step = max(1, len(x) // STEERING)
    some = (weights[::step] / weights[::step].sum()).astype(np.float32)
    block = x[::step] * np.sqrt(some)[:, None]
    product: Vectors = block.T @ block
    return product, some @ x[::step]


def _moments(x: Vectors, weights: Float64s) -> tuple[Float64s, Float64s]:
    """The weighted means (2D,) of vectors (N, 2D) and of their squares."""
    first, second = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for rows in blocks(len(x)):
        block = x[rows].astype(np.float64)
        first += weights[rows] @ block
        second += weights[rows] @ np.square(block)
    return first, second


def _lengths(block: Float64s, mean: Float64s, scale: Float64s) -> Float64s:
    """The lengths (B, F) of (x − mean) / scale. block: (B, 2D) float64, as differences of squares follow."""
    inverse = scale**-2
    squares = np.square(block) @ inverse - block @ (2 * mean * inverse) + (mean**2 * inverse).sum(axis=0)
    lengths: Float64s = np.sqrt(np.maximum(squares, 0.0))
    return lengths


def _centroids(
    rows: Sequence[Vectors], is_bonafide: Sequence[Classes], shares: Float64s, mean: Float64s, scale: Float64s
) -> Float64s:
    """The mean (2D, F) of z / ‖z‖ over the bona fide, each set with its share. A vector of zeros stays zeros."""

    def of_set(x: Vectors, bonafide: Classes, share: Float64s) -> Float64s:
        total, chosen = np.zeros_like(mean), np.flatnonzero(bonafide)
        for some in blocks(len(chosen)):
            block = x[chosen[some]].astype(np.float64)
            units = share / len(chosen) / np.maximum(_lengths(block, mean, scale), np.finfo(np.float32).tiny)  # (B, F)
            total += block.T @ units - mean * units.sum(axis=0)
        return total

    found: Float64s = np.sum(in_threads(of_set, rows, is_bonafide, shares), axis=0) / scale
    return found
